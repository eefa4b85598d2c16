//! Whether calls are under way on a connection, and since when none are.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};

#[derive(Clone, Debug)]
pub(crate) struct Activity(Arc<watch::Sender<Now>>);

#[derive(Clone, Copy, Debug)]
struct Now {
    calls: usize,
    since: Instant,
}

impl Activity {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Now {
            calls: 0,
            since: Instant::now(),
        })))
    }

    pub(crate) fn begin(&self) -> Call {
        self.0.send_modify(|it| it.calls += 1);
        Call(self.clone())
    }

    /// `None` while there are calls.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        let now = *self.0.borrow();
        (now.calls == 0).then_some(now.since)
    }

    /// Returns when there was no call for so long.
    pub(crate) async fn idle_for(&self, limit: Duration) {
        let mut changes = self.0.subscribe();
        loop {
            let Now { calls, since } = *changes.borrow_and_update();
            let over = async {
                match calls {
                    0 => tokio::time::sleep_until(since + limit).await,
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                () = over => return,
                _ = changes.changed() => {}
            }
        }
    }
}

/// One that is under way until it is dropped.
#[derive(Debug)]
pub(crate) struct Call(Activity);

impl Drop for Call {
    fn drop(&mut self) {
        self.0.0.send_modify(|it| {
            it.calls -= 1;
            it.since = Instant::now();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_is_idle_from_the_end_of_its_last_call() {
        const LIMIT: Duration = Duration::from_millis(20);
        let activity = Activity::new();
        let (one, two) = (activity.begin(), activity.begin());
        drop(one);
        assert_eq!(activity.idle_since(), None, "one is under way yet");
        let under_way = tokio::time::timeout(3 * LIMIT, activity.idle_for(LIMIT)).await;
        assert!(under_way.is_err(), "and for as long as it takes");
        drop(two);
        let since = activity.idle_since().unwrap();
        activity.idle_for(LIMIT).await;
        assert!(since.elapsed() >= LIMIT);
        assert_eq!(activity.idle_since(), Some(since));
    }
}
