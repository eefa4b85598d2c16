//! Names that a policy allows connections to, and which names a sandbox may ask others for. Which addresses stand for a
//! name, others know.

use std::{fmt, sync::Arc};

use crate::spec::{Egress, NetworkPolicy, Protocol};

const NAME_MAX: usize = 253;
const LABEL_MAX: usize = 63;

/// The ports of name servers, in the clear and over TLS. Who may reach names asks the node's, and no other one.
pub const NAME_SERVER_PORTS: [u16; 2] = [53, 853];

/// What one rule allows by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedDestination {
    pub name: NamePattern,
    /// `None`: everything there but name servers.
    pub port: Option<(Protocol, u16)>,
}

/// `api.example.org`, or `*.example.org` for every name below it and not itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern {
    below: bool,
    /// In lower case, without the dot at its end.
    name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPattern {
    #[error("must have at most {NAME_MAX} bytes")]
    Long,
    #[error("must have no dot at its end")]
    Dot,
    #[error("must be in lower case")]
    Case,
    #[error("`*` must be the whole first label, with a name behind it, like `*.example.org`")]
    Star,
    #[error(
        "must have labels of 1 to {LABEL_MAX} letters, digits and `-`, none with a `-` at an end"
    )]
    Label,
    #[error("is an address, which is written as a network")]
    Address,
}

impl NamePattern {
    pub fn parse(text: &str) -> Result<Self, InvalidPattern> {
        let (below, name) = match text.strip_prefix("*.") {
            Some(name) => (true, name),
            None => (false, text),
        };
        let letter = |it: u8| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'-';
        let label = |it: &str| {
            (1..=LABEL_MAX).contains(&it.len())
                && !it.starts_with('-')
                && !it.ends_with('-')
                && it.bytes().all(letter)
        };
        if text.len() > NAME_MAX {
            Err(InvalidPattern::Long)
        } else if name.contains('*') || (below && name.is_empty()) {
            Err(InvalidPattern::Star)
        } else if name.len() > 1 && name.ends_with('.') {
            Err(InvalidPattern::Dot)
        } else if name.bytes().any(|it| it.is_ascii_uppercase()) {
            Err(InvalidPattern::Case)
        } else if !name.split('.').all(label) {
            Err(InvalidPattern::Label)
        } else if last_label(name).bytes().all(|it| it.is_ascii_digit()) {
            Err(InvalidPattern::Address)
        } else {
            let name = name.to_owned();
            Ok(Self { below, name })
        }
    }

    /// Whether it stands for `name`, which is in lower case and without the dot at its end.
    pub fn matches(&self, name: &str) -> bool {
        // A label with a dot in it is written so, and is below nothing that it looks to be.
        if name.contains('\\') {
            return false;
        }
        match name.strip_suffix(self.name.as_str()) {
            Some("") => !self.below,
            Some(rest) => self.below && rest.len() > 1 && rest.ends_with('.'),
            None => false,
        }
    }
}

fn last_label(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or_default()
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let star = if self.below { "*." } else { "" };
        write!(f, "{star}{}", self.name)
    }
}

/// Which names of others a sandbox may ask for, beside those that the node itself answers for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Lookup {
    #[default]
    Any,
    Nothing,
    /// And what it may reach by them.
    Named(Arc<[NamedDestination]>),
}

impl Lookup {
    /// A list of networks alone allows every name: it does not say what is asked for to find one of them.
    pub fn of(policy: &NetworkPolicy) -> Self {
        match &policy.egress {
            Egress::Open => Self::Any,
            Egress::Deny => Self::Nothing,
            Egress::Allow(_) if !policy.egress_names.is_empty() => {
                Self::Named(policy.egress_names.as_slice().into())
            }
            Egress::Allow(networks) if networks.is_empty() => Self::Nothing,
            Egress::Allow(_) => Self::Any,
        }
    }

