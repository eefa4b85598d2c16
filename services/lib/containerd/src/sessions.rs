//! The processes that a program in a container has started, as the kernel counts them: its process group and its session.
//! They are looked for in the cgroup of the container only, so that a number that the kernel has given out again never
//! leads to a process of somebody else.

use std::fs;

use berth_cgroup::{CgroupError, Hierarchy};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// What a key on its terminal would reach.
    Group,
    /// All that has not left it by `setsid`.
    Session,
}

/// Signals what `leader` began, itself included, and returns how many processes there were.
pub(crate) fn signal(
    cgroups: &Hierarchy,
    cgroup: &str,
    leader: u32,
    reach: Reach,
    signal: Signal,
) -> Result<usize, CgroupError> {
    let mut reached = 0;
    for pid in cgroups.processes(cgroup)?.into_values() {
        let belongs = || belongs(pid, leader, reach);
        if !belongs() {
            continue;
        }
        let Ok(held) = pidfd_open(pid, PidfdFlags::empty()) else {
            continue;
        };
        // Looked at again: what the descriptor holds is what is signalled.
        if belongs() && pidfd_send_signal(held, signal).is_ok() {
            reached += 1;
        }
    }
    Ok(reached)
}

fn belongs(pid: Pid, leader: u32, reach: Reach) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid()));
    let of = stat.ok().and_then(|it| parse(&it));
    of.is_some_and(|(group, session)| match reach {
        Reach::Group => group == leader,
        Reach::Session => session == leader,
    })
}

/// Process group and session of a line of `/proc/<pid>/stat`. The name in it may have brackets and blanks.
fn parse(stat: &str) -> Option<(u32, u32)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(2);
    let group = fields.next()?.parse().ok()?;
    Some((group, fields.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_and_session_are_read_whatever_the_program_is_called() {
        assert_eq!(parse("7 (sh) S 1 5 4 0 -1"), Some((5, 4)));
        assert_eq!(parse("7 (a) S 9 9 (b) R 1 5 4 0"), Some((5, 4)));
        assert_eq!(parse("7 (sh"), None);
        assert_eq!(parse("7 (sh) S 1"), None);
    }
}
