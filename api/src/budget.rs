//! How much of what clients send is read: one set of limits, and the meter by which every reader of client bytes keeps
//! to it.
//!
//! A body may be small and cost much: nesting costs stack, aliases and copies multiply, a list of ones takes twenty
//! times its text. Each limit is far beyond what Kubernetes' own objects need.

use serde_json::Value;
use thiserror::Error;

/// Limits of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Lists and objects inside each other. Readers of stored objects take somewhat more (see [`Budget::CLIENT`]).
    pub depth: usize,
    /// Values of a body: scalars, lists and objects, those that aliases repeat included.
    pub nodes: usize,
    /// Bytes of a body.
    pub body: usize,
    /// Operations of a JSON patch.
    pub operations: usize,
    /// Bytes that the copies of a JSON patch may add.
    pub copied: usize,
    /// List items that a JSON patch may move out of its way.
    pub shifted: usize,
    /// Requirements of a selector, its values included.
    pub requirements: usize,
    /// Unknown and duplicate fields that are told; upstream stops at as many.
    pub findings: usize,
    /// Bytes of one frame or message of a stream into a container.
    pub frame: usize,
    /// Bytes of one stream's headers, decompressed.
    pub headers: usize,
}

impl Budget {
    /// What every client gets. `depth` leaves room below the 127 levels that serde_json reads: a watch event and a list
    /// wrap an object, and field ownership is a few levels deeper than what it is about.
    pub const CLIENT: Self = Self {
        depth: 100,
        nodes: 500_000,
        body: 3 << 20,
        operations: 10_000,
        copied: 3 << 20,
        shifted: 10_000_000,
        requirements: 10_000,
        findings: 100,
        frame: 1 << 20,
        headers: 16 << 10,
    };

    pub fn meter(self) -> Meter {
        Meter { budget: self, depth: 0, nodes: 0, copied: 0, shifted: 0 }
    }
}

/// Which limit was met; the text is what the client reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Exceeded {
    #[error("exceeded max depth: lists and objects may be nested {0} deep")]
    Depth(usize),
    #[error("the body holds too many values: the limit is {0}, those that aliases repeat included")]
    Nodes(usize),
    #[error("The allowed maximum operations in a JSON patch is {limit}, got {given}")]
    Operations { limit: usize, given: usize },
    #[error("Unable to complete copy, the accumulated size increase of copy is {given}, exceeding the limit {limit}")]
    Copied { limit: usize, given: usize },
    #[error("the patch moves too many list items: the limit is {0}")]
    Shifted(usize),
    #[error("the selector has too many requirements: the limit is {0}")]
    Requirements(usize),
}

/// Where an exceeded limit ends up among the texts of a reader.
impl From<Exceeded> for String {
    fn from(exceeded: Exceeded) -> String {
        exceeded.to_string()
    }
}

/// What one request has spent so far. What was refused counts too: whoever meets a limit stops, and refuses the body.
#[derive(Debug)]
pub struct Meter {
    budget: Budget,
    depth: usize,
    nodes: usize,
    copied: usize,
    shifted: usize,
}

impl Meter {
    /// One more value.
    ///
    /// # Errors
    /// [`Exceeded::Nodes`] when it is one too many.
    pub fn node(&mut self) -> Result<(), Exceeded> {
        self.nodes(1)
    }

    fn nodes(&mut self, count: usize) -> Result<(), Exceeded> {
        self.nodes = self.nodes.saturating_add(count);
        if self.nodes > self.budget.nodes { Err(Exceeded::Nodes(self.budget.nodes)) } else { Ok(()) }
    }

    /// Into a list or object, which is a value itself.
    ///
    /// # Errors
    /// [`Exceeded::Depth`] when this is nested too deep, [`Exceeded::Nodes`] when it is one value too many.
    pub fn enter(&mut self) -> Result<(), Exceeded> {
        self.depth += 1;
        self.node()?;
        self.fits(0)
    }

    pub fn leave(&mut self) {
        self.depth = self.depth.saturating_sub(1);
    }

    /// Something `deep` levels high put here.
    fn fits(&self, deep: usize) -> Result<(), Exceeded> {
        if self.depth + deep > self.budget.depth { Err(Exceeded::Depth(self.budget.depth)) } else { Ok(()) }
    }

