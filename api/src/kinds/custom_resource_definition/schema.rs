//! Schemas of custom resources: structural ones, in which every value has a type.

use serde_json::Value;

use super::defaults;
use crate::custom::{formats, rules};
use crate::kinds::MARK;
use crate::validate::{At, Errors, Unknown};
use crate::value::{items, text};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

pub fn check(schema: &At<'_>, unknown: Unknown, errors: &mut Errors) {
    if !schema.is_given() {
        return;
    }
    if schema.at("nullable").is_true() {
        schema.at("nullable").forbidden("nullable cannot be true at the root", errors);
    }
    let before = errors.len();
    standard(schema, errors);
    if errors.len() > before {
        return;
    }
    let mut found = Vec::new();
    structure(schema, Level::Root, &mut found);
    if found.is_empty() {
        defaults::check(schema, unknown, &mut found);
    }
    found.sort_by_cached_key(ToString::to_string);
    errors.append(&mut found);
}

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
const ABSENT: [(&str, &str); 6] = [
    ("id", "id is not supported"),
    ("additionalItems", "additionalItems is not supported"),
    ("patternProperties", "patternProperties is not supported"),
    ("definitions", "definitions is not supported"),
    ("dependencies", "dependencies is not supported"),
    ("$ref", "$ref is not supported"),
];

/// Schemas below a schema.
fn below<'a>(schema: &At<'a>) -> Vec<At<'a>> {
    let mut out = Vec::new();
    for field in ["items", "additionalProperties", "not"] {
        if schema.at(field).value.is_object() {
            out.push(schema.at(field));
        }
    }
    out.extend(schema.at("properties").entries().map(|(_, at)| at));
    for list in ["allOf", "anyOf", "oneOf"] {
        out.extend(schema.at(list).items());
    }
    out
}

/// Formats that nobody knows, and rules that are not looked at.
pub fn warnings(schema: &At<'_>, found: &mut Vec<String>) {
    let format = schema.at("format");
    if schema.at("type").text() == "string" && !format.is_empty() && !formats::is_known(format.text()) {
        found.push(format!("unrecognized format {:?}", format.text()));
    }
    let rules = schema.at("x-kubernetes-validations");
    if !rules.is_empty() {
        found.push(format!("{MARK}{} are not acted on yet: expressions are not evaluated", rules.path()));
    }
    below(schema).iter().for_each(|schema| warnings(schema, found));
}

/// What no schema has, and what goes together.
fn standard(schema: &At<'_>, errors: &mut Errors) {
    for (field, why) in ABSENT.iter().filter(|(field, _)| !schema.at(field).is_empty()) {
        schema.at(field).forbidden(*why, errors);
    }
    let kind = schema.at("type");
    match kind.text() {
        "" => {}
        "null" => kind.forbidden("type cannot be set to null, use nullable as an alternative", errors),
        _ => kind.one_of(&TYPES, errors),
    }
    if schema.at("items").value.is_array() {
        schema.at("items").forbidden("items must be a schema object and not an array", errors);
    }
    if schema.at("uniqueItems").is_true() {
        let why = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        schema.at("uniqueItems").forbidden(why, errors);
    }
    let additional = schema.at("additionalProperties");
    if !schema.at("properties").is_empty() && additional.value.is_object() {
        additional.forbidden("additionalProperties and properties are mutual exclusive", errors);
    }
    if *additional.value == Value::Bool(false) {
        additional.forbidden("additionalProperties cannot be set to false", errors);
    }
    let keep = schema.at("x-kubernetes-preserve-unknown-fields");
    if *keep.value == Value::Bool(false) {
        keep.invalid("must be true or undefined", errors);
    }
    lists(schema, errors);
    let pattern = schema.at("pattern");
    if let Some(why) = rules::no_pattern(pattern.text()) {
        pattern.invalid(format!("must be a valid regular expression, but isn't: {why}"), errors);
    }
    for rule in schema.at("x-kubernetes-validations").items() {
        if rule.at("rule").text().trim().is_empty() {
            rule.at("rule").required("rule is not specified", errors);
        }
        let message = rule.at("message");
        if !message.is_empty() && message.text().trim().is_empty() {
            message.invalid("must be non-empty if specified", errors);
        } else if message.text().trim().contains(['\n', '\r']) {
            message.invalid("must not contain line breaks", errors);
        } else if message.is_empty() && rule.at("rule").text().trim().contains(['\n', '\r']) {
            message.required("message must be specified if rule contains line breaks", errors);
        }
    }
    below(schema).iter().for_each(|schema| standard(schema, errors));
}

