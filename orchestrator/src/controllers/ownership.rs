//! Who controls an object: taken, given up, and written as owner references. What others wrote there stays.

use serde_json::{Value, json};

use super::informer::Key;
use super::runtime::Action;
use super::views::{Metadata, OwnerReference};
use api::view::Meta;
use apiserver::client::Resource;

/// The reference by which a controller's object owns what it makes.
pub fn owner(api_version: &str, kind: &str, meta: &Meta) -> Value {
    json!({
        "apiVersion": api_version,
        "kind": kind,
        "name": meta.name,
        "uid": meta.uid,
        "controller": true,
        "blockOwnerDeletion": true,
    })
}

/// Adds an owner to those an object has.
pub fn adopt(resource: Resource, object: &Metadata, owner: Value) -> Action {
    let others = object.owned.owner_references.iter().map(reference);
    repoint(resource, object, others.chain([owner]).collect())
}

/// Takes one owner away.
pub fn release(resource: Resource, object: &Metadata, owner: &str) -> Action {
    let others = object.owned.owner_references.iter().filter(|reference| reference.uid != owner);
    repoint(resource, object, others.map(reference).collect())
}

fn reference(owner: &OwnerReference) -> Value {
    let mut value = json!({"apiVersion": owner.api_version, "kind": owner.kind, "name": owner.name, "uid": owner.uid});
    for (field, flag) in [("controller", owner.controller), ("blockOwnerDeletion", owner.block_owner_deletion)] {
        if let Some(flag) = flag {
            value[field] = json!(flag);
        }
    }
    value
}

/// Only while the object is as it was seen: somebody else may have taken it since.
fn repoint(resource: Resource, object: &Metadata, owners: Vec<Value>) -> Action {
    let owners = if owners.is_empty() { Value::Null } else { json!(owners) };
    Action::Patch {
        resource,
        key: Key::of(&object.meta),
        subresource: "",
        version: Some(object.meta.resource_version.clone()),
        patch: json!({"metadata": {"ownerReferences": owners}}),
    }
}

#[cfg(test)]
mod tests {
    use super::super::views::PODS;
    use super::*;

    fn owners(action: &Action) -> &Value {
        let Action::Patch { patch, .. } = action else { panic!("{action:?}") };
        &patch["metadata"]["ownerReferences"]
    }

    #[test]
    fn other_owners_stay_as_they_are() {
        let other = json!({"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "1", "blockOwnerDeletion": false});
        let object: Metadata =
            serde_json::from_value(json!({"name": "p", "namespace": "ns", "ownerReferences": [other]})).unwrap();
        let own = owner("apps/v1", "ReplicaSet", &Meta { name: "set".into(), uid: "2".into(), ..Meta::default() });
        let adopted = adopt(PODS, &object, own.clone());
        assert_eq!(*owners(&adopted), json!([other, own]));
        let taken: Metadata =
            serde_json::from_value(json!({"name": "p", "namespace": "ns", "ownerReferences": [other, own]})).unwrap();
        assert_eq!(*owners(&release(PODS, &taken, "2")), json!([other]));
        assert_eq!(*owners(&release(PODS, &object, "1")), Value::Null);
    }
}
