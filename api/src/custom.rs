//! Kinds that CustomResourceDefinitions define: their rows of the table of kinds, and what only such kinds have.
//!
//! A definition becomes rows when its names are accepted and it is established ([`status`]); a row's schema is compiled
//! once, into a type like those of the table ([`crate::schema::structural`]) and the rules of its values ([`rules`]).

mod check;
pub(crate) mod embedded;
mod extra;
pub(crate) mod formats;
pub mod path;
mod publish;
pub mod rules;
pub mod status;

use std::sync::Arc;

use serde_json::Value;

use crate::kind::{Gvk, Kind, Part, Presence, Storage, Subresource, Text};
use crate::kinds::CUSTOM;
use crate::schema::{Schema, of_kind, structural};
use crate::scope::Scope;
use crate::value::{items, text};

pub use self::check::{at, create, update};
pub use self::extra::{Custom, Scale, Stage};
pub use self::publish::{Version, list, object};
pub use self::status::CLEANUP;

/// The collection in which definitions are.
pub const GROUP: &str = "apiextensions.k8s.io";
pub const PLURAL: &str = "customresourcedefinitions";

/// What becomes of a kind when its definition changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing that rows say.
    None,
    /// What may be done with its objects.
    Stage,
    /// How its objects look.
    Form,
}

impl Change {
    pub fn between(one: &Value, other: &Value) -> Change {
        let is = |definition: &Value, condition| status::holds(definition, condition);
        let same_form = one["spec"] == other["spec"]
            && one["status"]["acceptedNames"] == other["status"]["acceptedNames"]
            && is(one, "Established") == is(other, "Established");
        match same_form {
            false => Change::Form,
            true if is(one, "Terminating") == is(other, "Terminating") => Change::None,
            true => Change::Stage,
        }
    }
}

/// The rows of a definition; none before it is established.
pub fn kinds(definition: &Value) -> Vec<Kind> {
    if !status::holds(definition, "Established") {
        return Vec::new();
    }
    let spec = &definition["spec"];
    let versions = || items(&spec["versions"]);
    let Some(stored) = versions().find(|version| version["storage"] == true) else { return Vec::new() };
    // Nobody is there to convert objects for a webhook: they are shown as they are stored.
    let converts = spec["conversion"]["strategy"] != "Webhook";
    versions()
        .filter(|version| version["storage"] == true || (version["served"] == true && converts))
        .map(|version| row(definition, version, text(&stored["name"])))
        .collect()
}

fn owned(value: &Value) -> Text {
    text(value).to_owned().into()
}

fn row(definition: &Value, version: &Value, stored: &str) -> Kind {
    let (spec, names) = (&definition["spec"], &definition["status"]["acceptedNames"]);
    let (group, name) = (owned(&spec["group"]), owned(&version["name"]));
    let list = |field: &str| items(&names[field]).map(owned).collect();
    let schema = &version["schema"]["openAPIV3Schema"];
    let custom = Custom::read(definition, version);
    let verbs = ["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];
    let ty = Arc::new(structural::object(&published_name(&group, &name, text(&names["kind"])), schema));
    Kind {
        kind: owned(&names["kind"]),
        list_kind: owned(&names["listKind"]),
        plural: owned(&names["plural"]),
        singular: owned(&names["singular"]),
        short_names: list("shortNames"),
        categories: list("categories"),
        scope: if spec["scope"] == "Namespaced" { Scope::Namespaced } else { Scope::Cluster },
        verbs: verbs.map(Text::from).into(),
        subresources: subresources(version, &group, &name, &names["kind"], &ty),
        schema: Schema::Made(ty),
        storage: Storage { group: group.clone(), plural: owned(&names["plural"]), version: stored.to_owned().into() },
        behaviour: &CUSTOM,
        presence: if version["served"] == true { Presence::Served } else { Presence::Stored },
        custom: Some(Arc::new(custom)),
        group,
        version: name,
    }
}

fn subresources(
    version: &Value,
    group: &Text,
    name: &Text,
    kind: &Value,
    ty: &Arc<crate::schema::Type>,
) -> Vec<Subresource> {
    let verbs = || ["get", "patch", "update"].map(Text::from).to_vec();
    let parts = &version["subresources"];
    let mut out = Vec::new();
    if parts["status"].is_object() {
        out.push(Subresource {
            part: Part::Status,
            gvk: Gvk { group: group.clone(), version: name.clone(), kind: owned(kind) },
            verbs: verbs(),
            schema: Schema::Made(ty.clone()),
        });
    }
    if let (true, Some(scale)) = (parts["scale"].is_object(), of_kind("autoscaling", "v1", "Scale")) {
        out.push(Subresource {
            part: Part::Scale,
            gvk: Gvk { group: "autoscaling".into(), version: "v1".into(), kind: "Scale".into() },
            verbs: verbs(),
            schema: Schema::Type(scale),
        });
    }
    out
}

/// `com.example.stable.v1.CronTab`: what documents call the type.
fn published_name(group: &str, version: &str, kind: &str) -> String {
    let mut parts: Vec<&str> = group.split('.').collect();
    parts.reverse();
    format!("{}.{version}.{kind}", parts.join("."))
}

#[cfg(test)]
mod tests;
