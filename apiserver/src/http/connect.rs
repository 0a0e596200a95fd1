//! Connections into pods, services and nodes: who may open them was decided, admission sees their options, then they are
//! opened.

use std::sync::Arc;

use api::kind::Part;
use api::status::Status;
use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::http::uri::Authority;
use hyper::{Method, header};
use serde_json::{Map, Value, json};

use super::path::Query;
use super::read::header_of;
use super::reply::{self, Reply};
use super::{proxy, streams};
use crate::limits::Seat;
use crate::request::{Context, Target};
use crate::shared::Shared;

/// A request for a connection.
pub struct Asked<'a> {
    pub shared: &'a Arc<Shared>,
    pub context: &'a Context,
    pub target: &'a Target,
    pub query: &'a Query,
    /// What follows the subresource in the path.
    pub rest: &'a str,
}

/// Whether a part is one that is connected to.
pub fn connects(part: Option<Part>) -> bool {
    enters(part) || part == Some(Part::Proxy)
}

/// Whether a part is a way into a pod, which nobody has who may not `create` it.
pub fn enters(part: Option<Part>) -> bool {
    matches!(part, Some(Part::Exec | Part::Attach | Part::PortForward))
}

impl Asked<'_> {
    pub async fn open(&self, parts: Parts, body: Incoming, seat: Seat) -> Result<Reply, Status> {
        let (shared, target, query) = (self.shared, self.target, self.query);
        let proxied = target.part == Some(Part::Proxy);
        if !proxied {
            if !matches!(parts.method, Method::GET | Method::POST) {
                return Err(Status::method_not_allowed());
            }
            check_origin(&parts)?;
        }
        let warnings = shared.engine.admit_connection(self.context, target, || self.options()).await?;
        let reply = match target.part {
            Some(Part::Proxy) => proxy::carry(&shared.engine, target, parts, body, seat).await?,
            Some(Part::PortForward) => {
                streams::forward(shared.nodes.clone(), self.pod().await?, query, parts, seat).await?
            }
            _ => streams::exec(&*shared.nodes, &self.pod().await?, query, parts, seat).await?,
        };
        Ok(reply::warned(reply, &warnings))
    }

    async fn pod(&self) -> Result<Value, Status> {
        let target = Target { part: None, ..self.target.clone() };
        Ok(self.shared.engine.get(&target, None).await?.value())
    }

    /// What is asked for, as an object of its own kind (`PodExecOptions` and its like).
    fn options(&self) -> Value {
        let mut options = Map::new();
        if let Some(sub) = self.target.part.and_then(|part| self.target.kind.subresource(part)) {
            options.insert("kind".into(), json!(sub.gvk.kind));
            options.insert("apiVersion".into(), json!(sub.gvk.api_version()));
        }
        match self.target.part {
            Some(Part::Proxy) if !self.rest.is_empty() => {
                options.insert("path".into(), json!(self.rest));
            }
            Some(Part::Proxy) => {}
            Some(Part::PortForward) => {
                let ports = self.query.all("ports").flat_map(|ports| ports.split(','));
                let ports: Vec<u16> = ports.filter_map(|port| port.parse().ok()).collect();
                if !ports.is_empty() {
                    options.insert("ports".into(), json!(ports));
                }
            }
            part => self.streams(part, &mut options),
        }
        Value::Object(options)
    }

    fn streams(&self, part: Option<Part>, options: &mut Map<String, Value>) {
        for name in ["stdin", "stdout", "stderr", "tty"].into_iter().filter(|name| self.query.flag(name)) {
            options.insert(name.into(), json!(true));
        }
        if let Some(container) = self.query.get("container").filter(|name| !name.is_empty()) {
            options.insert("container".into(), json!(container));
        }
        if part == Some(Part::Exec) {
            options.insert("command".into(), json!(self.query.all("command").collect::<Vec<_>>()));
        }
    }
}

/// A browser sends its user's certificate with requests of any page: only the server's own pages may open streams, and
/// those of the user's own machine, which clients that are no browsers say they are.
pub fn check_origin(parts: &Parts) -> Result<(), Status> {
    let Some(origin) = header_of(parts, header::ORIGIN) else { return Ok(()) };
    let host = header_of(parts, header::HOST).or_else(|| parts.uri.authority().map(|authority| authority.as_str()));
    let authority = origin.split_once("://").map(|(_, authority)| authority);
    let local = authority.and_then(|authority| authority.parse::<Authority>().ok());
    let local = local.is_some_and(|authority| matches!(authority.host(), "localhost" | "127.0.0.1" | "[::1]"));
    match local || (authority.is_some() && authority == host) {
        true => Ok(()),
        false => Err(Status::forbidden("", "", "", &format!("origin {origin:?} may not open streams"))),
    }
}
