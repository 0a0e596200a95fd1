//! A value and where it is: how rules of kinds walk an object and say what is wrong with it.

use serde_json::{Value, json};

use super::{Errors, NameRule, amount, internal};
use crate::names;
use crate::quantity::Quantity;
use crate::status::{ErrorKind, FieldError};
use crate::value;

static ABSENT: Value = Value::Null;

#[derive(Debug, Clone)]
pub struct At<'a> {
    pub value: &'a Value,
    path: String,
}

impl<'a> At<'a> {
    /// A field of an object.
    pub fn of(object: &'a Value, name: &str) -> Self {
        At { value: object.get(name).unwrap_or(&ABSENT), path: name.into() }
    }

    /// A value somewhere else than at its own path.
    pub fn new(value: &'a Value, path: impl Into<String>) -> Self {
        At { value, path: path.into() }
    }

    pub fn at(&self, name: &str) -> At<'a> {
        At { value: self.value.get(name).unwrap_or(&ABSENT), path: format!("{}.{name}", self.path) }
    }

    pub fn items(&self) -> impl Iterator<Item = At<'a>> {
        let path = self.path.clone();
        value::items(self.value).enumerate().map(move |(i, value)| At { value, path: format!("{path}[{i}]") })
    }

    pub fn entries(&self) -> impl Iterator<Item = (&'a str, At<'a>)> {
        let path = self.path.clone();
        value::entries(self.value).map(move |(key, value)| (key.as_str(), At { value, path: format!("{path}[{key}]") }))
    }

    pub fn path(&self) -> &str {
        &self.path
    }

    pub fn is_given(&self) -> bool {
        !self.value.is_null()
    }

    /// Nothing, or nothing in it.
    pub fn is_empty(&self) -> bool {
        match self.value {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Array(items) => items.is_empty(),
            Value::Object(map) => map.is_empty(),
            Value::Bool(_) | Value::Number(_) => false,
        }
    }

    pub fn text(&self) -> &'a str {
        value::text(self.value)
    }

    pub fn number(&self) -> Option<i64> {
        self.value.as_i64()
    }

    pub fn is_true(&self) -> bool {
        *self.value == Value::Bool(true)
    }

    pub fn has_text(&self, wanted: &str) -> bool {
        value::items(self.value).any(|item| *item == wanted)
    }

    /// As it is shown: Go has no text that is absent.
    fn shown(&self) -> Value {
        if self.value.is_null() { json!("") } else { self.value.clone() }
    }

    pub fn required(&self, why: &str, errors: &mut Errors) {
        errors.push(FieldError::required(&*self.path, why));
    }

    pub fn forbidden(&self, why: impl Into<String>, errors: &mut Errors) {
        errors.push(FieldError::forbidden(&*self.path, why));
    }

    pub fn invalid(&self, why: impl Into<String>, errors: &mut Errors) {
        errors.push(FieldError::invalid(&*self.path, self.shown(), why));
    }

    /// Invalid, with another value shown than its own.
    pub fn invalid_as(&self, shown: impl Into<Value>, why: impl Into<String>, errors: &mut Errors) {
        errors.push(FieldError::invalid(&*self.path, shown, why));
    }

    /// Invalid, shown as upstream's internal type of this name prints.
    pub fn invalid_struct(&self, ty: &str, why: impl Into<String>, errors: &mut Errors) {
        errors.push(FieldError::invalid(&*self.path, internal::shown(ty, self.value), why));
    }

    /// Invalid, with no value shown.
    pub fn wrong(&self, why: impl Into<String>, errors: &mut Errors) {
        errors.push(FieldError::invalid(&*self.path, crate::status::omitted(), why));
    }

    pub fn duplicate(&self, errors: &mut Errors) {
        errors.push(FieldError::duplicate(&*self.path, self.shown()));
    }

    pub fn not_supported(&self, options: &[&str], errors: &mut Errors) {
        errors.push(FieldError::not_supported(&*self.path, self.shown(), options));
    }

    /// The same of what is absent, where Go shows that it is.
    pub fn not_supported_null(&self, options: &[&str], errors: &mut Errors) {
        errors.push(FieldError::not_supported(&*self.path, Value::Null, options));
    }

    pub fn too_long(&self, limit: usize, errors: &mut Errors) {
        errors.push(FieldError::too_long(&*self.path, limit));
    }

    /// More members than `limit`.
    pub fn too_many(&self, limit: usize, errors: &mut Errors) {
        let items = if limit == 1 { "item" } else { "items" };
        let why = format!("must have at most {limit} {items}");
        errors.push(FieldError::new(ErrorKind::TooMany, &*self.path, value::count(self.value), why));
    }

    /// Each complaint as an invalid value.
    pub fn complain(&self, complaints: Vec<String>, errors: &mut Errors) {
        for complaint in complaints {
            self.invalid(complaint, errors);
        }
    }

    /// A name by a rule.
    pub fn named(&self, rule: NameRule, errors: &mut Errors) {
        self.complain(rule(self.text()), errors);
    }

    /// The same, where there is one.
    pub fn named_if_given(&self, rule: NameRule, errors: &mut Errors) {
        if !self.text().is_empty() {
            self.named(rule, errors);
        }
    }

    /// A name that has to be there.
    pub fn needs_name(&self, rule: NameRule, errors: &mut Errors) {
        match self.text() {
            "" => self.required("", errors),
            _ => self.named(rule, errors),
        }
    }

    pub fn needs_text(&self, errors: &mut Errors) {
        if self.text().is_empty() {
            self.required("", errors);
        }
    }

    /// One of these, in the order in which upstream lists them.
    pub fn one_of(&self, options: &[&str], errors: &mut Errors) {
        if !options.contains(&self.text()) {
            self.not_supported(options, errors);
        }
    }

    /// The same, where something is given.
    pub fn one_of_if_given(&self, options: &[&str], errors: &mut Errors) {
        if self.is_given() {
            self.one_of(options, errors);
        }
    }

    pub fn not_negative(&self, errors: &mut Errors) {
        super::meta::not_negative(self.value, &self.path, errors);
    }

    pub fn selector(&self, errors: &mut Errors) {
        super::meta::selector(self.value, &self.path, errors);
    }

    pub fn labels(&self, errors: &mut Errors) {
        super::meta::labels(self.value, &self.path, errors);
    }

    pub fn port_number(&self, errors: &mut Errors) {
        super::meta::port_number(self.value, &self.path, errors);
    }

    pub fn quantity(&self) -> Option<Quantity> {
        Quantity::parse(self.text()).ok()
    }

    pub fn not_negative_quantity(&self, errors: &mut Errors) {
        if self.quantity().is_some_and(Quantity::is_negative) {
            self.invalid("must be greater than or equal to 0", errors);
        }
    }

    /// Something, and more than nothing.
    pub fn positive_quantity(&self, errors: &mut Errors) {
        if self.quantity().is_some_and(|amount| amount.is_zero() || amount.is_negative()) {
            self.invalid("must be greater than zero", errors);
        }
    }

    /// An integer or a percentage.
    pub fn amount(&self, errors: &mut Errors) {
        amount::amount(self.value, &self.path, errors);
    }

    pub fn at_most_all(&self, errors: &mut Errors) {
        amount::at_most_all(self.value, &self.path, errors);
    }

    /// A domain and a path below it.
    pub fn domain_path(&self, errors: &mut Errors) {
        let given = self.text();
        if given.is_empty() {
            return self.required("", errors);
        }
        match given.split_once('/').filter(|(host, path)| !host.is_empty() && !path.is_empty()) {
            None => self.invalid("must be a domain-prefixed path (such as \"acme.io/foo\")", errors),
            Some((host, path)) => {
                for complaint in names::dns_subdomain(host) {
                    self.invalid_as(host, complaint, errors);
                }
                for complaint in names::http_path(path) {
                    self.invalid_as(path, complaint, errors);
                }
            }
        }
    }

    /// What it was.
    pub fn unchanged(&self, old: &At<'_>, errors: &mut Errors) {
        super::meta::immutable(self.value, old.value, &self.path, errors);
    }

    /// The same for a struct of this type.
    pub fn unchanged_struct(&self, ty: &str, old: &At<'_>, errors: &mut Errors) {
        if self.value != old.value {
            self.invalid_struct(ty, "field is immutable", errors);
        }
    }
}

