//! What is said of a pod that asks for other resources than its containers have.

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::model::{Container, Pod, PodSpec};
use crate::record::Record;

/// What the condition says.
pub(super) const NO_RESIZE: &str = "this node does not change the resources of containers that run";

/// Whether the pod asks for other resources than its containers were started with.
pub fn resize_pending(spec: &PodSpec, record: &Record) -> bool {
    spec.containers.iter().any(|container| {
        let run = record.containers.get(&container.name).and_then(|record| record.current.as_ref());
        let running = run.filter(|run| run.end.is_none()).and_then(|run| run.resources.as_ref());
        running.is_some_and(|resources| *resources != container.resources)
    })
}

/// What an event says of a resize that is not done, as the kubelet's do: what was asked for, and why not.
pub fn resize_refused(pod: &Pod) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Asked<'a> {
        #[serde(skip_serializing_if = "Vec::is_empty")]
        init_containers: Vec<Value>,
        containers: Vec<Value>,
        generation: i64,
        error: &'a str,
    }
    let of = |container: &Container| {
        let mut resources = Map::new();
        for (name, list) in [("limits", &container.resources.limits), ("requests", &container.resources.requests)] {
            resources.extend((!list.is_empty()).then(|| (name.to_owned(), json!(list))));
        }
        json!({"name": container.name, "resources": resources})
    };
    let all = |list: &[Container]| list.iter().map(of).collect();
    let (init_containers, containers) = (all(&pod.spec.init_containers), all(&pod.spec.containers));
    let generation = pod.metadata.generation.unwrap_or(0);
    let asked = Asked { init_containers, containers, generation, error: NO_RESIZE };
    // Plain values have a JSON text.
    format!("Pod resize Infeasible: {}", serde_json::to_string(&asked).unwrap_or_default())
}
