//! What a container is asked to show that it is ready, and what its answers amount to.

use std::{fmt, time::Duration};

pub const PERIOD_DEFAULT: Duration = Duration::from_secs(10);
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(1);
pub const SUCCESS_THRESHOLD_DEFAULT: u32 = 1;
pub const FAILURE_THRESHOLD_DEFAULT: u32 = 3;
/// Between the first tries of one that is not ready yet; each wait is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    pub check: ProbeCheck,
    pub initial_delay: Duration,
    pub period: Duration,
    pub timeout: Duration,
    pub success_threshold: u32,
    pub failure_threshold: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeCheck {
    HttpGet {
        port: u16,
        path: String,
        /// Empty: address and port.
        host: String,
    },
    TcpConnect {
        port: u16,
    },
    /// A program in the container, with its arguments.
    Exec {
        command: Vec<String>,
    },
}

impl fmt::Display for ProbeCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HttpGet { port, path, .. } => write!(f, "GET {path} on port {port}"),
            Self::TcpConnect { port } => write!(f, "a connection to port {port}"),
            Self::Exec { command } => {
                let program = command.first().map_or("", String::as_str);
                write!(f, "the program {program}")
            }
        }
    }
}

/// What the answers so far say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readiness {
    pub ready: bool,
    /// What came of the try that made it what it is; empty for a success.
    pub answer: String,
    /// Answers in a row that speak against what it is.
    against: u32,
    /// Tries that found nobody ready yet.
    early: u32,
}

impl Readiness {
    pub fn new(ready: bool) -> Self {
        Self {
            ready,
            answer: String::new(),
            against: 0,
            early: 0,
        }
    }

    /// Takes note of an answer; returns whether it changes what it is.
    pub fn note(&mut self, probe: &Probe, answer: Result<(), String>) -> bool {
        let threshold = match self.ready {
            true => probe.failure_threshold,
            false => probe.success_threshold,
        };
        let speaks_against = answer.is_ok() != self.ready;
        self.against = if speaks_against { self.against + 1 } else { 0 };
        let answer = answer.err().unwrap_or_default();
        if !self.ready && !speaks_against {
            self.early = self.early.saturating_add(1);
            self.answer.clone_from(&answer);
        }
        let changes = self.against >= threshold;
        if changes {
            *self = Self {
                answer,
                // Whoever was ready once is asked at its own pace.
                early: u32::MAX,
                ..Self::new(!self.ready)
            };
        }
        changes
    }

    /// How long to wait before the next try.
    pub fn pause(&self, probe: &Probe) -> Duration {
        let answered = self.ready || self.against > 0;
        match self.early.checked_sub(1) {
            Some(tries) if !answered && tries < 16 => {
                probe.period.min(FIRST_PAUSE * 2_u32.pow(tries))
            }
            Some(_) | None => probe.period,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(success_threshold: u32, failure_threshold: u32) -> Probe {
        Probe {
            check: ProbeCheck::TcpConnect { port: 80 },
            initial_delay: Duration::ZERO,
            period: Duration::from_secs(1),
            timeout: TIMEOUT_DEFAULT,
            success_threshold,
            failure_threshold,
        }
    }

    /// `+` is a success and `-` a failure; upper-case `R` and `N` is what it is after each.
    #[test]
    #[rustfmt::skip]
    fn only_so_many_answers_in_a_row_change_what_it_is() {
        let cases = [
            (1, 3, false, "+----+",     "RRRNNR"),
            (1, 3, true,  "--+---",     "RRRRRN"),
            (2, 1, false, "+-++-",      "NNNRN"),
            (3, 2, true,  "-+--++-+++", "RRRNNNNNNR"),
        ];
        for (success, failure, ready, answers, expected) in cases {
            let probe = probe(success, failure);
            let mut it = Readiness::new(ready);
            let became: String = answers.chars().map(|answer| {
                let before = it.ready;
                let answer = if answer == '+' { Ok(()) } else { Err("503".to_owned()) };
                let changed = it.note(&probe, answer);
                assert_eq!(changed, it.ready != before, "{answers}");
                if it.ready { 'R' } else { 'N' }
            }).collect();
            assert_eq!(became, expected, "{answers}");
        }
    }

    #[test]
    fn it_keeps_the_answer_that_made_it_what_it_is() {
        let probe = probe(1, 2);
        let mut it = Readiness::new(true);
        it.note(&probe, Err("a".into()));
        it.note(&probe, Err("b".into()));
        assert_eq!((it.ready, it.answer.as_str()), (false, "b"));
        it.note(&probe, Ok(()));
        assert_eq!((it.ready, it.answer.as_str()), (true, ""));
    }

    #[test]
    fn one_that_is_not_ready_yet_is_asked_sooner_and_never_more_rarely_than_its_period() {
        let probe = probe(2, 1);
        let mut it = Readiness::new(false);
        let mut pauses = vec![];
        for _ in 0..6 {
            it.note(&probe, Err("refused".into()));
            pauses.push(it.pause(&probe).as_millis());
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1000, 1000]);
        it.note(&probe, Ok(()));
        assert_eq!(it.pause(&probe), probe.period, "it has begun to succeed");
        it.note(&probe, Ok(()));
        it.note(&probe, Err("503".into()));
        assert!(!it.ready);
        assert_eq!(it.pause(&probe), probe.period, "it was ready once");
    }
}
