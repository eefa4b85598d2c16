//! The probes of a request.

use std::time::Duration;

use berth_domain::{
    Probe, ProbeCheck,
    probe::{
        FAILURE_THRESHOLD_DEFAULT, PERIOD_DEFAULT, SUCCESS_THRESHOLD_DEFAULT, TIMEOUT_DEFAULT,
    },
};

use super::{Check, HOST_NAME_MAX, HOUR};
use crate::v1::{self, probe::Check as Asked};

const PERIOD_MIN: Duration = Duration::from_millis(100);
const TIMEOUT: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(10)..=Duration::from_secs(60);
const THRESHOLD_MAX: u32 = 100;
const PATH_MAX: usize = 2048;
const ARGUMENTS_MAX: usize = 64;
const ARGUMENT_MAX: usize = 4096;

impl Check {
    pub(super) fn probe(
        &mut self,
        field: &str,
        it: v1::Probe,
        port_wait: Duration,
    ) -> Option<Probe> {
        let of = |name: &str| format!("{field}.{name}");
        let initial_delay = self.duration(
            &of("initial_delay"),
            it.initial_delay,
            Duration::ZERO,
            Duration::ZERO..=HOUR,
        );
        let period = self.duration(&of("period"), it.period, PERIOD_DEFAULT, PERIOD_MIN..=HOUR);
        let timeout = self.duration(&of("timeout"), it.timeout, TIMEOUT_DEFAULT, TIMEOUT);
        let mut threshold = |name: &str, given: u32, default: u32| {
            if given > THRESHOLD_MAX {
                self.wrong(of(name), format!("must be 0 to {THRESHOLD_MAX}"));
            }
            if given == 0 { default } else { given }
        };
        let (success, failure) = (it.success_threshold, it.failure_threshold);
        let success_threshold = threshold("success_threshold", success, SUCCESS_THRESHOLD_DEFAULT);
        let failure_threshold = threshold("failure_threshold", failure, FAILURE_THRESHOLD_DEFAULT);
        if success <= THRESHOLD_MAX && period * (success_threshold - 1) >= port_wait {
            let problem = format!(
                "{success_threshold} successes, one each {} ms, are not possible within `spec.port_wait_timeout`",
                period.as_millis()
            );
            self.wrong(of("success_threshold"), problem);
        }
        let check = match it.check {
            Some(Asked::HttpGet(it)) => self.http_get(&of("http_get"), it),
            Some(Asked::TcpConnect(it)) => {
                let port = self.probed_port(&of("tcp_connect.port"), it.port);
                port.map(|port| ProbeCheck::TcpConnect { port })
            }
            Some(Asked::Exec(it)) => Some(self.exec(&of("exec"), it)),
            None => {
                self.wrong(field, "must have one of http_get, tcp_connect, exec");
                None
            }
        };
        Some(Probe {
            check: check?,
            initial_delay,
            period,
            timeout,
            success_threshold,
            failure_threshold,
        })
    }

    fn http_get(&mut self, field: &str, it: v1::HttpGetProbe) -> Option<ProbeCheck> {
        let port = self.probed_port(&format!("{field}.port"), it.port);
        let path = match it.path {
            path if path.is_empty() => "/".to_owned(),
            path => path,
        };
        // It becomes a part of a line.
        let printable = |it: &str| it.bytes().all(|b| b.is_ascii_graphic());
        let fits = path.len() <= PATH_MAX && !path.contains('#');
        if !path.starts_with('/') || !printable(&path) || !fits {
            let problem = format!(
                "must begin with `/` and have at most {PATH_MAX} printable ASCII characters and no `#`"
            );
            self.wrong(format!("{field}.path"), problem);
        }
        if it.host.len() > HOST_NAME_MAX || !printable(&it.host) {
            let problem = format!("must have at most {HOST_NAME_MAX} printable ASCII characters");
            self.wrong(format!("{field}.host"), problem);
        }
        Some(ProbeCheck::HttpGet {
            port: port?,
            path,
            host: it.host,
        })
    }

    fn exec(&mut self, field: &str, it: v1::ExecProbe) -> ProbeCheck {
        let command = format!("{field}.command");
        if it.command.first().is_none_or(String::is_empty) {
            self.wrong(&command, "must begin with a program");
        }
        self.count(&command, it.command.len(), ARGUMENTS_MAX);
        for (at, argument) in it.command.iter().enumerate() {
            self.text(&format!("{command}[{at}]"), argument, ARGUMENT_MAX);
        }
        ProbeCheck::Exec {
            command: it.command,
        }
    }

    fn probed_port(&mut self, field: &str, number: u32) -> Option<u16> {
        let port = u16::try_from(number).ok().filter(|it| *it != 0);
        self.take(field, port.ok_or("must be 1 to 65535"))
    }
}

#[cfg(test)]
mod tests {
    use berth_domain::{Failure, Reason};

    use super::*;
    use crate::create_from_proto;

    fn http(change: impl FnOnce(&mut v1::HttpGetProbe)) -> v1::Probe {
        let mut it = v1::HttpGetProbe {
            port: 8080,
            ..v1::HttpGetProbe::default()
        };
        change(&mut it);
        v1::Probe {
            check: Some(Asked::HttpGet(it)),
            ..v1::Probe::default()
        }
    }

    fn subnet() -> ipnet::Ipv4Net {
        "10.1.0.0/24".parse().unwrap()
    }

