//! Registries that send more than they said, or to others than they should: a server of this process answers.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::image::{ImageError, ImageStore, PullPolicy, of_secret};

/// What a path is answered with; the body is repeated for ever when it says so.
#[derive(Clone)]
struct Body {
    bytes: Vec<u8>,
    endless: bool,
}

#[derive(Default)]
struct Server {
    bodies: BTreeMap<String, Body>,
    /// The one user that may read.
    user: Option<String>,
    /// What those who ask for a token get; the one it is to be is `t`.
    token: Option<Body>,
    /// How many requests a token is good for.
    token_lasts: Option<usize>,
    token_uses: Mutex<usize>,
    tokens_given: Mutex<usize>,
    /// What is said instead of any blob.
    refusal: Option<Body>,
    /// Every authorisation that was sent.
    seen: Mutex<Vec<String>>,
}

impl Server {
    fn put(&mut self, kind: &str, name: &str, bytes: Vec<u8>) {
        self.bodies.insert(format!("/v2/library/app/{kind}/{name}"), Body { bytes, endless: false });
    }

    /// An image of one layer; its descriptors are as `change` leaves them.
    fn with_image(change: impl FnOnce(&mut Value)) -> Server {
        let mut server = Server::default();
        let layer = tar::Builder::new(Vec::new()).into_inner().unwrap();
        let config = json!({"rootfs": {"diff_ids": [Digest::of(&layer).as_str()]}}).to_string().into_bytes();
        let describe = |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": Digest::of(bytes).as_str(), "size": bytes.len()});
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": describe("application/vnd.oci.image.config.v1+json", &config),
            "layers": [describe("application/vnd.oci.image.layer.v1.tar", &layer)],
        });
        change(&mut manifest);
        for bytes in [config, layer] {
            server.put("blobs", Digest::of(&bytes).as_str(), bytes);
        }
        server.put("manifests", "latest", manifest.to_string().into_bytes());
        server
    }

    /// A token that is used once too often.
    fn used_up(&self, sent: Option<&str>) -> bool {
        let Some(lasts) = self.token_lasts.filter(|_| sent.is_some()) else { return false };
        let mut uses = self.token_uses.lock().unwrap();
        *uses += 1;
        *uses > lasts
    }

    async fn start(self) -> (Arc<Server>, Registries) {
        let _ = rustls::crypto::ring::default_provider().install_default(); // another test was quicker
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoints = vec![format!("http://{}", listener.local_addr().unwrap())];
        let server = Arc::new(self);
        let serving = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = serving.clone();
                tokio::spawn(async move { server.answer(stream).await });
            }
        });
        let row = Row { endpoints, ..Row::default() };
        (server, Registries { registries: [("docker.io".to_owned(), row)].into() })
    }

    /// One request per connection. A client that has heard enough hangs up.
    async fn answer(&self, mut stream: TcpStream) -> io::Result<()> {
        let (mut head, mut buffer) = (Vec::new(), [0; 1024]);
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read(&mut buffer).await? {
                0 => return Ok(()),
                count => head.extend_from_slice(&buffer[..count]),
            }
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let path = head.split_whitespace().nth(1).unwrap_or_default();
        let sent = head
            .lines()
            .find_map(|line| line.to_lowercase().starts_with("authorization: ").then(|| line[15..].to_owned()));
        self.seen.lock().unwrap().extend(sent.clone());
        let wanted = self.user.as_ref().map(|user| {
            let pair = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, format!("{user}:p"));
            format!("Basic {pair}")
        });
        let wanted = self.token.as_ref().map(|_| "Bearer t".to_owned()).or(wanted);
        let (code, body) = match self.bodies.get(path) {
            _ if path.starts_with("/token?scope=repository%3Alibrary%2Fapp%3Apull&service=s") => {
                *self.tokens_given.lock().unwrap() += 1;
                *self.token_uses.lock().unwrap() = 0;
                (200, self.token.as_ref())
            }
            _ if wanted.is_some() && wanted != sent || self.used_up(sent.as_deref()) => (401, None),
            _ if path == "/v2/" => (200, None),
            _ if path.contains("/blobs/") && self.refusal.is_some() => (503, self.refusal.as_ref()),
            Some(body) => (200, Some(body)),
            None => (404, None),
        };
        let own = head.lines().find_map(|line| line.to_lowercase().strip_prefix("host: ").map(str::to_owned));
        let challenge = match (code, &self.token) {
            (401, None) => "WWW-Authenticate: Basic realm=\"x\"\r\n".to_owned(),
            (401, Some(_)) => {
                let realm = format!("http://{}/token", own.unwrap_or_default());
                format!("WWW-Authenticate: Bearer realm=\"{realm}\",service=\"s\"\r\n")
            }
            _ => String::new(),
        };
        let head = format!("HTTP/1.1 {code} X\r\nConnection: close\r\n{challenge}\r\n");
        stream.write_all(head.as_bytes()).await?;
        while let Some(body) = body {
            stream.write_all(&body.bytes).await?;
            if !body.endless {
                break;
            }
        }
        stream.shutdown().await
    }
}

