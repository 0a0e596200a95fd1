//! What holds a client back that means harm or has lost its way: deadlines, sizes, credentials that ended, and grants of
//! what nobody can read.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::client::Resource;
use api::status::Status;
use api::uid::Uid;
use apiserver::Anonymous;
use apiserver::engine::ServiceNetwork;
use apiserver::identity::{MASTERS, User};
use apiserver::nodes::{Duplex, ExecOptions, LogOptions, NoNodes, Nodes, Session};
use apiserver::server::{Config, Server};
use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use hyper::http::Request;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

#[path = "replay/client.rs"]
#[expect(dead_code, reason = "a replay looks at headers too")]
mod client;

use client::{Client, Credentials, Identity};

struct World {
    admin: Arc<Credentials>,
    master: ::client::Client,
    authority: Arc<apiserver::pki::Authority>,
    address: std::net::SocketAddr,
    _stop: DropGuard,
    _folder: tempfile::TempDir,
}

async fn world(nodes: Arc<dyn Nodes>, change: impl FnOnce(&mut Config)) -> World {
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config::on_loopback(folder.path().join("store.redb"));
    change(&mut config);
    let server = Server::open(&config, nodes).await.unwrap();
    let (authority, address) = (server.authority().clone(), server.address());
    let identity = authority.client("tester", &[MASTERS]).unwrap();
    let admin = Credentials::new(address, &authority.ca_certificate, &identity.certificate, &identity.key);
    let master = server.client(User::new("tester", &[MASTERS]), "tester");
    let stop = CancellationToken::new();
    tokio::spawn(server.serve(stop.clone()));
    World { admin: admin.into(), master, authority, address, _stop: stop.drop_guard(), _folder: folder }
}

impl World {
    fn user(&self, name: &str) -> Client {
        let identity = self.authority.client(name, &[]).unwrap();
        let ca = &self.authority.ca_certificate;
        Client::new(Credentials::new(self.address, ca, &identity.certificate, &identity.key).into())
    }
}

fn json_body() -> [(&'static str, String); 1] {
    [("content-type", "application/json".into())]
}

/// A node that never answers, and one that only listens.
#[derive(Default)]
struct Node {
    heard: Mutex<Option<DuplexStream>>,
}

#[async_trait::async_trait]
impl Nodes for Node {
    async fn logs(&self, _: &Value, _: LogOptions) -> Result<BoxStream<'static, std::io::Result<Bytes>>, Status> {
        std::future::pending().await
    }

    async fn exec(&self, _: &Value, _: ExecOptions) -> Result<Session, Status> {
        let (stdin, heard) = tokio::io::duplex(4 << 20);
        *self.heard.lock().unwrap() = Some(heard);
        let exit = Box::pin(std::future::pending());
        Ok(Session { stdin: Some(Box::new(stdin)), stdout: None, stderr: None, resize: None, exit })
    }

    async fn dial(&self, _: &Value, _: u16) -> Result<Box<dyn Duplex>, Status> {
        std::future::pending().await
    }
}

async fn placed_pod(master: &::client::Client) {
    let spec = json!({"nodeName": "n", "containers": [{"name": "c", "image": "i"}]});
    let pod = json!({"metadata": {"name": "p"}, "spec": spec});
    let account = json!({"metadata": {"name": "default"}});
    master.create(&Resource::core("serviceaccounts"), "default", account).await.unwrap();
    master.create(&Resource::core("pods"), "default", pod).await.unwrap();
}

/// How long an answer takes on a clock that jumps from deadline to deadline, and its code.
async fn waits(world: &World, method: &str, path: &str, body: Body) -> (u16, u64) {
    let mut sender = world.admin.connect(Identity::Admin).await;
    let request = Request::builder().method(method).uri(path).header("host", "localhost");
    let request = request.header("content-type", "application/json").body(body).unwrap();
    let answer = tokio::spawn(sender.send_request(request));
    tokio::time::sleep(Duration::from_millis(300)).await; // until the server has it
    tokio::time::pause();
    let began = Instant::now();
    let code = answer.await.unwrap().unwrap().status().as_u16();
    let waited = began.elapsed().as_secs();
    tokio::time::resume();
    (code, waited)
}

