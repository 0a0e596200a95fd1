//! What pods mount, from an API server to the node that runs them, under the node's own identity.
#![expect(clippy::unwrap_used, reason = "a test")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use agent::boundary::PodRef;
use api::references::Referent;
use api::uid::Uid;
use client::views::{CONFIG_MAPS, PODS, SECRETS};
use client::{Client, DeleteOptions};
use node::outlook::Outlook;
use node::pods::{Follower, follow};
use node::services::Settled;
use serde_json::{Value, json};
use support::{Gate, Noted, Server, soon};
use tokio::task::JoinSet;

/// The node's side of a server, without a machine.
struct Node {
    outlook: Outlook,
    runner: Arc<Noted>,
    _tasks: JoinSet<()>,
}

impl Node {
    fn start(client: Client) -> Self {
        let mut tasks = JoinSet::new();
        let (outlook, changed) = Outlook::open(&client, "a", &mut tasks);
        let runner = Arc::new(Noted::default());
        let follower = Follower {
            client,
            node: "a".into(),
            runner: runner.clone(),
            outlook: outlook.clone(),
            changed,
            settled: Settled::nothing(),
        };
        tasks.spawn(follow(follower));
        Self { outlook, runner, _tasks: tasks }
    }

    async fn map(&self, pod: &PodRef, name: &str) -> Result<String, api::status::Status> {
        let map = self.outlook.content.get(Referent::ConfigMap, pod, name).await?;
        Ok(map["data"]["k"].as_str().unwrap().to_owned())
    }

    async fn watches(&self, count: usize) {
        let reached = async {
            while self.outlook.content.watched() != count {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        soon(&format!("{count} watched objects"), reached).await;
    }
}

fn map(name: &str, value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": value}})
}

async fn set(admin: &Client, name: &str, value: &str) {
    admin.patch(&CONFIG_MAPS, "default", name, "", &json!({"data": {"k": value}})).await.unwrap();
}

/// A pod on the node, which mounts a map.
async fn pod(admin: &Client, node: &Node, name: &str, map: &str) -> PodRef {
    let spec = json!({"nodeName": "a", "automountServiceAccountToken": false, "containers": [{"name": "c", "image": "i"}],
        "volumes": [{"name": "v", "configMap": {"name": map}}]});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec});
    let made = admin.create(&PODS, "default", pod).await.unwrap();
    let uid = Uid::of(&made);
    node.runner.wait(&format!("sync {uid}")).await;
    PodRef { namespace: "default".into(), name: name.into(), uid }
}

async fn remove(admin: &Client, pod: &PodRef) {
    let at_once = DeleteOptions { grace_seconds: Some(0), ..DeleteOptions::default() };
    admin.delete(&PODS, "default", &pod.name, &at_once).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_reaches_the_pods_that_mount_it_and_no_others() {
    let server = Server::start().await;
    for (way, client) in server.node_clients("a") {
        let node = Node::start(client);
        for name in ["one", "two"] {
            server.admin.create(&CONFIG_MAPS, "default", map(name, "old")).await.unwrap();
        }
        let first = pod(&server.admin, &node, "first", "one").await;
        let second = pod(&server.admin, &node, "second", "two").await;
        let third = pod(&server.admin, &node, "third", "one").await;
        node.watches(2).await;
        for (pod, name) in [(&first, "one"), (&second, "two"), (&third, "one")] {
            assert_eq!(node.map(pod, name).await.unwrap(), "old", "{way}");
        }
        node.runner.take();
        set(&server.admin, "one", "new").await;
        node.runner.wait(&format!("content {}", first.uid)).await;
        node.runner.wait(&format!("content {}", third.uid)).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let told = node.runner.take();
        assert!(!told.contains(&format!("content {}", second.uid)), "{way}: {told:?}");
        assert_eq!(node.map(&first, "one").await.unwrap(), "new", "{way}");
        // It goes and comes back: both are told, and what is not there is said not to be.
        server.admin.delete(&CONFIG_MAPS, "default", "one", &DeleteOptions::default()).await.unwrap();
        node.runner.wait(&format!("content {}", first.uid)).await;
        assert_eq!(node.map(&first, "one").await.unwrap_err().code, 404, "{way}");
        node.runner.take();
        server.admin.create(&CONFIG_MAPS, "default", map("one", "again")).await.unwrap();
        node.runner.wait(&format!("content {}", first.uid)).await;
        assert_eq!(node.map(&first, "one").await.unwrap(), "again", "{way}");

        for gone in [&first, &second] {
            remove(&server.admin, gone).await;
        }
        node.watches(1).await;
        remove(&server.admin, &third).await;
        node.watches(0).await;
        for name in ["one", "two"] {
            server.admin.delete(&CONFIG_MAPS, "default", name, &DeleteOptions::default()).await.unwrap();
        }
    }
}

/// The watch of a map is late; a pod that was made after the map's change gets the change all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_pod_gets_is_no_older_than_the_pod() {
    let server = Server::start().await;
    let gate = Gate::new("configmaps");
    let node = Node::start(gate.before(server.remote_node("a")));
    server.admin.create(&CONFIG_MAPS, "default", map("one", "old")).await.unwrap();
    let first = pod(&server.admin, &node, "first", "one").await;
    assert_eq!(node.map(&first, "one").await.unwrap(), "old");
    gate.close();
    set(&server.admin, "one", "new").await;
    assert_eq!(node.map(&first, "one").await.unwrap(), "old", "the test's own premise: the watch is late");
    let second = pod(&server.admin, &node, "second", "one").await;
    assert_eq!(node.map(&second, "one").await.unwrap(), "new");
    // A pod that was met with the first state is told of what it may have missed: that is over by now.
    node.runner.take();
    gate.open();
    node.runner.wait(&format!("content {}", first.uid)).await;
    assert_eq!(node.map(&first, "one").await.unwrap(), "new");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_of_nobodys_pod_is_not_shown() {
    let (server, name) = (Server::start().await, "s");
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"k": "v"}});
    server.admin.create(&SECRETS, "default", secret).await.unwrap();
    for (way, client) in server.node_clients("a") {
        let node = Node::start(client.clone());
        let stranger = PodRef { namespace: "default".into(), name: "x".into(), uid: Uid::new("x") };
        let refused = node.outlook.content.get(Referent::Secret, &stranger, name).await.unwrap_err();
        let why = "no relationship found between node 'a' and this object";
        assert!(refused.code == 403 && refused.message.ends_with(why), "{way}: {refused}");
        for selector in [client::Selector::default(), client::Selector::fields(format!("metadata.name={name}"))] {
            assert_eq!(client.list(&SECRETS, "default", &selector).await.unwrap_err().code, 403, "{way}");
            assert_eq!(client.watch(&SECRETS, "default", &selector).await.err().unwrap().code, 403, "{way}");
        }
    }
}
