//! What must be true of one id after each answer. Pure: it judges answers, and knows neither the node nor how to ask.

use std::time::Instant;

use berth_api::v1::{ExitCause, ExitRecord, Sandbox, SandboxStatus};

use crate::{
    plan::{BRIEF_CODE, Kind},
    weather::Faults,
};

/// Why a call was refused: a reason of Berth, or one of these.
pub(crate) type Reason = String;
/// The connection broke off.
pub(crate) const TRANSPORT: &str = "(transport)";
/// The client gave up.
pub(crate) const NO_ANSWER: &str = "(no answer)";

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Belief {
    Absent,
    Live(Live),
    /// The record is there and nothing else. Its generation is this one or, where the Create failed, a later one.
    Dead {
        generation: u64,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Live {
    pub(crate) generation: u64,
    pub(crate) address: String,
    pub(crate) kind: Kind,
    /// Not before this.
    pub(crate) born: Instant,
}

/// What follows from an answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Verdict {
    Is(Belief),
    /// It may have been done or not, which the fault excuses.
    Lost,
    /// It must not be.
    Violation(String),
}

use Verdict::{Is, Lost, Violation};

/// What there was while a call was under way.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Circumstances {
    pub(crate) faults: Faults,
    /// Whether all addresses may have been held.
    pub(crate) crowded: bool,
}

impl Belief {
    /// What it may be by now: one that exits by itself may have.
    fn alternatives(&self) -> Vec<Belief> {
        let mut all = vec![self.clone()];
        if let Belief::Live(live) = self
            && live.kind == Kind::Brief
        {
            all.push(Belief::Dead {
                generation: live.generation,
            });
        }
        all
    }

    fn has_one_of(&self) -> bool {
        *self != Belief::Absent
    }

    /// The first verdict over an alternative that is none to complain about.
    fn judge(&self, over: impl Fn(&Belief) -> Verdict) -> Verdict {
        let verdicts: Vec<_> = self.alternatives().iter().map(over).collect();
        let sound = verdicts.iter().find(|it| !matches!(it, Violation(_)));
        sound.unwrap_or(&verdicts[0]).clone()
    }
}

/// Whether a fault excuses that there is no answer.
fn is_lost(reason: &str, faults: Faults) -> bool {
    match reason {
        TRANSPORT => faults.manager,
        "RUNTIME_UNREACHABLE" => faults.runtime,
        "STORE_FULL" => faults.disk,
        "DEADLINE_PASSED" | NO_ANSWER => faults.any(),
        _ => false,
    }
}

fn refused(what: &str, was: &Belief, reason: &str, around: Circumstances) -> Verdict {
    if is_lost(reason, around.faults) {
        return Lost;
    }
    Violation(format!(
        "{what} of {was:?} was refused with {reason}, in {around:?}"
    ))
}

pub(crate) fn created(
    was: &Belief,
    kind: Kind,
    born: Instant,
    answer: &Result<Sandbox, Reason>,
    around: Circumstances,
) -> Verdict {
    was.judge(|was| match answer {
        Ok(sandbox) => created_ok(was, kind, born, sandbox),
        Err(reason) => match (was, reason.as_str()) {
            (Belief::Absent | Belief::Dead { .. }, "ADDRESSES_EXHAUSTED") if around.crowded => {
                Is(was.clone())
            }
            (Belief::Absent, _) if fails_so(kind, reason, around.faults) => {
                Is(Belief::Dead { generation: 1 })
            }
            (Belief::Dead { generation }, _) if fails_so(kind, reason, around.faults) => {
                Is(Belief::Dead {
                    generation: *generation + 1,
                })
            }
            // It has exited, and is being torn down.
            (Belief::Live(live), "SANDBOX_ENDING") if live.kind == Kind::Brief => Is(was.clone()),
            (Belief::Live(live), "SPEC_CONFLICT") if live.kind != kind => Is(was.clone()),
            _ => refused("a Create", was, reason, around),
        },
    })
}

