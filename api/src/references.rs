//! Which objects a pod refers to by name: what its node has to read, and what it may.

use std::collections::BTreeSet;

use serde_json::Value;

/// A kind that pods refer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Referent {
    ConfigMap,
    Secret,
    ServiceAccount,
    PersistentVolumeClaim,
    ClusterTrustBundle,
}

impl Referent {
    /// As paths and rules name it.
    pub fn plural(self) -> &'static str {
        match self {
            Self::ConfigMap => "configmaps",
            Self::Secret => "secrets",
            Self::ServiceAccount => "serviceaccounts",
            Self::PersistentVolumeClaim => "persistentvolumeclaims",
            Self::ClusterTrustBundle => "clustertrustbundles",
        }
    }

    /// Of the core group.
    pub fn of_plural(plural: &str) -> Option<Self> {
        let all = [Self::ConfigMap, Self::Secret, Self::ServiceAccount, Self::PersistentVolumeClaim];
        all.into_iter().find(|kind| kind.plural() == plural)
    }
}

/// Members of a pod's spec that hold a reference, or a list of them, wherever they stand.
const MEMBERS: [(&str, Referent); 9] = [
    ("configMap", Referent::ConfigMap),
    ("configMapRef", Referent::ConfigMap),
    ("configMapKeyRef", Referent::ConfigMap),
    ("secret", Referent::Secret),
    ("secretRef", Referent::Secret),
    ("secretKeyRef", Referent::Secret),
    ("imagePullSecrets", Referent::Secret),
    ("persistentVolumeClaim", Referent::PersistentVolumeClaim),
    ("clusterTrustBundle", Referent::ClusterTrustBundle),
];
/// Under which of these a reference has its name.
const NAMES: [&str; 3] = ["name", "secretName", "claimName"];

/// All that a pod's spec refers to by name; what has a namespace is in the pod's own.
pub fn of_pod(spec: &Value) -> BTreeSet<(Referent, String)> {
    let mut found = BTreeSet::new();
    if let Some(account) = spec["serviceAccountName"].as_str() {
        found.insert((Referent::ServiceAccount, account.to_owned()));
    }
    visit(spec, &mut |kind, reference| {
        let name = NAMES.iter().find_map(|name| reference[*name].as_str());
        found.extend(name.filter(|name| !name.is_empty()).map(|name| (kind, name.to_owned())));
    });
    found
}

/// Whether a pod's spec refers to any object of a kind, by whatever name.
pub fn any(spec: &Value, of: Referent) -> bool {
    let mut found = false;
    visit(spec, &mut |kind, _| found |= kind == of);
    found
}

/// Shows each reference below a value.
fn visit(value: &Value, see: &mut dyn FnMut(Referent, &Value)) {
    match value {
        Value::Object(members) => {
            for (key, inner) in members {
                if let Some((_, kind)) = MEMBERS.iter().find(|(member, _)| member == key) {
                    match inner {
                        Value::Array(references) => references.iter().for_each(|reference| see(*kind, reference)),
                        Value::Object(_) => see(*kind, inner),
                        _ => {}
                    }
                }
                visit(inner, see);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| visit(item, see)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn references_are_found_wherever_they_stand() {
        let spec = json!({
            "serviceAccountName": "robot",
            "imagePullSecrets": [{"name": "pull"}, {"name": "other"}],
            "volumes": [
                {"name": "v", "secret": {"secretName": "mounted"}},
                {"name": "w", "projected": {"sources": [{"configMap": {"name": "ca"}}, {"secret": {"name": "part"}}]}},
                {"name": "x", "persistentVolumeClaim": {"claimName": "disk"}},
                {"name": "y", "configMap": {"defaultMode": 420}},
            ],
            "initContainers": [{"name": "i", "envFrom": [{"configMapRef": {"name": "all"}}, {"secretRef": {"name": "some"}}]}],
            "containers": [{"name": "c", "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "env", "key": "k"}}}]}],
        });
        let found = of_pod(&spec);
        let of = |kind| found.iter().filter(move |(k, _)| *k == kind).map(|(_, name)| &**name).collect::<Vec<_>>();
        assert_eq!(of(Referent::Secret), ["env", "mounted", "other", "part", "pull", "some"]);
        assert_eq!(of(Referent::ConfigMap), ["all", "ca"]);
        assert_eq!(of(Referent::ServiceAccount), ["robot"]);
        assert_eq!(of(Referent::PersistentVolumeClaim), ["disk"]);
    }

    #[test]
    fn a_reference_without_a_name_is_one_too() {
        let spec = json!({"volumes": [{"configMap": {}}], "imagePullSecrets": []});
        assert!(any(&spec, Referent::ConfigMap) && of_pod(&spec).is_empty());
        assert!(!any(&spec, Referent::Secret) && !any(&spec, Referent::PersistentVolumeClaim));
    }

    #[test]
    fn kinds_are_found_by_their_paths() {
        assert_eq!(Referent::of_plural("secrets"), Some(Referent::Secret));
        assert_eq!(Referent::of_plural("services"), None);
    }
}
