//! ComponentStatuses: kept nowhere, told from how the server is. Deprecated for long, and what `kubectl get cs` shows.

use std::sync::Arc;

use api::kind::Kind;
use serde_json::json;

use crate::engine::Engine;
use crate::object::{Encoded, Header, Object, ObjectKey};

pub fn is_kind(kind: &Kind) -> bool {
    kind.group.is_empty() && kind.plural == "componentstatuses"
}

/// What a cluster is made of: scheduler and controllers live and die with this process, the store may fail alone.
pub fn all(engine: &Engine) -> Vec<Arc<Object>> {
    let stored = engine.failure().borrow().is_none();
    [("controller-manager", true), ("etcd-0", stored), ("scheduler", true)]
        .map(|(name, well)| Arc::new(component(name, well)))
        .into()
}

fn component(name: &str, well: bool) -> Object {
    let condition = match well {
        true => json!({"type": "Healthy", "status": "True", "message": "ok"}),
        false => json!({"type": "Healthy", "status": "False", "error": "the store failed"}),
    };
    let object =
        json!({"kind": "ComponentStatus", "apiVersion": "v1", "metadata": {"name": name}, "conditions": [condition]});
    let json = Encoded::new(&object).stored().to_vec().into();
    Object { key: ObjectKey::new("", name), revision: 0, header: Header::default(), json }
}
