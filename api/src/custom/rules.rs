//! What values of a custom resource have to be: the rules of its schema, compiled once, and told in upstream's words.

use std::collections::BTreeMap;

use regex::Regex;
use serde_json::Value;

use super::formats::{self, Format};
use crate::status::{ErrorKind, FieldError};
use crate::value::{entries, items, text};

/// The rules of one value.
#[derive(Debug, Default)]
pub struct Rules {
    types: Vec<&'static str>,
    nullable: bool,
    format: Option<(String, Format)>,
    options: Option<Vec<Value>>,
    /// As it was written; an expression that cannot be compiled matches nothing.
    pattern: Option<(String, Option<Regex>)>,
    minimum: Option<Bound>,
    maximum: Option<Bound>,
    multiple_of: Option<f64>,
    lengths: Between,
    items_count: Between,
    properties_count: Between,
    required: Vec<String>,
    all_of: Vec<Rules>,
    any_of: Vec<Rules>,
    one_of: Vec<Rules>,
    not: Option<Box<Rules>>,
    properties: BTreeMap<String, Rules>,
    additional: Option<Box<Rules>>,
    items: Option<Box<Rules>>,
    /// By what an item of a list is known again.
    keys: Vec<String>,
}

#[derive(Debug, Clone, Copy)]
struct Bound {
    limit: f64,
    reach: Reach,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    Included,
    Excluded,
}

#[derive(Debug, Default)]
struct Between {
    least: Option<u64>,
    most: Option<u64>,
}

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];

/// Why a text is no pattern; `None` when it is one.
pub fn no_pattern(text: &str) -> Option<String> {
    let error = Regex::new(text).err()?.to_string();
    // The engine draws where it is, and says last what it is.
    Some(error.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned())
}

impl Rules {
    pub fn compile(schema: &Value) -> Rules {
        let list = |name: &str| items(&schema[name]).map(Rules::compile).collect();
        let one = |name: &str| schema[name].is_object().then(|| Box::new(Rules::compile(&schema[name])));
        let between = |least: &str, most: &str| Between { least: schema[least].as_u64(), most: schema[most].as_u64() };
        let types = match schema["x-kubernetes-int-or-string"] == true {
            true => vec!["integer", "string"],
            false => TYPES.into_iter().filter(|known| schema["type"] == *known).collect(),
        };
        let format = text(&schema["format"]);
        let keyed = schema["x-kubernetes-list-type"] == "map";
        Rules {
            types,
            nullable: schema["nullable"] == true,
            format: formats::named(format).map(|check| (format.to_owned(), check)),
            options: schema["enum"].as_array().filter(|list| !list.is_empty()).cloned(),
            pattern: schema["pattern"].as_str().filter(|t| !t.is_empty()).map(|t| (t.to_owned(), Regex::new(t).ok())),
            minimum: bound(schema, "minimum", "exclusiveMinimum"),
            maximum: bound(schema, "maximum", "exclusiveMaximum"),
            multiple_of: schema["multipleOf"].as_f64(),
            lengths: between("minLength", "maxLength"),
            items_count: between("minItems", "maxItems"),
            properties_count: between("minProperties", "maxProperties"),
            required: items(&schema["required"]).map(|name| text(name).to_owned()).collect(),
            all_of: list("allOf"),
            any_of: list("anyOf"),
            one_of: list("oneOf"),
            not: one("not"),
            properties: entries(&schema["properties"]).map(|(n, s)| (n.clone(), Rules::compile(s))).collect(),
            additional: one("additionalProperties"),
            items: one("items"),
            keys: items(&schema["x-kubernetes-list-map-keys"])
                .filter(|_| keyed)
                .map(|key| text(key).to_owned())
                .collect(),
        }
    }

    /// The rules of a property.
    pub fn property(&self, name: &str) -> Option<&Rules> {
        self.properties.get(name)
    }

