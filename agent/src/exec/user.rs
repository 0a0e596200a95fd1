//! Another user than the container's own, for one more command in it: an annotation of the pod asks for it.
//!
//! What is right for the container holds for the command: where the pod says that nothing runs as root, this does not either.

use serde::Deserialize as _;
use serde_json::{Value, json};

use crate::model::{Container, PodSpec};
use crate::oci::user;

/// `UID` or `UID:GID`, for commands that are run in any of the pod's containers.
pub const ANNOTATION: &str = "exec.amphipod.io/user";
/// As in the fields of pods.
const HIGHEST: u32 = i32::MAX as u32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecUser {
    uid: u32,
    /// The container's own where nothing is said.
    gid: Option<u32>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ExecUserError {
    #[error("annotation {ANNOTATION}: {0:?} is neither UID nor UID:GID (numbers up to {HIGHEST})")]
    Unreadable(String),
    #[error("annotation {ANNOTATION}: container {0:?} has runAsNonRoot, so nothing is run there as root")]
    Root(String),
}

/// Whom a pod's annotation names for this container, if it has one.
///
/// # Errors
/// [`ExecUserError`] when the annotation cannot be read, or names root where the container must not run as root.
pub fn asked(pod: &Value, container: &str) -> Result<Option<ExecUser>, ExecUserError> {
    let Some(text) = pod["metadata"]["annotations"][ANNOTATION].as_str() else { return Ok(None) };
    let user = read(text).ok_or_else(|| ExecUserError::Unreadable(text.to_owned()))?;
    if user.uid == 0 && is_non_root(pod, container) {
        return Err(ExecUserError::Root(container.to_owned()));
    }
    Ok(Some(user))
}

fn read(text: &str) -> Option<ExecUser> {
    let number = |text: &str| text.parse::<u32>().ok().filter(|id| *id <= HIGHEST);
    let (uid, gid) = match text.split_once(':') {
        Some((uid, gid)) => (number(uid)?, Some(number(gid)?)),
        None => (number(text)?, None),
    };
    Some(ExecUser { uid, gid })
}

/// What cannot be read allows nothing.
fn is_non_root(pod: &Value, container: &str) -> bool {
    let Ok(spec) = PodSpec::deserialize(&pod["spec"]) else { return true };
    let unnamed = Container::default();
    user::is_non_root(&spec.security_context, spec.container(container).unwrap_or(&unnamed))
}

impl ExecUser {
    /// Puts this user into an OCI `process`, with the rights that the container gives a user of this kind.
    pub fn enter(self, process: &mut Value) {
        process["user"]["uid"] = json!(self.uid);
        if let Some(gid) = self.gid {
            process["user"]["gid"] = json!(gid);
        }
        let bounds = process["capabilities"]["bounding"].clone();
        let held = if self.uid == 0 { bounds } else { json!([]) };
        process["capabilities"]["permitted"] = held.clone();
        process["capabilities"]["effective"] = held;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(text: &str, spec: Value) -> Value {
        json!({"metadata": {"annotations": {ANNOTATION: text}}, "spec": spec})
    }

    #[test]
    fn a_pod_names_a_user_in_numbers() {
        let named = |text| asked(&pod(text, json!({})), "c").map(|user| user.map(|user| (user.uid, user.gid)));
        assert_eq!(named("0"), Ok(Some((0, None))));
        assert_eq!(named("1000:50"), Ok(Some((1000, Some(50)))));
        for text in ["", "root", "1000:", ":1", "-1", "2147483648", "1:4294967295", "1:2:3"] {
            assert_eq!(named(text), Err(ExecUserError::Unreadable(text.to_owned())));
        }
        assert_eq!(asked(&json!({"metadata": {}}), "c"), Ok(None));
    }

    #[test]
    fn where_nothing_runs_as_root_this_does_not_either() {
        let spec = json!({
            "securityContext": {"runAsNonRoot": true},
            "containers": [{"name": "held"}, {"name": "free", "securityContext": {"runAsNonRoot": false}}],
        });
        assert_eq!(asked(&pod("0", spec.clone()), "held"), Err(ExecUserError::Root("held".into())));
        assert!(asked(&pod("0", spec.clone()), "free").is_ok());
        assert!(asked(&pod("7", spec), "held").is_ok());
    }

    #[test]
    fn rights_follow_the_user() {
        let own = json!({"user": {"uid": 7, "gid": 8, "additionalGids": [9]}, "capabilities": {"bounding": ["CAP_CHOWN"], "permitted": [], "effective": []}});
        let enter = |uid, gid| {
            let mut process = own.clone();
            ExecUser { uid, gid }.enter(&mut process);
            (process["user"].clone(), process["capabilities"]["effective"].clone())
        };
        assert_eq!(enter(0, None), (json!({"uid": 0, "gid": 8, "additionalGids": [9]}), json!(["CAP_CHOWN"])));
        assert_eq!(enter(5, Some(6)), (json!({"uid": 5, "gid": 6, "additionalGids": [9]}), json!([])));
    }
}