async fn pull(registries: Registries) -> Result<(), ImageError> {
    let folder = tempfile::tempdir().unwrap();
    let store = ImageStore::open(folder.path(), registries).unwrap();
    let pulled = store.ensure("app", PullPolicy::Always, &[]).await;
    let left = std::fs::read_dir(folder.path().join("tmp")).unwrap().count();
    assert_eq!(left, 0, "nothing half-made stays");
    pulled.map(drop)
}

#[tokio::test]
async fn an_image_that_is_what_it_says() {
    let (_, registries) = Server::with_image(|_| {}).start().await;
    pull(registries).await.unwrap();
}

#[tokio::test]
async fn a_manifest_without_end() {
    let mut server = Server::default();
    let endless = Body { bytes: vec![b' '; 1 << 16], endless: true };
    server.bodies.insert("/v2/library/app/manifests/latest".into(), endless);
    let (_, registries) = server.start().await;
    let refused = pull(registries).await.unwrap_err();
    assert!(matches!(&refused, ImageError::Registry(RegistryError::TooLarge { .. })), "{refused:?}");
}

#[tokio::test]
async fn tokens_are_fetched_where_the_registry_says() {
    for answer in [r#"{"token": "t"}"#, r#"{"access_token": "t", "expires_in": 60}"#] {
        let mut server = Server::with_image(|_| {});
        server.token = Some(Body { bytes: answer.into(), endless: false });
        let (server, registries) = server.start().await;
        pull(registries).await.unwrap();
        assert!(server.seen.lock().unwrap().iter().all(|sent| sent == "Bearer t"));
    }
}

