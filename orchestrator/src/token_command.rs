//! `amphipod token`: the tokens with which machines join a cluster, through its API server.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::{Args, Subcommand};
use client::https::Https;
use client::https::pin::Fingerprint;
use client::{Client, DeleteOptions, Resource, Selector};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::kubeconfig;
use crate::token::{self, BootstrapToken, JoinToken};

const SECRETS: Resource = Resource::core("secrets");
const NAMESPACE: &str = "kube-system";
const KIND: &str = "bootstrap.kubernetes.io/token";
const NAME: &str = "bootstrap-token-";
/// Whoever is of it may ask for a node's certificate, and is given it.
const GROUP: &str = "system:bootstrappers:amphipod:nodes";

#[derive(Args)]
pub struct Arguments {
    /// The data folder of the server, which has an administrator's kubeconfig
    #[arg(long, default_value = "/var/lib/amphipod", global = true)]
    data_dir: PathBuf,
    /// Another kubeconfig than the one in the data folder
    #[arg(long, global = true, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a token, and print what `amphipod agent --token-file` takes
    Create {
        /// How long it may be used, as in 90m or 24h; 0 for ever
        #[arg(long, default_value = "24h")]
        ttl: String,
        /// What it is for
        #[arg(long, default_value = "")]
        description: String,
    },
    /// Show the tokens there are, without their secrets
    List,
    /// Delete a token: whoever has not joined with it yet does not any more
    Delete {
        /// The token, or the six letters that it is listed by
        token: String,
    },
}

/// Does what the command says.
///
/// # Errors
/// When there is no kubeconfig, the server does not answer or refuses, or there is no such token.
pub async fn run(arguments: &Arguments) -> Result<()> {
    let path = arguments.kubeconfig.clone().unwrap_or_else(|| arguments.data_dir.join("admin.kubeconfig"));
    let config = kubeconfig::read(&path, "amphipod-token").context("give the server's --data-dir, or --kubeconfig")?;
    let authority = Fingerprint::of_pem(&config.ca).with_context(|| format!("{}: the authority", path.display()))?;
    let client = Client::new(Https::new(config)?);
    let mut out = std::io::stdout().lock();
    match &arguments.command {
        Command::Create { ttl, description } => {
            let token = create(&client, lifetime(ttl)?, description, Timestamp::now()).await?;
            writeln!(out, "{}", JoinToken { authority, token })?;
        }
        Command::List => {
            let tokens = client.list(&SECRETS, NAMESPACE, &Selector::fields(format!("type={KIND}"))).await?;
            let tokens: Vec<Value> = tokens.items.iter().map(|item| item.value()).collect();
            write!(out, "{}", listed(&tokens, Timestamp::now()))?;
        }
        Command::Delete { token } => {
            let id = id_of(token)?;
            delete(&client, &id).await?;
            writeln!(out, "token {id} deleted")?;
        }
    }
    Ok(())
}

/// Seconds; `None` for ever.
fn lifetime(text: &str) -> Result<Option<SignedDuration>> {
    if text == "0" {
        return Ok(None);
    }
    let wanted = || format!("--ttl {text:?}: a time such as 90m or 24h is wanted, or 0 for ever");
    let ttl: SignedDuration = text.parse().ok().with_context(wanted)?;
    ensure!(ttl.is_positive(), wanted());
    Ok(Some(ttl))
}

/// Makes a token that ends after `ttl`.
///
/// # Errors
/// What the server says, or that there are no random bytes.
pub async fn create(
    client: &Client,
    ttl: Option<SignedDuration>,
    description: &str,
    now: Timestamp,
) -> Result<BootstrapToken> {
    let token = BootstrapToken::random().context("the kernel gives no random bytes")?;
    let mut data = json!({
        "token-id": token.id,
        "token-secret": token.secret,
        "usage-bootstrap-authentication": "true",
        "auth-extra-groups": GROUP,
    });
    if let Some(ttl) = ttl {
        let end = now.checked_add(ttl).context("--ttl: no such time ever comes")?;
        data["expiration"] = json!(api::time::rfc3339(end));
    }
    if !description.is_empty() {
        data["description"] = json!(description);
    }
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": KIND, "stringData": data,
        "metadata": {"name": format!("{NAME}{}", token.id), "namespace": NAMESPACE}});
    client.create(&SECRETS, NAMESPACE, secret).await.context("cannot make a token")?;
    Ok(token)
}