    fn read(probe: v1::Probe) -> Result<Option<Probe>, Failure> {
        let request = v1::CreateRequest {
            id: "web".into(),
            spec: Some(v1::SandboxSpec {
                containers: vec![v1::Container {
                    name: "web".into(),
                    image: "web".into(),
                    readiness_probe: Some(probe),
                    ..v1::Container::default()
                }],
                ..v1::SandboxSpec::default()
            }),
            ..v1::CreateRequest::default()
        };
        let created = create_from_proto(request, subnet());
        created.map(|it| it.spec.containers[0].readiness_probe.clone())
    }

    #[test]
    #[rustfmt::skip]
    fn what_is_at_a_bound_of_a_probe_is_taken_and_one_more_is_refused_by_its_field() {
        type Make = fn(usize) -> v1::Probe;
        fn exec(command: Vec<String>) -> v1::Probe {
            v1::Probe { check: Some(Asked::Exec(v1::ExecProbe { command })), ..v1::Probe::default() }
        }
        let cases: [(&str, usize, Make); 6] = [
            ("success_threshold", THRESHOLD_MAX as usize, |n| v1::Probe { success_threshold: n.try_into().unwrap(), period: Some(prost_types::Duration { seconds: 0, nanos: 100_000_000 }), ..http(|_| {}) }),
            ("failure_threshold", THRESHOLD_MAX as usize, |n| v1::Probe { failure_threshold: n.try_into().unwrap(), ..http(|_| {}) }),
            ("http_get.path",     PATH_MAX,               |n| http(|it| it.path = "/".repeat(n))),
            ("http_get.host",     HOST_NAME_MAX,          |n| http(|it| it.host = "a".repeat(n))),
            ("exec.command",      ARGUMENTS_MAX,          |n| exec(vec!["a".to_owned(); n])),
            ("exec.command[0]",   ARGUMENT_MAX,           |n| exec(vec!["a".repeat(n)])),
        ];
        for (field, most, make) in cases {
            assert!(read(make(most)).is_ok(), "{field}");
            let refused = read(make(most + 1)).unwrap_err();
            let expected = format!("spec.containers[0].readiness_probe.{field}");
            assert_eq!(refused.violations[0].field, expected);
        }
    }

    #[test]
    fn what_a_probe_does_not_say_has_its_default() {
        let probe = read(http(|_| {})).unwrap().unwrap();
        let expected = Probe {
            check: ProbeCheck::HttpGet {
                port: 8080,
                path: "/".into(),
                host: String::new(),
            },
            initial_delay: Duration::ZERO,
            period: Duration::from_secs(10),
            timeout: Duration::from_secs(1),
            success_threshold: 1,
            failure_threshold: 3,
        };
        assert_eq!(probe, expected);
    }

    #[test]
    #[rustfmt::skip]
    fn each_broken_rule_of_a_probe_is_named_by_its_field() {
        let time = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
        let with = |change: fn(&mut v1::Probe)| {
            let mut it = http(|_| {});
            change(&mut it);
            it
        };
        let exec = |command: &[&str]| v1::Probe {
            check: Some(Asked::Exec(v1::ExecProbe { command: command.iter().map(|it| (*it).to_owned()).collect() })),
            ..v1::Probe::default()
        };
        let tcp = v1::Probe { check: Some(Asked::TcpConnect(v1::TcpConnectProbe { port: 0 })), ..v1::Probe::default() };
        let (short, long) = (time(0, 1_000_000), time(4000, 0));
        let cases = [
            ("",                    v1::Probe::default()),
            (".http_get.port",      http(|it| it.port = 0)),
            (".http_get.port",      http(|it| it.port = 65536)),
            (".http_get.path",      http(|it| it.path = "health".into())),
            (".http_get.path",      http(|it| it.path = "/a b".into())),
            (".http_get.path",      http(|it| it.path = "/a\r\nHost: b".into())),
            (".http_get.path",      http(|it| it.path = "/".repeat(PATH_MAX + 1))),
            (".http_get.host",      http(|it| it.host = "a\nb".into())),
            (".tcp_connect.port",   tcp),
            (".exec.command",       exec(&[])),
            (".exec.command[1]",    exec(&["true", "\0"])),
            (".initial_delay",      v1::Probe { initial_delay: long, ..http(|_| {}) }),
            (".period",             v1::Probe { period: short, ..http(|_| {}) }),
            (".timeout",            v1::Probe { timeout: short, ..http(|_| {}) }),
            (".timeout",            v1::Probe { timeout: long, ..http(|_| {}) }),
            (".failure_threshold",  with(|it| it.failure_threshold = 101)),
            (".success_threshold",  with(|it| it.success_threshold = 101)),
            // The second try is over after 10 s, the third one is too late.
            (".success_threshold",  with(|it| it.success_threshold = 3)),
        ];
        for (field, probe) in cases {
            let failure = read(probe).unwrap_err();
            assert_eq!(failure.reason, Reason::InvalidField, "{field}: {failure}");
            let fields: Vec<_> = failure.violations.iter().map(|it| it.field.as_str()).collect();
            assert_eq!(fields, [format!("spec.containers[0].readiness_probe{field}")], "{failure}");
        }
        read(with(|it| it.success_threshold = 2)).unwrap();
        read(exec(&["true", ""])).unwrap();
    }
}
