//! From a request to the engine call it means: authenticate, impersonate, authorise, decode, act, answer.

use std::sync::Arc;
use std::time::Duration;

use api::decode;
use api::kind::{Kind, Part};
use api::managed::{self, Writer};
use api::patch::{self, PatchType};
use api::status::Status;
use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::{Method, Request, header};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::caller::{authenticate, impersonate, impersonates_nobody};
use super::connect::{Asked, check_origin, connects, enters};
use super::negotiate::{self, Accepted, Content};
use super::params::{self, WriteParams, Writing};
use super::path::{Path, Query, ResourcePath};
use super::read::{Busy, Received, header_of, receive};
use super::reply::page_not_found;
use super::reply::{self, Include, Reply};
use super::{Peer, components, documents, health, streams, tunnel, watch};
use crate::authz::Attributes;
use crate::engine::{Deleted, Draft, Removal, Written, deletion_warnings};
use crate::identity::User;
use crate::limits::{Form, Level, RETRY_SECONDS};
use crate::nodes::TUNNEL;
use crate::request::{Context, DeleteOptions, Target};
use crate::reviews;
use crate::shared::Shared;

/// A watch without a time-out ends after this long, so that connections spread over servers again.
const WATCH_SECONDS: u64 = 2400;

/// How objects of defined kinds are patched: no schema says how their lists merge strategically.
const CUSTOM_PATCHES: [&str; 3] =
    ["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"];

/// One request on its way.
struct Call<'a> {
    shared: &'a Arc<Shared>,
    parts: &'a Parts,
    query: Query,
    context: Context,
    accepted: Accepted,
    target: Target,
}

pub async fn answer(shared: &Arc<Shared>, peer: &Peer, request: Request<Incoming>) -> Result<Reply, Status> {
    let (parts, body) = request.into_parts();
    let user = authenticate(shared, &parts, peer.certificate.as_ref())?;
    if user != User::anonymous() && !peer.connection.proven(&user.name) {
        return Ok(too_many_requests());
    }
    if let Some(reply) = impersonates_nobody(&parts) {
        return Ok(reply);
    }
    let user = impersonate(shared, &parts, user)?;
    let path = Path::parse(parts.uri.path());
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    let resource = match path {
        Path::Resource(resource) => resource,
        Path::Other if parts.uri.path() == TUNNEL => return tunnel::open(shared, peer, &user, parts),
        other => {
            let verb = parts.method.as_str().to_lowercase();
            let asked = Attributes { verb, path: Some(parts.uri.path().to_owned()), ..Attributes::default() };
            // Who asks whether the server lives asks little, and needs to know it most when it is busy.
            let probe = health::is_probe(parts.uri.path());
            let _seat = match probe {
                true => None,
                false => match shared.limits.enter(Level::of(&user, &asked), Form::Request, &user).await {
                    Some(seat) => Some(seat),
                    None => return Ok(too_many_requests()),
                },
            };
            authorize(shared, &user, &asked)?;
            return plain(shared, &parts, &other).await;
        }
    };
    // The old form of watches knows whole objects only.
    if resource.watch && !resource.subresource.is_empty() {
        return Err(Status::no_route());
    }
    let verb = verb(&parts.method, &resource, &query);
    let asked = Attributes {
        verb: verb.into(),
        group: resource.group.clone(),
        resource: resource.plural.clone(),
        subresource: resource.subresource.clone(),
        namespace: if resource.plural == "namespaces" { resource.name.clone() } else { resource.namespace.clone() },
        name: resource.name.clone(),
        ..Attributes::default()
    };
    let kind = shared.engine.registry().find(&resource.group, &resource.version, &resource.plural);
    let selected = |field: &str| selected(kind.as_deref(), verb, &query, field);
    let name =
        if resource.name.is_empty() { selected("metadata.name").unwrap_or_default() } else { resource.name.clone() };
    let asked = Attributes { name, node_name: selected("spec.nodeName"), ..asked };
    let part = Part::parse(&resource.subresource);
    let form = form(part, verb, &query);
    let level = Level::of(&user, &asked);
    let (streamed, received) = match verb {
        _ if connects(part) => (Some(body), Received::nothing()),
        "get" | "list" | "watch" => (None, Received::nothing()),
        _ => match receive(&shared.limits, level, &user, body).await {
            Ok(received) => (None, received),
            Err(Busy) => return Ok(too_many_requests()),
        },
    };
    let Some(seat) = shared.limits.enter(level, form, &user).await else {
        return Ok(too_many_requests());
    };
    authorize(shared, &user, &asked)?;
    // A WebSocket begins as a GET: whoever may only read gets no shell by it.
    if verb == "get" && enters(part) {
        authorize(shared, &user, &Attributes { verb: "create".into(), ..asked.clone() })?;
    }
    let Some(kind) = defined(shared, &resource, kind).await? else { return unknown(shared, &resource) };
    let target = target(kind, &resource)?;
    let context = Context { user, now: Timestamp::now() };
    if target.part == Some(Part::Log) && verb == "get" && parts.headers.contains_key(header::UPGRADE) {
        check_origin(&parts)?;
        let pod = shared.engine.get(&pod_target(&target), None).await?.value();
        return streams::logs_upgraded(&*shared.nodes, &pod, &query, parts, seat).await;
    }
    if let (true, Some(body)) = (connects(target.part), streamed) {
        let asked = Asked { shared, context: &context, target: &target, query: &query, rest: &resource.rest };
        return asked.open(parts, body, seat).await;
    }
    let content = match verb {
        "watch" => Content::Watch,
        _ if !resource.name.is_empty() || parts.method == Method::POST => Content::Object,
        _ => Content::Other,
    };
    let accepted = negotiate::answer(header_of(&parts, header::ACCEPT), content)?;
    if target.kind.custom.is_some() && accepted.encoding == negotiate::Encoding::Protobuf {
        return Err(Status::none_acceptable(&["application/json", "application/yaml"]));
    }
    let call = Call { shared, parts: &parts, query, context, accepted, target };
    let reply = call.act(verb, received).await?;
    Ok(if form == Form::Stream { reply::holding(reply, seat) } else { reply })
}

