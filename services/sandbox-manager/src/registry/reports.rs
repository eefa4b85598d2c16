//! What others say about ports.

use std::time::SystemTime;

use berth_domain::{Failure, Generation, PortSighting, Reason, SandboxId, SandboxRecord, Status};
use berth_platform::{Images, Network, Runtime};
use berth_store::UpdateError;

use super::{Registry, generation_conflict, not_found};
use crate::failures::store_failure;

/// A record of one sandbox names at most 32 containers with 64 ports each.
const PORT_SIGHTINGS_MAX: usize = 2048;

/// Which sandbox of the id a reporter means: of which generation, and how often made again under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Meant {
    pub(crate) generation: Generation,
    pub(crate) restarts: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    Bound,
    Unbound,
    /// It lives. That says nothing about the port.
    Active,
}

impl<R: Runtime + Images, N: Network> Registry<R, N> {
    /// Takes the word of a reporter about a port, and has whoever waits look. A word that does not say which sandbox it means
    /// may be about a former one, and is only a reason to look.
    pub(crate) async fn report_port(
        &self,
        id: &SandboxId,
        meant: Option<Meant>,
        word: Word,
        sighting: PortSighting,
    ) -> Result<(), Failure> {
        let unknown = || {
            Failure::new(
                Reason::ContainerNotFound,
                format!("sandbox {id} has no container {}", sighting.container),
            )
        };
        let record = self.0.store.get(id).await.map_err(store_failure)?;
        let live = |it: &SandboxRecord| !matches!(it.status, Status::Dead | Status::Stopped);
        let record = record.filter(live).ok_or_else(unknown)?;
        if record.spec.container(&sighting.container).is_none() {
            return Err(unknown());
        }
        if let Some(meant) = meant {
            check(id, meant, &record)?;
            if is_news(&record, word, &sighting) {
                self.note(id, meant, word, sighting).await?;
            }
        }
        self.wake(id);
        Ok(())
    }

    async fn note(
        &self,
        id: &SandboxId,
        meant: Meant,
        word: Word,
        sighting: PortSighting,
    ) -> Result<(), Failure> {
        // It may have changed since it was looked at.
        let change = move |record: &mut SandboxRecord| {
            if record.restarts == meant.restarts && is_news(record, word, &sighting) {
                record.note_port(sighting);
            }
        };
        let store = &self.0.store;
        let noted = store.update(id, meant.generation, SystemTime::now(), change);
        match noted.await {
            Ok(record) => check(id, meant, &record),
            Err(UpdateError::Gone | UpdateError::NotAllowed(_)) => Err(not_found(id)),
            Err(UpdateError::Store(error)) => Err(store_failure(error)),
        }
    }
}

fn check(id: &SandboxId, meant: Meant, record: &SandboxRecord) -> Result<(), Failure> {
    if meant.generation != record.generation {
        return Err(generation_conflict(id, meant.generation, record.generation));
    }
    if meant.restarts != record.restarts {
        let message = format!(
            "sandbox {id} of generation {} was made again {} times, not {}",
            record.generation, record.restarts, meant.restarts
        );
        return Err(Failure::new(Reason::GenerationConflict, message)
            .with("expected", meant.generation)
            .with("actual", record.generation)
            .with("expected_restarts", meant.restarts)
            .with("actual_restarts", record.restarts));
    }
    Ok(())
}

/// Whether the record does not have this yet. What nobody has said, or of another address, is not taken back.
fn is_news(record: &SandboxRecord, word: Word, sighting: &PortSighting) -> bool {
    let known = record
        .ports
        .iter()
        .find(|it| it.is_about_the_same(sighting));
    match (word, known) {
        (Word::Active, _) | (Word::Unbound, None) => false,
        // Any reporter may name any port, but a record holds only so many.
        (Word::Bound, None) => record.ports.len() < PORT_SIGHTINGS_MAX,
        (Word::Bound, Some(known)) => !known.says_the_same(sighting),
        (Word::Unbound, Some(known)) => known.bound && known.address == sighting.address,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use berth_domain::{ContainerName, Protocol};

    use super::*;

    fn said(bound: bool, address: &str, source: &str) -> PortSighting {
        PortSighting {
            container: ContainerName::parse("app").unwrap(),
            port: 80,
            protocol: Protocol::Tcp,
            bound,
            address: address.into(),
            source: source.into(),
            at: SystemTime::now(),
            bound_port: None,
        }
    }

    #[test]
    fn a_record_holds_so_many_sightings_and_those_that_it_has_go_on() {
        let id = SandboxId::parse("web").unwrap();
        let now = SystemTime::UNIX_EPOCH;
        let mut record = SandboxRecord::new(id, Generation(1), Arc::default(), vec![], now);
        for number in 0..PORT_SIGHTINGS_MAX {
            let it = said(true, "0.0.0.0", &number.to_string());
            assert!(is_news(&record, Word::Bound, &it), "{number}");
            record.note_port(it);
        }
        let more = said(true, "0.0.0.0", "more");
        assert!(!is_news(&record, Word::Bound, &more));
        let known = said(false, "0.0.0.0", "7");
        assert!(is_news(&record, Word::Unbound, &known));
    }

    #[test]
    #[rustfmt::skip]
    fn a_source_takes_back_only_what_it_said_of_the_same_address() {
        let cases = [
            (Word::Bound,   "0.0.0.0",  "a", false),
            (Word::Bound,   "10.0.0.1", "a", true),
            (Word::Bound,   "0.0.0.0",  "b", true),
            (Word::Unbound, "0.0.0.0",  "a", true),
            (Word::Unbound, "10.0.0.1", "a", false),
            (Word::Unbound, "0.0.0.0",  "b", false),
            (Word::Active,  "10.0.0.1", "a", false),
        ];
        let id = SandboxId::parse("web").unwrap();
        let now = SystemTime::UNIX_EPOCH;
        let mut record = SandboxRecord::new(id, Generation(1), Arc::default(), vec![], now);
        record.note_port(said(true, "0.0.0.0", "a"));
        for (word, address, source, expected) in cases {
            let it = said(word == Word::Bound, address, source);
            assert_eq!(is_news(&record, word, &it), expected, "{word:?} {address} {source}");
        }
    }
}