#[tokio::test]
async fn a_token_is_for_the_whole_pull_and_fetched_anew_when_it_is_too_old() {
    // The manifest, the configuration and the layer.
    for (lasts, tokens) in [(None, 1), (Some(3), 1), (Some(2), 2), (Some(1), 3)] {
        let token = Some(Body { bytes: r#"{"token": "t"}"#.into(), endless: false });
        let (server, registries) = Server { token, token_lasts: lasts, ..Server::with_image(|_| {}) }.start().await;
        pull(registries).await.unwrap();
        assert_eq!(*server.tokens_given.lock().unwrap(), tokens, "{lasts:?}");
    }
}

#[tokio::test]
async fn a_new_token_that_is_refused_is_not_asked_for_again() {
    let token = Some(Body { bytes: r#"{"token": "t"}"#.into(), endless: false });
    let (server, registries) = Server { token, token_lasts: Some(0), ..Server::with_image(|_| {}) }.start().await;
    let told = causes::chain(&pull(registries).await.unwrap_err());
    assert!(told.contains("Not authorized"), "{told}");
    assert_eq!(*server.tokens_given.lock().unwrap(), 1);
}

#[tokio::test]
async fn tokens_and_refusals_without_end() {
    let endless = || Some(Body { bytes: vec![b' '; 1 << 12], endless: true });
    let too_much = |refused: ImageError, wanted: &str| match refused {
        ImageError::Registry(RegistryError::TooLarge { what, limit: MAX_ANSWER, .. }) => assert_eq!(what, wanted),
        other => panic!("{other:?}"),
    };
    let (_, registries) = Server { token: endless(), ..Server::with_image(|_| {}) }.start().await;
    too_much(pull(registries).await.unwrap_err(), "the answer to a request for a token");
    let (_, registries) = Server { refusal: endless(), ..Server::with_image(|_| {}) }.start().await;
    too_much(pull(registries).await.unwrap_err(), "a refusal");
    let said = Some(Body { bytes: vec![b'x'; 60_000], endless: false });
    let (_, registries) = Server { refusal: said, ..Server::with_image(|_| {}) }.start().await;
    let told = causes::chain(&pull(registries).await.unwrap_err());
    assert!(told.len() < 2000 && told.contains("503"), "{told}");
}

#[tokio::test]
async fn blobs_that_are_larger_or_smaller_than_they_say() {
    for (part, size) in
        [("/layers/0/size", 100), ("/layers/0/size", 1 << 20), ("/config/size", 10), ("/config/size", 4000)]
    {
        let server = Server::with_image(|manifest| *manifest.pointer_mut(part).unwrap() = json!(size));
        let (_, registries) = server.start().await;
        let refused = pull(registries).await.unwrap_err();
        assert!(matches!(&refused, ImageError::Registry(RegistryError::Size { .. })), "{part} {size}: {refused:?}");
    }
}

#[tokio::test]
async fn a_layer_without_end() {
    let mut server = Server::with_image(|_| {});
    for (path, body) in &mut server.bodies {
        body.endless = path.contains("/blobs/");
    }
    let (_, registries) = server.start().await;
    let refused = pull(registries).await.unwrap_err();
    assert!(matches!(&refused, ImageError::Registry(RegistryError::Size { .. })), "{refused:?}");
}

#[tokio::test]
async fn what_is_too_large_is_not_begun() {
    let huge = |part: &'static str| {
        Server::with_image(move |manifest| *manifest.pointer_mut(part).unwrap() = json!(1_u64 << 60))
    };
    let (_, registries) = huge("/config/size").start().await;
    let refused = pull(registries).await.unwrap_err();
    assert!(matches!(&refused, ImageError::Registry(RegistryError::TooLarge { .. })), "{refused:?}");
    let (_, registries) = huge("/layers/0/size").start().await;
    let refused = pull(registries).await.unwrap_err();
    assert!(matches!(&refused, ImageError::NoRoom { .. }), "{refused:?}");
}

#[tokio::test]
async fn digests_that_are_paths() {
    for part in ["/layers/0/digest", "/config/digest"] {
        let server = Server::with_image(|manifest| *manifest.pointer_mut(part).unwrap() = json!("sha256:/"));
        let (_, registries) = server.start().await;
        let refused = pull(registries).await.unwrap_err();
        assert!(matches!(&refused, ImageError::Digest { .. }), "{part}: {refused:?}");
    }
}

#[tokio::test]
async fn a_pods_own_credentials_are_tried_one_after_the_other() {
    let server = Server { user: Some("right".into()), ..Server::with_image(|_| {}) };
    let (server, registries) = server.start().await;
    let entry = |user: &str| json!({"username": user, "password": "p"});
    let file = json!({"auths": {"docker.io/library": entry("wrong"), "https://index.docker.io/v1/": entry("right"),
        "quay.io": entry("other")}});
    let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, file.to_string());
    let credentials = of_secret(&json!({"data": {".dockerconfigjson": text}}));
    let folder = tempfile::tempdir().unwrap();
    let store = ImageStore::open(folder.path(), registries).unwrap();
    assert!(store.ensure("app", PullPolicy::Always, &[]).await.is_err(), "without any");
    store.ensure("app", PullPolicy::Always, &credentials).await.unwrap();
    let other = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, "other:p");
    assert!(!server.seen.lock().unwrap().iter().any(|sent| sent.contains(&other)), "another registry's are not sent");
}