fn fails_so(kind: Kind, reason: &str, faults: Faults) -> bool {
    match reason {
        // A node that is slow may see the end of one that exits by itself first.
        "CONTAINER_EXITED" => kind == Kind::Brief,
        // What containerd left of itself when it was killed is in its own way, but not for long.
        "RUNTIME_REFUSED" if faults.runtime => true,
        _ => kind.failure() == Some(reason),
    }
}

fn created_ok(was: &Belief, kind: Kind, born: Instant, sandbox: &Sandbox) -> Verdict {
    let wrong = |what: &str| {
        Violation(format!(
            "a Create of {was:?} as {kind:?}: {what}: {sandbox:?}"
        ))
    };
    if kind.failure().is_some() {
        return wrong("it cannot become RUNNING");
    }
    let [address] = sandbox.addresses.as_slice() else {
        return wrong("it has not one address");
    };
    if sandbox.status() != SandboxStatus::Running {
        return wrong("it is not RUNNING");
    }
    let fresh = Live {
        generation: sandbox.generation,
        address: address.address.clone(),
        kind,
        born,
    };
    match was {
        Belief::Absent => Is(Belief::Live(fresh)),
        Belief::Dead { generation } if sandbox.generation > *generation => Is(Belief::Live(fresh)),
        Belief::Dead { .. } => wrong("it has an old generation"),
        Belief::Live(live) if live.kind != kind => wrong("another spec was accepted"),
        Belief::Live(live) if live.generation != fresh.generation => wrong("another generation"),
        Belief::Live(live) if live.address != fresh.address => wrong("another address"),
        Belief::Live(_) => Is(was.clone()),
    }
}

/// `again`: the call was made before, and its answer was lost.
pub(crate) fn deleted(
    was: &Belief,
    again: bool,
    answer: &Result<bool, Reason>,
    around: Circumstances,
) -> Verdict {
    match answer {
        Ok(existed) if *existed == was.has_one_of() || again => Is(Belief::Absent),
        Ok(existed) => Violation(format!("a Delete of {was:?} says existed: {existed}")),
        Err(reason) => refused("a Delete", was, reason, around),
    }
}

pub(crate) fn stopped(
    was: &Belief,
    answer: &Result<Sandbox, Reason>,
    around: Circumstances,
) -> Verdict {
    was.judge(|was| match answer {
        Ok(it) if it.status() != SandboxStatus::Dead || !it.addresses.is_empty() => {
            Violation(format!("a Stop of {was:?} left {it:?}"))
        }
        Ok(it) => match was {
            Belief::Absent => Violation(format!("a Stop of nothing gave {it:?}")),
            Belief::Live(live) if it.generation != live.generation => {
                Violation(format!("a Stop of {was:?} gave {it:?}"))
            }
            Belief::Live(_) if it.reason == "STOP_REQUESTED" => Is(Belief::Dead {
                generation: it.generation,
            }),
            Belief::Live(live) => match ended_by_itself(live, it, around.faults) {
                Ok(()) => Is(Belief::Dead {
                    generation: it.generation,
                }),
                Err(what) => Violation(what),
            },
            Belief::Dead { generation } if it.generation >= *generation => Is(Belief::Dead {
                generation: it.generation,
            }),
            Belief::Dead { .. } => Violation(format!("a Stop of {was:?} gave {it:?}")),
        },
        Err(reason) if *was == Belief::Absent && reason == "SANDBOX_NOT_FOUND" => Is(was.clone()),
        Err(reason) => refused("a Stop", was, reason, around),
    })
}

