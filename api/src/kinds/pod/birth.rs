//! What every pod begins with: its status and its class.

use serde_json::{Value, json};

use crate::conditions::{self, Condition};
use crate::quantity::Quantity;
use crate::value::text;
use crate::write::section;

pub fn new_pod(pod: &mut Value) {
    app_armor_fields(pod);
    let born = pod["metadata"]["creationTimestamp"].clone();
    let class = qos_class(pod);
    let gated = pod["spec"]["schedulingGates"].as_array().is_some_and(|g| !g.is_empty());
    let status = section(pod, "status");
    status.insert("phase".into(), json!("Pending"));
    status.insert("qosClass".into(), json!(class));
    if gated {
        let message = "Scheduling is blocked due to non-empty scheduling gates";
        let held = Condition::new("PodScheduled", false).because("SchedulingGated", message);
        let said = conditions::stamped(&Value::Null, &[held], conditions::OF_PODS, text(&born));
        status.insert("conditions".into(), json!(said));
    }
}

/// The annotation that came before the field sets the field.
fn app_armor_fields(pod: &mut Value) {
    const PREFIX: &str = "container.apparmor.security.beta.kubernetes.io/";
    let annotations = pod["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
    for (name, value) in annotations.iter().filter_map(|(k, v)| Some((k.strip_prefix(PREFIX)?, v.as_str()?))) {
        let profile = match value {
            "runtime/default" => json!({"type": "RuntimeDefault"}),
            "unconfined" => json!({"type": "Unconfined"}),
            _ => match value.strip_prefix("localhost/") {
                Some(profile) => json!({"type": "Localhost", "localhostProfile": profile}),
                None => continue,
            },
        };
        for list in ["containers", "initContainers"] {
            for container in pod["spec"][list].as_array_mut().into_iter().flatten().filter(|c| c["name"] == name) {
                let context = section(container, "securityContext");
                context.entry("appArmorProfile").or_insert_with(|| profile.clone());
            }
        }
    }
}

/// `Guaranteed` when every container limits what it requests in cpu and memory, `BestEffort` when none asks for any.
pub fn qos_class(pod: &Value) -> &'static str {
    let containers = ["containers", "initContainers"].into_iter().filter_map(|l| pod["spec"][l].as_array()).flatten();
    let amount = |c: &Value, list: &str, name: &str| {
        c["resources"][list][name].as_str().and_then(|t| Quantity::parse(t).ok()).filter(|q| !q.is_zero())
    };
    let (mut any, mut all) = (false, true);
    for container in containers {
        for name in ["cpu", "memory"] {
            let (request, limit) = (amount(container, "requests", name), amount(container, "limits", name));
            any |= request.is_some() || limit.is_some();
            all &= limit.is_some() && request.is_none_or(|r| Some(r) == limit);
        }
    }
    match (any, all) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        _ => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quality_of_service() {
        let pod = |resources: Value| json!({"spec": {"containers": [{"resources": resources}]}});
        assert_eq!(qos_class(&pod(json!({}))), "BestEffort");
        assert_eq!(qos_class(&pod(json!({"requests": {"cpu": "1"}}))), "Burstable");
        let all = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1Gi"}});
        assert_eq!(qos_class(&pod(all)), "Guaranteed");
    }
}