    /// Everything wrong with `value`, which is at `path` of its object. What was as wrong in `old`, and is unchanged,
    /// is let be.
    pub fn check(&self, value: &Value, old: Option<&Value>, path: &str) -> Vec<FieldError> {
        let mut found = Found { root: path, errors: Vec::new(), passed: 0 };
        self.walk(value, old, "", &mut found);
        found.errors
    }

    fn walk(&self, value: &Value, old: Option<&Value>, name: &str, found: &mut Found) {
        if old == Some(value) {
            return;
        }
        self.types(value, name, found);
        if value.is_null() {
            return self.options(value, name, found);
        }
        self.junctors(value, name, found);
        match value {
            Value::String(text) => self.text(text, name, found),
            Value::Number(_) => self.number(value, name, found),
            Value::Array(list) => self.list(list, old, name, found),
            _ => {}
        }
        self.options(value, name, found);
        if let Value::Object(map) = value {
            self.object(map, old, name, found);
        }
        found.passed += 1;
    }

    fn types(&self, value: &Value, name: &str, found: &mut Found) {
        let wanted = || self.types.join(",");
        let is = kind_of(value);
        let fits = match value {
            Value::Null => self.types.is_empty() || self.nullable,
            // A format says what a text has to be; what is no text is held against the type.
            Value::String(_)
                if self.format.is_some() && !self.types.iter().any(|t| matches!(*t, "integer" | "number")) =>
            {
                true
            }
            Value::Number(_) => {
                self.types.is_empty()
                    || self.types.contains(&is)
                    || (is == "integer" && self.types.contains(&"number"))
                    || (is_whole(value) && self.types.contains(&"integer"))
            }
            _ => self.types.is_empty() || self.types.contains(&is),
        };
        match (fits, &self.format, value) {
            (true, ..) => found.passed += 1,
            (false, Some((format, _)), Value::Number(_) | Value::Bool(_) | Value::Object(_)) => {
                let of = match value {
                    Value::Number(n) if n.is_f64() => "double",
                    Value::Number(_) => "int64",
                    _ => "",
                };
                found.wrong_type(name, format, of);
            }
            (false, ..) => found.wrong_type(name, &wanted(), is),
        }
    }

    fn text(&self, value: &str, name: &str, found: &mut Found) {
        let length = value.chars().count() as u64;
        if let Some(most) = self.lengths.most.filter(|most| length > *most) {
            found.errors.push(FieldError::too_long(found.at(name), usize::try_from(most).unwrap_or(usize::MAX)));
        } else if let Some(least) = self.lengths.least.filter(|least| length < *least) {
            found.invalid(name, value.into(), format!("should be at least {least} chars long"));
        } else if let Some((pattern, expression)) = &self.pattern
            && !expression.as_ref().is_some_and(|expression| expression.is_match(value))
        {
            found.invalid(name, value.into(), format!("should match '{pattern}'"));
        }
        if let Some((format, check)) = &self.format
            && !check(value)
        {
            found.wrong_type(name, format, value);
        }
        found.passed += 1;
    }

    fn number(&self, value: &Value, name: &str, found: &mut Found) {
        let number = value.as_f64().unwrap_or(0.0);
        if let Some(factor) = self.multiple_of {
            let ratio = if factor < 1.0 { 1.0 / factor * number } else { number / factor };
            let fits = match (value.as_i64(), factor.fract() == 0.0 && factor.abs() < 1e15) {
                #[expect(clippy::cast_possible_truncation, reason = "whole and small: looked at just above")]
                (Some(whole), true) => whole % (factor as i64).max(1) == 0,
                _ => (ratio - ratio.round()).abs() < 1e-9,
            };
            if !fits {
                found.invalid(name, value.clone(), format!("should be a multiple of {factor}"));
            }
        }
        if let Some(Bound { limit, reach }) = self.minimum {
            match reach {
                Reach::Included if number < limit => {
                    found.invalid(name, value.clone(), format!("should be greater than or equal to {limit}"));
                }
                Reach::Excluded if number <= limit => {
                    found.invalid(name, value.clone(), format!("should be greater than {limit}"));
                }
                _ => {}
            }
        }
        if let Some(Bound { limit, reach }) = self.maximum {
            match reach {
                Reach::Included if number > limit => {
                    found.invalid(name, value.clone(), format!("should be less than or equal to {limit}"));
                }
                Reach::Excluded if number >= limit => {
                    found.invalid(name, value.clone(), format!("should be less than {limit}"));
                }
                _ => {}
            }
        }
        found.passed += 1;
    }

