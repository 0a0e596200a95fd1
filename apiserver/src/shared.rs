//! What every request needs, whichever way it comes in.

use std::sync::Arc;

use crate::authn::Tokens;
use crate::engine::Engine;
use crate::http::Documents;
use crate::limits::Limits;
use crate::nodes::tunnel::Fleet;

/// What every request needs.
pub struct Shared {
    pub engine: Arc<Engine>,
    pub tokens: Tokens,
    pub nodes: Arc<Fleet>,
    pub(crate) documents: Documents,
    pub(crate) limits: Limits,
    pub(crate) anonymous: Anonymous,
    /// `host:port` as clients see it.
    pub(crate) address: String,
}

/// What a request without any credentials gets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Anonymous {
    /// It is `system:anonymous`, who may do what roles grant: by default discovery of health and version.
    #[default]
    Allowed,
    /// Only whether the server lives.
    ProbesOnly,
    Refused,
}
