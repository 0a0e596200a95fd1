//! Defaults: what Kubernetes fills in when a field is absent.
//!
//! One walk over the schema; each type that has defaults is a row of [`RULES`], applied after its members'.

use serde_json::{Map, Value, json};

use crate::kind::Kind;
use crate::schema::{Shape, Type};

type Object = Map<String, Value>;

/// Fills in the defaults of this kind's version.
pub fn apply(kind: &Kind, object: &mut Value) {
    if let Some(map) = object.as_object_mut() {
        structure(kind.schema.ty(), map);
    }
}

fn structure(ty: &Type, map: &mut Object) {
    for field in &ty.fields {
        match map.get_mut(field.name) {
            Some(value) if !value.is_null() => shape(&field.shape, value),
            _ => {
                let text = field.default.filter(|d| d.starts_with('"'));
                if let Some(value) = text.and_then(|d| serde_json::from_str(d).ok()) {
                    map.insert(field.name.to_string(), value);
                }
            }
        }
    }
    for (_, rule) in RULES.iter().filter(|(name, _)| *name == ty.name) {
        rule(map);
    }
}

fn shape(shape_: &Shape, value: &mut Value) {
    match (shape_, value) {
        (Shape::Struct(_), Value::Object(map)) => {
            if let Some(ty) = shape_.ty() {
                structure(ty, map);
            }
        }
        (Shape::List(item), Value::Array(items)) => items.iter_mut().for_each(|v| shape(item, v)),
        (Shape::Map(item), Value::Object(map)) => map.values_mut().for_each(|v| shape(item, v)),
        _ => {}
    }
}

type Rule = fn(&mut Object);

