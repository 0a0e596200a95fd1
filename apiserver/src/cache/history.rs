//! How long changes are kept: a time, and a share of memory that all collections have together.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Change, ChangeKind, CollectionCache};
use crate::object::Object;

/// Changes younger than this are kept, as long as [`budget`] allows.
pub const AGE: Duration = Duration::from_secs(300);
/// The least that all collections' history together may take, bytes as [`size`] counts them.
pub const BYTES: usize = 32 << 20;
/// What the history may take of what the objects take: a large cluster has more to tell.
const SHARE: usize = 10;
/// What an object takes beside its text.
const BESIDE: usize = 512;

/// Bound of all collections' history, beside objects of so many bytes.
fn budget(objects: usize) -> usize {
    BYTES.max(objects / SHARE)
}

/// Bytes that an object keeps in memory.
pub fn size(object: &Object) -> usize {
    object.json.len() + BESIDE
}

/// One change somewhere: when, of what size, in which collection.
#[derive(Debug)]
struct Kept {
    at: Instant,
    size: usize,
    collection: Arc<CollectionCache>,
}

/// The changes that all collections keep, oldest first: changes come in one order, so the first of these is the first of
/// its collection too.
#[derive(Debug, Default)]
pub struct History {
    kept: VecDeque<Kept>,
    /// Of the changes that are kept.
    bytes: usize,
    /// Of the objects that are there.
    pub objects: usize,
}

impl History {
    pub fn note(&mut self, collection: &Arc<CollectionCache>, change: &Change) {
        let size = size(&change.object);
        self.kept.push_back(Kept { at: Instant::now(), size, collection: collection.clone() });
        self.bytes += size;
        self.objects -= change.previous.as_deref().map_or(0, self::size);
        if change.kind != ChangeKind::Deleted {
            self.objects += size;
        }
    }

    /// Forgets what is too old, and the oldest while there is too much.
    pub fn trim(&mut self) {
        while let Some(oldest) = self.kept.front() {
            if oldest.at.elapsed() <= AGE && self.bytes <= budget(self.objects) {
                break;
            }
            oldest.collection.forget();
            self.bytes -= oldest.size;
            self.kept.pop_front();
        }
        if self.kept.is_empty() {
            self.kept = VecDeque::new();
        }
    }

    /// Bytes of it, and how many it may take now.
    pub fn bytes(&self) -> (usize, usize) {
        (self.bytes, budget(self.objects))
    }

    /// When the oldest change came.
    pub fn oldest(&self) -> Option<Instant> {
        self.kept.front().map(|kept| kept.at)
    }
}
