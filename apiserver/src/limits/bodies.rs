//! Bodies on their way: who sends slowly keeps nobody from a seat, so a body is there before its request takes one, and
//! what waits is counted in bodies and bytes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// How much may be held of a level's bodies.
#[derive(Debug, Clone, Copy)]
pub struct Most {
    /// Bytes of all, and of one identity.
    pub bytes: (usize, usize),
    /// Bodies of one identity.
    pub bodies: usize,
}

/// What is held, from a body's first byte until its request is answered.
#[derive(Debug)]
pub struct Bodies {
    most: Most,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    bytes: usize,
    by: HashMap<String, Own>,
}

#[derive(Debug, Default)]
struct Own {
    bytes: usize,
    bodies: usize,
}

impl Bodies {
    pub fn new(most: Most) -> Self {
        Self { most, held: Mutex::default() }
    }

    fn held<T>(&self, act: impl FnOnce(&mut Held) -> T) -> T {
        act(&mut self.held.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// One more body; `None` when there are too many.
    pub fn open(self: &Arc<Self>, identity: &str) -> Option<Arriving> {
        let opened = self.held(|held| {
            let own = held.by.entry(identity.to_owned()).or_default();
            let fits = own.bodies < self.most.bodies;
            own.bodies += usize::from(fits);
            fits
        });
        opened.then(|| Arriving { of: self.clone(), identity: identity.to_owned(), bytes: 0 })
    }

    pub fn bytes(&self) -> usize {
        self.held(|held| held.bytes)
    }
}

/// One body.
#[derive(Debug)]
pub struct Arriving {
    of: Arc<Bodies>,
    identity: String,
    bytes: usize,
}

impl Arriving {
    /// So many bytes more; `false` when they are too many to keep.
    #[must_use]
    pub fn grow(&mut self, bytes: usize) -> bool {
        let (all, each) = self.of.most.bytes;
        let fits = self.of.held(|held| {
            let Some(own) = held.by.get_mut(&self.identity) else { return false };
            let fits = held.bytes.saturating_add(bytes) <= all && own.bytes.saturating_add(bytes) <= each;
            if fits {
                held.bytes += bytes;
                own.bytes += bytes;
            }
            fits
        });
        self.bytes += if fits { bytes } else { 0 };
        fits
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.of.held(|held| {
            held.bytes -= self.bytes;
            if let Some(own) = held.by.get_mut(&self.identity) {
                own.bytes -= self.bytes;
                own.bodies -= 1;
                if own.bodies == 0 {
                    held.by.remove(&self.identity);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_counted_by_identity_and_in_all() {
        let bodies = Arc::new(Bodies::new(Most { bytes: (10, 6), bodies: 2 }));
        let mut first = bodies.open("a").unwrap();
        let second = bodies.open("a").unwrap();
        assert!(bodies.open("a").is_none(), "two are there");
        assert!(first.grow(6) && !first.grow(1));
        let mut other = bodies.open("b").unwrap();
        assert!(other.grow(4) && !other.grow(1), "all is taken");
        drop((first, second));
        assert!(other.grow(2) && bodies.bytes() == 6);
        drop(other);
        assert_eq!(bodies.held(|held| (held.bytes, held.by.len())), (0, 0));
    }
}
