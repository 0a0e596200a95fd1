use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use client::views::NODES;
use client::{DeleteOptions, Resource};
use node::registration;
use serde_json::json;

use super::*;
use crate::fleet::ControlPlane;
use crate::pod_ranges::PodRanges;
use crate::token::BootstrapToken;
use crate::token_command;

struct World {
    plane: ControlPlane,
    server: String,
    authority: Fingerprint,
    _folder: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let plane = ControlPlane::start(folder.path(), PodRanges::usual()).await;
        let server = format!("localhost:{}", plane.address.port());
        let authority = Fingerprint::of_pem(&plane.authority.ca_certificate).unwrap();
        Self { plane, server, authority, _folder: folder }
    }

    async fn token(&self) -> JoinToken {
        let token = token_command::create(&self.plane.admin, None, "", Timestamp::now()).await.unwrap();
        JoinToken { authority: self.authority, token }
    }

    async fn joins(&self, token: Option<&JoinToken>, folder: &Path, node: &str) -> Result<Joined> {
        join(&self.server, token, folder, node).await
    }

    async fn refused(&self, token: Option<&JoinToken>, folder: &Path, node: &str) -> String {
        let error = self.joins(token, folder, node).await.map(drop).unwrap_err();
        let said = format!("{error:#}");
        assert!(!said.contains('\n'), "one line: {said}");
        said
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_joins_once_and_renews_by_itself() {
    let (world, folder) = (World::new().await, tempfile::tempdir().unwrap());
    let token = world.token().await;
    let joined = world.joins(Some(&token), folder.path(), "n").await.unwrap();
    for file in ["node.key", "node.crt", "node-ca.crt"] {
        let mode = std::fs::metadata(folder.path().join(file)).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    let key = joined.files.fingerprint();
    registration::register("n", Some(&key), &joined.client(), &json!({})).await.unwrap();
    let secret = format!("bootstrap-token-{}", token.token.id);
    world
        .plane
        .admin
        .delete(&Resource::core("secrets"), "kube-system", &secret, &DeleteOptions::default())
        .await
        .unwrap();

    let again = world.joins(None, folder.path(), "n").await.unwrap();
    assert_eq!(again.certificate.pem, joined.certificate.pem);
    let next = again.renew("n").await.unwrap();
    assert_ne!(next.pem, joined.certificate.pem);
    assert_eq!((again.files.fingerprint(), again.files.certificate().unwrap().unwrap().pem), (key, next.pem));
    again.client().get(&NODES, "", "n").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_join_is_told_why() {
    let (world, folder) = (World::new().await, tempfile::tempdir().unwrap());
    let (token, path) = (world.token().await, folder.path());
    assert!(world.refused(None, path, "n").await.contains("belongs to no cluster yet: give a join token"));
    let elsewhere = JoinToken { authority: "0".repeat(64).parse().unwrap(), ..token.clone() };
    assert!(world.refused(Some(&elsewhere), path, "n").await.contains("somebody stands in between"));
    let secret = BootstrapToken { secret: "0".repeat(16), ..token.token.clone() };
    let wrong = JoinToken { token: secret, ..token.clone() };
    assert!(world.refused(Some(&wrong), path, "n").await.contains("the server does not accept the token"));
    assert!(world.refused(Some(&elsewhere), path, "n").await.contains("belongs to another cluster than the token"));
    let joined = world.joins(Some(&token), path, "n").await.unwrap();
    assert!(world.refused(Some(&token), path, "m").await.contains("belongs to node n, not m"));

    // The name is the first machine's, before and after it has registered.
    let second = tempfile::tempdir().unwrap();
    let said = world.refused(Some(&token), second.path(), "n").await;
    assert!(said.contains("another machine is just joining as node n"), "{said}");
    let key = joined.files.fingerprint();
    registration::register("n", Some(&key), &joined.client(), &json!({})).await.unwrap();
    let said = world.refused(Some(&token), second.path(), "n").await;
    assert!(said.contains("node n is another machine's"), "{said}");
    let other = registration::register("n", Some("another"), &joined.client(), &json!({})).await.unwrap_err();
    assert!(other.to_string().contains("node n is another machine's"), "{other}");
    // The first one, whose certificate was lost, has its key.
    std::fs::remove_file(path.join("node.crt")).unwrap();
    world.joins(Some(&token), path, "n").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_machines_at_once_one_has_the_name() {
    let world = Arc::new(World::new().await);
    let token = world.token().await;
    let folders: Vec<tempfile::TempDir> = (0..4).map(|_| tempfile::tempdir().unwrap()).collect();
    let joining = folders.iter().map(|folder| world.joins(Some(&token), folder.path(), "n"));
    let outcomes = futures::future::join_all(joining).await;
    let said: Vec<String> =
        outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).map(|error| format!("{error:#}")).collect();
    assert_eq!(said.len(), 3, "{said:?}");
    assert!(said.iter().all(|why| why.contains("another machine is just joining as node n")), "{said:?}");
}
