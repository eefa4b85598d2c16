//! Questions that are somebody else's: asked of the host's resolvers, so many at a time, and kept for a while.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Edns, Message, ResponseCode},
    rr::{DNSClass, RecordType},
};

use crate::{
    config::Config,
    message::{plain, refusal},
    places::Places,
    upstream::{Transport, Upstreams, ask},
};

/// What an upstream may send in one packet: it passes everywhere unbroken.
const UDP_PAYLOAD: u16 = 1232;
/// Longer ones are rare, and would make the cache as large as somebody likes.
const KEPT_BYTES_MAX: usize = 4096;

#[derive(Debug)]
pub(crate) struct Forwarder {
    upstreams: Upstreams,
    port: u16,
    timeout: Duration,
    /// The node's own addresses on the bridge.
    own: Vec<IpAddr>,
    places: Arc<Places>,
    cache: Mutex<Cache>,
}

impl Forwarder {
    pub(crate) fn new(config: &Config, own: Vec<IpAddr>) -> Self {
        let upstreams = match config.upstreams.as_slice() {
            [] => Upstreams::Of(config.resolv_conf.clone()),
            some => Upstreams::These(some.to_vec()),
        };
        Self {
            upstreams,
            port: config.upstream_port,
            timeout: config.upstream_timeout,
            own,
            places: Places::new(config.forwards_max),
            cache: Mutex::new(Cache::new(config.cache_entries, config.cache_ttl_max)),
        }
    }

    /// The answer to `query`: kept, or asked for. SERVFAIL where nobody answers, or too many ask, or the caller too much.
    pub(crate) async fn answer(
        &self,
        caller: IpAddr,
        query: &Message,
        transport: Transport,
    ) -> Message {
        let key = Key::of(query);
        let kept = key
            .as_ref()
            .and_then(|key| self.cache().get(key, Instant::now()));
        if let Some(answer) = kept {
            return addressed(answer, query);
        }
        let failed = || refusal(query, ResponseCode::ServFail);
        // Who waits for a place would wait longer than its own patience.
        let Some(_place) = self.places.take(caller) else {
            return failed();
        };
        for upstream in self.upstreams.current(&self.own) {
            let upstream = SocketAddr::new(upstream, self.port);
            let asked = onward(query);
            match ask(upstream, &asked, transport, self.timeout).await {
                Ok(answer) if answer.metadata.response_code == ResponseCode::ServFail => {}
                Ok(answer) if answer.metadata.response_code == ResponseCode::Refused => {}
                Ok(answer) => {
                    if let Some(key) = key {
                        self.cache().put(key, &answer, Instant::now());
                    }
                    return addressed(answer, query);
                }
                Err(error) => tracing::debug!(%upstream, %error, "an upstream does not answer"),
            }
        }
        failed()
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The question of `query` and what it says of the answer, and nothing else that its sender has put in: what is kept serves
/// everybody, and an upstream may answer by who it is told to be asked for (RFC 7871).
fn onward(query: &Message) -> Message {
    let mut asked = Message::query();
    asked.metadata.recursion_desired = query.metadata.recursion_desired;
    asked.metadata.checking_disabled = query.metadata.checking_disabled;
    asked.add_queries(query.queries.iter().take(1).cloned());
    if let Some(edns) = &query.edns {
        let mut own = Edns::new();
        own.set_max_payload(UDP_PAYLOAD);
        own.set_dnssec_ok(edns.flags().dnssec_ok);
        asked.edns = Some(own);
    }
    asked
}

/// An answer as the one to `query`: with its number and its spelling of the name.
fn addressed(mut answer: Message, query: &Message) -> Message {
    answer.metadata.id = query.metadata.id;
    answer.metadata.recursion_available = true;
    answer.queries.clone_from(&query.queries);
    answer
}

/// What an answer depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    name: String,
    kind: RecordType,
    class: DNSClass,
    edns: bool,
    dnssec: bool,
    unchecked: bool,
    recursive: bool,
}

impl Key {
    fn of(query: &Message) -> Option<Self> {
        let question = query.queries.first()?;
        Some(Self {
            name: plain(question.name()),
            kind: question.query_type(),
            class: question.query_class(),
            edns: query.edns.is_some(),
            dnssec: query.edns.as_ref().is_some_and(|it| it.flags().dnssec_ok),
            unchecked: query.metadata.checking_disabled,
            recursive: query.metadata.recursion_desired,
        })
    }
}

#[derive(Debug)]
struct Cache {
    kept: HashMap<Key, Kept>,
    /// The oldest first.
    order: VecDeque<Key>,
    entries_max: usize,
    ttl_max: Duration,
}

#[derive(Clone, Debug)]
struct Kept {
    answer: Message,
    since: Instant,
    until: Instant,
}

impl Cache {
    fn new(entries_max: usize, ttl_max: Duration) -> Self {
        Self {
            kept: HashMap::new(),
            order: VecDeque::new(),
            entries_max,
            ttl_max,
        }
    }

    /// With the time that it was kept taken from the life of its records.
    fn get(&self, key: &Key, now: Instant) -> Option<Message> {
        let Kept {
            answer,
            since,
            until,
        } = self.kept.get(key).filter(|it| now < it.until)?;
        let mut answer = answer.clone();
        let age = u32::try_from(now.duration_since(*since).as_secs()).unwrap_or(u32::MAX);
        let remaining = until.duration_since(now).as_secs();
        let cap = u32::try_from(remaining).unwrap_or(u32::MAX).max(1);
        for record in answer
            .answers
            .iter_mut()
            .chain(&mut answer.authorities)
            .chain(&mut answer.additionals)
        {
            record.ttl = record.ttl.saturating_sub(age).min(cap);
        }
        Some(answer)
    }

    fn put(&mut self, key: Key, answer: &Message, now: Instant) {
        let lasting = [ResponseCode::NoError, ResponseCode::NXDomain];
        let whole = !answer.metadata.truncation && lasting.contains(&answer.metadata.response_code);
        let short = answer.to_vec().is_ok_and(|it| it.len() <= KEPT_BYTES_MAX);
        let ttl = answer.all_sections().map(|it| it.ttl).min();
        let ttl = Duration::from_secs(ttl.unwrap_or_default().into()).min(self.ttl_max);
        if self.entries_max == 0 || !whole || !short || ttl.is_zero() {
            return;
        }
        let kept = Kept {
            answer: answer.clone(),
            since: now,
            until: now + ttl,
        };
        if self.kept.insert(key.clone(), kept).is_none() {
            self.order.push_back(key);
        }
        while self.kept.len() > self.entries_max {
            match self.order.pop_front() {
                Some(oldest) => drop(self.kept.remove(&oldest)),
                None => break,
            }
        }
    }
}

#[cfg(test)]
mod tests;
