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
    let store = engine.failure().borrow().as_ref().map(|_| "the store failed");
    [("controller-manager", None), ("etcd-0", store), ("scheduler", None)]
        .map(|(name, trouble)| Arc::new(component(name, trouble)))
        .into()
}

fn component(name: &str, trouble: Option<&str>) -> Object {
    let condition = match trouble {
        None => json!({"type": "Healthy", "status": "True", "message": "ok"}),
        Some(why) => json!({"type": "Healthy", "status": "False", "error": why}),
    };
    let object =
        json!({"kind": "ComponentStatus", "apiVersion": "v1", "metadata": {"name": name}, "conditions": [condition]});
    let json = Encoded::new(&object).stored().to_vec().into();
    Object { key: ObjectKey::new("", name), revision: 0, header: Header::default(), json }
}