    fn list(&self, list: &[Value], old: Option<&Value>, name: &str, found: &mut Found) {
        if let Some(rules) = &self.items {
            for (i, item) in list.iter().enumerate() {
                let before = old.and_then(|old| self.known(item, old));
                rules.walk(item, before, &format!("{name}[{i}]"), found);
            }
        }
        let count = list.len() as u64;
        if let Some(least) = self.items_count.least.filter(|least| count < *least) {
            found.invalid(name, count.into(), format!("should have at least {least} items"));
        }
        if let Some(most) = self.items_count.most.filter(|most| count > *most) {
            found.too_many(name, count, most);
        }
        found.passed += 1;
    }

    /// The item of an old list that this one was.
    fn known<'o>(&self, item: &Value, old: &'o Value) -> Option<&'o Value> {
        if self.keys.is_empty() {
            return None;
        }
        items(old).find(|old| self.keys.iter().all(|key| old.get(key) == item.get(key)))
    }

    fn options(&self, value: &Value, name: &str, found: &mut Found) {
        let Some(options) = &self.options else { return };
        if options.iter().any(|option| same(option, value)) {
            found.passed += 1;
            return;
        }
        let shown: Vec<String> =
            options.iter().map(|option| option.as_str().map_or_else(|| option.to_string(), str::to_owned)).collect();
        let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
        found.errors.push(FieldError::not_supported(found.at(name), value.clone(), &shown));
    }

    fn object(&self, map: &serde_json::Map<String, Value>, old: Option<&Value>, name: &str, found: &mut Found) {
        let count = map.len() as u64;
        if let Some(least) = self.properties_count.least.filter(|least| count < *least) {
            found.invalid(name, count.into(), format!("should have at least {least} properties"));
        }
        if let Some(most) = self.properties_count.most.filter(|most| count > *most) {
            found.too_many(name, count, most);
        }
        let below = |key: &str| old.and_then(|old| old.get(key));
        for (key, value) in map {
            match (self.properties.get(key), &self.additional) {
                (Some(rules), _) => {
                    let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                    rules.walk(value, below(key), &name, found);
                }
                (None, Some(rules)) => rules.walk(value, below(key), &format!("{name}.{key}"), found),
                (None, None) => {}
            }
        }
        for key in self.required.iter().filter(|key| !map.contains_key(*key)) {
            found.errors.push(FieldError::required(found.at(&format!("{name}.{key}")), ""));
        }
    }

    fn junctors(&self, value: &Value, name: &str, found: &mut Found) {
        let each = |list: &[Rules]| -> Vec<(Vec<FieldError>, usize)> {
            list.iter()
                .map(|rules| {
                    let mut inner = Found { root: found.root, errors: Vec::new(), passed: 0 };
                    rules.walk(value, None, name, &mut inner);
                    (inner.errors, inner.passed)
                })
                .collect()
        };
        // Of several that fail, the one that comes closest is told.
        let closest = |mut outcomes: Vec<(Vec<FieldError>, usize)>| {
            let most = outcomes.iter().map(|(_, passed)| *passed).max().unwrap_or(0);
            outcomes.iter().position(|(_, passed)| *passed == most).map(|at| outcomes.swap_remove(at).0)
        };
        let (any, one, all) = (each(&self.any_of), each(&self.one_of), each(&self.all_of));
        let not = self.not.as_deref().map(|rules| each(std::slice::from_ref(rules)));
        let valid =
            |outcomes: &[(Vec<FieldError>, usize)]| outcomes.iter().filter(|(errors, _)| errors.is_empty()).count();
        if !any.is_empty() && valid(&any) == 0 {
            found.about(format!("{name:?} must validate at least one schema (anyOf)"));
            found.errors.extend(closest(any).unwrap_or_default());
        }
        if !one.is_empty() && valid(&one) != 1 {
            let found_valid = valid(&one);
            let more = match found_valid {
                0 => "Found none valid".to_owned(),
                many => format!("Found {many} valid alternatives"),
            };
            found.about(format!("{name:?} must validate one and only one schema (oneOf). {more}"));
            if found_valid == 0 {
                found.errors.extend(closest(one).unwrap_or_default());
            }
        }
        let (fine, of) = (valid(&all), all.len());
        if fine != of {
            found.errors.extend(all.into_iter().flat_map(|(errors, _)| errors));
            let more = if fine == 0 { ". None validated" } else { "" };
            found.about(format!("{name:?} must validate all the schemas (allOf){more}"));
        }
        if not.is_some_and(|outcomes| valid(&outcomes) > 0) {
            found.about(format!("{name:?} must not validate the schema (not)"));
        }
        found.passed += 1;
    }
}

