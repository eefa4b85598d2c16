//! Who does which slices: the live workers, sorted by name, take turns. Each comes to the same answer by itself; until all
//! know the same workers, the lease of a slice decides.

use std::collections::BTreeSet;

use berth_domain::collection::Slice;

/// The slices of one worker. None where it is not among the live ones.
pub fn slices_of(worker: &str, live: &BTreeSet<String>) -> BTreeSet<Slice> {
    let Some(place) = live.iter().position(|it| it == worker) else {
        return BTreeSet::new();
    };
    let of_it = |it: &Slice| usize::try_from(it.number()).is_ok_and(|it| it % live.len() == place);
    Slice::all().filter(of_it).collect()
}

/// Whether this worker is the one that begins runs.
pub fn leads(worker: &str, live: &BTreeSet<String>) -> bool {
    live.first().is_some_and(|it| it == worker)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workers(count: usize) -> BTreeSet<String> {
        (0..count).map(|it| format!("image-gc-{it:03}")).collect()
    }

    #[test]
    fn each_slice_is_one_workers_and_each_has_as_many() {
        for count in 1..=100 {
            let live = workers(count);
            let shares: Vec<_> = live.iter().map(|it| slices_of(it, &live)).collect();
            let all: Vec<_> = shares.iter().flatten().copied().collect();
            assert_eq!(all.len(), 64, "{count} workers: none twice");
            assert_eq!(
                all.into_iter().collect::<BTreeSet<_>>().len(),
                64,
                "{count}"
            );
            let sizes: BTreeSet<_> = shares.iter().map(BTreeSet::len).collect();
            let (least, most) = (sizes.first().unwrap(), sizes.last().unwrap());
            assert!(most - least <= 1, "{count}: {sizes:?}");
            assert_eq!(live.iter().filter(|it| leads(it, &live)).count(), 1);
        }
    }

    #[test]
    fn who_is_not_known_has_nothing() {
        assert_eq!(slices_of("other", &workers(3)), BTreeSet::new());
        assert_eq!(slices_of("other", &workers(0)), BTreeSet::new());
        assert!(!leads("other", &workers(0)));
    }
}
