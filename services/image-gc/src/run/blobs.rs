//! Blobs go in two runs at least: the first takes the path away, after a claim, and a later one removes the file, after a
//! claim and its commit. In between a blob that something needs is named back.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    time::{Instant, SystemTime},
};

use berth_api::v1;
use berth_collect::{Action, Digest, Object, Why, verdict::Tombstone};
use berth_domain::collection::CollectionKind;

use super::{CATALOG_CHANGED, Outcome, Stop, Work, granted, is_stale};
use crate::{
    directory::{BlobDir, Seen},
    manager::within,
};

/// As many as the contract allows in a message.
const BATCH: usize = 256;

/// A file, and what it is to people.
#[derive(Clone, Debug)]
struct File {
    seen: Seen,
    name: String,
    frees_bytes: u64,
    buried: Option<Tombstone>,
}

impl Work<'_> {
    pub(super) async fn blobs(
        &self,
        objects: Vec<Object>,
        outcome: &mut Outcome,
    ) -> Result<(), Stop> {
        let (mut restore, mut superseded, mut bury, mut remove) = (vec![], vec![], vec![], vec![]);
        for object in &objects {
            if let Why::Unreadable { problem } = &object.why {
                let (name, problem) = (object.name.clone(), problem.clone());
                outcome.failed.insert(name, problem);
            }
            let Ok(file) = File::of(object) else { continue };
            match (object.action, object.buried) {
                (Action::Restore, _) => restore.push(file),
                (Action::Delete, Some(_)) if object.why == Why::Superseded => superseded.push(file),
                (Action::Delete, Some(_)) => remove.push(file),
                (Action::Delete, None) => bury.push(file),
                (Action::Keep | Action::Later | Action::Tombstone, _) => {}
            }
        }
        self.restore(restore, outcome).await;
        self.remove_superseded(superseded, outcome).await;
        for batch in remove.chunks(BATCH) {
            self.remove(batch, outcome).await?;
        }
        for batch in bury.chunks(BATCH) {
            self.bury(batch, outcome).await?;
        }
        Ok(())
    }

    /// Takes the paths away, and looks again: what came to be needed meanwhile has lost its claim, and is named back.
    async fn bury(&self, batch: &[File], outcome: &mut Outcome) -> Result<(), Stop> {
        let claims = self.claim(batch.iter().map(deletable)).await?;
        outcome.stale |= claims.iter().any(is_stale);
        let claimed = batch.iter().zip(&claims).filter(|(_, it)| granted(it));
        let at = SystemTime::now();
        let claimed: BTreeMap<u64, File> =
            claimed.map(|(file, it)| (it.token, file.clone())).collect();
        berth_daemon::crash::point(|| "image-gc/blob-claimed".to_owned());
        let work = claimed.clone();
        let tokens: Vec<_> = claimed.keys().copied().collect();
        let until = match self.lasts() {
            Ok(until) => until,
            Err(stop) => {
                // Nothing was done under them, and whoever has the slice now is not to wait for their end.
                self.release(tokens).await?;
                return Err(stop);
            }
        };
        let links = self.links.clone();
        let buried = self.on_disk(move |directory| {
            let mut problems = Problems::new();
            let mut gone = BTreeSet::new();
            for (token, file) in work {
                // What another may have named back since is not taken away after it.
                if Instant::now() >= until {
                    break;
                }
                let to = Tombstone { token, at };
                match directory.bury(&links, &file.seen, to) {
                    Ok(true) => drop(gone.insert(file.seen.digest)),
                    // It has been written anew, or has gone, since it was seen.
                    Ok(false) => {}
                    Err(error) => drop(problems.insert(file.name, error.to_string())),
                }
            }
            if let Err(error) = directory.sync(&gone) {
                problems.insert("the directory".to_owned(), error.to_string());
            }
            problems
        });
        outcome.failed.extend(buried.await?);
        berth_daemon::crash::point(|| "image-gc/blob-buried".to_owned());
        let lost = self.release(tokens).await?;
        // Something came to need it, or the catalog has changed: that is seen from the facts as they are now.
        outcome.stale |= !lost.is_empty();
        let lost = lost.iter().filter_map(|token| {
            let mut file = claimed.get(token)?.clone();
            file.buried = Some(Tombstone { token: *token, at });
            Some(file)
        });
        self.restore(lost.collect(), outcome).await;
        Ok(())
    }

    /// Gives claims back, and returns those that are worth nothing.
    async fn release(&self, tokens: Vec<u64>) -> Result<Vec<u64>, Stop> {
        if tokens.is_empty() {
            return Ok(vec![]);
        }
        let request = v1::ReleaseDeletionsRequest { tokens };
        let answer = within(self.manager.collections().release_deletions(request)).await?;
        Ok(answer.lost)
    }

    /// Removes files to which no path has led for their grace, where the manager still agrees.
    async fn remove(&self, batch: &[File], outcome: &mut Outcome) -> Result<(), Stop> {
        let claims = self.claim(batch.iter().map(deletable)).await?;
        outcome.stale |= claims.iter().any(is_stale);
        let fresh = batch.iter().zip(&claims).filter(|(_, it)| !is_stale(it));
        let (claimed, refused): (Vec<_>, Vec<_>) = fresh.partition(|(_, it)| granted(it));
        berth_daemon::crash::point(|| "image-gc/tombstone-claimed".to_owned());
        let tokens = claimed.iter().map(|(_, it)| it.token).collect();
        let outcomes = self.commit(tokens).await?;
        berth_daemon::crash::point(|| "image-gc/blob-committed".to_owned());
        let mut go = Vec::new();
        let mut back: Vec<_> = refused.into_iter().map(|(file, _)| file.clone()).collect();
        for ((file, _), it) in claimed.into_iter().zip(outcomes) {
            match it {
                it if it.committed => go.push(file.clone()),
                it if !it.holders.is_empty() => back.push(file.clone()),
                it if it.problem == CATALOG_CHANGED => outcome.stale = true,
                it => drop(outcome.failed.insert(file.name.clone(), it.problem)),
            }
        }
        self.restore(back, outcome).await;
        let count = go.len() as u64;
        let links = self.links.clone();
        let removed = self.on_disk(move |directory| {
            let mut problems = each(&go, |file, it| {
                directory.remove(&links, &file.seen.digest, it)
            });
            let all = go.iter().map(|it| it.seen.digest).collect();
            if let Err(error) = directory.sync(&all) {
                problems.insert("the directory".to_owned(), error.to_string());
            }
            problems
        });
        let problems = removed.await?;
        outcome.deleted += count.saturating_sub(problems.len() as u64);
        outcome.failed.extend(problems);
        Ok(())
    }

    /// Until when the slice is this worker's. With time left for a batch, or not at all.
    fn lasts(&self) -> Result<Instant, Stop> {
        let of = (CollectionKind::Blobs, self.slice);
        let margin = self.config.lease_time / 4;
        let membership = self.state.membership.borrow();
        let until = membership.lasts(of, self.lease.token, margin);
        until.ok_or(Stop::Abandoned)
    }

    async fn restore(&self, files: Vec<File>, outcome: &mut Outcome) {
        if files.is_empty() {
            return;
        }
        let links = self.links.clone();
        let restored = self.on_disk(move |directory| {
            let mut problems = Problems::new();
            for file in &files {
                match directory.restore(&links, &file.seen.digest, file.buried) {
                    Ok(()) => tracing::info!(blob = file.name, "named back"),
                    Err(error) => drop(problems.insert(file.name.clone(), error.to_string())),
                }
            }
            problems
        });
        outcome.failed.extend(restored.await.unwrap_or_default());
    }

    async fn remove_superseded(&self, files: Vec<File>, outcome: &mut Outcome) {
        let removed = self.on_disk(move |directory| {
            each(&files, |file, it| {
                directory.remove_superseded(&file.seen.digest, it)
            })
        });
        outcome.failed.extend(removed.await.unwrap_or_default());
    }

    async fn on_disk(
        &self,
        work: impl FnOnce(&BlobDir) -> Problems + Send + 'static,
    ) -> Result<Problems, Stop> {
        let directory = BlobDir::new(self.config.blob_dir.clone(), self.config.blob_layout);
        let done = tokio::task::spawn_blocking(move || work(&directory)).await;
        done.map_err(|_| Stop::Failed("the work on the disk has ended early".to_owned()))
    }
}

/// What could not be done, by object.
type Problems = BTreeMap<String, String>;

fn each(files: &[File], work: impl Fn(&File, Tombstone) -> io::Result<()>) -> Problems {
    let mut problems = Problems::new();
    for file in files {
        let Some(buried) = file.buried else { continue };
        if let Err(error) = work(file, buried) {
            problems.insert(file.name.clone(), error.to_string());
        }
    }
    problems
}

impl File {
    fn of(object: &Object) -> Result<Self, berth_collect::digest::NoDigest> {
        let digest: Digest = object.digest.parse()?;
        Ok(Self {
            seen: Seen {
                digest,
                size_bytes: object.size_bytes,
                modified: object.last_used,
            },
            name: object.name.clone(),
            frees_bytes: object.frees_bytes,
            buried: object.buried,
        })
    }
}

fn deletable(it: &File) -> v1::Deletable {
    v1::Deletable {
        image: String::new(),
        digest: it.name.clone(),
        size_bytes: it.frees_bytes,
    }
}
