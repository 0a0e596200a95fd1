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
}

impl Referent {
    /// As paths and rules name it; all four are of the core group.
    pub fn plural(self) -> &'static str {
        match self {
            Self::ConfigMap => "configmaps",
            Self::Secret => "secrets",
            Self::ServiceAccount => "serviceaccounts",
            Self::PersistentVolumeClaim => "persistentvolumeclaims",
        }
    }

    pub fn of_plural(plural: &str) -> Option<Self> {
        let all = [Self::ConfigMap, Self::Secret, Self::ServiceAccount, Self::PersistentVolumeClaim];
        all.into_iter().find(|kind| kind.plural() == plural)
    }
}

/// Members of a pod's spec that hold a reference, or a list of them, wherever they stand.
const MEMBERS: [(&str, Referent); 8] = [
    ("configMap", Referent::ConfigMap),
    ("configMapRef", Referent::ConfigMap),
    ("configMapKeyRef", Referent::ConfigMap),
    ("secret", Referent::Secret),
    ("secretRef", Referent::Secret),
    ("secretKeyRef", Referent::Secret),
    ("imagePullSecrets", Referent::Secret),
    ("persistentVolumeClaim", Referent::PersistentVolumeClaim),
];
/// Under which of these a reference has its name.
const NAMES: [&str; 3] = ["name", "secretName", "claimName"];

/// All that a pod's spec refers to, in the pod's own namespace.
pub fn of_pod(spec: &Value) -> BTreeSet<(Referent, String)> {
    let mut found = BTreeSet::new();
    if let Some(account) = spec["serviceAccountName"].as_str() {
        found.insert((Referent::ServiceAccount, account.to_owned()));
    }
    collect(spec, &mut found);
    found
}

fn collect(value: &Value, found: &mut BTreeSet<(Referent, String)>) {
    match value {
        Value::Object(members) => {
            for (key, inner) in members {
                if let Some((_, kind)) = MEMBERS.iter().find(|(member, _)| member == key) {
                    let references = inner.as_array().map_or(std::slice::from_ref(inner), Vec::as_slice);
                    let names =
                        references.iter().filter_map(|reference| NAMES.iter().find_map(|n| reference[*n].as_str()));
                    found.extend(names.filter(|name| !name.is_empty()).map(|name| (*kind, name.to_owned())));
                }
                collect(inner, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
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
    fn kinds_are_found_by_their_paths() {
        assert_eq!(Referent::of_plural("secrets"), Some(Referent::Secret));
        assert_eq!(Referent::of_plural("services"), None);
    }
}
