//! The layout of each pinned map, and how the contents of an earlier one become those of the next.
//!
//! The number of a layout is part of the pin's name. A map whose layout stays is adopted as it is; one that changed gets a step
//! here, through which `migrate` carries what an earlier version left.

/// An element of a map, as the kernel keeps it. Arrays have their index as key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raw {
    pub key: Vec<u8>,
    pub value: Vec<u8>,
}

/// An element of one layout in the layout after it; none where it has no meaning there.
pub type Step = fn(Raw) -> Option<Raw>;

/// Who writes a map, and so when its contents must be read to have them whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carry {
    /// User space alone, which does nothing else meanwhile.
    Once,
    /// The programs: what the old ones wrote while they were being replaced is fetched afterwards.
    Twice,
    /// Gone within a second anyway.
    Never,
    /// Lives in sockets, where no map call reaches it: this layout cannot change.
    Sockets,
}

#[derive(Debug, Clone, Copy)]
pub struct Layout {
    pub map: &'static str,
    pub carry: Carry,
    /// From each earlier layout to the next; the first was number 1.
    pub steps: &'static [Step],
}

impl Layout {
    pub fn version(&self) -> u32 {
        self.steps.len() as u32 + 1
    }

    pub fn pin_name(&self) -> String {
        pin_name(self.version(), self.map)
    }

    /// An element of layout `version` in this one.
    pub fn convert(&self, version: u32, raw: Raw) -> Option<Raw> {
        let steps = self.steps.get(version.checked_sub(1)? as usize..)?;
        steps.iter().try_fold(raw, |raw, step| step(raw))
    }
}

pub(crate) fn pin_name(version: u32, map: &str) -> String {
    format!("v{version}_{map}")
}

/// Layout number and map of a pin's name.
pub(crate) fn parse_pin_name(name: &str) -> Option<(u32, &str)> {
    let (version, map) = name.strip_prefix('v')?.split_once('_')?;
    Some((version.parse().ok()?, map))
}

/// A layout of another number and the same shape.
pub fn renumbered(raw: Raw) -> Option<Raw> {
    Some(raw)
}

/// Every map, in the layout of this version.
pub const CURRENT: &[Layout] = if cfg!(feature = "next-layout") { NEXT } else { THIS };

const THIS: &[Layout] = &layouts(Age::Now);
/// What a later version may bring, for tests of upgrades: every map that can change is another one.
pub const NEXT: &[Layout] = &layouts(Age::Later);

#[derive(Clone, Copy)]
enum Age {
    Now,
    Later,
}

/// Elements of layout 1 that have no meaning by themselves: [`earlier`](crate::migrate) takes up what can be had from them.
fn dropped(_: Raw) -> Option<Raw> {
    None
}

/// Layout 1 of the node's settings ended before the epoch, which never is 0.
fn node_with_epoch(raw: Raw) -> Option<Raw> {
    const ENDED: usize = 40;
    let mut value = raw.value;
    if value.len() != ENDED {
        return None;
    }
    value.extend(1u32.to_ne_bytes());
    value.resize(size_of::<proxy_common::NodeConfig>(), 0);
    Some(Raw { value, ..raw })
}

