//! One reader of the catalog: first page by page what stands, then each change.

use berth_api::{
    catalog::{entry_to_proto, kind_to_proto},
    v1::{self, watch_catalog_response::Event},
};
use berth_domain::catalog::{Entry, Key};
use berth_store::{Change, EntryPage, Store, Watch, WatchEnded};
use futures::StreamExt as _;
use tokio_stream::Stream;
use tonic::Status;

use super::super::{refuse, watches::too_slow};
use crate::failures::store_failure;

/// With as many blobs as an entry may name, a page has 8 MiB.
const PAGE_SIZE: usize = 200;

type Message = Result<v1::WatchCatalogResponse, Status>;

pub(super) struct Entries {
    /// What stands is read from, while there is more of it.
    standing: Option<Standing>,
    read: Pages,
    watch: Watch,
}

struct Standing {
    store: Store,
    /// At which the watch began.
    revision: u64,
    after: Option<Key>,
}

/// The pages that were read, each later than the one before: a change that came before its page is in it.
#[derive(Debug, Default)]
struct Pages {
    /// The last key of each, and the revision that it was read at. The last one goes on for ever.
    read: Vec<(Option<Key>, u64)>,
}

impl Pages {
    fn has(&self, key: &Key, revision: u64) -> bool {
        let before = |(last, _): &(Option<Key>, u64)| last.as_ref().is_some_and(|it| it < key);
        let place = self.read.partition_point(before);
        self.read.get(place).is_some_and(|(_, at)| revision <= *at)
    }

    /// What comes later than all pages is in none of them.
    fn forget_before(&mut self, revision: u64) {
        if self.read.last().is_some_and(|(_, at)| *at <= revision) {
            self.read = vec![];
        }
    }
}

impl Entries {
    pub(super) async fn from_here(store: &Store) -> Result<Self, Status> {
        let begun = store.watch_from_here().await;
        let (revision, watch) = begun.map_err(|it| refuse(store_failure(it)))?;
        Ok(Self {
            standing: Some(Standing {
                store: store.clone(),
                revision,
                after: None,
            }),
            read: Pages::default(),
            watch,
        })
    }

    pub(super) fn resumed(watch: Watch) -> Self {
        Self {
            standing: None,
            read: Pages::default(),
            watch,
        }
    }

    /// Ends behind the first error, and with the store.
    pub(super) fn stream(self) -> impl Stream<Item = Message> + Send {
        let parts = futures::stream::unfold(Some(self), |reader| async {
            let mut reader = reader?;
            match reader.next().await {
                Ok(messages) => Some((messages, Some(reader))),
                Err(Some(status)) => Some((vec![Err(status)], None)),
                Err(None) => None,
            }
        });
        parts.flat_map(futures::stream::iter)
    }

    async fn next(&mut self) -> Result<Vec<Message>, Option<Status>> {
        let Some(mut standing) = self.standing.take() else {
            return Ok(vec![self.change().await?]);
        };
        let page = standing
            .store
            .entries(None, standing.after.take(), PAGE_SIZE);
        let page = page.await.map_err(|it| refuse(store_failure(it)))?;
        let EntryPage {
            entries,
            more,
            revision,
        } = page;
        let last = entries.last().filter(|_| more).map(|it| it.object.key());
        let stands = |it: Entry| message(0, Event::Entry(entry_to_proto(&it)));
        let mut messages: Vec<_> = entries.into_iter().map(stands).collect();
        self.read.read.push((last.clone(), revision));
        if last.is_some() {
            standing.after = last;
            self.standing = Some(standing);
        } else {
            let synced = Event::Synced(v1::CatalogSynced {});
            messages.push(message(standing.revision, synced));
        }
        Ok(messages)
    }

    async fn change(&mut self) -> Result<Message, Option<Status>> {
        loop {
            let (revision, change) = match self.watch.next().await {
                Ok(change) => change,
                Err(WatchEnded::Lagged) => return Err(Some(too_slow())),
                Err(WatchEnded::Closed) => return Err(None),
            };
            let (key, event) = match change {
                Change::EntryPut(entry) => {
                    let event = Event::Entry(entry_to_proto(&entry));
                    (entry.object.key(), event)
                }
                Change::EntryRemoved(key) => {
                    let removed = v1::EntryRemoved {
                        kind: kind_to_proto(key.kind).into(),
                        id: key.id.clone(),
                    };
                    (key, Event::Removed(removed))
                }
                Change::Upserted(_) | Change::Removed { .. } => continue,
            };
            let has = self.read.has(&key, revision);
            self.read.forget_before(revision);
            if !has {
                return Ok(message(revision, event));
            }
        }
    }
}

fn message(revision: u64, event: Event) -> Message {
    Ok(v1::WatchCatalogResponse {
        revision,
        event: Some(event),
    })
}

#[cfg(test)]
mod tests {
    use berth_domain::catalog::Kind;

    use super::*;

    fn key(id: &str) -> Key {
        Key {
            kind: Kind::App,
            id: id.to_owned(),
        }
    }

    #[test]
    #[rustfmt::skip]
    fn a_change_is_told_unless_the_page_of_its_entry_was_read_later() {
        let pages = || Pages {
            read: vec![(Some(key("f")), 10), (Some(key("m")), 12), (None, 15)],
        };
        let cases = [
            ("a", 10, true), ("a", 11, false), ("f", 10, true), ("f", 12, false),
            ("g", 12, true), ("g", 13, false), ("m", 12, true), ("z", 15, true), ("z", 16, false),
        ];
        for (id, revision, expected) in cases {
            assert_eq!(pages().has(&key(id), revision), expected, "{id} at {revision}");
        }
        let mut read = pages();
        read.forget_before(14);
        assert!(read.has(&key("z"), 15));
        read.forget_before(15);
        assert!(!read.has(&key("z"), 16) && read.read.is_empty());
        assert!(!Pages::default().has(&key("a"), 1), "a watch that is resumed tells all");
    }
}