fn bound(schema: &Value, limit: &str, exclusive: &str) -> Option<Bound> {
    let reach = if schema[exclusive] == true { Reach::Excluded } else { Reach::Included };
    schema[limit].as_f64().map(|limit| Bound { limit, reach })
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn is_whole(value: &Value) -> bool {
    value.as_f64().is_some_and(|number| number.fract() == 0.0)
}

fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        _ => one == other,
    }
}

/// What was found so far.
struct Found<'p> {
    /// Where the value that is checked is in its object.
    root: &'p str,
    errors: Vec<FieldError>,
    /// Checks that went well, by which alternatives are told apart.
    passed: usize,
}

impl Found<'_> {
    fn at(&self, name: &str) -> String {
        let name = name.strip_prefix('.').unwrap_or(name);
        match (self.root, name) {
            // An unnamed path is printed so.
            ("", "") => "<nil>".into(),
            ("", name) => name.into(),
            (root, "") => root.into(),
            (root, name) => format!("{root}.{name}"),
        }
    }

    fn invalid(&mut self, name: &str, value: Value, why: String) {
        self.errors.push(FieldError::invalid(self.at(name), value, format!("{name} in body {why}")));
    }

    fn wrong_type(&mut self, name: &str, wanted: &str, is: &str) {
        let why = format!("{name} in body must be of type {wanted}: {is:?}");
        self.errors.push(FieldError::new(ErrorKind::TypeInvalid, self.at(name), is, why));
    }

    fn too_many(&mut self, name: &str, count: u64, most: u64) {
        let items = if most == 1 { "item" } else { "items" };
        let why = format!("must have at most {most} {items}");
        self.errors.push(FieldError::new(ErrorKind::TooMany, self.at(name), count, why));
    }

    /// About the whole value, as upstream has it: without saying where.
    fn about(&mut self, why: String) {
        self.errors.push(FieldError::invalid(self.at(""), "", why));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn told(schema: Value, value: Value) -> Vec<String> {
        let schema = json!({"type": "object", "properties": {"spec": schema}});
        let found = Rules::compile(&schema).check(&json!({"spec": value}), None, "");
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn wrong_values_are_told_in_upstreams_words() {
        for (schema, value, want) in [
            (
                json!({"type": "integer"}),
                json!("x"),
                r#"spec: Invalid value: "string": spec in body must be of type integer: "string""#,
            ),
            (
                json!({"type": "string"}),
                json!(null),
                r#"spec: Invalid value: "null": spec in body must be of type string: "null""#,
            ),
            (
                json!({"type": "integer", "minimum": 1}),
                json!(0),
                "spec: Invalid value: 0: spec in body should be greater than or equal to 1",
            ),
            (
                json!({"type": "number", "maximum": 1.5, "exclusiveMaximum": true}),
                json!(1.5),
                "spec: Invalid value: 1.5: spec in body should be less than 1.5",
            ),
            (
                json!({"type": "integer", "multipleOf": 3}),
                json!(4),
                "spec: Invalid value: 4: spec in body should be a multiple of 3",
            ),
            (
                json!({"type": "string", "pattern": "^a$"}),
                json!("b"),
                r#"spec: Invalid value: "b": spec in body should match '^a$'"#,
            ),
            (json!({"type": "string", "maxLength": 1}), json!("bb"), "spec: Too long: may not be more than 1 bytes"),
            (
                json!({"type": "string", "minLength": 2}),
                json!("b"),
                r#"spec: Invalid value: "b": spec in body should be at least 2 chars long"#,
            ),
            (
                json!({"type": "string", "enum": ["a", "b"]}),
                json!("c"),
                r#"spec: Unsupported value: "c": supported values: "a", "b""#,
            ),
            (
                json!({"type": "string", "format": "ipv4"}),
                json!("c"),
                r#"spec: Invalid value: "c": spec in body must be of type ipv4: "c""#,
            ),
            (
                json!({"type": "array", "maxItems": 1, "items": {"type": "string"}}),
                json!(["a", "b"]),
                "spec: Too many: 2: must have at most 1 item",
            ),
            (
                json!({"type": "array", "items": {"type": "string"}}),
                json!(["a", 1]),
                r#"spec[1]: Invalid value: "integer": spec[1] in body must be of type string: "integer""#,
            ),
            (json!({"type": "object", "required": ["a"]}), json!({}), "spec.a: Required value"),
            (
                json!({"type": "object", "additionalProperties": {"type": "boolean"}}),
                json!({"k": 1}),
                r#"spec.k: Invalid value: "integer": spec.k in body must be of type boolean: "integer""#,
            ),
            (
                json!({"x-kubernetes-int-or-string": true}),
                json!(true),
                r#"spec: Invalid value: "boolean": spec in body must be of type integer,string: "boolean""#,
            ),
            (
                json!({"type": "integer", "not": {"enum": [3]}}),
                json!(3),
                r#"<nil>: Invalid value: "": "spec" must not validate the schema (not)"#,
            ),
        ] {
            assert_eq!(told(schema.clone(), value), [want], "{schema}");
        }
        let either = json!({"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}]});
        assert_eq!(told(either.clone(), json!({"a": 1})), Vec::<String>::new());
        let both = r#"<nil>: Invalid value: "": "spec" must validate one and only one schema (oneOf). Found 2 valid alternatives"#;
        assert_eq!(told(either, json!({"a": 1, "b": 1})), [both]);
    }

    #[test]
    fn what_fits_is_let_through() {
        for (schema, value) in [
            (json!({"type": "integer"}), json!(3.0)),
            (json!({"type": "number"}), json!(3)),
            (json!({"type": "string", "nullable": true}), json!(null)),
            (json!({"x-kubernetes-int-or-string": true}), json!("50%")),
            (json!({"type": "string", "format": "odd"}), json!("anything")),
            (json!({"x-kubernetes-preserve-unknown-fields": true}), json!([1, "a"])),
            (json!({"type": "object", "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}), json!({"b": 1})),
        ] {
            assert_eq!(told(schema.clone(), value), Vec::<String>::new(), "{schema}");
        }
    }

    #[test]
    fn what_was_wrong_before_and_is_unchanged_is_let_be() {
        let schema = json!({"type": "object", "properties": {
            "a": {"type": "integer"},
            "l": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                "items": {"type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "integer"}}}}}});
        let rules = Rules::compile(&schema);
        let old = json!({"a": "x", "l": [{"k": "1", "v": "wrong"}]});
        let new = json!({"a": "x", "b": 1, "l": [{"k": "2", "v": 1}, {"k": "1", "v": "wrong"}]});
        assert!(rules.check(&new, Some(&old), "").is_empty());
        assert_eq!(rules.check(&new, None, "").len(), 2);
        assert_eq!(rules.check(&json!({"a": "y"}), Some(&old), "").len(), 1);
    }
}
