//! The Pod Security Standards: what a namespace's labels ask for, and what of a pod is against it.
//!
//! The standards, their versions and their texts are those of <https://kubernetes.io/docs/concepts/security/pod-security-standards/>
//! as v1.34's admission applies them. Each check is a row of [`checks::CHECKS`].

mod checks;

use std::fmt;

use serde_json::Value;

use crate::kind::Kind;
use crate::status::FieldError;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Privileged,
    Baseline,
    Restricted,
}

/// Which release's standards; later ones ask for more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// v1.MINOR
    Minor(u32),
    Latest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standard {
    pub level: Level,
    pub version: Version,
}

/// What a namespace asks for: pods against `enforce` are refused, against `audit` recorded, against `warn` told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    pub enforce: Standard,
    pub audit: Standard,
    pub warn: Standard,
}

/// Something of a pod that is against a standard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub reason: String,
    pub detail: String,
}

const PREFIX: &str = "pod-security.kubernetes.io/";

impl Level {
    const ALL: [(&str, Level); 3] =
        [("privileged", Level::Privileged), ("baseline", Level::Baseline), ("restricted", Level::Restricted)];
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Level::ALL.iter().find(|(_, level)| level == self).map_or("", |(name, _)| name);
        f.write_str(name)
    }
}

impl Version {
    fn parse(text: &str) -> Option<Self> {
        if text == "latest" {
            return Some(Self::Latest);
        }
        let minor = text.strip_prefix("v1.")?;
        let plain = minor == "0" || (!minor.starts_with('0') && minor.bytes().all(|b| b.is_ascii_digit()));
        minor.parse().ok().filter(|_| plain).map(Self::Minor)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Minor(minor) => write!(f, "v1.{minor}"),
            Self::Latest => f.write_str("latest"),
        }
    }
}

impl fmt::Display for Standard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.level, self.version)
    }
}

impl Policy {
    /// A namespace without labels.
    pub const DEFAULT: Self = {
        let all = Standard { level: Level::Privileged, version: Version::Latest };
        Self { enforce: all, audit: all, warn: all }
    };

    /// From a namespace's labels, with what is wrong with them. A wrong level is enforced as the strictest, and neither
    /// audited nor warned about.
    pub fn of_labels(labels: &Value) -> (Self, Vec<FieldError>) {
        let mut policy = Self::DEFAULT;
        let mut errors = Vec::new();
        for (mode, standard, fallback) in [
            ("enforce", &mut policy.enforce, Level::Restricted),
            ("audit", &mut policy.audit, Level::Privileged),
            ("warn", &mut policy.warn, Level::Privileged),
        ] {
            let label = |suffix: &str| {
                let name = format!("{PREFIX}{mode}{suffix}");
                labels.get(&name).and_then(Value::as_str).map(|value| (format!("metadata.labels[{name}]"), value))
            };
            if let Some((path, value)) = label("") {
                let known = Level::ALL.iter().find(|(name, _)| *name == value);
                standard.level = known.map_or(fallback, |(_, level)| *level);
                if known.is_none() {
                    errors.push(FieldError::invalid(path, value, "must be one of privileged, baseline, restricted"));
                }
            }
            if let Some((path, value)) = label("-version") {
                let known = Version::parse(value);
                standard.version = known.unwrap_or(Version::Latest);
                if known.is_none() {
                    errors.push(FieldError::invalid(path, value, "must be \"latest\" or \"v1.x\""));
                }
            }
        }
        (policy, errors)
    }

    /// Whether nothing of a pod would be against it.
    pub fn is_privileged(&self) -> bool {
        [self.enforce, self.audit, self.warn].iter().all(|standard| standard.level == Level::Privileged)
    }
}

/// All that is against a standard, checks of the baseline first.
pub fn evaluate(standard: Standard, metadata: &Value, spec: &Value) -> Vec<Violation> {
    checks::applying(standard).filter_map(|check| check(metadata, spec)).collect()
}

/// `reason (detail), …`, as refusals and warnings show it.
pub fn details(violations: &[Violation]) -> String {
    let shown = violations.iter().map(|violation| match &*violation.detail {
        "" => violation.reason.clone(),
        detail => format!("{} ({detail})", violation.reason),
    });
    shown.collect::<Vec<_>>().join(", ")
}

/// The reasons alone, as warnings about existing pods show them.
pub fn reasons(violations: &[Violation]) -> String {
    violations.iter().map(|violation| violation.reason.as_str()).collect::<Vec<_>>().join(", ")
}

/// Where an object of a kind has the metadata and spec of a pod.
pub fn pod_of<'a>(kind: &Kind, object: &'a Value) -> Option<(&'a Value, &'a Value)> {
    let path = kind.behaviour.pod?;
    let pod = object.pointer(path).filter(|pod| pod.is_object())?;
    Some((&pod["metadata"], &pod["spec"]))
}

