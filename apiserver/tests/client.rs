//! One contract for both ways into the API, in process and over HTTPS; then what only a network can do to a client.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use ::client::https::pin::{Fingerprint, PinError, authority_of};
use ::client::https::{Config as HttpsConfig, Https, Identity};
use ::client::{
    Client, DeleteOptions, Deleted, Event, EventStream, Informer, Key, Propagation, Resource, Selector, View, Wrote,
};
use api::status::Status;
use api::uid::Uid;
use api::view::Meta;
use apiserver::StoreError;
use apiserver::identity::{AUTHENTICATED, MASTERS, User};
use apiserver::nodes::NoNodes;
use apiserver::server::{Config, Server, ServerError};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

static MAPS: Resource = Resource::core("configmaps");
static PODS: Resource = Resource::core("pods");
const PATIENCE: Duration = Duration::from_secs(30);

/// Both ways for one user.
struct World {
    clients: [(&'static str, Client); 2],
    https: HttpsConfig,
    /// In process: whoever it is to be.
    as_user: Box<dyn Fn(&str) -> Client + Send + Sync>,
    as_remote: Box<dyn Fn(&str) -> Client + Send + Sync>,
    _stop: DropGuard,
    _folder: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = open(folder.path()).await;
        Self::serving(server, folder)
    }

    fn serving(server: Server, folder: tempfile::TempDir) -> Self {
        let authority = server.authority().clone();
        let address = server.address();
        let config = move |name: &str, groups: &[&str]| {
            let identity = authority.client(name, groups).unwrap();
            HttpsConfig {
                server: format!("localhost:{}", address.port()),
                ca: authority.ca_certificate.clone(),
                identity: Identity::Certificate { chain: identity.certificate, key: identity.key },
                manager: "tester".into(),
            }
        };
        let https = config("tester", &[MASTERS]);
        let local = server.client(User::new("tester", &[MASTERS]), "tester");
        let clients = [("in process", local), ("over HTTPS", remote(&https))];
        let as_remote = Box::new(move |name: &str| remote(&config(name, &[])));
        let stop = CancellationToken::new();
        let guard = stop.clone().drop_guard();
        let nobody: Vec<(String, Client)> = ["mallory", "system:serviceaccount:default:default"]
            .iter()
            .map(|name| ((*name).to_owned(), server.client(User::new(*name, &[AUTHENTICATED]), "tester")))
            .collect();
        let nobody: BTreeMap<String, Client> = nobody.into_iter().collect();
        let as_user = Box::new(move |name: &str| nobody[name].clone());
        tokio::spawn(server.serve(stop));
        Self { clients, https, as_user, as_remote, _stop: guard, _folder: folder }
    }

    fn local(&self) -> &Client {
        &self.clients[0].1
    }
}

async fn open(folder: &std::path::Path) -> Server {
    let config = Config::on_loopback(folder.join("store.redb"));
    let opened = async {
        loop {
            match Server::open(&config, Arc::new(NoNodes)).await {
                Ok(server) => return server,
                // The one before lets go of the file a moment after it is dropped.
                Err(ServerError::Store(StoreError::InUse { .. })) => {
                    tokio::time::sleep(Duration::from_millis(20)).await
                }
                Err(error) => panic!("{error}"),
            }
        }
    };
    soon("the store", opened).await
}

fn remote(config: &HttpsConfig) -> Client {
    Client::new(Https::new(config.clone()).unwrap())
}

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"app": name}}, "data": {"n": "0"}})
}

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

async fn make(client: &Client, resource: &Resource, object: Value) -> Value {
    client.create(resource, "default", object).await.unwrap()
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("never: {what}"))
}

/// Everything up to the end of the first state, then as many as are asked for.
async fn events(stream: &mut Box<dyn EventStream>, wanted: usize) -> Vec<Event> {
    let mut all = Vec::new();
    while all.len() < wanted {
        all.extend(soon("the next event", stream.next()).await.unwrap());
    }
    all
}

fn told(events: &[Event]) -> Vec<String> {
    let tell = |event: &Event| match event {
        Event::Applied(item) => format!("applied {}", item.key),
        Event::Deleted(item) => format!("deleted {}", item.key),
        Event::Synced(_) => "synced".to_owned(),
        Event::Bookmark(_) => "bookmark".to_owned(),
    };
    events.iter().map(tell).collect()
}

