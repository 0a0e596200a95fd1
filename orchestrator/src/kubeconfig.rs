//! A kubeconfig, as far as this program writes them itself: one cluster, one user, by certificate or token.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use client::https::{Config, Identity};
use serde::Deserialize;

/// Of a URL that names none.
const PORT: u16 = 443;

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    current_context: String,
    clusters: Vec<NamedCluster>,
    contexts: Vec<NamedContext>,
    users: Vec<NamedUser>,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Choice,
}

#[derive(Deserialize)]
struct Choice {
    cluster: String,
    user: String,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: User,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
}

/// The server and user of a file's current context, for a client of this name.
///
/// # Errors
/// With the file's path: when it cannot be read, or does not say what is needed.
pub fn read(path: &Path, manager: &str) -> Result<Config> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
    let file: File = serde_yaml::from_str(&text).with_context(|| format!("{shown} is no kubeconfig"))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    config(&file, folder, manager).with_context(|| shown.to_string())
}

fn config(file: &File, folder: &Path, manager: &str) -> Result<Config> {
    let wanted = &file.current_context;
    let context = file.contexts.iter().find(|known| known.name == *wanted);
    let context = &context.with_context(|| format!("there is no context {wanted:?}"))?.context;
    let cluster = file.clusters.iter().find(|known| known.name == context.cluster);
    let cluster = &cluster.with_context(|| format!("there is no cluster {:?}", context.cluster))?.cluster;
    let user = file.users.iter().find(|known| known.name == context.user);
    let user = &user.with_context(|| format!("there is no user {:?}", context.user))?.user;
    let ca = given(folder, cluster.certificate_authority_data.as_deref(), cluster.certificate_authority.as_deref())?;
    let chain = given(folder, user.client_certificate_data.as_deref(), user.client_certificate.as_deref())?;
    let key = given(folder, user.client_key_data.as_deref(), user.client_key.as_deref())?;
    let identity = match (chain, key, &user.token) {
        (Some(chain), Some(key), _) => Identity::Certificate { chain, key },
        (_, _, Some(token)) => Identity::Token(token.clone()),
        _ => bail!("user {:?} has neither a client certificate with its key nor a token", context.user),
    };
    Ok(Config {
        server: host_port(&cluster.server, PORT)?,
        ca: ca.context("the cluster's certificate-authority-data is missing")?,
        identity,
        manager: manager.to_owned(),
    })
}

/// A PEM text: in the file itself, or in another one that it names.
fn given(folder: &Path, data: Option<&str>, file: Option<&Path>) -> Result<Option<String>> {
    match (data, file) {
        (Some(data), _) => {
            let bytes = BASE64_STANDARD.decode(data).context("a certificate or key is no base64")?;
            Ok(Some(String::from_utf8(bytes).context("a certificate or key is no PEM")?))
        }
        (None, Some(file)) => {
            let path = folder.join(file);
            std::fs::read_to_string(&path).map(Some).with_context(|| format!("cannot read {}", path.display()))
        }
        (None, None) => Ok(None),
    }
}

/// `host:port` of a server's URL.
///
/// # Errors
/// When it is none of `https://HOST[:PORT]`.
pub fn host_port(url: &str, usual: u16) -> Result<String> {
    let wanted = || format!("{url:?}: https://HOST[:PORT] is wanted");
    let place = url.strip_prefix("https://").with_context(wanted)?.trim_end_matches('/');
    let (host, port) = match place.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (place, None),
    };
    let port = port.map_or(Ok(usual), str::parse::<u16>).ok().filter(|port| *port > 0).with_context(wanted)?;
    let address = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let is_host = match address {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-')),
    };
    ensure!(is_host, wanted());
    Ok(format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_named_by_host_and_port() {
        let of = |url: &str| host_port(url, 6443);
        assert_eq!(of("https://10.0.0.1").unwrap(), "10.0.0.1:6443");
        assert_eq!(of("https://api.example:443/").unwrap(), "api.example:443");
        assert_eq!(of("https://[fd00::1]").unwrap(), "[fd00::1]:6443");
        assert_eq!(of("https://[fd00::1]:1").unwrap(), "[fd00::1]:1");
        for other in
            ["10.0.0.1", "http://a", "https://", "https://a:b", "https://a:0", "https://a/b", "https://fd00::1"]
        {
            assert!(of(other).unwrap_err().to_string().contains("is wanted"), "{other}");
        }
    }

    #[test]
    fn what_a_server_writes_is_read_and_what_is_missing_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        let text = "clusters:\n- name: c\n  cluster: {server: 'https://h:1', certificate-authority: ca.pem}\n\
            contexts:\n- name: x\n  context: {cluster: c, user: u}\ncurrent-context: x\n\
            users:\n- name: u\n  user: {client-certificate-data: Qw==, client-key-data: Sw==}\n";
        std::fs::write(&path, text).unwrap();
        let missing = format!("{:#}", read(&path, "m").unwrap_err());
        assert!(missing.contains("ca.pem"), "{missing}");
        std::fs::write(folder.path().join("ca.pem"), "A").unwrap();
        let config = read(&path, "m").unwrap();
        assert_eq!((&*config.server, &*config.ca), ("h:1", "A"));
        assert!(matches!(config.identity, Identity::Certificate { chain, key } if chain == "C" && key == "K"));
        std::fs::write(&path, text.replace("current-context: x", "current-context: y")).unwrap();
        assert!(format!("{:#}", read(&path, "m").unwrap_err()).ends_with("there is no context \"y\""));
    }
}
