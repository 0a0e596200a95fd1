//! Which kernel settings a pod may choose: the kubelet's rule, for the node that enforces it and whoever asks before.

use std::fmt;

/// Those that touch nothing but the pod's own namespaces, and no other pod on the node.
pub const SAFE: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// The namespace a setting belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespace {
    Ipc,
    Net,
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Namespace::Ipc => "ipc",
            Namespace::Net => "net",
        })
    }
}

/// `None`: no namespace has one of its own, so it is the whole machine's.
pub fn namespace(name: &str) -> Option<Namespace> {
    match name {
        "kernel.sem" => Some(Namespace::Ipc),
        _ if ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|prefix| name.starts_with(prefix)) => {
            Some(Namespace::Ipc)
        }
        _ if name.starts_with("net.") => Some(Namespace::Net),
        _ => None,
    }
}

/// Which of the host's namespaces a pod shares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shared {
    pub ipc: bool,
    pub net: bool,
}

/// What a node allows beside the safe ones: names, or beginnings of names followed by `*`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed(Vec<String>);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPattern {
    #[error(
        "sysctl {0:?} must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*([a-z0-9][-_a-z0-9]*)?[a-z0-9*]$"
    )]
    Syntax(String),
    #[error("the sysctl {0:?} are not known to be namespaced")]
    NotNamespaced(String),
}

impl Allowed {
    /// From the flag's values; slashes and dots count alike.
    ///
    /// # Errors
    /// The first pattern that is no name, or names a setting of the whole machine.
    pub fn parse(patterns: &[String]) -> Result<Allowed, BadPattern> {
        let parse = |pattern: &String| {
            let name = dotted(pattern);
            if !is_pattern(&name) {
                return Err(BadPattern::Syntax(pattern.clone()));
            }
            match namespace(name.trim_end_matches('*')) {
                Some(_) => Ok(name),
                None => Err(BadPattern::NotNamespaced(name)),
            }
        };
        patterns.iter().map(parse).collect::<Result<_, _>>().map(Allowed)
    }

    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => name == pattern,
        })
    }
}

/// Parts as of a DNS name, `_` allowed, joined by dots; the last may end with `*`.
fn is_pattern(name: &str) -> bool {
    let (whole, last) = name.rsplit_once(['.', '/']).map_or((None, name), |(whole, last)| (Some(whole), last));
    let last_is_fine = match last.strip_suffix('*') {
        Some(start) => start.is_empty() || is_part(&format!("{start}0")),
        None => is_part(last),
    };
    name.len() <= 253 && last_is_fine && whole.is_none_or(|whole| whole.split(['.', '/']).all(is_part))
}

/// One part of a name; above all never `..`, for a name becomes a path.
fn is_part(part: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    part.bytes().all(|byte| word(byte) || matches!(byte, b'-' | b'_'))
        && part.bytes().next().is_some_and(word)
        && part.bytes().last().is_some_and(word)
}

/// Names may be written with slashes, as paths below `/proc/sys`; then dots are part of a name, and the other way round.
pub fn dotted(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(first) if name.as_bytes()[first] == b'/' => name
            .chars()
            .map(|c| {
                if c == '/' {
                    '.'
                } else if c == '.' {
                    '/'
                } else {
                    c
                }
            })
            .collect(),
        _ => name.to_owned(),
    }
}

/// Why a pod may not choose this setting.
pub fn refusal(name: &str, shared: Shared, allowed: &Allowed) -> Option<String> {
    let name = dotted(name);
    let known = name.split(['.', '/']).all(is_part);
    if !known || !(SAFE.contains(&name.as_str()) || allowed.has(&name)) {
        return Some(format!("{name:?} not allowlisted"));
    }
    let space = namespace(&name);
    let is_hosts = match space {
        Some(Namespace::Ipc) => shared.ipc,
        Some(Namespace::Net) => shared.net,
        None => true,
    };
    is_hosts.then(|| match space {
        Some(space) => format!("{name:?} not allowed with host {space} enabled"),
        None => format!("{name:?} not allowlisted"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kubelet_allows() {
        let allowed = Allowed::parse(&["kernel.msg*".into(), "net/core/somaxconn".into()]).unwrap();
        let none = Shared::default();
        for (name, shared, refused) in [
            ("net.ipv4.tcp_rmem", none, None),
            ("net/ipv4/tcp_rmem", none, None),
            ("kernel.shm_rmid_forced", none, None),
            ("kernel.msgmax", none, None),
            ("net.core.somaxconn", none, None),
            ("kernel.core_pattern", none, Some("\"kernel.core_pattern\" not allowlisted")),
            ("kernel/core_pattern", none, Some("\"kernel.core_pattern\" not allowlisted")),
            ("net.core.somaxconn2", none, Some("\"net.core.somaxconn2\" not allowlisted")),
            ("kernel.msg./../core_pattern", none, Some("\"kernel.msg./../core_pattern\" not allowlisted")),
            ("vm.swappiness", none, Some("\"vm.swappiness\" not allowlisted")),
            (
                "net.ipv4.tcp_rmem",
                Shared { net: true, ..none },
                Some("\"net.ipv4.tcp_rmem\" not allowed with host net enabled"),
            ),
            (
                "kernel.msgmax",
                Shared { ipc: true, ..none },
                Some("\"kernel.msgmax\" not allowed with host ipc enabled"),
            ),
            ("kernel.msgmax", Shared { net: true, ..none }, None),
        ] {
            assert_eq!(refusal(name, shared, &allowed).as_deref(), refused, "{name} {shared:?}");
        }
    }

    #[test]
    fn only_namespaced_settings_can_be_allowed() {
        let parse = |pattern: &str| Allowed::parse(&[pattern.into()]);
        for good in ["kernel.sem", "kernel.shm*", "net.*", "fs.mqueue.msg_max", "net.ipv4.conf.eth0/1.log"] {
            parse(good).unwrap();
        }
        assert!(matches!(parse("kernel.*"), Err(BadPattern::NotNamespaced(_))));
        assert!(matches!(parse("kernel.core_pattern"), Err(BadPattern::NotNamespaced(_))));
        assert!(matches!(parse("net*.x"), Err(BadPattern::Syntax(_))));
        assert!(matches!(parse("Net.x"), Err(BadPattern::Syntax(_))));
        assert!(matches!(parse("*"), Err(BadPattern::NotNamespaced(_))));
    }
}
