//! When the next run of the schedule is due: counted from the last one that is stored, so that a restart postpones nothing.

use std::time::{Duration, SystemTime};

/// A run that collected all that was of no use, or tried to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastRun {
    pub started: SystemTime,
    /// It deleted nothing, because something could not be read.
    pub aborted: bool,
}

/// When the next one is due, at the earliest `now`: at once where none is known; soon after one that was aborted; and at once
/// where the last one is in the future, because the clock has been set back and nobody knows how far.
pub fn due(
    last: Option<LastRun>,
    interval: Duration,
    retry: Duration,
    now: SystemTime,
) -> SystemTime {
    let Some(LastRun { started, aborted }) = last.filter(|it| it.started <= now) else {
        return now;
    };
    let wait = if aborted {
        interval.min(retry)
    } else {
        interval
    };
    // Beyond the end of time there is none.
    started.checked_add(wait).unwrap_or(started).max(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(hours: u32) -> SystemTime {
        SystemTime::UNIX_EPOCH + HOUR * hours
    }

    #[test]
    #[rustfmt::skip]
    fn a_run_is_due_an_interval_after_the_last_one_that_is_stored() {
        let run = |hours, aborted| Some(LastRun { started: at(hours), aborted });
        let cases = [
            ("none is known",            None,               at(500), at(500)),
            ("the last one was just now",run(500, false),    at(500), at(668)),
            ("time has passed",          run(500, false),    at(600), at(668)),
            ("the hour has come",        run(500, false),    at(668), at(668)),
            ("it was missed",            run(500, false),    at(900), at(900)),
            ("the clock was set back",   run(500, false),    at(499), at(499)),
            ("it was aborted",           run(500, true),     at(500), at(501)),
            ("it was aborted long ago",  run(500, true),     at(600), at(600)),
        ];
        for (case, last, now, expected) in cases {
            assert_eq!(due(last, 168 * HOUR, HOUR, now), expected, "{case}");
        }
    }

    #[test]
    fn an_interval_without_end_is_no_panic() {
        let last = LastRun {
            started: at(1),
            aborted: false,
        };
        assert_eq!(due(Some(last), Duration::MAX, HOUR, at(2)), at(2));
    }
}
