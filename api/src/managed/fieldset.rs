//! Sets of field paths, in the wire form of `fieldsV1`: `f:name`, `k:{keys}`, `v:value`, and `.` for the path itself.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

/// Paths below one point: those that end here, and those that go on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSet {
    members: BTreeSet<String>,
    children: BTreeMap<String, FieldSet>,
}

impl FieldSet {
    /// Elements of a sort that nobody knows are left out; `None` where an element of a known one cannot be read.
    pub fn from_json(fields: &Value) -> Option<FieldSet> {
        let mut set = FieldSet::default();
        let fields = match fields {
            Value::Null => return Some(set),
            Value::Object(fields) => fields,
            _ => return None,
        };
        for (element, below) in fields.iter().filter(|(element, _)| *element != ".") {
            let Some(element) = element_of(element)? else { continue };
            let child = FieldSet::from_json(below)?;
            if child.is_empty() || below.get(".").is_some() {
                set.members.insert(element.clone());
            }
            if !child.is_empty() {
                set.children.insert(element, child);
            }
        }
        Some(set)
    }

    pub fn to_json(&self) -> Value {
        let mut out = Map::new();
        for element in self.members.iter().filter(|e| !self.children.contains_key(*e)) {
            out.insert(element.clone(), Value::Object(Map::new()));
        }
        for (element, child) in &self.children {
            let mut below = child.to_json();
            if let (Value::Object(map), true) = (&mut below, self.members.contains(element)) {
                map.insert(".".into(), Value::Object(Map::new()));
            }
            out.insert(element.clone(), below);
        }
        Value::Object(out)
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.children.values().all(FieldSet::is_empty)
    }

    pub fn insert<S: AsRef<str>>(&mut self, path: &[S]) {
        match path {
            [] => {}
            [last] => {
                self.members.insert(last.as_ref().to_string());
            }
            [first, rest @ ..] => self.children.entry(first.as_ref().to_string()).or_default().insert(rest),
        }
    }

    pub fn child(&self, element: &str) -> Option<&FieldSet> {
        self.children.get(element)
    }

    pub fn has(&self, element: &str) -> bool {
        self.members.contains(element)
    }

    pub fn union(&self, other: &FieldSet) -> FieldSet {
        let mut out = self.clone();
        out.members.extend(other.members.iter().cloned());
        for (element, child) in &other.children {
            let merged = out.children.get(element).map_or_else(|| child.clone(), |mine| mine.union(child));
            out.children.insert(element.clone(), merged);
        }
        out
    }

    pub fn intersection(&self, other: &FieldSet) -> FieldSet {
        self.combine(other, |mine, theirs| mine && theirs, |mine, theirs| theirs.map(|t| mine.intersection(t)))
    }

    pub fn difference(&self, other: &FieldSet) -> FieldSet {
        self.combine(
            other,
            |mine, theirs| mine && !theirs,
            |mine, theirs| Some(theirs.map_or_else(|| mine.clone(), |t| mine.difference(t))),
        )
    }

    /// Paths that `owned` neither has nor has anything below.
    pub fn difference_of_free(&self, owned: &FieldSet) -> FieldSet {
        let mut out = FieldSet::default();
        let free = |e: &&String| !owned.has(e) && owned.child(e).is_none_or(FieldSet::is_empty);
        out.members.extend(self.members.iter().filter(free).cloned());
        for (element, child) in &self.children {
            let left = owned.child(element).map_or_else(|| child.clone(), |o| child.difference_of_free(o));
            if !left.is_empty() {
                out.children.insert(element.clone(), left);
            }
        }
        out
    }

    /// Without these paths and everything below them.
    pub fn recursive_difference(&self, other: &FieldSet) -> FieldSet {
        let mut out = FieldSet::default();
        out.members.extend(self.members.iter().filter(|e| !other.members.contains(*e)).cloned());
        for (element, child) in self.children.iter().filter(|(e, _)| !other.members.contains(*e)) {
            let left = other.children.get(element).map_or_else(|| child.clone(), |o| child.recursive_difference(o));
            if !left.is_empty() {
                out.children.insert(element.clone(), left);
            }
        }
        out
    }

    fn combine(
        &self,
        other: &FieldSet,
        keep: impl Fn(bool, bool) -> bool,
        descend: impl Fn(&FieldSet, Option<&FieldSet>) -> Option<FieldSet>,
    ) -> FieldSet {
        let mut out = FieldSet::default();
        out.members.extend(self.members.iter().filter(|e| keep(true, other.members.contains(*e))).cloned());
        for (element, child) in &self.children {
            if let Some(left) = descend(child, other.children.get(element)).filter(|set| !set.is_empty()) {
                out.children.insert(element.clone(), left);
            }
        }
        out
    }

