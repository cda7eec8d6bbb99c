//! The last of what happened, for people to read. What repeats takes one place, so that a flood of one kind pushes nothing else out.

use std::collections::VecDeque;
use std::time::SystemTime;

/// Tells which happenings are one to the reader.
pub trait Alike {
    /// Whether both are the same but for details, of which the last ones are shown.
    fn is_like(&self, other: &Self) -> bool;
}

/// Something that happened, once or again and again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happened<T> {
    /// What, when it happened last.
    pub what: T,
    /// When that was.
    pub at: SystemTime,
    /// How often it happened.
    pub count: u64,
}

/// The last of one kind.
#[derive(Debug)]
pub struct Recent<T> {
    /// The latest first.
    kept: VecDeque<Happened<T>>,
    most: usize,
    total: u64,
}

impl<T: Alike + Clone> Recent<T> {
    /// Nothing yet; `most` are to be kept.
    pub fn new(most: usize) -> Self {
        Self {
            kept: VecDeque::new(),
            most,
            total: 0,
        }
    }

    /// It happened now.
    pub fn note(&mut self, what: T) {
        self.total += 1;
        let known = self.kept.iter().position(|known| known.what.is_like(&what));
        let before = known.and_then(|at| self.kept.remove(at));
        self.kept.truncate(self.most - 1);
        self.kept.push_front(Happened {
            what,
            at: SystemTime::now(),
            count: 1 + before.map_or(0, |before| before.count),
        });
    }

    /// What is kept, the latest first.
    pub fn read(&self) -> Vec<Happened<T>> {
        self.kept.iter().cloned().collect()
    }

    /// How often anything happened.
    pub fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Alike for (u32, u32) {
        fn is_like(&self, other: &Self) -> bool {
            self.0 == other.0
        }
    }

    fn read(recent: &Recent<(u32, u32)>) -> Vec<((u32, u32), u64)> {
        let read = recent.read();
        read.into_iter().map(|one| (one.what, one.count)).collect()
    }

    #[test]
    fn what_repeats_is_counted_in_one_place_and_comes_first() {
        let mut recent = Recent::new(50);
        recent.note((1, 0));
        (0..1000).for_each(|n| recent.note((2, n)));
        recent.note((1, 7));
        assert_eq!(read(&recent), [((1, 7), 2), ((2, 999), 1000)]);
        assert_eq!(recent.total(), 1002);
    }

    #[test]
    fn only_so_many_are_kept() {
        let mut recent = Recent::new(3);
        (0..10_000).for_each(|n| recent.note((n, 0)));
        let kept: Vec<_> = read(&recent).iter().map(|(what, _)| what.0).collect();
        assert_eq!(kept, [9999, 9998, 9997]);
        assert_eq!(recent.total(), 10_000);
    }
}
