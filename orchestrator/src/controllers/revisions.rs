//! ControllerRevisions: the templates that a DaemonSet or a StatefulSet had, numbered, each as the patch that brings it back
//! (`kubectl rollout undo` applies it). The newest has the highest number, also when it was an old one before.

use std::collections::HashSet;
use std::sync::Arc;

use api::selector::Labels;
use api::uid::Uid;
use api::view::Meta;
use client::{Key, Resource, View};
use serde::Deserialize;
use serde_json::{Value, json};

use super::ownership;
use super::runtime::{Action, Plan};
use super::views::{Metadata, owner_index};

pub const REVISIONS: Resource = Resource::new("apps", "controllerrevisions");
/// The label by which a pod says what it was made from.
pub const POD_LABEL: &str = "controller-revision-hash";

/// Found by its owner.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Revision {
    pub metadata: Metadata,
    pub revision: i64,
    pub data: Value,
}

impl View for Revision {
    const RESOURCE: Resource = REVISIONS;

    fn uid(&self) -> &Uid {
        &self.metadata.meta.uid
    }

    fn indexes(&self) -> Vec<String> {
        vec![owner_index(&self.metadata)]
    }
}

impl Revision {
    pub fn name(&self) -> &str {
        &self.metadata.meta.name
    }

    pub fn label(&self, key: &str) -> &str {
        self.metadata.meta.labels.get(key).map(String::as_str).unwrap_or_default()
    }

    pub fn template(&self) -> Value {
        let mut template = self.data["spec"]["template"].clone();
        if let Some(template) = template.as_object_mut() {
            template.remove(DIRECTIVE);
        }
        template
    }
}

const DIRECTIVE: &str = "$patch";

fn data(template: &Value) -> Value {
    let mut template = template.clone();
    template[DIRECTIVE] = json!("replace");
    json!({"spec": {"template": template}})
}

/// Whose history it is.
pub struct Owner<'a> {
    pub kind: &'static str,
    pub resource: Resource,
    pub meta: &'a Meta,
    pub template: &'a Value,
    /// How often a name was somebody else's.
    pub collisions: i64,
    /// How many old ones are kept.
    pub limit: usize,
    /// The label that holds a revision's hash.
    pub hash_label: &'static str,
}

impl Owner<'_> {
    fn reference(&self) -> Value {
        ownership::owner("apps/v1", self.kind, self.meta)
    }

    /// The revision of the present template. `taken` tells whether somebody has a revision of that name.
    ///
    /// # Errors
    /// What has to be written first, where there is no such revision, or it is not the newest.
    pub fn current(&self, own: &[Arc<Revision>], taken: &dyn Fn(&str) -> bool) -> Result<Arc<Revision>, Plan> {
        let data = data(self.template);
        let newest = own.iter().map(|revision| revision.revision).max().unwrap_or(0);
        let same = own.iter().filter(|revision| revision.data == data).max_by_key(|revision| revision.revision);
        match same {
            Some(same) if same.revision == newest => Ok(same.clone()),
            Some(same) => Err(vec![Action::Patch {
                resource: REVISIONS,
                key: Key::of(&same.metadata.meta),
                subresource: "",
                version: Some(same.metadata.meta.resource_version.clone()),
                patch: json!({"revision": newest + 1}),
            }]),
            None => Err(vec![self.create(data, newest + 1, taken)]),
        }
    }

    fn create(&self, data: Value, number: i64, taken: &dyn Fn(&str) -> bool) -> Action {
        let hash = ownership::hash(&format!("{data}{}", self.collisions));
        let name = format!("{}-{hash}", self.meta.name);
        if taken(&name) {
            return Action::Patch {
                resource: self.resource.clone(),
                key: Key::of(self.meta),
                subresource: "status",
                version: None,
                patch: json!({"status": {"collisionCount": self.collisions + 1}}),
            };
        }
        let mut labels = self.template["metadata"]["labels"].clone();
        labels[self.hash_label] = json!(hash);
        let metadata = json!({
            "name": name,
            "namespace": self.meta.namespace,
            "labels": labels,
            "annotations": self.meta.annotations,
            "ownerReferences": [self.reference()],
        });
        let object = json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": metadata,
            "revision": number, "data": data});
        Action::Create { resource: REVISIONS, namespace: self.meta.namespace.clone(), object, announce: None }
    }

    /// Takes those that nobody has, and that fit.
    pub fn adopt(&self, orphans: &[Arc<Revision>], labels: &Labels) -> Plan {
        let fits = |revision: &&Arc<Revision>| {
            let meta = &revision.metadata.meta;
            meta.deletion_timestamp.is_none() && labels.matches(|key| meta.labels.get(key).map(String::as_str))
        };
        let taken = orphans.iter().filter(fits);
        taken.map(|revision| ownership::adopt(REVISIONS, &revision.metadata, self.reference())).collect()
    }

    /// Old ones beyond those that are kept, the oldest first. `live` tells of those that pods are made from.
    pub fn forget(&self, own: &[Arc<Revision>], live: &HashSet<&str>) -> Plan {
        let mut old: Vec<_> = own.iter().filter(|revision| !live.contains(revision.name())).collect();
        old.sort_by_key(|revision| revision.revision);
        let more = old.len().saturating_sub(self.limit);
        let delete = |revision: &Arc<Revision>| {
            let meta = &revision.metadata.meta;
            Action::Delete { resource: REVISIONS, key: Key::of(meta), uid: Some(meta.uid.clone()), propagation: None }
        };
        old.into_iter().take(more).map(delete).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(name: &str, number: i64, image: &str) -> Arc<Revision> {
        let data = data(&json!({"spec": {"image": image}}));
        let metadata =
            json!({"name": name, "namespace": "ns", "uid": name, "resourceVersion": "3", "labels": {"app": "a"}});
        Arc::new(serde_json::from_value(json!({"metadata": metadata, "revision": number, "data": data})).unwrap())
    }

    #[test]
    fn plans_are_as_agreed() {
        let meta = Meta { name: "set".into(), namespace: "ns".into(), uid: Uid::new("u"), ..Meta::default() };
        let template = json!({"metadata": {"labels": {"app": "a"}}, "spec": {"image": "b"}});
        let bare = json!({"spec": {"image": "b"}});
        let owner = |template| Owner {
            kind: "DaemonSet",
            resource: Resource::new("apps", "daemonsets"),
            meta: &meta,
            template,
            collisions: 0,
            limit: 1,
            hash_label: POD_LABEL,
        };
        let current = |template, own: &[Arc<Revision>], taken: bool| {
            owner(template).current(own, &|_| taken).err().unwrap_or_default()
        };
        let all = [revision("x", 1, "a"), revision("y", 2, "b"), revision("z", 3, "c")];
        let labels = Labels::from_map(&json!({"app": "a"}));
        super::super::golden::check(
            "revisions",
            &[
                ("the first", current(&template, &[], false)),
                ("its name is somebody else's", current(&template, &[], true)),
                ("it is the newest", current(&bare, &all[..2], false)),
                ("it was the newest before", current(&bare, &all, false)),
                ("orphans", owner(&bare).adopt(&all[..1], &labels)),
                ("one old one is kept", owner(&bare).forget(&all, &HashSet::from(["z"]))),
                ("those in use are kept", owner(&bare).forget(&all, &HashSet::from(["x", "z"]))),
            ],
        );
        assert_eq!(all[1].template(), bare);
    }
}
