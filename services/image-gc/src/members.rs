//! Who works: each worker lives by a lease, and holds those of the slices that are its own. All come to the same split by
//! themselves; while they see different workers, the lease of a slice decides.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use berth_api::v1;
use berth_collect::share;
use berth_domain::{
    Reason,
    collection::{CollectionKind, Slice},
};
use berth_plugin::Seat;
use futures::{StreamExt as _, stream};
use tonic::Status;

use crate::{
    config::Config,
    manager::{Broken, Manager, is, within},
    state::{Lease, Membership, State},
};

/// Names of all leases of workers begin so.
const LEASES: &str = "image-gc/";
/// Names of the leases by which workers live begin so.
const WORKERS: &str = "image-gc/worker/";
/// As many leases as the contract allows in a message.
const BATCH: usize = 256;
/// So many leases are asked for at the same time, by a worker that is to be at work soon.
const ASKED_AT_ONCE: usize = 16;
/// Workers that come and go are seen within this time, however long leases live.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What this process asks for leases with.
#[derive(Debug)]
struct Member<'a> {
    config: &'a Config,
    /// Not only the name of the worker: a process that was started again is not the one before.
    holder: &'a str,
    membership: Membership,
}

pub(crate) async fn keep(
    manager: &Manager,
    config: &Config,
    seat: &Seat,
    state: &State,
) -> Result<std::convert::Infallible, Broken> {
    manager.end_former_leases(LEASES, seat).await?;
    let mut member = Member {
        config,
        holder: seat.holder(),
        membership: Membership {
            reachable: true,
            ..Membership::default()
        },
    };
    loop {
        let taken = member.look(manager).await?;
        let problem = taken.err();
        state.alarm("name", problem);
        state.membership.send_replace(member.membership.clone());
        tokio::time::sleep(LOOK_AGAIN.min(config.lease_time / 3)).await;
    }
}

/// Gives all leases back, so that the others need not wait for their end.
pub(crate) async fn leave(manager: &Manager, membership: &Membership) {
    let slices = membership.slices.values();
    let all: Vec<_> = slices
        .chain(&membership.own)
        .map(Lease::reference)
        .collect();
    for leases in all.chunks(BATCH) {
        let leases = leases.to_vec();
        let request = v1::ReleaseWorkLeasesRequest { leases };
        if let Err(status) = within(manager.leases().release_work_leases(request)).await {
            tracing::warn!(error = status.message(), "leases are left to their end");
        }
    }
}

/// What a worker collects.
pub(crate) fn kinds(config: &Config) -> Vec<CollectionKind> {
    let collects = |kind: &CollectionKind| match kind {
        CollectionKind::Images => config.collect_images,
        CollectionKind::Blobs => config.collect_blobs,
    };
    CollectionKind::ALL.into_iter().filter(collects).collect()
}