/// A map's own steps stand in its row, and again with one more for the version to come.
const fn layouts(age: Age) -> [Layout; 37] {
    use Carry::{Never, Once, Sockets, Twice};
    const fn row(age: Age, map: &'static str, carry: Carry, steps: [&'static [Step]; 2]) -> Layout {
        Layout { map, carry, steps: steps[age as usize] }
    }
    const SAME: [&[Step]; 2] = [&[], &[renumbered]];
    const DROPPED: [&[Step]; 2] = [&[dropped], &[dropped, renumbered]];
    const NODE: [&[Step]; 2] = [&[node_with_epoch], &[node_with_epoch, renumbered]];
    const FIXED: [&[Step]; 2] = [&[], &[]];
    [
        row(age, "FRONTENDS", Once, DROPPED),
        row(age, "NODE_PORTS", Once, SAME),
        row(age, "SLOTS", Once, DROPPED),
        row(age, "AFFINITY_OF", Once, SAME),
        row(age, "SETS", Once, SAME),
        row(age, "BACKENDS", Once, DROPPED),
        row(age, "SOURCE_RANGES", Once, SAME),
        row(age, "AFFINITY", Twice, DROPPED),
        row(age, "LOCAL_NETNS", Once, SAME),
        row(age, "LED", Twice, SAME),
        row(age, "PODS", Once, SAME),
        row(age, "SHARES", Never, SAME),
        row(age, "NODE_ADDRESSES", Once, SAME),
        row(age, "NODE", Once, NODE),
        row(age, "CARRYING", Never, SAME),
        row(age, "FLOWS", Twice, DROPPED),
        // Made anew from the flows.
        row(age, "SNAT", Never, SAME),
        row(age, "EXPOSED", Twice, SAME),
        // Without it, what is not assured ends by its own deadline.
        row(age, "NEWEST", Never, SAME),
        row(age, "BEGUN", Never, SAME),
        row(age, "FRAGMENTS", Never, SAME),
        row(age, "LOCAL_NETNS6", Once, SAME),
        row(age, "PODS6", Once, SAME),
        row(age, "SHARES6", Never, SAME),
        row(age, "NODE_ADDRESSES6", Once, SAME),
        row(age, "NODE6", Once, SAME),
        row(age, "FLOWS6", Twice, SAME),
        row(age, "SNAT6", Never, SAME),
        row(age, "EXPOSED6", Twice, SAME),
        row(age, "NEWEST6", Never, SAME),
        row(age, "BEGUN6", Never, SAME),
        row(age, "FRAGMENTS6", Never, SAME),
        row(age, "COUNTERS", Once, SAME),
        row(age, "CONNECTED", Sockets, FIXED),
        row(age, "SENDERS", Sockets, FIXED),
        row(age, "ORIGINS", Sockets, FIXED),
        row(age, "PEERS", Sockets, FIXED),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(key: &[u8]) -> Raw {
        Raw { key: key.to_vec(), value: Vec::new() }
    }

    #[test]
    fn pin_names_tell_layout_and_map() {
        let layout = Layout { map: "NEW_FLOWS", carry: Carry::Twice, steps: &[renumbered, renumbered] };
        assert_eq!(layout.pin_name(), "v3_NEW_FLOWS");
        assert_eq!(parse_pin_name("v3_NEW_FLOWS"), Some((3, "NEW_FLOWS")));
        for other in ["NEW_FLOWS", "vx_FLOWS", "v1FLOWS", ""] {
            assert_eq!(parse_pin_name(other), None, "{other}");
        }
    }

    #[test]
    fn an_element_takes_every_step_from_its_own_layout_on() {
        fn append<const LETTER: u8>(mut raw: Raw) -> Option<Raw> {
            raw.key.push(LETTER);
            Some(raw)
        }
        fn refuse_long(raw: Raw) -> Option<Raw> {
            (raw.key.len() < 3).then_some(raw)
        }
        let steps: &[Step] = &[append::<b'a'>, append::<b'b'>, refuse_long];
        let layout = Layout { map: "X", carry: Carry::Twice, steps };
        assert_eq!(layout.convert(1, raw(b"")), Some(raw(b"ab")));
        assert_eq!(layout.convert(2, raw(b"x")), Some(raw(b"xb")));
        assert_eq!(layout.convert(1, raw(b"x")), None);
        assert_eq!(layout.convert(4, raw(b"long")), Some(raw(b"long")));
        assert_eq!(layout.convert(0, raw(b"")), None);
    }

    #[test]
    fn what_lives_in_sockets_keeps_its_layout() {
        for layout in THIS.iter().chain(NEXT).filter(|layout| layout.carry == Carry::Sockets) {
            assert_eq!(layout.version(), 1, "{}: sockets keep values of the old layout", layout.map);
        }
    }
}
