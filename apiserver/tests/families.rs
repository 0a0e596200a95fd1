//! Services on a cluster with ranges of both families: who gets which addresses, and how they come and go.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::sync::Arc;

use apiserver::engine::ServiceNetwork;
use apiserver::identity::{MASTERS, User};
use apiserver::nodes::NoNodes;
use apiserver::server::{Config, Server};
use client::{Client, Resource};
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

struct World {
    client: Client,
    _stop: DropGuard,
    _folder: tempfile::TempDir,
}

async fn world() -> World {
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config::on_loopback(folder.path().join("store.redb"));
    let ranges = ["10.96.0.0/24", "fd00:10:96::/120"].map(|range| range.parse().unwrap());
    config.services = ServiceNetwork::new(&ranges).unwrap();
    let server = Server::open(&config, Arc::new(NoNodes)).await.unwrap();
    let client = server.client(User::new("tester", &[MASTERS]), "tester");
    let stop = CancellationToken::new();
    tokio::spawn(server.serve(stop.clone()));
    World { client, _stop: stop.drop_guard(), _folder: folder }
}

const SERVICES: Resource = Resource::core("services");
const ADDRESSES: Resource = Resource::new("networking.k8s.io", "ipaddresses");

impl World {
    async fn make(&self, name: &str, mut spec: Value) -> Result<Value, String> {
        spec["selector"] = json!({"app": name});
        spec["ports"] = json!([{"port": 80}]);
        let service = json!({"metadata": {"name": name}, "spec": spec});
        self.client.create(&SERVICES, "default", service).await.map_err(|status| status.message)
    }

    async fn change(&self, name: &str, spec: Value) -> Result<Value, String> {
        let patch = json!({"spec": spec});
        self.client.patch(&SERVICES, "default", name, "", &patch).await.map_err(|status| status.message)
    }

    /// Whether an address is given to somebody.
    async fn is_taken(&self, address: &str) -> bool {
        self.client.get(&ADDRESSES, "", address).await.is_ok()
    }
}

fn texts(service: &Value, name: &str) -> Vec<String> {
    service["spec"][name].as_array().into_iter().flatten().map(|text| text.as_str().unwrap().to_owned()).collect()
}

fn families(service: &Value) -> (String, Vec<bool>) {
    let addresses = texts(service, "clusterIPs");
    assert_eq!(service["spec"]["clusterIP"], addresses[0]);
    let named = texts(service, "ipFamilies").iter().map(|name| name == "IPv6").collect::<Vec<_>>();
    assert_eq!(addresses.iter().map(|address| address.contains(':')).collect::<Vec<_>>(), named);
    (service["spec"]["ipFamilyPolicy"].as_str().unwrap().to_owned(), named)
}

#[tokio::test]
async fn services_get_an_address_of_each_family_they_ask_for() {
    let world = world().await;
    for (name, spec, policy, wanted) in [
        ("plain", json!({}), "SingleStack", vec![false]),
        ("six", json!({"ipFamilies": ["IPv6"]}), "SingleStack", vec![true]),
        ("prefers", json!({"ipFamilyPolicy": "PreferDualStack"}), "PreferDualStack", vec![false, true]),
        (
            "requires",
            json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]}),
            "RequireDualStack",
            vec![true, false],
        ),
        ("asks", json!({"clusterIP": "fd00:10:96::77"}), "SingleStack", vec![true]),
    ] {
        let made = world.make(name, spec).await.unwrap();
        assert_eq!(families(&made), (policy.to_owned(), wanted), "{name}");
        for address in texts(&made, "clusterIPs") {
            assert!(world.is_taken(&address).await, "{name}: {address}");
        }
    }
    for (name, spec, said) in [
        ("taken", json!({"clusterIP": "fd00:10:96::77"}), "provided IP is already allocated"),
        ("outside", json!({"clusterIP": "fd00::5"}), "the provided network does not match the current range"),
        (
            "two",
            json!({"ipFamilies": ["IPv4", "IPv6"]}),
            "must be RequireDualStack or PreferDualStack when multiple `ipFamilies`",
        ),
        (
            "twice",
            json!({"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv4", "IPv4"]}),
            "spec.ipFamilies[1]: Duplicate value",
        ),
        (
            "other",
            json!({"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv4"], "clusterIP": "fd00:10:96::8", "clusterIPs": ["fd00:10:96::8"]}),
            "expected an IPv4 value as indicated by `ipFamilies[0]`",
        ),
    ] {
        let refused = world.make(name, spec).await.unwrap_err();
        assert!(refused.contains(said), "{name}: {refused}");
    }
}

#[tokio::test]
async fn a_second_address_comes_and_goes() {
    let world = world().await;
    let first = texts(&world.make("web", json!({})).await.unwrap(), "clusterIPs");
    let both = world.change("web", json!({"ipFamilyPolicy": "PreferDualStack"})).await.unwrap();
    assert_eq!(families(&both), ("PreferDualStack".to_owned(), vec![false, true]));
    let both = texts(&both, "clusterIPs");
    assert_eq!(both[0], first[0]);
    let refused =
        world.change("web", json!({"clusterIPs": [both[1], both[0]], "clusterIP": both[1]})).await.unwrap_err();
    assert!(refused.contains("may not change once set"), "{refused}");
    let one = world.change("web", json!({"ipFamilyPolicy": "SingleStack"})).await.unwrap();
    assert_eq!((families(&one), texts(&one, "clusterIPs")), (("SingleStack".to_owned(), vec![false]), first.clone()));
    assert!(world.is_taken(&first[0]).await && !world.is_taken(&both[1]).await);
    let named = json!({"type": "ExternalName", "externalName": "elsewhere.example", "clusterIP": null, "clusterIPs": null,
        "ipFamilies": null, "ipFamilyPolicy": null});
    world.change("web", named).await.unwrap();
    assert!(!world.is_taken(&first[0]).await);
}
