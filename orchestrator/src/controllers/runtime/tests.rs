//! Plans carried out against a real server, and workers that wait for their own writes and for nobody else's.

use std::sync::atomic::{AtomicUsize, Ordering};

use apiserver::identity::{MASTERS, User};
use apiserver::nodes::NoNodes;
use apiserver::server::{Config, Server};
use client::Selector;
use tokio::task::JoinSet;

use super::super::views::{CONFIG_MAPS, ConfigMap};
use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

struct World {
    client: Client,
    server: Server,
    _folder: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::on_loopback(folder.path().join("store.redb"));
        let server = Server::open(&config, Arc::new(NoNodes)).await.unwrap();
        let client = server.client(User::new("tester", &[MASTERS]), "tester");
        Self { client, server, _folder: folder }
    }

    fn hands(&self) -> Hands {
        let recorder = Recorder::new(self.client.clone(), "tester", "");
        Hands { client: self.client.clone(), queue: Queue::default(), recorder }
    }

    async fn reasons(&self) -> Vec<String> {
        let events = self.client.list(&Resource::core("events"), "default", &Selector::default()).await.unwrap();
        let mut all: Vec<String> = events
            .items
            .iter()
            .map(|event| event.value())
            .map(|event| format!("{}: {}", event["reason"].as_str().unwrap(), event["message"].as_str().unwrap()))
            .collect();
        all.sort();
        all
    }

    fn given(&self, caches: &Arc<Caches>) -> Given {
        let facts = super::super::given::Facts {
            authority: self.server.authority().clone(),
            address: self.server.address(),
            services: Config::on_loopback("unused".into()).services,
            pods: vec![crate::pod_ranges::PodRanges::usual()],
            servers: crate::servers::alone(self.server.address()),
        };
        Given { client: self.client.clone(), caches: caches.clone(), facts }
    }
}

fn about(name: &str) -> Reference {
    Reference::new(
        "v1",
        "ConfigMap",
        &api::view::Meta { name: name.into(), namespace: "default".into(), ..Default::default() },
    )
}

fn create(name: &str) -> Action {
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
    Action::Create { resource: CONFIG_MAPS, namespace: "default".into(), object, announce: Some(about("owner")) }
}

fn patch(name: &str, version: Option<&str>) -> Action {
    Action::Patch {
        resource: CONFIG_MAPS,
        key: Key::new("default", name),
        subresource: "",
        version: version.map(str::to_owned),
        patch: json!({"data": {"a": "1"}}),
    }
}

fn delete(name: &str, uid: &Uid) -> Action {
    let (key, uid) = (Key::new("default", name), Some(uid.clone()));
    Action::Delete { resource: CONFIG_MAPS, key, uid, propagation: None }
}

#[tokio::test]
async fn each_action_takes_effect_and_says_what_it_wrote() {
    let world = World::new().await;
    let hands = world.hands();
    let made = hands.apply(vec![create("a")]).await;
    let map = world.client.get(&CONFIG_MAPS, "default", "a").await.unwrap();
    assert_eq!((made.written, made.failure.is_none()), (vec![(CONFIG_MAPS, Wrote::of(&map))], true));
    let (version, uid) = (map["metadata"]["resourceVersion"].as_str().unwrap(), &Uid::of(&map));
    let changed = hands.apply(vec![patch("a", Some(version))]).await;
    let map = world.client.get(&CONFIG_MAPS, "default", "a").await.unwrap();
    assert_eq!((changed.written, &map["data"]["a"]), (vec![(CONFIG_MAPS, Wrote::of(&map))], &json!("1")));
    let stale = hands.apply(vec![patch("a", Some(version))]).await.failure.unwrap();
    assert_eq!((stale.act, stale.status.reason), (Act::Change, "Conflict"));
    let namesake = hands.apply(vec![delete("a", &Uid::new("other"))]).await.failure.unwrap();
    assert_eq!((namesake.act, namesake.status.reason), (Act::Delete, "Conflict"));
    let gone = hands.apply(vec![delete("a", uid)]).await;
    let [(_, Wrote::At(end))] = gone.written[..] else { panic!("{gone:?}") };
    assert!(Wrote::At(end) != Wrote::of(&map), "its end has a revision of its own");
    // What is gone already is as it should be.
    let again = hands.apply(vec![delete("a", uid), patch("a", None)]).await;
    assert!(again.failure.is_none() && again.written.is_empty(), "{again:?}");
    let said = Action::Event { about: about("owner"), type_: EventType::Normal, reason: "Said", message: "so".into() };
    hands.apply(vec![said]).await;
    assert_eq!(world.reasons().await, ["Said: so", "SuccessfulCreate: Created configmap: a"]);
}

