//! How the work of a collection is cut, so that any number of workers can share it: by digest, into slices of which each
//! is leased under a name of its own.

use std::fmt;

/// A byte of a digest has as many values in each of them.
pub const SLICES: u8 = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CollectionKind {
    Images,
    Blobs,
}

/// A part of the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slice(u8);

impl CollectionKind {
    pub const ALL: [CollectionKind; 2] = [CollectionKind::Images, CollectionKind::Blobs];

    pub fn as_str(self) -> &'static str {
        match self {
            CollectionKind::Images => "images",
            CollectionKind::Blobs => "blobs",
        }
    }

    /// Name of the lease that its holder works on the slice under.
    pub fn lease(self, slice: Slice) -> String {
        format!("image-gc/{}/{slice}", self.as_str())
    }
}

impl Slice {
    /// `None` where there is no such slice.
    pub fn new(number: u32) -> Option<Self> {
        let number = u8::try_from(number).ok()?;
        (number < SLICES).then_some(Self(number))
    }

    /// The slice of a digest, as `sha256:8f...`; `None` where it is no digest.
    pub fn of(digest: &str) -> Option<Self> {
        let (_, hex) = digest.split_once(':')?;
        let byte = u8::from_str_radix(hex.get(..2)?, 16).ok()?;
        Some(Self(byte / (u8::MAX / SLICES + 1)))
    }

    pub fn all() -> impl Iterator<Item = Slice> {
        (0..SLICES).map(Self)
    }

    pub fn number(self) -> u32 {
        self.0.into()
    }
}

impl fmt::Display for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_first_byte_of_a_digest_is_in_one_slice_and_each_slice_has_as_many() {
        let mut bytes = vec![0; SLICES.into()];
        for byte in 0..=u8::MAX {
            let slice = Slice::of(&format!("sha256:{byte:02x}00")).unwrap();
            bytes[slice.number() as usize] += 1;
        }
        assert_eq!(bytes, vec![4; 64]);
    }

    #[test]
    fn what_is_no_digest_is_in_no_slice() {
        for text in ["", "sha256", "sha256:", "sha256:8", "sha256:zz", "8f00"] {
            assert_eq!(Slice::of(text), None, "{text}");
        }
        assert_eq!(Slice::new(63).map(Slice::number), Some(63));
        assert_eq!(Slice::new(64), None);
        assert_eq!(Slice::new(256), None);
    }

    #[test]
    fn a_slice_is_leased_under_its_kind_and_number() {
        let slice = Slice::of("sha256:1fab").unwrap();
        assert_eq!(CollectionKind::Images.lease(slice), "image-gc/images/07");
        assert_eq!(CollectionKind::Blobs.lease(slice), "image-gc/blobs/07");
    }
}
