//! JSON patch (RFC 6902).

use serde_json::Value;

use crate::budget::{Exceeded, Meter};
use crate::decode::json::Json;

#[derive(Debug, Clone, PartialEq)]
pub enum Operation {
    Add(Pointer, Value),
    Remove(Pointer),
    Replace(Pointer, Value),
    Move(Pointer, Pointer),
    Copy(Pointer, Pointer),
    Test(Pointer, Value),
    /// Anything else, which can never be done.
    Unknown,
}

type Pointer = Vec<String>;

/// Why a body is no list of operations.
#[derive(Debug, PartialEq)]
pub enum Unread {
    /// The text of Go's decoder.
    Text(String),
    Exceeded(Exceeded),
}

#[derive(Debug, PartialEq)]
pub enum Refused {
    /// An operation that cannot be done; upstream does not tell the client which.
    Impossible,
    Exceeded(Exceeded),
}

use Refused::Impossible;

impl From<Exceeded> for Refused {
    fn from(limit: Exceeded) -> Self {
        Self::Exceeded(limit)
    }
}

/// The operations of a patch body.
pub fn operations(node: &Json, meter: &Meter) -> Result<Vec<Operation>, Unread> {
    let Value::Array(items) = node.to_value() else {
        let kind = node.go_kind();
        return Err(Unread::Text(format!(
            "json: cannot unmarshal {kind} into Go value of type []handlers.jsonPatchOp"
        )));
    };
    meter.operations(items.len()).map_err(Unread::Exceeded)?;
    Ok(items.iter().map(operation).collect())
}

fn operation(item: &Value) -> Operation {
    let text = |name: &str| item[name].as_str().unwrap_or_default();
    let path = pointer(text("path"));
    let value = item.get("value").cloned().unwrap_or(Value::Null);
    match text("op") {
        "add" => Operation::Add(path, value),
        "remove" => Operation::Remove(path),
        "replace" => Operation::Replace(path, value),
        "move" => Operation::Move(pointer(text("from")), path),
        "copy" => Operation::Copy(pointer(text("from")), path),
        "test" => Operation::Test(path, value),
        _ => Operation::Unknown,
    }
}

fn pointer(text: &str) -> Pointer {
    text.split('/').skip(1).map(|part| part.replace("~1", "/").replace("~0", "~")).collect()
}

/// All operations or none.
pub fn apply(current: &Value, operations: &[Operation], meter: &mut Meter) -> Result<Value, Refused> {
    let mut document = Document { root: current.clone(), meter };
    operations.iter().try_for_each(|operation| document.take(operation))?;
    Ok(document.root)
}

struct Document<'a> {
    root: Value,
    meter: &'a mut Meter,
}

impl Document<'_> {
    fn take(&mut self, operation: &Operation) -> Result<(), Refused> {
        match operation {
            Operation::Add(path, value) => self.add(path, value.clone()),
            Operation::Remove(path) => self.remove(path).map(drop),
            Operation::Replace(path, value) => {
                self.meter.place(path.len(), value)?;
                *find_mut(&mut self.root, path)? = value.clone();
                Ok(())
            }
            Operation::Move(from, path) => {
                let value = self.remove(from)?;
                self.add(path, value)
            }
            Operation::Copy(from, path) => {
                let value = find(&self.root, from)?;
                // Measured before it is copied, as its text is long.
                self.meter.copy(text_length(value))?;
                let value = value.clone();
                self.add(path, value)
            }
            Operation::Test(path, value) => self.test(path, value),
            Operation::Unknown => Err(Impossible),
        }
    }

    fn test(&self, path: &[String], value: &Value) -> Result<(), Refused> {
        match find(&self.root, path) {
            Ok(found) if found == value => Ok(()),
            Err(_) if value.is_null() => Ok(()),
            _ => Err(Impossible),
        }
    }

    fn add(&mut self, path: &[String], value: Value) -> Result<(), Refused> {
        self.meter.place(path.len(), &value)?;
        let Some((last, parents)) = path.split_last() else {
            self.root = value;
            return Ok(());
        };
        match find_mut(&mut self.root, parents)? {
            Value::Object(map) => {
                map.insert(last.clone(), value);
                Ok(())
            }
            Value::Array(items) if last == "-" => {
                items.push(value);
                Ok(())
            }
            Value::Array(items) => {
                let at = index(last, items.len())?;
                let behind = items.len().checked_sub(at).ok_or(Impossible)?;
                self.meter.shift(behind)?;
                items.insert(at, value);
                Ok(())
            }
            _ => Err(Impossible),
        }
    }

    fn remove(&mut self, path: &[String]) -> Result<Value, Refused> {
        let (last, parents) = path.split_last().ok_or(Impossible)?;
        match find_mut(&mut self.root, parents)? {
            Value::Object(map) => map.remove(last).ok_or(Impossible),
            Value::Array(items) => {
                let at = index(last, items.len())?;
                if at >= items.len() {
                    return Err(Impossible);
                }
                self.meter.shift(items.len() - at)?;
                Ok(items.remove(at))
            }
            _ => Err(Impossible),
        }
    }
}

/// Bytes of a value as JSON, without writing it.
fn text_length(value: &Value) -> usize {
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    serde_json::to_writer(&mut count, value).expect("a tree of JSON can be written, and counting does not fail");
    count.0
}

