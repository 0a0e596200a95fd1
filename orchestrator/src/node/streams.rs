//! The API server's way to containers of this process's own node.

use std::sync::{Arc, OnceLock};

use agent::Agent;
use api::status::Status;
use apiserver::nodes::{ExecOptions, LogOptions, Nodes, Session, unreachable};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use serde_json::Value;

/// Holds the agent once it runs: the server is made before it.
#[derive(Clone, Default)]
pub struct AgentSlot(Arc<OnceLock<(String, Arc<Agent>)>>);
