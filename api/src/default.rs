//! Defaults: what Kubernetes fills in when a field is absent.
//!
//! One walk over the schema; each type that has defaults has a rule, applied after its members'. Rules of types that
//! came with a kind are in that kind's file of [`crate::kinds`]; here are those of types that many kinds hold.

mod rule;

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::kind::Kind;
use crate::kinds;
use crate::schema::{Field, Reading, Shape, Type};

pub use self::rule::TypeDefault;
pub(crate) use self::rule::{Object, Rule, nested, set, set_absent, text};

/// Which defaults these are. What was stored under a lower number is defaulted when it is read, so whoever changes what
/// is filled in raises it (`tests/kinds.rs` tells).
pub const GENERATION: u16 = 1;

/// Fills in the defaults of this kind's version.
pub fn apply(kind: &Kind, object: &mut Value) {
    if let Some(map) = object.as_object_mut() {
        structure(kind.schema.ty(), map);
    }
}

fn structure(ty: &Type, map: &mut Object) {
    for field in &ty.fields {
        match (map.get_mut(&*field.name), ty.reading) {
            (Some(value), Reading::Plain) => member(field, value),
            (Some(value), Reading::Typed) if !value.is_null() => fill(&field.shape, value),
            (_, reading) => {
                let Some(mut value) = default_of(field, reading) else { continue };
                if reading == Reading::Plain {
                    fill(&field.shape, &mut value);
                }
                map.insert(field.name.to_string(), value);
            }
        }
    }
    if let Some(rule) = RULES.get(&*ty.name).filter(|_| ty.reading == Reading::Typed) {
        rule(map);
    }
}

/// Of a Go type only texts: other defaults of its documents are what its zero value means.
fn default_of(field: &Field, reading: Reading) -> Option<Value> {
    let text = field.default.as_deref().filter(|text| reading == Reading::Plain || text.starts_with('"'))?;
    serde_json::from_str(text).ok()
}

/// A value that is there; a null that is none of its field's values is replaced.
fn member(field: &Field, value: &mut Value) {
    if value.is_null()
        && !field.nullable
        && let Some(default) = default_of(field, Reading::Plain)
    {
        *value = default;
    }
    fill(&field.shape, value);
}

fn fill(shape: &Shape, value: &mut Value) {
    match (shape, value) {
        (Shape::Described(field), value) => member(field, value),
        (Shape::Struct(_) | Shape::Made(_), Value::Object(map)) => {
            if let Some(ty) = shape.ty() {
                structure(ty, map);
            }
        }
        (Shape::List(item), Value::Array(items)) => items.iter_mut().for_each(|v| fill(item, v)),
        (Shape::Map(item), Value::Object(map)) => map.values_mut().for_each(|v| fill(item, v)),
        _ => {}
    }
}

static RULES: LazyLock<HashMap<&'static str, Rule>> =
    LazyLock::new(|| SHARED.iter().chain(kinds::defaults()).copied().collect());

/// Types that many kinds hold.
const SHARED: &[TypeDefault] = &[
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
    ("authentication.v1.TokenRequestSpec", |m| set_absent(m, "expirationSeconds", 3600)),
];

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Registry;

    #[test]
    fn no_type_has_two_rules() {
        let names: Vec<&str> = SHARED.iter().chain(kinds::defaults()).map(|(name, _)| *name).collect();
        let unique: std::collections::HashSet<&str> = names.iter().copied().collect();
        assert_eq!(names.len(), unique.len());
        assert!(names.iter().all(|name| crate::schema::find(name).is_some()), "a rule of no type");
    }

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