/// The contract's parts take a client and a name that nobody else uses.
macro_rules! contract {
    ($($name:ident),* $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let world = World::new().await;
            for (index, (way, client)) in world.clients.iter().enumerate() {
                println!("{way}");
                parts::$name(&world, client, &format!("t{index}")).await;
            }
        }
    )*};
}

contract! {
    objects_are_made_read_changed_and_deleted,
    refusals_are_the_servers_own,
    a_list_is_whole_and_selected,
    a_watch_tells_the_state_and_then_every_change,
    changes_at_the_same_time_all_count,
    a_stale_patch_is_a_conflict,
    what_a_deletion_did_is_said,
    pods_are_bound_and_tokens_made,
    who_may_only_patch_changes_by_patches,
    an_informer_shows_own_writes,
}

mod parts {
    use super::*;

    pub async fn objects_are_made_read_changed_and_deleted(_: &World, client: &Client, name: &str) {
        let made = make(client, &MAPS, map(name)).await;
        assert_eq!(client.get(&MAPS, "default", name).await.unwrap(), made);
        assert_eq!(made["metadata"]["managedFields"][0]["manager"], "tester");
        let change = |current: &Value| {
            let mut next = current.clone();
            next["data"]["n"] = json!("1");
            Ok(next)
        };
        let changed = client.update(&MAPS, "default", name, "", change).await.unwrap();
        assert_eq!(changed["data"]["n"], "1");
        let same = client.update(&MAPS, "default", name, "", change).await.unwrap();
        assert_eq!(same["metadata"]["resourceVersion"], changed["metadata"]["resourceVersion"], "nothing was written");
        let patched = client.patch(&MAPS, "default", name, "", &json!({"data": {"n": null, "m": "2"}})).await.unwrap();
        assert_eq!(patched["data"], json!({"m": "2"}));
        client.delete(&MAPS, "default", name, &DeleteOptions::default()).await.unwrap();
        assert_eq!(client.get(&MAPS, "default", name).await.unwrap_err().code, 404);
    }

    pub async fn refusals_are_the_servers_own(world: &World, client: &Client, name: &str) {
        make(client, &MAPS, map(name)).await;
        let again = client.create(&MAPS, "default", map(name)).await.unwrap_err();
        assert_eq!(again, Status::already_exists("", "configmaps", name));
        let absent = client.get(&MAPS, "default", "absent").await.unwrap_err();
        assert_eq!(absent, Status::not_found("", "configmaps", "absent"));
        let invalid = client.create(&MAPS, "default", map("No Name")).await.unwrap_err();
        assert_eq!((invalid.code, invalid.reason), (422, "Invalid"));
        assert_eq!(invalid.details.unwrap().causes[0].field, "metadata.name");
        let nowhere = client.get(&Resource::named("example.com", "v1", "widgets"), "default", "w").await.unwrap_err();
        assert_eq!(nowhere.code, 404);
        let options = DeleteOptions { uid: Some(Uid::new("other")), ..DeleteOptions::default() };
        assert_eq!(client.delete(&MAPS, "default", name, &options).await.unwrap_err().reason, "Conflict");
        let mallory = if name == "t0" { (world.as_user)("mallory") } else { (world.as_remote)("mallory") };
        let forbidden = mallory.get(&MAPS, "default", name).await.unwrap_err();
        assert_eq!(
            forbidden.message,
            format!(
                "configmaps \"{name}\" is forbidden: User \"mallory\" cannot get resource \"configmaps\" in API group \"\" in the namespace \"default\""
            )
        );
        assert_eq!(mallory.watch(&MAPS, "", &Selector::default()).await.err().unwrap().code, 403);
    }