#[tokio::test]
async fn a_body_that_does_not_come_is_waited_for_half_a_minute() {
    let world = world(Arc::new(NoNodes), |_| {}).await;
    let begun = futures::stream::once(std::future::ready(Ok::<_, std::io::Error>(Bytes::from_static(b"{"))));
    let body = Body::from_stream(begun.chain(futures::stream::pending()));
    let (code, seconds) = waits(&world, "POST", "/api/v1/namespaces/default/configmaps", body).await;
    assert_eq!(code, 504);
    assert!((28..=31).contains(&seconds), "{seconds} s");
}

#[tokio::test]
async fn an_answer_that_does_not_come_is_waited_for_a_minute() {
    let world = world(Arc::new(Node::default()), |_| {}).await;
    placed_pod(&world.master).await;
    let (code, seconds) = waits(&world, "GET", "/api/v1/namespaces/default/pods/p/log", Body::empty()).await;
    assert_eq!(code, 504);
    assert!((58..=61).contains(&seconds), "{seconds} s");
}

/// The head of a binary WebSocket frame of a client, with a mask of zeroes.
fn frame_head(length: usize) -> Vec<u8> {
    let mut head = vec![0x82, 0x80 | 127];
    head.extend((length as u64).to_be_bytes());
    head.extend([0; 4]);
    head
}

#[tokio::test]
async fn a_frame_that_is_too_large_ends_the_conversation() {
    const MOST: usize = 1 << 20;
    let node = Arc::new(Node::default());
    let world = world(node.clone(), |_| {}).await;
    placed_pod(&world.master).await;
    let mut stream = world.admin.stream(Identity::Admin).await;
    let head = "GET /api/v1/namespaces/default/pods/p/exec?command=cat&stdin=true HTTP/1.1\r\nHost: localhost\r\n\
        Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&answer));
    let mut heard = node.heard.lock().unwrap().take().unwrap();
    for payload in [vec![0_u8; MOST], vec![0_u8; MOST + 1]] {
        stream.write_all(&frame_head(payload.len())).await.unwrap();
        let _cut_off = stream.write_all(&payload).await;
    }
    let mut all = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(10), heard.read_to_end(&mut all)).await;
    ended.expect("the conversation goes on").unwrap();
    assert_eq!(all.len(), MOST - 1, "the first frame, and nothing of the second");
}