/// Whether an update may have brought something against a standard: a container more, or another image.
pub fn is_significant(new: &Value, old: &Value) -> bool {
    let images = |pod: &Value| -> Vec<(Value, Value)> {
        checks::containers(&pod["spec"]).map(|c| (c["name"].clone(), c["image"].clone())).collect()
    };
    images(new) != images(old)
}

/// Warnings about pods that a namespace has already, when it starts to enforce a standard.
pub fn about_existing<'a>(namespace: &str, standard: Standard, pods: impl Iterator<Item = &'a Value>) -> Vec<String> {
    /// Upstream looks at no more, so that labelling a large namespace does not take for ever.
    const MOST: usize = 3000;
    let mut found: std::collections::BTreeMap<String, (String, usize)> = Default::default();
    let mut count = 0;
    for pod in pods {
        count += 1;
        if count > MOST {
            continue;
        }
        let violations = evaluate(standard, &pod["metadata"], &pod["spec"]);
        if !violations.is_empty() {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let entry = found.entry(reasons(&violations)).or_insert_with(|| (name.clone(), 0));
            entry.0 = name.min(std::mem::take(&mut entry.0));
            entry.1 += 1;
        }
    }
    let mut warnings = Vec::new();
    if count > MOST {
        let why =
            format!("new PodSecurity enforce level only checked against the first {MOST} of {count} existing pods");
        warnings.push(why);
    }
    if !found.is_empty() {
        let standard = standard.to_string();
        warnings.push(format!(
            "existing pods in namespace {namespace:?} violate the new PodSecurity enforce level {standard:?}"
        ));
    }
    let mut each: Vec<String> = found
        .into_iter()
        .map(|(why, (name, count))| match count {
            1 => format!("{name}: {why}"),
            2 => format!("{name} (and 1 other pod): {why}"),
            more => format!("{name} (and {} other pods): {why}", more - 1),
        })
        .collect();
    each.sort();
    warnings.extend(each);
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn standard(level: Level, minor: Option<u32>) -> Standard {
        Standard { level, version: minor.map_or(Version::Latest, Version::Minor) }
    }

    fn told(level: Level, minor: Option<u32>, spec: &Value) -> String {
        details(&evaluate(standard(level, minor), &json!({}), spec))
    }

    #[test]
    fn a_plain_pod_passes_the_baseline_and_not_the_restricted_level() {
        let plain = json!({"containers": [{"name": "c"}]});
        assert_eq!(told(Level::Privileged, None, &plain), "");
        assert_eq!(told(Level::Baseline, None, &plain), "");
        let want = concat!(
            "allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false), ",
            "unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"]), ",
            "runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true), ",
            "seccompProfile (pod or container \"c\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
        );
        assert_eq!(told(Level::Restricted, None, &plain), want);
        let hardened = json!({"securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "c", "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}}],
            "volumes": [{"name": "v", "emptyDir": {}}, {"name": "i", "image": {"reference": "x:1"}}]});
        assert_eq!(told(Level::Restricted, None, &hardened), "");
    }

    #[test]
    fn every_check_has_its_words() {
        for (level, spec, want) in [
            (
                Level::Baseline,
                json!({"hostNetwork": true, "hostPID": true, "hostIPC": true}),
                "host namespaces (hostNetwork=true, hostPID=true, hostIPC=true)",
            ),
            (
                Level::Baseline,
                json!({"volumes": [{"name": "a", "hostPath": {"path": "/"}}, {"name": "b", "hostPath": {"path": "/"}}]}),
                "hostPath volumes (volumes \"a\", \"b\")",
            ),
            (
                Level::Baseline,
                json!({"containers": [{"name": "c", "ports": [{"hostPort": 9}, {"hostPort": 10}]}]}),
                "hostPort (container \"c\" uses hostPorts 10, 9)",
            ),
            (
                Level::Baseline,
                json!({"containers": [{"name": "c", "securityContext": {"privileged": true}}], "initContainers": [{"name": "i", "securityContext": {"privileged": true}}]}),
                "privileged (containers \"i\", \"c\" must not set securityContext.privileged=true)",
            ),
            (
                Level::Baseline,
                json!({"containers": [{"name": "c", "securityContext": {"procMount": "Unmasked"}}]}),
                "procMount (container \"c\" must not set securityContext.procMount to \"Unmasked\")",
            ),
            (
                Level::Baseline,
                json!({"containers": [{"name": "c", "securityContext": {"capabilities": {"add": ["SYS_ADMIN", "CHOWN", "BPF"]}}}]}),
                "non-default capabilities (container \"c\" must not include \"BPF\", \"SYS_ADMIN\" in securityContext.capabilities.add)",
            ),
            (
                Level::Baseline,
                json!({"securityContext": {"sysctls": [{"name": "kernel.core_pattern"}, {"name": "net.ipv4.tcp_syncookies"}]}}),
                "forbidden sysctls (kernel.core_pattern)",
            ),
            (
                Level::Baseline,
                json!({"securityContext": {"seLinuxOptions": {"type": "spc_t", "user": "u"}}}),
                "seLinuxOptions (pod set forbidden securityContext.seLinuxOptions: type \"spc_t\"; user may not be set)",
            ),
            (
                Level::Baseline,
                json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}),
                "seccompProfile (pod must not set securityContext.seccompProfile.type to \"Unconfined\")",
            ),
            (
                Level::Baseline,
                json!({"securityContext": {"appArmorProfile": {"type": "Unconfined"}}}),
                "forbidden AppArmor profile (pod must not set AppArmor profile type to \"Unconfined\")",
            ),
            (
                Level::Baseline,
                json!({"securityContext": {"windowsOptions": {"hostProcess": true}}}),
                "hostProcess (pod must not set securityContext.windowsOptions.hostProcess=true)",
            ),
            (
                Level::Baseline,
                json!({"containers": [{"name": "c", "livenessProbe": {"httpGet": {"host": "10.0.0.1"}}, "lifecycle": {"preStop": {"tcpSocket": {"host": "a"}}}}]}),
                "probe or lifecycle host (container \"c\" uses probe or lifecycle hosts \"10.0.0.1\", \"a\")",
            ),
            (
                Level::Restricted,
                json!({"volumes": [{"name": "v", "nfs": {}}]}),
                "restricted volume types (volume \"v\" uses restricted volume type \"nfs\")",
            ),
            (
                Level::Restricted,
                json!({"securityContext": {"runAsUser": 0, "runAsNonRoot": false}}),
                "runAsNonRoot != true (pod must not set securityContext.runAsNonRoot=false), runAsUser=0 (pod must not set runAsUser=0)",
            ),
        ] {
            assert_eq!(told(level, None, &spec), want, "{spec}");
        }
    }

    #[test]
    fn later_versions_ask_for_more_and_allow_more() {
        let root = json!({"securityContext": {"runAsUser": 0}});
        assert_eq!(told(Level::Restricted, Some(22), &root), "");
        assert_ne!(told(Level::Restricted, Some(23), &root), "");
        let tcp = json!({"securityContext": {"sysctls": [{"name": "net.ipv4.tcp_rmem"}]}});
        assert_eq!(told(Level::Baseline, Some(31), &tcp), "forbidden sysctls (net.ipv4.tcp_rmem)");
        assert_eq!(told(Level::Baseline, Some(32), &tcp), "");
        let host = json!({"containers": [{"name": "c", "readinessProbe": {"tcpSocket": {"host": "x"}}}]});
        assert_eq!(told(Level::Baseline, Some(33), &host), "");
        assert_ne!(told(Level::Baseline, Some(99), &host), "", "a version that is not there yet is the latest");
    }

    #[test]
    fn labels_choose_and_wrong_ones_are_told() {
        let labels = |labels: Value| Policy::of_labels(&labels);
        assert_eq!(labels(json!({"a": "b"})), (Policy::DEFAULT, Vec::new()));
        let (policy, errors) = labels(
            json!({"pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/warn": "restricted", "pod-security.kubernetes.io/warn-version": "v1.30"}),
        );
        assert!(errors.is_empty() && policy.enforce == standard(Level::Baseline, None));
        assert_eq!(policy.warn.to_string(), "restricted:v1.30");
        let (policy, errors) = labels(
            json!({"pod-security.kubernetes.io/enforce": "x", "pod-security.kubernetes.io/audit-version": "v1.030"}),
        );
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"x\": must be one of privileged, baseline, restricted",
                "metadata.labels[pod-security.kubernetes.io/audit-version]: Invalid value: \"v1.030\": must be \"latest\" or \"v1.x\"",
            ]
        );
        assert_eq!(policy.enforce.level, Level::Restricted);
    }

    #[test]
    fn existing_pods_are_counted_by_reason() {
        let pod = |name: &str| json!({"metadata": {"name": name}, "spec": {"hostPID": true, "containers": []}});
        let fine = json!({"metadata": {"name": "fine"}, "spec": {"containers": []}});
        let pods = [pod("b"), pod("a"), fine, pod("c")];
        let warnings = about_existing("n", standard(Level::Baseline, None), pods.iter());
        assert_eq!(
            warnings,
            [
                "existing pods in namespace \"n\" violate the new PodSecurity enforce level \"baseline:latest\"",
                "a (and 2 other pods): host namespaces",
            ]
        );
    }
}
