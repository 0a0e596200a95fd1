//! LimitRanges.

use serde_json::Value;

use super::{Behaviour, DEFAULT, Put};
use crate::default::{Object, text};

pub const BEHAVIOUR: Behaviour =
    Behaviour { defaults: &[("core.v1.LimitRangeItem", default)], put: Put::Creates, ..DEFAULT };

fn default(map: &mut Object) {
    if text(map, "type") != "Container" {
        return;
    }
    let part = |map: &Object, name: &str| map.get(name).and_then(Value::as_object).cloned().unwrap_or_default();
    let mut default = part(map, "default");
    for (name, amount) in part(map, "max") {
        default.entry(name).or_insert(amount);
    }
    let mut request = part(map, "defaultRequest");
    for (name, amount) in default.iter().filter(|(name, _)| !part(map, "min").contains_key(*name)) {
        request.entry(name.clone()).or_insert(amount.clone());
    }
    for (name, amount) in part(map, "min") {
        request.entry(name).or_insert(amount);
    }
    for (name, list) in [("default", default), ("defaultRequest", request)] {
        if !list.is_empty() {
            map.insert(name.into(), Value::Object(list));
        }
    }
}
