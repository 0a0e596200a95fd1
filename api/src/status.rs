//! `metav1.Status`: the one form in which every refusal reaches a client, with Kubernetes' own texts.

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::uid::Uid;

/// A refusal (or, rarely, a success that is not an object) as the client sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// HTTP code, 0 on none.
    pub code: u16,
    /// `NotFound`, `Conflict`, … ; empty when unknown.
    pub reason: &'static str,
    pub message: String,
    pub details: Option<Box<Details>>,
    /// `metadata.continue` of a 410 on an expired list.
    pub continue_token: Option<String>,
    /// Texts for `Warning: 299` headers that go out with a refusal.
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Details {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(skip_serializing_if = "Uid::is_empty")]
    pub uid: Uid,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u32>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Cause {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}

impl Status {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Status { code, reason, message: message.into(), details: None, continue_token: None, warnings: Vec::new() }
    }

    fn about(mut self, group: &str, kind: &str, name: &str) -> Self {
        let details = Details { group: group.into(), kind: kind.into(), name: name.into(), ..Details::default() };
        self.details = Some(Box::new(details));
        self
    }

    /// 404 for an object; `plural` is the resource's name.
    pub fn not_found(group: &str, plural: &str, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", qualified(plural, group));
        Status::new(404, "NotFound", message).about(group, plural, name)
    }

    /// 404 for a path that no route serves.
    pub fn no_route() -> Self {
        let mut status = Status::new(404, "NotFound", "the server could not find the requested resource");
        status.details = Some(Box::default());
        status
    }

    pub fn already_exists(group: &str, plural: &str, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", qualified(plural, group));
        Status::new(409, "AlreadyExists", message).about(group, plural, name)
    }

    /// 409 with the sentence that follows `Operation cannot be fulfilled on …: `.
    pub fn conflict(group: &str, plural: &str, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", qualified(plural, group));
        Status::new(409, "Conflict", message).about(group, plural, name)
    }

    /// 409 of an update whose resourceVersion is not the current one.
    pub fn modified(group: &str, plural: &str, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Status::conflict(group, plural, name, why)
    }

    /// 409 of a server-side apply: one cause per field that another manager owns.
    pub fn apply_conflict(message: String, causes: Vec<Cause>) -> Self {
        let mut status = Status::new(409, "Conflict", message);
        status.details = Some(Box::new(Details { causes, ..Details::default() }));
        status
    }

    /// 422: the object's kind and name, and everything that is wrong with it.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: Vec<FieldError>) -> Self {
        let list = joined(&errors);
        let message = format!("{} \"{name}\" is invalid: {list}", qualified(kind, group));
        let mut status = Status::new(422, "Invalid", message).about(group, kind, name);
        if let Some(details) = &mut status.details {
            details.causes = errors
                .iter()
                .map(|e| Cause { reason: e.kind.reason().into(), message: e.body(), field: e.path.clone() })
                .collect();
        }
        status
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Status::new(400, "BadRequest", message)
    }

    /// 403 with the sentence that follows `… is forbidden: `; an empty name leaves it out.
    pub fn forbidden(group: &str, plural: &str, name: &str, why: &str) -> Self {
        let what = qualified(plural, group);
        let message = match (plural.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {why}"),
            (_, true) => format!("{what} is forbidden: {why}"),
            _ => format!("{what} \"{name}\" is forbidden: {why}"),
        };
        Status::new(403, "Forbidden", message).about(group, plural, name)
    }

    pub fn unauthorized() -> Self {
        Status::new(401, "Unauthorized", "Unauthorized")
    }

    /// 405 for a resource that does not have the verb.
    pub fn method_not_allowed() -> Self {
        let mut status =
            Status::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource");
        status.details = Some(Box::default());
        status
    }

    /// 406 for an `Accept` header that nothing matches.
    pub fn none_acceptable(available: &[&str]) -> Self {
        let list = available.join(", ");
        Status::plain(406, "NotAcceptable", format!("406: Not Acceptable\n\nAvailable representations: {list}"))
    }

    /// 406 for a form (`as=…`) that is not offered: `accepted` lists what could have been asked for.
    pub fn not_acceptable(accepted: &[&str]) -> Self {
        let message = format!("only the following media types are accepted: {}", accepted.join(", "));
        Status::new(406, "NotAcceptable", message)
    }

    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Status::new(415, "UnsupportedMediaType", message)
    }

    /// 410 of a watch or list from a version that is no longer kept.
    pub fn expired(message: impl Into<String>) -> Self {
        Status::new(410, "Expired", message)
    }

    pub fn too_large(limit: usize) -> Self {
        Status::new(413, "RequestEntityTooLarge", format!("Request entity too large: limit is {limit}"))
    }

    pub fn timeout(message: impl Into<String>, retry_after: u32) -> Self {
        let mut status = Status::new(504, "Timeout", format!("Timeout: {}", message.into()));
        status.details = Some(Box::new(Details { retry_after_seconds: Some(retry_after), ..Details::default() }));
        status
    }

    pub fn too_many_requests(message: impl Into<String>, retry_after: u32) -> Self {
        let mut status = Status::new(429, "TooManyRequests", message);
        status.details = Some(Box::new(Details { retry_after_seconds: Some(retry_after), ..Details::default() }));
        status
    }

    pub fn service_unavailable(message: impl Into<String>) -> Self {
        Status::new(503, "ServiceUnavailable", message)
    }

    pub fn internal(message: impl std::fmt::Display) -> Self {
        let mut status = Status::new(500, "InternalError", format!("Internal error occurred: {message}"));
        let cause = Cause { message: message.to_string(), ..Cause::default() };
        status.details = Some(Box::new(Details { causes: vec![cause], ..Details::default() }));
        status
    }

    /// 507: nothing can be written until there is space. Upstream has no reason for it.
    pub fn insufficient_storage(message: impl Into<String>) -> Self {
        Status::new(507, "InsufficientStorage", message)
    }

    /// 200 of a deletion that is complete: kind is the resource's plural, as upstream has it.
    pub fn deleted(group: &str, plural: &str, name: &str, uid: &Uid) -> Self {
        let mut status = Status::new(200, "", "").about(group, plural, name);
        if let Some(details) = &mut status.details {
            details.uid = uid.clone();
        }
        status
    }

    /// A refusal with a text of its own and empty details, as routes and negotiation give it.
    pub fn plain(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        let mut status = Status::new(code, reason, message);
        status.details = Some(Box::default());
        status
    }

    /// 500 of an error that upstream passes on as it is: message only.
    pub fn unknown(message: impl Into<String>) -> Self {
        Status::new(500, "", message)
    }

    /// The same, with more warnings.
    pub fn warned(mut self, warnings: &[String]) -> Self {
        self.warnings.extend_from_slice(warnings);
        self
    }

    /// The same, with a warning before the others.
    pub fn warned_first(mut self, warning: &str) -> Self {
        self.warnings.insert(0, warning.to_owned());
        self
    }

    /// Whether the details give this reason among their causes.
    pub fn has_cause(&self, reason: &str) -> bool {
        self.details.as_ref().is_some_and(|details| details.causes.iter().any(|cause| cause.reason == reason))
    }

    pub fn is_success(&self) -> bool {
        self.code < 400
    }

    /// The object as sent; a success carries no code.
    pub fn to_value(&self) -> Value {
        let mut metadata = Map::new();
        if let Some(token) = &self.continue_token {
            metadata.insert("continue".into(), json!(token));
        }
        let mut out = json!({"kind": "Status", "apiVersion": "v1", "metadata": metadata});
        out["status"] = json!(if self.is_success() { "Success" } else { "Failure" });
        if !self.message.is_empty() {
            out["message"] = json!(self.message);
        }
        if !self.reason.is_empty() {
            out["reason"] = json!(self.reason);
        }
        if let Some(details) = &self.details {
            out["details"] = json!(details);
        }
        if !self.is_success() {
            out["code"] = json!(self.code);
        }
        out
    }
}

