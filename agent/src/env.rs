//! A container's environment: image, services, `envFrom`, `env`, in the kubelet's order of precedence.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use api::quantity::Quantity;
use api::view::Meta;
use serde_json::Value;

use crate::boundary::{PodRef, ServiceLinks, Upstream, UpstreamError};
use crate::model::{Container, EnvSource, KeyRef, Pod, ResourceFieldRef};

#[derive(Debug, thiserror::Error)]
pub enum EnvError {
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey { kind: &'static str, key: String, namespace: String, name: String },
    #[error("unsupported fieldPath: {0}")]
    FieldPath(String),
    #[error("unsupported container resource: {0}")]
    Resource(String),
}

/// What the downward API can tell beside the pod's own JSON.
#[derive(Clone, Debug)]
pub struct Facts {
    pub node_name: String,
    /// First the one by which it is known; so for the pod's.
    pub host_ips: Vec<IpAddr>,
    pub pod_ips: Vec<IpAddr>,
}

/// Name and value, in order; a later entry of the same name has replaced an earlier one.
pub async fn environment(
    upstream: &dyn Upstream,
    pod: &Pod,
    container: &Container,
    facts: &Facts,
    image_env: &[String],
) -> Result<Vec<(String, String)>, EnvError> {
    let namespace = &pod.metadata.namespace;
    let mut env = Environment::default();
    env.set("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    if let Some(hostname) = hostname(pod) {
        env.set("HOSTNAME", hostname);
    }
    for (name, value) in image_env.iter().filter_map(|pair| pair.split_once('=')) {
        env.set(name, value);
    }
    let links = match pod.spec.enable_service_links {
        Some(false) => ServiceLinks::Disabled,
        Some(true) | None => ServiceLinks::Enabled,
    };
    let services: BTreeMap<String, String> =
        upstream.service_environment(namespace, links).await?.into_iter().collect();
    for source in &container.env_from {
        for (reference, keyed) in [(&source.config_map_ref, Keyed::ConfigMap), (&source.secret_ref, Keyed::Secret)] {
            let Some(reference) = reference else { continue };
            for (key, value) in object_data(upstream, &PodRef::of(&pod.metadata), reference, keyed).await? {
                env.set(format!("{}{key}", source.prefix), String::from_utf8_lossy(&value));
            }
        }
    }
    for variable in &container.env {
        let value = match (&variable.value, &variable.value_from) {
            (Some(value), _) => Some(expand(value, &|name| env.get(name).or_else(|| services.get(name).cloned()))),
            (None, Some(source)) => resolve(upstream, pod, container, facts, source).await?,
            (None, None) => Some(String::new()),
        };
        if let Some(value) = value {
            env.set(variable.name.as_str(), value);
        }
    }
    for (name, value) in services {
        if env.get(&name).is_none() {
            env.set(name, value);
        }
    }
    Ok(env.0)
}

#[derive(Default)]
struct Environment(Vec<(String, String)>);

impl Environment {
    fn set(&mut self, name: impl Into<String>, value: impl Into<String>) {
        let (name, value) = (name.into(), value.into());
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name, value)),
        }
    }

    fn get(&self, name: &str) -> Option<String> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
    }
}

/// The pod's host name; with hostNetwork it is the node's, which nobody sets here.
pub fn hostname(pod: &Pod) -> Option<String> {
    if pod.spec.host_network {
        return None;
    }
    let name = pod.spec.hostname.as_deref().unwrap_or(&pod.metadata.name);
    Some(name.chars().take(63).collect::<String>().trim_end_matches(['-', '.']).to_owned())
}