    pub fn allows(&self, name: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Nothing => false,
            Self::Named(rules) => rules.iter().any(|it| it.name.matches(name)),
        }
    }

    /// What may be reached at the addresses of `name`, where that depends on them: each once, and everything alone.
    pub fn ports(&self, name: &str) -> Vec<Option<(Protocol, u16)>> {
        let Self::Named(rules) = self else {
            return vec![];
        };
        let matching = rules.iter().filter(|it| it.name.matches(name));
        let mut ports: Vec<_> = matching.map(|it| it.port).collect();
        ports.sort_unstable();
        ports.dedup();
        match ports.first() {
            Some(None) => vec![None],
            _ => ports,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Destination;

    fn pattern(text: &str) -> NamePattern {
        NamePattern::parse(text).unwrap()
    }

    #[test]
    #[rustfmt::skip]
    fn a_pattern_is_a_name_or_all_below_one() {
        let longest = format!("{0}.{0}.{0}.{1}", "a".repeat(63), "b".repeat(61));
        for good in ["a", "api.example.org", "*.example.org", "*.org", "1.a", "x--y.example", longest.as_str()] {
            assert_eq!(pattern(good).to_string(), good);
        }
        use InvalidPattern::{Address, Case, Dot, Label, Long, Star};
        let (long, label) = (format!("{longest}c"), "a".repeat(64));
        let cases = [
            (long.as_str(), Long), ("a.", Dot), ("*.a.", Dot), ("A.example", Case), ("*", Star), ("*.", Star),
            ("*a.example", Star), ("a.*.example", Star), ("*.*.example", Star), ("", Label), (".", Label),
            ("a..b", Label), (".a", Label), ("-a.b", Label), ("a-.b", Label), ("a_b", Label), ("ä.example", Label),
            (label.as_str(), Label), ("a b", Label), ("10.0.0.1", Address), ("10.0.0.0/8", Label), ("*.1", Address),
            ("fd00::1", Label),
        ];
        for (text, expected) in cases {
            assert_eq!(NamePattern::parse(text), Err(expected), "{text:?}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn a_star_stands_for_one_label_and_more_and_never_for_none() {
        let cases = [
            ("api.example.org", "api.example.org",     true),
            ("api.example.org", "x.api.example.org",   false),
            ("api.example.org", "example.org",         false),
            ("api.example.org", "xapi.example.org",    false),
            ("*.example.org",   "api.example.org",     true),
            ("*.example.org",   "x.api.example.org",   true),
            ("*.example.org",   "example.org",         false),
            ("*.example.org",   ".example.org",        false),
            ("*.example.org",   "badexample.org",      false),
            ("*.example.org",   "example.org.evil",    false),
            ("*.example.org",   "",                    false),
            // One label with dots in it, below something else.
            ("*.example.org",   "x\\.example.org",     false),
        ];
        for (rule, name, expected) in cases {
            assert_eq!(pattern(rule).matches(name), expected, "{rule} and {name}");
        }
    }

    #[test]
    fn what_may_be_asked_for_follows_from_the_policy() {
        let network = || Destination {
            net: "10.0.0.0/8".parse().unwrap(),
            port: None,
        };
        let named = |name: &str, port| NamedDestination {
            name: pattern(name),
            port,
        };
        let names = vec![
            named("api.example.org", Some((Protocol::Tcp, 443))),
            named("*.example.org", Some((Protocol::Tcp, 80))),
            named("*.all.example.org", None),
        ];
        let lookup = |egress, egress_names: &[NamedDestination]| {
            Lookup::of(&NetworkPolicy {
                egress,
                egress_names: egress_names.to_vec(),
                ..NetworkPolicy::default()
            })
        };
        assert_eq!(lookup(Egress::Open, &[]), Lookup::Any);
        assert_eq!(lookup(Egress::Deny, &[]), Lookup::Nothing);
        assert_eq!(lookup(Egress::Allow(vec![]), &[]), Lookup::Nothing);
        assert_eq!(lookup(Egress::Allow(vec![network()]), &[]), Lookup::Any);
        let listed = lookup(Egress::Allow(vec![network()]), &names);
        assert!(listed.allows("api.example.org") && !listed.allows("example.org"));
        assert!(Lookup::Any.allows("x") && !Lookup::Nothing.allows("api.example.org"));
        let (http, https) = (Some((Protocol::Tcp, 80)), Some((Protocol::Tcp, 443)));
        assert_eq!(listed.ports("api.example.org"), [http, https]);
        assert_eq!(
            listed.ports("x.all.example.org"),
            [None],
            "everything is enough"
        );
        assert_eq!(listed.ports("example.com"), []);
        assert_eq!(Lookup::Any.ports("api.example.org"), []);
    }
}
