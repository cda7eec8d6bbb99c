//! Slots with generations, and lists threaded through them: what lets every call be a few index look-ups.
//!
//! A slot that is emptied is reused under a new generation, so an id that outlived its thing is found out instead of
//! naming another. The lists keep their links in the slots: joining and leaving in mid-list cost no search and no memory.

use std::ops::{Index, IndexMut};

/// "No slot": the end of a list, or an index not yet given.
pub(super) const NONE: u32 = u32::MAX;

/// A length as an index of ours.
pub(super) fn index(length: usize) -> u32 {
    u32::try_from(length).expect("a process holds fewer than 2^32 of anything")
}

struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

/// See the module.
pub(super) struct Arena<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

impl<T> Arena<T> {
    pub(super) const fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
        }
    }

    /// Stores what `make` returns for the index and generation that it will have.
    pub(super) fn insert(&mut self, make: impl FnOnce(u32, u32) -> T) -> u32 {
        let at = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                value: None,
            });
            index(self.slots.len() - 1)
        });
        let slot = &mut self.slots[at as usize];
        slot.value = Some(make(at, slot.generation));
        at
    }

    /// Empties a slot; every id of it is stale from now on.
    pub(super) fn remove(&mut self, at: u32) -> Option<T> {
        let slot = &mut self.slots[at as usize];
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(at);
        Some(value)
    }

    /// Whether an id still names what it was given for.
    pub(super) fn holds(&self, at: u32, generation: u32) -> bool {
        self.slots
            .get(at as usize)
            .is_some_and(|slot| slot.generation == generation && slot.value.is_some())
    }

    /// The indices in use.
    pub(super) fn indices(&self) -> impl Iterator<Item = u32> + '_ {
        (0..index(self.slots.len())).filter(|at| self.slots[*at as usize].value.is_some())
    }

    /// One past the highest index ever used; see `occupied`.
    pub(super) fn end(&self) -> u32 {
        index(self.slots.len())
    }

    /// Whether this index is in use.
    pub(super) fn occupied(&self, at: u32) -> bool {
        self.slots[at as usize].value.is_some()
    }
}

impl<T> Index<u32> for Arena<T> {
    type Output = T;

    fn index(&self, at: u32) -> &T {
        self.slots[at as usize]
            .value
            .as_ref()
            .expect("indices inside the book name live slots")
    }
}

impl<T> IndexMut<u32> for Arena<T> {
    fn index_mut(&mut self, at: u32) -> &mut T {
        self.slots[at as usize]
            .value
            .as_mut()
            .expect("indices inside the book name live slots")
    }
}

/// A thing's neighbours in the one list that it is in.
#[derive(Clone, Copy)]
pub(super) struct Links {
    pub(super) previous: u32,
    pub(super) next: u32,
}

impl Links {
    pub(super) const OUT: Self = Self {
        previous: NONE,
        next: NONE,
    };
}

/// What can be in a list.
pub(super) trait Linked {
    fn links(&mut self) -> &mut Links;
}

/// A doubly linked list through an arena.
#[derive(Clone, Copy)]
pub(super) struct List {
    pub(super) head: u32,
    pub(super) tail: u32,
    pub(super) length: u32,
}

impl List {
    pub(super) const EMPTY: Self = Self {
        head: NONE,
        tail: NONE,
        length: 0,
    };

    pub(super) fn push_front<T: Linked>(&mut self, arena: &mut Arena<T>, at: u32) {
        *arena[at].links() = Links {
            previous: NONE,
            next: self.head,
        };
        match self.head {
            NONE => self.tail = at,
            head => arena[head].links().previous = at,
        }
        self.head = at;
        self.length += 1;
    }

    pub(super) fn push_back<T: Linked>(&mut self, arena: &mut Arena<T>, at: u32) {
        *arena[at].links() = Links {
            previous: self.tail,
            next: NONE,
        };
        match self.tail {
            NONE => self.head = at,
            tail => arena[tail].links().next = at,
        }
        self.tail = at;
        self.length += 1;
    }

    pub(super) fn reverse<T: Linked>(&mut self, arena: &mut Arena<T>) {
        let mut from = std::mem::replace(self, Self::EMPTY);
        while from.head != NONE {
            let at = from.head;
            from.unlink(arena, at);
            self.push_front(arena, at);
        }
    }

    pub(super) fn unlink<T: Linked>(&mut self, arena: &mut Arena<T>, at: u32) {
        let Links { previous, next } = std::mem::replace(arena[at].links(), Links::OUT);
        match previous {
            NONE => self.head = next,
            previous => arena[previous].links().next = next,
        }
        match next {
            NONE => self.tail = previous,
            next => arena[next].links().previous = previous,
        }
        self.length -= 1;
    }
}
