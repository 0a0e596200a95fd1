//! Indented JSON for people: whoever asks for it, and curl, wget and browsers, as upstream chooses.

use axum::body::{Body, HttpBody};
use hyper::header;
use hyper::http::request::Parts;

use super::path::Query;
use super::read::header_of;
use super::reply::Reply;

const PEOPLE: [&str; 3] = ["curl", "Wget", "Mozilla/5.0"];

/// Whether a request's answer is read by people.
pub fn is_wanted(parts: &Parts) -> bool {
    match Query::parse(parts.uri.query().unwrap_or_default()).get("pretty") {
        // As Go reads a truth value.
        Some(asked) if !asked.is_empty() => matches!(asked, "1" | "t" | "T" | "TRUE" | "true" | "True"),
        _ => header_of(parts, header::USER_AGENT).is_some_and(|agent| PEOPLE.iter().any(|own| agent.starts_with(own))),
    }
}

/// An answer that is one JSON text of ours, indented; streams, and documents with a tag, stay as they are.
pub async fn indented(reply: Reply) -> Reply {
    let headers = reply.headers();
    let json = headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    if !json || headers.contains_key(header::ETAG) || reply.body().size_hint().exact().is_none() {
        return reply;
    }
    let (parts, body) = reply.into_parts();
    match axum::body::to_bytes(body, usize::MAX).await {
        Ok(bytes) => Reply::from_parts(parts, Body::from(indent(&bytes))),
        // A text in memory does not fail to be read; if it did, there would be nothing to show.
        Err(_) => Reply::from_parts(parts, Body::empty()),
    }
}

/// Two spaces a level, a space after colons, empty lists and objects closed at once.
fn indent(json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len() * 2);
    let (mut depth, mut text, mut escaped) = (0, false, false);
    let line = |out: &mut Vec<u8>, depth: usize| {
        out.push(b'\n');
        out.resize(out.len() + 2 * depth, b' ');
    };
    for (at, &byte) in json.iter().enumerate() {
        if text {
            text = escaped || byte != b'"';
            escaped = byte == b'\\' && !escaped;
            out.push(byte);
            continue;
        }
        match byte {
            b'"' => {
                text = true;
                out.push(byte);
            }
            b'{' | b'[' => {
                out.push(byte);
                depth += 1;
                if !matches!(json.get(at + 1), Some(b'}' | b']')) {
                    line(&mut out, depth);
                }
            }
            b'}' | b']' => {
                depth -= usize::from(depth > 0);
                if !matches!(out.last(), Some(b'{' | b'[')) {
                    line(&mut out, depth);
                }
                out.push(byte);
            }
            b',' => {
                out.push(byte);
                line(&mut out, depth);
            }
            b':' => out.extend_from_slice(b": "),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::Request;
    use serde_json::{Value, json};

    #[test]
    fn texts_are_indented_and_mean_the_same() {
        let value = json!({"a": [1, {"b\"]": "x:{,\\"}], "c": {}, "d": []});
        let text = indent(value.to_string().as_bytes());
        assert_eq!(String::from_utf8(text.clone()).unwrap(), serde_json::to_string_pretty(&value).unwrap());
        assert_eq!(serde_json::from_slice::<Value>(&text).unwrap(), value);
    }

    #[test]
    fn people_are_told_by_what_they_use() {
        let wanted = |uri: &str, agent: &str| {
            let request = Request::builder().uri(uri).header("user-agent", agent).body(()).unwrap();
            is_wanted(&request.into_parts().0)
        };
        assert!(
            wanted("/api", "curl/8.0")
                && wanted("/api?pretty=true", "kubectl/v1.34")
                && wanted("/api", "Mozilla/5.0 (X11)")
        );
        assert!(!wanted("/api?pretty=0", "curl/8.0") && !wanted("/api", "kubectl/v1.34"));
    }
}