/// Type → what it defaults. Rows that only set constants are written in place.
const RULES: &[(&str, Rule)] = &[
    ("core.v1.Container", container),
    ("core.v1.EphemeralContainer", container),
    ("core.v1.Probe", |m| {
        set(m, "timeoutSeconds", 1);
        set(m, "periodSeconds", 10);
        set(m, "successThreshold", 1);
        set(m, "failureThreshold", 3);
    }),
    ("core.v1.HTTPGetAction", |m| {
        set(m, "path", "/");
        set(m, "scheme", "HTTP");
    }),
    ("core.v1.GRPCAction", |m| set_absent(m, "service", "")),
    ("core.v1.ObjectFieldSelector", |m| set(m, "apiVersion", "v1")),
    ("core.v1.Volume", |m| {
        if m.keys().all(|k| k == "name") {
            m.insert("emptyDir".into(), json!({}));
        }
    }),
    ("core.v1.SecretVolumeSource", |m| set_absent(m, "defaultMode", 0o644)),
    ("core.v1.ConfigMapVolumeSource", |m| set_absent(m, "defaultMode", 0o644)),
    ("core.v1.DownwardAPIVolumeSource", |m| set_absent(m, "defaultMode", 0o644)),
    ("core.v1.ProjectedVolumeSource", |m| set_absent(m, "defaultMode", 0o644)),
    ("core.v1.ServiceAccountTokenProjection", |m| set_absent(m, "expirationSeconds", 3600)),
    ("core.v1.HostPathVolumeSource", |m| set_absent(m, "type", "")),
    ("core.v1.PodSpec", pod_spec),
    ("core.v1.Pod", pod),
    ("core.v1.PodStatus", |m| match (text(m, "podIP").to_string(), m.get("podIPs").cloned()) {
        (ip, None) if !ip.is_empty() => {
            m.insert("podIPs".into(), json!([{"ip": ip}]));
        }
        (ip, Some(Value::Array(list))) if ip.is_empty() && !list.is_empty() => {
            m.insert("podIP".into(), list[0]["ip"].clone());
        }
        _ => {}
    }),
    ("core.v1.Service", service),
    ("core.v1.EndpointPort", |m| set(m, "protocol", "TCP")),
    ("core.v1.Secret", |m| {
        set(m, "type", "Opaque");
        fold_string_data(m);
    }),
    ("core.v1.Namespace", namespace),
    ("core.v1.PersistentVolumeClaimSpec", |m| set_absent(m, "volumeMode", "Filesystem")),
    ("core.v1.PersistentVolumeClaim", |m| nested(m, "status", |s| set(s, "phase", "Pending"))),
    ("core.v1.PersistentVolume", |m| {
        nested(m, "spec", |s| {
            set(s, "persistentVolumeReclaimPolicy", "Retain");
            set_absent(s, "volumeMode", "Filesystem");
        });
        nested(m, "status", |s| set(s, "phase", "Pending"));
    }),
    ("core.v1.ReplicationController", replication_controller),
    ("core.v1.LimitRangeItem", limit_range_item),
    ("core.v1.NodeStatus", |m| {
        if let (Some(capacity), None) = (m.get("capacity").cloned(), m.get("allocatable")) {
            m.insert("allocatable".into(), capacity);
        }
    }),
    ("core.v1.NodeSpec", |m| match (m.get("podCIDR").cloned(), m.get("podCIDRs").cloned()) {
        (Some(one), None) => {
            m.insert("podCIDRs".into(), json!([one]));
        }
        (None, Some(Value::Array(many))) if !many.is_empty() => {
            m.insert("podCIDR".into(), many[0].clone());
        }
        _ => {}
    }),
    ("discovery.v1.EndpointPort", |m| {
        set_absent(m, "name", "");
        set_absent(m, "protocol", "TCP");
    }),
    ("apps.v1.Deployment", deployment),
    ("apps.v1.ReplicaSet", |m| nested(m, "spec", |s| set_absent(s, "replicas", 1))),
    ("apps.v1.StatefulSet", stateful_set),
    ("apps.v1.DaemonSet", daemon_set),
    ("batch.v1.JobSpec", job_spec),
    ("batch.v1.CronJobSpec", |m| {
        set(m, "concurrencyPolicy", "Allow");
        set_absent(m, "suspend", false);
        set_absent(m, "successfulJobsHistoryLimit", 3);
        set_absent(m, "failedJobsHistoryLimit", 1);
    }),
    ("rbac.v1.RoleRef", |m| set(m, "apiGroup", "rbac.authorization.k8s.io")),
    ("rbac.v1.Subject", |m| {
        if matches!(text(m, "kind"), "User" | "Group") {
            set(m, "apiGroup", "rbac.authorization.k8s.io");
        }
    }),
    ("storage.v1.StorageClass", |m| {
        set_absent(m, "reclaimPolicy", "Delete");
        set_absent(m, "volumeBindingMode", "Immediate");
    }),
    ("scheduling.v1.PriorityClass", |m| set_absent(m, "preemptionPolicy", "PreemptLowerPriority")),
    ("networking.v1.NetworkPolicyPort", |m| set_absent(m, "protocol", "TCP")),
    ("networking.v1.NetworkPolicySpec", |m| {
        if !m.contains_key("policyTypes") {
            let egress = m.get("egress").is_some_and(|v| v.as_array().is_some_and(|e| !e.is_empty()));
            m.insert("policyTypes".into(), if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) });
        }
    }),
    ("authentication.v1.TokenRequestSpec", |m| set_absent(m, "expirationSeconds", 3600)),
];

/// The zero value counts as absent (a field that is not a pointer in Go).
fn set(map: &mut Object, name: &str, value: impl Into<Value>) {
    let absent = match map.get(name) {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(Value::Number(n)) => n.as_i64() == Some(0),
        Some(_) => false,
    };
    if absent {
        map.insert(name.into(), value.into());
    }
}

/// Only absence counts (a pointer in Go).
fn set_absent(map: &mut Object, name: &str, value: impl Into<Value>) {
    if map.get(name).is_none_or(Value::is_null) {
        map.insert(name.into(), value.into());
    }
}

fn nested(map: &mut Object, name: &str, run: impl FnOnce(&mut Object)) {
    if let Some(inner) = map.entry(name.to_string()).or_insert_with(|| json!({})).as_object_mut() {
        run(inner);
    }
}

fn text<'a>(map: &'a Object, name: &str) -> &'a str {
    map.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// `Always` for an image without tag and digest or tagged `latest`.
fn pull_policy(image: &str) -> &'static str {
    let name = image.split('@').next().unwrap_or_default();
    let tag = name.rsplit('/').next().and_then(|last| last.split_once(':')).map(|(_, tag)| tag);
    match tag {
        Some("latest") => "Always",
        None if !image.contains('@') => "Always",
        _ => "IfNotPresent",
    }
}

fn container(map: &mut Object) {
    let policy = pull_policy(text(map, "image"));
    set(map, "imagePullPolicy", policy);
    set(map, "terminationMessagePath", "/dev/termination-log");
    set(map, "terminationMessagePolicy", "File");
}

