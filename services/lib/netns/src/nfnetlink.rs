//! Elements of the instance's tables, changed in one batch and read back over one netlink socket; no program is executed.
//! Encodes messages and reads answers; which elements there shall be, others know.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    os::fd::OwnedFd,
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, netlink, recv, sendto,
        socket_with, sockopt,
    },
};

use crate::element::{Element, Family, bytes};

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;
const DUMP_INTERRUPTED: u16 = 0x10;
const MESSAGE_ERROR: u16 = 2;
const MESSAGE_DONE: u16 = 3;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NFTABLES: u16 = 10;
const GET_TABLE: u16 = NFTABLES << 8 | 1;
const GET_CHAIN: u16 = NFTABLES << 8 | 4;
const GET_RULE: u16 = NFTABLES << 8 | 7;
const NEW_ELEMENT: u16 = NFTABLES << 8 | 12;
const GET_ELEMENT: u16 = NFTABLES << 8 | 13;
const DELETE_ELEMENT: u16 = NFTABLES << 8 | 14;
const GET_GENERATION: u16 = NFTABLES << 8 | 16;
const NESTED: u16 = 0x8000;
const KIND: u16 = 0x3fff;
const HEADER: usize = 16;
/// With the header of netfilter's own: family, version, resource.
const HEADERS: usize = 20;
/// Room for a batch of all elements of some thousand sandboxes; the kernel's default refuses more than two thousand.
const BUFFER_BYTES: usize = 8 << 20;

/// One socket for the life of the manager: to close one after a deletion waits until the kernel has freed the element.
#[derive(Debug)]
pub(crate) struct Nfnetlink {
    socket: OwnedFd,
    answers: Vec<u8>,
}

/// What tells a table from one that somebody has changed, or has made in its place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shape {
    handle: u64,
    /// Whether it sleeps.
    flags: u32,
    /// A hash of its chains and rules in their order.
    content: u64,
}

/// An element as it is in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) value: Vec<u8>,
    /// Packets and bytes, where the set counts.
    pub(crate) counted: (u64, u64),
    /// What is left of its life, where it ends by itself.
    pub(crate) left: Option<Duration>,
}

/// An element of a set of the family inet that ends by itself, with its key as the kernel keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Timed {
    pub(crate) set: &'static str,
    pub(crate) key: Vec<u8>,
    pub(crate) life: Duration,
}

/// How often a list is read again because others change tables meanwhile.
const READS_MAX: usize = 16;

