//! YAML with sorted keys, lists flush with their key, and quotes where a plain word would be read as something else.

use serde_json::Value;

use crate::decode::yaml::parse;

/// A document, with its final line break.
pub fn yaml(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => block(value, 0, &mut out),
        Value::Array(items) if !items.is_empty() => block(value, 0, &mut out),
        other => {
            out.push_str(&inline(other, 0));
            out.push('\n');
        }
    }
    out
}

fn is_block(value: &Value) -> bool {
    match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    }
}

/// Lines of a map or list; the first one is written where the caller stands.
fn block(value: &Value, indent: usize, out: &mut String) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            for (i, key) in keys.into_iter().enumerate() {
                if i > 0 {
                    out.push_str(&pad);
                }
                out.push_str(&key_text(key, indent));
                out.push(':');
                member(&map[key], indent, out);
            }
        }
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push_str(&pad);
                }
                out.push_str("- ");
                if is_block(item) {
                    block(item, indent + 2, out);
                } else {
                    out.push_str(&inline(item, indent));
                    out.push('\n');
                }
            }
        }
        _ => {}
    }
}

/// What follows a key.
fn member(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::Object(_) if is_block(value) => {
            out.push('\n');
            out.push_str(&" ".repeat(indent + 2));
            block(value, indent + 2, out);
        }
        Value::Array(_) if is_block(value) => {
            out.push('\n');
            out.push_str(&" ".repeat(indent));
            block(value, indent, out);
        }
        other => {
            out.push(' ');
            out.push_str(&inline(other, indent));
            out.push('\n');
        }
    }
}

fn inline(value: &Value, indent: usize) -> String {
    match value {
        Value::Object(_) => "{}".into(),
        Value::Array(_) => "[]".into(),
        Value::String(text) => scalar(text, indent),
        other => other.to_string(),
    }
}

/// A key stands on one line.
fn key_text(key: &str, indent: usize) -> String {
    if key.contains('\n') { Value::from(key).to_string() } else { scalar(key, indent) }
}

fn scalar(text: &str, indent: usize) -> String {
    let printable = text.chars().all(|c| c == '\n' || (!c.is_control() && c != '\u{FEFF}'));
    if !printable {
        return serde_json::Value::from(text).to_string();
    }
    if text.contains('\n') {
        return literal(text, indent);
    }
    if reads_as_other(text) {
        return format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    }
    if plain_is_safe(text) { text.into() } else { format!("'{}'", text.replace('\'', "''")) }
}

/// `|` with the indicator for how it ends.
fn literal(text: &str, indent: usize) -> String {
    let ending = match (text.ends_with('\n'), text.ends_with("\n\n") || text == "\n") {
        (false, _) => "-",
        (true, true) => "+",
        (true, false) => "",
    };
    let hint = if text.starts_with([' ', '\n']) { "2" } else { "" };
    let pad = " ".repeat(indent + 2);
    let body = text.strip_suffix('\n').unwrap_or(text);
    let lines: Vec<String> =
        body.split('\n').map(|line| if line.is_empty() { String::new() } else { format!("{pad}{line}") }).collect();
    format!("|{hint}{ending}\n{}", lines.join("\n"))
}

/// A plain word that a reader would take for a number, truth value, null or time.
fn reads_as_other(text: &str) -> bool {
    let is_time = text.len() >= 10
        && text.as_bytes()[..4].iter().all(u8::is_ascii_digit)
        && text.as_bytes()[4] == b'-'
        && text.bytes().all(|b| b.is_ascii_digit() || b"-:TtZz.+ ".contains(&b));
    let is_word = text.chars().all(|c| c.is_alphanumeric() || "+-._~".contains(c));
    let other = is_word && parse(text).is_ok_and(|y| !matches!(y.node, crate::decode::json::Json::String(_)));
    text.is_empty() || is_time || other
}

fn plain_is_safe(text: &str) -> bool {
    let first = text.chars().next().unwrap_or(' ');
    let marks = "-?:,[]{}#&*!|>'\"%@`";
    let starts_badly = marks.contains(first)
        && !(matches!(first, '-' | '?' | ':') && text.chars().nth(1).is_some_and(|c| !c.is_whitespace()));
    !starts_badly
        && !text.starts_with(' ')
        && !text.ends_with(' ')
        && !text.contains(": ")
        && !text.contains(" #")
        && !text.ends_with(':')
        && !text.starts_with("---")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn looks_as_kubectl_prints_it() {
        let value = json!({"data": {"multi": "a\nb\n", "n": "7", "t": "true", "x": "a: b"}, "list": [{"a": 1, "b": []}, "s"],
            "time": "2020-01-02T03:04:05Z", "empty": {}});
        let want = "data:\n  multi: |\n    a\n    b\n  \"n\": \"7\"\n  t: \"true\"\n  x: 'a: b'\nempty: {}\nlist:\n- a: 1\n  b: []\n- s\ntime: \"2020-01-02T03:04:05Z\"\n";
        assert_eq!(yaml(&value), want);
    }

    #[test]
    fn what_is_written_is_read_back() {
        for text in
            ["", "yes", "0x10", "- a", "a\n", "a\n\nb", "#x", "it's", "a #b", "\ttab", "null", "~", "1.5", "[x]", "x:"]
        {
            let value = json!({ "k": text });
            assert_eq!(parse(&yaml(&value)).unwrap().node.to_value(), value, "{text:?}");
            let value = json!({ text: "v" });
            assert_eq!(parse(&yaml(&value)).unwrap().node.to_value(), value, "{text:?}");
        }
    }
}
