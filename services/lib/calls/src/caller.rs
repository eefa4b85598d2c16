//! Who calls, and what it may: by its certificate, or by what the kernel says of the other end of a Unix socket.

use std::{net::SocketAddr, sync::Arc};

use http::Extensions;
use tonic::transport::server::UdsConnectInfo;

use crate::roles::{Role, Roles};

#[derive(Clone, Debug)]
pub struct Caller {
    pub roles: Roles,
    pub identity: Identity,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    Process {
        uid: u32,
        gid: u32,
        pid: Option<i32>,
    },
    Certificate(Arc<Certificate>),
    /// A transport that says nothing of its callers.
    Unknown,
}

/// What is told of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    pub subject: String,
    pub serial: String,
    pub address: SocketAddr,
}

/// Which processes have which roles on the Unix socket.
#[derive(Clone, Debug)]
pub struct Sockets {
    rules: Vec<Rule>,
    rest: Roles,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    who: Who,
    roles: Roles,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Uid(u32),
    Gid(u32),
}

impl Default for Sockets {
    /// Whoever can open the socket may do everything.
    fn default() -> Self {
        Self {
            rules: vec![],
            rest: Roles::of(&[Role::Admin]),
        }
    }
}

impl Sockets {
    /// Root may do everything, and all others look.
    pub(crate) fn read_only() -> Self {
        Self {
            rules: vec![],
            rest: Roles::of(&[Role::ReadOnly]),
        }
    }

    /// Reads rules as `uid:990=metrics` and `gid:991=watchdog,read-only`; the roles of all others are `rest`, joined by commas
    /// too. The problem names the rule.
    pub fn parse(rules: &[String], rest: &str) -> Result<Self, String> {
        let rules: Result<_, String> = rules.iter().map(|it| rule(it)).collect();
        Ok(Self {
            rules: rules?,
            rest: roles(rest)?,
        })
    }

    /// The first rule that is about a process counts. Root may do everything: it could do so without a socket.
    fn roles(&self, uid: u32, gid: u32) -> Roles {
        if uid == 0 {
            return Roles::of(&[Role::Admin]);
        }
        let mut rules = self.rules.iter();
        let rule = rules.find(|it| match it.who {
            Who::Uid(it) => it == uid,
            Who::Gid(it) => it == gid,
        });
        rule.map_or(self.rest, |it| it.roles)
    }

    /// Who is at the other end of the connection that a call came by.
    pub(crate) fn caller(&self, extensions: &Extensions) -> Caller {
        if let Some(caller) = extensions.get::<Caller>() {
            return caller.clone();
        }
        let socket = extensions.get::<UdsConnectInfo>();
        match socket.and_then(|it| it.peer_cred) {
            Some(it) => Caller {
                roles: self.roles(it.uid(), it.gid()),
                identity: Identity::Process {
                    uid: it.uid(),
                    gid: it.gid(),
                    pid: it.pid(),
                },
            },
            None => Caller {
                roles: Roles::NONE,
                identity: Identity::Unknown,
            },
        }
    }
}

fn rule(text: &str) -> Result<Rule, String> {
    let malformed = || format!("`{text}` must be like `uid:990=metrics` or `gid:991=read-only`");
    let (who, names) = text.split_once('=').ok_or_else(malformed)?;
    let (kind, number) = who.split_once(':').ok_or_else(malformed)?;
    let number = number.parse().map_err(|_| malformed())?;
    let who = match kind {
        "uid" => Who::Uid(number),
        "gid" => Who::Gid(number),
        _ => return Err(malformed()),
    };
    Ok(Rule {
        who,
        roles: roles(names)?,
    })
}

/// Reads roles joined by commas, or `none`.
fn roles(text: &str) -> Result<Roles, String> {
    if text == "none" {
        return Ok(Roles::NONE);
    }
    let mut roles = Roles::NONE;
    for name in text.split(',') {
        let role = Role::parse(name.trim()).ok_or_else(|| {
            let known = Role::ALL.map(Role::as_str).join(", ");
            format!("`{name}` is no role; there are {known}, and `none`")
        })?;
        roles = roles.with(role);
    }
    Ok(roles)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn the_first_rule_about_a_process_says_its_roles() {
        let rules = ["uid:990=metrics", "gid:991=watchdog,read-only", "uid:7=none"].map(str::to_owned);
        let sockets = Sockets::parse(&rules, "read-only").unwrap();
        let cases = [
            (0,   0,   "admin"),
            (0,   991, "admin"),
            (990, 991, "metrics"),
            (5,   991, "read-only,watchdog"),
            (7,   5,   "none"),
            (5,   5,   "read-only"),
        ];
        for (uid, gid, expected) in cases {
            assert_eq!(sockets.roles(uid, gid).to_string(), expected, "{uid} {gid}");
        }
        assert_eq!(Sockets::default().roles(5, 5).to_string(), "admin", "whoever can open it");
    }

    #[test]
    fn a_rule_that_says_nothing_is_refused_by_its_text() {
        for text in [
            "990=metrics",
            "uid:990",
            "uid:x=metrics",
            "pid:1=metrics",
            "uid:990=meter",
            "uid:990=",
        ] {
            let said = Sockets::parse(&[text.to_owned()], "admin").unwrap_err();
            assert!(said.contains('`'), "{text}: {said}");
        }
        let said = Sockets::parse(&[], "everybody").unwrap_err();
        assert!(said.contains("control-plane"), "{said}");
    }

    #[test]
    fn a_connection_that_says_nothing_of_its_caller_has_no_role() {
        let caller = Sockets::default().caller(&Extensions::new());
        assert_eq!(caller.roles, Roles::NONE);
    }
}
