//! A JSON reader with the syntax errors of Go's, which keeps the order of keys and duplicates for the typed stage.

use serde_json::{Map, Number, Value};

use crate::budget::{Budget, Meter, Size};

/// JSON as written: numbers as text, keys in order, duplicates kept.
#[derive(Debug, Clone, PartialEq)]
pub enum Json {
    Null,
    Bool(bool),
    Number(String),
    String(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    /// What Go calls it in a type error.
    pub fn go_kind(&self) -> &'static str {
        match self {
            Json::Null => "null",
            Json::Bool(_) => "bool",
            Json::Number(_) => "number",
            Json::String(_) => "string",
            Json::List(_) => "array",
            Json::Object(_) => "object",
        }
    }

    pub fn get(&self, key: &str) -> Option<&Json> {
        match self {
            Json::Object(entries) => entries.iter().rev().find(|(k, _)| k == key).map(|(_, v)| v),
            _ => None,
        }
    }

    /// Read nodes are never deeper than the budget, so this may call itself.
    pub(super) fn size(&self) -> Size {
        let (nodes, depth) = match self {
            Json::List(items) => sizes(items.iter()),
            Json::Object(entries) => sizes(entries.iter().map(|(_, node)| node)),
            _ => return Size { depth: 0, nodes: 1 },
        };
        Size { depth: depth + 1, nodes: nodes + 1 }
    }

    /// As untyped JSON; of duplicates the last wins.
    pub fn to_value(&self) -> Value {
        match self {
            Json::Null => Value::Null,
            Json::Bool(on) => Value::Bool(*on),
            Json::Number(text) => number(text),
            Json::String(text) => Value::String(text.clone()),
            Json::List(items) => items.iter().map(Json::to_value).collect(),
            Json::Object(entries) => {
                Value::Object(entries.iter().map(|(k, v)| (k.clone(), v.to_value())).collect::<Map<_, _>>())
            }
        }
    }
}

fn sizes<'a>(nodes: impl Iterator<Item = &'a Json>) -> (usize, usize) {
    nodes.map(Json::size).fold((0, 0), |(nodes, depth), size| (nodes + size.nodes, depth.max(size.depth)))
}

impl From<&Value> for Json {
    fn from(value: &Value) -> Json {
        match value {
            Value::Null => Json::Null,
            Value::Bool(on) => Json::Bool(*on),
            Value::Number(n) => Json::Number(n.to_string()),
            Value::String(text) => Json::String(text.clone()),
            Value::Array(items) => Json::List(items.iter().map(Json::from).collect()),
            Value::Object(map) => Json::Object(map.iter().map(|(k, v)| (k.clone(), Json::from(v))).collect()),
        }
    }
}

fn number(text: &str) -> Value {
    let integer = text.parse::<i64>().map(Number::from).or_else(|_| text.parse::<u64>().map(Number::from));
    match integer {
        Ok(n) => Value::Number(n),
        Err(_) => text.parse().ok().and_then(Number::from_f64).map_or(Value::Null, Value::Number),
    }
}

/// A body that is JSON.
///
/// # Errors
/// The text of Go's reader, or the limit of [`Budget::CLIENT`] that was met.
pub fn parse(bytes: &[u8]) -> Result<Json, String> {
    parse_within(bytes, &mut Budget::CLIENT.meter())
}