impl Nfnetlink {
    /// Opens a socket in the network namespace of the calling thread.
    pub(crate) fn open() -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(netlink::NETFILTER),
        )?;
        bind(&socket, &netlink::SocketAddrNetlink::new(0, 0))?;
        sockopt::set_socket_send_buffer_size_force(&socket, BUFFER_BYTES)?;
        sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER_BYTES)?;
        Ok(Self {
            socket,
            answers: vec![0; 64 << 10],
        })
    }

    /// Removes and adds, all or nothing. Removals go first, so that a key can get another value.
    pub(crate) fn change(
        &mut self,
        table: &str,
        remove: &[&Element],
        add: &[&Element],
    ) -> io::Result<()> {
        self.commit(&batch(table, remove, add))
    }

    fn commit(&mut self, batch: &[u8]) -> io::Result<()> {
        self.send(batch)?;
        let mut done = false;
        let mut refused = None;
        let mut lost = false;
        loop {
            // The answers are queued before the kernel lets `sendto` return.
            let length = match recv(
                &self.socket,
                self.answers.as_mut_slice(),
                RecvFlags::DONTWAIT,
            ) {
                Ok((length, _)) => length,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => continue,
                Err(Errno::NOBUFS) => {
                    lost = true;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            for message in messages(&self.answers[..length]) {
                match message.error() {
                    Some(0) => done = true,
                    Some(code) => refused = refused.or(Some(code)),
                    None => {}
                }
            }
        }
        match refused {
            Some(code) => Err(io::Error::from_raw_os_error(code)),
            None if done && !lost => Ok(()),
            None => Err(Errno::NOBUFS.into()),
        }
    }

    /// The number of the latest change that anybody made to any table.
    pub(crate) fn generation(&mut self) -> io::Result<u32> {
        let mut found = None;
        self.ask(GET_GENERATION, 0, 0, &[], |payload| {
            found = found.or_else(|| read_u32(attribute(payload, 1)?));
        })?;
        found.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// What a table is without its elements; `None` where there is none.
    pub(crate) fn shape(&mut self, family: Family, table: &str) -> io::Result<Option<Shape>> {
        let mut found = None;
        let asked = self.ask(GET_TABLE, 0, family.number(), &text(1, table), |payload| {
            found = attribute(payload, 4)
                .and_then(read_u64)
                .map(|handle| Shape {
                    handle,
                    flags: attribute(payload, 2).and_then(read_u32).unwrap_or_default(),
                    content: 0,
                });
        });
        match asked {
            Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => {
                return Ok(None);
            }
            asked => asked?,
        }
        let Some(mut shape) = found else {
            return Ok(None);
        };
        // Of a chain: handle, name, hook, policy and flags. Of a rule: its chain and its handle, which one that replaces it
        // does not have.
        let parts: [(u16, &[u16]); 2] = [(GET_CHAIN, &[2, 3, 4, 5, 10]), (GET_RULE, &[2, 3])];
        shape.content = self.undisturbed(|socket| {
            let mut content = DefaultHasher::new();
            for (kind, kinds) in parts {
                socket.ask(kind, DUMP, family.number(), &text(1, table), |payload| {
                    // A kernel that does not filter sends those of all tables.
                    if attribute(payload, 1).is_some_and(|it| is_text(it, table)) {
                        kinds
                            .iter()
                            .for_each(|it| attribute(payload, *it).hash(&mut content));
                    }
                })?;
            }
            Ok(content.finish())
        })?;
        Ok(Some(shape))
    }

    /// Reads again where somebody has changed a table meanwhile, as the name server does with many an answer.
    fn undisturbed<T>(
        &mut self,
        mut read: impl FnMut(&mut Self) -> io::Result<T>,
    ) -> io::Result<T> {
        for _ in 1..READS_MAX {
            match read(self) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
        }
        read(self)
    }

    /// The elements of one set, by key.
    pub(crate) fn elements(
        &mut self,
        family: Family,
        table: &str,
        set: &str,
    ) -> io::Result<BTreeMap<Vec<u8>, Held>> {
        let body = [text(1, table), text(2, set)].concat();
        self.undisturbed(|socket| {
            let mut found = BTreeMap::new();
            socket.ask(GET_ELEMENT, DUMP, family.number(), &body, |payload| {
                let list = attribute(payload, 3).unwrap_or_default();
                found.extend(attributes(list).filter_map(|(_, it)| read_element(it)));
            })?;
            Ok(found)
        })
    }

    /// One element, which has to be there.
    pub(crate) fn element(&mut self, table: &str, element: &Element) -> io::Result<Held> {
        let mut found = None;
        let body = body(table, element, false);
        self.ask(GET_ELEMENT, 0, element.family.number(), &body, |payload| {
            let list = attribute(payload, 3).unwrap_or_default();
            found = attributes(list).find_map(|(_, it)| read_element(it));
        })?;
        let (_, held) = found.ok_or(io::ErrorKind::InvalidData)?;
        Ok(held)
    }

    /// Removes one element by its key as the kernel keeps it.
    pub(crate) fn remove_key(
        &mut self,
        family: Family,
        table: &str,
        set: &str,
        key: &[u8],
    ) -> io::Result<()> {
        let list = nested(3, &nested(1, &nested(1, &plain(1, key))));
        let body = [text(1, table), text(2, set), list].concat();
        self.commit(&one_batch(&[(DELETE_ELEMENT, 0, family.number(), body)]))
    }

    /// Puts these in, each with its whole life from this moment, whether it is there or not. All or nothing.
    pub(crate) fn place(&mut self, table: &str, all: &[Timed]) -> io::Result<()> {
        self.commit(&timed_batch(
            table,
            all,
            &[NEW_ELEMENT, DELETE_ELEMENT, NEW_ELEMENT],
        ))
    }

    /// Takes these out, whether they are there or not. All or nothing.
    pub(crate) fn remove_timed(&mut self, table: &str, all: &[Timed]) -> io::Result<()> {
        self.commit(&timed_batch(table, all, &[NEW_ELEMENT, DELETE_ELEMENT]))
    }

    /// Asks for a list of another part of netfilter.
    pub(crate) fn dump(
        &mut self,
        kind: u16,
        family: u8,
        body: &[u8],
        each: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        self.ask(kind, DUMP, family, body, each)
    }

    /// Asks another part of netfilter for one change.
    pub(crate) fn ask_for(&mut self, kind: u16, family: u8, body: &[u8]) -> io::Result<()> {
        self.ask(kind, 0, family, body, |_| {})
    }

    fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        body: &[u8],
        mut each: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        let mut request = vec![];
        // An answer that is no dump ends with the acknowledgement.
        let ack = if flags == 0 { ACK } else { 0 };
        message(&mut request, kind, REQUEST | flags | ack, family, 0, body);
        self.send(&request)?;
        let mut interrupted = false;
        loop {
            let (length, _) = match recv(
                &self.socket,
                self.answers.as_mut_slice(),
                RecvFlags::empty(),
            ) {
                Err(Errno::INTR) => continue,
                received => received?,
            };
            for message in messages(&self.answers[..length]) {
                interrupted |= message.flags & DUMP_INTERRUPTED != 0;
                match (message.kind, message.error()) {
                    // Somebody changed a table meanwhile, and what was sent is not the whole.
                    (MESSAGE_DONE, _) if interrupted => {
                        return Err(io::ErrorKind::Interrupted.into());
                    }
                    (MESSAGE_DONE, _) | (MESSAGE_ERROR, Some(0)) => return Ok(()),
                    (MESSAGE_ERROR, code) => {
                        return Err(io::Error::from_raw_os_error(code.unwrap_or_default()));
                    }
                    (_, _) => each(message.payload),
                }
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let kernel = netlink::SocketAddrNetlink::new(0, 0);
        sendto(&self.socket, bytes, SendFlags::empty(), &kernel)?;
        Ok(())
    }
}

/// One message per change, of which the last asks for an answer: one for each would overflow the buffer of a large batch.
fn batch(table: &str, remove: &[&Element], add: &[&Element]) -> Vec<u8> {
    let removals = remove.iter().map(|it| {
        let body = body(table, it, false);
        (DELETE_ELEMENT, 0, it.family.number(), body)
    });
    let additions = add.iter().map(|it| {
        let body = body(table, it, true);
        (NEW_ELEMENT, CREATE, it.family.number(), body)
    });
    one_batch(&removals.chain(additions).collect::<Vec<_>>())
}

/// What each element is made to go through. Kernels before 6.3 refuse to delete what is not there, and most do not lengthen
/// the life of what is: so it is added, which changes nothing where it is there, deleted, and added with its life.
fn timed_batch(table: &str, all: &[Timed], kinds: &[u16]) -> Vec<u8> {
    let family = Family::Inet.number();
    let changes = all.iter().flat_map(|it| {
        kinds.iter().map(move |&kind| {
            let key = nested(1, &plain(1, &it.key));
            let (flags, life) = match kind {
                NEW_ELEMENT => (CREATE, plain(4, &milliseconds(it.life).to_be_bytes())),
                _ => (0, vec![]),
            };
            let list = nested(3, &nested(1, &[key, life].concat()));
            (
                kind,
                flags,
                family,
                [text(1, table), text(2, it.set), list].concat(),
            )
        })
    });
    one_batch(&changes.collect::<Vec<_>>())
}

/// 0 would be a life without an end.
fn milliseconds(life: Duration) -> u64 {
    u64::try_from(life.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// Kind, flags, family and body of each message.
fn one_batch(changes: &[(u16, u16, u8, Vec<u8>)]) -> Vec<u8> {
    let mut all = vec![];
    message(&mut all, BATCH_BEGIN, REQUEST, 0, NFTABLES, &[]);
    for (at, (kind, flags, family, body)) in changes.iter().enumerate() {
        let ack = if at + 1 == changes.len() { ACK } else { 0 };
        message(&mut all, *kind, REQUEST | flags | ack, *family, 0, body);
    }
    message(&mut all, BATCH_END, REQUEST, 0, NFTABLES, &[]);
    all
}

fn body(table: &str, element: &Element, with_value: bool) -> Vec<u8> {
    let key = nested(1, &plain(1, &bytes(&element.key)));
    let value = match with_value && !element.value.is_empty() {
        true => nested(2, &plain(1, &bytes(&element.value))),
        false => vec![],
    };
    let list = nested(3, &nested(1, &[key, value].concat()));
    [text(1, table), text(2, &element.set), list].concat()
}

fn message(all: &mut Vec<u8>, kind: u16, flags: u16, family: u8, resource: u16, body: &[u8]) {
    let length = u32::try_from(HEADERS + body.len()).unwrap_or(u32::MAX);
    all.extend(length.to_ne_bytes());
    all.extend(kind.to_ne_bytes());
    all.extend(flags.to_ne_bytes());
    // Number and sender: nobody else uses this socket.
    all.extend([0; 8]);
    all.extend([family, 0]);
    all.extend(resource.to_be_bytes());
    all.extend(body);
}

pub(crate) fn plain(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).expect("attributes of ours are short");
    let mut all = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    all.extend(value);
    all.resize(all.len().next_multiple_of(4), 0);
    all
}

fn text(kind: u16, value: &str) -> Vec<u8> {
    plain(kind, &[value.as_bytes(), &[0]].concat())
}

pub(crate) fn nested(kind: u16, body: &[u8]) -> Vec<u8> {
    plain(kind | NESTED, body)
}

pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    /// Behind the header of netfilter.
    pub(crate) payload: &'a [u8],
    /// Behind the header of netlink.
    whole: &'a [u8],
}

impl Message<'_> {
    /// The error number of an answer, 0 for a success; `None` for what is no answer.
    pub(crate) fn error(&self) -> Option<i32> {
        let code = i32::from_ne_bytes(*self.whole.first_chunk()?);
        (self.kind == MESSAGE_ERROR).then_some(-code)
    }
}

pub(crate) fn messages(mut rest: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*rest.first_chunk()?) as usize;
        let kind = u16::from_ne_bytes(*rest.get(4..)?.first_chunk()?);
        let flags = u16::from_ne_bytes(*rest.get(6..)?.first_chunk()?);
        let whole = rest.get(HEADER..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message {
            kind,
            flags,
            payload: whole.get(HEADERS - HEADER..).unwrap_or_default(),
            whole,
        })
    })
}