/// How lists and maps merge.
fn lists(schema: &At<'_>, errors: &mut Errors) {
    let kind = schema.at("type");
    let needs = |wanted: &str, because: &str, errors: &mut Errors| match kind.text() {
        text if text == wanted => {}
        "" => kind.required(&format!("must be {wanted} if {because} is specified"), errors),
        _ => kind.invalid(format!("must be {wanted} if {because} is specified"), errors),
    };
    let (map, list) = (schema.at("x-kubernetes-map-type"), schema.at("x-kubernetes-list-type"));
    let keys = schema.at("x-kubernetes-list-map-keys");
    if map.is_given() {
        needs("object", "x-kubernetes-map-type", errors);
        map.one_of(&["atomic", "granular"], errors);
    }
    if list.is_given() {
        needs("array", "x-kubernetes-list-type", errors);
        list.one_of(&["atomic", "map", "set"], errors);
    }
    match (keys.is_empty(), list.text()) {
        (false, "map") => {}
        (false, "") => list.required("must be map if x-kubernetes-list-map-keys is non-empty", errors),
        (false, _) => list.invalid("must be map if x-kubernetes-list-map-keys is non-empty", errors),
        (true, "map") => keys.required("must not be empty if x-kubernetes-list-type is map", errors),
        (true, _) => {}
    }
    if list.text() != "map" {
        return;
    }
    let item = schema.at("items");
    if !item.is_given() {
        return item.required("must have a schema if x-kubernetes-list-type is map", errors);
    }
    if item.at("type").text() != "object" {
        item.at("type").invalid("must be object if parent array's x-kubernetes-list-type is map", errors);
    }
    let unknown = keys.items().filter(|key| !item.at("properties").at(key.text()).is_given());
    unknown.for_each(|_| keys.invalid("entries must all be names of item properties", errors));
    for key in keys.items() {
        let property = item.at("properties").at(key.text());
        let required = item.at("required").has_text(key.text()) || property.at("default").is_given();
        if property.is_given() && !required {
            let why =
                "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
            let at = format!("{}.properties[{}].default", item.path(), key.text());
            At::new(&Value::Null, at).required(why, errors);
        }
    }
}

const METADATA: &str =
    "must not specify anything other than name and generateName, but metadata is implicitly specified";

fn structure(schema: &At<'_>, level: Level, errors: &mut Errors) {
    let kind = schema.at("type");
    if kind.text() == "array" && !schema.at("items").is_given() {
        schema.at("items").required("must be specified", errors);
    }
    if schema.at("items").is_given() {
        structure(&schema.at("items"), Level::Item, errors);
    }
    let properties = schema.at("properties");
    for (_, property) in properties.entries() {
        structure(&property, Level::Field, errors);
    }
    let additional = schema.at("additionalProperties");
    if additional.is_given() && level == Level::Root {
        additional.forbidden("must not be used at the root", errors);
    }
    if additional.value.is_object() {
        structure(&additional, Level::Field, errors);
    }
    let flag = |name: &str| schema.at(name).is_true();
    let either = flag("x-kubernetes-int-or-string");
    let (open, embedded) = (flag("x-kubernetes-preserve-unknown-fields"), flag("x-kubernetes-embedded-resource"));
    for name in ["x-kubernetes-preserve-unknown-fields", "x-kubernetes-embedded-resource"] {
        if either && flag(name) {
            schema.at(name).invalid("must be false if x-kubernetes-int-or-string is true", errors);
        }
    }
    if either && !kind.is_empty() {
        kind.forbidden("must be empty if x-kubernetes-int-or-string is true", errors);
    }
    values(schema, if either { Below::IntOrString } else { Below::Other }, errors);
    if embedded && kind.text() != "object" {
        let why = "must be object if x-kubernetes-embedded-resource is true";
        if kind.is_empty() { kind.required(why, errors) } else { kind.invalid(why, errors) }
    } else if kind.is_empty() && !either && !open {
        kind.required(
            match level {
                Level::Root => "must not be empty at the root",
                Level::Item => "must not be empty for specified array items",
                Level::Field => "must not be empty for specified object fields",
            },
            errors,
        );
    }
    if embedded && additional.is_given() {
        additional.forbidden("must not be used if x-kubernetes-embedded-resource is set", errors);
    }
    if level == Level::Root && !kind.is_empty() && kind.text() != "object" {
        kind.invalid("must be object at the root", errors);
    }
    if level == Level::Root || embedded {
        metadata(schema, level, errors);
    }
    if embedded && !open && properties.is_empty() {
        let why =
            "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
        properties.required(why, errors);
    }
}