/// `plural.group`, or `plural` for the core group.
fn qualified(name: &str, group: &str) -> String {
    if group.is_empty() { name.into() } else { format!("{name}.{group}") }
}

/// Several errors in brackets, one plain; equal messages appear once.
fn joined(errors: &[FieldError]) -> String {
    let mut messages: Vec<String> = Vec::new();
    for error in errors {
        let text = error.to_string();
        if !messages.contains(&text) {
            messages.push(text);
        }
    }
    match messages.as_slice() {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

/// What is wrong with a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    NotSupported,
    Forbidden,
    TooLong,
    TooMany,
    TypeInvalid,
    Internal,
}

impl ErrorKind {
    /// The `reason` of a cause.
    pub fn reason(self) -> &'static str {
        match self {
            ErrorKind::NotFound => "FieldValueNotFound",
            ErrorKind::Required => "FieldValueRequired",
            ErrorKind::Duplicate => "FieldValueDuplicate",
            ErrorKind::Invalid => "FieldValueInvalid",
            ErrorKind::NotSupported => "FieldValueNotSupported",
            ErrorKind::Forbidden => "FieldValueForbidden",
            ErrorKind::TooLong => "FieldValueTooLong",
            ErrorKind::TooMany => "FieldValueTooMany",
            ErrorKind::TypeInvalid => "FieldValueTypeInvalid",
            ErrorKind::Internal => "InternalError",
        }
    }

    fn text(self) -> &'static str {
        match self {
            ErrorKind::NotFound => "Not found",
            ErrorKind::Required => "Required value",
            ErrorKind::Duplicate => "Duplicate value",
            ErrorKind::Invalid | ErrorKind::TypeInvalid => "Invalid value",
            ErrorKind::NotSupported => "Unsupported value",
            ErrorKind::Forbidden => "Forbidden",
            ErrorKind::TooLong => "Too long",
            ErrorKind::TooMany => "Too many",
            ErrorKind::Internal => "Internal error",
        }
    }
}

