//! What a request says, whichever way it came: what it is about, who asks and when, and the options of writes and deletions.

use std::sync::Arc;

use api::kind::{Kind, Part};
use api::status::{FieldError, Status};
use api::uid::Uid;
use jiff::Timestamp;
use serde_json::Value;

use crate::identity::{MASTERS, User};
use crate::object::ObjectKey;

/// What a request is about.
#[derive(Debug, Clone)]
pub struct Target {
    pub kind: Arc<Kind>,
    /// Empty for cluster-scoped kinds and for all namespaces.
    pub namespace: String,
    /// Empty for the collection.
    pub name: String,
    /// `None`: the object itself.
    pub part: Option<Part>,
}

impl Target {
    pub fn new(kind: Arc<Kind>, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: namespace.into(), name: name.into(), part: None }
    }

    /// The part of it that a path or a client names; "" is the object itself.
    ///
    /// # Errors
    /// 404 for a part that no kind has.
    pub fn below(self, subresource: &str) -> Result<Self, Status> {
        let part = match subresource {
            "" => None,
            name => Some(Part::parse(name).ok_or_else(Status::no_route)?),
        };
        Ok(Self { part, ..self })
    }

    pub fn key(&self) -> ObjectKey {
        ObjectKey::new(&self.namespace, &self.name)
    }

    pub(crate) fn not_found(&self) -> Status {
        Status::not_found(&self.kind.group, &self.kind.plural, &self.name)
    }

    pub(crate) fn conflict(&self, why: &str) -> Status {
        Status::conflict(&self.kind.group, &self.kind.plural, &self.name, why)
    }
}

/// Who acts, and when: what the parts of one request share.
#[derive(Debug, Clone)]
pub struct Context {
    pub user: User,
    pub now: Timestamp,
}

impl Context {
    /// The server acts on its own account.
    pub(crate) fn of_server() -> Self {
        Self { user: User::new("system:apiserver", &[MASTERS]), now: Timestamp::now() }
    }
}

#[derive(Debug, Clone, Default)]
pub struct WriteOptions {
    pub manager: String,
    pub dry_run: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    pub grace_seconds: Option<i64>,
    pub propagation: Option<Propagation>,
    pub uid: Option<Uid>,
    pub version: Option<String>,
    pub dry_run: bool,
    /// Also what cannot be read, whatever it holds.
    pub unreadable: bool,
}

impl DeleteOptions {
    /// From a decoded `DeleteOptions`, checked as upstream does.
    ///
    /// # Errors
    /// 422 with every option that is unknown or contradicts another.
    pub fn from_value(options: &Value) -> Result<Self, Status> {
        let policy = options["propagationPolicy"].as_str();
        let orphan = options["orphanDependents"].as_bool();
        let mut errors = Vec::new();
        if policy.is_some() && orphan.is_some() {
            let why = "orphanDependents and deletionPropagation cannot be both set";
            errors.push(FieldError::invalid("propagationPolicy", policy.unwrap_or_default(), why));
        }
        let propagation = match (policy, orphan) {
            (None, None) => None,
            (Some("Background"), _) | (None, Some(false)) => Some(Propagation::Background),
            (Some("Foreground"), _) => Some(Propagation::Foreground),
            (Some("Orphan"), _) | (None, Some(true)) => Some(Propagation::Orphan),
            (Some(other), _) => {
                errors.push(FieldError::not_supported(
                    "propagationPolicy",
                    other,
                    &["Foreground", "Background", "Orphan", "nil"],
                ));
                None
            }
        };
        let dry_run = options["dryRun"].as_array().into_iter().flatten().filter_map(Value::as_str);
        errors.extend(
            dry_run
                .clone()
                .filter(|all| *all != "All")
                .map(|other| FieldError::not_supported("dryRun", other, &["All"])),
        );
        if !errors.is_empty() {
            return Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", errors));
        }
        let precondition = |field: &str| options["preconditions"][field].as_str().map(str::to_owned);
        Ok(Self {
            grace_seconds: options["gracePeriodSeconds"].as_i64(),
            propagation,
            uid: precondition("uid").map(Uid::new),
            version: precondition("resourceVersion"),
            dry_run: dry_run.count() > 0,
            unreadable: options["ignoreStoreReadErrorWithClusterBreakingPotential"] == true,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn options_that_contradict_each_other_are_refused() {
        let both = json!({"orphanDependents": true, "propagationPolicy": "Orphan"});
        assert_eq!(DeleteOptions::from_value(&both).unwrap_err().code, 422);
        let all = DeleteOptions::from_value(&json!({"dryRun": ["All"], "gracePeriodSeconds": 3})).unwrap();
        assert_eq!((all.dry_run, all.grace_seconds), (true, Some(3)));
    }
}
