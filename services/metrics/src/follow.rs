//! From what the manager says to what is read. A sandbox is read from its admission until it is DEAD.

use std::sync::PoisonError;

use berth_api::v1;
use berth_plugin::Fact;

use crate::series::{Book, SharedBook, Watched};

pub(crate) fn learn(book: &SharedBook, fact: Fact) {
    let mut book = book.write().unwrap_or_else(PoisonError::into_inner);
    match fact {
        Fact::All(sandboxes) => {
            book.retain(|id| sandboxes.iter().any(|it| it.id == id));
            for sandbox in sandboxes {
                learn_one(&mut book, sandbox);
            }
        }
        Fact::One(sandbox) => learn_one(&mut book, *sandbox),
        Fact::Gone { id, .. } => book.remove(&id),
    }
}

fn learn_one(book: &mut Book, sandbox: v1::Sandbox) {
    if sandbox.status() == v1::SandboxStatus::Dead {
        return book.remove(&sandbox.id);
    }
    let containers = sandbox.containers.into_iter().map(|it| it.name);
    let watched = Watched {
        generation: sandbox.generation,
        version: sandbox.spec.map(|it| it.version).unwrap_or_default(),
        cgroup: sandbox.cgroup,
        interface: sandbox.host_interface,
        containers: containers.collect(),
    };
    book.add(&sandbox.id, watched);
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, RwLock},
        time::Duration,
    };

    use super::*;

    fn sandbox(id: &str, status: v1::SandboxStatus) -> v1::Sandbox {
        v1::Sandbox {
            id: id.into(),
            generation: 1,
            status: status.into(),
            ..v1::Sandbox::default()
        }
    }

    #[test]
    fn a_sandbox_is_read_until_it_is_dead_or_gone() {
        use v1::SandboxStatus::{Dead, NotReady, Pending, Running, Stopped};
        let book: SharedBook = Arc::new(RwLock::new(Book::new(Duration::from_secs(1))));
        let one = |id, status| Fact::One(Box::new(sandbox(id, status)));
        let ids = || book.read().unwrap().ids();
        for status in [Pending, Running, NotReady, Stopped] {
            learn(&book, one("web", status));
            assert_eq!(ids(), ["web"], "{status:?}");
        }
        learn(&book, one("web", Dead));
        assert_eq!(ids(), [""; 0]);
        learn(&book, one("web", Running));
        let gone = Fact::Gone {
            id: "web".into(),
            generation: 1,
        };
        learn(&book, gone);
        assert_eq!(ids(), [""; 0]);
        learn(&book, one("web", Running));
        let all = vec![sandbox("db", Running), sandbox("old", Dead)];
        learn(&book, Fact::All(all));
        assert_eq!(ids(), ["db"], "what is not among all is gone");
    }
}
