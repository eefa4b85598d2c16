//! Keeps the kernel's lock over cgroup membership warm while tasks are created.
//!
//! The first process that enters a cgroup after a pause waits for an RCU grace period, some ten milliseconds, under a lock
//! of the whole kernel. When somebody pays it all the time, the runtime does not: it starts meanwhile.

use std::{
    fs,
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::Duration,
};

const PERIOD: Duration = Duration::from_millis(2);

/// Counts those who create. Dropping the last handle ends the thread.
#[derive(Clone, Debug)]
pub(crate) struct Heat(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    state: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Debug, Default)]
struct State {
    creating: usize,
    over: bool,
}

/// Somebody creates as long as this lives.
#[derive(Debug)]
pub(crate) struct Warm(Option<Arc<Shared>>);

impl Heat {
    pub(crate) fn off() -> Self {
        Self(None)
    }

    /// Starts the thread that rewrites this process's own membership; stays off where that is not possible.
    pub(crate) fn start() -> Self {
        let Some(procs) = own_procs_file() else {
            return Self::off();
        };
        let state = Arc::new((Mutex::new(State::default()), Condvar::new()));
        let seen = state.clone();
        let begun = thread::Builder::new()
            .name("heat".into())
            .spawn(move || warm(&seen, &procs));
        match begun {
            Ok(_) => Self(Some(Arc::new(Shared { state }))),
            Err(_) => Self::off(),
        }
    }

    pub(crate) fn warm(&self) -> Warm {
        if let Some(shared) = &self.0 {
            shared.change(|state| state.creating += 1);
        }
        Warm(self.0.clone())
    }
}

impl Drop for Warm {
    fn drop(&mut self) {
        if let Some(shared) = &self.0 {
            shared.change(|state| state.creating -= 1);
        }
    }
}

impl Shared {
    fn change(&self, change: impl FnOnce(&mut State)) {
        let (state, changed) = &*self.state;
        change(&mut state.lock().unwrap_or_else(PoisonError::into_inner));
        changed.notify_one();
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.change(|state| state.over = true);
    }
}

fn warm((state, changed): &(Mutex<State>, Condvar), procs: &PathBuf) {
    let own = std::process::id().to_string();
    let mut guard = state.lock().unwrap_or_else(PoisonError::into_inner);
    while !guard.over {
        if guard.creating == 0 {
            guard = changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        drop(guard);
        if fs::write(procs, &own).is_err() {
            return;
        }
        guard = state.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = changed.wait_timeout(guard, PERIOD);
        guard = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// The membership file of the cgroup that this process is in. Any hierarchy will do: the lock is the same.
fn own_procs_file() -> Option<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let candidates = own.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (controllers, path) = (fields.nth(1)?, fields.next()?);
        let root = PathBuf::from("/sys/fs/cgroup").join(controllers.trim_start_matches("name="));
        Some(root.join(path.trim_start_matches('/')).join("cgroup.procs"))
    });
    let own = std::process::id().to_string();
    candidates
        .into_iter()
        .find(|it| it.exists() && fs::write(it, &own).is_ok())
}