/// A Get, of which a lost answer says nothing.
pub(crate) fn looked(
    was: &Belief,
    answer: &Result<Sandbox, Reason>,
    around: Circumstances,
) -> Verdict {
    match (was, answer) {
        (Belief::Absent, Err(reason)) if reason == "SANDBOX_NOT_FOUND" => Is(Belief::Absent),
        (Belief::Dead { generation }, Ok(it))
            if it.status() == SandboxStatus::Dead && it.generation >= *generation =>
        {
            Is(Belief::Dead {
                generation: it.generation,
            })
        }
        (Belief::Live(live), Ok(it)) if it.generation == live.generation => match it.status() {
            SandboxStatus::Running => {
                match it
                    .addresses
                    .first()
                    .is_some_and(|it| it.address == live.address)
                {
                    true => Is(was.clone()),
                    false => Violation(format!("{live:?} has another address: {it:?}")),
                }
            }
            SandboxStatus::Stopped | SandboxStatus::Dead => {
                match ended_by_itself(live, it, around.faults) {
                    Err(what) => Violation(what),
                    Ok(()) if it.status() == SandboxStatus::Dead => Is(Belief::Dead {
                        generation: it.generation,
                    }),
                    Ok(()) => Is(was.clone()),
                }
            }
            SandboxStatus::Pending | SandboxStatus::NotReady | SandboxStatus::Unspecified => {
                Violation(format!("{live:?} is {it:?}"))
            }
        },
        (_, Err(reason)) => refused("a Get", was, reason, around),
        (_, Ok(it)) => Violation(format!("{was:?} is {it:?}")),
    }
}

fn ended_by_itself(live: &Live, seen: &Sandbox, faults: Faults) -> Result<(), String> {
    let wrong = |what: &str| Err(format!("{live:?}: {what}: {seen:?}"));
    let Some(exit) = seen.exit.as_ref().filter(|_| live.kind == Kind::Brief) else {
        return wrong("nobody ended it");
    };
    let own = exit.container == "app"
        && exit.cause() == ExitCause::Exit
        && (exit.exit_code, exit.signal) == (BRIEF_CODE, 0);
    if own || is_excused(exit, faults) {
        Ok(())
    } else {
        wrong("it exits in another way")
    }
}

/// containerd forgets what ended while it was away.
fn is_excused(exit: &ExitRecord, faults: Faults) -> bool {
    faults.runtime && exit.cause() == ExitCause::RuntimeLost
}

/// The record of one whose app was killed by hand.
pub(crate) fn killed(live: &Live, seen: &Sandbox, faults: Faults) -> Result<(), String> {
    let wrong = |what: &str| Err(format!("{live:?} was killed: {what}: {seen:?}"));
    let Some(exit) = &seen.exit else {
        return wrong("no exit is recorded");
    };
    let signalled = exit.container == "app"
        && exit.cause() == ExitCause::Signal
        && (exit.exit_code, exit.signal) == (137, 9);
    if seen.generation != live.generation {
        return wrong("another generation");
    }
    if signalled
        || is_excused(exit, faults)
        || (live.kind == Kind::Brief && exit.exit_code == BRIEF_CODE)
    {
        Ok(())
    } else {
        wrong("the record says something else")
    }
}

#[cfg(test)]
mod tests {
    use berth_api::v1::NetworkAddress;

    use super::*;

    fn sandbox(generation: u64, status: SandboxStatus) -> Sandbox {
        let address = NetworkAddress {
            address: "10.0.0.2/28".into(),
            subnet: String::new(),
        };
        Sandbox {
            generation,
            status: status.into(),
            addresses: if status == SandboxStatus::Dead {
                vec![]
            } else {
                vec![address]
            },
            ..Sandbox::default()
        }
    }

    fn ended(generation: u64, code: u32, signal: u32, cause: ExitCause) -> Sandbox {
        Sandbox {
            exit: Some(ExitRecord {
                container: "app".into(),
                exit_code: code,
                signal,
                at: None,
                cause: cause.into(),
                ..ExitRecord::default()
            }),
            ..sandbox(generation, SandboxStatus::Dead)
        }
    }

    fn live(kind: Kind) -> Belief {
        Belief::Live(Live {
            generation: 7,
            address: "10.0.0.2/28".into(),
            kind,
            born: Instant::now(),
        })
    }

