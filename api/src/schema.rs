//! The types behind the kinds: fields with their shapes, wire tags, list and patch rules, interned from one compact table.

/// The schema of an object.
#[derive(Debug, Clone, Copy)]
pub enum Schema {
    /// Metadata is known, everything else is kept as it comes.
    Open,
}
