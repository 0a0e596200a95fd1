//! AppArmor: the profile that confines a container, where the host has it.

mod default;

use std::fs;
use std::io::{self, Write as _};
use std::process::{Command, Stdio};

use crate::model::{AppArmorProfile, Container, PodSpec};

const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";

/// What this host does with profiles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AppArmor {
    /// Nothing is confined; a pod that asks for it is not taken.
    Absent,
    /// The node's default profile is loaded.
    Ready,
    /// Profiles of the administrator work; the default one could not be loaded.
    NoDefault(String),
}

#[derive(Debug, thiserror::Error, PartialEq)]
pub enum AppArmorError {
    #[error("apparmor profile not found {0}")]
    NotLoaded(String),
    #[error("the default AppArmor profile is not loaded: {0}")]
    NoDefault(String),
    #[error("invalid AppArmor profile type: {0:?}")]
    Type(String),
}

impl AppArmor {
    /// Looks at the host, and loads the default profile: anew at each start, since a release may bring another.
    pub fn prepare() -> AppArmor {
        if !fs::read_to_string(ENABLED).is_ok_and(|enabled| enabled.starts_with('Y')) || fs::metadata(LOADED).is_err() {
            return AppArmor::Absent;
        }
        match load(&default::profile()) {
            Ok(()) => AppArmor::Ready,
            Err(error) => {
                tracing::warn!(%error, "containers are not confined by AppArmor unless they name a profile");
                AppArmor::NoDefault(error.to_string())
            }
        }
    }

    /// The kubelet's word on a pod that this host cannot confine as it asks.
    pub fn refusal(&self, spec: &PodSpec) -> Option<String> {
        let wishes = spec.all_containers().map(|container| container.security_context.app_armor_profile.as_ref());
        let mut wishes = wishes.chain([spec.security_context.app_armor_profile.as_ref()]).flatten();
        let required = wishes.any(|profile| profile.kind != "Unconfined");
        (*self == AppArmor::Absent && required)
            .then(|| "Cannot enforce AppArmor: AppArmor is not enabled on the host".to_owned())
    }

    /// The name of the profile for a container; `None` leaves it unconfined.
    pub fn profile(&self, spec: &PodSpec, container: &Container) -> Result<Option<String>, AppArmorError> {
        if *self == AppArmor::Absent {
            return Ok(None); // a pod that insists was not taken
        }
        let own = container.security_context.app_armor_profile.as_ref();
        match own.or(spec.security_context.app_armor_profile.as_ref()) {
            // The default is no promise where a privileged container would be in its way, or it is not there.
            None | Some(AppArmorProfile { .. })
                if container.security_context.privileged && !names_profile(own, spec) =>
            {
                Ok(None)
            }
            None => Ok((*self == AppArmor::Ready).then(|| default::NAME.to_owned())),
            Some(AppArmorProfile { kind, localhost_profile }) => match (kind.as_str(), self) {
                ("Unconfined", _) => Ok(None),
                ("RuntimeDefault", AppArmor::NoDefault(why)) => Err(AppArmorError::NoDefault(why.clone())),
                ("RuntimeDefault", _) => Ok(Some(default::NAME.to_owned())),
                ("Localhost", _) => loaded(localhost_profile.as_deref().unwrap_or_default()).map(Some),
                (other, _) => Err(AppArmorError::Type(other.to_owned())),
            },
        }
    }
}

/// A privileged container is confined by a profile of the administrator's only.
fn names_profile(own: Option<&AppArmorProfile>, spec: &PodSpec) -> bool {
    own.or(spec.security_context.app_armor_profile.as_ref()).is_some_and(|profile| profile.kind == "Localhost")
}

fn loaded(name: &str) -> Result<String, AppArmorError> {
    let list = fs::read_to_string(LOADED).unwrap_or_default();
    if is_listed(&list, name) { Ok(name.to_owned()) } else { Err(AppArmorError::NotLoaded(name.to_owned())) }
}

/// The kernel lists one profile a line, as `name (mode)`.
fn is_listed(list: &str, name: &str) -> bool {
    list.lines().any(|line| line.rsplit_once(" (").is_some_and(|(listed, _)| listed == name))
}

fn load(text: &str) -> io::Result<()> {
    let mut parser = Command::new("apparmor_parser")
        .args(["--replace", "--skip-cache"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("apparmor_parser: {error}")))?;
    if let Some(mut input) = parser.stdin.take() {
        input.write_all(text.as_bytes())?;
    }
    let output = parser.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("apparmor_parser: {}", said.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(pod: Value, container: Value) -> PodSpec {
        serde_json::from_value(json!({"securityContext": pod, "containers": [{"securityContext": container}]})).unwrap()
    }

    fn of(host: &AppArmor, pod: Value, container: Value) -> Result<Option<String>, AppArmorError> {
        let spec = spec(pod, container);
        host.profile(&spec, &spec.containers[0])
    }

    fn wish(kind: &str) -> Value {
        json!({"appArmorProfile": {"type": kind}})
    }

    #[test]
    fn a_host_without_it_takes_no_pod_that_insists() {
        let refused = |host: &AppArmor, pod, container| host.refusal(&spec(pod, container));
        let words = "Cannot enforce AppArmor: AppArmor is not enabled on the host";
        assert_eq!(refused(&AppArmor::Absent, wish("RuntimeDefault"), json!({})).as_deref(), Some(words));
        assert_eq!(refused(&AppArmor::Absent, json!({}), wish("Localhost")).as_deref(), Some(words));
        assert_eq!(refused(&AppArmor::Absent, wish("Unconfined"), wish("Unconfined")), None);
        assert_eq!(refused(&AppArmor::Absent, json!({}), json!({})), None);
        assert_eq!(refused(&AppArmor::Ready, wish("RuntimeDefault"), json!({})), None);
        assert_eq!(of(&AppArmor::Absent, json!({}), json!({})), Ok(None));
    }

    #[test]
    fn the_container_decides_before_the_pod_and_the_default() {
        let (ready, default) = (AppArmor::Ready, Ok(Some(default::NAME.to_owned())));
        assert_eq!(of(&ready, json!({}), json!({})), default);
        assert_eq!(of(&ready, wish("Unconfined"), json!({})), Ok(None));
        assert_eq!(of(&ready, wish("Unconfined"), wish("RuntimeDefault")), default);
        assert_eq!(of(&ready, json!({}), json!({"privileged": true})), Ok(None));
        let missing = json!({"appArmorProfile": {"type": "Localhost", "localhostProfile": "none/such"}});
        assert_eq!(of(&ready, json!({}), missing.clone()), Err(AppArmorError::NotLoaded("none/such".into())));
        let mut privileged = missing;
        privileged["privileged"] = json!(true);
        assert!(of(&ready, json!({}), privileged).is_err(), "a named profile binds a privileged container too");
    }

    #[test]
    fn without_its_parser_only_the_default_is_missing() {
        let host = AppArmor::NoDefault("no parser".into());
        assert_eq!(of(&host, json!({}), json!({})), Ok(None));
        assert_eq!(of(&host, wish("RuntimeDefault"), json!({})), Err(AppArmorError::NoDefault("no parser".into())));
    }

    #[test]
    fn names_in_the_kernels_list() {
        let list = "amphipod-default (enforce)\n/usr/bin/man (x) (complain)\n";
        assert!(is_listed(list, "amphipod-default") && is_listed(list, "/usr/bin/man (x)"));
        assert!(!is_listed(list, "amphipod") && !is_listed(list, ""));
    }
}