impl Member<'_> {
    /// Renews what it has, sees who is there, takes what is its own and gives back what is not. The text says who has its
    /// name.
    async fn look(&mut self, manager: &Manager) -> Result<Result<(), String>, Status> {
        self.renew(manager).await?;
        if self.membership.own.is_none() {
            self.membership.live.clear();
            let name = format!("{WORKERS}{}", self.config.name);
            match self.acquire(manager, name, self.attributes()).await? {
                Ok(lease) => self.membership.own = Some(lease),
                Err(status) => return Ok(Err(status.message().to_owned())),
            }
        }
        self.membership.live = self.workers(manager).await?;
        let mut foreign = Vec::new();
        for kind in kinds(self.config) {
            let live = self.membership.live.get(&kind).cloned().unwrap_or_default();
            let own = share::slices_of(&self.config.name, &live);
            foreign.extend(self.give_up(kind, &own));
            self.take(manager, kind, &own).await?;
        }
        for leases in foreign.chunks(BATCH) {
            let leases = leases.to_vec();
            let request = v1::ReleaseWorkLeasesRequest { leases };
            within(manager.leases().release_work_leases(request)).await?;
        }
        Ok(Ok(()))
    }

    async fn renew(&mut self, manager: &Manager) -> Result<(), Status> {
        let membership = &self.membership;
        let all = membership.slices.values().chain(&membership.own);
        let all: Vec<_> = all.map(Lease::reference).collect();
        let mut renewed = BTreeMap::new();
        for leases in all.chunks(BATCH) {
            let asked = Instant::now();
            let leases = leases.to_vec();
            let request = v1::RenewWorkLeasesRequest { leases };
            let answer = within(manager.leases().renew_work_leases(request)).await?;
            let until = asked + self.config.lease_time;
            renewed.extend(answer.renewed.into_iter().map(|it| (it.name, until)));
        }
        let membership = &mut self.membership;
        let still = |lease: &mut Lease| match renewed.get(&lease.name) {
            Some(until) => {
                lease.until = *until;
                true
            }
            None => false,
        };
        membership.slices.retain(|_, lease| still(lease));
        if let Some(own) = &mut membership.own
            && !still(own)
        {
            tracing::warn!("the others took this worker for gone; it begins anew");
            membership.own = None;
        }
        Ok(())
    }

    /// Takes those of its slices that it has not. Where another one still has one, it is asked for again at the next look.
    async fn take(
        &mut self,
        manager: &Manager,
        kind: CollectionKind,
        own: &BTreeSet<Slice>,
    ) -> Result<(), Status> {
        let held = &self.membership.slices;
        let missing = own.iter().filter(|it| !held.contains_key(&(kind, **it)));
        let asked = missing.map(async |slice| {
            let lease = self.acquire(manager, kind.lease(*slice), BTreeMap::new());
            lease.await.map(|it| it.ok().map(|it| ((kind, *slice), it)))
        });
        let answers = stream::iter(asked).buffer_unordered(ASKED_AT_ONCE);
        let answers: Vec<Result<_, Status>> = answers.collect().await;
        let mut failed = Ok(());
        for answer in answers {
            match answer {
                Ok(taken) => self.membership.slices.extend(taken),
                Err(status) => failed = Err(status),
            }
        }
        failed
    }

    /// The inner error is that somebody else has it.
    async fn acquire(
        &self,
        manager: &Manager,
        name: String,
        attributes: BTreeMap<String, String>,
    ) -> Result<Result<Lease, Status>, Status> {
        let asked = Instant::now();
        let request = v1::AcquireWorkLeaseRequest {
            name: name.clone(),
            holder: self.holder.to_owned(),
            time_to_live: prost_types::Duration::try_from(self.config.lease_time).ok(),
            attributes: attributes.into_iter().collect(),
        };
        match within(manager.leases().acquire_work_lease(request)).await {
            Ok(answer) => Ok(Ok(Lease {
                name,
                token: answer.lease.map_or(0, |it| it.token),
                until: asked + self.config.lease_time,
            })),
            Err(status) if is(&status, Reason::WorkLeaseHeld) => Ok(Err(status)),
            Err(status) => Err(status),
        }
    }

    async fn workers(
        &self,
        manager: &Manager,
    ) -> Result<BTreeMap<CollectionKind, BTreeSet<String>>, Status> {
        let prefix = WORKERS.to_owned();
        let request = v1::ListWorkLeasesRequest { prefix };
        let leases = within(manager.leases().list_work_leases(request)).await?;
        let mut live: BTreeMap<CollectionKind, BTreeSet<String>> = BTreeMap::new();
        for lease in leases.leases {
            let Some(name) = lease.name.strip_prefix(WORKERS) else {
                continue;
            };
            let kinds = lease.attributes.get("kinds").map_or("", String::as_str);
            for kind in CollectionKind::ALL {
                if kinds.split(',').any(|it| it == kind.as_str()) {
                    live.entry(kind).or_default().insert(name.to_owned());
                }
            }
        }
        Ok(live)
    }

    /// Forgets the slices of a kind that are another's, and returns their leases.
    fn give_up(&mut self, kind: CollectionKind, own: &BTreeSet<Slice>) -> Vec<v1::WorkLeaseRef> {
        let mut foreign = Vec::new();
        self.membership.slices.retain(|(of, slice), lease| {
            let stays = *of != kind || own.contains(slice);
            if !stays {
                foreign.push(lease.reference());
            }
            stays
        });
        foreign
    }

    fn attributes(&self) -> BTreeMap<String, String> {
        let kinds = kinds(self.config);
        let kinds: Vec<_> = kinds.into_iter().map(CollectionKind::as_str).collect();
        let attributes = [
            ("version", berth_version::VERSION.to_owned()),
            ("kinds", kinds.join(",")),
            ("socket", self.config.socket.display().to_string()),
            ("pid", std::process::id().to_string()),
        ];
        attributes
            .map(|(key, value)| (key.to_owned(), value))
            .into()
    }
}
