//! A whole pod on a node that reaches its server over HTTPS with a certificate of its own: the code that runs in one process
//! with the server, elsewhere. Needs root.
#![expect(clippy::unwrap_used, reason = "a test")]

mod support;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent::boundary::{Attachment, NetworkError, PodNetwork};
use agent::{Agent, Config};
use api::uid::Uid;
use client::events::Recorder;
use client::views::{CONFIG_MAPS, LEASES, NODES, PODS};
use client::{Client, DeleteOptions};
use node::outlook::Outlook;
use node::pods::{Follower, follow};
use node::services::Settled;
use node::status::Readiness;
use node::upstream::ApiUpstream;
use node::{heartbeat, registration};
use serde_json::{Value, json};
use support::{Server, soon};
use tokio::task::JoinSet;

/// Pods have their namespaces and addresses, and nobody to talk to.
#[derive(Default)]
struct NoLinks(Mutex<BTreeMap<Uid, (IpAddr, PathBuf)>>);

#[async_trait::async_trait]
impl PodNetwork for NoLinks {
    async fn attach(&self, attachment: &Attachment) -> Result<Vec<String>, NetworkError> {
        let link = (attachment.ips[0], attachment.netns.clone());
        self.0.lock().unwrap().insert(attachment.pod.uid.clone(), link);
        Ok(Vec::new())
    }

    async fn detach(&self, uid: &Uid, _: &[IpAddr]) -> Result<(), NetworkError> {
        self.0.lock().unwrap().remove(uid);
        Ok(())
    }
}

struct Machine {
    config: Config,
    links: Arc<NoLinks>,
    _folder: tempfile::TempDir,
    _registry: images::Registry,
}

impl Machine {
    /// With a registry that has the test images.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let registry = images::start_registry(&address, None, &folder.path().join("registry")).unwrap();
        images::images(&registry.listen, None, &folder.path().join("layouts")).unwrap();
        let registries = folder.path().join("registries.yaml");
        let endpoints = format!("registries:\n  docker.io:\n    endpoints: ['http://{}']\n", registry.listen);
        std::fs::write(&registries, endpoints).unwrap();
        let cgroup = format!("amphipod-node-test-{}", std::process::id());
        let config = Config {
            data_dir: folder.path().join("data"),
            run_dir: folder.path().join("run"),
            node_name: "a".into(),
            node_ips: vec!["192.0.2.1".parse().unwrap()],
            pod_cidrs: vec!["10.244.0.0/24".parse().unwrap()],
            pod_cgroup: format!("{cgroup}/pods"),
            cgroup_root: cgroup,
            cluster_dns: None,
            cluster_domain: "cluster.local".into(),
            registries: Some(registries),
            pod_max_pids: Some(100),
            allowed_unsafe_sysctls: Vec::new(),
        };
        Self { config, links: Arc::default(), _folder: folder, _registry: registry }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let (config, links) = (self.config.clone(), self.links.clone());
        let cleaned = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(agent::remove_everything(config, links))
        });
        let cleaned = cleaned.join().unwrap();
        assert!(std::thread::panicking() || cleaned.is_ok(), "{cleaned:?}");
    }
}

async fn until(what: &str, admin: &Client, test: impl Fn(&Value) -> bool) {
    let reached = async {
        loop {
            let pod = admin.get(&PODS, "default", "p").await;
            if test(pod.as_ref().unwrap_or(&Value::Null)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon(what, reached).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_runs_on_a_node_that_is_elsewhere() {
    let (server, machine) = (Server::start().await, Machine::new());
    let (admin, client) = (server.admin.clone(), Client::new(server.remote_node("a")));
    let mut tasks = JoinSet::new();
    let (mut outlook, changed) = Outlook::open(&client, "a", &mut tasks);
    let facts =
        json!({"capacity": {"cpu": "2", "pods": "10"}, "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]});
    registration::register("a", None, &client, &facts).await.unwrap();
    // As the control plane gives it.
    let range = json!({"spec": {"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24"]}});
    admin.patch(&NODES, "", "a", "", &range).await.unwrap();
    let given = registration::ranges("a", &mut outlook.own).await.unwrap();
    assert_eq!(given, ["10.244.0.0/24".parse().unwrap()]);
    let recorder = Recorder::new(client.clone(), "kubelet", "a");
    let upstream = ApiUpstream::new(client.clone(), recorder, outlook.clone(), &mut tasks);
    let agent = Agent::start(machine.config.clone(), Arc::new(upstream), machine.links.clone()).await.unwrap();
    let (runner, own) = (Arc::new(agent), outlook.own.clone());
    let settled = Settled::nothing();
    let follower =
        Follower { client: client.clone(), node: "a".into(), runner: runner.clone(), outlook, changed, settled };
    tasks.spawn(follow(follower));
    heartbeat::renew_once("a", &own, &client).await.unwrap();
    registration::report("a", &client, &facts, Readiness::Ready).await.unwrap();
    let node = admin.get(&NODES, "", "a").await.unwrap();
    assert!(
        node["status"]["conditions"].as_array().unwrap().iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
    );
    let lease = admin.get(&LEASES, "kube-node-lease", "a").await.unwrap();
    assert_eq!(lease["metadata"]["ownerReferences"][0]["uid"], node["metadata"]["uid"]);

    // The account's token and the cluster's certificate come over the network too.
    let map = |name: &str, data: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data});
    for map in [map("kube-root-ca.crt", json!({"ca.crt": "x"})), map("m", json!({"k": "one"}))] {
        admin.create(&CONFIG_MAPS, "default", map).await.unwrap();
    }
    let script = "test -s /var/run/secrets/kubernetes.io/serviceaccount/token || exit 1; \
        while [ \"$(cat /m/k)\" != two ]; do sleep 0.05; done";
    let spec = json!({"nodeName": "a", "restartPolicy": "Never", "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "c", "image": "busybox", "command": ["sh", "-c", script],
            "volumeMounts": [{"name": "m", "mountPath": "/m"}]}],
        "volumes": [{"name": "m", "configMap": {"name": "m"}}]});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec});
    admin.create(&PODS, "default", pod).await.unwrap();
    until("running", &admin, |pod| pod["status"]["phase"] == "Running" && pod["status"]["podIP"].is_string()).await;
    admin.patch(&CONFIG_MAPS, "default", "m", "", &json!({"data": {"k": "two"}})).await.unwrap();
    until("the end", &admin, |pod| pod["status"]["phase"] == "Succeeded").await;
    admin.delete(&PODS, "default", "p", &DeleteOptions::default()).await.unwrap();
    until("removed", &admin, Value::is_null).await;
    tasks.shutdown().await;
    soon("nobody uses the agent", async {
        while Arc::strong_count(&runner) > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    Arc::into_inner(runner).unwrap().shut_down().await;
}
