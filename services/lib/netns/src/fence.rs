//! The tables of the instance as its sandboxes need them: what shall stand is kept here, what stands is changed to it, and
//! made anew when somebody has taken it away. All of it blocks.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use berth_domain::{Sandbox, SandboxId};
use berth_platform::Denied;
use rustix::io::Errno;

use crate::{
    chains, conntrack,
    element::{Element, Family, bytes},
    error::NetnsError,
    foreign::{self, Judgement, Passage},
    legacy, named,
    nfnetlink::{Held, Nfnetlink, Shape},
    rules::{self, DENIALS, Fenced, Frame, Labels, SPOOFS},
    rules6::{self, DENIALS6},
    table::{self, Rules},
};

/// Of the whole node, as far as it is in one network namespace.
const TRACKED_MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

/// What this kernel makes of it.
#[derive(Debug)]
pub(crate) enum Fencing {
    Stands(Box<Fence>),
    Unsupported {
        /// What the kernel or nft said.
        message: String,
    },
}

#[derive(Debug)]
pub(crate) struct Fence {
    frame: Frame,
    name: String,
    passage: Passage,
    /// What others do to the packets of sandboxes, as of the last look. Apart, so that nobody who asks waits for `nft`.
    others: Mutex<Judgement>,
    /// What firewalls of iptables-legacy do to them, a sentence each, as of the last look.
    legacy: Mutex<Vec<String>>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    socket: Nfnetlink,
    wanted: BTreeMap<SandboxId, Wanted>,
    labels: Labels,
    /// How the tables were when they were last known to be whole; `None`: they have to be looked at.
    whole: Option<Standing>,
    /// The change behind which the tables of others were as they shall be.
    others_settled: Option<u32>,
}

#[derive(Debug)]
struct Wanted {
    fenced: Fenced,
    elements: BTreeSet<Element>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Standing {
    /// Of the change that was the last, whoever made it.
    generation: u32,
    /// Of each family's table.
    tables: [Shape; 2],
}

impl Fence {
    /// Makes the tables where there are none. Those that a former manager left stand until [`Fence::restore`].
    pub(crate) fn start(mut frame: Frame, passage: Passage) -> Result<Fencing, NetnsError> {
        let mut socket = match Nfnetlink::open() {
            Err(error) if error.raw_os_error() == Some(Errno::PROTONOSUPPORT.raw_os_error()) => {
                let message = error.to_string();
                return Ok(Fencing::Unsupported { message });
            }
            opened => opened.map_err(NetnsError::rules("opening netfilter"))?,
        };
        frame.abilities = table::abilities()?;
        let name = rules::table(&frame.instance);
        let there = |socket: &mut Nfnetlink, family| {
            let table = socket.shape(family, &name);
            // A kernel without nftables knows no such question.
            table.is_ok_and(|it| it.is_some())
        };
        if !Family::ALL.iter().all(|it| there(&mut socket, *it)) {
            let text = rules::render(&frame, [], &BTreeMap::new());
            if let Rules::Unsupported { message } = table::install(&text)? {
                return Ok(Fencing::Unsupported { message });
            }
        }
        let fence = Self {
            frame,
            name,
            passage,
            others: Mutex::default(),
            legacy: Mutex::default(),
            state: Mutex::new(State {
                socket,
                wanted: BTreeMap::new(),
                labels: Labels::default(),
                whole: None,
                others_settled: None,
            }),
        };
        // A firewall that refuses our accept keeps no manager from its start: it is tried again, and told.
        if let Err(error) = fence.look_at_others() {
            tracing::warn!(%error, "the tables of others");
        }
        fence.look_at_legacy();
        Ok(Fencing::Stands(Box::new(fence)))
    }

