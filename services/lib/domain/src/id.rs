//! Names that callers choose: what they may look like, and nothing about what they name.

use std::fmt;

/// The longest sandbox id: containerd allows 76 bytes, `sandbox.` and `.<container>` take 35.
pub const SANDBOX_ID_MAX: usize = 40;
/// The longest container name.
pub const CONTAINER_NAME_MAX: usize = 26;
/// The longest instance id: it is part of the names of bridges and tables.
pub const INSTANCE_ID_MAX: usize = 20;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    #[error("must not be empty")]
    Empty,
    #[error("is {length} bytes long, the limit is {limit}")]
    TooLong { length: usize, limit: usize },
    #[error("must be lower-case letters and digits in parts joined by single `-`, as in `web-1`")]
    Malformed,
    #[error("`{0}` is taken by Berth itself")]
    Reserved(&'static str),
}

/// Checks `[a-z0-9]+(-[a-z0-9]+)*` of at most `limit` bytes.
pub fn check_name(text: &str, limit: usize) -> Result<(), InvalidName> {
    if text.is_empty() {
        return Err(InvalidName::Empty);
    }
    if text.len() > limit {
        return Err(InvalidName::TooLong {
            length: text.len(),
            limit,
        });
    }
    let well_formed = text.split('-').all(|part| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    });
    if well_formed {
        Ok(())
    } else {
        Err(InvalidName::Malformed)
    }
}

/// The id of a sandbox, without the leading `sandbox/` that callers may write.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SandboxId(String);

impl SandboxId {
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        let name = text.strip_prefix("sandbox/").unwrap_or(text);
        check_name(name, SANDBOX_ID_MAX)?;
        Ok(Self(name.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name of an app container within its sandbox.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerName(String);

impl ContainerName {
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        check_name(text, CONTAINER_NAME_MAX)?;
        if text == "pause" {
            return Err(InvalidName::Reserved("pause"));
        }
        Ok(Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Tells the objects of one manager from those of another on the same host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId(String);

impl InstanceId {
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        check_name(text, INSTANCE_ID_MAX)?;
        Ok(Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Tells two sandboxes that had the same id apart. Grows over the life of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ContainerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_id_is_parts_of_letters_and_digits_joined_by_single_dashes() {
        for good in ["a", "web", "web-1", "0", "a-b-c", &"x".repeat(40)] {
            assert_eq!(SandboxId::parse(good).map(|id| id.0), Ok(good.to_owned()));
        }
        for bad in [
            "a--b",
            "-a",
            "a-",
            "A",
            "a.b",
            "a_b",
            "a/../b",
            "a\0",
            "a\n",
            "ä",
            " a",
            "sandbox/",
            "sandbox/sandbox/a",
        ] {
            assert!(SandboxId::parse(bad).is_err(), "{bad:?} must be refused");
        }
    }

    #[test]
    fn an_id_over_its_limit_is_refused_with_the_limit() {
        let error = SandboxId::parse(&"x".repeat(41)).unwrap_err();
        assert_eq!(
            error,
            InvalidName::TooLong {
                length: 41,
                limit: 40
            }
        );
    }

    #[test]
    fn the_leading_kind_of_an_id_is_dropped() {
        assert_eq!(SandboxId::parse("sandbox/web").unwrap().as_str(), "web");
    }

    #[test]
    fn no_container_can_take_the_name_of_the_pause() {
        assert_eq!(
            ContainerName::parse("pause"),
            Err(InvalidName::Reserved("pause"))
        );
    }
}