/// One thing wrong with an object: where, what, the value met (as JSON text, where the kind shows one), and why.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldError {
    pub kind: ErrorKind,
    pub path: String,
    pub bad_value: Value,
    pub detail: String,
}

impl FieldError {
    pub fn new(
        kind: ErrorKind,
        path: impl Into<String>,
        bad_value: impl Into<Value>,
        detail: impl Into<String>,
    ) -> Self {
        FieldError { kind, path: path.into(), bad_value: bad_value.into(), detail: detail.into() }
    }

    pub fn required(path: impl Into<String>, detail: impl Into<String>) -> Self {
        FieldError::new(ErrorKind::Required, path, Value::Null, detail)
    }

    pub fn duplicate(path: impl Into<String>, value: impl Into<Value>) -> Self {
        FieldError::new(ErrorKind::Duplicate, path, value, "")
    }

    pub fn invalid(path: impl Into<String>, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        FieldError::new(ErrorKind::Invalid, path, value, detail)
    }

    pub fn not_found(path: impl Into<String>, value: impl Into<Value>) -> Self {
        FieldError::new(ErrorKind::NotFound, path, value, "")
    }

    pub fn forbidden(path: impl Into<String>, detail: impl Into<String>) -> Self {
        FieldError::new(ErrorKind::Forbidden, path, Value::Null, detail)
    }

    pub fn too_long(path: impl Into<String>, limit: usize) -> Self {
        FieldError::new(ErrorKind::TooLong, path, Value::Null, format!("may not be more than {limit} bytes"))
    }

    /// `supported` is listed in the order given.
    pub fn not_supported(path: impl Into<String>, value: impl Into<Value>, supported: &[&str]) -> Self {
        let list: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        FieldError::new(ErrorKind::NotSupported, path, value, format!("supported values: {}", list.join(", ")))
    }

    /// The message without the path: what a cause carries.
    pub fn body(&self) -> String {
        let text = self.kind.text();
        let shows_value =
            !matches!(self.kind, ErrorKind::Required | ErrorKind::Forbidden | ErrorKind::TooLong | ErrorKind::Internal);
        let shown = shows_value.then(|| shown(&self.bad_value)).filter(|shown| !shown.is_empty());
        let head = shown.map_or_else(|| text.to_string(), |shown| format!("{text}: {shown}"));
        if self.detail.is_empty() { head } else { format!("{head}: {}", self.detail) }
    }
}

impl std::fmt::Display for FieldError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path, self.body())
    }
}

/// A bad value that is shown as this text, unquoted: upstream prints some structs in the order of their fields, which a
/// sorted map cannot hold.
pub fn verbatim(text: &str) -> Value {
    json!({ VERBATIM: text })
}

/// A bad value that is not shown at all.
pub fn omitted() -> Value {
    verbatim("")
}

const VERBATIM: &str = "\u{0}verbatim";

fn shown(value: &Value) -> String {
    match value.get(VERBATIM).and_then(Value::as_str) {
        Some(text) => text.to_string(),
        None => value.to_string(),
    }
}
