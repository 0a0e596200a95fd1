//! Many clients that ask without end, and the few that must be answered all the same.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::client::Resource;
use apiserver::identity::User;
use apiserver::nodes::NoNodes;
use apiserver::server::{Config, Server};
use axum::body::Body;
use futures::StreamExt;
use hyper::http::Request;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};

#[path = "replay/client.rs"]
#[expect(dead_code, reason = "a replay looks at headers too")]
mod client;

use client::{Client, Credentials, Identity};

const TOKENS: usize = 500;
const NODES: usize = 3;
/// What a node's lease lasts, and how soon it is renewed: an answer that comes later than the renewal's period counts as
/// a missed heartbeat.
const RENEWAL: Duration = Duration::from_secs(10);
const FLOOD: Duration = Duration::from_secs(12);
const REVIEW: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

struct World {
    nodes: Vec<Arc<Credentials>>,
    tokens: Vec<String>,
    _stop: DropGuard,
    _folder: tempfile::TempDir,
}

async fn world(tokens: usize) -> World {
    let folder = tempfile::tempdir().unwrap();
    let server = server(folder.path()).await;
    let authority = server.authority();
    let credentials = |number: usize| {
        let identity = authority.client(&format!("system:node:n{number}"), &["system:nodes"]).unwrap();
        Arc::new(Credentials::new(server.address(), &authority.ca_certificate, &identity.certificate, &identity.key))
    };
    let nodes = (0..NODES).map(credentials).collect();
    let master = server.client(User::new("tester", &["system:masters"]), "tester");
    let minted = (0..tokens).map(|number| {
        let master = master.clone();
        async move {
            let name = format!("robot{number}");
            let account = json!({"metadata": {"name": name}});
            master.create(&Resource::core("serviceaccounts"), "default", account).await.unwrap();
            let request = master.token("default", &name, json!({})).await.unwrap();
            request["status"]["token"].as_str().unwrap().to_owned()
        }
    });
    let tokens = futures::stream::iter(minted).buffer_unordered(32).collect().await;
    let stop = CancellationToken::new();
    tokio::spawn(server.serve(stop.clone()));
    World { nodes, tokens, _stop: stop.drop_guard(), _folder: folder }
}

async fn server(folder: &Path) -> Server {
    Server::open(&Config::on_loopback(folder.join("store.redb")), Arc::new(NoNodes)).await.unwrap()
}

