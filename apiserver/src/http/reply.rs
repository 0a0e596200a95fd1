//! Answers as bytes: objects, lists, tables, statuses, in the form that was negotiated.

use std::sync::Arc;

use api::kind::Kind;
use api::schema::Schema;
use api::status::Status;
use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt;
use hyper::{Response, StatusCode, header};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::negotiate::{Accepted, Encoding, Form};
use crate::engine::{Engine, List, Shown};
use crate::limits::Seat;
use crate::object::Object;

pub type Reply = Response<Body>;

/// What `includeObject` asks for in a Table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Include {
    None,
    Metadata,
    Object,
}

impl Include {
    pub fn parse(text: Option<&str>) -> Result<Self, Status> {
        match text {
            None | Some("" | "Metadata") => Ok(Self::Metadata),
            Some("None") => Ok(Self::None),
            Some("Object") => Ok(Self::Object),
            Some(other) => Err(Status::bad_request(format!(
                "Unable to convert to Table as requested: includeObject: Invalid value: {other:?}: must be 'Metadata', 'Object', 'None', or empty"
            ))),
        }
    }
}

pub fn bytes(code: u16, content_type: &str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Body::from(body.into()));
    *reply.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = reply.headers_mut();
    if let Ok(value) = content_type.parse() {
        headers.insert(header::CONTENT_TYPE, value);
    }
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-cache, private"));
    reply
}

/// An answer whose body keeps a seat until it has been sent or dropped.
pub fn holding(reply: Reply, seat: Seat) -> Reply {
    reply.map(|body| {
        Body::from_stream(body.into_data_stream().map(move |chunk| {
            let _held = &seat;
            chunk
        }))
    })
}

pub fn text(code: u16, body: impl Into<String>) -> Reply {
    bytes(code, "text/plain; charset=utf-8", body.into())
}

/// A value of no kind of ours in the encoding asked for; protobuf needs a type, so such values come as JSON.
pub fn value(code: u16, value: &Value, encoding: Encoding) -> Reply {
    match encoding {
        Encoding::Json | Encoding::Protobuf => bytes(code, Encoding::Json.content_type(), value.to_string()),
        Encoding::Yaml => bytes(code, encoding.content_type(), api::encode::yaml(value)),
    }
}

fn typed(code: u16, schema: &Schema, object: &Value, encoding: Encoding) -> Reply {
    match (encoding, api::encode::protobuf(schema, object)) {
        (Encoding::Protobuf, Some(message)) => bytes(code, encoding.content_type(), message),
        _ => value(code, object, encoding),
    }
}

