//! Answers that are no resources: discovery, OpenAPI, version, health, metrics.

use api::discovery;
use api::kind::Registry;
use api::status::Status;
use hyper::header;
use hyper::http::request::Parts;
use serde_json::{Value, json};

use super::kept::Document;
use super::negotiate::{Content, Encoding, OpenApi};
use super::path::{Discovery, Query};
use super::read::header_of;
use super::reply::page_not_found;
use super::reply::{self, Reply};
use super::{health, metrics, negotiate};
use crate::shared::Shared;

/// The Kubernetes version that this API is.
const VERSION: (&str, &str, &str) = ("1", "34", "v1.34.3");

pub fn discovery(shared: &Shared, parts: &Parts, what: &Discovery) -> Result<Reply, Status> {
    let registry = shared.engine.registry();
    let accept = header_of(parts, header::ACCEPT);
    let aggregated = negotiate::aggregated(accept);
    let document = match (what, aggregated) {
        (Discovery::Core, Some(form)) => {
            let make = || discovery::text(&discovery::aggregated_core(&registry, form)).into();
            let document = shared.documents.get(&format!("core {form:?}"), &registry, make)?;
            return document.answer(parts, form.content_type());
        }
        (Discovery::Groups, Some(form)) => {
            let make = || discovery::text(&discovery::aggregated_groups(&registry, form)).into();
            let document = shared.documents.get(&format!("groups {form:?}"), &registry, make)?;
            return document.answer(parts, form.content_type());
        }
        (Discovery::Core, None) => discovery::api_versions(&registry, &shared.address),
        (Discovery::Groups, None) => discovery::group_list(&registry),
        (Discovery::Group(group), _) => match discovery::group(&registry, group) {
            Some(document) => document,
            None => return Ok(page_not_found()),
        },
        (Discovery::Resources { group, version }, _) => {
            discovery::resources(&registry, group, version).ok_or_else(Status::no_route)?
        }
    };
    let encoding = negotiate::answer(accept, Content::Other)?.encoding;
    Ok(match encoding {
        Encoding::Yaml => reply::value(200, &document, encoding),
        // It has no protobuf form here.
        Encoding::Json | Encoding::Protobuf => {
            reply::bytes(200, Encoding::Json.content_type(), discovery::text(&document))
        }
    })
}

/// Everything that is neither discovery nor a resource; `None` when there is no such path.
pub async fn other(shared: &Shared, parts: &Parts) -> Option<Result<Reply, Status>> {
    let registry = shared.engine.registry();
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    if let Some(reply) = health::answer(shared, parts.uri.path(), &query).await {
        return Some(Ok(reply));
    }
    if let Some(document) = openapi(shared, &registry, parts) {
        return Some(document);
    }
    Some(Ok(match parts.uri.path().trim_end_matches('/') {
        "" => reply::value(200, &paths(&registry), Encoding::Json),
        "/version" => reply::bytes(200, "application/json", version().to_string()),
        "/metrics" => reply::bytes(200, "text/plain; version=0.0.4", metrics::text(shared)),
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
            Encoding::Json,
        ),
        _ => return None,
    }))
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

/// The documents below `/openapi`; `None` for every other path.
fn openapi(shared: &Shared, registry: &Registry, parts: &Parts) -> Option<Result<Reply, Status>> {
    let path = parts.uri.path().trim_end_matches('/').strip_prefix("/openapi/")?;
    let (content_type, document) = match path {
        "v2" => match OpenApi::wanted(header_of(parts, header::ACCEPT)) {
            form @ OpenApi::Json => {
                (form.content_type(), shared.documents.get("v2", registry, || api::openapi::v2(registry)))
            }
            form @ OpenApi::Protobuf => {
                let make = || api::openapi::v2_protobuf(registry);
                (form.content_type(), shared.documents.get("v2.protobuf", registry, make))
            }
        },
        "v3" => {
            let index = || api::openapi::v3_index(registry).to_string().into_bytes();
            ("application/json", shared.documents.get("v3", registry, index))
        }
        path => ("application/json", openapi_v3(shared, registry, path.strip_prefix("v3/")?)?),
    };
    Some(document.and_then(|document| document.answer(parts, content_type)))
}

fn openapi_v3(shared: &Shared, registry: &Registry, path: &str) -> Option<Result<Document, Status>> {
    let (group, version) = match path.split('/').collect::<Vec<_>>().as_slice() {
        ["api", version] => (String::new(), (*version).to_owned()),
        ["apis", group, version] => ((*group).to_owned(), (*version).to_owned()),
        _ => return None,
    };
    registry.groups().iter().find(|(known, versions)| *known == group && versions.iter().any(|v| *v == version))?;
    let make = || api::openapi::v3(registry, &group, &version).unwrap_or_default();
    Some(shared.documents.get(path, registry, make))
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
