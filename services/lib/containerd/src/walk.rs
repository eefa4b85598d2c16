//! The way from what a name stands for to its manifests. Anybody may have written the documents on it, so it is bounded:
//! each document once, only so deep, only so many.

use std::collections::BTreeSet;

use berth_platform::ImageError;

use crate::oci::{Descriptor, corrupt};

/// How many indexes may lie in each other. Tools write one, a few write two.
pub(crate) const DEPTH_MAX: usize = 4;
/// How many documents of one image may be for this machine.
pub(crate) const DOCUMENTS_MAX: usize = 256;

#[derive(Debug)]
pub(crate) struct Walk<'a> {
    image: &'a str,
    /// What is still to be looked at, the next one last, with the number of indexes above it.
    open: Vec<(Descriptor, usize)>,
    seen: BTreeSet<String>,
    depth: usize,
}

impl<'a> Walk<'a> {
    pub(crate) fn new(image: &'a str, target: &Descriptor) -> Self {
        Self {
            image,
            open: vec![(target.clone(), 0)],
            seen: BTreeSet::from([target.digest.clone()]),
            depth: 0,
        }
    }

    pub(crate) fn next(&mut self) -> Option<Descriptor> {
        let (next, depth) = self.open.pop()?;
        self.depth = depth;
        Some(next)
    }

    /// Goes on with the entries of the index that was the last `next`, the first of them first.
    pub(crate) fn enter(&mut self, entries: &[&Descriptor]) -> Result<(), ImageError> {
        let depth = self.depth + 1;
        for &entry in entries.iter().rev() {
            if entry.is_index() && depth >= DEPTH_MAX {
                let what = format!("more than {DEPTH_MAX} indexes lie in each other");
                return Err(corrupt(self.image, what));
            }
            if self.seen.insert(entry.digest.clone()) {
                self.open.push((entry.clone(), depth));
            }
        }
        if self.seen.len() > DOCUMENTS_MAX {
            let what = format!("more than {DOCUMENTS_MAX} of its documents are for this machine");
            return Err(corrupt(self.image, what));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{OCI_INDEX, OCI_MANIFEST};

    fn of(media_type: &str, digest: impl ToString) -> Descriptor {
        Descriptor {
            media_type: media_type.to_owned(),
            digest: digest.to_string(),
            ..Descriptor::default()
        }
    }

    #[test]
    fn entries_come_in_order_and_those_of_an_index_before_its_neighbours() {
        let (inner, last) = (of(OCI_INDEX, "inner"), of(OCI_MANIFEST, "last"));
        let mut walk = Walk::new("app", &of(OCI_INDEX, "outer"));
        assert_eq!(walk.next(), Some(of(OCI_INDEX, "outer")));
        walk.enter(&[&inner, &last]).unwrap();
        assert_eq!(walk.next(), Some(inner));
        walk.enter(&[&of(OCI_MANIFEST, "first")]).unwrap();
        assert_eq!(walk.next(), Some(of(OCI_MANIFEST, "first")));
        assert_eq!(walk.next(), Some(last));
        assert_eq!(walk.next(), None);
    }

    #[test]
    fn an_index_that_names_itself_is_walked_once() {
        let index = of(OCI_INDEX, "own");
        let mut walk = Walk::new("app", &index);
        walk.next();
        walk.enter(&[&index, &index]).unwrap();
        assert_eq!(walk.next(), None);
    }

    #[test]
    fn a_chain_of_indexes_ends_at_the_limit() {
        let mut walk = Walk::new("app", &of(OCI_INDEX, 0));
        for depth in 1..DEPTH_MAX {
            walk.next();
            walk.enter(&[&of(OCI_INDEX, depth)]).unwrap();
        }
        walk.next();
        let error = walk.enter(&[&of(OCI_INDEX, DEPTH_MAX)]).unwrap_err();
        assert!(matches!(error, ImageError::Corrupt { .. }), "{error}");
        walk.enter(&[&of(OCI_MANIFEST, DEPTH_MAX)]).unwrap();
    }

    #[test]
    fn more_documents_than_an_honest_image_has_are_refused() {
        let entries: Vec<_> = (1..=DOCUMENTS_MAX).map(|it| of(OCI_MANIFEST, it)).collect();
        let entries: Vec<_> = entries.iter().collect();
        let mut walk = Walk::new("app", &of(OCI_INDEX, 0));
        walk.next();
        walk.enter(&entries[1..]).unwrap();
        let error = walk.enter(&entries).unwrap_err();
        assert!(matches!(error, ImageError::Corrupt { .. }), "{error}");
    }
}