pub(crate) fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?) & KIND;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

pub(crate) fn attribute(of: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(of).find_map(|(it, value)| (it == kind).then_some(value))
}

fn read_element(it: &[u8]) -> Option<(Vec<u8>, Held)> {
    let key = attribute(attribute(it, 1)?, 1)?.to_vec();
    let value = attribute(it, 2).and_then(|it| attribute(it, 1));
    // One expression, or a list of them.
    let expression = attribute(it, 7).or_else(|| attribute(attribute(it, 11)?, 1));
    let counter = expression.and_then(|it| attribute(it, 2));
    let counted = counter.and_then(|it| {
        let bytes = read_u64(attribute(it, 1)?)?;
        let packets = read_u64(attribute(it, 2)?)?;
        Some((packets, bytes))
    });
    let left = attribute(it, 5).and_then(read_u64);
    Some((
        key,
        Held {
            value: value.unwrap_or_default().to_vec(),
            counted: counted.unwrap_or_default(),
            left: left.map(Duration::from_millis),
        },
    ))
}

fn read_u32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.first_chunk()?))
}

fn read_u64(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(*bytes.first_chunk()?))
}

fn is_text(bytes: &[u8], text: &str) -> bool {
    bytes.strip_suffix(&[0]).unwrap_or(bytes) == text.as_bytes()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::element::Part;

    #[test]
    fn a_batch_has_a_message_per_change_and_asks_for_one_answer() {
        let element = |port| Element {
            family: Family::Inet,
            set: "ports".into(),
            key: vec![Part::Port(port)],
            value: vec![Part::Address(Ipv4Addr::LOCALHOST)],
        };
        let (old, new) = (element(80), element(81));
        let bytes = batch("t", &[&old], &[&new, &old]);
        let kinds: Vec<_> = messages(&bytes).map(|it| it.kind).collect();
        let expected = [
            BATCH_BEGIN,
            DELETE_ELEMENT,
            NEW_ELEMENT,
            NEW_ELEMENT,
            BATCH_END,
        ];
        assert_eq!(kinds, expected);
        let mut at = 0;
        let mut asking = vec![];
        while at < bytes.len() {
            let flags = u16::from_ne_bytes([bytes[at + 6], bytes[at + 7]]);
            asking.push(flags & ACK != 0);
            let length = u32::from_ne_bytes(*bytes[at..].first_chunk().unwrap());
            at += length as usize;
        }
        assert_eq!(asking, [false, false, false, true, false]);
        // What is removed is named by its key alone.
        let lists: Vec<_> = messages(&bytes)
            .filter_map(|it| attribute(it.payload, 3))
            .filter_map(|it| read_element(attribute(it, 1)?))
            .collect();
        assert_eq!(lists[0], (vec![0, 80], Held::default()));
        assert_eq!(lists[1].0, [0, 81]);
        assert_eq!(lists[1].1.value, [127, 0, 0, 1]);
    }

    #[test]
    fn a_torn_answer_is_no_message_and_no_panic() {
        let element = Element {
            family: Family::Arp,
            set: "s".into(),
            key: vec![Part::Port(80)],
            value: vec![],
        };
        let whole = batch("t", &[], &[&element]);
        for length in 0..whole.len() {
            for message in messages(&whole[..length]) {
                let _ = message.error();
                let list = attribute(message.payload, 3).unwrap_or_default();
                let _ = attributes(list)
                    .filter_map(|(_, it)| read_element(it))
                    .count();
            }
        }
    }
}