    pub async fn a_list_is_whole_and_selected(_: &World, client: &Client, name: &str) {
        let made = (0..603).map(|index| make(client, &MAPS, map(&format!("{name}-{index:04}"))));
        futures::future::join_all(made).await;
        let all = client.list(&MAPS, "default", &Selector::default()).await.unwrap();
        let own = all.items.iter().filter(|item| item.key.name.starts_with(name)).count();
        assert_eq!(own, 603);
        assert!(all.items.iter().all(|item| item.revision > 0 && item.revision <= all.revision));
        let one = Selector { labels: format!("app={name}-0007"), ..Selector::default() };
        let found = client.list(&MAPS, "", &one).await.unwrap();
        assert_eq!(found.items.len(), 1);
        assert_eq!(found.items[0].value()["data"], json!({"n": "0"}));
        let named = Selector::fields(format!("metadata.name={name}-0008"));
        assert_eq!(
            client.list(&MAPS, "", &named).await.unwrap().items[0].key,
            Key::new("default", &format!("{name}-0008"))
        );
        let wrong = Selector::fields("spec.nothing=x");
        assert_eq!(client.list(&MAPS, "", &wrong).await.unwrap_err().code, 400);
    }

    pub async fn a_watch_tells_the_state_and_then_every_change(_: &World, client: &Client, name: &str) {
        let own = Selector { labels: format!("app={name}"), ..Selector::default() };
        make(client, &MAPS, map(name)).await;
        let mut stream = client.watch(&MAPS, "default", &own).await.unwrap();
        let first = events(&mut stream, 2).await;
        assert_eq!(told(&first), [format!("applied default/{name}"), "synced".into()]);
        let changed = client.patch(&MAPS, "default", name, "", &json!({"data": {"n": "1"}})).await.unwrap();
        let then = events(&mut stream, 1).await;
        let Event::Applied(item) = &then[0] else { panic!("{then:?}") };
        assert_eq!(item.value(), changed);
        let Deleted::Gone { .. } = client.delete(&MAPS, "default", name, &DeleteOptions::default()).await.unwrap()
        else {
            panic!()
        };
        let last = events(&mut stream, 1).await;
        assert_eq!(told(&last), [format!("deleted default/{name}")]);
        // From where the first state was: the same changes.
        let mut again = client.watch_after(&MAPS, "default", &own, first[1].revision()).await.unwrap();
        let same = events(&mut again, 2).await;
        assert_eq!(told(&same), [told(&then), told(&last)].concat());
        assert_eq!(same[1].revision(), last[0].revision());
    }

    pub async fn changes_at_the_same_time_all_count(_: &World, client: &Client, name: &str) {
        make(client, &MAPS, map(name)).await;
        let count = |current: &Value| {
            let mut next = current.clone();
            let n: u32 = current["data"]["n"].as_str().unwrap().parse().unwrap();
            next["data"]["n"] = json!((n + 1).to_string());
            Ok(next)
        };
        let all = (0..6).map(|_| client.update(&MAPS, "default", name, "", count));
        futures::future::try_join_all(all).await.unwrap();
        assert_eq!(client.get(&MAPS, "default", name).await.unwrap()["data"]["n"], "6");
    }

    pub async fn a_stale_patch_is_a_conflict(_: &World, client: &Client, name: &str) {
        let made = make(client, &MAPS, map(name)).await;
        let patch = json!({"metadata": {"resourceVersion": made["metadata"]["resourceVersion"]}, "data": {"n": "1"}});
        client.patch(&MAPS, "default", name, "", &patch).await.unwrap();
        let patch = json!({"metadata": {"resourceVersion": made["metadata"]["resourceVersion"]}, "data": {"n": "2"}});
        assert_eq!(client.patch(&MAPS, "default", name, "", &patch).await.unwrap_err().reason, "Conflict");
    }