/// Replaces `$(NAME)` where the name is known; `$$` is one `$`.
pub fn expand(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> String {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(start) = rest.find('$') {
        out.push_str(&rest[..start]);
        let tail = &rest[start + 1..];
        let reference = tail.strip_prefix('(').and_then(|inner| inner.split_once(')'));
        if let Some(after) = tail.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = reference {
            out.push_str(&variable(name).unwrap_or_else(|| format!("$({name})")));
            rest = after;
        } else {
            out.push('$');
            rest = tail;
        }
    }
    out + rest
}

async fn resolve(
    upstream: &dyn Upstream,
    pod: &Pod,
    container: &Container,
    facts: &Facts,
    source: &EnvSource,
) -> Result<Option<String>, EnvError> {
    if let Some(field) = &source.field_ref {
        return field_value(pod, facts, &field.field_path).map(Some);
    }
    if let Some(resource) = &source.resource_field_ref {
        return resource_value(pod, container, resource).map(Some);
    }
    let namespace = &pod.metadata.namespace;
    let keys = [(&source.config_map_key_ref, Keyed::ConfigMap), (&source.secret_key_ref, Keyed::Secret)];
    for (reference, keyed) in keys {
        let Some(reference) = reference else { continue };
        let data = object_data(upstream, &PodRef::of(&pod.metadata), reference, keyed).await?;
        return match data.get(&reference.key) {
            Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
            None if reference.optional => Ok(None),
            None => Err(EnvError::NoKey {
                kind: keyed.kind(),
                key: reference.key.clone(),
                namespace: namespace.clone(),
                name: reference.name.clone(),
            }),
        };
    }
    Ok(None)
}

/// What holds data under keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keyed {
    ConfigMap,
    Secret,
}

impl Keyed {
    fn kind(self) -> &'static str {
        match self {
            Keyed::ConfigMap => "ConfigMap",
            Keyed::Secret => "Secret",
        }
    }
}

/// The data of a config map or secret as bytes. An optional one that is missing is empty.
pub async fn object_data(
    upstream: &dyn Upstream,
    pod: &PodRef,
    reference: &KeyRef,
    keyed: Keyed,
) -> Result<BTreeMap<String, Vec<u8>>, UpstreamError> {
    let object = match keyed {
        Keyed::ConfigMap => upstream.config_map(pod, &reference.name).await,
        Keyed::Secret => upstream.secret(pod, &reference.name).await,
    };
    match object {
        Ok(object) => Ok(decode_data(&object, keyed)),
        Err(UpstreamError::NotFound(_)) if reference.optional => Ok(BTreeMap::new()),
        Err(error) => Err(error),
    }
}

fn decode_data(object: &Arc<Value>, keyed: Keyed) -> BTreeMap<String, Vec<u8>> {
    let text = |field: &str| object[field].as_object().cloned().unwrap_or_default();
    let decode = |value: &Value| {
        base64::Engine::decode(&base64::engine::general_purpose::STANDARD, value.as_str().unwrap_or_default())
            .unwrap_or_default()
    };
    let (plain, encoded) = match keyed {
        Keyed::ConfigMap => ("data", "binaryData"),
        Keyed::Secret => ("", "data"),
    };
    let plain =
        text(plain).into_iter().map(|(key, value)| (key, value.as_str().unwrap_or_default().as_bytes().to_vec()));
    plain.chain(text(encoded).into_iter().map(|(key, value)| (key, decode(&value)))).collect()
}

/// A `fieldRef`, for variables and downward API files.
pub fn field_value(pod: &Pod, facts: &Facts, path: &str) -> Result<String, EnvError> {
    let metadata = &pod.metadata;
    let first = |ips: &[IpAddr]| ips.first().map(IpAddr::to_string).unwrap_or_default();
    let all = |ips: &[IpAddr]| ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
    let keyed = |kind: &str| path.strip_prefix(kind)?.strip_prefix("['")?.strip_suffix("']").map(str::to_owned);
    Ok(match path {
        "metadata.name" => metadata.name.clone(),
        "metadata.namespace" => metadata.namespace.clone(),
        "metadata.uid" => metadata.uid.to_string(),
        "metadata.labels" => pairs(&metadata.labels),
        "metadata.annotations" => pairs(&metadata.annotations),
        "spec.nodeName" => facts.node_name.clone(),
        "spec.serviceAccountName" => pod.spec.service_account_name.clone().unwrap_or_default(),
        "status.hostIP" => first(&facts.host_ips),
        "status.hostIPs" => all(&facts.host_ips),
        "status.podIP" => first(&facts.pod_ips),
        "status.podIPs" => all(&facts.pod_ips),
        _ => match (keyed("metadata.labels"), keyed("metadata.annotations")) {
            (Some(key), _) => label(metadata, &key),
            (_, Some(key)) => metadata.annotations.get(&key).cloned().unwrap_or_default(),
            _ => return Err(EnvError::FieldPath(path.to_owned())),
        },
    })
}

fn label(metadata: &Meta, key: &str) -> String {
    metadata.labels.get(key).cloned().unwrap_or_default()
}

/// `key="escaped value"`, one per line, sorted, as the downward API writes maps.
fn pairs(map: &BTreeMap<String, String>) -> String {
    let lines: Vec<_> = map.iter().map(|(key, value)| format!("{key}={value:?}")).collect();
    lines.join("\n")
}