    fn faulty() -> Circumstances {
        Circumstances {
            faults: Faults {
                manager: true,
                runtime: true,
                disk: true,
            },
            crowded: true,
        }
    }

    fn sound(verdict: &Verdict) -> bool {
        !matches!(verdict, Violation(_))
    }

    #[test]
    #[rustfmt::skip]
    fn each_answer_to_a_create_is_judged_like_this() {
        use SandboxStatus::{Pending, Running};
        let dead = Belief::Dead { generation: 7 };
        let (calm, storm) = (Circumstances::default(), faulty());
        let refusal = |reason: &str| Err(reason.to_owned());
        let cases = [
            ("a new one",                   Belief::Absent,    Kind::Web,    Ok(sandbox(8, Running)),             calm,  true),
            ("not ready",                   Belief::Absent,    Kind::Web,    Ok(sandbox(8, Pending)),             calm,  false),
            ("one that cannot run",         Belief::Absent,    Kind::Deaf,   Ok(sandbox(8, Running)),             calm,  false),
            ("over a dead one",             dead.clone(),      Kind::Web,    Ok(sandbox(8, Running)),             calm,  true),
            ("the dead one's generation",   dead,              Kind::Web,    Ok(sandbox(7, Running)),             calm,  false),
            ("the same again",              live(Kind::Web),   Kind::Web,    Ok(sandbox(7, Running)),             calm,  true),
            ("the same, made anew",         live(Kind::Web),   Kind::Web,    Ok(sandbox(8, Running)),             storm, false),
            ("another spec",                live(Kind::Web),   Kind::Idle,   Ok(sandbox(7, Running)),             calm,  false),
            ("another spec, refused",       live(Kind::Web),   Kind::Idle,   refusal("SPEC_CONFLICT"),            calm,  true),
            ("the same spec, refused",      live(Kind::Web),   Kind::Web,    refusal("SPEC_CONFLICT"),            storm, false),
            ("over one that has exited",    live(Kind::Brief), Kind::Web,    Ok(sandbox(8, Running)),             calm,  true),
            ("fails as it must",            Belief::Absent,    Kind::Deaf,   refusal("PORT_TIMEOUT"),             calm,  true),
            ("fails as another would",      Belief::Absent,    Kind::Web,    refusal("PORT_TIMEOUT"),             storm, false),
            ("no address, in a crowd",      Belief::Absent,    Kind::Web,    refusal("ADDRESSES_EXHAUSTED"),      storm, true),
            ("no address, alone",           Belief::Absent,    Kind::Web,    refusal("ADDRESSES_EXHAUSTED"),      calm,  false),
            ("unreachable in a storm",      Belief::Absent,    Kind::Web,    refusal("RUNTIME_UNREACHABLE"),      storm, true),
            ("unreachable for no reason",   Belief::Absent,    Kind::Web,    refusal("RUNTIME_UNREACHABLE"),      calm,  false),
            ("refused behind a kill",       Belief::Absent,    Kind::Web,    refusal("RUNTIME_REFUSED"),          storm, true),
            ("refused for no reason",       Belief::Absent,    Kind::Web,    refusal("RUNTIME_REFUSED"),          calm,  false),
            ("a bug, even in a storm",      Belief::Absent,    Kind::Web,    refusal("INTERNAL"),                 storm, false),
        ];
        for (case, was, kind, answer, around, expected) in cases {
            let verdict = created(&was, kind, Instant::now(), &answer, around);
            assert_eq!(sound(&verdict), expected, "{case}: {verdict:?}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn each_look_is_judged_like_this() {
        use SandboxStatus::{Dead, Running};
        let (calm, storm) = (Circumstances::default(), faulty());
        let gone = Err("SANDBOX_NOT_FOUND".to_owned());
        let own = ended(7, BRIEF_CODE, 0, ExitCause::Exit);
        let lost = ended(7, 255, 0, ExitCause::RuntimeLost);
        let cases = [
            ("it runs",                       live(Kind::Web),                 Ok(sandbox(7, Running)), calm,  true),
            ("it was made anew",              live(Kind::Web),                 Ok(sandbox(8, Running)), storm, false),
            ("it is gone",                    live(Kind::Web),                 gone.clone(),            storm, false),
            ("it died of nothing",            live(Kind::Web),                 Ok(sandbox(7, Dead)),    storm, false),
            ("it was lost in a storm",        live(Kind::Web),                 Ok(lost.clone()),        storm, false),
            ("it exited as it should",        live(Kind::Brief),               Ok(own),                 calm,  true),
            ("its exit was lost in a storm",  live(Kind::Brief),               Ok(lost.clone()),        storm, true),
            ("its exit was lost for nothing", live(Kind::Brief),               Ok(lost),                calm,  false),
            ("a dead one stays",              Belief::Dead { generation: 7 },  Ok(sandbox(7, Dead)),    calm,  true),
            ("a dead one vanished",           Belief::Dead { generation: 7 },  gone.clone(),            storm, false),
            ("a dead one rose",               Belief::Dead { generation: 7 },  Ok(sandbox(7, Running)), storm, false),
            ("a deleted one stays away",      Belief::Absent,                  gone,                    calm,  true),
            ("a deleted one came back",       Belief::Absent,                  Ok(sandbox(7, Dead)),    storm, false),
        ];
        for (case, was, answer, around, expected) in cases {
            let verdict = looked(&was, &answer, around);
            assert_eq!(sound(&verdict), expected, "{case}: {verdict:?}");
        }
    }

    #[test]
    fn a_delete_says_whether_there_was_one_unless_its_first_answer_was_lost() {
        let calm = Circumstances::default();
        for (was, existed) in [(Belief::Absent, false), (live(Kind::Web), true)] {
            assert_eq!(deleted(&was, false, &Ok(existed), calm), Is(Belief::Absent));
            assert!(!sound(&deleted(&was, false, &Ok(!existed), calm)));
            assert!(sound(&deleted(&was, true, &Ok(!existed), calm)));
        }
        assert_eq!(
            deleted(
                &live(Kind::Web),
                false,
                &Err(TRANSPORT.to_owned()),
                faulty()
            ),
            Lost
        );
    }

    #[test]
    fn a_stop_ends_what_there_is_and_finds_nothing_where_nothing_is() {
        let calm = Circumstances::default();
        let stopped_one = Sandbox {
            reason: "STOP_REQUESTED".into(),
            ..sandbox(7, SandboxStatus::Dead)
        };
        let dead = Is(Belief::Dead { generation: 7 });
        assert_eq!(
            stopped(&live(Kind::Web), &Ok(stopped_one.clone()), calm),
            dead
        );
        assert!(!sound(&stopped(&Belief::Absent, &Ok(stopped_one), calm)));
        let nothing = Err("SANDBOX_NOT_FOUND".to_owned());
        assert!(sound(&stopped(&Belief::Absent, &nothing, calm)));
        assert!(!sound(&stopped(&live(Kind::Web), &nothing, faulty())));
        let running = sandbox(7, SandboxStatus::Running);
        assert!(!sound(&stopped(&live(Kind::Web), &Ok(running), calm)));
    }

    #[test]
    fn a_kill_is_told_as_a_signal_and_only_a_storm_excuses_another_word() {
        let Belief::Live(web) = live(Kind::Web) else {
            unreachable!("it is live")
        };
        let by_signal = ended(7, 137, 9, ExitCause::Signal);
        let lost = ended(7, 255, 0, ExitCause::RuntimeLost);
        assert!(killed(&web, &by_signal, Faults::default()).is_ok());
        assert!(killed(&web, &lost, Faults::default()).is_err());
        assert!(killed(&web, &lost, faulty().faults).is_ok());
        let oom = ended(7, 137, 9, ExitCause::Oom);
        assert!(killed(&web, &oom, faulty().faults).is_err());
    }
}
