//! The chains of others that see what is forwarded, with their rules, read over netlink: the text of `nft` does not show the
//! comment of a rule that iptables has written anew. What to make of them, others know.

use std::{collections::BTreeMap, fmt, io};

use crate::{
    asked::{Asked, Reader},
    nfnetlink::{Nfnetlink, attribute, attributes},
};

const GET_CHAIN: u16 = 10 << 8 | 4;
const GET_RULE: u16 = 10 << 8 | 7;
/// `NF_INET_FORWARD`.
const FORWARD: u32 = 2;
/// Verdicts as the kernel numbers them.
const DROP: i32 = 0;
const ACCEPT: i32 = 1;
const JUMP: i32 = -3;
const GOTO: i32 = -4;
const RETURN: i32 = -5;

/// The families whose chains see what is forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Layer {
    Inet,
    V4,
    V6,
}

impl Layer {
    pub(crate) const ALL: [Self; 3] = [Self::Inet, Self::V4, Self::V6];

    fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inet => "inet",
            Self::V4 => "ip",
            Self::V6 => "ip6",
        })
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chain {
    /// Every forwarded packet comes by.
    pub(crate) forwards: bool,
    /// What no rule decides is dropped.
    pub(crate) drops: bool,
    pub(crate) rules: Vec<Rule>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) handle: u64,
    pub(crate) comment: String,
    pub(crate) verdict: Option<Verdict>,
    /// Where it asks for nothing, its verdict is that on every packet.
    pub(crate) asked: Vec<Asked>,
    /// Packets and bytes.
    pub(crate) counted: (u64, u64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Accept,
    /// Or refuse with an answer.
    Drop,
    Return,
    /// Another chain decides, and what it leaves open is decided by what comes next here.
    Jump(String),
    /// Another chain decides, and what it leaves open is decided as if this one had ended.
    Goto(String),
}

/// Family, table and chain.
pub(crate) type Place = (Layer, String, String);

/// Every base chain for what is forwarded, and every other chain that `also` wants, with their rules.
pub(crate) fn read(
    socket: &mut Nfnetlink,
    also: impl Fn(&Place) -> bool,
) -> io::Result<BTreeMap<Place, Chain>> {
    let mut found = BTreeMap::new();
    for layer in Layer::ALL {
        socket.dump(GET_CHAIN, layer.number(), &[], |payload| {
            if let Some((table, name, chain)) = read_chain(payload) {
                let place = (layer, table, name);
                if chain.forwards || also(&place) {
                    found.insert(place, chain);
                }
            }
        })?;
    }
    for ((layer, table, name), chain) in &mut found {
        let body = [text(1, table), text(2, name)].concat();
        socket.dump(GET_RULE, layer.number(), &body, |payload| {
            // A kernel that does not filter sends the rules of all chains.
            let is = |kind, name| attribute(payload, kind).and_then(read_text) == Some(name);
            if is(1, table.as_str()) && is(2, name.as_str()) {
                chain.rules.extend(read_rule(payload));
            }
        })?;
    }
    Ok(found)
}

fn text(kind: u16, value: &str) -> Vec<u8> {
    crate::nfnetlink::plain(kind, &[value.as_bytes(), &[0]].concat())
}

/// Table, name, and what it is without its rules.
fn read_chain(payload: &[u8]) -> Option<(String, String, Chain)> {
    let table = read_text(attribute(payload, 1)?)?;
    let name = read_text(attribute(payload, 3)?)?;
    let number = |it: &[u8]| Some(u32::from_be_bytes(*it.first_chunk()?));
    let hook = attribute(payload, 4).and_then(|it| number(attribute(it, 1)?));
    let filters = attribute(payload, 7).and_then(read_text) == Some("filter");
    let chain = Chain {
        forwards: filters && hook == Some(FORWARD),
        drops: attribute(payload, 5).and_then(number) == Some(0),
        rules: vec![],
    };
    Some((table.to_owned(), name.to_owned(), chain))
}

fn read_rule(payload: &[u8]) -> Option<Rule> {
    let number = |it: &[u8]| Some(u64::from_be_bytes(*it.first_chunk()?));
    let mut rule = Rule {
        handle: number(attribute(payload, 3)?)?,
        comment: attribute(payload, 7)
            .and_then(own_comment)
            .unwrap_or_default(),
        ..Rule::default()
    };
    let expressions = attribute(payload, 4).unwrap_or_default();
    let mut reader = Reader::default();
    for (_, expression) in attributes(expressions) {
        let name = attribute(expression, 1).and_then(read_text)?;
        let content = attribute(expression, 2).unwrap_or_default();
        match name {
            "counter" => {
                let count = |kind| attribute(content, kind).and_then(number);
                rule.counted = (count(2).unwrap_or_default(), count(1).unwrap_or_default());
            }
            "immediate" => rule.verdict = rule.verdict.or_else(|| verdict(content)),
            "reject" => rule.verdict = Some(Verdict::Drop),
            "log" => {}
            // Those of iptables that have no other form.
            "target" if attribute(content, 1).and_then(read_text) == Some("REJECT") => {
                rule.verdict = Some(Verdict::Drop);
            }
            "match" if attribute(content, 1).and_then(read_text) == Some("comment") => {
                let comment = attribute(content, 3).and_then(read_text);
                rule.comment = comment.unwrap_or_default().to_owned();
            }
            _ => rule.asked.extend(reader.read(name, content)),
        }
    }
    Some(rule)
}