/// JSON that is part of something larger.
///
/// # Errors
/// Those of [`parse`], by the limits of this meter.
pub fn parse_within(bytes: &[u8], meter: &mut Meter) -> Result<Json, String> {
    let mut reader = Reader { bytes, at: 0, meter };
    let node = reader.value()?;
    reader.space();
    match reader.peek() {
        None => Ok(node),
        Some(_) => reader.invalid("after top-level value"),
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    meter: &'a mut Meter,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn space(&mut self) {
        while self.peek().is_some_and(|b| matches!(b, b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    fn invalid<T>(&self, where_: &str) -> Result<T, String> {
        match self.peek() {
            None => Err("unexpected end of JSON input".into()),
            Some(b'\'') => Err(format!(r"invalid character '\'' {where_}")),
            Some(b'"') => Err(format!("invalid character '\"' {where_}")),
            Some(b @ (b'\n' | b'\t' | b'\r')) => {
                Err(format!("invalid character '{}' {where_}", char::from(b).escape_default()))
            }
            Some(b) if b < 0x20 => Err(format!("invalid character '\\x{b:02x}' {where_}")),
            Some(b) => Err(format!("invalid character '{}' {where_}", char::from(b))),
        }
    }

    fn value(&mut self) -> Result<Json, String> {
        self.space();
        match self.peek() {
            Some(b'{') => return self.nested(Self::object),
            Some(b'[') => return self.nested(Self::list),
            _ => self.meter.node()?,
        }
        match self.peek() {
            Some(b'"') => self.string().map(Json::String),
            Some(b't') => self.literal("true", Json::Bool(true)),
            Some(b'f') => self.literal("false", Json::Bool(false)),
            Some(b'n') => self.literal("null", Json::Null),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => self.invalid("looking for beginning of value"),
        }
    }

    fn nested(&mut self, read: fn(&mut Self) -> Result<Json, String>) -> Result<Json, String> {
        self.meter.enter()?;
        self.at += 1;
        let node = read(self)?;
        self.meter.leave();
        Ok(node)
    }

    fn object(&mut self) -> Result<Json, String> {
        let mut entries = Vec::new();
        self.space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(Json::Object(entries));
        }
        loop {
            self.space();
            if self.peek() != Some(b'"') {
                return self.invalid("looking for beginning of object key string");
            }
            let key = self.string()?;
            self.space();
            if self.peek() != Some(b':') {
                return self.invalid("after object key");
            }
            self.at += 1;
            entries.push((key, self.value()?));
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    return Ok(Json::Object(entries));
                }
                _ => return self.invalid("after object key:value pair"),
            }
        }
    }

    fn list(&mut self) -> Result<Json, String> {
        let mut items = Vec::new();
        self.space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Json::List(items));
        }
        loop {
            items.push(self.value()?);
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    return Ok(Json::List(items));
                }
                _ => return self.invalid("after array element"),
            }
        }
    }

    fn literal(&mut self, word: &str, node: Json) -> Result<Json, String> {
        for expected in word.bytes() {
            if self.peek() != Some(expected) {
                return self.invalid(&format!("in literal {word} (expecting '{}')", char::from(expected)));
            }
            self.at += 1;
        }
        Ok(node)
    }

    fn digits(&mut self) -> usize {
        let start = self.at;
        while self.peek().is_some_and(|b| b.is_ascii_digit()) {
            self.at += 1;
        }
        self.at - start
    }

    fn number(&mut self) -> Result<Json, String> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else if self.digits() == 0 {
            return self.invalid("in numeric literal");
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            if self.digits() == 0 {
                return self.invalid("after decimal point in numeric literal");
            }
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            if self.digits() == 0 {
                return self.invalid("in exponent of numeric literal");
            }
        }
        Ok(Json::Number(String::from_utf8_lossy(&self.bytes[start..self.at]).into_owned()))
    }

    fn string(&mut self) -> Result<String, String> {
        self.at += 1;
        let mut out = Vec::new();
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(String::from_utf8_lossy(&out).into_owned());
                }
                Some(b'\\') => {
                    self.at += 1;
                    let c = self.escape()?;
                    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                }
                Some(b) if b >= 0x20 => {
                    out.push(b);
                    self.at += 1;
                }
                _ => return self.invalid("in string literal"),
            }
        }
    }

    fn escape(&mut self) -> Result<char, String> {
        let c = match self.peek() {
            Some(c @ (b'"' | b'\\' | b'/')) => char::from(c),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                self.at += 1;
                return self.unicode();
            }
            _ => return self.invalid("in string escape code"),
        };
        self.at += 1;
        Ok(c)
    }

    /// `\uXXXX` after the `u`, with surrogate pairs; a lone surrogate becomes U+FFFD as in Go.
    fn unicode(&mut self) -> Result<char, String> {
        let first = self.hex()?;
        if let Some(c) = char::from_u32(first) {
            return Ok(c);
        }
        let low = (first < 0xDC00 && self.bytes[self.at..].starts_with(b"\\u")).then(|| {
            let mark = self.at;
            self.at += 2;
            (mark, self.hex())
        });
        match low {
            Some((_, Ok(second))) if (0xDC00..0xE000).contains(&second) => {
                Ok(char::from_u32(0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00)).unwrap_or('\u{FFFD}'))
            }
            Some((_, Err(error))) => Err(error),
            Some((mark, Ok(_))) => {
                self.at = mark;
                Ok('\u{FFFD}')
            }
            None => Ok('\u{FFFD}'),
        }
    }

    fn hex(&mut self) -> Result<u32, String> {
        let mut code = 0;
        for _ in 0..4 {
            match self.peek().and_then(|b| char::from(b).to_digit(16)) {
                Some(digit) => code = code * 16 + digit,
                None => return self.invalid("in \\u hexadecimal character escape"),
            }
            self.at += 1;
        }
        Ok(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_those_of_go() {
        for (given, want) in [
            ("", "unexpected end of JSON input"),
            ("{", "unexpected end of JSON input"),
            (r#"{"a":1} x"#, "invalid character 'x' after top-level value"),
            (r#"{"a":1,}"#, "invalid character '}' looking for beginning of object key string"),
            ("{'a':1}", r"invalid character '\'' looking for beginning of object key string"),
            ("tru", "unexpected end of JSON input"),
            ("[1 2]", "invalid character '2' after array element"),
            ("01", "invalid character '1' after top-level value"),
            ("\"a\nb\"", r"invalid character '\n' in string literal"),
        ] {
            assert_eq!(parse(given.as_bytes()).unwrap_err(), want, "{given}");
        }
        assert!(parse("[".repeat(5000).as_bytes()).unwrap_err().starts_with("exceeded max depth"));
    }

    #[test]
    fn keeps_duplicates_and_number_texts() {
        let node = parse(br#"{"a":1.0,"a":"\ud83d\ude00\u00e9\ud800"}"#).unwrap();
        let Json::Object(entries) = &node else { panic!() };
        assert_eq!(entries[0].1, Json::Number("1.0".into()));
        assert_eq!(entries[1].1, Json::String("😀é\u{FFFD}".into()));
        assert_eq!(node.to_value(), serde_json::json!({"a": "😀é\u{FFFD}"}));
    }
}
