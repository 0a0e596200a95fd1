//! Which parts of a range of pods are free. Pure.
//!
//! A part that was chosen counts as taken from then on, so that nodes that come together get different ones at the first try; it
//! is given back when the choice was refused.

use std::collections::HashMap;
use std::ops::Range;

use ipnetwork::IpNetwork;

use crate::pod_ranges::PodRanges;

/// See the module's text.
#[derive(Debug)]
pub struct Parts {
    ranges: PodRanges,
    /// How many ranges lie in each part: more than one where nodes were given theirs by hand.
    used: Vec<u32>,
    /// By node, what it has.
    held: HashMap<String, Vec<IpNetwork>>,
    /// By node, what it is being given.
    chosen: HashMap<String, IpNetwork>,
    /// Where the next search begins.
    next: usize,
}

impl Parts {
    pub fn new(ranges: PodRanges) -> Self {
        let used = vec![0; ranges.count()];
        Self { ranges, used, held: HashMap::new(), chosen: HashMap::new(), next: 0 }
    }

    /// A node has these ranges now; `None` when it is gone.
    pub fn set(&mut self, node: &str, ranges: Option<&[IpNetwork]>) {
        if ranges.is_none_or(|ranges| !ranges.is_empty()) {
            self.give_back(node);
        }
        for range in self.held.remove(node).unwrap_or_default() {
            self.count(range, Use::Ends);
        }
        for range in ranges.unwrap_or_default() {
            self.count(*range, Use::Begins);
        }
        if let Some(ranges) = ranges.filter(|ranges| !ranges.is_empty()) {
            self.held.insert(node.to_owned(), ranges.to_vec());
        }
    }

    /// A part for a node: the one it is being given, or the first free one after what was chosen last.
    pub fn choose(&mut self, node: &str) -> Option<IpNetwork> {
        if let Some(range) = self.chosen.get(node) {
            return Some(*range);
        }
        let places = (self.next..self.used.len()).chain(0..self.next);
        let place = places.into_iter().find(|place| self.used[*place] == 0)?;
        let range = self.ranges.part(place)?;
        self.next = place + 1;
        self.count(range, Use::Begins);
        self.chosen.insert(node.to_owned(), range);
        Some(range)
    }

    /// What was chosen for a node is not given to it.
    pub fn give_back(&mut self, node: &str) {
        if let Some(range) = self.chosen.remove(node) {
            self.count(range, Use::Ends);
        }
    }

    fn count(&mut self, range: IpNetwork, what: Use) {
        let Range { start, end } = self.ranges.places(range);
        for used in &mut self.used[start..end] {
            match what {
                Use::Begins => *used += 1,
                Use::Ends => *used -= 1,
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Use {
    Begins,
    Ends,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    fn parts() -> Parts {
        Parts::new(PodRanges::new(cidr("10.244.0.0/22"), None).unwrap())
    }

    #[test]
    fn a_free_part_is_given() {
        let free = |taken: &[&str]| {
            let mut parts = parts();
            for (index, range) in taken.iter().enumerate() {
                parts.set(&index.to_string(), Some(&[cidr(range)]));
            }
            parts.choose("n")
        };
        assert_eq!(free(&[]), Some(cidr("10.244.0.0/24")));
        assert_eq!(free(&["10.244.0.0/24", "10.244.2.0/24"]), Some(cidr("10.244.1.0/24")));
        assert_eq!(free(&["10.244.0.0/23", "10.244.2.128/25"]), Some(cidr("10.244.3.0/24")), "parts of other sizes");
        assert_eq!(free(&["10.244.0.0/16"]), None);
        assert_eq!(free(&["10.0.0.0/24", "10.255.0.0/24"]), Some(cidr("10.244.0.0/24")), "ranges from elsewhere");
    }

    #[test]
    fn nodes_that_come_together_get_different_parts() {
        let mut parts = parts();
        let given: Vec<Option<String>> =
            ["a", "b", "c", "d", "e"].map(|node| parts.choose(node).map(|range| range.to_string())).into();
        assert_eq!(
            given,
            ["10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24"]
                .map(|range| Some(range.to_owned()))
                .into_iter()
                .chain([None])
                .collect::<Vec<_>>()
        );
        assert_eq!(parts.choose("b"), Some(cidr("10.244.1.0/24")), "it is asked again before it is seen");
        // Seen, and asked about by others.
        parts.set("b", Some(&[cidr("10.244.1.0/24")]));
        parts.set("a", Some(&[]));
        assert_eq!(parts.choose("e"), None);
        parts.set("b", None);
        assert_eq!(parts.choose("e"), Some(cidr("10.244.1.0/24")));
        parts.give_back("c");
        parts.give_back("c");
        assert_eq!(parts.choose("f"), Some(cidr("10.244.2.0/24")));
        assert!(parts.used.iter().all(|used| *used == 1), "{:?}", parts.used);
    }

    #[test]
    fn what_was_refused_is_not_what_is_tried_next() {
        let mut parts = parts();
        assert_eq!(parts.choose("a"), Some(cidr("10.244.0.0/24")));
        parts.give_back("a");
        assert_eq!(parts.choose("a"), Some(cidr("10.244.1.0/24")));
    }
}
