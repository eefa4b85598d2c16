//! What the task of a sandbox shows to whoever waits for it.

use std::{sync::Arc, time::SystemTime};

use berth_domain::{Failure, SandboxRecord, Step};
use berth_platform::LayerProgress;
use tokio::sync::watch;

/// What the task knows, for whoever waits for it.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    /// The latest poke that this view takes into account.
    pub(crate) ticket: u64,
    pub(crate) record: Option<Arc<SandboxRecord>>,
    /// There is no record and nothing on the node.
    pub(crate) absent: bool,
    /// What keeps the task from getting on; it goes on trying.
    pub(crate) trouble: Option<Trouble>,
    /// Whether the node was seen since the manager started.
    pub(crate) looked: bool,
    /// What is being done at this moment.
    pub(crate) doing: Vec<Doing>,
}

#[derive(Clone, Debug)]
pub(crate) struct Trouble {
    pub(crate) failure: Failure,
    pub(crate) since: SystemTime,
    pub(crate) attempts: u64,
}

/// A step that has begun, with how far a pull is.
#[derive(Clone, Debug)]
pub(crate) struct Doing {
    pub(crate) step: Step,
    pub(crate) progress: Option<watch::Receiver<Vec<LayerProgress>>>,
}

impl View {
    pub(crate) fn meet(&mut self, failure: Failure) {
        let (since, attempts) = match &self.trouble {
            Some(it) => (it.since, it.attempts),
            None => (SystemTime::now(), 0),
        };
        self.trouble = Some(Trouble {
            failure,
            since,
            attempts: attempts + 1,
        });
    }

    /// What a view says once nothing is left of the sandbox.
    pub(crate) fn leave(&mut self, ticket: u64) {
        *self = View {
            ticket,
            absent: true,
            looked: true,
            ..View::default()
        };
    }
}
