//! The kinds a server serves, from its discovery documents.

use std::collections::HashSet;

use api::status::Status;
use serde::Deserialize;

use super::answer::undecodable;
use super::path;
use super::{Call, Https};
use crate::object::{Resource, ServedKind};

#[derive(Deserialize)]
struct Groups {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    name: String,
    versions: Vec<Version>,
    preferred_version: Version,
}

#[derive(Deserialize, PartialEq)]
struct Version {
    version: String,
}

#[derive(Deserialize)]
struct Resources {
    resources: Vec<Found>,
}

#[derive(Deserialize)]
struct Found {
    name: String,
    kind: String,
    namespaced: bool,
    #[serde(default)]
    verbs: Vec<String>,
}

/// What can be listed, watched and deleted, and is not a part of something else.
fn whole(found: &Found) -> bool {
    ["list", "watch", "delete"].iter().all(|verb| found.verbs.iter().any(|own| own == verb))
        && !found.name.contains('/')
}

pub async fn kinds(https: &Https) -> Result<Vec<ServedKind>, Status> {
    let groups: Groups = read(https, "/apis").await?;
    let core = Group {
        name: String::new(),
        versions: vec![Version { version: "v1".into() }],
        preferred_version: Version { version: "v1".into() },
    };
    let (mut all, mut seen) = (Vec::new(), HashSet::new());
    for group in std::iter::once(core).chain(groups.groups) {
        for version in &group.versions {
            let preferred = *version == group.preferred_version;
            let root = path::root(&Resource::named(&group.name, &version.version, ""));
            let found: Resources = read(https, &root).await?;
            for found in found.resources.into_iter().filter(whole) {
                // The same objects under a second group, as Events are.
                let first = !preferred || group.name != "events.k8s.io" || !seen.contains(&found.kind);
                seen.insert(found.kind.clone());
                all.push(ServedKind {
                    resource: Resource::named(&group.name, &version.version, &found.name),
                    kind: found.kind,
                    namespaced: found.namespaced,
                    preferred: preferred && first,
                });
            }
        }
    }
    prefer_one(&mut all);
    Ok(all)
}

/// What is not in its group's preferred version is read in the first that has it.
fn prefer_one(all: &mut [ServedKind]) {
    let place = |kind: &ServedKind| (kind.resource.group.clone(), kind.resource.plural.clone());
    let mut read: HashSet<_> = all.iter().filter(|kind| kind.preferred).map(place).collect();
    for kind in all.iter_mut().filter(|kind| !kind.preferred && kind.resource.group != "events.k8s.io") {
        kind.preferred = read.insert(place(kind));
    }
}

async fn read<T: serde::de::DeserializeOwned>(https: &Https, path: &str) -> Result<T, Status> {
    let body = https.call(&Call::get(path.to_owned())).await?;
    serde_json::from_slice(&body).map_err(undecodable)
}