fn pod_spec(map: &mut Object) {
    set(map, "dnsPolicy", "ClusterFirst");
    set(map, "restartPolicy", "Always");
    set_absent(map, "securityContext", json!({}));
    set_absent(map, "terminationGracePeriodSeconds", 30);
    set(map, "schedulerName", "default-scheduler");
    // The old name of the field follows the new one; written alone it sets it.
    let account = match text(map, "serviceAccountName") {
        "" => text(map, "serviceAccount").to_string(),
        name => name.to_string(),
    };
    if !account.is_empty() {
        map.insert("serviceAccountName".into(), json!(account));
        map.insert("serviceAccount".into(), json!(account));
    }
}

/// Only in pods, not in templates.
fn pod(map: &mut Object) {
    let Some(spec) = map.get_mut("spec").and_then(Value::as_object_mut) else { return };
    set_absent(spec, "enableServiceLinks", true);
    let host_network = spec.get("hostNetwork") == Some(&json!(true));
    for list in ["containers", "initContainers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            requests_from_limits(container);
            if host_network {
                host_ports(container);
            }
        }
    }
}

fn requests_from_limits(container: &mut Value) {
    let Some(resources) = container.get_mut("resources").and_then(Value::as_object_mut) else { return };
    let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else { return };
    nested(resources, "requests", |requests| {
        for (name, amount) in limits {
            requests.entry(name).or_insert(amount);
        }
    });
}

fn host_ports(container: &mut Value) {
    for port in container.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(number) = port.get("containerPort").cloned() {
            set_host_port(port, number);
        }
    }
}

fn set_host_port(port: &mut Value, number: Value) {
    if let Some(port) = port.as_object_mut() {
        set(port, "hostPort", number);
    }
}

fn service(map: &mut Object) {
    nested(map, "spec", |spec| {
        set(spec, "sessionAffinity", "None");
        match text(spec, "sessionAffinity") {
            "None" => {
                spec.remove("sessionAffinityConfig");
            }
            "ClientIP" => {
                let full = spec.get("sessionAffinityConfig").and_then(|c| c.get("clientIP")?.get("timeoutSeconds"));
                if full.is_none_or(Value::is_null) {
                    spec.insert("sessionAffinityConfig".into(), json!({"clientIP": {"timeoutSeconds": 10800}}));
                }
            }
            _ => {}
        }
        set(spec, "type", "ClusterIP");
        for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            service_port(port);
        }
        let kind = text(spec, "type").to_string();
        let external = spec.get("externalIPs").and_then(Value::as_array).is_some_and(|ips| !ips.is_empty());
        if matches!(kind.as_str(), "NodePort" | "LoadBalancer") || (kind == "ClusterIP" && external) {
            set(spec, "externalTrafficPolicy", "Cluster");
        }
        if matches!(kind.as_str(), "NodePort" | "LoadBalancer" | "ClusterIP") {
            set_absent(spec, "internalTrafficPolicy", "Cluster");
        }
        if kind == "LoadBalancer" {
            set_absent(spec, "allocateLoadBalancerNodePorts", true);
        }
    });
}

fn service_port(port: &mut Value) {
    let Some(port) = port.as_object_mut() else { return };
    set(port, "protocol", "TCP");
    if let Some(number) = port.get("port").cloned() {
        set(port, "targetPort", number);
    }
}

/// `stringData` is write-only: it lands in `data`.
fn fold_string_data(secret: &mut Object) {
    use base64::Engine;
    let Some(Value::Object(plain)) = secret.remove("stringData") else { return };
    nested(secret, "data", |data| {
        for (key, value) in plain {
            let bytes = value.as_str().unwrap_or_default().as_bytes();
            data.insert(key, json!(base64::engine::general_purpose::STANDARD.encode(bytes)));
        }
    });
}

fn namespace(map: &mut Object) {
    let Some(metadata) = map.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    let name = text(metadata, "name").to_string();
    if !name.is_empty() {
        nested(metadata, "labels", |labels| {
            labels.insert("kubernetes.io/metadata.name".into(), json!(name));
        });
    }
}

fn replication_controller(map: &mut Object) {
    let labels = map.get("spec").and_then(|s| s.pointer("/template/metadata/labels")).cloned();
    if let Some(labels) = labels {
        nested(map, "spec", |spec| set_absent(spec, "selector", labels.clone()));
        nested(map, "metadata", |metadata| set_absent(metadata, "labels", labels));
    }
    nested(map, "spec", |spec| set_absent(spec, "replicas", 1));
}

