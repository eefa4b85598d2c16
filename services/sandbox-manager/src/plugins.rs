//! The processes beside the manager, as they were heard of since it began.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use berth_api::{plugins::plugin_to_proto, v1};
use berth_domain::{
    Failure, Reason,
    plugins::{Heartbeat, NotHeard, PLUGINS_MAX, Plugins},
};

#[derive(Debug)]
pub(crate) struct PluginBook {
    began: Instant,
    plugins: Mutex<Plugins>,
}

impl PluginBook {
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
            plugins: Mutex::default(),
        }
    }

    pub(crate) fn hear(&self, it: Heartbeat) -> Result<(), Failure> {
        let (name, instance) = (it.name.clone(), it.instance.clone());
        let heard = self.lock().hear(it, self.began.elapsed());
        heard.map_err(|it| match it {
            NotHeard::Exhausted => {
                let message = format!("{PLUGINS_MAX} processes are registered, as many as can be");
                Failure::new(Reason::PluginsExhausted, message).with("limit", PLUGINS_MAX)
            }
            NotHeard::Replaced => {
                let message = format!("another {name} was started later");
                Failure::new(Reason::PluginReplaced, message)
                    .with("plugin", name)
                    .with("instance", instance)
            }
        })
    }

    pub(crate) fn list(&self) -> Vec<v1::Plugin> {
        let (now, clock) = (self.began.elapsed(), SystemTime::now());
        let at = |heard: Duration| {
            clock
                .checked_sub(now.saturating_sub(heard))
                .unwrap_or(clock)
        };
        let listed = self.lock().list(now).into_iter();
        listed.map(|it| plugin_to_proto(it, now, at)).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Plugins> {
        self.plugins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_more_process_than_there_can_be_is_refused_by_its_reason() {
        let book = PluginBook::new();
        let hear = |number: usize| {
            book.hear(Heartbeat {
                name: format!("p{number}"),
                instance: String::new(),
                version: String::new(),
                address: String::new(),
                started_at: SystemTime::UNIX_EPOCH,
                time_to_live: Duration::from_secs(60),
                serving: true,
                reason: String::new(),
                last_run: None,
                leaving: false,
            })
        };
        for number in 0..PLUGINS_MAX {
            hear(number).unwrap();
        }
        let refused = hear(PLUGINS_MAX).unwrap_err();
        assert_eq!(refused.reason, Reason::PluginsExhausted);
        assert_eq!(refused.metadata["limit"], PLUGINS_MAX.to_string());
    }
}