fn metadata(schema: &At<'_>, level: Level, errors: &mut Errors) {
    for (name, property) in schema.at("properties").entries() {
        let kind = property.at("type");
        match name {
            "kind" | "apiVersion" if kind.text() != "string" => kind.invalid("must be string", errors),
            "metadata" => {
                if kind.text() != "object" {
                    kind.invalid("must be object", errors);
                }
                let inner = property.at("properties");
                let own = inner.entries().all(|(name, _)| matches!(name, "name" | "generateName"));
                let only = property.entries().all(|(field, _)| matches!(field, "type" | "properties" | "description"));
                if level == Level::Root && !(own && only) {
                    property.forbidden(METADATA, errors);
                }
            }
            _ => {}
        }
    }
}

/// What a structural schema says outside of its rules on values.
const OUTSIDE: [(&str, &str); 5] = [
    ("type", "must be empty to be structural"),
    ("title", "must be empty to be structural"),
    ("description", "must be empty to be structural"),
    ("default", "must be undefined to be structural"),
    ("additionalProperties", "must be undefined to be structural"),
];
const OUTSIDE_FLAGS: [&str; 4] = [
    "nullable",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-embedded-resource",
    "x-kubernetes-int-or-string",
];

/// What the schema says by which rules on values stand.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Below {
    /// Its values may be both.
    IntOrString,
    Other,
}

/// The rules on values of a schema; `anyOf` integer or string is how one says that it may be both.
fn values(schema: &At<'_>, below: Below, errors: &mut Errors) {
    let both = |list: &At<'_>| {
        let kinds: Vec<&str> = items(list.value).map(|schema| text(&schema["type"])).collect();
        kinds == ["integer", "string"]
    };
    for list in ["anyOf", "allOf", "oneOf"] {
        let rules = schema.at(list);
        if list == "anyOf" && below == Below::IntOrString && both(&rules) {
            continue;
        }
        for rule in rules.items() {
            let says_so = list == "allOf" && both(&rule.at("anyOf"));
            nested(&rule, if says_so { below } else { Below::Other }, errors);
        }
    }
    if schema.at("not").is_given() {
        nested(&schema.at("not"), Below::Other, errors);
    }
}

fn nested(rule: &At<'_>, below: Below, errors: &mut Errors) {
    values(rule, below, errors);
    if rule.at("items").is_given() {
        nested(&rule.at("items"), Below::Other, errors);
    }
    for (name, property) in rule.at("properties").entries() {
        nested(&property, Below::Other, errors);
        if name == "metadata" {
            property.forbidden("must not be specified in a nested context", errors);
        }
    }
    for (field, why) in OUTSIDE.iter().filter(|(field, _)| !rule.at(field).is_empty()) {
        rule.at(field).forbidden(*why, errors);
    }
    for flag in OUTSIDE_FLAGS.iter().filter(|flag| rule.at(flag).is_true()) {
        rule.at(flag).forbidden("must be false to be structural", errors);
    }
    if !rule.at("x-kubernetes-list-map-keys").is_empty() {
        rule.at("x-kubernetes-list-map-keys").forbidden("must be empty to be structural", errors);
    }
    for field in ["x-kubernetes-list-type", "x-kubernetes-map-type"] {
        if rule.at(field).is_given() {
            rule.at(field).forbidden("must be undefined to be structural", errors);
        }
    }
}
