//! JSON patch (RFC 6902).

use serde_json::Value;

use crate::decode::json::Node;

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

/// An operation that cannot be done; upstream does not tell the client which.
#[derive(Debug, PartialEq)]
pub struct Refused;

/// The operations of a patch body; the error is the text of Go's decoder.
pub fn operations(node: &Node) -> Result<Vec<Operation>, String> {
    let Value::Array(items) = node.to_value() else {
        return Err(format!("json: cannot unmarshal {} into Go value of type []handlers.jsonPatchOp", node.go_kind()));
    };
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
pub fn apply(current: &Value, operations: &[Operation]) -> Result<Value, Refused> {
    let mut out = current.clone();
    for operation in operations {
        match operation {
            Operation::Add(path, value) => add(&mut out, path, value.clone())?,
            Operation::Remove(path) => {
                remove(&mut out, path)?;
            }
            Operation::Replace(path, value) => *find(&mut out, path)? = value.clone(),
            Operation::Move(from, path) => {
                let value = remove(&mut out, from)?;
                add(&mut out, path, value)?;
            }
            Operation::Copy(from, path) => {
                let value = find(&mut out, from)?.clone();
                add(&mut out, path, value)?;
            }
            Operation::Test(path, value) => test(&mut out, path, value)?,
            Operation::Unknown => return Err(Refused),
        }
    }
    Ok(out)
}

fn test(root: &mut Value, path: &[String], value: &Value) -> Result<(), Refused> {
    let found = find(root, path).map(|v| v.clone());
    match found {
        Ok(found) if found == *value => Ok(()),
        Err(Refused) if value.is_null() => Ok(()),
        _ => Err(Refused),
    }
}

fn find<'a>(root: &'a mut Value, path: &[String]) -> Result<&'a mut Value, Refused> {
    path.iter().try_fold(root, |at, step| match at {
        Value::Object(map) => map.get_mut(step).ok_or(Refused),
        Value::Array(items) => {
            let index = index(step, items.len())?;
            items.get_mut(index).ok_or(Refused)
        }
        _ => Err(Refused),
    })
}

/// Negative indexes count from the end, as upstream's library allows.
fn index(step: &str, length: usize) -> Result<usize, Refused> {
    let n: i64 = step.parse().map_err(|_| Refused)?;
    let length = i64::try_from(length).map_err(|_| Refused)?;
    usize::try_from(if n < 0 { n + length } else { n }).map_err(|_| Refused)
}

fn add(root: &mut Value, path: &[String], value: Value) -> Result<(), Refused> {
    let Some((last, parents)) = path.split_last() else {
        *root = value;
        return Ok(());
    };
    match find(root, parents)? {
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
            if at > items.len() {
                return Err(Refused);
            }
            items.insert(at, value);
            Ok(())
        }
        _ => Err(Refused),
    }
}

fn remove(root: &mut Value, path: &[String]) -> Result<Value, Refused> {
    let (last, parents) = path.split_last().ok_or(Refused)?;
    match find(root, parents)? {
        Value::Object(map) => map.remove(last).ok_or(Refused),
        Value::Array(items) => {
            let at = index(last, items.len())?;
            if at < items.len() { Ok(items.remove(at)) } else { Err(Refused) }
        }
        _ => Err(Refused),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::any_json;
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn run(current: Value, patch: Value) -> Result<Value, Refused> {
        apply(&current, &operations(&Node::from(&patch)).unwrap())
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
            assert_eq!(run(json!({"a": [1]}), patch.clone()), Err(Refused), "{patch}");
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
