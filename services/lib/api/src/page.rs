//! What a List asks for, and the token that leads to its next page.

use std::collections::{BTreeMap, HashMap};

use berth_domain::{Failure, SandboxId, SandboxRecord, Status};

use crate::v1;

/// Which sandboxes a List shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageFilter {
    /// Empty: all but DEAD.
    statuses: Vec<Status>,
    labels: BTreeMap<String, String>,
}

impl PageFilter {
    pub fn parse(statuses: &[i32], labels: &HashMap<String, String>) -> Result<Self, Failure> {
        let parse = |(place, number): (usize, &i32)| match v1::SandboxStatus::try_from(*number) {
            Ok(v1::SandboxStatus::Pending) => Ok(Status::Pending),
            Ok(v1::SandboxStatus::NotReady) => Ok(Status::NotReady),
            Ok(v1::SandboxStatus::Running) => Ok(Status::Running),
            Ok(v1::SandboxStatus::Stopped) => Ok(Status::Stopped),
            Ok(v1::SandboxStatus::Dead) => Ok(Status::Dead),
            Ok(v1::SandboxStatus::Unspecified) | Err(_) => Err(Failure::invalid(
                format!("statuses[{place}]"),
                format!("{number} is not a status"),
            )),
        };
        let mut statuses = statuses
            .iter()
            .enumerate()
            .map(parse)
            .collect::<Result<Vec<_>, _>>()?;
        statuses.sort_unstable();
        statuses.dedup();
        let labels = labels
            .iter()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        Ok(Self { statuses, labels })
    }

    pub fn matches(&self, record: &SandboxRecord) -> bool {
        let status = if self.statuses.is_empty() {
            record.status != Status::Dead
        } else {
            self.statuses.contains(&record.status)
        };
        status
            && self
                .labels
                .iter()
                .all(|(key, value)| record.spec.labels.get(key) == Some(value))
    }

    /// Tells the lists of different filters apart. FNV-1a: no secret hangs on it.
    fn fingerprint(&self) -> u64 {
        let statuses = self.statuses.iter().map(|it| it.as_str());
        let labels = self
            .labels
            .iter()
            .flat_map(|(key, value)| [key.as_str(), value.as_str()]);
        let texts = statuses.chain(["labels"]).chain(labels);
        texts
            .flat_map(|it| it.bytes().chain([0]))
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
            })
    }
}

/// Where a page begins, as `<fingerprint of the filter>.<id of the last sandbox>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageToken {
    pub after: SandboxId,
}

impl PageToken {
    /// Reads a token; `None` for the first page.
    pub fn parse(text: &str, filter: &PageFilter) -> Result<Option<Self>, Failure> {
        if text.is_empty() {
            return Ok(None);
        }
        let invalid = |problem| Failure::invalid("page_token", problem);
        let parts = text.split_once('.').and_then(|(hash, id)| {
            Some((
                u64::from_str_radix(hash, 16).ok()?,
                SandboxId::parse(id).ok()?,
            ))
        });
        match parts {
            Some((hash, after)) if hash == filter.fingerprint() => Ok(Some(Self { after })),
            Some(_) => Err(invalid("belongs to a list with another filter")),
            None => Err(invalid("is not a token of this service")),
        }
    }

    pub fn to_text(&self, filter: &PageFilter) -> String {
        format!("{:016x}.{}", filter.fingerprint(), self.after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(statuses: &[v1::SandboxStatus], labels: &[(&str, &str)]) -> PageFilter {
        let statuses: Vec<i32> = statuses.iter().map(|&it| it.into()).collect();
        let labels = labels
            .iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
            .collect();
        PageFilter::parse(&statuses, &labels).unwrap()
    }

    #[test]
    fn a_token_leads_only_into_the_list_that_it_comes_from() {
        use v1::SandboxStatus::{Dead, Running};
        let token = PageToken {
            after: SandboxId::parse("web").unwrap(),
        };
        let own = filter(&[Running, Dead], &[("a", "b")]);
        let text = token.to_text(&own);
        let same = filter(&[Dead, Running, Dead], &[("a", "b")]);
        assert_eq!(PageToken::parse(&text, &same), Ok(Some(token)));
        assert_eq!(PageToken::parse("", &own), Ok(None));
        for other in [
            filter(&[Running], &[("a", "b")]),
            filter(&[Running, Dead], &[("a", "c")]),
        ] {
            assert!(PageToken::parse(&text, &other).is_err());
        }
        for text in ["x", "0.web", "zz.web", &format!("{text}.."), "."] {
            let error = PageToken::parse(text, &own).unwrap_err();
            assert_eq!(error.violations[0].field, "page_token", "{text}");
        }
    }

    #[test]
    fn an_unknown_status_is_refused_by_its_place() {
        for number in [0, 77, -1] {
            let error = PageFilter::parse(&[3, number], &HashMap::new()).unwrap_err();
            assert_eq!(error.violations[0].field, "statuses[1]");
        }
    }
}
