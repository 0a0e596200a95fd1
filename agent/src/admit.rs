//! Whether this node takes a pod at all: a pure function. What it refuses fails for good, before anything of it exists.

use api::sysctl::{Allowed, Shared, refusal};

use crate::apparmor::AppArmor;
use crate::model::{PodSpec, Volume};
use crate::users;

/// The kubelet's word on a pod that it does not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub reason: &'static str,
    pub message: String,
}

pub fn admit(spec: &PodSpec, allowed: &Allowed, apparmor: &AppArmor) -> Result<(), Rejection> {
    if let Some(message) = apparmor.refusal(spec) {
        return Err(Rejection { reason: "AppArmor", message });
    }
    if let Some(message) = refused_users(spec) {
        return Err(Rejection { reason: "PodFeatureUnsupported", message });
    }
    let shared = Shared { ipc: spec.host_ipc, net: spec.host_network };
    for sysctl in &spec.security_context.sysctls {
        if let Some(why) = refusal(&sysctl.name, shared, allowed) {
            return Err(Rejection { reason: "SysctlForbidden", message: format!("forbidden sysctl: {why}") });
        }
    }
    // With it the container could write the host's own settings.
    let unmasked = |name: &str| format!("container {name:?}: procMount Unmasked needs hostUsers: false");
    let asks = spec.all_containers().chain(&spec.ephemeral_containers).find(|container| {
        container.security_context.proc_mount.as_deref() == Some("Unmasked") && spec.host_users != Some(false)
    });
    match asks {
        Some(container) => Err(Rejection { reason: "ProcMountForbidden", message: unmasked(&container.name) }),
        None => Ok(()),
    }
}

/// Users of its own do not go with the host's namespaces, which would belong to others, and need the kernel's help.
fn refused_users(spec: &PodSpec) -> Option<String> {
    if !spec.has_own_users() {
        return None;
    }
    let shared = [("hostNetwork", spec.host_network), ("hostPID", spec.host_pid), ("hostIPC", spec.host_ipc)];
    match shared.iter().find(|(_, shared)| *shared) {
        Some((field, _)) => Some(format!("{field} cannot be had with hostUsers: false")),
        None => users::refusal(),
    }
}

/// The kinds of volumes that there are, and this node does not have.
pub fn absent_kind(volume: &Volume) -> Option<&str> {
    let has_source = volume.empty_dir.is_some()
        || volume.host_path.is_some()
        || volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some();
    if has_source {
        return None;
    }
    Some(volume.others.keys().next().map_or("without a source", String::as_str))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn admitted(spec: Value) -> Result<(), Rejection> {
        let allowed = Allowed::parse(&["kernel.msg*".into()]).unwrap();
        admit(&serde_json::from_value(spec).unwrap(), &allowed, &AppArmor::Absent)
    }

    fn with_sysctl(name: &str) -> Value {
        json!({"securityContext": {"sysctls": [{"name": name, "value": "1"}]}})
    }

    #[test]
    fn settings_of_the_whole_machine_are_refused() {
        let refused = admitted(with_sysctl("kernel.core_pattern")).unwrap_err();
        let message = "forbidden sysctl: \"kernel.core_pattern\" not allowlisted";
        assert_eq!((refused.reason, refused.message.as_str()), ("SysctlForbidden", message));
        for name in ["kernel.msgmax", "net.ipv4.tcp_syncookies"] {
            admitted(with_sysctl(name)).unwrap();
        }
        let mut shared = with_sysctl("net.ipv4.tcp_syncookies");
        shared["hostNetwork"] = json!(true);
        assert!(admitted(shared).unwrap_err().message.ends_with("not allowed with host net enabled"));
    }

    #[test]
    fn users_of_its_own_need_namespaces_of_its_own() {
        for field in ["hostNetwork", "hostPID", "hostIPC"] {
            let refused = admitted(json!({"hostUsers": false, field: true})).unwrap_err();
            assert_eq!(refused.message, format!("{field} cannot be had with hostUsers: false"));
            admitted(json!({"hostUsers": true, field: true})).unwrap();
        }
        let refused =
            admitted(json!({"securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}}})).unwrap_err();
        assert_eq!(refused.reason, "AppArmor");
    }

    #[test]
    fn an_unmasked_proc_needs_users_of_its_own() {
        for field in ["containers", "initContainers"] {
            let mut pod = json!({field: [{"name": "a", "securityContext": {"procMount": "Unmasked"}}]});
            assert_eq!(admitted(pod.clone()).unwrap_err().reason, "ProcMountForbidden", "{field}");
            pod["hostUsers"] = json!(true);
            assert!(admitted(pod.clone()).is_err());
            pod["hostUsers"] = json!(false);
            admitted(pod).unwrap();
        }
    }
}
