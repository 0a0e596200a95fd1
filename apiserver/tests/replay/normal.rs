//! What a server is free to choose (names, addresses, versions, times), rewritten so that two servers' answers compare.

use std::collections::{BTreeSet, HashMap};

use regex::{Captures, Regex};
use serde_json::{Map, Value, json};

/// Columns whose cells are ages.
const AGES: [&str; 5] = ["Age", "Last Seen", "First Seen", "Last Schedule", "Requested Duration"];
/// Times within this many days of now are now.
const NEAR_DAYS: i64 = 2;
/// Fields whose value the server allocates, and what stands for it.
const ALLOCATED: [(&str, &str); 3] = [("clusterIP", "<ip>"), ("nodePort", "<port>"), ("healthCheckNodePort", "<port>")];
/// Parts of messages and cells that depend on the server.
const IN_TEXT: [(&str, &str); 8] = [
    (r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "<uid>"),
    (r"(kube-api-access-)[a-z0-9]{5}\b", "${1}<gen>"),
    (r"(ResourceVersion in object meta: |in record \(|current: |too old resource version: )\d+( \(\d+\))?", "${1}<rv>"),
    (r#"(Invalid value: )"\{\\".*\}": "#, "${1}<object>: "),
    (r"(?s)\n@@ .*", "\n<diff>"),
    (r#"(resourceVersion: ")\d+"#, "${1}<rv>"),
    (r"(range of valid IPs is |valid range: ?)[0-9./]+", "${1}<cidr>"),
    (r"\([0-9smhdy]+ ago\)", "(<age> ago)"),
];

/// Rewrites the answers of one case, and remembers the values it met.
pub struct Normal {
    /// Longest first.
    alias: Vec<(String, String)>,
    /// All that the case sent: what it named itself stays.
    pub sent: String,
    versions: HashMap<String, Vec<String>>,
    columns: Vec<Value>,
    rules: Vec<(Regex, &'static str)>,
    time: Regex,
}

impl Normal {
    pub fn new(alias: &[(&str, &str)]) -> Self {
        let rule = |(pattern, replacement): &(&str, &'static str)| (Regex::new(pattern).unwrap(), *replacement);
        let mut normal = Self {
            alias: Vec::new(),
            sent: String::new(),
            versions: HashMap::new(),
            columns: Vec::new(),
            rules: IN_TEXT.iter().map(rule).collect(),
            time: Regex::new(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)").unwrap(),
        };
        alias.iter().for_each(|(value, mark)| normal.call(value, mark));
        normal
    }

    fn call(&mut self, value: &str, mark: &str) {
        self.alias.retain(|(known, _)| known != value);
        let at = self.alias.partition_point(|(known, _)| known.len() >= value.len());
        self.alias.insert(at, (value.to_owned(), mark.to_owned()));
    }

    pub fn text(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (value, mark) in &self.alias {
            text = if value.starts_with(|c: char| c.is_ascii_digit()) {
                replace_word(&text, value, mark)
            } else {
                text.replace(value, mark)
            };
        }
        for (pattern, replacement) in &self.rules {
            text = pattern.replace_all(&text, *replacement).into_owned();
        }
        self.time.replace_all(&text, |found: &Captures<'_>| near(found)).into_owned()
    }

    /// Finds the names that the server made of a body's generateName.
    pub fn learn_names(&mut self, sent: &str, answer: &str) {
        let prefixes = Regex::new(r#""generateName": ?"([^"]+)""#).unwrap();
        let found: Vec<(String, String)> = prefixes
            .captures_iter(sent)
            .flat_map(|found| {
                let prefix: String = found[1].chars().take(58).collect();
                let made =
                    Regex::new(&format!(r"{}[bcdfghjklmnpqrstvwxz2456789]{{5}}\b", regex::escape(&prefix))).unwrap();
                let mark = format!("{}<gen>", self.text(&found[1]));
                made.find_iter(answer).map(|name| (name.as_str().to_owned(), mark.clone())).collect::<Vec<_>>()
            })
            .collect();
        found.iter().for_each(|(name, mark)| self.call(name, mark));
    }

    /// Finds allocated addresses and ports before anything is rewritten.
    pub fn learn(&mut self, value: &Value) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| self.learn(item)),
            Value::Object(map) => {
                map.values().for_each(|item| self.learn(item));
                for (field, mark) in ALLOCATED {
                    let text = match map.get(field) {
                        Some(Value::String(text)) => text.clone(),
                        Some(Value::Number(number)) => number.to_string(),
                        _ => continue,
                    };
                    let allocated = text.len() > 1
                        && text.starts_with(|c: char| c.is_ascii_digit())
                        && text.chars().all(|c| c.is_ascii_hexdigit() || c == '.' || c == ':');
                    if allocated && !Regex::new(&format!(r"\b{}\b", regex::escape(&text))).unwrap().is_match(&self.sent)
                    {
                        self.call(&text, mark);
                    }
                }
            }
            _ => {}
        }
    }

    pub fn value(&mut self, value: &Value, key: &str) -> Value {
        match value {
            Value::String(text) if matches!(key, "continue" | "token") && !text.is_empty() => json!(format!("<{key}>")),
            Value::String(text) => json!(self.text(text)),
            Value::Array(items) => items.iter().map(|item| self.value(item, key)).collect(),
            Value::Object(map) => self.object(map),
            Value::Number(number) if matches!(key, "nodePort" | "healthCheckNodePort") => {
                let number = number.to_string();
                self.alias.iter().find(|(known, _)| *known == number).map_or(value.clone(), |(_, mark)| json!(mark))
            }
            other => other.clone(),
        }
    }

    fn object(&mut self, map: &Map<String, Value>) -> Value {
        let mut map = map.clone();
        if map.get("kind") == Some(&json!("Table")) {
            self.table(&mut map);
        }
        let mut out = Map::new();
        for (key, item) in &map {
            let item = self.value(item, key);
            out.insert(self.text(key), item);
        }
        if let Some(version) =
            map.get("resourceVersion").and_then(Value::as_str).filter(|text| !text.trim_matches('0').is_empty())
        {
            out.insert("resourceVersion".into(), self.version(map.get("uid"), version));
        }
        if let Some(Value::Array(entries)) = out.get_mut("managedFields") {
            let text = |entry: &Value, field: &str| entry[field].as_str().unwrap_or_default().to_owned();
            entries.sort_by_key(|entry| {
                ["operation", "manager", "apiVersion", "subresource"].map(|field| text(entry, field))
            });
        }
        if map.contains_key("incomplete") {
            // The rules of a SelfSubjectRulesReview come in no order.
            for rules in ["resourceRules", "nonResourceRules"] {
                let mut list = out.get(rules).and_then(Value::as_array).cloned().unwrap_or_default();
                list.sort_by_key(sorted_text);
                out.insert(rules.into(), json!(list));
            }
        }
        if map.contains_key("serverAddressByClientCIDRs") {
            out.insert("serverAddressByClientCIDRs".into(), json!("<addresses>"));
        }
        Value::Object(out)
    }

    /// Versions are numbered per object, so that a write that should change nothing shows.
    fn version(&mut self, uid: Option<&Value>, version: &str) -> Value {
        let uid = uid.and_then(Value::as_str).unwrap_or_default();
        let seen = self.versions.entry(uid.to_owned()).or_default();
        if !seen.iter().any(|known| known == version) {
            seen.push(version.to_owned());
        }
        let number = seen.iter().position(|known| known == version).unwrap_or(0) + 1;
        if uid.is_empty() { json!("<rv>") } else { json!(format!("<rv{number}>")) }
    }

    /// Ages in cells, and no descriptions; a watch sends the columns with its first event only.
    fn table(&mut self, table: &mut Map<String, Value>) {
        if let Some(columns) = table.get_mut("columnDefinitions").and_then(Value::as_array_mut) {
            for column in columns.iter_mut().filter_map(Value::as_object_mut) {
                column.remove("description");
            }
            self.columns.clone_from(columns);
        }
        let is_age = |column: &Value| column["name"].as_str().is_some_and(|name| AGES.contains(&name));
        let ages: BTreeSet<usize> = (0..self.columns.len()).filter(|index| is_age(&self.columns[*index])).collect();
        let age = Regex::new(r"^\d+[smhdy]").unwrap();
        for row in table.get_mut("rows").and_then(Value::as_array_mut).into_iter().flatten() {
            for (index, cell) in row["cells"].as_array_mut().into_iter().flatten().enumerate() {
                if ages.contains(&index) && cell.as_str().is_some_and(|text| age.is_match(text)) {
                    *cell = json!("<age>");
                }
            }
        }
    }
}

/// JSON with sorted keys.
fn sorted_text(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let mut parts: Vec<String> =
                map.iter().map(|(key, value)| format!("{key}:{}", sorted_text(value))).collect();
            parts.sort();
            parts.join(",")
        }
        other => other.to_string(),
    }
}

/// Replaces a number or address where it is not part of a longer one.
fn replace_word(text: &str, value: &str, mark: &str) -> String {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(value) {
        let before = rest[..at].chars().next_back().or_else(|| out.chars().next_back());
        let after = rest[at + value.len()..].chars().next();
        let whole = before.is_none_or(|c| !word(c) && c != '.') && after.is_none_or(|c| !word(c));
        out.push_str(&rest[..at]);
        out.push_str(if whole { mark } else { value });
        rest = &rest[at + value.len()..];
    }
    out + rest
}

fn near(found: &Captures<'_>) -> String {
    let time = format!("{}Z", &found[1]).parse::<jiff::Timestamp>();
    let away = time.map(|time| (time.as_second() - jiff::Timestamp::now().as_second()).abs() / 86_400);
    if away.is_ok_and(|days| days <= NEAR_DAYS) { "<time>".into() } else { found[0].to_owned() }
}

#[test]
fn what_a_server_chooses_is_rewritten() {
    let mut normal = Normal::new(&[("t123", "${ns}")]);
    normal.sent = "10.96.0.9".into();
    let service = json!({"spec": {"clusterIP": "10.96.1.2", "ports": [{"nodePort": 31000}]}, "metadata": {
        "namespace": "t123", "uid": "11111111-2222-3333-4444-555555555555", "resourceVersion": "17", "creationTimestamp": jiff::Timestamp::now().to_string()}});
    normal.learn(&service);
    let out = normal.value(&service, "");
    assert_eq!(out["spec"], json!({"clusterIP": "<ip>", "ports": [{"nodePort": "<port>"}]}));
    assert_eq!(
        out["metadata"],
        json!({"namespace": "${ns}", "uid": "<uid>", "resourceVersion": "<rv1>", "creationTimestamp": "<time>"})
    );
    assert_eq!(normal.text("10.96.1.20 10.96.1.2, 2001-02-03T04:05:06Z"), "10.96.1.20 <ip>, 2001-02-03T04:05:06Z");
}
