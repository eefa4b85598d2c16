//! Numbers that follow from a seed: SplitMix64, which is enough to choose what happens next.

#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A stream of its own for each `name` of one seed.
    pub fn new(seed: u64, name: u64) -> Self {
        let mut random = Self(seed ^ name.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        random.draw();
        random
    }

    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut it = self.0;
        it = (it ^ (it >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        it = (it ^ (it >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        it ^ (it >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.draw() % end
    }

    /// One of `all`, each as often as its weight says.
    pub fn pick<T: Copy>(&mut self, all: &[(u64, T)]) -> T {
        let total = all.iter().map(|(weight, _)| weight).sum();
        let mut left = self.below(total);
        for (weight, it) in all {
            if left < *weight {
                return *it;
            }
            left -= weight;
        }
        unreachable!("the weights have a sum above every number that is drawn")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers_again_and_names_give_others() {
        let draw = |seed, name| {
            let mut random = Random::new(seed, name);
            [(); 8].map(|()| random.below(1000))
        };
        assert_eq!(draw(7, 1), draw(7, 1));
        assert_ne!(draw(7, 1), draw(7, 2));
        assert_ne!(draw(7, 1), draw(8, 1));
    }

    #[test]
    fn a_weight_of_nothing_is_never_picked_and_every_other_is() {
        let mut random = Random::new(1, 1);
        let picked: std::collections::BTreeSet<_> = (0..200)
            .map(|_| random.pick(&[(1, 'a'), (0, 'b'), (3, 'c')]))
            .collect();
        assert_eq!(picked, ['a', 'c'].into());
    }
}
