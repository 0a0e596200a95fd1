//! From request bytes to the canonical JSON form of an object, as Go's decoder and encoder together would leave it.

mod build;
pub mod json;
mod proto;
pub mod yaml;

use serde_json::{Map, Value, json};

use self::json::Json;
use crate::kind::{Gvk, Kind, api_version};
use crate::schema::{self, Reading, Schema};
use crate::status::{FieldError, Status};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediaType {
    Json,
    Yaml,
    Protobuf,
}

/// What to do about unknown and duplicate fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

impl FieldValidation {
    /// The query parameter's value; `Warn` when absent, `None` when unknown.
    pub fn parse(text: &str) -> Option<FieldValidation> {
        match text {
            "" | "Warn" => Some(FieldValidation::Warn),
            "Ignore" => Some(FieldValidation::Ignore),
            "Strict" => Some(FieldValidation::Strict),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// Always with `apiVersion` and `kind`.
    pub value: Value,
    /// Texts for `Warning: 299` headers.
    pub warnings: Vec<String>,
}

/// Why a body is not the object it should be; the caller says how that reads.
#[derive(Debug, Clone, PartialEq)]
pub struct TypeFailure {
    /// As Go's JSON decoder says it.
    pub text: String,
    /// As upstream's converter of trees says it, where that differs.
    pub converter: Option<String>,
}

impl TypeFailure {
    fn new(text: String) -> Self {
        Self { text, converter: None }
    }
}

/// A body as an object of this kind.
///
/// # Errors
/// 415 for protobuf of a kind that users define; else those of [`typed`].
pub fn object(kind: &Kind, media: MediaType, bytes: &[u8], validation: FieldValidation) -> Result<Decoded, Status> {
    if media == MediaType::Protobuf && kind.custom.is_some() {
        return Err(Status::unsupported_media_type(&["application/json", "application/yaml"]));
    }
    typed(&kind.gvk(), &kind.schema, media, bytes, validation)
}

/// A body as an object of a subresource's or virtual kind's type.
///
/// # Errors
/// 400 when the body cannot be read, exceeds the budget, is of another version or kind, does not fit its type, or, with
/// `Strict`, has unknown or duplicate fields. 422 for another kind where users define the one that is wanted.
pub fn typed(
    gvk: &Gvk,
    schema: &Schema,
    media: MediaType,
    bytes: &[u8],
    validation: FieldValidation,
) -> Result<Decoded, Status> {
    // What says nothing of its version is of none, where there is no Go type to say it.
    let unsaid = Gvk { group: "".into(), version: "".into(), kind: gvk.kind.clone() };
    let default = if schema.ty().reading == Reading::Plain { &unsaid } else { gvk };
    let body = read(media, bytes, default).map_err(|why| unrecognized(gvk, bytes, &why))?;
    let given = body.gvk.clone();
    let failed = |why: &str| {
        let Gvk { version, kind, .. } = &given;
        Status::bad_request(format!("{kind} in version {version:?} cannot be handled as a {}: {why}", gvk.kind))
    };
    let target = source_schema(&given, gvk, schema).map_err(|why| failed(&why))?;
    let body = body.with_message(target).map_err(|why| unrecognized(gvk, bytes, &why))?;
    let (value, mut findings) = build(&given, target, &body.node);
    if let Some(error) = findings.error {
        return Err(failed(&error));
    }
    in_order(target, &mut findings.strict);
    findings.strict.splice(0..0, body.strict);
    if validation == FieldValidation::Strict && !findings.strict.is_empty() {
        return Err(failed(&strict_error(&findings.strict)));
    }
    check_gvk(&given, gvk, schema, target).map_err(|refusal| match refusal {
        Refusal::Conversion(why) => failed(&why),
        Refusal::Version(why) => Status::bad_request(why),
        Refusal::Kind(error) => {
            let name = value["metadata"]["name"].as_str().unwrap_or_default();
            Status::invalid(&gvk.group, &given.kind, name, vec![error])
        }
    })?;
    let warnings = if validation == FieldValidation::Warn { findings.strict } else { Vec::new() };
    Ok(Decoded { value, warnings })
}

/// A body as one of the option kinds (`DeleteOptions`, …) of whatever group and version; an empty body gives an empty object.
///
/// # Errors
/// 400 when the body cannot be read or does not fit; 500, as upstream, when it says that it is of another kind; 404 for
/// a `name` that no options have.
pub fn options(name: &str, media: MediaType, bytes: &[u8]) -> Result<Value, Status> {
    if bytes.is_empty() {
        return Ok(json!({}));
    }
    let gvk = Gvk { group: "".into(), version: "v1".into(), kind: name.to_string().into() };
    let Some(ty) = schema::of_kind("", "v1", name) else { return Err(Status::no_route()) };
    let body = read(media, bytes, &gvk).map_err(|why| unrecognized(&gvk, bytes, &why))?;
    let given = body.gvk.clone();
    if given.kind != gvk.kind {
        return Err(Status::unknown(not_registered(&given)));
    }
    let body = body.with_message(ty).map_err(|why| unrecognized(&gvk, bytes, &why))?;
    let (map, findings) = build::object(ty, &body.node);
    match findings.error {
        Some(error) => Err(Status::bad_request(error)),
        None => Ok(Value::Object(map)),
    }
}

/// An object that is JSON already (the outcome of a patch) brought to canonical form. `found` are strict findings made
/// before.
///
/// # Errors
/// The bare reason: a wrong kind, a type mismatch, or with `Strict` unknown fields, those of `found` among them.
pub fn value(
    gvk: &Gvk,
    schema: &Schema,
    value: &Value,
    found: Vec<String>,
    validation: FieldValidation,
) -> Result<Decoded, TypeFailure> {
    let node = Json::from(value);
    let given = given_gvk(&node, gvk).map_err(TypeFailure::new)?;
    let target = source_schema(&given, gvk, schema).map_err(TypeFailure::new)?;
    let (value, mut findings) = build(&given, target, &node);
    if let Some(error) = findings.error {
        return Err(TypeFailure { text: error, converter: findings.converter });
    }
    in_order(target, &mut findings.strict);
    let mut strict = found;
    strict.extend(findings.strict);
    if validation == FieldValidation::Strict && !strict.is_empty() {
        return Err(TypeFailure::new(strict_error(&strict)));
    }
    check_gvk(&given, gvk, schema, target).map_err(|refusal| match refusal {
        Refusal::Conversion(why) | Refusal::Version(why) => TypeFailure::new(why),
        Refusal::Kind(error) => TypeFailure::new(error.to_string()),
    })?;
    let warnings = if validation == FieldValidation::Warn { strict } else { Vec::new() };
    Ok(Decoded { value, warnings })
}

/// Canonical form of an object that is known to be well typed (after defaults and strategy changed it).
pub fn canonical(gvk: &Gvk, schema: &Schema, object: &Value) -> Value {
    build(gvk, schema.ty(), &Json::from(object)).0
}

/// `strict decoding error: …` of these findings.
pub fn strict_error(findings: &[String]) -> String {
    format!("strict decoding error: {}", findings.join(", "))
}

/// Untyped JSON of a JSON or YAML body.
///
/// # Errors
/// What [`json::parse`] or [`yaml::parse`] say.
pub fn untyped(media: MediaType, bytes: &[u8]) -> Result<Value, String> {
    match media {
        MediaType::Yaml => yaml::parse(&String::from_utf8_lossy(bytes)).map(|y| y.node.to_value()),
        _ => json::parse(bytes).map(|node| node.to_value()),
    }
}

struct Body<'a> {
    node: Json,
    /// A protobuf message that still has to be read by its type.
    message: Option<&'a [u8]>,
    strict: Vec<String>,
    gvk: Gvk,
}

impl Body<'_> {
    fn with_message(mut self, ty: &schema::Type) -> Result<Self, String> {
        if let Some(bytes) = self.message {
            self.node = proto::message(ty, bytes)?;
        }
        Ok(self)
    }
}