fn limit_range_item(map: &mut Object) {
    if text(map, "type") != "Container" {
        return;
    }
    let part = |map: &Object, name: &str| map.get(name).and_then(Value::as_object).cloned().unwrap_or_default();
    let mut default = part(map, "default");
    for (name, amount) in part(map, "max") {
        default.entry(name).or_insert(amount);
    }
    let mut request = part(map, "defaultRequest");
    for (name, amount) in default.iter().filter(|(name, _)| !part(map, "min").contains_key(*name)) {
        request.entry(name.clone()).or_insert(amount.clone());
    }
    for (name, amount) in part(map, "min") {
        request.entry(name).or_insert(amount);
    }
    for (name, list) in [("default", default), ("defaultRequest", request)] {
        if !list.is_empty() {
            map.insert(name.into(), Value::Object(list));
        }
    }
}

fn deployment(map: &mut Object) {
    nested(map, "spec", |spec| {
        set_absent(spec, "replicas", 1);
        nested(spec, "strategy", |strategy| {
            set(strategy, "type", "RollingUpdate");
            if text(strategy, "type") == "RollingUpdate" {
                nested(strategy, "rollingUpdate", |rolling| {
                    set_absent(rolling, "maxUnavailable", "25%");
                    set_absent(rolling, "maxSurge", "25%");
                });
            }
        });
        set_absent(spec, "revisionHistoryLimit", 10);
        set_absent(spec, "progressDeadlineSeconds", 600);
    });
}

fn stateful_set(map: &mut Object) {
    nested(map, "spec", |spec| {
        set(spec, "podManagementPolicy", "OrderedReady");
        nested(spec, "updateStrategy", |strategy| {
            set(strategy, "type", "RollingUpdate");
            if text(strategy, "type") == "RollingUpdate" {
                nested(strategy, "rollingUpdate", |rolling| set_absent(rolling, "partition", 0));
            }
        });
        nested(spec, "persistentVolumeClaimRetentionPolicy", |policy| {
            set(policy, "whenDeleted", "Retain");
            set(policy, "whenScaled", "Retain");
        });
        set_absent(spec, "replicas", 1);
        set_absent(spec, "revisionHistoryLimit", 10);
    });
}

fn daemon_set(map: &mut Object) {
    nested(map, "spec", |spec| {
        nested(spec, "updateStrategy", |strategy| {
            set(strategy, "type", "RollingUpdate");
            if text(strategy, "type") == "RollingUpdate" {
                nested(strategy, "rollingUpdate", |rolling| {
                    set_absent(rolling, "maxUnavailable", 1);
                    set_absent(rolling, "maxSurge", 0);
                });
            }
        });
        set_absent(spec, "revisionHistoryLimit", 10);
    });
}

fn job_spec(map: &mut Object) {
    let absent = |map: &Object, name: &str| map.get(name).is_none_or(Value::is_null);
    if absent(map, "completions") && absent(map, "parallelism") {
        map.insert("completions".into(), json!(1));
    }
    set_absent(map, "parallelism", 1);
    let limit = if absent(map, "backoffLimitPerIndex") { 6 } else { i32::MAX };
    set_absent(map, "backoffLimit", limit);
    set_absent(map, "completionMode", "NonIndexed");
    set_absent(map, "suspend", false);
    set_absent(map, "manualSelector", false);
    let replacement = if absent(map, "podFailurePolicy") { "TerminatingOrFailed" } else { "Failed" };
    set_absent(map, "podReplacementPolicy", replacement);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Registry;

    #[test]
    fn images_without_a_fixed_version_are_always_pulled() {
        for (image, want) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.10", "IfNotPresent"),
            ("localhost:5000/nginx", "Always"),
            ("nginx@sha256:00", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), want, "{image}");
        }
    }

    #[test]
    fn zero_counts_as_set_where_go_has_a_pointer() {
        let kind = Registry::builtin().find("apps", "v1", "deployments").unwrap();
        let mut object = json!({"spec": {"replicas": 0, "strategy": {"type": "Recreate"}}});
        apply(&kind, &mut object);
        assert_eq!(object["spec"]["replicas"], 0);
        assert_eq!(object["spec"]["strategy"], json!({"type": "Recreate"}));
        let once = object.clone();
        apply(&kind, &mut object);
        assert_eq!(object, once);
    }
}