#[tokio::test]
async fn requests_without_credentials_get_what_the_cluster_was_told() {
    for (anonymous, api, live) in
        [(Anonymous::Allowed, 403, 200), (Anonymous::ProbesOnly, 401, 200), (Anonymous::Refused, 401, 401)]
    {
        let world = world(Arc::new(NoNodes), |config| config.anonymous = anonymous).await;
        let mut client = Client::new(world.admin.clone());
        for (identity, path, code) in [
            (Identity::Anonymous, "/api/v1/namespaces/default/pods", api),
            (Identity::Anonymous, "/livez", live),
            (Identity::Admin, "/api/v1/namespaces/default/pods", 200),
        ] {
            let answer = client.request(identity, "GET", path, &[], b"").await;
            assert_eq!(answer.code, code, "{anonymous:?} {identity:?} {path}");
        }
        let forged = [("authorization", "Bearer nonsense".to_owned())];
        let answer = client.request(Identity::Anonymous, "GET", "/livez", &forged, b"").await;
        assert_eq!(answer.code, 401, "a token that proves nothing is not as good as none");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_bootstrap_token_may_ask_to_join_and_nothing_else() {
    let world = world(Arc::new(NoNodes), |_| {}).await;
    let fields = [
        ("token-id", "abcdef"),
        ("token-secret", "0123456789abcdef"),
        ("usage-bootstrap-authentication", "true"),
        ("auth-extra-groups", "system:bootstrappers:amphipod:nodes"),
    ];
    let name = "bootstrap-token-abcdef";
    let secret = json!({"metadata": {"name": name}, "type": "bootstrap.kubernetes.io/token", "stringData": fields.into_iter().collect::<BTreeMap<_, _>>()});
    world.master.create(&Resource::core("secrets"), "kube-system", secret).await.unwrap();
    let mut client = Client::new(world.admin.clone());
    let mut asks = async |token: &str, path: &str| {
        let bearer = [("authorization", format!("Bearer {token}"))];
        client.request(Identity::Anonymous, "GET", path, &bearer, b"").await.code
    };
    let requests = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    assert_eq!(asks("abcdef.0123456789abcdef", requests).await, 200);
    assert_eq!(asks("abcdef.0123456789abcdef", "/api/v1/nodes").await, 403);
    assert_eq!(asks("abcdef.0123456789abcdee", requests).await, 401);
    let gone = ::client::DeleteOptions::default();
    world.master.delete(&Resource::core("secrets"), "kube-system", name, &gone).await.unwrap();
    assert_eq!(asks("abcdef.0123456789abcdef", requests).await, 401);
}

#[tokio::test]
async fn only_nodes_open_tunnels() {
    let world = world(Arc::new(NoNodes), |_| {}).await;
    let mut client = Client::new(world.admin.clone());
    let upgrade = [("upgrade", "amphipod-tunnel-1".to_owned()), ("connection", "Upgrade".to_owned())];
    for identity in [Identity::Admin, Identity::Anonymous] {
        let answer = client.request(identity, "GET", "/amphipod/tunnel", &upgrade, b"").await;
        assert_eq!(answer.code, 403, "{identity:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn services_that_are_made_at_once_get_addresses_of_their_own() {
    const SERVICES: usize = 11;
    let small = ServiceNetwork::new(&["10.96.0.0/28".parse().unwrap()]).unwrap();
    let world = world(Arc::new(NoNodes), |config| config.services = small).await;
    let made = (0..SERVICES).map(|number| {
        let master = world.master.clone();
        tokio::spawn(async move {
            let spec = json!({"ports": [{"port": 80}]});
            let service = json!({"metadata": {"name": format!("s{number}")}, "spec": spec});
            let made = master.create(&Resource::core("services"), "default", service).await.unwrap();
            made["spec"]["clusterIP"].as_str().unwrap().to_owned()
        })
    });
    let addresses: BTreeSet<String> = futures::future::join_all(made).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(addresses.len(), SERVICES, "{addresses:?}");
}

#[tokio::test]
async fn selectors_have_so_many_requirements_and_no_more() {
    let world = world(Arc::new(NoNodes), |_| {}).await;
    let mut client = Client::new(world.admin.clone());
    let mut list = async |requirements: usize| {
        let path = format!("/api/v1/namespaces/default/pods?labelSelector={}", vec!["a"; requirements].join(","));
        client.request(Identity::Admin, "GET", &path, &[], b"").await
    };
    assert_eq!(list(5_000).await.code, 200);
    let refused = list(5_001).await;
    assert_eq!(refused.code, 400);
    let text = String::from_utf8_lossy(&refused.body).into_owned();
    assert!(text.contains("too many requirements"), "{text}");
}

#[tokio::test]
async fn what_cannot_be_read_is_not_let_grant() {
    const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles";
    const BINDINGS: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
    let world = world(Arc::new(NoNodes), |_| {}).await;
    let group = |plural| Resource::new("rbac.authorization.k8s.io", plural);
    let rules = json!([{"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles", "rolebindings"], "verbs": ["create"]}]);
    let role = json!({"metadata": {"name": "maker"}, "rules": rules});
    world.master.create(&group("roles"), "default", role).await.unwrap();
    let bind = |name: &str, role: &str, user: &str| {
        json!({"metadata": {"name": name}, "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role}})
    };
    world.master.create(&group("rolebindings"), "default", bind("maker", "maker", "eve")).await.unwrap();
    let secrets = json!({"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]});
    let mut eve = world.user("eve");
    // A null is nothing where Go reads a text, and no text here.
    let odd = [
        json!(null),
        json!({"verbs": null}),
        json!({"verbs": ["get"], "apiGroups": null, "resources": ["pods"]}),
        json!({"verbs": ["get"], "apiGroups": [null], "resources": ["pods"]}),
        json!({"verbs": ["get", null], "apiGroups": [""], "resources": ["pods"]}),
        json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": [null]}),
    ];
    for (number, odd) in odd.into_iter().enumerate() {
        let role = json!({"metadata": {"name": format!("odd{number}")}, "rules": [secrets, odd]});
        let answer = eve.request(Identity::Admin, "POST", ROLES, &json_body(), role.to_string().as_bytes()).await;
        assert!(matches!(answer.code, 400 | 403 | 422), "{odd}: {}", answer.code);
        // Whoever may escalate may have made it; then it is not for others to bind.
        if world.master.create(&group("roles"), "default", role).await.is_ok() {
            let binding = bind(&format!("odd{number}"), &format!("odd{number}"), "eve").to_string();
            let answer = eve.request(Identity::Admin, "POST", BINDINGS, &json_body(), binding.as_bytes()).await;
            assert!(matches!(answer.code, 403 | 500), "{odd}: {}", answer.code);
        }
    }
    let plain = json!({"metadata": {"name": "plain"}, "rules": [secrets]});
    let answer = eve.request(Identity::Admin, "POST", ROLES, &json_body(), plain.to_string().as_bytes()).await;
    assert_eq!(answer.code, 403);
}

/// Roles give their rules to whoever selects their labels, so a label grants as much as rules do.
#[tokio::test]
async fn labels_of_roles_grant_nothing_that_is_not_held() {
    const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    let world = world(Arc::new(NoNodes), |_| {}).await;
    let roles = Resource::new("rbac.authorization.k8s.io", "clusterroles");
    let rules = json!([{"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"], "verbs": ["get", "patch", "update"]}]);
    for (name, rules) in [("patcher", rules), ("nothing", json!([]))] {
        world.master.create(&roles, "", json!({"metadata": {"name": name}, "rules": rules})).await.unwrap();
    }
    let sum = json!({"metadata": {"name": "sum"}, "rules": null,
        "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to": "sum"}}]}});
    world.master.create(&roles, "", sum).await.unwrap();
    let binding = json!({"metadata": {"name": "patcher"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "eve"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "patcher"}});
    let bindings = Resource::new("rbac.authorization.k8s.io", "clusterrolebindings");
    world.master.create(&bindings, "", binding).await.unwrap();
    let mut eve = world.user("eve");
    let label = json!({"metadata": {"labels": {"rbac.authorization.k8s.io/aggregate-to-view": "true"}}});
    let aggregating = "must have cluster-admin privileges to use the aggregationRule";
    for (role, change, code, says) in [
        ("cluster-admin", label.clone(), 403, "is attempting to grant RBAC permissions not currently held"),
        ("cluster-admin", json!({"metadata": {"annotations": {"a": "b"}}}), 403, "not currently held"),
        ("sum", label.clone(), 403, aggregating),
        ("sum", json!({"aggregationRule": null}), 403, aggregating),
        ("nothing", json!({"aggregationRule": {"clusterRoleSelectors": [{}]}}), 403, aggregating),
        // What the garbage collector does to an object that goes, and what is held anyway.
        ("cluster-admin", json!({"metadata": {"finalizers": ["example.com/keep"]}}), 200, ""),
        ("patcher", label, 200, ""),
    ] {
        let merge = [("content-type", "application/merge-patch+json".to_owned())];
        let path = format!("{ROLES}/{role}");
        let answer = eve.request(Identity::Admin, "PATCH", &path, &merge, change.to_string().as_bytes()).await;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        assert!(answer.code == code && text.contains(says), "{role} {change}: {} {text}", answer.code);
    }
}

/// A pod without a node goes in two steps, and somebody who writes it in between keeps it from nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_writes_a_pod_while_it_goes_does_not_keep_it() {
    const PODS: Resource = Resource::core("pods");
    let world = world(Arc::new(NoNodes), |_| {}).await;
    let account = json!({"metadata": {"name": "default"}});
    world.master.create(&Resource::core("serviceaccounts"), "default", account).await.unwrap();
    for round in 0..40 {
        let name = format!("p{round}");
        let pod = json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        world.master.create(&PODS, "default", pod).await.unwrap();
        // As a scheduler tells why it has no node for it.
        let writers: Vec<_> = (0..3)
            .map(|writer| {
                let (client, name) = (world.master.clone(), name.clone());
                tokio::spawn(async move {
                    for count in 0.. {
                        let status = json!({"status": {"message": format!("{writer}-{count}")}});
                        if client.patch(&PODS, "default", &name, "status", &status).await.is_err_and(|e| e.code == 404)
                        {
                            return;
                        }
                    }
                })
            })
            .collect();
        let left = Instant::now() + Duration::from_secs(20);
        loop {
            let found = match world.master.get(&PODS, "default", &name).await {
                Ok(found) => found,
                Err(gone) if gone.code == 404 => break,
                Err(error) => panic!("{error}"),
            };
            assert!(found["metadata"]["deletionTimestamp"].is_null(), "deleted, and there for ever");
            let metadata = &found["metadata"];
            let options = ::client::DeleteOptions {
                uid: Some(Uid::of(&found)),
                version: metadata["resourceVersion"].as_str().and_then(|version| version.parse().ok()),
                ..Default::default()
            };
            match world.master.delete(&PODS, "default", &name, &options).await {
                Err(error) if error.code != 409 => panic!("{error}"),
                _ => assert!(Instant::now() < left, "never the version that was just read"),
            }
        }
        for writer in writers {
            writer.await.unwrap();
        }
    }
}

/// Who says nothing, and who only answers pings, is not waited for; who authenticated is, for longer.
#[tokio::test]
async fn connections_on_which_nothing_is_asked_end() {
    let world = world(Arc::new(NoNodes), |_| {}).await;
    for (speaks, asks, seconds) in [(false, false, 29..37), (true, false, 29..37), (true, true, 119..127)] {
        let mut stream = world.admin.stream(Identity::Admin).await;
        let ended = tokio::spawn(async move {
            if !speaks {
                let mut rest = Vec::new();
                let _cut_off = stream.read_to_end(&mut rest).await;
                return;
            }
            let io = hyper_util::rt::TokioIo::new(stream);
            let executor = hyper_util::rt::TokioExecutor::new();
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake::<_, _, Body>(executor, io).await.unwrap();
            let connection = tokio::spawn(connection);
            if asks {
                let request = Request::get("https://localhost/api/v1/namespaces").body(Body::empty()).unwrap();
                let answer = sender.send_request(request).await.unwrap();
                assert_eq!(answer.status(), 200);
                drop(answer);
            }
            let _ended = connection.await;
            drop(sender);
        });
        tokio::time::sleep(Duration::from_millis(300)).await; // until the server has it
        tokio::time::pause();
        let began = Instant::now();
        ended.await.unwrap();
        assert!(seconds.contains(&began.elapsed().as_secs()), "{speaks} {asks}: {:?}", began.elapsed());
        tokio::time::resume();
    }
}
