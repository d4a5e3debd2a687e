//! Inode numbers.
//!
//! ```text
//! 1                 the root
//! 2 …               the inodes of the layers, the topmost first; also after they were copied up
//! behind those …    those of the upper's file system, as they are there, as long as all are below 2^31
//! 2^31 …            else one after the other, in the order in which they are met; for the life of the mount
//! 2^52 …            of damaged images: numbers that the image says it does not have, directories that can't be entered
//! ```
//!
//! So they are below 2^32 as long as there are fewer inodes than that: whole programs cut them and take what is equal then
//! for hard links. And in a damaged image below 2^53, up to which the numbers of JavaScript are exact.

use std::collections::HashMap;

pub(crate) const ROOT: u64 = 1;
const ALLOCATED: u64 = 1 << 31;
const UNLISTED: u64 = 1 << 52;
const DAMAGED: u64 = UNLISTED | 1 << 51;

/// The numbers of the layers' inodes: a pure function of the stack.
pub(crate) struct Numbers {
    /// What is added to the numbers of each layer, and behind them the first number that no layer has.
    bases: Vec<u64>,
}

impl Numbers {
    /// For layers with so many inodes.
    pub(crate) fn new(inodes: impl Iterator<Item = u32>) -> Numbers {
        let mut bases = vec![ROOT];
        for count in inodes {
            bases.push(bases[bases.len() - 1] + u64::from(count));
        }
        Numbers { bases }
    }

    /// The number of an inode of a layer.
    pub(crate) fn lower(&self, layer: usize, number: u32) -> u64 {
        let (Some(base), Some(next)) = (self.bases.get(layer), self.bases.get(layer + 1)) else {
            return UNLISTED;
        };
        let ino = base + u64::from(number);
        match number > 0 && ino <= *next {
            true => ino,
            false => UNLISTED | (layer as u64) << 32 | u64::from(number),
        }
    }

    /// A number for what can't be shown of a layer.
    pub(crate) fn damaged(layer: usize, number: u32) -> u64 {
        DAMAGED | (layer as u64) << 32 | u64::from(number)
    }

    /// Layer and number, if it is one of a layer.
    pub(crate) fn place(&self, ino: u64) -> Option<(usize, u32)> {
        if ino >= UNLISTED {
            let layer = ((ino & !DAMAGED) >> 32) as usize;
            return (ino < DAMAGED).then_some((layer, ino as u32));
        }
        // Of empty layers, which have the same base, the last.
        let layer = self.bases.partition_point(|base| *base < ino).checked_sub(1)?;
        let number = u32::try_from(ino - self.bases[layer]).ok()?;
        (layer + 1 < self.bases.len()).then_some((layer, number))
    }

    fn behind(&self) -> u64 {
        self.bases.last().copied().unwrap_or(ROOT)
    }
}

/// The numbers of the upper's inodes that are not what they are there: of those that were copied up, and of large ones.
#[derive(Default)]
pub(crate) struct UpperNumbers {
    numbers: HashMap<u64, u64>,
    allocated: u64,
}

impl UpperNumbers {
    /// The number of an inode of the upper's file system.
    pub(crate) fn of(&mut self, numbers: &Numbers, upper: u64) -> u64 {
        if let Some(known) = self.numbers.get(&upper) {
            return *known;
        }
        let direct = numbers.behind().saturating_add(upper);
        if direct < ALLOCATED {
            return direct;
        }
        let number = numbers.behind().max(ALLOCATED - 1) + 1 + self.allocated;
        self.allocated += 1;
        self.numbers.insert(upper, number);
        number
    }

    /// It was copied up and keeps the number that its layer gave it.
    pub(crate) fn keep(&mut self, upper: u64, number: u64) {
        self.numbers.insert(upper, number);
    }

    /// It is gone.
    pub(crate) fn forget(&mut self, upper: u64) {
        self.numbers.remove(&upper);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_layers_and_upper_never_meet_and_stay_small() {
        let numbers = Numbers::new([3, 0, 5].into_iter());
        let places: Vec<_> = [(0, 1), (0, 3), (2, 1), (2, 5)].into();
        let inos: Vec<_> = places.iter().map(|&(layer, n)| numbers.lower(layer, n)).collect();
        assert_eq!(inos, [2, 4, 5, 9]);
        assert!(inos.iter().map(|&ino| numbers.place(ino).unwrap()).eq(places));
        let mut upper = UpperNumbers::default();
        assert_eq!((upper.of(&numbers, 1), upper.of(&numbers, 70)), (10, 79));
        assert_eq!([ROOT, 10, 79, 1 << 31].map(|ino| numbers.place(ino)), [None; 4]);
        // Those of XFS, BTRFS or another overlay.
        let large = [u64::MAX, 1 << 63, 1 << 40, (1 << 31) - 9];
        assert_eq!(large.map(|ino| upper.of(&numbers, ino)), [0, 1, 2, 3].map(|n| (1 << 31) + n));
        assert_eq!(upper.of(&numbers, 1 << 40), (1 << 31) + 2);
        upper.keep(1 << 40, 3);
        assert_eq!(upper.of(&numbers, 1 << 40), 3);
        upper.forget(1 << 40);
        assert_eq!(upper.of(&numbers, 1 << 40), (1 << 31) + 4);
    }

    #[test]
    fn numbers_that_an_image_should_not_have_are_below_2_53_and_its_own() {
        let numbers = Numbers::new([3, 3].into_iter());
        for (layer, number) in [(0, 0), (0, 4), (1, 0), (1, u32::MAX)] {
            let ino = numbers.lower(layer, number);
            assert!((UNLISTED..1 << 53).contains(&ino), "{ino}");
            assert_eq!(numbers.place(ino), Some((layer, number)));
            assert_ne!(Numbers::damaged(layer, number), ino);
            assert_eq!(numbers.place(Numbers::damaged(layer, number)), None);
        }
        let many = Numbers::new(std::iter::repeat_n(u32::MAX, 3));
        assert!(many.lower(2, u32::MAX) < 1 << 34);
        assert!(UpperNumbers::default().of(&many, 5) > many.lower(2, u32::MAX));
    }
}
