//! What an update of a pod may change.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use crate::status::FieldError;
use crate::validate::{Errors, diff, meta, pod};
use crate::value::{items, text};

/// What is dialled by others is an address, and no name that somebody could answer for.
pub fn pod_status(new: &Value, old: &Value, errors: &mut Errors) {
    if new["status"]["podIPs"] == old["status"]["podIPs"] && new["status"]["podIP"] == old["status"]["podIP"] {
        return;
    }
    for (index, ip) in items(&new["status"]["podIPs"]).enumerate() {
        meta::ip(&ip["ip"], &format!("status.podIPs[{index}]"), errors);
    }
    if !text(&new["status"]["podIP"]).is_empty() {
        meta::ip(&new["status"]["podIP"], "status.podIP", errors);
    }
}

const POD_RULE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Images, a shorter deadline and more tolerations are all that a running pod takes.
pub fn whole(new: &Value, old: &Value, errors: &mut Errors) {
    for list in ["containers", "initContainers"] {
        for (i, container) in items(&new["spec"][list]).enumerate() {
            if text(&container["image"]).is_empty() {
                errors.push(FieldError::required(format!("spec.{list}[{i}].image"), ""));
            }
        }
    }
    let path = "spec.activeDeadlineSeconds";
    match (new["spec"]["activeDeadlineSeconds"].as_i64(), old["spec"]["activeDeadlineSeconds"].as_i64()) {
        (Some(n), _) if !(0..=i64::from(i32::MAX)).contains(&n) => {
            errors.push(FieldError::invalid(path, n, "must be between 0 and 2147483647, inclusive"));
            return;
        }
        (Some(n), Some(before)) if n > before => {
            errors.push(FieldError::invalid(path, n, "must be less than or equal to previous value"));
            return;
        }
        (None, Some(_)) => {
            errors.push(FieldError::invalid(path, Value::Null, "must not update from a positive integer to nil value"));
            return;
        }
        _ => {}
    }
    gates(new, old, errors);
    let tolerations = |pod: &Value| -> HashSet<String> { items(&pod["spec"]["tolerations"]).map(toleration).collect() };
    let kept = tolerations(old).is_subset(&tolerations(new));
    if !kept || allowed(new) != allowed(old) {
        errors.push(FieldError::forbidden("spec", format!("{POD_RULE}\n{}", diff(&new["spec"], &old["spec"]))));
    }
}

/// A gate may go and none may come: the pod may be running already.
fn gates(new: &Value, old: &Value, errors: &mut Errors) {
    let had: HashSet<&str> = items(&old["spec"]["schedulingGates"]).map(|gate| text(&gate["name"])).collect();
    let added =
        items(&new["spec"]["schedulingGates"]).enumerate().filter(|(_, gate)| !had.contains(text(&gate["name"])));
    for (i, gate) in added {
        let why = format!("only deletion is allowed, but found new scheduling gate '{}'", text(&gate["name"]));
        errors.push(FieldError::forbidden(format!("spec.schedulingGates[{i}]"), why));
    }
}

/// What makes two tolerations the same one.
fn toleration(toleration: &Value) -> String {
    json!(["key", "operator", "value", "effect"].map(|field| &toleration[field])).to_string()
}

/// A spec without what may change.
fn allowed(pod: &Value) -> Value {
    let mut spec = pod["spec"].clone();
    if let Some(map) = spec.as_object_mut() {
        map.remove("activeDeadlineSeconds");
        map.remove("tolerations");
        // A gate may go, and while one stands the pod may be narrowed.
        map.remove("schedulingGates");
        if pod["spec"]["terminationGracePeriodSeconds"].as_i64().is_some_and(|n| n < 0) {
            map.insert("terminationGracePeriodSeconds".into(), json!(1));
        }
    }
    for list in ["containers", "initContainers"] {
        for container in spec[list].as_array_mut().into_iter().flatten() {
            container["image"] = json!("");
        }
    }
    spec
}

const MIRROR: &str = "kubernetes.io/config.mirror";

