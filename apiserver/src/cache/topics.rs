//! Watchers that look at little: at one object by its name, or at what is on one node.
//!
//! Every agent watches its own pods, and the objects that they refer to, one by one. If each change woke all of them, a change
//! would cost as much as there are nodes. Here it wakes those whose topic it touches, and they look at no other.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

use super::{Change, Expired};
use crate::object::{Object, ObjectKey, Revision};

/// The field by which pods are on nodes.
pub const NODE: &str = "spec.nodeName";

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Topic {
    Object(ObjectKey),
    Node(String),
}

/// A topic as a change says that it touches it. Two topics may share one: then a watcher looks once too often.
pub type Mark = u64;

/// Marks of objects and of nodes, which may have the same text.
const OBJECT: u8 = 0;
const ON_NODE: u8 = 1;

fn mark(of: u8, text: &str) -> Mark {
    let mut hasher = DefaultHasher::new();
    (of, text).hash(&mut hasher);
    hasher.finish()
}

impl Topic {
    pub fn mark(&self) -> Mark {
        match self {
            Self::Object(key) => mark(OBJECT, key.as_str()),
            Self::Node(name) => mark(ON_NODE, name),
        }
    }
}

/// What a change touches: its object, the node that it was on, the node that it is on.
#[derive(Debug, Clone, Copy)]
pub struct Marks([Mark; 3]);

impl Marks {
    pub fn of(change: &Change) -> Self {
        let object = mark(OBJECT, change.object.key.as_str());
        let node = |of: &Object| {
            let field = of.header.fields.iter().find(|(name, _)| *name == NODE);
            field.map_or(object, |(_, node)| mark(ON_NODE, node))
        };
        Self([object, change.previous.as_deref().map_or(object, node), node(&change.object)])
    }

    pub fn touch(&self, mark: Mark) -> bool {
        self.0.contains(&mark)
    }
}

/// What the watchers of a topic share.
#[derive(Debug)]
pub struct Shared {
    pub mark: Mark,
    changed: watch::Sender<Revision>,
    /// The last change of this topic that the history has let go.
    floor: AtomicU64,
}

impl Shared {
    /// # Errors
    /// When the history has let go of something of this topic after the revision.
    pub fn reaches(&self, cursor: Revision) -> Result<(), Expired> {
        Expired::unless_from(self.floor.load(Ordering::Acquire), cursor)
    }

    pub fn subscribe(&self) -> watch::Receiver<Revision> {
        self.changed.subscribe()
    }

    pub fn wake(&self, revision: Revision) {
        self.changed.send_replace(revision);
    }
}

/// The topics of a collection that somebody watches.
#[derive(Debug, Default)]
pub struct Topics(HashMap<Mark, Arc<Shared>>);

impl Topics {
    pub fn join(&mut self, topic: &Topic) -> Arc<Shared> {
        let mark = topic.mark();
        let made = || Arc::new(Shared { mark, changed: watch::channel(0).0, floor: AtomicU64::new(0) });
        self.0.entry(mark).or_insert_with(made).clone()
    }

    pub fn all(&self) -> impl Iterator<Item = &Arc<Shared>> {
        self.0.values()
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Somebody watches this topic no longer.
    pub fn leave(&mut self, shared: &Arc<Shared>) {
        // The one here, and the one that leaves.
        if Arc::strong_count(shared) <= 2 {
            self.0.remove(&shared.mark);
        }
        if self.0.is_empty() {
            self.0 = HashMap::new();
        }
    }

    /// Those that a change touches.
    pub fn touched(&self, marks: Marks) -> Vec<Arc<Shared>> {
        let marks = &marks.0;
        let different = marks.iter().enumerate().filter(|(at, mark)| !marks[..*at].contains(mark));
        different.filter_map(|(_, mark)| self.0.get(mark).cloned()).collect()
    }

    /// The history lets go of a change.
    pub fn forget(&self, marks: Marks, revision: Revision) {
        for shared in self.touched(marks) {
            shared.floor.store(revision, Ordering::Release);
        }
    }
}