    pub async fn what_a_deletion_did_is_said(_: &World, client: &Client, name: &str) {
        let made = make(client, &MAPS, map(name)).await;
        let deleted = client.delete(&MAPS, "default", name, &DeleteOptions::default()).await.unwrap();
        let Deleted::Gone { uid, .. } = deleted else { panic!("{deleted:?}") };
        assert_eq!(made["metadata"]["uid"], uid);
        let mut held = map(name);
        held["metadata"]["finalizers"] = json!(["example.com/held"]);
        make(client, &MAPS, held).await;
        let options = DeleteOptions { propagation: Some(Propagation::Background), ..DeleteOptions::default() };
        let deleted = client.delete(&MAPS, "default", name, &options).await.unwrap();
        let now = client.get(&MAPS, "default", name).await.unwrap();
        let revision = now["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
        assert_eq!(deleted, Deleted::Going { revision });
    }

    pub async fn pods_are_bound_and_tokens_made(world: &World, client: &Client, name: &str) {
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
        let accounts = Resource::core("serviceaccounts");
        match world.local().create(&accounts, "default", account).await {
            Err(status) if status.code != 409 => panic!("{status}"),
            _ => {}
        }
        let made = make(client, &PODS, pod(name)).await;
        let uid = Uid::of(&made);
        assert_eq!(client.bind("default", name, &Uid::new("other"), "n").await.unwrap_err().code, 409);
        client.bind("default", name, &uid, "n").await.unwrap();
        assert_eq!(client.get(&PODS, "default", name).await.unwrap()["spec"]["nodeName"], "n");
        let answer = client.token("default", "default", json!({"expirationSeconds": 600})).await.unwrap();
        let token = answer["status"]["token"].as_str().unwrap().to_owned();
        // With it, another client is that account.
        let as_account = remote(&HttpsConfig { identity: Identity::Token(token), ..world.https.clone() });
        let refused = as_account.get(&PODS, "default", name).await.unwrap_err();
        assert!(refused.message.contains("system:serviceaccount:default:default"), "{refused}");
    }

    /// Some of the usual roles grant no update.
    pub async fn who_may_only_patch_changes_by_patches(world: &World, client: &Client, name: &str) {
        make(client, &MAPS, map(name)).await;
        let rbac = |plural: &'static str| Resource::new("rbac.authorization.k8s.io", plural);
        let rules = json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "patch"]}]);
        let role = json!({"metadata": {"name": "patcher"}, "rules": rules});
        let binding = json!({"metadata": {"name": "patcher"}, "subjects": [{"kind": "User", "name": "mallory"}],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "patcher"}});
        for (plural, object) in [("clusterroles", role), ("clusterrolebindings", binding)] {
            match world.local().create(&rbac(plural), "", object).await {
                Err(status) if status.code != 409 => panic!("{status}"),
                _ => {}
            }
        }
        let mallory = if name == "t0" { (world.as_user)("mallory") } else { (world.as_remote)("mallory") };
        let change = |current: &Value| {
            let mut next = current.clone();
            next["data"] = json!({"m": "1"});
            Ok(next)
        };
        let changed = mallory.update(&MAPS, "default", name, "", change).await.unwrap();
        assert_eq!(changed["data"], json!({"m": "1"}));
    }

    pub async fn an_informer_shows_own_writes(_: &World, client: &Client, name: &str) {
        let maps = Arc::new(Informer::<Map>::default());
        let following = tokio::spawn(maps.clone().run(client.clone()));
        soon("the first state", maps.caught_up(0)).await;
        for round in 0..20 {
            let made = make(client, &MAPS, map(name)).await;
            soon("what was made", maps.shows(&Wrote::of(&made))).await;
            let seen = maps.get("default", name).unwrap();
            assert_eq!(made["metadata"]["uid"], seen.metadata.uid, "round {round}");
            let deleted = client.delete(&MAPS, "default", name, &DeleteOptions::default()).await.unwrap();
            soon("its end", maps.shows(&deleted.wrote(Key::new("default", name)))).await;
            assert!(maps.get("default", name).is_none(), "round {round}");
        }
        following.abort();
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Map {
    metadata: Meta,
}

impl View for Map {
    const RESOURCE: Resource = Resource::core("configmaps");

    fn uid(&self) -> &Uid {
        &self.metadata.uid
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_ways_name_the_same_kinds() {
    let world = World::new().await;
    // One whose objects are stored in a version that is not served, and one that its group's first version does not have.
    let older = Resource::named("things.example", "v1beta1", "others");
    for (plural, kind, versions) in [
        ("things", "Thing", json!([version("v1beta1", Use::Stored), version("v1", Use::Served)])),
        ("others", "Other", json!([version("v1beta1", Use::Both)])),
    ] {
        let names =
            json!({"plural": plural, "singular": kind.to_lowercase(), "kind": kind, "listKind": format!("{kind}List")});
        let spec = json!({"group": "things.example", "scope": "Namespaced", "names": names, "versions": versions});
        let definition = json!({"metadata": {"name": format!("{plural}.things.example")}, "spec": spec});
        let definitions = Resource::new("apiextensions.k8s.io", "customresourcedefinitions");
        world.clients[0].1.create(&definitions, "", definition).await.unwrap();
    }
    let defined = async {
        for resource in [older, Resource::new("things.example", "things")] {
            while world.clients[0].1.list(&resource, "", &Selector::default()).await.is_err() {
                tokio::task::yield_now().await;
            }
        }
    };
    soon("both definitions", defined).await;
    let mut all = Vec::new();
    for (_, client) in &world.clients {
        let mut kinds: Vec<_> = client.kinds().await.unwrap();
        kinds.sort_by(|a, b| a.resource.cmp(&b.resource));
        all.push(kinds);
    }
    let names = |kinds: &[client::ServedKind]| -> Vec<(Resource, String, bool)> {
        kinds.iter().map(|kind| (kind.resource.clone(), kind.kind.clone(), kind.namespaced)).collect()
    };
    assert_eq!(names(&all[0]), names(&all[1]));
    // Each stored collection is read once, whichever of its versions a way prefers.
    let read = |kinds: &[client::ServedKind]| -> Vec<String> {
        let mut read: Vec<_> = kinds.iter().filter(|kind| kind.preferred).map(|kind| kind.kind.clone()).collect();
        read.sort();
        read
    };
    assert_eq!(read(&all[0]), read(&all[1]));
    for once in ["Deployment", "Thing", "Other"] {
        assert_eq!(read(&all[0]).iter().filter(|kind| *kind == once).count(), 1, "{once}");
    }
}

/// What a version of a defined kind is there for.
#[derive(PartialEq)]
enum Use {
    Stored,
    Served,
    Both,
}

fn version(name: &str, of: Use) -> Value {
    let (served, storage) = (of != Use::Stored, of != Use::Served);
    json!({"name": name, "served": served, "storage": storage, "schema": {"openAPIV3Schema": {"type": "object"}}})
}

/// A server that was started anew knows nothing of what was before: only the whole state goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revision_before_the_history_is_gone_either_way() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path()).await;
    let before = first.client(User::new("tester", &[MASTERS]), "tester");
    for index in 0..3 {
        make(&before, &MAPS, map(&format!("m{index}"))).await;
    }
    drop((first, before));
    let world = World::serving(open(folder.path()).await, folder);
    for (way, client) in &world.clients {
        let told = match client.watch_after(&MAPS, "default", &Selector::default(), 1).await {
            Ok(mut stream) => soon("its end", stream.next()).await.map(drop),
            Err(status) => Err(status),
        };
        let status = told.unwrap_err();
        assert_eq!((status.code, status.reason), (410, "Expired"), "{way}");
    }
}

/// A wire that can be cut.
struct Wire {
    address: String,
    cut: watch::Sender<u32>,
}

impl Wire {
    async fn to(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("localhost:{}", listener.local_addr().unwrap().port());
        let (cut, state) = watch::channel(0);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (server, mut cuts) = (server.clone(), state.clone());
                tokio::spawn(async move {
                    cuts.mark_unchanged();
                    let mut far = TcpStream::connect(server).await.unwrap();
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        _ = cuts.changed() => {}
                    }
                });
            }
        });
        Self { address, cut }
    }

    fn cut(&self) {
        self.cut.send_modify(|count| *count += 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_outlives_its_connections() {
    let world = World::new().await;
    let wire = Wire::to(world.https.server.clone()).await;
    let client = remote(&HttpsConfig { server: wire.address.clone(), ..world.https.clone() });
    let mut stream = client.watch(&MAPS, "default", &Selector::default()).await.unwrap();
    let mut seen = told(&events(&mut stream, 1).await);
    assert_eq!(seen.pop().as_deref(), Some("synced"));
    let writer = world.local().clone();
    let writing = tokio::spawn(async move {
        for index in 0..60 {
            make(&writer, &MAPS, map(&format!("m{index:02}"))).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let mut names = Vec::new();
    while names.len() < 60 {
        let next = soon("the next event", stream.next()).await.unwrap();
        names.extend(told(&next).into_iter().filter(|event| event != "bookmark"));
        if names.len() % 10 == 9 {
            wire.cut();
        }
    }
    writing.await.unwrap();
    let expected: Vec<_> = (0..60).map(|index| format!("applied default/m{index:02}")).collect();
    assert_eq!(names, expected, "each once, in order");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_take_a_new_connection_when_theirs_is_gone() {
    let world = World::new().await;
    let wire = Wire::to(world.https.server.clone()).await;
    let client = remote(&HttpsConfig { server: wire.address.clone(), ..world.https.clone() });
    make(&client, &MAPS, map("a")).await;
    for _ in 0..5 {
        wire.cut();
        soon("an answer", client.get(&MAPS, "default", "a")).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_pinned_authority_is_believed() {
    let (world, other) = (World::new().await, World::new().await);
    let client = remote(&HttpsConfig { ca: other.https.ca.clone(), ..world.https.clone() });
    let refused = soon("a refusal", client.get(&MAPS, "default", "a")).await.unwrap_err();
    assert_eq!(refused.code, 503);
    assert!(refused.message.contains("certificate"), "{refused}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_said() {
    let world = World::new().await;
    let client = remote(&HttpsConfig { server: "localhost:1".into(), ..world.https.clone() });
    let refused = soon("a refusal", client.get(&MAPS, "default", "a")).await.unwrap_err();
    assert!(refused.code == 503 && refused.message.starts_with("the server cannot be reached"), "{refused}");
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_in_words() {
    let world = World::new().await;
    let mut large = map("large");
    large["data"]["n"] = json!("x".repeat(20 << 20));
    let refused = remote(&world.https).create(&MAPS, "default", large).await.unwrap_err();
    assert_eq!((refused.code, refused.reason), (413, "RequestEntityTooLarge"));
    assert_eq!(refused.message, "Request entity too large: limit is 3145728");
    make(&remote(&world.https), &MAPS, map("small")).await;
}

#[tokio::test]
async fn who_shows_a_certificate_is_told_which() {
    let world = World::new().await;
    let review = Resource::named("authentication.k8s.io", "v1", "selfsubjectreviews");
    let asked = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let told = remote(&world.https).create(&review, "", asked).await.unwrap();
    let credential = told["status"]["userInfo"]["extra"]["authentication.kubernetes.io/credential-id"][0].as_str();
    let print = credential.unwrap().strip_prefix("X509SHA256=").unwrap();
    assert!(print.len() == 64 && print.chars().all(|digit| matches!(digit, '0'..='9' | 'a'..='f')), "{print}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_known_by_its_authoritys_fingerprint() {
    let world = World::new().await;
    let (server, wanted) = (&world.https.server, Fingerprint::of_pem(&world.https.ca).unwrap());
    let shown = authority_of(server, wanted).await.unwrap();
    assert_eq!(Fingerprint::of_pem(&shown).unwrap(), wanted);
    let ca = HttpsConfig { ca: shown, ..world.https.clone() };
    remote(&ca).list(&MAPS, "default", &Selector::default()).await.unwrap();
    let other: Fingerprint = "0".repeat(64).parse().unwrap();
    let refused = authority_of(server, other).await.unwrap_err();
    assert!(matches!(refused, PinError::OtherAuthority { wanted, .. } if wanted == other), "{refused}");
    let nobody = authority_of("localhost:1", wanted).await.unwrap_err();
    assert!(matches!(nobody, PinError::Unreachable { .. }), "{nobody}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_certificate_is_that_of_what_is_asked_from_then_on() {
    let world = World::new().await;
    let authority = &world.https;
    let nobody =
        Https::new(HttpsConfig { identity: Identity::Token("nobody.0123456789abcdef".into()), ..authority.clone() });
    let https = nobody.unwrap();
    let client = Client::new(https.clone());
    assert_eq!(client.list(&MAPS, "default", &Selector::default()).await.unwrap_err().code, 401);
    let broken = Identity::Certificate { chain: "none".into(), key: "none".into() };
    https.renew(&broken).await.unwrap_err();
    assert_eq!(client.list(&MAPS, "default", &Selector::default()).await.unwrap_err().code, 401);
    let mut watch = Client::new(Https::new(authority.clone()).unwrap())
        .watch(&MAPS, "default", &Selector::default())
        .await
        .unwrap();
    https.renew(&authority.identity).await.unwrap();
    client.list(&MAPS, "default", &Selector::default()).await.unwrap();
    watch.next().await.unwrap();
}
