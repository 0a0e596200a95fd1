//! A map in shared pieces: a copy costs one count per piece, and a change to it copies one piece.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use fnv::FnvHasher;

/// Ten thousand services make pieces of about forty.
const PIECES: usize = 256;

#[derive(Debug, Clone)]
pub(crate) struct Shards<K, V> {
    pieces: Vec<Arc<HashMap<K, V>>>,
}

impl<K, V> Default for Shards<K, V> {
    fn default() -> Self {
        Self { pieces: vec![Arc::default(); PIECES] }
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Shards<K, V> {
    pub fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.pieces[piece(key)].get(key)
    }

    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        Arc::make_mut(&mut self.pieces[piece(&key)]).insert(key, value)
    }

    pub fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let piece = &mut self.pieces[piece(key)];
        if piece.contains_key(key) { Arc::make_mut(piece).remove(key) } else { None }
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.pieces.iter().all(|piece| piece.is_empty())
    }
}

/// Which piece a key is in. The pieces' own hashes are keyed at random, this one need not be.
fn piece<Q: Hash + ?Sized>(key: &Q) -> usize {
    let mut hash = FnvHasher::default();
    key.hash(&mut hash);
    let hash = hash.finish();
    (hash ^ hash >> 32) as usize % PIECES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_does_not_see_later_changes() {
        let mut map: Shards<u32, u32> = Shards::default();
        (0..1000).for_each(|key| assert_eq!(map.insert(key, key), None));
        let copy = map.clone();
        assert_eq!((map.insert(7, 8), map.remove(&9), map.remove(&9)), (Some(7), Some(9), None));
        assert_eq!((map.get(&7), map.get(&9)), (Some(&8), None));
        assert_eq!((copy.get(&7), copy.get(&9)), (Some(&7), Some(&9)));
        let shared = map.pieces.iter().zip(&copy.pieces).filter(|(one, other)| Arc::ptr_eq(one, other)).count();
        assert!(shared >= PIECES - 2);
    }
}