/// A `resourceFieldRef`. A limit that isn't set is the node's capacity.
pub fn resource_value(pod: &Pod, own: &Container, reference: &ResourceFieldRef) -> Result<String, EnvError> {
    let unsupported = || EnvError::Resource(reference.resource.clone());
    let container = match &reference.container_name {
        Some(name) => pod.spec.container(name).ok_or_else(unsupported)?,
        None => own,
    };
    let (kind, resource) = reference.resource.split_once('.').ok_or_else(unsupported)?;
    let map = match kind {
        "limits" => &container.resources.limits,
        "requests" => &container.resources.requests,
        _ => return Err(unsupported()),
    };
    let amount = match map.get(resource) {
        Some(value) => Quantity::of(value).ok_or_else(unsupported)?,
        None if kind == "limits" => node_capacity(resource).map(Quantity::from_int).ok_or_else(unsupported)?,
        None => Quantity::ZERO,
    };
    let divisor = reference.divisor.as_ref().and_then(Quantity::of).unwrap_or(Quantity::ZERO);
    // A divisor of nothing is none, and one is meant.
    Ok(amount.in_units_of(divisor).unwrap_or_else(|| amount.value()).to_string())
}

/// Processors, or bytes.
fn node_capacity(resource: &str) -> Option<i64> {
    match resource {
        "cpu" => i64::try_from(std::thread::available_parallelism().ok()?.get()).ok(),
        "memory" => {
            let text = std::fs::read_to_string("/proc/meminfo").ok()?;
            let kilobytes: i64 = text.lines().next()?.split_whitespace().nth(1)?.parse().ok()?;
            Some(kilobytes * 1024)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn expansion() {
        let variable = |name: &str| (name == "A").then(|| "x".to_owned());
        for (text, expanded) in [
            ("$(A)-$(A)", "x-x"),
            ("$(B)", "$(B)"),
            ("$$(A)", "$(A)"),
            ("$A $", "$A $"),
            ("$(A", "$(A"),
            ("$$$(A)", "$x"),
        ] {
            assert_eq!(expand(text, &variable), expanded, "{text}");
        }
    }

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"b": "2", "a": "1\"x"}},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "1500m"}}}]},
        }))
        .unwrap()
    }

    #[test]
    fn downward_fields() {
        let host_ips = ["1.2.3.4", "fd00::4"].map(|ip| ip.parse().unwrap()).into();
        let facts = Facts { node_name: "node".into(), host_ips, pod_ips: Vec::new() };
        let field = |path: &str| field_value(&pod(), &facts, path);
        assert_eq!(field("metadata.name").unwrap(), "p");
        assert_eq!(field("metadata.labels['b']").unwrap(), "2");
        assert_eq!(field("metadata.labels").unwrap(), "a=\"1\\\"x\"\nb=\"2\"");
        assert_eq!(field("status.hostIP").unwrap(), "1.2.3.4");
        assert_eq!(field("status.hostIPs").unwrap(), "1.2.3.4,fd00::4");
        assert_eq!((field("status.podIP").unwrap(), field("status.podIPs").unwrap()), (String::new(), String::new()));
        assert!(field("spec.shoeSize").is_err());
    }

    #[test]
    fn resources_are_rounded_up() {
        let pod = pod();
        let value = |resource: &str, divisor: Option<&str>| {
            let reference = ResourceFieldRef {
                container_name: None,
                resource: resource.into(),
                divisor: divisor.map(|divisor| json!(divisor)),
            };
            resource_value(&pod, &pod.spec.containers[0], &reference)
        };
        assert_eq!(value("limits.cpu", None).unwrap(), "2");
        assert_eq!(value("limits.cpu", Some("1m")).unwrap(), "1500");
        assert_eq!(value("requests.memory", None).unwrap(), "0");
        assert!(value("limits.gold", None).is_err());
    }

    #[test]
    fn secrets_are_decoded() {
        let data = decode_data(&Arc::new(json!({"data": {"k": "aGk="}})), Keyed::Secret);
        assert_eq!(data["k"], b"hi");
        let map = json!({"data": {"k": "aGk="}, "binaryData": {"b": "aGk="}});
        let data = decode_data(&Arc::new(map), Keyed::ConfigMap);
        assert_eq!((data["k"].as_slice(), data["b"].as_slice()), (b"aGk=".as_slice(), b"hi".as_slice()));
    }
}