    /// Only paths without anything below them.
    pub fn leaves(&self) -> FieldSet {
        let mut out = FieldSet::default();
        let has_below = |e: &&String| self.children.get(*e).is_none_or(FieldSet::is_empty);
        out.members.extend(self.members.iter().filter(has_below).cloned());
        for (element, child) in &self.children {
            let leaves = child.leaves();
            if !leaves.is_empty() {
                out.children.insert(element.clone(), leaves);
            }
        }
        out
    }

    /// Every path, as conflicts print it: `.spec.ports[port=80,protocol="TCP"].name`.
    pub fn paths(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.collect("", &mut out);
        out
    }

    fn collect(&self, prefix: &str, out: &mut Vec<String>) {
        let elements: BTreeSet<&String> = self.members.iter().chain(self.children.keys()).collect();
        for element in elements {
            let path = format!("{prefix}{}", printed(element));
            if self.members.contains(element) {
                out.push(path.clone());
            }
            if let Some(child) = self.children.get(element) {
                child.collect(&path, out);
            }
        }
    }
}

/// A path element as people read it.
pub fn printed(element: &str) -> String {
    match element.split_once(':') {
        Some(("f", name)) => format!(".{name}"),
        Some(("k", keys)) => {
            let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
            let parts: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
            format!("[{}]", parts.join(","))
        }
        Some(("v", value)) => format!("[={value}]"),
        Some((_, index)) => format!("[{index}]"),
        None => element.to_string(),
    }
}

/// An element in the one form it is compared in; `Some(None)` when it is of a sort that nobody knows.
fn element_of(text: &str) -> Option<Option<String>> {
    let (sort, content) = text.split_at_checked(2)?;
    match sort {
        "f:" => Some(Some(text.to_owned())),
        "i:" => content.parse::<i64>().ok().map(|index| Some(format!("i:{index}"))),
        "v:" => serde_json::from_str::<Value>(content).ok().map(|value| Some(format!("v:{value}"))),
        "k:" => {
            let keys: BTreeMap<String, Value> = serde_json::from_str(content).ok()?;
            serde_json::to_string(&keys).ok().map(|keys| Some(format!("k:{keys}")))
        }
        _ => sort.ends_with(':').then_some(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn the_wire_form_survives() {
        let wire = json!({"f:data": {".": {}, "f:a": {}}, "f:spec": {"f:ports": {"k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}}}}});
        let set = FieldSet::from_json(&wire).unwrap();
        assert_eq!(set.to_json(), wire);
        assert_eq!(
            set.paths(),
            [".data", ".data.a", ".spec.ports[port=80,protocol=\"TCP\"]", ".spec.ports[port=80,protocol=\"TCP\"].port"]
        );
        assert!(!set.leaves().has("f:data"));
    }

    #[test]
    fn what_nobody_knows_is_left_out_and_what_cannot_be_read_refused() {
        let read = |fields: Value| FieldSet::from_json(&fields).map(|set| set.to_json());
        let odd = json!({"f:a": {"x:b": {"f:c": {}}}, "k:{\"b\": 1, \"a\": \"x\"}": {}, "v: 1": {}, "i:03": {}});
        let want = json!({"f:a": {}, "i:3": {}, "k:{\"a\":\"x\",\"b\":1}": {}, "v:1": {}});
        assert_eq!(read(odd), Some(want));
        for bad in ["", "f", "spec", "i:x", "k:1", "k:{", "v:", "v:{"] {
            assert_eq!(read(json!({"f:a": {bad: {}}})), None, "{bad}");
        }
        assert_eq!((read(json!({"f:a": 1})), read(json!([]))), (None, None));
    }

    fn sets() -> impl Strategy<Value = FieldSet> {
        proptest::collection::vec(proptest::collection::vec("f:[abc]", 1..4), 0..8).prop_map(|paths| {
            let mut set = FieldSet::default();
            paths.iter().for_each(|p| set.insert(p));
            set
        })
    }

    proptest! {
        #[test]
        fn set_laws(a in sets(), b in sets()) {
            prop_assert_eq!(a.union(&b), b.union(&a));
            prop_assert!(a.difference(&b).intersection(&b).is_empty());
            prop_assert_eq!(a.difference(&b).union(&a.intersection(&b)).to_json(), a.to_json());
            prop_assert_eq!(FieldSet::from_json(&a.to_json()).unwrap().to_json(), a.to_json());
        }
    }
}
