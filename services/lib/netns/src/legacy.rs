//! Firewalls of iptables-legacy, which the kernel keeps apart from nftables and shows to its own program alone: whether they
//! let the packets of sandboxes pass, and what a person has to be told. Nothing is changed in them.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _},
    process::{Command, Output, Stdio},
    time::Duration,
};

use berth_domain::Names;
use ipnet::IpNet;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{MemfdFlags, memfd_create},
    io::retry_on_intr,
    process::{Pid, PidfdFlags, pidfd_open},
};

use crate::{error::NetnsError, table};

/// By family: where the kernel names the tables that there are in this network namespace, and the program that reads them.
const FAMILIES: [(&str, &str); 2] = [
    ("/proc/thread-self/net/ip_tables_names", "iptables-legacy"),
    ("/proc/thread-self/net/ip6_tables_names", "ip6tables-legacy"),
];

/// The program waits for another one of its kind for 1 s.
const TIME_LIMIT: Duration = Duration::from_secs(2);
/// Chains that lead to each other are followed so far: longer than any firewall is deep.
const DEPTH_MAX: usize = 8;

/// What a person has to do, a sentence each. Executes a program where there is such a firewall, and nowhere else. Blocks.
pub(crate) fn obstacles(subnets: &[IpNet]) -> Vec<String> {
    let of_family = |(names, program): (&str, &'static str)| {
        let own = subnets
            .iter()
            .filter(|it| it.addr().is_ipv4() == (program == FAMILIES[0].1));
        let own: Vec<_> = own.copied().collect();
        // To ask for a table that is not there makes it.
        let names = fs::read_to_string(names).unwrap_or_default();
        if own.is_empty() || !names.lines().any(|it| it == "filter") {
            return None;
        }
        obstacle(program, &own, read(program))
    };
    FAMILIES.into_iter().filter_map(of_family).collect()
}

/// All rules of the table, as the program writes them.
fn read(program: &'static str) -> Result<String, NetnsError> {
    let mut command = table::program(program);
    command.args(["--wait", "1", "--list-rules"]);
    let output = run(&mut command, TIME_LIMIT).map_err(NetnsError::executing(program))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(NetnsError::Refused {
            program,
            message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        }),
    }
}

/// Runs a program that is killed where it takes too long. What it says goes into memory: nobody has to read meanwhile.
fn run(command: &mut Command, limit: Duration) -> io::Result<Output> {
    let memory = || memfd_create("said", MemfdFlags::CLOEXEC).map(File::from);
    let (mut stdout, mut stderr) = (memory()?, memory()?);
    command.stdin(Stdio::null());
    command.stdout(stdout.try_clone()?);
    command.stderr(stderr.try_clone()?);
    let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
    let mut child = command.spawn()?;
    let ended = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).and_then(|process| {
        let mut polled = [PollFd::new(&process, PollFlags::IN)];
        retry_on_intr(|| poll(&mut polled, Some(&limit)))
    });
    if !matches!(ended, Ok(1..)) {
        child.kill()?;
    }
    let status = child.wait()?;
    if ended? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let said = |file: &mut File| {
        let mut said = vec![];
        file.rewind()?;
        file.read_to_end(&mut said).map(|_| said)
    };
    Ok(Output {
        status,
        stdout: said(&mut stdout)?,
        stderr: said(&mut stderr)?,
    })
}

/// A rule of a chain that leads somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    chain: String,
    /// What it asks of a packet, in words; where it asks for nothing, it is meant for every packet.
    asked: Vec<String>,
    /// A verdict, a chain, or what does something with a packet and lets it go on.
    target: String,
    /// What the target leaves open is as if this chain had ended.
    goes: bool,
}

impl Rule {
    fn parse(line: &str) -> Option<Self> {
        let mut words = words(line);
        // It asks for nothing.
        let comment = |it: &[String]| it[0] == "-m" && it[1] == "comment" && it[2] == "--comment";
        while let Some(at) = words.windows(4).position(comment) {
            words.drain(at..at + 4);
        }
        let leads = words.iter().position(|it| it == "-j" || it == "-g")?;
        match (words.first()?.as_str(), words.get(1), words.get(leads + 1)) {
            ("-A", Some(chain), Some(target)) => Some(Self {
                chain: chain.clone(),
                asked: words.get(2..leads)?.to_vec(),
                target: target.clone(),
                goes: words.get(leads)? == "-g",
            }),
            _ => None,
        }
    }

