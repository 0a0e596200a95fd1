//! What a pod's runtime costs beside its containers, and where it is to be had.

use api::status::Status;
use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Cluster, Member, Review};

#[derive(Debug)]
pub(super) struct RuntimeClass;

#[async_trait]
impl Member for RuntimeClass {
    fn concerns(&self, review: &Review<'_>) -> bool {
        class_name(&review.object).is_some() || !review.object["spec"]["overhead"].is_null()
    }

    async fn mutate(&self, cluster: Cluster<'_>, review: &mut Review<'_>) -> Result<(), Status> {
        let Some(class) = class(cluster, review)? else { return Ok(()) };
        check_overhead(review, Some(&class))?;
        if let Some(overhead) = class["overhead"].get("podFixed").filter(|overhead| !overhead.is_null()) {
            review.object["spec"]["overhead"] = overhead.clone();
        }
        place(&class["scheduling"], &mut review.object["spec"]).map_err(|why| review.forbidden(&why))
    }

    async fn validate(&self, cluster: Cluster<'_>, review: &Review<'_>) -> Result<Vec<String>, Status> {
        let class = class(cluster, review)?;
        check_overhead(review, class.as_ref()).map(|()| Vec::new())
    }
}

fn class_name(pod: &Value) -> Option<&str> {
    pod["spec"]["runtimeClassName"].as_str().filter(|class| !class.is_empty())
}

fn class(cluster: Cluster<'_>, review: &Review<'_>) -> Result<Option<Value>, Status> {
    let Some(name) = class_name(&review.object) else { return Ok(None) };
    match cluster.reader.lookup("node.k8s.io", "runtimeclasses", "", name) {
        Some(found) => Ok(Some(found.value())),
        None => Err(review.forbidden(&format!("pod rejected: RuntimeClass {name:?} not found"))),
    }
}

fn check_overhead(review: &Review<'_>, class: Option<&Value>) -> Result<(), Status> {
    let given = &review.object["spec"]["overhead"];
    let fixed = class.map_or(&Value::Null, |class| &class["overhead"]["podFixed"]);
    match (given, fixed) {
        (Value::Null, _) => Ok(()),
        (given, fixed) if given == fixed => Ok(()),
        (_, Value::Null) => {
            Err(review.forbidden("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"))
        }
        _ => Err(review.forbidden("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead")),
    }
}

/// Brings the pod to nodes that have the runtime, and lets it be there.
fn place(scheduling: &Value, spec: &mut Value) -> Result<(), String> {
    for (key, value) in scheduling["nodeSelector"].as_object().into_iter().flatten() {
        if let Some(own) = spec["nodeSelector"].get(key).filter(|own| *own != value) {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let (wanted, own) = (text(value), text(own));
            return Err(format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {wanted}; pod.spec.nodeSelector[{key}] = {own}"
            ));
        }
        spec["nodeSelector"][key] = value.clone();
    }
    for toleration in scheduling["tolerations"].as_array().into_iter().flatten() {
        match spec["tolerations"].as_array_mut() {
            Some(own) if own.contains(toleration) => {}
            Some(own) => own.push(toleration.clone()),
            None => spec["tolerations"] = json!([toleration]),
        }
    }
    Ok(())
}