/// More of them may come; each stays as it came.
pub fn ephemeral_containers(new: &Value, old: &Value, errors: &mut Errors) {
    let spec = &new["spec"];
    pod::spec(spec, "spec", errors);
    if !old["metadata"]["annotations"][MIRROR].is_null() {
        errors.clear();
        errors.push(FieldError::forbidden("", "static pods do not support ephemeral containers"));
        return;
    }
    let now: HashMap<&str, &Value> = items(&spec["ephemeralContainers"]).map(|c| (text(&c["name"]), c)).collect();
    for before in items(&old["spec"]["ephemeralContainers"]) {
        let after = now.get(text(&before["name"])).copied();
        let verdict = match after {
            None => "removed\n".to_owned(),
            Some(after) if after != before => format!("changed\n{}", diff(after, before)),
            _ => continue,
        };
        let why = format!("existing ephemeral containers {:?} may not be {verdict}", text(&before["name"]));
        errors.push(FieldError::forbidden("spec.ephemeralContainers", why));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(more: &Value) -> Value {
        let mut container = json!({"name": "debug", "image": "i", "imagePullPolicy": "Always", "terminationMessagePolicy": "File", "resources": {}});
        for (field, value) in crate::value::entries(more) {
            container[field] = value.clone();
        }
        container
    }

    fn complaints(added: &Value) -> Vec<String> {
        let pod = |ephemeral: Value| {
            json!({"metadata": {"name": "p"}, "spec": {"restartPolicy": "Always", "dnsPolicy": "ClusterFirst",
                "volumes": [{"name": "v", "emptyDir": {}}], "containers": [container(&json!({"name": "main"}))],
                "ephemeralContainers": ephemeral}})
        };
        let mut errors = Errors::default();
        ephemeral_containers(&pod(json!([added])), &pod(json!([])), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ephemeral_containers_have_what_looking_into_a_pod_takes() {
        let probe = json!({"tcpSocket": {"port": 1}});
        let at = "spec.ephemeralContainers[0]";
        let refused = |field: &str| format!("{at}.{field}: Forbidden: cannot be set for an Ephemeral Container");
        for (more, wanted) in [
            (json!({"targetContainerName": "main", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}), vec![]),
            (json!({"ports": [{"containerPort": 1, "protocol": "TCP"}]}), vec![refused("ports")]),
            (json!({"resources": {"limits": {"cpu": "1"}}}), vec![refused("resources")]),
            (
                json!({"resizePolicy": [{"resourceName": "cpu", "restartPolicy": "NotRequired"}]}),
                vec![refused("resizePolicy")],
            ),
            (json!({"restartPolicy": "Always"}), vec![refused("restartPolicy")]),
            (
                json!({"livenessProbe": probe, "startupProbe": probe}),
                vec![refused("livenessProbe"), refused("startupProbe")],
            ),
            (json!({"readinessProbe": {}}), vec![refused("readinessProbe")]),
            (json!({"lifecycle": {"preStop": {"sleep": {"seconds": 1}}}}), vec![refused("lifecycle")]),
            (json!({"targetContainerName": "debug"}), vec![format!("{at}.targetContainerName: Not found: \"debug\"")]),
            (
                json!({"volumeMounts": [{"name": "w", "mountPath": "/v", "subPath": "a"}]}),
                vec![format!("{at}.volumeMounts[0].name: Not found: \"w\""), refused("volumeMounts[0].subPath")],
            ),
            (json!({"name": "main"}), vec![format!("{at}.name: Duplicate value: \"main\"")]),
            (json!({"image": ""}), vec![format!("{at}.image: Required value")]),
            (json!({"env": [{"name": ""}]}), vec![format!("{at}.env[0].name: Required value")]),
        ] {
            assert_eq!(complaints(&container(&more)), wanted, "{more}");
        }
        let mut errors = Errors::default();
        let mirrored = json!({"metadata": {"annotations": {MIRROR: "x"}}, "spec": {}});
        ephemeral_containers(&mirrored, &mirrored, &mut errors);
        assert_eq!(errors.len(), 1, "{errors:?}");
    }
}