    /// A value repeated here that is counted already.
    ///
    /// # Errors
    /// [`Exceeded::Depth`] when its inside lies too deep here, [`Exceeded::Nodes`] when it holds too many values.
    pub fn repeat(&mut self, size: Size) -> Result<(), Exceeded> {
        self.fits(size.depth)?;
        self.nodes(size.nodes)
    }

    /// A value put `deep` levels below the root.
    ///
    /// # Errors
    /// [`Exceeded::Depth`] when its inside lies too deep here, [`Exceeded::Nodes`] when it holds too many values.
    pub fn place(&mut self, deep: usize, value: &Value) -> Result<(), Exceeded> {
        let size = Size::of(value, self.budget.depth)?;
        self.fits(deep + size.depth)?;
        self.nodes(size.nodes)
    }

    /// A JSON patch of so many operations.
    ///
    /// # Errors
    /// [`Exceeded::Operations`] when a patch may not have as many.
    pub fn operations(&self, given: usize) -> Result<(), Exceeded> {
        let limit = self.budget.operations;
        if given > limit { Err(Exceeded::Operations { limit, given }) } else { Ok(()) }
    }

    /// A copy of so many bytes.
    ///
    /// # Errors
    /// [`Exceeded::Copied`] when the copies so far add too much.
    pub fn copy(&mut self, bytes: usize) -> Result<(), Exceeded> {
        self.copied = self.copied.saturating_add(bytes);
        let limit = self.budget.copied;
        if self.copied > limit { Err(Exceeded::Copied { limit, given: self.copied }) } else { Ok(()) }
    }

    /// So many items make room for one, or close the gap it left.
    ///
    /// # Errors
    /// [`Exceeded::Shifted`] when too many were moved so far.
    pub fn shift(&mut self, items: usize) -> Result<(), Exceeded> {
        self.shifted = self.shifted.saturating_add(items);
        if self.shifted > self.budget.shifted { Err(Exceeded::Shifted(self.budget.shifted)) } else { Ok(()) }
    }
}

/// How high a value is and how much it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub depth: usize,
    pub nodes: usize,
}

impl Size {
    /// Without recursion: the value may be deeper than a stack.
    fn of(value: &Value, limit: usize) -> Result<Self, Exceeded> {
        let mut size = Self { depth: 0, nodes: 0 };
        let mut open = vec![(value, 1)];
        while let Some((value, depth)) = open.pop() {
            size.nodes += 1;
            if value.is_array() || value.is_object() {
                size.depth = size.depth.max(depth);
                if depth > limit {
                    return Err(Exceeded::Depth(limit));
                }
            }
            match value {
                Value::Array(items) => open.extend(items.iter().map(|item| (item, depth + 1))),
                Value::Object(map) => open.extend(map.values().map(|item| (item, depth + 1))),
                _ => {}
            }
        }
        Ok(size)
    }
}

/// Holds a finished object against the depth that clients may send: what the server added may have made it deeper.
///
/// # Errors
/// [`Exceeded::Depth`] when it is deeper; its values are not counted.
pub fn check_depth(object: &Value) -> Result<(), Exceeded> {
    Size::of(object, Budget::CLIENT.depth).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn depth_counts_what_is_open() {
        let mut meter = Budget { depth: 2, ..Budget::CLIENT }.meter();
        assert_eq!((meter.enter(), meter.enter()), (Ok(()), Ok(())));
        meter.leave();
        assert_eq!((meter.enter(), meter.enter()), (Ok(()), Err(Exceeded::Depth(2))));
    }

    #[test]
    fn repeated_values_count_again() {
        let mut meter = Budget { nodes: 10, ..Budget::CLIENT }.meter();
        let size = Size { depth: 1, nodes: 6 };
        assert_eq!((meter.repeat(size), meter.repeat(size)), (Ok(()), Err(Exceeded::Nodes(10))));
    }

    #[test]
    fn a_finished_object_is_measured() {
        let nest = |levels: usize| (0..levels).fold(json!(1), |inner, _| json!([inner]));
        assert_eq!(Size::of(&json!({"a": [1, {}]}), 9), Ok(Size { depth: 3, nodes: 4 }));
        assert_eq!((check_depth(&nest(100)), check_depth(&nest(101))), (Ok(()), Err(Exceeded::Depth(100))));
    }
}