/// A refusal, with its warnings.
pub fn status(status: &Status, encoding: Encoding) -> Reply {
    let shown = status.to_value();
    let mut reply = match api::schema::of_kind("", "v1", "Status") {
        Some(ty) => typed(status.code, &Schema::Type(ty), &shown, encoding),
        None => value(status.code, &shown, encoding),
    };
    if let Some(seconds) = status.details.as_ref().and_then(|details| details.retry_after_seconds) {
        reply.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    warned(reply, &status.warnings)
}

/// When all warnings of an answer are longer than this together, each is cut to [`WARNING`]; as upstream, in characters.
const WARNINGS: usize = 4096;
const WARNING: usize = 256;

/// Adds `Warning: 299` headers, each text once. Headers that clients refuse to read would lose the answer with them.
pub fn warned(mut reply: Reply, warnings: &[String]) -> Reply {
    let mut seen = std::collections::HashSet::new();
    // Texts with line breaks are no header; upstream leaves them out too.
    let texts = warnings.iter().filter(|text| !text.is_empty() && !text.contains(char::is_control));
    let texts: Vec<&String> = texts.filter(|text| seen.insert(text.as_str())).collect();
    let long = texts.iter().map(|text| text.chars().count()).sum::<usize>() > WARNINGS;
    let mut left = WARNINGS;
    for text in texts {
        let shown: String = if long { text.chars().take(WARNING).collect() } else { text.clone() };
        left = match left.checked_sub(shown.chars().count()) {
            Some(left) => left,
            None => break,
        };
        let quoted = format!("299 - \"{}\"", shown.replace('\\', "\\\\").replace('"', "\\\""));
        if let Ok(value) = header::HeaderValue::from_bytes(quoted.as_bytes()) {
            reply.headers_mut().append(header::WARNING, value);
        }
    }
    reply
}

/// Adds a warning before those that are there.
pub fn warned_first(mut reply: Reply, warning: &str) -> Reply {
    let others: Vec<_> = reply.headers().get_all(header::WARNING).iter().cloned().collect();
    reply.headers_mut().remove(header::WARNING);
    let mut reply = warned(reply, &[warning.to_owned()]);
    for other in others {
        reply.headers_mut().append(header::WARNING, other);
    }
    reply
}

/// An object of the engine's in the form asked for; stored text goes out as it is.
pub fn shown(code: u16, kind: &Kind, object: Shown, accepted: Accepted, include: Include) -> Reply {
    match object {
        Shown::Stored(stored) if accepted == Accepted::PLAIN_JSON => {
            bytes(code, Encoding::Json.content_type(), stored.json.clone())
        }
        other => self::object(code, kind, &other.into_value(), accepted, include),
    }
}

/// One object in the form asked for.
pub fn object(code: u16, kind: &Kind, object: &Value, accepted: Accepted, include: Include) -> Reply {
    let shaped = match accepted.form {
        Form::Plain => return typed(code, &kind.schema, object, accepted.encoding),
        Form::Partial | Form::PartialList => api::table::partial(object),
        Form::Table => {
            let meta = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
            api::table::table(kind, meta, vec![row(kind, object, include, Timestamp::now())])
        }
    };
    value(code, &shaped, accepted.encoding)
}

/// A Scale in the form asked for.
pub fn scale(scale: &Value, accepted: Accepted, include: Include) -> Reply {
    let shaped = match accepted.form {
        Form::Plain => return value(200, scale, accepted.encoding),
        Form::Partial | Form::PartialList => api::table::partial(scale),
        Form::Table => api::table::scale(scale, included(scale, include), Timestamp::now()),
    };
    value(200, &shaped, accepted.encoding)
}

/// What a row has of its object.
fn included(object: &Value, include: Include) -> Option<Value> {
    match include {
        Include::None => None,
        Include::Metadata => Some(api::table::partial(object)),
        Include::Object => Some(object.clone()),
    }
}

pub fn row(kind: &Kind, object: &Value, include: Include, now: Timestamp) -> Value {
    api::table::row(kind, object, included(object, include), now)
}

/// A list in the form asked for.
pub fn list(engine: &Engine, kind: &Arc<Kind>, list: &List, accepted: Accepted, include: Include) -> Reply {
    let mut meta = json!({"resourceVersion": list.revision.to_string()});
    if kind.custom.is_some() && accepted.form == Form::Plain {
        // Lists of trees say so where there is no more.
        meta["continue"] = json!("");
    }
    if !list.continue_token.is_empty() {
        meta["continue"] = json!(list.continue_token);
        if let Some(remaining) = list.remaining {
            meta["remainingItemCount"] = json!(remaining);
        }
    }
    let shown = |object: &Arc<Object>| engine.show(kind, object);
    let shaped = match accepted.form {
        Form::Plain if kind.is_storage() && accepted.encoding == Encoding::Json => return joined(kind, list, &meta),
        Form::Plain => {
            let items: Vec<Value> = list.objects.iter().map(|object| item(kind, shown(object))).collect();
            json!({"kind": kind.list_kind, "apiVersion": kind.api_version(), "metadata": meta, "items": items})
        }
        Form::Table => {
            let now = Timestamp::now();
            let rows = list.objects.iter().map(|object| row(kind, &shown(object), include, now)).collect();
            api::table::table(kind, meta, rows)
        }
        Form::Partial | Form::PartialList => {
            let items: Vec<Value> = list.objects.iter().map(|object| api::table::partial(&shown(object))).collect();
            json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": meta, "items": items})
        }
    };
    value(200, &shaped, accepted.encoding)
}

/// Items of a list do not repeat their type, but for those of defined kinds.
fn item(kind: &Kind, mut object: Value) -> Value {
    if let Some(map) = object.as_object_mut().filter(|_| kind.custom.is_none()) {
        map.remove("kind");
        map.remove("apiVersion");
    }
    object
}

/// A list of stored bytes: joined, not decoded.
fn joined(kind: &Kind, list: &List, meta: &Value) -> Reply {
    let size: usize = list.objects.iter().map(|object| object.json.len()).sum();
    let head = format!(
        "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{meta},\"items\":[",
        kind.list_kind,
        kind.api_version()
    );
    let mut out = Vec::with_capacity(size + head.len() + 2);
    out.extend_from_slice(head.as_bytes());
    for (index, object) in list.objects.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        match kind.custom {
            Some(_) => out.extend_from_slice(&object.json),
            None => {
                out.push(b'{');
                out.extend_from_slice(object.list_item());
            }
        }
    }
    out.extend_from_slice(b"]}");
    bytes(200, "application/json", out)
}

/// A refusal where the route is not even a resource, as upstream's mux gives it.
pub fn page_not_found() -> Reply {
    text(404, "404 page not found\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_quoted() {
        let reply = warned(text(200, "ok"), &["unknown field \"spec.x\"".into()]);
        assert_eq!(reply.headers()[header::WARNING], "299 - \"unknown field \\\"spec.x\\\"\"");
    }

    #[test]
    fn long_warnings_are_cut_and_many_end() {
        let lengths = |warnings: &[String]| -> Vec<usize> {
            let reply = warned(text(200, "ok"), warnings);
            reply.headers().get_all(header::WARNING).iter().map(|value| value.len() - "299 - \"\"".len()).collect()
        };
        assert_eq!(lengths(&["a".repeat(1000), "b".into()]), [1000, 1]);
        assert_eq!(lengths(&["a".repeat(5000), "b".into()]), [256, 1]);
        let many: Vec<String> = (0..100).map(|i| format!("{i:0300}")).collect();
        assert_eq!(lengths(&many), [256; 16]);
        assert_eq!(lengths(&["one".into(), "one".into(), "two\nlines".into(), "ü".into()]), [3, 2]);
    }

    #[test]
    fn an_unknown_include_is_refused() {
        assert_eq!(Include::parse(Some("Everything")).unwrap_err().code, 400);
        assert_eq!(Include::parse(None).unwrap(), Include::Metadata);
    }
}
