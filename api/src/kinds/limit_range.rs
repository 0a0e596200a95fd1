//! LimitRanges.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{Aspect, Behaviour, DEFAULT, Put};
use crate::default::{Object, text};
use crate::names::qualified_name;
use crate::quantity::Quantity;
use crate::validate::{At, Errors, resources};
use crate::value::entries;

pub const BEHAVIOUR: Behaviour = Behaviour {
    validate: Some(limit_range),
    defaults: &[("core.v1.LimitRangeItem", default)],
    put: Put::Creates,
    none: &[Aspect::Warnings],
    ..DEFAULT
};

type Amounts = BTreeMap<String, Quantity>;

/// The five lists of a limit.
struct Limit<'a> {
    at: At<'a>,
    lists: BTreeMap<&'static str, Amounts>,
}

fn limit_range(object: &Value, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for limit in At::of(object, "spec").at("limits").items() {
        let kind = limit.at("type");
        type_name(&kind, errors);
        if !seen.insert(kind.text()) {
            kind.duplicate(errors);
        }
        one(&limit, kind.text(), errors);
    }
}

fn type_name(kind: &At<'_>, errors: &mut Errors) {
    let complaints = qualified_name(kind.text());
    let standard = matches!(kind.text(), "Pod" | "Container" | "PersistentVolumeClaim");
    if complaints.is_empty() && !kind.text().contains('/') && !standard {
        kind.invalid("must be a standard limit type or fully qualified", errors);
    }
    kind.complain(complaints, errors);
}

fn one(limit: &At<'_>, kind: &str, errors: &mut Errors) {
    let mut read = Limit { at: limit.clone(), lists: BTreeMap::new() };
    let check = if matches!(kind, "Pod" | "Container") { resources::of_container } else { resources::known };
    let mut take = |field: &'static str, errors: &mut Errors| {
        let list = limit.at(field);
        for (name, amount) in list.entries() {
            let key = json!(name);
            check(&At::new(&key, amount.path()), errors);
        }
        let amounts =
            entries(list.value).filter_map(|(name, v)| Some((name.clone(), Quantity::parse(v.as_str()?).ok()?)));
        read.lists.insert(field, amounts.collect());
    };
    take("max", errors);
    take("min", errors);
    for field in ["default", "defaultRequest"] {
        match kind {
            "Pod" if !limit.at(field).is_empty() => {
                limit.at(field).forbidden("may not be specified when `type` is 'Pod'", errors);
            }
            "Pod" => {}
            _ => take(field, errors),
        }
    }
    let storage = |field: &str| limit.at(field).at("storage").is_given();
    if kind == "PersistentVolumeClaim" && !storage("min") && !storage("max") {
        let why = "either minimum or maximum storage value is required, but neither was provided";
        limit.at("limits").required(why, errors);
    }
    take("maxLimitRequestRatio", errors);
    let names: BTreeSet<String> = read.lists.values().flat_map(|list| list.keys().cloned()).collect();
    names.iter().for_each(|name| read.agree(name, errors));
}

impl Limit<'_> {
    fn get(&self, list: &str, name: &str) -> Option<Quantity> {
        self.lists.get(list)?.get(name).copied()
    }

    fn wrong(&self, list: &str, name: &str, shown: Quantity, why: String, errors: &mut Errors) {
        let at = At::new(self.at.value, format!("{}[{name}]", self.at.at(list).path()));
        at.invalid_as(shown.to_string(), why, errors);
    }

    /// The limits of one resource fit each other.
    fn agree(&self, name: &str, errors: &mut Errors) {
        let of = |list: &str| self.get(list, name);
        let (min, max, default, request) = (of("min"), of("max"), of("default"), of("defaultRequest"));
        // Where it is told, what is shown, and both sides, the lower one first.
        let rules = [
            ("min", min, "min value", min, "max value", max),
            ("defaultRequest", request, "min value", min, "default request value", request),
            ("defaultRequest", request, "default request value", request, "max value", max),
            ("defaultRequest", request, "default request value", request, "default limit value", default),
            ("default", min, "min value", min, "default value", default),
            ("default", max, "default value", default, "max value", max),
        ];
        for (list, shown, low_name, low, high_name, high) in rules {
            if let (Some(shown), Some(low), Some(high)) = (shown, low, high)
                && low > high
            {
                let why = format!("{low_name} {low} is greater than {high_name} {high}");
                self.wrong(list, name, shown, why, errors);
            }
        }
        if let Some(ratio) = of("maxLimitRequestRatio") {
            if ratio < Quantity::from_int(1) {
                let why = format!("ratio {ratio} is less than 1");
                self.wrong("maxLimitRequestRatio", name, ratio, why, errors);
            }
            if let (Some(min), Some(max)) = (min, max) {
                let most = max.milli_value() as f64 / min.milli_value() as f64;
                if ratio.milli_value() as f64 / 1000.0 > most {
                    let why = format!("ratio {ratio} is greater than max/min = {most:.6}");
                    self.wrong("maxLimitRequestRatio", name, ratio, why, errors);
                }
            }
        }
        if let (Some(default), Some(request)) = (default, request)
            && !resources::may_overcommit(name)
            && default != request
        {
            let why = format!("default value {default} must equal to defaultRequest value {request} in {name}");
            self.wrong("defaultRequest", name, request, why, errors);
        }
    }
}

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