/// Whether a request keeps its seat beyond its answer's head.
fn form(part: Option<Part>, verb: &str, query: &Query) -> Form {
    let streams = match part {
        Some(Part::Log) => query.flag("follow"),
        part => verb == "watch" || connects(part),
    };
    if streams { Form::Stream } else { Form::Request }
}

/// In the words of upstream's flow control, which answers in plain text.
fn too_many_requests() -> Reply {
    let mut reply = reply::text(429, "Too many requests, please try again later.\n");
    reply.headers_mut().insert(header::RETRY_AFTER, RETRY_SECONDS.into());
    reply
}

impl Call<'_> {
    /// Whoever asks for a deprecated kind is told so before all else, also when refused.
    async fn act(&self, verb: &str, body: Received) -> Result<Reply, Status> {
        let done = self.done(verb, body).await;
        let Some(deprecated) = self.target.kind.deprecated() else { return done };
        match done {
            Ok(reply) => Ok(reply::warned_first(reply, deprecated)),
            // Nothing of the kind was asked for: it has no such verb.
            Err(status) if status.code == 405 => Err(status),
            Err(status) => Err(status.warned_first(deprecated)),
        }
    }

    async fn done(&self, verb: &str, body: Received) -> Result<Reply, Status> {
        match verb {
            "get" => self.get().await,
            "list" => self.list().await,
            "watch" => self.watch().await,
            "create" => self.create(body).await,
            "update" | "patch" => self.change(body).await,
            "delete" => self.delete(body).await,
            "deletecollection" => self.delete_collection(body).await,
            _ => Err(Status::method_not_allowed()),
        }
    }

    /// The body; reading a large one into an object waits for its turn.
    async fn body(&self, body: Received) -> Result<Body, Status> {
        let bytes = body.bytes()?;
        let turn = self.shared.limits.turn(bytes.len()).await;
        Ok(Body { bytes, _received: body, _turn: turn })
    }
}

/// What was sent, and the turn to read it.
struct Body {
    bytes: bytes::Bytes,
    _received: Received,
    _turn: Option<tokio::sync::OwnedSemaphorePermit>,
}

