//! What every pod gets: status, class, priority, tolerations, the service account and its token.

use serde_json::{Map, Value, json};

use crate::default::text;
use crate::quantity::Quantity;
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
        let condition = json!({"type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates", "lastProbeTime": null, "lastTransitionTime": born});
        status.insert("conditions".into(), json!([condition]));
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

/// Built-in admission of a new pod that needs no other object: service account name, priority, tolerations.
/// `priority` is of the pod's priority class, 0 without one.
pub fn admit_pod(pod: &mut Value, priority: i32) {
    let spec = section(pod, "spec");
    if text(spec, "serviceAccountName").is_empty() {
        spec.insert("serviceAccountName".into(), json!("default"));
    }
    let account = spec["serviceAccountName"].clone();
    spec.insert("serviceAccount".into(), account);
    spec.insert("priority".into(), json!(priority));
    spec.entry("preemptionPolicy").or_insert_with(|| json!("PreemptLowerPriority"));
    tolerate_node_trouble(spec);
}

/// A pod stays five minutes on a node that is in trouble, unless it says otherwise.
pub fn tolerate_node_trouble(spec: &mut Map<String, Value>) {
    let mut tolerations = spec.get("tolerations").and_then(Value::as_array).cloned().unwrap_or_default();
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let covers = |t: &Value| {
            let (of, effect) = (t["key"].as_str().unwrap_or_default(), t["effect"].as_str().unwrap_or_default());
            (of == key || of.is_empty()) && (effect == "NoExecute" || effect.is_empty())
        };
        if !tolerations.iter().any(covers) {
            tolerations
                .push(json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}));
        }
    }
    spec.insert("tolerations".into(), json!(tolerations));
}

/// What a runtime costs beside the containers, and where it is.
pub fn apply_runtime_class(class: Option<&Value>, pod: &mut Value) -> Result<(), String> {
    let given = pod["spec"]["overhead"].clone();
    let Some(class) = class else {
        let why = "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";
        return if given.is_null() { Ok(()) } else { Err(why.into()) };
    };
    let overhead = &class["overhead"]["podFixed"];
    if !given.is_null() && given != *overhead {
        return Err("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead".into());
    }
    if !overhead.is_null() {
        pod["spec"]["overhead"] = overhead.clone();
    }
    for (key, value) in class["scheduling"]["nodeSelector"].as_object().into_iter().flatten() {
        let own = pod["spec"]["nodeSelector"].get(key).cloned().unwrap_or_else(|| value.clone());
        if own != *value {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let (wanted, own) = (text(value), text(&own));
            return Err(format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {wanted}; pod.spec.nodeSelector[{key}] = {own}"
            ));
        }
        if !pod["spec"]["nodeSelector"].is_object() {
            pod["spec"]["nodeSelector"] = json!({});
        }
        pod["spec"]["nodeSelector"][key] = value.clone();
    }
    let mut tolerations = pod["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
    for toleration in class["scheduling"]["tolerations"].as_array().into_iter().flatten() {
        if !tolerations.contains(toleration) {
            tolerations.push(toleration.clone());
        }
    }
    if !tolerations.is_empty() {
        pod["spec"]["tolerations"] = json!(tolerations);
    }
    Ok(())
}

const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Adds the token volume and its mounts, and the account's image pull secrets; `suffix` ends the volume's name.
pub fn mount_service_account(pod: &mut Value, account: &Value, suffix: &str) {
    let spec = section(pod, "spec");
    if let (None, Some(secrets)) = (spec.get("imagePullSecrets"), account.get("imagePullSecrets")) {
        spec.insert("imagePullSecrets".into(), secrets.clone());
    }
    let wanted = spec.get("automountServiceAccountToken").or_else(|| account.get("automountServiceAccountToken"));
    if wanted == Some(&json!(false)) {
        return;
    }
    let existing = spec.get("volumes").and_then(Value::as_array).into_iter().flatten();
    let existing = existing.filter_map(|v| v["name"].as_str()).find(|n| n.starts_with("kube-api-access-"));
    let name = existing.map_or_else(|| format!("kube-api-access-{suffix}"), String::from);
    let mut mounted = false;
    for list in ["initContainers", "containers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            mounted |= mount(container, &name);
        }
    }
    let volumes = spec.entry("volumes").or_insert_with(|| json!([]));
    if !volumes.is_array() {
        *volumes = json!([]);
    }
    if let Some(list) = volumes.as_array_mut().filter(|l| mounted && !l.iter().any(|v| v["name"] == json!(name))) {
        list.push(token_volume(&name));
    }
}

/// False when the container mounts something there itself.
fn mount(container: &mut Value, volume: &str) -> bool {
    let Some(container) = container.as_object_mut() else { return false };
    let mounts = container.entry("volumeMounts").or_insert_with(|| json!([]));
    if !mounts.is_array() {
        *mounts = json!([]);
    }
    let Some(mounts) = mounts.as_array_mut() else { return false };
    if mounts.iter().any(|m| m["mountPath"] == TOKEN_PATH) {
        return false;
    }
    mounts.push(json!({"name": volume, "readOnly": true, "mountPath": TOKEN_PATH}));
    true
}

fn token_volume(name: &str) -> Value {
    json!({"name": name, "projected": {"defaultMode": 0o644, "sources": [
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [
            {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]}})
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

    #[test]
    fn the_token_is_mounted_once() {
        let mut pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b", "volumeMounts": [{"mountPath": TOKEN_PATH}]}]}});
        mount_service_account(&mut pod, &json!({}), "abcde");
        let once = pod.clone();
        mount_service_account(&mut pod, &json!({}), "fghij");
        assert_eq!(pod, once);
        assert_eq!(pod["spec"]["volumes"].as_array().unwrap().len(), 1);
        assert_eq!(pod["spec"]["containers"][1]["volumeMounts"].as_array().unwrap().len(), 1);
    }
}