fn read<'a>(media: MediaType, bytes: &'a [u8], default: &Gvk) -> Result<Body<'a>, String> {
    let with_gvk = |node: Json, strict: Vec<String>| {
        let gvk = given_gvk(&node, default)?;
        Ok(Body { node, message: None, strict, gvk })
    };
    let json = |error: String| format!("couldn't get version/kind; json parse error: {error}");
    match media {
        MediaType::Json => with_gvk(json::parse(bytes).map_err(json)?, Vec::new()),
        // A JSON object is YAML too, but upstream reads it as JSON.
        MediaType::Yaml if bytes.trim_ascii_start().first() == Some(&b'{') && json::parse(bytes).is_ok() => {
            with_gvk(json::parse(bytes).map_err(json)?, Vec::new())
        }
        MediaType::Yaml => {
            let yaml = yaml::parse(&String::from_utf8_lossy(bytes))?;
            with_gvk(yaml.node, yaml.strict)
        }
        MediaType::Protobuf => {
            let envelope = proto::envelope(bytes)?;
            let meta = Json::Object(vec![
                ("apiVersion".into(), Json::String(envelope.api_version)),
                ("kind".into(), Json::String(envelope.kind)),
            ]);
            let gvk = given_gvk(&meta, default)?;
            Ok(Body { node: Json::Null, message: Some(envelope.raw), strict: Vec::new(), gvk })
        }
    }
}

/// Go prints the anonymous struct into which it reads version and kind.
const META_STRUCT: &str =
    r#"struct { APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" }"#;