    /// Whether it is meant for all packets of which this is true.
    fn is_of(&self, packets: &[[String; 2]; 2]) -> bool {
        let mut asked = self.asked.chunks(2);
        asked.all(|it| packets.iter().any(|of| of == it))
    }
}

/// As a shell would have them: a comment may be of several, and is quoted then.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word) = (vec![], String::new());
    let (mut quoted, mut escaped) = (false, false);
    for it in line.chars() {
        match it {
            _ if escaped => {
                word.push(it);
                escaped = false;
            }
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ' ' if !quoted => words.push(std::mem::take(&mut word)),
            _ => word.push(it),
        }
    }
    words.push(word);
    words
}

/// Whether a chain lets all of these packets pass, as far as it decides on all of them alike.
fn decides(rules: &[Rule], chain: &str, packets: &[[String; 2]; 2], depth: usize) -> Option<bool> {
    let own = rules.iter().filter(|it| it.chain == chain);
    for rule in own.filter(|it| it.is_of(packets)) {
        let decided = match rule.target.as_str() {
            "ACCEPT" => Some(true),
            "DROP" | "REJECT" => Some(false),
            "RETURN" => return None,
            name if depth < DEPTH_MAX => decides(rules, name, packets, depth + 1),
            _ => None,
        };
        if decided.is_some() || rule.goes {
            return decided;
        }
    }
    None
}