fn find<'a>(root: &'a Value, path: &[String]) -> Result<&'a Value, Refused> {
    path.iter().try_fold(root, |at, step| match at {
        Value::Object(map) => map.get(step).ok_or(Impossible),
        Value::Array(items) => items.get(index(step, items.len())?).ok_or(Impossible),
        _ => Err(Impossible),
    })
}

fn find_mut<'a>(root: &'a mut Value, path: &[String]) -> Result<&'a mut Value, Refused> {
    path.iter().try_fold(root, |at, step| match at {
        Value::Object(map) => map.get_mut(step).ok_or(Impossible),
        Value::Array(items) => {
            let index = index(step, items.len())?;
            items.get_mut(index).ok_or(Impossible)
        }
        _ => Err(Impossible),
    })
}

/// Negative indexes count from the end, as upstream's library allows.
fn index(step: &str, length: usize) -> Result<usize, Refused> {
    let n: i64 = step.parse().map_err(|_| Impossible)?;
    let length = i64::try_from(length).map_err(|_| Impossible)?;
    let from_start = if n < 0 { n.checked_add(length).ok_or(Impossible)? } else { n };
    usize::try_from(from_start).map_err(|_| Impossible)
}

#[cfg(test)]
mod tests {
    use super::super::tests::any_json;
    use super::*;
    use crate::budget::Budget;
    use proptest::prelude::*;
    use serde_json::json;

    fn run(current: Value, patch: Value) -> Result<Value, Refused> {
        let mut meter = Budget::CLIENT.meter();
        let operations = operations(&Json::from(&patch), &meter).unwrap();
        apply(&current, &operations, &mut meter)
    }

    #[test]
    fn copies_that_double_each_other_end_at_the_budget() {
        let copies: Vec<Value> = (0..40).map(|i| json!({"op": "copy", "from": "", "path": format!("/c{i}")})).collect();
        let object = json!({"text": "x".repeat(1000)});
        assert!(matches!(run(object, copies.into()), Err(Refused::Exceeded(Exceeded::Copied { .. }))));
    }

    #[test]
    fn a_patch_cannot_build_what_may_not_be_sent() {
        let deeper: Vec<Value> = (0..12).map(|_| json!({"op": "copy", "from": "/a", "path": "/a/a"})).collect();
        assert!(run(json!({"a": {}}), deeper.into()).is_ok(), "each copy takes the place of the one before");
        let steps = |n: usize| "/a".repeat(n);
        let nest: Vec<Value> =
            (0..8).map(|i| json!({"op": "copy", "from": "/a", "path": steps(1 << i) + "/a"})).collect();
        assert_eq!(run(json!({"a": {}}), nest.into()), Err(Refused::Exceeded(Exceeded::Depth(100))));
        let front: Vec<Value> = (0..2000).map(|_| json!({"op": "add", "path": "/a/0", "value": 1})).collect();
        let long = json!({"a": vec![0; 10_000]});
        assert!(matches!(run(long, front.into()), Err(Refused::Exceeded(Exceeded::Shifted(_)))));
    }

    #[test]
    fn operations_are_counted() {
        let many = vec![json!({"op": "test", "path": "/x"}); 10_001];
        let refused = operations(&Json::from(&Value::from(many)), &Budget::CLIENT.meter()).unwrap_err();
        let limit = Exceeded::Operations { limit: 10_000, given: 10_001 };
        assert_eq!(refused, Unread::Exceeded(limit));
        let told = "The allowed maximum operations in a JSON patch is 10000, got 10001";
        assert_eq!(limit.to_string(), told);
    }

    #[test]
    fn operations_do_what_they_say() {
        let patch = json!([
            {"op": "test", "path": "/a/0", "value": 1},
            {"op": "add", "path": "/a/-", "value": 3},
            {"op": "add", "path": "/a/0", "value": 0},
            {"op": "replace", "path": "/b~1c", "value": "y"},
            {"op": "copy", "from": "/a/0", "path": "/d"},
            {"op": "move", "from": "/d", "path": "/e"},
            {"op": "remove", "path": "/a/-1"},
        ]);
        assert_eq!(run(json!({"a": [1], "b/c": "x"}), patch), Ok(json!({"a": [0, 1], "b/c": "y", "e": 0})));
    }

    #[test]
    fn what_is_not_there_is_refused() {
        for patch in [
            json!([{"op": "remove", "path": "/x"}]),
            json!([{"op": "replace", "path": "/x", "value": 1}]),
            json!([{"op": "add", "path": "/x/y", "value": 1}]),
            json!([{"op": "add", "path": "/a/5", "value": 1}]),
            json!([{"op": "test", "path": "/a", "value": 1}]),
        ] {
            assert_eq!(run(json!({"a": [1]}), patch.clone()), Err(Impossible), "{patch}");
        }
    }

    proptest! {
        #[test]
        fn adding_and_removing_returns(value in any_json(), map in any_json()) {
            let before = json!({"m": map});
            let patch = json!([{"op": "add", "path": "/zz", "value": value}, {"op": "test", "path": "/zz", "value": value},
                {"op": "remove", "path": "/zz"}]);
            prop_assert_eq!(run(before.clone(), patch).unwrap(), before);
        }
    }
}