#[tokio::test]
async fn what_would_be_refused_a_hundred_times_is_tried_once() {
    let world = World::new().await;
    let hands = world.hands();
    let refused = hands.apply(vec![Action::Slowly((0..100).map(|_| create("No Name")).collect())]).await;
    assert_eq!((refused.written.len(), refused.failure.unwrap().act), (0, Act::Create));
    // The third is refused, with the second at its side; the fourth to seventh are not tried.
    let names = ["a", "b", "No Name", "d", "e", "f", "g"];
    let some = hands.apply(vec![Action::Slowly(names.into_iter().map(create).collect())]).await;
    assert_eq!((some.written.len(), some.failure.is_some()), (2, true));
    assert_eq!(world.client.list(&CONFIG_MAPS, "default", &Selector::default()).await.unwrap().items.len(), 2);
}

#[tokio::test]
async fn what_stands_on_a_refused_write_is_not_tried() {
    let world = World::new().await;
    let hands = world.hands();
    let names = ["a", "b", "No Name", "d"];
    let some = hands.apply(vec![Action::InTurn(names.into_iter().map(create).collect())]).await;
    assert_eq!((some.written.len(), some.failure.is_some()), (2, true));
    assert_eq!(world.reasons().await.len(), 2);
}

/// Makes its object when it is not there, and takes it away when it is: each reconcile must see what the last one wrote.
struct Blinker {
    runs: Arc<AtomicUsize>,
    blind: Arc<AtomicUsize>,
}

const ROUNDS: usize = 200;

impl Controller for Blinker {
    const NAME: &'static str = "blinker";
    const ACCOUNT: Account = Account::Server;
    const READS: &'static [Kept] = &[Kept::of::<ConfigMap>()];

    fn new(_: &Given) -> Self {
        Self { runs: Arc::default(), blind: Arc::default() }
    }

    fn watch(&self, _: &Caches, queue: &Queue) {
        queue.add(Key::new("default", "light"));
    }

    fn reconcile(&self, key: &Key, caches: &Caches) -> Plan {
        let run = self.runs.fetch_add(1, Ordering::SeqCst);
        let found = caches.of::<ConfigMap>().get("default", "light");
        if found.is_some() != (run % 2 == 1) {
            self.blind.fetch_add(1, Ordering::SeqCst);
        }
        if run >= ROUNDS {
            return Plan::new();
        }
        // An event beside each write, about something else each time: it shares the write's batch, and may come last in it.
        let said = Action::Event {
            about: about(&format!("o{run}")),
            type_: EventType::Normal,
            reason: "R",
            message: "m".into(),
        };
        let write = match found {
            None => Action::Create {
                resource: CONFIG_MAPS,
                namespace: "default".into(),
                announce: None,
                object: json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "light"}}),
            },
            Some(found) => delete("light", &found.metadata.meta.uid),
        };
        vec![write, said, Action::Again { key: key.clone(), after: Duration::ZERO }]
    }
}

/// Nothing else is written meanwhile: a worker that waited for the revision of an event of its batch would wait for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_sees_its_own_writes_and_an_event_beside_them_stalls_nobody() {
    let world = World::new().await;
    let (caches, mut tasks) = (Arc::new(Caches::new(Blinker::READS.iter().copied())), JoinSet::new());
    caches.start(&world.client, &mut tasks);
    let blinker = Blinker::new(&world.given(&caches));
    let (runs, blind) = (blinker.runs.clone(), blinker.blind.clone());
    tasks.spawn(run(blinker, world.client.clone(), caches));
    let done = async {
        while runs.load(Ordering::SeqCst) <= ROUNDS {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, done).await.unwrap_or_else(|_| panic!("stalled after {runs:?} rounds"));
    assert_eq!(blind.load(Ordering::SeqCst), 0);
}