/// Of what `nft` keeps with a rule: a row of kind, length and content, where 0 is the comment.
fn own_comment(mut rest: &[u8]) -> Option<String> {
    while let [kind, length, more @ ..] = rest {
        let content = more.get(..usize::from(*length))?;
        if *kind == 0 {
            return read_text(content).map(str::to_owned);
        }
        rest = more.get(usize::from(*length)..)?;
    }
    None
}

fn verdict(immediate: &[u8]) -> Option<Verdict> {
    let verdict = attribute(attribute(immediate, 2)?, 2)?;
    let code = i32::from_be_bytes(*attribute(verdict, 1)?.first_chunk()?);
    let chain = || Some(attribute(verdict, 2).and_then(read_text)?.to_owned());
    match code {
        DROP => Some(Verdict::Drop),
        ACCEPT => Some(Verdict::Accept),
        RETURN => Some(Verdict::Return),
        JUMP => chain().map(Verdict::Jump),
        GOTO => chain().map(Verdict::Goto),
        _ => None,
    }
}

/// Up to the first zero.
fn read_text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes.split(|it| *it == 0).next()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nfnetlink::{nested, plain};

    fn expression(name: &str, content: &[u8]) -> Vec<u8> {
        nested(1, &[text(1, name), nested(2, content)].concat())
    }

    fn immediate(code: i32, chain: &str) -> Vec<u8> {
        let verdict = [plain(1, &code.to_be_bytes()), text(2, chain)].concat();
        expression("immediate", &nested(2, &nested(2, &verdict)))
    }

    fn rule(expressions: &[Vec<u8>], userdata: &[u8]) -> Vec<u8> {
        let parts = [
            plain(3, &7_u64.to_be_bytes()),
            nested(4, &expressions.concat()),
            plain(7, userdata),
        ];
        parts.concat()
    }

    #[test]
    #[rustfmt::skip]
    fn a_rule_is_its_comment_its_verdict_and_whether_it_asks_for_anything() {
        let target = |name: &str| expression("target", &text(1, name));
        let counter = expression("counter", &[plain(1, &60_u64.to_be_bytes()), plain(2, &2_u64.to_be_bytes())].concat());
        let meta = expression("lookup", &[]);
        let comment = expression("match", &[text(1, "comment"), plain(2, &[0; 4]), plain(3, b"mine\0\0\0\0")].concat());
        type Case<'a> = (&'a [Vec<u8>], Option<Verdict>, bool);
        let cases: [Case<'_>; 9] = [
            (&[immediate(0, "")], Some(Verdict::Drop), true),
            (&[counter.clone(), target("REJECT")], Some(Verdict::Drop), true),
            (&[expression("log", &[]), expression("reject", &[])], Some(Verdict::Drop), true),
            (&[meta.clone(), immediate(0, "")], Some(Verdict::Drop), false),
            (&[target("MARK")], None, false),
            (&[immediate(-3, "X")], Some(Verdict::Jump("X".into())), true),
            (&[immediate(-4, "X")], Some(Verdict::Goto("X".into())), true),
            (&[immediate(-5, "")], Some(Verdict::Return), true),
            (&[meta, immediate(1, "")], Some(Verdict::Accept), false),
        ];
        for (expressions, verdict, always) in cases {
            let seen = read_rule(&rule(expressions, b"\x01\x01x\x00\x05mine\0")).unwrap();
            assert_eq!((seen.verdict, seen.asked.is_empty(), seen.comment.as_str()), (verdict, always, "mine"));
        }
        let seen = read_rule(&rule(&[comment, counter], b"")).unwrap();
        assert_eq!((seen.handle, seen.comment.as_str(), seen.counted), (7, "mine", (2, 60)));
    }

    #[test]
    fn a_torn_rule_is_none_and_no_panic() {
        let whole = rule(&[immediate(-3, "X")], b"\x00\x05mine\0");
        for length in 0..whole.len() {
            let _ = read_rule(&whole[..length]);
            let _ = read_chain(&whole[..length]);
            let _ = own_comment(&whole[..length]);
        }
    }
}
