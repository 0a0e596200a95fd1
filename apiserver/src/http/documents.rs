//! Answers that are no resources: discovery, OpenAPI, version, health, metrics.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use api::kind::Registry;
use api::status::Status;
use hyper::header;
use hyper::http::request::Parts;
use serde_json::{Value, json};

use super::negotiate::OpenApi;
use super::path::{Discovery, Query};
use super::reply::{self, Reply};
use super::{header_of, health, metrics, negotiate, page_not_found};
use crate::server::Shared;

/// The Kubernetes version that this API is.
const VERSION: (&str, &str, &str) = ("1", "34", "v1.34.3");

/// Answers with an ETag, or 304 to a client that has it already.
fn tagged(parts: &Parts, content_type: &str, body: Vec<u8>) -> Reply {
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    let etag = format!("\"{:016X}\"", hasher.finish());
    let known =
        header_of(parts, header::IF_NONE_MATCH).is_some_and(|tags| tags.split(',').any(|tag| tag.trim() == etag));
    let mut reply =
        if known { reply::bytes(304, content_type, Vec::new()) } else { reply::bytes(200, content_type, body) };
    let headers = reply.headers_mut();
    if let Ok(value) = etag.parse() {
        headers.insert(header::ETAG, value);
    }
    headers.insert(header::VARY, header::HeaderValue::from_static("Accept"));
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("public"));
    reply
}

pub fn discovery(shared: &Shared, parts: &Parts, what: &Discovery) -> Result<Reply, Status> {
    let registry = shared.engine.registry();
    let accept = header_of(parts, header::ACCEPT);
    let aggregated = negotiate::aggregated(accept);
    let document = match (what, aggregated) {
        (Discovery::Core, Some(form)) => {
            return Ok(tagged(
                parts,
                form.content_type(),
                api::discovery::aggregated_core(&registry, form).to_string().into(),
            ));
        }
        (Discovery::Groups, Some(form)) => {
            return Ok(tagged(
                parts,
                form.content_type(),
                api::discovery::aggregated_groups(&registry, form).to_string().into(),
            ));
        }
        (Discovery::Core, None) => api::discovery::api_versions(&registry, &shared.address),
        (Discovery::Groups, None) => api::discovery::group_list(&registry),
        (Discovery::Group(group), _) => match api::discovery::group(&registry, group) {
            Some(document) => document,
            None => return Ok(page_not_found()),
        },
        (Discovery::Resources { group, version }, _) => {
            api::discovery::resources(&registry, group, version).ok_or_else(Status::no_route)?
        }
    };
    Ok(reply::value(200, &document, negotiate::answer(accept, false, false)?.encoding))
}

/// Everything that is neither discovery nor a resource; `None` when there is no such path.
pub fn other(shared: &Shared, parts: &Parts) -> Option<Reply> {
    let registry = shared.engine.registry();
    if let Some(reply) = health::answer(shared, parts.uri.path(), &Query::parse(parts.uri.query().unwrap_or_default()))
    {
        return Some(reply);
    }
    Some(match parts.uri.path().trim_end_matches('/') {
        "" => reply::value(200, &paths(&registry), negotiate::Encoding::Json),
        "/version" => reply::bytes(200, "application/json", version().to_string()),
        "/metrics" => reply::bytes(200, "text/plain; version=0.0.4", metrics::text(shared)),
        "/openapi/v2" => openapi_v2(shared, &registry, parts),
        "/openapi/v3" => {
            let index = || api::openapi::v3_index(&registry).to_string().into_bytes();
            tagged(parts, "application/json", shared.documents.get("v3", &registry, index))
        }
        "/openid/v1/jwks" => reply::bytes(200, "application/jwk-set+json", shared.tokens.keys.to_string()),
        "/.well-known/openid-configuration" => reply::value(
            200,
            &json!({
                "issuer": shared.tokens.issuer,
                "jwks_uri": format!("https://{}/openid/v1/jwks", shared.address),
                "response_types_supported": ["id_token"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["ES256"],
            }),
            negotiate::Encoding::Json,
        ),
        path => openapi_v3(shared, &registry, parts, path.strip_prefix("/openapi/v3/")?)?,
    })
}

/// What there is at the root, in order.
fn paths(registry: &Registry) -> Value {
    let mut paths: Vec<String> = PATHS.map(str::to_owned).into();
    for (group, versions) in registry.groups() {
        let root = if group.is_empty() { "/api".to_owned() } else { format!("/apis/{group}") };
        let documents = versions.iter().map(|version| match &*group {
            "" => format!("api/{version}"),
            group => format!("apis/{group}/{version}"),
        });
        paths.extend(documents.flat_map(|path| [format!("/{path}"), format!("/openapi/v3/{path}")]));
        paths.push(root);
    }
    paths.sort();
    json!({"paths": paths})
}

/// Paths that no group brings.
const PATHS: [&str; 13] = [
    "/.well-known/openid-configuration",
    "/apis",
    "/healthz",
    "/healthz/ping",
    "/livez",
    "/livez/ping",
    "/metrics",
    "/openapi/v2",
    "/openapi/v3",
    "/openid/v1/jwks",
    "/readyz",
    "/readyz/ping",
    "/version",
];

fn openapi_v2(shared: &Shared, registry: &Registry, parts: &Parts) -> Reply {
    let form = OpenApi::wanted(header_of(parts, header::ACCEPT));
    let document = match form {
        OpenApi::Json => shared.documents.get("v2", registry, || api::openapi::v2(registry)),
        OpenApi::Protobuf => shared.documents.get("v2.protobuf", registry, || api::openapi::v2_protobuf(registry)),
    };
    tagged(parts, form.content_type(), document)
}

fn openapi_v3(shared: &Shared, registry: &Registry, parts: &Parts, path: &str) -> Option<Reply> {
    let (group, version) = match path.split('/').collect::<Vec<_>>().as_slice() {
        ["api", version] => (String::new(), (*version).to_owned()),
        ["apis", group, version] => ((*group).to_owned(), (*version).to_owned()),
        _ => return None,
    };
    registry.groups().iter().find(|(known, versions)| *known == group && versions.iter().any(|v| *v == version))?;
    let make = || api::openapi::v3(registry, &group, &version).unwrap_or_default();
    Some(tagged(parts, "application/json", shared.documents.get(path, registry, make)))
}

fn version() -> Value {
    json!({
        "major": VERSION.0,
        "minor": VERSION.1,
        "emulationMajor": VERSION.0,
        "emulationMinor": VERSION.1,
        "minCompatibilityMajor": VERSION.0,
        "minCompatibilityMinor": "33",
        "gitVersion": format!("{}+amphipod.{}", VERSION.2, env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("linux/{}", if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" }),
    })
}
