//! What a pod refers to, wherever in its spec that stands.

use serde_json::Value;

/// Kinds of objects that pods refer to by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Referenced {
    Secrets,
    ConfigMaps,
    Claims,
    TrustBundles,
}

impl Referenced {
    /// Members that are such a reference, or a list of them.
    fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Secrets => &["secret", "secretRef", "secretKeyRef", "imagePullSecrets"],
            Self::ConfigMaps => &["configMap", "configMapRef", "configMapKeyRef"],
            Self::Claims => &["persistentVolumeClaim"],
            Self::TrustBundles => &["clusterTrustBundle"],
        }
    }
}

/// Whether a pod's spec refers to any object of a kind.
pub(crate) fn any(spec: &Value, of: Referenced) -> bool {
    find(spec, of.keys(), &|_| true)
}

/// Whether a pod's spec refers to the object of this name.
pub(crate) fn to(spec: &Value, of: Referenced, name: &str) -> bool {
    find(spec, of.keys(), &|reference| {
        ["name", "secretName", "claimName"].iter().any(|field| reference[*field] == name)
    })
}

fn find(value: &Value, keys: &[&str], is: &dyn Fn(&Value) -> bool) -> bool {
    match value {
        Value::Object(map) => map.iter().any(|(key, inner)| {
            let here = keys.contains(&key.as_str())
                && match inner {
                    Value::Array(list) => list.iter().any(is),
                    Value::Object(_) => is(inner),
                    _ => false,
                };
            here || find(inner, keys, is)
        }),
        Value::Array(list) => list.iter().any(|inner| find(inner, keys, is)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn references_are_found_wherever_they_stand() {
        let spec = json!({
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [{"name": "v", "secret": {"secretName": "mounted"}}, {"name": "w", "projected": {"sources": [{"configMap": {"name": "ca"}}]}}],
            "containers": [{"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "env", "key": "k"}}}]}],
        });
        for name in ["pull", "mounted", "env"] {
            assert!(to(&spec, Referenced::Secrets, name), "{name}");
        }
        assert!(to(&spec, Referenced::ConfigMaps, "ca") && any(&spec, Referenced::ConfigMaps));
        assert!(!to(&spec, Referenced::Secrets, "ca") && !to(&spec, Referenced::ConfigMaps, "mounted"));
        assert!(!any(&spec, Referenced::Claims) && !any(&json!({"imagePullSecrets": []}), Referenced::Secrets));
    }
}