impl std::ops::Deref for Body {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

fn authorize(shared: &Shared, user: &User, asked: &Attributes) -> Result<(), Status> {
    shared.engine.authorizer.check(&shared.engine, user, asked)
}

async fn plain(shared: &Shared, parts: &Parts, path: &Path) -> Result<Reply, Status> {
    match path {
        Path::Discovery(what) => documents::discovery(shared, parts, what),
        _ => match documents::other(shared, parts).await {
            Some(_) if !matches!(parts.method, Method::GET | Method::HEAD) => Err(Status::method_not_allowed()),
            Some(reply) => reply,
            None => Ok(page_not_found()),
        },
    }
}

/// The kind that is asked for. Another server may just have seen it defined.
async fn defined(
    shared: &Shared,
    resource: &ResourcePath,
    known: Option<Arc<Kind>>,
) -> Result<Option<Arc<Kind>>, Status> {
    if known.is_some() {
        return Ok(known);
    }
    shared.engine.wait_for(None).await?;
    Ok(shared.engine.registry().find(&resource.group, &resource.version, &resource.plural))
}

/// A path below a group of Kubernetes itself gets a Status, every other a plain page.
fn unknown(shared: &Shared, resource: &ResourcePath) -> Result<Reply, Status> {
    let registry = shared.engine.registry();
    let known = registry.iter().any(|kind| kind.group == resource.group && kind.custom.is_none());
    if known { Err(Status::no_route()) } else { Ok(page_not_found()) }
}

fn verb(method: &Method, resource: &ResourcePath, query: &Query) -> &'static str {
    let one = !resource.name.is_empty();
    match *method {
        _ if resource.watch => "watch",
        Method::GET if !one && query.flag("watch") => "watch",
        Method::GET | Method::HEAD if one => "get",
        Method::GET | Method::HEAD => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if one => "delete",
        Method::DELETE => "deletecollection",
        _ => "",
    }
}

/// The one value of a field that a request selects: who may see one object may list by its name alone.
fn selected(kind: Option<&Kind>, verb: &str, query: &Query, field: &str) -> Option<String> {
    let text = query.get("fieldSelector").filter(|_| matches!(verb, "list" | "watch" | "deletecollection"))?;
    Some(api::selector::Fields::parse(kind?, text).ok()?.exact(field)?.to_owned())
}

fn target(kind: Arc<Kind>, resource: &ResourcePath) -> Result<Target, Status> {
    if !resource.namespace.is_empty() && !kind.namespaced() {
        return Err(Status::no_route());
    }
    let target = Target::new(kind, &resource.namespace, &resource.name).below(&resource.subresource)?;
    match target.part {
        Some(part) if target.kind.subresource(part).is_none() => Err(Status::no_route()),
        _ => Ok(target),
    }
}

fn pod_target(target: &Target) -> Target {
    Target { part: None, ..target.clone() }
}