/// Of several that exclude each other, all but the first are refused.
pub fn one_source<'a>(
    from: &At<'a>,
    names: &[&'static str],
    mut check: impl FnMut(&'static str, At<'a>, &mut Errors),
    errors: &mut Errors,
) -> usize {
    let mut found = 0;
    for name in names {
        let source = from.at(name);
        if source.is_given() {
            found += 1;
            match found {
                1 => check(name, source, errors),
                _ => source.forbidden("may not specify more than 1 volume type", errors),
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_says_where_it_is() {
        let object = json!({"spec": {"list": [{"name": "a b"}], "map": {"k": 1}}});
        let spec = At::of(&object, "spec");
        let first = spec.at("list").items().next().unwrap();
        assert_eq!(first.at("name").path(), "spec.list[0].name");
        assert_eq!(spec.at("map").entries().next().unwrap().1.path(), "spec.map[k]");
        assert!(!spec.at("absent").at("deeper").is_given());
    }

    #[test]
    fn domains_have_paths() {
        let complaints = |text: &str| {
            let (value, mut errors) = (json!(text), Vec::new());
            At::new(&value, "x").domain_path(&mut errors);
            errors.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(complaints("a.io/b"), Vec::<String>::new());
        assert_eq!(complaints(""), ["x: Required value"]);
        assert!(complaints("a.io")[0].contains("must be a domain-prefixed path"));
        assert!(complaints("A/b")[0].starts_with("x: Invalid value: \"A\": a lowercase RFC 1123 subdomain"));
        assert!(complaints("a.io/b c")[0].starts_with("x: Invalid value: \"b c\": Invalid path (regex used"));
    }
}