    /// What others do to the packets of sandboxes.
    pub(crate) fn others(&self) -> Judgement {
        let others = self.others.lock();
        others.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What sandboxes are without, because of this kernel, its settings or others.
    pub(crate) fn degraded(&self) -> Vec<String> {
        let max = self.frame.connections_max;
        let mut degraded = self.frame.abilities.lacks(max);
        let tracked = std::fs::read_to_string(TRACKED_MAX).ok();
        let tracked = tracked.and_then(|it| it.trim().parse::<u32>().ok());
        if let Some(tracked) = tracked.filter(|it| *it <= max) {
            degraded.push(format!(
                "network.connections_max is {max}, and the node tracks {tracked} connections at most ({TRACKED_MAX}): one \
                 sandbox can take all of them"
            ));
        }
        degraded.extend(self.others().obstacles);
        degraded.extend(self.legacy().iter().cloned());
        degraded
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The kernel tells nobody when such a firewall changes.
    pub(crate) fn look_at_legacy(&self) {
        let obstacles = legacy::obstacles(&self.passage.subnets);
        *self.legacy() = obstacles;
    }

    fn legacy(&self) -> MutexGuard<'_, Vec<String>> {
        self.legacy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the tables anew, for exactly these sandboxes and their links.
    pub(crate) fn restore(&self, sandboxes: &[(Sandbox, String)]) -> Result<(), NetnsError> {
        let mut state = self.state();
        state.labels = Labels::default();
        state.wanted.clear();
        for (sandbox, link) in sandboxes {
            state.want(sandbox, link.clone());
        }
        self.render(&mut state)
    }

    /// Lets in and fences off a sandbox, whose link need not be there yet.
    pub(crate) fn admit(&self, sandbox: &Sandbox, link: String) -> Result<(), NetnsError> {
        let mut state = self.state();
        let former = state.want(sandbox, link);
        self.change(&mut state, &former, &sandbox.id)
    }

    /// Takes back what stands for a sandbox. No packet of its connections reaches whoever has its address next. What fails
    /// is to be asked for again.
    pub(crate) fn dismiss(&self, id: &SandboxId) -> Result<(), NetnsError> {
        let mut state = self.state();
        let Some(wanted) = state.wanted.get_mut(id) else {
            return Ok(());
        };
        let elements = std::mem::take(&mut wanted.elements);
        if let Err(error) = self.change(&mut state, &elements, id) {
            if let Some(wanted) = state.wanted.get_mut(id) {
                wanted.elements = elements;
            }
            return Err(error);
        }
        let fenced = state.wanted.get(id).map(|it| &it.fenced);
        let addresses = fenced.into_iter().flat_map(|it| {
            let v6 = it.addresses6.iter().copied().map(IpAddr::from);
            it.addresses.iter().copied().map(IpAddr::from).chain(v6)
        });
        let addresses: Vec<_> = addresses.collect();
        conntrack::forget(&mut state.socket, &addresses)
            .map_err(NetnsError::rules("forgetting connections"))?;
        if let Some(Wanted { fenced, .. }) = state.wanted.remove(id) {
            if let Some(owner) = fenced.namer {
                // What is left there serves nobody, and ends by itself.
                if let Err(error) = named::forget(&mut state.socket, &self.name, owner) {
                    tracing::debug!(sandbox = %id, %error, "what its names opened is left to end");
                }
            }
            state.labels.give_back(&fenced.labels);
            state.labels.give_back(&fenced.lets_in);
        }
        Ok(())
    }

    /// Makes the kernel forget the connections of these addresses.
    pub(crate) fn forget(&self, addresses: &[IpAddr]) -> Result<(), NetnsError> {
        conntrack::forget(&mut self.state().socket, addresses)
            .map_err(NetnsError::rules("forgetting connections"))
    }

    /// Looks whether the tables are whole, and makes them anew where they are not. Returns whether they were.
    pub(crate) fn look(&self) -> Result<bool, NetnsError> {
        let mut state = self.state();
        let reading = NetnsError::rules("reading the tables");
        let generation = state.socket.generation().map_err(reading)?;
        if state.whole.is_some_and(|it| it.generation == generation) {
            return Ok(true);
        }
        match self.is_whole(&mut state) {
            Ok(true) => Ok(true),
            Ok(false) => {
                self.render(&mut state)?;
                Ok(false)
            }
            // Others are changing tables at this moment: the next look is soon.
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(NetnsError::rules("reading the tables")(error)),
        }
    }

    /// Looks at the tables of others, unless nothing has changed since, and has our accepts in them.
    pub(crate) fn look_at_others(&self) -> Result<(), NetnsError> {
        let mut state = self.state();
        // Behind a change of ours everything is as it shall be, or somebody else is at it: then the next look is soon.
        for _ in 0..2 {
            let generation = state.socket.generation();
            let generation = generation.map_err(NetnsError::rules("reading the tables"))?;
            if state.others_settled == Some(generation) {
                return Ok(());
            }
            let Some(mut judgement) = judge(&mut state.socket, &self.passage)? else {
                return Ok(());
            };
            let changed = match judgement.changes.as_str() {
                "" => {
                    state.others_settled = Some(generation);
                    Ok(())
                }
                text => {
                    state.others_settled = None;
                    tracing::info!(rules = text, "a firewall of others is changed");
                    table::change(text)
                }
            };
            if let Err(error) = &changed {
                judgement.obstacles.push(format!(
                    "a firewall of others cannot be told to accept {}: {error}",
                    self.frame.subnet
                ));
            }
            *self.others.lock().unwrap_or_else(PoisonError::into_inner) = judgement;
            changed?;
        }
        Ok(())
    }

    /// Whether both tables are there.
    pub(crate) fn stands(&self) -> Result<bool, NetnsError> {
        let mut state = self.state();
        let standing = self.standing(&mut state.socket);
        Ok(standing
            .map_err(NetnsError::rules("reading the tables"))?
            .is_some())
    }

    /// What was dropped of a sandbox; `None` for one that nothing stands for.
    pub(crate) fn denied(&self, id: &SandboxId) -> Result<Option<Denied>, NetnsError> {
        let mut state = self.state();
        let State { socket, wanted, .. } = &mut *state;
        let Some(Wanted { elements, .. }) = wanted.get(id) else {
            return Ok(None);
        };
        let mut denied = Denied::default();
        for (sets, packets, size) in [
            (
                [DENIALS, DENIALS6].as_slice(),
                &mut denied.packets,
                &mut denied.bytes,
            ),
            (
                &[SPOOFS],
                &mut denied.spoofed_packets,
                &mut denied.spoofed_bytes,
            ),
        ] {
            for element in elements.iter().filter(|it| sets.contains(&it.set.as_str())) {
                let held = socket.element(&self.name, element);
                let held = held.map_err(NetnsError::rules("reading counters"))?;
                *packets += held.counted.0;
                *size += held.counted.1;
            }
        }
        Ok(Some(denied))
    }

    /// Every element that is in the tables, as `set key`, with the sandbox that it stands for.
    pub(crate) fn list(&self) -> Result<Vec<(String, Option<SandboxId>)>, NetnsError> {
        let mut state = self.state();
        let mut owners = BTreeMap::new();
        for (id, wanted) in &state.wanted {
            for it in &wanted.elements {
                owners.insert(
                    (it.family, it.set.clone(), bytes(&it.key)),
                    (id.clone(), it.to_string()),
                );
            }
        }
        let mut found = vec![];
        let sets6 = rules6::sets().into_iter().map(|it| (Family::Inet, it));
        for (family, set) in rules::sets().into_iter().chain(sets6) {
            let held = read(&mut state.socket, family, &self.name, &set);
            for key in held
                .map_err(NetnsError::rules("listing elements"))?
                .into_keys()
            {
                let place = (family, set.clone(), key);
                found.push(match owners.get(&place) {
                    Some((id, text)) => (format!("{family} {set} {text}"), Some(id.clone())),
                    None => (format!("{family} {set} {}", hex(&place.2)), None),
                });
            }
        }
        Ok(found)
    }

    /// Takes out an element that no sandbox explains, by its name as it was listed. Gone is a success.
    pub(crate) fn remove(&self, name: &str) -> Result<(), NetnsError> {
        let strange = |what: &str| NetnsError::Foreign {
            what: format!("{name} {what}"),
        };
        let mut parts = name.splitn(3, ' ');
        let (family, set, key) = match (parts.next(), parts.next(), parts.next()) {
            (Some(family), Some(set), Some(key)) => (family, set, key),
            _ => return Err(strange("is no element")),
        };
        let family = Family::ALL.into_iter().find(|it| it.to_string() == family);
        let family = family.ok_or_else(|| strange("is no element"))?;
        let Some(key) = unhex(key) else {
            return Err(strange("stands for a sandbox"));
        };
        let mut state = self.state();
        let removed = state.socket.remove_key(family, &self.name, set, &key);
        match removed {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            done => done.map_err(NetnsError::rules("removing an element")),
        }
    }

    /// Changes what stands for one sandbox in one batch. What the kernel refuses was not as it was left: all is made anew.
    fn change(
        &self,
        state: &mut State,
        former: &BTreeSet<Element>,
        id: &SandboxId,
    ) -> Result<(), NetnsError> {
        let none = BTreeSet::new();
        let State {
            socket,
            wanted,
            whole,
            others_settled,
            ..
        } = &mut *state;
        let next = wanted.get(id).map_or(&none, |it| &it.elements);
        let remove: Vec<_> = former.difference(next).collect();
        let add: Vec<_> = next.difference(former).collect();
        if remove.is_empty() && add.is_empty() {
            return Ok(());
        }
        match socket.change(&self.name, &remove, &add) {
            Ok(()) => {
                // Our own change is the only one that nobody has to look for.
                let standing = whole.as_mut().map(|it| &mut it.generation);
                for seen in standing.into_iter().chain(others_settled) {
                    *seen = seen.wrapping_add(1);
                }
                Ok(())
            }
            Err(error) => {
                tracing::warn!(sandbox = %id, %error, "the rules are made anew");
                self.render(state)
            }
        }
    }

    /// Puts the whole of what is wanted in the place of what there is, in one transaction.
    fn render(&self, state: &mut State) -> Result<(), NetnsError> {
        let counted = self.counted(state);
        let elements = state.wanted.values().flat_map(|it| &it.elements);
        let text = rules::render(&self.frame, elements, &counted) + &self.opened(state);
        if let Rules::Unsupported { message } = table::install(&text)? {
            return Err(table::refused(message));
        }
        let State { socket, whole, .. } = state;
        let standing = self.standing(socket);
        *whole = standing.map_err(NetnsError::rules("reading the tables"))?;
        Ok(())
    }

    /// The text with what names have opened, as far as it can be read. The resolver puts back what is missing.
    fn opened(&self, state: &mut State) -> String {
        let owners = state.wanted.values().filter_map(|it| it.fenced.namer);
        let owners: BTreeSet<_> = owners.collect();
        if owners.is_empty() {
            return String::new();
        }
        let held = named::held(&mut state.socket, &self.name).unwrap_or_default();
        named::render(&self.frame.instance, &held, &owners)
    }

    /// What each wanted element has counted so far, as far as it can be read.
    fn counted(&self, state: &mut State) -> BTreeMap<Element, (u64, u64)> {
        let State { socket, wanted, .. } = state;
        let mut counted = BTreeMap::new();
        for set in [DENIALS, DENIALS6, SPOOFS] {
            let Ok(held) = socket.elements(Family::Inet, &self.name, set) else {
                continue;
            };
            let elements = wanted.values().flat_map(|it| &it.elements);
            for element in elements.filter(|it| it.set == set) {
                if let Some(it) = held.get(&bytes(&element.key)) {
                    counted.insert(element.clone(), it.counted);
                }
            }
        }
        counted
    }

    /// Whether tables, rules and all wanted elements are there.
    fn is_whole(&self, state: &mut State) -> std::io::Result<bool> {
        let State {
            socket,
            wanted,
            whole,
            ..
        } = &mut *state;
        let Some(now) = self.standing(socket)? else {
            return Ok(false);
        };
        if whole.is_none_or(|it| it.tables != now.tables) {
            return Ok(false);
        }
        let mut of_sets: BTreeMap<(Family, &str), Vec<&Element>> = BTreeMap::new();
        for it in wanted.values().flat_map(|it| &it.elements) {
            of_sets.entry((it.family, &it.set)).or_default().push(it);
        }
        for ((family, set), elements) in of_sets {
            let held = socket.elements(family, &self.name, set)?;
            let stands = |it: &&Element| {
                let value = held.get(&bytes(&it.key)).map(|it| &it.value);
                value.is_some_and(|held| it.value.is_empty() || *held == bytes(&it.value))
            };
            if !elements.iter().all(stands) {
                return Ok(false);
            }
        }
        *whole = Some(now);
        Ok(true)
    }

    /// `None` where a table is not there.
    fn standing(&self, socket: &mut Nfnetlink) -> std::io::Result<Option<Standing>> {
        // First, so that what comes later is looked for the next time.
        let generation = socket.generation()?;
        let mut tables = [Shape::default(); 2];
        for (place, family) in tables.iter_mut().zip(Family::ALL) {
            let Some(shape) = socket.shape(family, &self.name)? else {
                return Ok(None);
            };
            *place = shape;
        }
        Ok(Some(Standing { generation, tables }))
    }
}

impl State {
    /// Takes note of a sandbox, and returns the elements that stood for it before.
    fn want(&mut self, sandbox: &Sandbox, link: String) -> BTreeSet<Element> {
        let former = self.wanted.remove(&sandbox.id);
        let fenced = Fenced::of(sandbox, link, &mut self.labels);
        if let Some(it) = &former {
            self.labels.give_back(&it.fenced.labels);
            self.labels.give_back(&it.fenced.lets_in);
        }
        let elements = fenced.elements();
        let wanted = Wanted { fenced, elements };
        self.wanted.insert(sandbox.id.clone(), wanted);
        former.map(|it| it.elements).unwrap_or_default()
    }
}

/// Takes away what there is of an instance: its tables, and its accepts in those of others. Makes nothing.
pub(crate) fn uninstall(passage: &Passage) -> Result<(), NetnsError> {
    let passage = Passage {
        places: false,
        ..passage.clone()
    };
    let mut socket = match Nfnetlink::open() {
        Err(error) if error.raw_os_error() == Some(Errno::PROTONOSUPPORT.raw_os_error()) => {
            return Ok(());
        }
        opened => opened.map_err(NetnsError::rules("opening netfilter"))?,
    };
    // A kernel without nftables knows no such question, and has no tables.
    if let Err(error) = socket.generation()
        && error.raw_os_error() == Some(Errno::INVAL.raw_os_error())
    {
        return Ok(());
    }
    let mut reads = 0;
    let left = loop {
        reads += 1;
        match judge(&mut socket, &passage)? {
            Some(judgement) => break judgement.changes,
            None if reads < READS_MAX => {}
            None => {
                let busy = std::io::Error::from(std::io::ErrorKind::Interrupted);
                return Err(NetnsError::rules("reading the tables of others")(busy));
            }
        }
    };
    if !left.is_empty() {
        table::change(&left)?;
    }
    table::remove(&passage.instance)
}

/// `None` while others are changing tables.
fn judge(socket: &mut Nfnetlink, passage: &Passage) -> Result<Option<Judgement>, NetnsError> {
    match chains::read(socket, foreign::is_looked_at) {
        Ok(chains) => Ok(Some(foreign::judge(&chains, passage))),
        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => Ok(None),
        Err(error) => Err(NetnsError::rules("reading the chains of others")(error)),
    }
}

/// How often a list is read again because others change tables meanwhile.
const READS_MAX: usize = 8;

fn read(
    socket: &mut Nfnetlink,
    family: Family,
    table: &str,
    set: &str,
) -> std::io::Result<BTreeMap<Vec<u8>, Held>> {
    match socket.elements(family, table, set) {
        // Without a table there are no elements; that it is missing is said of the table.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        done => done,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.bytes().all(|it| it.is_ascii_hexdigit());
    let pairs = (0..text.len()).step_by(2);
    (digits && text.len().is_multiple_of(2)).then(|| {
        pairs
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok())
            .collect()
    })?
}