impl Call<'_> {
    fn include(&self) -> Result<Include, Status> {
        Include::parse(self.query.get("includeObject"))
    }

    /// The kind must have the verb, and so must its subresource.
    fn check_verb(&self, verb: &str) -> Result<(), Status> {
        let has = match self.target.part {
            Some(part) => self.target.kind.subresource(part).is_some_and(|sub| sub.verbs.iter().any(|own| own == verb)),
            None => self.target.kind.has_verb(verb),
        };
        // Objects are created below their collection, and changed one by one.
        let place = match verb {
            "create" => self.target.name.is_empty() || self.target.part.is_some(),
            "get" | "update" | "patch" | "delete" => !self.target.name.is_empty(),
            _ => true,
        };
        if has && place { Ok(()) } else { Err(Status::method_not_allowed()) }
    }

    async fn get(&self) -> Result<Reply, Status> {
        self.check_verb("get")?;
        let target = &self.target;
        let engine = &self.shared.engine;
        let version = params::get(&self.query)?;
        match target.part {
            Some(Part::Log) => {
                let pod = engine.get(&pod_target(target), None).await?.value();
                return streams::logs(&*self.shared.nodes, &pod, &self.query).await;
            }
            Some(Part::Scale) => {
                let object = engine.get(target, version).await?;
                let scale = api::write::scale_of(&target.kind, &engine.show(&target.kind, &object));
                return Ok(reply::scale(&scale, self.accepted, self.include()?));
            }
            _ => {}
        }
        let include = self.include()?;
        if components::is_kind(&target.kind) {
            let found = components::all(engine).into_iter().find(|object| object.key == target.key());
            let shown = engine.shown(&target.kind, found.ok_or_else(|| target.not_found())?);
            return Ok(reply::shown(200, &target.kind, shown, self.accepted, include));
        }
        let object = engine.get(target, version).await?;
        Ok(reply::shown(200, &target.kind, engine.shown(&target.kind, object), self.accepted, include))
    }

    async fn list(&self) -> Result<Reply, Status> {
        self.check_verb("list")?;
        let include = self.include()?;
        let options = params::list(&self.target.kind, &self.query)?;
        let (engine, kind) = (&self.shared.engine, &self.target.kind);
        let mut list = engine.list(&self.target, &options).await?;
        if components::is_kind(kind) {
            list.objects = components::all(engine);
        }
        Ok(reply::list(engine, kind, &list, self.accepted, include))
    }

    async fn watch(&self) -> Result<Reply, Status> {
        self.check_verb("watch")?;
        let include = self.include()?;
        let kind = self.target.kind.clone();
        let options = params::watch(&kind, &self.query)?;
        let mut target = self.target.clone();
        let mut options = options;
        if !target.name.is_empty() {
            let one = format!("metadata.name={}", target.name);
            options.fields = api::selector::Fields::parse(&kind, &one).map_err(Status::bad_request)?;
            target.name.clear();
        }
        let seconds = params::number::<u64>(&self.query, "timeoutSeconds")?
            .filter(|seconds| *seconds > 0)
            .unwrap_or(WATCH_SECONDS);
        let bookmarks = options.bookmarks;
        let shape =
            watch::Shape { engine: self.shared.engine.clone(), kind, accepted: self.accepted, include, bookmarks };
        if options.version.is_none() {
            self.shared.engine.wait_for(None).await?;
        }
        match self.shared.engine.watch(&target, options) {
            Ok(running) => Ok(watch::stream(running, shape, Duration::from_secs(seconds))),
            Err(expired) => Ok(watch::refused(&expired)),
        }
    }

    fn write_params(&self, writing: Writing) -> Result<WriteParams, Status> {
        params::write(&self.query, header_of(self.parts, header::USER_AGENT), writing)
    }

    async fn create(&self, body: Received) -> Result<Reply, Status> {
        self.check_verb("create")?;
        let target = &self.target;
        let params = self.write_params(Writing::Create)?;
        let media = negotiate::body(header_of(self.parts, header::CONTENT_TYPE))?;
        let body = self.body(body).await?;
        if let Some(sub) = target.part.and_then(|part| target.kind.subresource(part)) {
            let decoded = decode::typed(&sub.gvk, &sub.schema, media, &body, params.validation)?;
            return Ok(reply::warned(self.create_subresource(&params, decoded.value).await?, &decoded.warnings));
        }
        let decoded = decode::object(&target.kind, media, &body, params.validation)?;
        if !target.kind.stored() {
            return Ok(reply::warned(self.create_virtual(&params, decoded.value).await?, &decoded.warnings));
        }
        let written = self.shared.engine.create(&self.context, target, &params.options, decoded.value).await;
        self.written(written, &decoded.warnings)
    }

    async fn create_virtual(&self, params: &WriteParams, mut object: Value) -> Result<Reply, Status> {
        self.check_plain()?;
        let (shared, target) = (self.shared, &self.target);
        if target.kind.kind == "Binding" {
            let (_, warnings) = shared.engine.bind(&self.context, target, &params.options, object).await?;
            return Ok(self.created_status(&warnings));
        }
        managed::update(&target.kind, None, &mut object, self.writer(params));
        let answer =
            reviews::answer(&shared.engine, &shared.tokens, &self.context, target, &params.options, object).await?;
        Ok(self.answered(&answer))
    }

    fn answered(&self, (answer, warnings): &reviews::Answer) -> Reply {
        reply::warned(reply::value(201, answer, self.accepted.encoding), warnings)
    }

    fn writer<'a>(&'a self, params: &'a WriteParams) -> Writer<'a> {
        Writer { manager: &params.options.manager, part: self.target.part, now: self.context.now }
    }

    /// What is answered and not stored has no metadata to show in rows.
    fn check_plain(&self) -> Result<(), Status> {
        match self.accepted.form {
            negotiate::Form::Plain => Ok(()),
            _ => Err(Status::not_acceptable(&negotiate::OFFERED)),
        }
    }

    async fn create_subresource(&self, params: &WriteParams, mut object: Value) -> Result<Reply, Status> {
        self.check_plain()?;
        let (engine, target) = (&self.shared.engine, &self.target);
        match target.part {
            Some(Part::Binding) => {
                let (_, warnings) = engine.bind(&self.context, target, &params.options, object).await?;
                Ok(self.created_status(&warnings))
            }
            Some(Part::Eviction) => {
                let warnings = engine.evict(&self.context, target, &params.options, object).await?;
                Ok(self.created_status(&warnings))
            }
            Some(Part::Token) => {
                reviews::default_token(&mut object);
                if let Some(kind) = reviews::token_kind(target) {
                    managed::update(&kind, None, &mut object, self.writer(params));
                }
                let tokens = &self.shared.tokens;
                let answer =
                    reviews::token_request(engine, tokens, &self.context, target, &params.options, object).await?;
                Ok(self.answered(&answer))
            }
            _ => Err(Status::method_not_allowed()),
        }
    }

    fn created_status(&self, warnings: &[String]) -> Reply {
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
        reply::warned(reply::value(201, &status, self.accepted.encoding), warnings)
    }

    /// PUT and PATCH of an object or of a slice of it.
    async fn change(&self, body: Received) -> Result<Reply, Status> {
        let patching = self.parts.method == Method::PATCH;
        self.check_verb(if patching { "patch" } else { "update" })?;
        if patching { self.patch(body).await } else { self.put(body).await }
    }

    async fn put(&self, body: Received) -> Result<Reply, Status> {
        let target = &self.target;
        let params = self.write_params(Writing::Update)?;
        let media = negotiate::body(header_of(self.parts, header::CONTENT_TYPE))?;
        let body = self.body(body).await?;
        if target.part == Some(Part::Scale) {
            let sub = target.kind.subresource(Part::Scale).ok_or_else(Status::no_route)?;
            let decoded = decode::typed(&sub.gvk, &sub.schema, media, &body, params.validation)?;
            return self.scale(&params, &|_: &Value| Ok(decoded.value.clone())).await;
        }
        let decoded = decode::object(&target.kind, media, &body, params.validation)?;
        let replace = |_: Option<&Value>| Ok(Draft::Replace(decoded.value.clone()));
        let written = self.shared.engine.update(&self.context, target, &params.options, &replace).await;
        self.written(written, &decoded.warnings)
    }

    /// The answer to a write; warnings go out with a refusal too.
    fn written(&self, written: Result<Written, Status>, warnings: &[String]) -> Result<Reply, Status> {
        let written = written.map_err(|status| status.warned(warnings))?;
        let code = if written.created { 201 } else { 200 };
        let reply = reply::shown(code, &self.target.kind, written.object, self.accepted, self.include()?);
        Ok(reply::warned(reply, &[warnings, &written.warnings].concat()))
    }

    async fn scale(
        &self,
        params: &WriteParams,
        change: &(dyn Fn(&Value) -> Result<Value, Status> + Send + Sync),
    ) -> Result<Reply, Status> {
        let written = self.shared.engine.update_scale(&self.context, &self.target, &params.options, change).await?;
        self.scaled(written)
    }

    fn scaled(&self, written: Written) -> Result<Reply, Status> {
        let reply = reply::scale(&written.object.into_value(), self.accepted, self.include()?);
        Ok(reply::warned(reply, &written.warnings))
    }

    async fn patch(&self, body: Received) -> Result<Reply, Status> {
        let patch_type = match negotiate::media_of(header_of(self.parts, header::CONTENT_TYPE)) {
            "application/json-patch+json" => PatchType::Json,
            "application/merge-patch+json" => PatchType::Merge,
            "application/strategic-merge-patch+json" if self.target.kind.custom.is_none() => PatchType::StrategicMerge,
            "application/apply-patch+yaml" => return self.apply(body).await,
            _ if self.target.kind.custom.is_some() => return Err(Status::unsupported_media_type(&CUSTOM_PATCHES)),
            _ => return Err(Status::plain(415, "UnsupportedMediaType", "415: Unsupported Media Type")),
        };
        let target = &self.target;
        let params = self.write_params(Writing::Patch)?;
        let body = self.body(body).await?;
        if target.part == Some(Part::Scale) {
            let sub = target.kind.subresource(Part::Scale).ok_or_else(Status::no_route)?;
            let patch = |scale: &Value| {
                Ok(patch::apply(&sub.gvk, &sub.schema, patch_type, scale, &body, params.validation)?.value)
            };
            return self.scale(&params, &patch).await;
        }
        let warnings = std::sync::Mutex::new(Vec::new());
        let (gvk, schema) = (target.kind.gvk(), &target.kind.schema);
        let patch = |current: Option<&Value>| {
            let current = current.ok_or_else(|| target.not_found())?;
            let decoded = patch::apply(&gvk, schema, patch_type, current, &body, params.validation)?;
            *warnings.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = decoded.warnings;
            Ok(Draft::Update(decoded.value))
        };
        let written = self.shared.engine.update(&self.context, target, &params.options, &patch).await;
        let warnings = warnings.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.written(written, &warnings)
    }

    async fn apply(&self, body: Received) -> Result<Reply, Status> {
        let target = &self.target;
        let params = self.write_params(Writing::Apply)?;
        let body = self.body(body).await?;
        // As sent: what the types would add is not what the applier asked for.
        let applied = decode::untyped(decode::MediaType::Yaml, &body)
            .map_err(|why| Status::bad_request(format!("error decoding YAML: error converting YAML to JSON: {why}")))?;
        let (writer, engine) = (self.writer(&params), &self.shared.engine);
        let WriteParams { options, conflicts, .. } = &params;
        if target.part == Some(Part::Scale) {
            let written = engine.apply_scale(&self.context, target, options, &applied, *conflicts).await?;
            return self.scaled(written);
        }
        let apply =
            |live: Option<&Value>| managed::apply(&target.kind, live, &applied, writer, *conflicts).map(Draft::Apply);
        let written = engine.update(&self.context, target, options, &apply).await;
        self.written(written, &[])
    }

    /// Options of a deletion: from the body, or from the query where there is none.
    async fn delete_options(&self, body: Received) -> Result<DeleteOptions, Status> {
        let body = self.body(body).await?;
        let mut options = if body.is_empty() {
            json!({})
        } else {
            let media = negotiate::body(header_of(self.parts, header::CONTENT_TYPE))?;
            decode::options("DeleteOptions", media, &body)?
        };
        if body.is_empty() {
            if let Some(seconds) = self.query.number::<i64>("gracePeriodSeconds") {
                options["gracePeriodSeconds"] = json!(seconds);
            }
            if let Some(policy) = self.query.get("propagationPolicy") {
                options["propagationPolicy"] = json!(policy);
            }
            if let Some(orphan) = self.query.get("orphanDependents") {
                options["orphanDependents"] = json!(orphan == "true");
            }
        }
        if options.get("dryRun").is_none() && self.query.get("dryRun").is_some() {
            options["dryRun"] = json!(self.query.all("dryRun").collect::<Vec<_>>());
        }
        DeleteOptions::from_value(&options)
    }

    async fn delete(&self, body: Received) -> Result<Reply, Status> {
        self.check_verb("delete")?;
        let options = self.delete_options(body).await?;
        let target = &self.target;
        let Removal { deleted, mut warnings } = self.shared.engine.delete(&self.context, target, &options).await?;
        let (value, status) = match deleted {
            Deleted::Going(value) | Deleted::GoneShown(value) => (value, false),
            Deleted::Gone { uid, .. } => {
                let status = Status::deleted(&target.kind.group, &target.kind.plural, &target.name, &uid);
                (status.to_value(), true)
            }
        };
        let reply = match status {
            true => reply::value(200, &value, self.accepted.encoding),
            false => reply::object(200, &target.kind, &value, self.accepted, self.include()?),
        };
        warnings.extend(deletion_warnings(&target.kind, &options));
        Ok(reply::warned(reply, &warnings))
    }

    async fn delete_collection(&self, body: Received) -> Result<Reply, Status> {
        self.check_verb("deletecollection")?;
        let list = params::list(&self.target.kind, &self.query)?;
        let options = self.delete_options(body).await?;
        let (found, warnings) =
            self.shared.engine.delete_collection(&self.context, &self.target, &list, &options).await?;
        let reply = reply::list(&self.shared.engine, &self.target.kind, &found, self.accepted, Include::Metadata);
        Ok(reply::warned(reply, &warnings))
    }
}