async fn delete(client: &Client, id: &str) -> Result<()> {
    match client.delete(&SECRETS, NAMESPACE, &format!("{NAME}{id}"), &DeleteOptions::default()).await {
        Ok(_) => Ok(()),
        Err(status) if status.code == 404 => anyhow::bail!("there is no token {id}"),
        Err(status) => Err(status).with_context(|| format!("cannot delete token {id}")),
    }
}

/// The part of a token that is no secret.
fn id_of(text: &str) -> Result<String> {
    if token::is_id(text) {
        return Ok(text.to_owned());
    }
    let whole = text.parse::<JoinToken>().map(|join| join.token).or_else(|_| text.parse::<BootstrapToken>());
    Ok(whole.with_context(|| format!("{text:?} is neither a token nor the six letters it is listed by"))?.id)
}

/// A table, by their ids.
fn listed(tokens: &[Value], now: Timestamp) -> String {
    let data = |token: &Value, key: &str| -> String {
        let text = token["data"][key].as_str().and_then(|text| BASE64_STANDARD.decode(text).ok());
        text.map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default()
    };
    let row = |token: &Value| {
        let expires = data(token, "expiration");
        let left = match expires.parse::<Timestamp>() {
            _ if expires.is_empty() => "<forever>".to_owned(),
            Ok(end) if end > now => short(end.duration_since(now)),
            _ => "<ended>".to_owned(),
        };
        let expires = if expires.is_empty() { "<never>".to_owned() } else { expires };
        [data(token, "token-id"), left, expires, data(token, "description")]
    };
    let mut rows: Vec<[String; 4]> = tokens.iter().map(row).collect();
    rows.sort();
    let head = ["TOKEN", "TTL", "EXPIRES", "DESCRIPTION"].map(str::to_owned);
    let line = |[id, left, expires, description]: &[String; 4]| {
        format!("{id:<8}{left:<11}{expires:<22}{description}").trim_end().to_owned() + "\n"
    };
    [head].iter().chain(&rows).map(line).collect()
}

/// To two digits or so, as kubectl shows ages.
fn short(left: SignedDuration) -> String {
    match left.as_secs() {
        seconds @ ..120 => format!("{seconds}s"),
        seconds @ ..7200 => format!("{}m", seconds / 60),
        seconds @ ..172_800 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifetime_is_a_time_or_for_ever() {
        assert_eq!(lifetime("0").unwrap(), None);
        assert_eq!(lifetime("90m").unwrap(), Some(SignedDuration::from_mins(90)));
        for other in ["", "-1h", "0s", "soon", "24"] {
            assert!(lifetime(other).unwrap_err().to_string().starts_with("--ttl"), "{other}");
        }
    }

    #[test]
    fn a_token_is_deleted_by_any_of_its_names() {
        let join = format!("A10{}::abcdef.0123456789abcdef", "0".repeat(64));
        for text in ["abcdef", "abcdef.0123456789abcdef", &join] {
            assert_eq!(id_of(text).unwrap(), "abcdef");
        }
        assert!(id_of("abc").is_err());
    }

    #[test]
    fn tokens_are_listed_without_their_secrets() {
        let token = |fields: &[(&str, &str)]| {
            let encoded = fields.iter().map(|(key, text)| ((*key).to_owned(), json!(BASE64_STANDARD.encode(text))));
            json!({"data": encoded.collect::<serde_json::Map<_, _>>()})
        };
        let tokens = [
            token(&[("token-id", "bbbbbb"), ("token-secret", "hidden"), ("description", "for ever")]),
            token(&[("token-id", "aaaaaa"), ("expiration", "2026-01-02T00:00:00Z")]),
            token(&[("token-id", "cccccc"), ("expiration", "2025-01-01T00:00:00Z")]),
        ];
        let text = listed(&tokens, "2026-01-01T00:00:00Z".parse().unwrap());
        assert_eq!(
            text,
            "TOKEN   TTL        EXPIRES               DESCRIPTION\n\
             aaaaaa  24h        2026-01-02T00:00:00Z\n\
             bbbbbb  <forever>  <never>               for ever\n\
             cccccc  <ended>    2025-01-01T00:00:00Z\n"
        );
    }
}
