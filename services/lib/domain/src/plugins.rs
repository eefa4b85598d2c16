//! The processes beside the manager, as they say that they are. One that was not heard of for as long as it said is away. Time
//! is what has passed since the manager began.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

/// More than a node has processes that somebody looks at.
pub const PLUGINS_MAX: usize = 64;
/// One that is away for so long will not come back under its name.
pub const FORGOTTEN_AFTER: Duration = Duration::from_secs(3600);

/// What a process says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    pub name: String,
    pub instance: String,
    pub version: String,
    pub address: String,
    /// By the clock; tells a process from the one before it.
    pub started_at: SystemTime,
    pub time_to_live: Duration,
    pub serving: bool,
    pub reason: String,
    pub last_run: Option<LastRun>,
    /// It stops in order, and is no longer to be expected.
    pub leaving: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastRun {
    pub ended_at: SystemTime,
    pub succeeded: bool,
    pub result: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PluginState {
    Serving,
    NotServing,
    Away,
}

/// What was heard of a process last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plugin {
    pub said: Heartbeat,
    pub heard_at: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotHeard {
    /// There are as many as can be, and none is away.
    Exhausted,
    /// Another one of the same name and instance was started later.
    Replaced,
}

#[derive(Clone, Debug, Default)]
pub struct Plugins {
    by_name: BTreeMap<(String, String), Plugin>,
}

impl Plugin {
    pub fn state(&self, now: Duration) -> PluginState {
        if now.saturating_sub(self.heard_at) >= self.said.time_to_live {
            PluginState::Away
        } else if self.said.serving {
            PluginState::Serving
        } else {
            PluginState::NotServing
        }
    }
}

impl Plugins {
    pub fn hear(&mut self, said: Heartbeat, now: Duration) -> Result<(), NotHeard> {
        self.by_name
            .retain(|_, it| now.saturating_sub(it.heard_at) < FORGOTTEN_AFTER);
        let key = (said.name.clone(), said.instance.clone());
        if let Some(known) = self.by_name.get(&key)
            && known.said.started_at > said.started_at
            && known.state(now) != PluginState::Away
        {
            return Err(NotHeard::Replaced);
        }
        if said.leaving {
            self.by_name.remove(&key);
            return Ok(());
        }
        if self.by_name.len() >= PLUGINS_MAX && !self.by_name.contains_key(&key) {
            let away = self.by_name.iter();
            let away = away.filter(|(_, it)| it.state(now) == PluginState::Away);
            let longest = away.min_by_key(|(_, it)| it.heard_at);
            let longest = longest.map(|(key, _)| key.clone());
            self.by_name.remove(&longest.ok_or(NotHeard::Exhausted)?);
        }
        let heard_at = now;
        self.by_name.insert(key, Plugin { said, heard_at });
        Ok(())
    }

    /// By name and instance.
    pub fn list(&self, now: Duration) -> Vec<Plugin> {
        let known = self.by_name.values();
        known
            .filter(|it| now.saturating_sub(it.heard_at) < FORGOTTEN_AFTER)
            .cloned()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn beat(name: &str, started: u64) -> Heartbeat {
        Heartbeat {
            name: name.to_owned(),
            instance: String::new(),
            version: "1".to_owned(),
            address: String::new(),
            started_at: SystemTime::UNIX_EPOCH + seconds(started),
            time_to_live: seconds(10),
            serving: true,
            reason: String::new(),
            last_run: None,
            leaving: false,
        }
    }

    fn states(plugins: &Plugins, now: u64) -> Vec<(String, PluginState)> {
        let listed = plugins.list(seconds(now)).into_iter();
        listed
            .map(|it| (it.said.name.clone(), it.state(seconds(now))))
            .collect()
    }

    #[test]
    fn a_process_is_as_it_says_until_it_is_silent_and_is_forgotten_in_the_end() {
        use PluginState::{Away, NotServing, Serving};
        let mut plugins = Plugins::default();
        plugins.hear(beat("dns", 1), seconds(0)).unwrap();
        let ill = Heartbeat {
            serving: false,
            ..beat("metrics", 1)
        };
        plugins.hear(ill, seconds(5)).unwrap();
        let both = |dns, metrics| vec![("dns".to_owned(), dns), ("metrics".to_owned(), metrics)];
        assert_eq!(states(&plugins, 9), both(Serving, NotServing));
        assert_eq!(states(&plugins, 10), both(Away, NotServing));
        assert_eq!(states(&plugins, 15), both(Away, Away));
        plugins.hear(beat("dns", 1), seconds(20)).unwrap();
        assert_eq!(states(&plugins, 21), both(Serving, Away));
        let only_dns = vec![("dns".to_owned(), Away)];
        assert_eq!(states(&plugins, 5 + 3600), only_dns);
        assert_eq!(states(&plugins, 20 + 3600), []);
    }

    #[test]
    fn of_two_with_one_name_the_one_that_was_started_last_stays_while_it_is_heard_of() {
        let mut plugins = Plugins::default();
        plugins.hear(beat("dns", 5), seconds(0)).unwrap();
        plugins.hear(beat("dns", 6), seconds(1)).unwrap();
        let former = beat("dns", 5);
        let refused = plugins.hear(former.clone(), seconds(2));
        assert_eq!(refused, Err(NotHeard::Replaced));
        let other = Heartbeat {
            instance: "2".to_owned(),
            ..former.clone()
        };
        plugins.hear(other, seconds(2)).unwrap();
        plugins.hear(former, seconds(11)).unwrap();
        assert_eq!(plugins.list(seconds(11)).len(), 2);
    }

    #[test]
    fn who_leaves_is_known_no_more_and_takes_no_other_along() {
        let mut plugins = Plugins::default();
        let leaving = |started| Heartbeat {
            leaving: true,
            ..beat("dns", started)
        };
        plugins.hear(leaving(5), seconds(0)).unwrap();
        assert_eq!(states(&plugins, 0), []);
        plugins.hear(beat("dns", 5), seconds(0)).unwrap();
        plugins.hear(beat("metrics", 5), seconds(0)).unwrap();
        let former = plugins.hear(leaving(4), seconds(1));
        assert_eq!(former, Err(NotHeard::Replaced));
        plugins.hear(leaving(5), seconds(1)).unwrap();
        let left = vec![("metrics".to_owned(), PluginState::Serving)];
        assert_eq!(states(&plugins, 1), left);
    }

    #[test]
    fn one_more_than_there_can_be_takes_the_place_of_the_one_that_is_away_longest() {
        let mut plugins = Plugins::default();
        let name = |number: usize| format!("p{number:02}");
        for number in 0..PLUGINS_MAX {
            let at = Duration::from_millis(number as u64);
            plugins.hear(beat(&name(number), 1), at).unwrap();
        }
        let one_more = beat("more", 1);
        let refused = plugins.hear(one_more.clone(), seconds(5));
        assert_eq!(refused, Err(NotHeard::Exhausted));
        plugins.hear(beat(&name(0), 1), seconds(5)).unwrap();
        plugins.hear(one_more, seconds(11)).unwrap();
        let left: Vec<_> = plugins.list(seconds(11)).into_iter().collect();
        assert_eq!(left.len(), PLUGINS_MAX);
        assert!(left.iter().any(|it| it.said.name == name(0)));
        assert!(!left.iter().any(|it| it.said.name == name(1)));
    }
}
