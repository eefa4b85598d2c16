//! The right to delete: claims on images and blobs, and what becomes of one when it is committed. A claim is nothing but a
//! question that was answered with no holder; what counts is the answer in the moment of the commit.

use std::collections::BTreeMap;

use crate::{
    collection::CollectionKind,
    holders::{Holder, NamedImage},
    work_leases::{LeaseRef, fencing_token},
};

/// Claims of one lease that stand at the same time: four of the largest batches.
pub const CLAIMS_MAX: usize = 1024;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Claimed {
    Image { name: String, digest: String },
    Blob { digest: String },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub lease: LeaseRef,
    /// The run that it is deleted in.
    pub collection: u64,
    pub object: Claimed,
    pub size_bytes: u64,
    /// Of the catalog by which a blob was found to be of no use: what holds it through a manifest only who read that knows.
    pub catalog_revision: u64,
}

/// Why a claim cannot be begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoClaim {
    #[error("{CLAIMS_MAX} claims of this lease stand: commit them, or give them back")]
    TooMany,
    #[error("every token of this process was given out")]
    Exhausted,
}

/// What becomes of an object whose claim is committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Delete,
    Held(Vec<Holder>),
    /// It is not what was claimed.
    Changed(&'static str),
}

#[derive(Clone, Debug, Default)]
pub struct Claims {
    claims: BTreeMap<u64, Claim>,
    tokens: BTreeMap<Claimed, u64>,
    /// How many each lease has.
    of_leases: BTreeMap<LeaseRef, usize>,
    issued: u32,
}

impl Claimed {
    pub fn kind(&self) -> CollectionKind {
        match self {
            Self::Image { .. } => CollectionKind::Images,
            Self::Blob { .. } => CollectionKind::Blobs,
        }
    }

    pub fn digest(&self) -> &str {
        match self {
            Self::Image { digest, .. } | Self::Blob { digest } => digest,
        }
    }

    /// What it is told by: the name of an image, the digest of a blob.
    pub fn name(&self) -> &str {
        match self {
            Self::Image { name, .. } => name,
            Self::Blob { digest } => digest,
        }
    }
}

impl Claims {
    /// Begins a claim, in the place of every one of the same object. It is to be given back where the object turns out to
    /// be held: whoever comes between the look and this would find nothing to break.
    pub fn begin(&mut self, epoch: u32, claim: Claim) -> Result<u64, NoClaim> {
        if let Some(former) = self.tokens.get(&claim.object) {
            self.take(*former);
        }
        let of_lease = self.of_leases.get(&claim.lease).copied();
        if of_lease.unwrap_or_default() >= CLAIMS_MAX {
            return Err(NoClaim::TooMany);
        }
        self.issued = self.issued.checked_add(1).ok_or(NoClaim::Exhausted)?;
        let token = fencing_token(epoch, self.issued);
        self.tokens.insert(claim.object.clone(), token);
        *self.of_leases.entry(claim.lease.clone()).or_default() += 1;
        self.claims.insert(token, claim);
        Ok(token)
    }

    /// The claim, while it stands.
    pub fn get(&self, token: u64) -> Option<&Claim> {
        self.claims.get(&token)
    }

    /// Ends a claim.
    pub fn take(&mut self, token: u64) -> Option<Claim> {
        let claim = self.claims.remove(&token)?;
        self.tokens.remove(&claim.object);
        self.uncount(&claim.lease);
        Some(claim)
    }

    /// Ends the claims on an image that comes anew: those of its name, and of its digest where that is known.
    pub fn break_image(&mut self, image: &str, digest: Option<&str>) {
        self.retain(|claim| match &claim.object {
            Claimed::Image {
                name,
                digest: claimed,
            } => name != image && digest != Some(claimed.as_str()),
            Claimed::Blob { .. } => true,
        });
    }

    /// Ends the claims of leases that are lost.
    pub fn retain(&mut self, stands: impl Fn(&Claim) -> bool) {
        let ended = self.claims.iter().filter(|(_, it)| !stands(it));
        let ended: Vec<_> = ended.map(|(token, _)| *token).collect();
        for token in ended {
            self.take(token);
        }
    }

    fn uncount(&mut self, lease: &LeaseRef) {
        if let Some(count) = self.of_leases.get_mut(lease) {
            *count -= 1;
            if *count == 0 {
                self.of_leases.remove(lease);
            }
        }
    }
}

/// Judges an image whose claim stands: `found` is what its name stands for, `holders` who holds the digest that was claimed.
pub fn judge_image(digest: &str, found: Option<&NamedImage>, holders: Vec<Holder>) -> Verdict {
    match found {
        None => Verdict::Changed("it is gone already"),
        Some(it) if it.digest != digest => {
            Verdict::Changed("its name stands for another image by now")
        }
        Some(_) => judge_blob(holders, true),
    }
}