fn obstacle(program: &str, own: &[IpNet], read: Result<String, NetnsError>) -> Option<String> {
    let rules = match read {
        Ok(rules) => rules,
        Err(error) => {
            return Some(format!(
                "there is a firewall of {program}, and nobody can say whether it lets pass what is forwarded: {error}"
            ));
        }
    };
    let accepts = !rules.lines().any(|it| it == "-P FORWARD DROP");
    let rules: Vec<_> = rules.lines().filter_map(Rule::parse).collect();
    let links = format!("{}+", Names::LINK_PREFIX);
    let both = own.iter().flat_map(|subnet| {
        [("-s", "-i"), ("-d", "-o")].map(|(end, link)| {
            let pair = |option: &str, value: &str| [option.to_owned(), value.to_owned()];
            [pair(end, &subnet.to_string()), pair(link, &links)]
        })
    });
    // What no rule decides, the policy does.
    let missing = both.filter(|it| !decides(&rules, "FORWARD", it, 0).unwrap_or(accepts));
    let missing: Vec<_> = missing
        .map(|it| format!("`{program} -I FORWARD {} -j ACCEPT`", it.concat().join(" ")))
        .collect();
    (!missing.is_empty()).then(|| {
        let missing = missing.join(" and ");
        format!("chain FORWARD of {program} drops what is forwarded, and Berth changes nothing in it: it takes {missing}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn a_firewall_that_drops_is_told_until_it_accepts_both_directions() {
        let own = ["10.1.0.0/16".parse().unwrap()];
        let from = "-A FORWARD -s 10.1.0.0/16 -i bt+ -j ACCEPT\n";
        let to = "-A FORWARD -d 10.1.0.0/16 -o bt+ -j ACCEPT\n";
        let docker = format!("{from}{to}").replace("FORWARD", "DOCKER-USER");
        let quoted = "-m comment --comment \"say \\\"no\\\" -j ACCEPT\"";
        let cases = [
            ("-P FORWARD ACCEPT\n".to_owned(), None),
            ("-P FORWARD DROP\n".to_owned(), Some(2)),
            ("-P FORWARD ACCEPT\n-A FORWARD -i lo -j ACCEPT\n-A FORWARD -j REJECT --reject-with icmp-port-unreachable\n".to_owned(), Some(2)),
            ("-P FORWARD ACCEPT\n-A FORWARD -j DROP\n-A INPUT -j ACCEPT\n".to_owned(), Some(2)),
            ("-P FORWARD ACCEPT\n-A FORWARD -j DROP\n-A FORWARD -j ACCEPT\n".to_owned(), Some(2)),
            ("-P FORWARD DROP\n-A FORWARD -j ACCEPT\n".to_owned(), None),
            ("-P INPUT DROP\n-P FORWARD ACCEPT\n-A FORWARD -i eth0 -j DROP\n".to_owned(), None),
            (format!("-P FORWARD DROP\n{from}"), Some(1)),
            (format!("-P FORWARD DROP\n{from}{to}"), None),
            (format!("-P FORWARD DROP\n{from}{to}").replace("10.1", "10.2"), Some(2)),
            // Wherever they stand, they have to be come by.
            (format!("-P FORWARD ACCEPT\n-A FORWARD -j DROP\n{from}{to}"), Some(2)),
            (format!("-P FORWARD ACCEPT\n{from}-A FORWARD -j DROP\n{to}"), Some(1)),
            (format!("-P FORWARD ACCEPT\n{from}{to}-A FORWARD -j DROP\n"), None),
            (format!("-P FORWARD DROP\n{docker}"), Some(2)),
            (format!("-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n{docker}"), None),
            (format!("-P FORWARD DROP\n-A FORWARD -g DOCKER-USER\n-A FORWARD -j ACCEPT\n{docker}-A DOCKER-USER -j RETURN\n"), None),
            ("-P FORWARD DROP\n-A FORWARD -g DOCKER-USER\n-A FORWARD -j ACCEPT\n-A DOCKER-USER -j RETURN\n".to_owned(), Some(2)),
            (format!("-P FORWARD DROP\n-A FORWARD -j DROP\n-A FORWARD -j DOCKER-USER\n{docker}"), Some(2)),
            (format!("-P FORWARD DROP\n-A FORWARD -i eth0 -j DOCKER-USER\n{docker}"), Some(2)),
            (format!("-P FORWARD DROP\n-A FORWARD -i bt+ -j DOCKER-USER\n{docker}"), Some(1)),
            (format!("-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n-A DOCKER-USER -j RETURN\n{docker}"), Some(2)),
            ("-P FORWARD ACCEPT\n-A FORWARD -m comment --comment x -j DROP\n".to_owned(), Some(2)),
            (format!("-P FORWARD ACCEPT\n-A FORWARD {quoted} -j REJECT --reject-with icmp-port-unreachable\n"), Some(2)),
            (format!("-P FORWARD DROP\n-A FORWARD {quoted} -j DOCKER-USER\n{docker}"), None),
            (format!("-P FORWARD DROP\n{from}{to}").replace("-j", "-m comment --comment ours -j"), None),
            (format!("-P FORWARD DROP\n{from}{to}").replace("-i", "! -i"), Some(1)),
            ("-P FORWARD DROP\n-A FORWARD -j FORWARD\n".to_owned(), Some(2)),
        ];
        for (rules, missing) in cases {
            let told = obstacle("iptables-legacy", &own, Ok(rules.clone()));
            let found = told.as_ref().map(|it| it.matches("`iptables-legacy -I FORWARD -").count());
            assert_eq!(found, missing, "{rules}{told:?}");
        }
        let mute = NetnsError::executing("iptables-legacy")(std::io::ErrorKind::NotFound.into());
        let told = obstacle("iptables-legacy", &own, Err(mute)).unwrap();
        assert!(told.contains("running iptables-legacy"), "{told}");
    }

    #[test]
    fn a_program_that_takes_too_long_is_killed_and_what_another_says_is_whole() {
        let shell = |line: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", line]);
            command
        };
        let took = run(&mut shell("exec sleep 3600"), Duration::from_millis(50));
        assert_eq!(took.unwrap_err().kind(), io::ErrorKind::TimedOut);
        // More than a pipe holds.
        let said = run(
            &mut shell("seq 1 100000; echo no >&2; exit 3"),
            Duration::from_secs(20),
        );
        let said = said.unwrap();
        assert!(said.stdout.ends_with(b"\n100000\n"));
        assert_eq!(
            (said.stderr.as_slice(), said.status.code()),
            (&b"no\n"[..], Some(3))
        );
    }
}