fn bearer(token: &str) -> [(&'static str, String); 2] {
    [("authorization", format!("Bearer {token}")), ("content-type", "application/json".into())]
}

/// Asks without a pause until the flood ends; counts the answers.
async fn ask(credentials: Arc<Credentials>, token: String, door: Arc<Semaphore>, until: Instant) -> usize {
    let mut client = Client::new(credentials);
    let review = json!({"kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1",
        "spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}, "filling": "x".repeat(10_000)});
    let body = review.to_string().into_bytes();
    let mut answers = 0;
    // An address has only so many connections before somebody authenticates on them.
    let mut entering = Some(door.acquire().await.unwrap());
    while Instant::now() < until {
        let answer = client.request(Identity::Anonymous, "POST", REVIEW, &bearer(&token), &body).await;
        assert!(matches!(answer.code, 201 | 429), "{}", answer.code);
        answers += 1;
        entering = None;
    }
    drop(entering);
    answers
}

/// Renews a node's lease and reports its status once a second; gives the longest wait.
async fn heartbeat(credentials: Arc<Credentials>, number: usize, until: Instant) -> Duration {
    let mut client = Client::new(credentials);
    let (leases, name) = ("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases", format!("n{number}"));
    let headers = [("content-type", "application/json".to_owned())];
    let node = json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": name}}).to_string();
    let made = client.request(Identity::Admin, "POST", "/api/v1/nodes", &headers, node.as_bytes()).await;
    assert_eq!(made.code, 201, "{:?}", made.body);
    let lease = json!({"kind": "Lease", "apiVersion": "coordination.k8s.io/v1", "metadata": {"name": name},
        "spec": {"holderIdentity": name, "leaseDurationSeconds": 40}});
    let made = client.request(Identity::Admin, "POST", leases, &headers, lease.to_string().as_bytes()).await;
    assert_eq!(made.code, 201, "{:?}", made.body);
    let mut held: Value = serde_json::from_slice(&made.body).unwrap();
    let mut longest = Duration::ZERO;
    while Instant::now() < until {
        let start = Instant::now();
        let path = format!("{leases}/{name}");
        let renewed = client.request(Identity::Admin, "PUT", &path, &headers, held.to_string().as_bytes()).await;
        assert_eq!(renewed.code, 200, "{:?}", renewed.body);
        held = serde_json::from_slice(&renewed.body).unwrap();
        held["spec"]["renewTime"] = json!(jiff::Timestamp::now().to_string()[..19].to_owned() + ".000000Z");
        let status = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}).to_string();
        let merge = [("content-type", "application/strategic-merge-patch+json".to_owned())];
        let path = format!("/api/v1/nodes/{name}/status");
        let reported = client.request(Identity::Admin, "PATCH", &path, &merge, status.as_bytes()).await;
        assert_eq!(reported.code, 200, "{:?}", reported.body);
        longest = longest.max(start.elapsed());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    longest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nodes_stay_ready_while_everybody_asks() {
    let world = world(TOKENS).await;
    let (until, door) = (Instant::now() + FLOOD, Arc::new(Semaphore::new(32)));
    let flood: Vec<_> = world
        .tokens
        .iter()
        .map(|token| tokio::spawn(ask(world.nodes[0].clone(), token.clone(), door.clone(), until)))
        .collect();
    let beats: Vec<_> = world
        .nodes
        .iter()
        .enumerate()
        .map(|(number, node)| tokio::spawn(heartbeat(node.clone(), number, until)))
        .collect();
    for beat in beats {
        let longest = beat.await.unwrap();
        assert!(longest < RENEWAL, "a heartbeat took {longest:?}");
    }
    let mut answers = 0;
    for client in flood {
        answers += client.await.unwrap();
    }
    assert!(answers > TOKENS, "it was no flood: {answers} answers");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_with_too_many_requests_is_told_to_come_back() {
    let world = world(2).await;
    let mut held = Vec::new();
    let start = |token: String| {
        let credentials = world.nodes[0].clone();
        async move {
            let mut sender = credentials.connect(Identity::Anonymous).await;
            // A body that never ends keeps its place.
            let body = Body::from_stream(futures::stream::pending::<Result<bytes::Bytes, std::io::Error>>());
            let request = Request::builder().method("POST").uri(REVIEW).header("host", "localhost");
            let request =
                bearer(&token).into_iter().fold(request, |request, (name, value)| request.header(name, value));
            let answer = tokio::spawn(sender.send_request(request.body(body).unwrap()));
            (sender, answer)
        }
    };
    for _ in 0..100 {
        held.push(start(world.tokens[0].clone()).await);
    }
    let refused = loop {
        let (_sender, answer) = start(world.tokens[0].clone()).await;
        match tokio::time::timeout(Duration::from_secs(1), answer).await {
            Ok(answer) => break answer.unwrap().unwrap(),
            // Those before it had not all arrived yet: this one holds a place too.
            Err(_) => continue,
        }
    };
    assert_eq!(refused.status(), 429);
    assert_eq!(refused.headers()["retry-after"], "1");
    let text = axum::body::to_bytes(Body::new(refused.into_body()), 1000).await.unwrap();
    assert_eq!(&text[..], b"Too many requests, please try again later.\n");
    let mut other = Client::new(world.nodes[0].clone());
    let review = json!({"kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1",
        "spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}});
    let (headers, body) = (bearer(&world.tokens[1]), review.to_string());
    let answer = other.request(Identity::Anonymous, "POST", REVIEW, &headers, body.as_bytes()).await;
    assert_eq!(answer.code, 201, "others are not refused");
}

/// Bodies that come by drops hold no seats, so a few accounts do not keep the others out.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn slow_accounts_do_not_starve_the_others() {
    const SLOW: usize = 3;
    let world = world(SLOW + 1).await;
    let mut held = Vec::new();
    for token in &world.tokens[..SLOW] {
        for _ in 0..100 {
            let mut sender = world.nodes[0].connect(Identity::Anonymous).await;
            let drops = futures::stream::unfold((), |()| async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Some((Ok::<_, std::io::Error>(bytes::Bytes::from_static(b" ")), ()))
            });
            let request = Request::builder().method("POST").uri(REVIEW).header("host", "localhost");
            let request = bearer(token).into_iter().fold(request, |request, (name, value)| request.header(name, value));
            let answer = tokio::spawn(sender.send_request(request.body(Body::from_stream(drops)).unwrap()));
            held.push((sender, answer));
        }
    }
    // Until they are all with the server.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let slow = held.iter().filter(|(_, answer)| !answer.is_finished()).count();
    assert!(slow > 250, "{slow} bodies are on their way");
    let mut other = Client::new(world.nodes[0].clone());
    let review = json!({"kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1",
        "spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}});
    let (headers, body) = (bearer(&world.tokens[SLOW]), review.to_string());
    for _ in 0..10 {
        let start = Instant::now();
        let answer = other.request(Identity::Anonymous, "POST", REVIEW, &headers, body.as_bytes()).await;
        assert_eq!(answer.code, 201);
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }
}
