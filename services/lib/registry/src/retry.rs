//! What is tried again, and when. Pure, but for the waiting.

use std::time::Duration;

use tokio::time::Instant;

use crate::{settings::Terms, trouble::Trouble};

/// No pause between two tries is longer, however many there were, unless the registry asks for it.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// The pause before the next try after `tries` of them have failed; `None` where another one is of no use. `jitter` is
/// anything from 0 to 1, so that many who failed together do not come back together.
pub(crate) fn pause(trouble: &Trouble, tries: u32, terms: &Terms, jitter: f64) -> Option<Duration> {
    let asked_for = match trouble {
        Trouble::Busy { retry_after, .. } => *retry_after,
        Trouble::Unreachable(_) => None,
        Trouble::NotFound(_)
        | Trouble::Denied(_)
        | Trouble::NoTls(_)
        | Trouble::Untrusted(_)
        | Trouble::Protocol(_)
        | Trouble::Corrupt(_)
        | Trouble::Stalled => return None,
    };
    if tries >= terms.tries {
        return None;
    }
    let jitter = jitter.clamp(0.0, 1.0);
    match asked_for {
        Some(asked_for) if asked_for > terms.retry_after_max => None,
        // Never earlier than it asks.
        Some(asked_for) if !asked_for.is_zero() => {
            Some(asked_for + asked_for.min(terms.backoff).mul_f64(jitter))
        }
        _ => {
            let doubled = terms
                .backoff
                .saturating_mul(1 << tries.saturating_sub(1).min(16));
            Some(doubled.min(PAUSE_MAX).mul_f64((1.0 + jitter) / 2.0))
        }
    }
}

/// Reads `Retry-After`: seconds, or a date.
pub(crate) fn retry_after(header: &str, now: jiff::Timestamp) -> Option<Duration> {
    let header = header.trim();
    if let Ok(seconds) = header.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = jiff::fmt::rfc2822::parse(header).ok()?.timestamp();
    Some(Duration::try_from(at.duration_since(now)).unwrap_or_default())
}

/// How long a registry may still be waited for until a byte more comes.
#[derive(Debug)]
pub(crate) struct Patience {
    limit: Duration,
    left: Duration,
}

impl Patience {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, left: limit }
    }

    pub(crate) async fn wait<T>(&mut self, answer: impl Future<Output = T>) -> Result<T, Trouble> {
        let begun = Instant::now();
        let answer = tokio::time::timeout(self.left, answer).await;
        self.left = self.left.saturating_sub(begun.elapsed());
        answer.map_err(|_| Trouble::Stalled)
    }

    /// A byte more has come, or somebody else is asked.
    pub(crate) fn renew(&mut self) {
        self.left = self.limit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy(seconds: Option<u64>) -> Trouble {
        Trouble::Busy {
            retry_after: seconds.map(Duration::from_secs),
            source: "".into(),
        }
    }

    #[test]
    #[rustfmt::skip]
    fn what_may_pass_is_tried_again_later_and_later_and_not_for_ever() {
        let terms = Terms { tries: 9, ..Terms::default() };
        let gone = || Trouble::Unreachable("".into());
        let cases = [
            (gone(),          1, 1.0, Some(500)),
            (gone(),          1, 0.0, Some(250)),
            (gone(),          2, 1.0, Some(1000)),
            (gone(),          4, 1.0, Some(4000)),
            (gone(),          8, 1.0, Some(30_000)),
            (gone(),          9, 1.0, None),
            (busy(None),      2, 1.0, Some(1000)),
            (busy(Some(0)),   1, 1.0, Some(500)),
            (busy(Some(7)),   1, 0.0, Some(7000)),
            (busy(Some(7)),   1, 1.0, Some(7500)),
            (busy(Some(60)),  1, 0.0, Some(60_000)),
            (busy(Some(61)),  1, 0.0, None),
            (busy(Some(1)),   9, 0.0, None),
        ];
        for (trouble, tries, jitter, expected) in cases {
            let found = pause(&trouble, tries, &terms, jitter);
            assert_eq!(found, expected.map(Duration::from_millis), "{trouble:?} {tries} {jitter}");
        }
    }

    #[test]
    fn what_stays_as_it_is_is_not_tried_again() {
        for trouble in [
            Trouble::NotFound("".into()),
            Trouble::Denied("".into()),
            Trouble::NoTls("".into()),
            Trouble::Untrusted("".into()),
            Trouble::Protocol("".into()),
            Trouble::Corrupt("".into()),
            Trouble::Stalled,
        ] {
            let found = pause(&trouble, 1, &Terms::default(), 0.5);
            assert_eq!(found, None, "{trouble:?}");
        }
    }

    #[test]
    fn a_registry_says_when_to_come_back_in_seconds_or_by_a_date() {
        let now = "1994-11-06T08:49:00Z".parse().unwrap();
        for (header, expected) in [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(37)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("-1", None),
            ("soon", None),
            ("", None),
        ] {
            let found = retry_after(header, now);
            assert_eq!(found, expected.map(Duration::from_secs), "{header}");
        }
    }

    #[tokio::test]
    async fn patience_is_used_up_by_waits_together_and_renewed_by_a_byte() {
        let limit = Duration::from_secs(3600);
        let mut patience = Patience::new(limit);
        patience.wait(tokio::task::yield_now()).await.unwrap();
        assert!(patience.left < limit, "a wait counts");
        patience.left = Duration::ZERO;
        let over = patience.wait(std::future::pending::<()>()).await;
        assert!(matches!(over, Err(Trouble::Stalled)));
        patience.renew();
        assert_eq!(patience.left, limit);
    }
}
