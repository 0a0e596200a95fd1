//! Credentials for registries, as Secrets hold them: `kubernetes.io/dockerconfigjson` and the older `dockercfg`.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use oci_client::secrets::RegistryAuth;
use serde::Deserialize;
use serde_json::Value;

use super::name::ImageName;

/// What one entry of a Secret is good for.
#[derive(Clone, PartialEq)]
pub struct Credential {
    /// Parts may be `*`.
    host: String,
    port: Option<String>,
    /// Repositories that begin so.
    path: String,
    user: String,
    password: String,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credential for {}{}", self.host, self.path)
    }
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
}

/// All that a Secret has; entries that cannot be read are left out, as the kubelet does.
pub fn of_secret(secret: &Value) -> Vec<Credential> {
    let file = |key: &str| -> Option<Value> {
        let bytes = STANDARD.decode(secret["data"][key].as_str()?).ok()?;
        serde_json::from_slice(&bytes).ok()
    };
    let entries = file(".dockerconfigjson").map(|mut file| file["auths"].take()).or_else(|| file(".dockercfg"));
    let entries: BTreeMap<String, Value> =
        entries.and_then(|entries| serde_json::from_value(entries).ok()).unwrap_or_default();
    entries.into_iter().filter_map(|(server, entry)| credential(&server, serde_json::from_value(entry).ok()?)).collect()
}

fn credential(server: &str, entry: Entry) -> Option<Credential> {
    let (user, password) = if entry.auth.is_empty() {
        (entry.username, entry.password)
    } else {
        let text = String::from_utf8(STANDARD.decode(entry.auth.trim()).ok()?).ok()?;
        let (user, password) = text.split_once(':')?;
        (user.to_owned(), password.trim_end_matches('\0').to_owned())
    };
    let rest = server.trim_start_matches("https://").trim_start_matches("http://");
    let (address, path) = rest.split_once('/').unwrap_or((rest, ""));
    // The version of the registry's protocol is no part of a repository.
    let path = ["v1", "v2"].iter().find_map(|version| path.strip_prefix(version)).unwrap_or(path);
    let (host, port) = split_port(address);
    Some(Credential { host, port, path: path.trim_matches('/').to_owned(), user, password })
}

fn split_port(address: &str) -> (String, Option<String>) {
    let (host, port) = match address.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => (host, Some(port.to_owned())),
        _ => (address, None),
    };
    // One registry, known by three names.
    let host = if matches!(host, "index.docker.io" | "registry-1.docker.io") { "docker.io" } else { host };
    (host.to_owned(), port)
}

/// Those that are good for an image, the closest first.
pub fn matching(all: &[Credential], name: &ImageName) -> Vec<RegistryAuth> {
    let (host, port) = split_port(&name.registry);
    let mut found: Vec<&Credential> = all.iter().filter(|one| one.fits(&host, port.as_deref(), name)).collect();
    found.sort_by_key(|one| std::cmp::Reverse(one.path.len()));
    found.into_iter().map(|one| RegistryAuth::Basic(one.user.clone(), one.password.clone())).collect()
}

impl Credential {
    fn fits(&self, host: &str, port: Option<&str>, name: &ImageName) -> bool {
        let (own, others): (Vec<&str>, Vec<&str>) = (self.host.split('.').collect(), host.split('.').collect());
        let same_host = own.len() == others.len() && own.iter().zip(&others).all(|(own, other)| globs(own, other));
        let below = name.repository.strip_prefix(&self.path);
        let same_path = below.is_some_and(|rest| self.path.is_empty() || rest.is_empty() || rest.starts_with('/'));
        same_host && self.port.as_deref() == port && same_path
    }
}

/// One `*` may stand for any part of a label.
fn globs(pattern: &str, label: &str) -> bool {
    match pattern.split_once('*') {
        Some((start, end)) => {
            label.len() >= start.len() + end.len() && label.starts_with(start) && label.ends_with(end)
        }
        None => pattern == label,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn secret(key: &str, file: &Value) -> Value {
        json!({"data": {key: STANDARD.encode(file.to_string())}})
    }

    fn users(all: &[Credential], image: &str) -> Vec<String> {
        let users = matching(all, &image.parse().unwrap()).into_iter();
        users.map(|auth| if let RegistryAuth::Basic(user, _) = auth { user } else { String::new() }).collect()
    }

    #[test]
    fn the_closest_entry_comes_first() {
        let auths = json!({
            "https://index.docker.io/v1/": {"auth": STANDARD.encode("hub:secret")},
            "quay.io": {"username": "all", "password": "p"},
            "quay.io/team": {"username": "team", "password": "p"},
            "*.example.com:5000": {"username": "star", "password": "p"},
            "broken": {"auth": "!"},
        });
        let all = of_secret(&secret(".dockerconfigjson", &json!({"auths": auths})));
        assert_eq!(users(&all, "nginx"), ["hub"]);
        assert_eq!(users(&all, "quay.io/team/app"), ["team", "all"]);
        assert_eq!(users(&all, "quay.io/teammate/app"), ["all"]);
        assert_eq!(users(&all, "a.example.com:5000/app"), ["star"]);
        assert!(users(&all, "a.example.com/app").is_empty() && users(&all, "example.com:5000/app").is_empty());
        assert_eq!(users(&of_secret(&secret(".dockercfg", &auths)), "nginx"), ["hub"], "the older form");
        assert!(of_secret(&json!({"data": {".dockerconfigjson": "?"}})).is_empty());
        assert!(!format!("{all:?}").contains("secret"));
    }
}