/// What the body says it is; what it leaves out comes from the target.
fn given_gvk(node: &Json, default: &Gvk) -> Result<Gvk, String> {
    let unreadable = |why: String| format!("couldn't get version/kind; json parse error: {why}");
    if !matches!(node, Json::Object(_) | Json::Null) {
        let why = format!("json: cannot unmarshal {} into Go value of type {META_STRUCT}", node.go_kind());
        return Err(unreadable(why));
    }
    let text = |key: &str| match node.get(key) {
        None | Some(Json::Null) => Ok(String::new()),
        Some(Json::String(text)) => Ok(text.clone()),
        Some(other) => {
            let kind = other.go_kind();
            Err(unreadable(format!("json: cannot unmarshal {kind} into Go struct field .{key} of type string")))
        }
    };
    let (version, kind) = (text("apiVersion")?, text("kind")?);
    let kind = if kind.is_empty() { default.kind.clone() } else { kind.into() };
    if version.is_empty() {
        return Ok(Gvk { kind, ..default.clone() });
    }
    match version.split('/').collect::<Vec<_>>().as_slice() {
        [version] => Ok(Gvk { group: "".into(), version: version.to_string().into(), kind }),
        [group, version] => Ok(Gvk { group: group.to_string().into(), version: version.to_string().into(), kind }),
        _ => Err(format!("unexpected GroupVersion string: {version}")),
    }
}

fn unrecognized(gvk: &Gvk, bytes: &[u8], why: &str) -> Status {
    let (head, more) = bytes
        .split_at_checked(30)
        .map_or((bytes, ""), |(head, tail)| (head, if tail.is_empty() { "" } else { " ..." }));
    let sample = match bytes.first() {
        None => "<empty>".into(),
        Some(b'{') => String::from_utf8_lossy(head).into_owned(),
        Some(_) => head.iter().map(|b| format!("{b:02x}")).collect::<String>(),
    };
    Status::bad_request(format!(
        "the object provided is unrecognized (must be of type {}): {why} ({sample}{more})",
        gvk.kind
    ))
}

/// Versions that upstream still reads, but no longer serves.
const RETIRED: [&str; 3] = ["apps/v1beta1", "apps/v1beta2", "extensions/v1beta1"];

fn not_registered(given: &Gvk) -> String {
    let version = given.api_version();
    format!("no kind {:?} is registered for version {version:?} in scheme \"pkg/runtime/scheme.go:110\"", given.kind)
}

/// The type by which a body is read: the one it names.
fn source_schema<'s>(given: &Gvk, target: &Gvk, schema: &'s Schema) -> Result<&'s schema::Type, String> {
    let retired = RETIRED.contains(&given.api_version().as_str()) && given.kind == target.kind;
    // Who reads values as they come can read whatever says it is something else, and refuses it then.
    if given == target || retired || schema.ty().reading == Reading::Plain {
        return Ok(schema.ty());
    }
    schema::of_kind(&given.group, &given.version, &given.kind).ok_or_else(|| not_registered(given))
}

/// Unknown fields of plain values are told by name, after what the reader of JSON found.
fn in_order(ty: &schema::Type, strict: &mut [String]) {
    if ty.reading == Reading::Plain {
        strict.sort_by(|a, b| (a.starts_with("unknown"), a).cmp(&(b.starts_with("unknown"), b)));
    }
}

enum Refusal {
    Conversion(String),
    Version(String),
    Kind(FieldError),
}

fn check_gvk(given: &Gvk, target: &Gvk, schema: &Schema, source: &schema::Type) -> Result<(), Refusal> {
    if given == target {
        return Ok(());
    }
    let same_version = (&given.group, &given.version) == (&target.group, &target.version);
    if schema.ty().reading == Reading::Plain && same_version {
        let why = format!("must be {}", target.kind);
        return Err(Refusal::Kind(FieldError::invalid("kind", &*given.kind, why)));
    }
    if given.kind != target.kind && schema.ty().reading == Reading::Typed {
        let (from, to) = (source.go_name(), schema.ty().internal_name());
        return Err(Refusal::Conversion(format!("converting ({from}) to ({to}): unknown conversion")));
    }
    let (given, expected) = (given.api_version(), api_version(&target.group, &target.version));
    Err(Refusal::Version(format!(
        "the API version in the data ({given}) does not match the expected API version ({expected})"
    )))
}

fn build(gvk: &Gvk, ty: &schema::Type, node: &Json) -> (Value, build::Findings) {
    let (map, findings) = build::object(ty, node);
    let mut object = Map::new();
    object.insert("kind".into(), json!(gvk.kind));
    object.insert("apiVersion".into(), json!(gvk.api_version()));
    object.extend(map.into_iter().filter(|(key, _)| key != "kind" && key != "apiVersion"));
    (Value::Object(object), findings)
}