/// Judges a blob whose claim stands. Where the catalog is not `current` to who claimed it, a manifest that nobody has read may
/// lead to it.
pub fn judge_blob(holders: Vec<Holder>, current: bool) -> Verdict {
    match (holders.is_empty(), current) {
        (false, _) => Verdict::Held(holders),
        (true, false) => Verdict::Changed("the catalog has changed"),
        (true, true) => Verdict::Delete,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::holders::HolderKind;

    const EPOCH: u32 = 5;

    fn lease(token: u64) -> LeaseRef {
        LeaseRef {
            name: "image-gc/images/00".into(),
            token,
        }
    }

    fn image(name: &str, digest: &str) -> Claimed {
        Claimed::Image {
            name: name.into(),
            digest: digest.into(),
        }
    }

    fn claim(object: Claimed, token: u64) -> Claim {
        Claim {
            lease: lease(token),
            collection: 1,
            object,
            size_bytes: 0,
            catalog_revision: 0,
        }
    }

    fn blob(digest: &str) -> Claimed {
        Claimed::Blob {
            digest: digest.into(),
        }
    }

    #[test]
    fn one_claim_of_an_object_stands_which_is_the_last_one() {
        let mut claims = Claims::default();
        let first = claims.begin(EPOCH, claim(blob("a"), 1)).unwrap();
        let other = claims.begin(EPOCH, claim(blob("b"), 1)).unwrap();
        let second = claims.begin(EPOCH, claim(blob("a"), 2)).unwrap();
        assert!(first < other && other < second);
        assert_eq!(claims.get(first), None);
        assert_eq!(claims.take(first), None);
        assert_eq!(claims.take(second), Some(claim(blob("a"), 2)));
        assert_eq!(claims.take(second), None, "it is committed once");
        assert!(claims.get(other).is_some());
    }

    #[test]
    fn a_lease_has_so_many_claims_and_they_end_with_it() {
        let mut claims = Claims::default();
        for number in 0..CLAIMS_MAX {
            let it = claim(blob(&number.to_string()), 1);
            claims.begin(EPOCH, it).unwrap();
        }
        let more = claims.begin(EPOCH, claim(blob("more"), 1));
        assert_eq!(more, Err(NoClaim::TooMany));
        assert!(
            claims.begin(EPOCH, claim(blob("0"), 1)).is_ok(),
            "it is one of them"
        );
        let other = claims.begin(EPOCH, claim(blob("other"), 2)).unwrap();
        claims.retain(|it| it.lease == lease(2));
        assert!(claims.get(other).is_some());
        assert!(claims.begin(EPOCH, claim(blob("more"), 1)).is_ok());
    }

    #[test]
    #[rustfmt::skip]
    fn an_image_that_comes_anew_breaks_the_claims_of_its_name_and_of_its_digest() {
        //  claimed            comes                stands
        let cases = [
            (image("a", "1"), ("a", None),          false),
            (image("a", "1"), ("a", Some("2")),     false),
            (image("a", "1"), ("b", Some("1")),     false),
            (image("a", "1"), ("b", Some("2")),     true),
            (image("a", "1"), ("b", None),          true),
            (blob("1"),       ("1", Some("1")),     true),
        ];
        for (object, (name, digest), stands) in cases {
            let mut claims = Claims::default();
            let token = claims.begin(EPOCH, claim(object.clone(), 1)).unwrap();
            claims.break_image(name, digest);
            assert_eq!(claims.get(token).is_some(), stands, "{object:?} {name} {digest:?}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn a_commit_deletes_what_was_claimed_and_nobody_holds() {
        let found = |digest: &str| Some(NamedImage { digest: digest.into(), pinned: false });
        let held = || vec![Holder::new(HolderKind::Sandbox, "web")];
        let gone = Verdict::Changed("it is gone already");
        let other = Verdict::Changed("its name stands for another image by now");
        let cases = [
            (found("1"), vec![], Verdict::Delete),
            (found("1"), held(), Verdict::Held(held())),
            (found("2"), vec![], other.clone()),
            (found("2"), held(), other),
            (None,       vec![], gone.clone()),
            (None,       held(), gone),
        ];
        for (found, holders, expected) in cases {
            let verdict = judge_image("1", found.as_ref(), holders.clone());
            assert_eq!(verdict, expected, "{found:?} {holders:?}");
        }
        let stale = Verdict::Changed("the catalog has changed");
        assert_eq!(judge_blob(vec![], true), Verdict::Delete);
        assert_eq!(judge_blob(vec![], false), stale);
        assert_eq!(judge_blob(held(), true), Verdict::Held(held()));
        assert_eq!(judge_blob(held(), false), Verdict::Held(held()));
    }
}
