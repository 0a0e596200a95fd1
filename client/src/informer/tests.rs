//! One test for each of the informer's guarantees, against a server that is a script.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use api::status::Status;
use api::view::Meta;
use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::*;
use crate::object::{Event, List, ServedKind};
use crate::transport::{Change, DeleteOptions, Deleted, EventStream, Selector, Target, Transport};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Thing {
    metadata: Meta,
    group: String,
}

impl View for Thing {
    const RESOURCE: Resource = Resource::core("things");

    fn uid(&self) -> &Uid {
        &self.metadata.uid
    }

    fn indexes(&self) -> Vec<String> {
        vec![format!("group/{}", self.group)]
    }
}

fn item(name: &str, revision: Revision, group: &str) -> Item {
    let metadata = json!({"name": name, "namespace": "ns", "uid": name, "resourceVersion": revision.to_string()});
    Item::from_json(json!({"metadata": metadata, "group": group}).to_string().into()).unwrap()
}

fn applied(name: &str, revision: Revision) -> Event {
    Event::Applied(item(name, revision, ""))
}

/// One answer of the script to a watch: batches of events, then its end. `Err` refuses the watch.
type Answer = Result<Vec<Result<Vec<Event>, Status>>, Status>;

/// Answers watches from a script; past its end a watch is silent for ever.
#[derive(Default)]
struct Script {
    answers: Mutex<VecDeque<Answer>>,
    asked: Arc<Mutex<Vec<Instant>>>,
}

struct Scripted(VecDeque<Result<Vec<Event>, Status>>);

#[async_trait]
impl EventStream for Scripted {
    async fn next(&mut self) -> Result<Vec<Event>, Status> {
        match self.0.pop_front() {
            Some(next) => next,
            None => std::future::pending().await,
        }
    }
}

#[async_trait]
impl Transport for Script {
    async fn watch(&self, _: Target<'_>, _: &Selector, _: Option<Revision>) -> Result<Box<dyn EventStream>, Status> {
        self.asked.lock().unwrap().push(Instant::now());
        let answer = self.answers.lock().unwrap().pop_front().unwrap_or(Ok(Vec::new()));
        answer.map(|events| Box::new(Scripted(events.into())) as Box<dyn EventStream>)
    }

    async fn get(&self, _: Target<'_>) -> Result<Value, Status> {
        Err(Status::no_route())
    }

    async fn list(&self, _: Target<'_>, _: &Selector) -> Result<List, Status> {
        Err(Status::no_route())
    }

    async fn create(&self, _: Target<'_>, _: Value) -> Result<Value, Status> {
        Err(Status::no_route())
    }

    async fn update(&self, _: Target<'_>, _: &Change<'_>) -> Result<Value, Status> {
        Err(Status::no_route())
    }

    async fn patch(&self, _: Target<'_>, _: &Value) -> Result<Value, Status> {
        Err(Status::no_route())
    }

    async fn delete(&self, _: Target<'_>, _: &DeleteOptions) -> Result<Deleted, Status> {
        Err(Status::no_route())
    }

    async fn kinds(&self) -> Result<Vec<ServedKind>, Status> {
        Err(Status::no_route())
    }
}

/// An informer that follows the script, and when the script was asked.
fn informer(answers: impl IntoIterator<Item = Answer>) -> (Arc<Informer<Thing>>, Arc<Mutex<Vec<Instant>>>) {
    let script = Script { answers: Mutex::new(answers.into_iter().collect()), asked: Arc::default() };
    let (asked, things) = (script.asked.clone(), Arc::new(Informer::default()));
    tokio::spawn(things.clone().run(Client::new(script)));
    (things, asked)
}

/// Everything that is ready to happen happens; the clock may move.
async fn settle() {
    tokio::time::sleep(Duration::from_secs(100)).await;
}

fn names(things: &Informer<Thing>) -> Vec<String> {
    things.all().iter().map(|thing| thing.metadata.name.clone()).collect()
}

fn expired() -> Status {
    Status::expired("too old")
}

#[tokio::test(start_paused = true)]
async fn guarantee_1_a_half_filled_view_has_seen_nothing() {
    let first = vec![Ok(vec![applied("a", 3), applied("b", 5)])];
    let (things, _) = informer([Ok(first)]);
    settle().await;
    assert_eq!((names(&things).len(), things.seen()), (2, 0));
    let waits = tokio::time::timeout(Duration::from_secs(9), things.caught_up(0)).await;
    assert!(waits.is_err());
    let whole = vec![Ok(vec![applied("a", 3)]), Ok(vec![Event::Synced(7)])];
    let (things, _) = informer([Ok(whole)]);
    things.caught_up(7).await;
    assert_eq!(names(&things), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn guarantee_2_what_went_unseen_goes_and_is_told() {
    let first = vec![Ok(vec![applied("a", 1), applied("b", 2), Event::Synced(2)]), Err(expired())];
    let second = vec![Ok(vec![applied("b", 2), applied("c", 4)]), Ok(vec![Event::Synced(9)])];
    let (things, _) = informer([Ok(first), Ok(second)]);
    let gone = Arc::new(Mutex::new(Vec::new()));
    let told = gone.clone();
    things.on_change(move |old, new| {
        if let (Some(old), None) = (old, new) {
            told.lock().unwrap().push(old.metadata.name.clone());
        }
    });
    things.caught_up(9).await;
    assert_eq!(names(&things), ["b", "c"]);
    assert_eq!(*gone.lock().unwrap(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn guarantee_3_seen_covers_what_was_told_and_never_shrinks() {
    let first = vec![
        Ok(vec![Event::Synced(5)]),
        Ok(vec![applied("a", 8), Event::Bookmark(20)]),
        Ok(vec![Event::Deleted(item("a", 21, ""))]),
        Err(expired()),
    ];
    // A server that lags behind the one before.
    let second = vec![Ok(vec![Event::Synced(12)])];
    let (things, _) = informer([Ok(first), Ok(second)]);
    let (seen, told) = (things.subscribe(), Arc::new(Mutex::new(Vec::new())));
    let note = told.clone();
    things.on_change(move |_, new| note.lock().unwrap().push((*seen.borrow(), new.is_some())));
    settle().await;
    assert_eq!(*told.lock().unwrap(), [(5, true), (20, false)], "told before it counts as seen");
    assert_eq!(things.seen(), 21);
    things.shows(&Wrote::At(21)).await;
    things.shows(&Wrote::Gone { key: Key::new("ns", "a"), uid: Uid::new("a") }).await;
}

#[tokio::test(start_paused = true)]
async fn guarantee_4_handlers_see_before_and_after_and_latecomers_what_is_there() {
    let things = Informer::<Thing>::default();
    things.step(Step::Set(item("a", 1, "x")));
    let told = Arc::new(Mutex::new(Vec::new()));
    let note = told.clone();
    things.on_change(move |old, new| {
        let group = |thing: Option<&Thing>| thing.map(|thing| thing.group.clone());
        note.lock().unwrap().push((group(old), group(new)));
    });
    things.step(Step::Set(item("a", 2, "y")));
    things.step(Step::Remove(Key::new("ns", "a")));
    things.step(Step::Remove(Key::new("ns", "a")));
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(*told.lock().unwrap(), [(None, some("x")), (some("x"), some("y")), (some("y"), None)]);
}

#[tokio::test(start_paused = true)]
async fn guarantee_5_refusals_back_off_and_falling_behind_does_not() {
    let refused = || Err(Status::service_unavailable("no"));
    let behind = vec![Ok(vec![Event::Synced(5)]), Err(expired())];
    let mut answers: Vec<Answer> = (0..12).map(|_| refused()).collect();
    answers.push(Ok(behind));
    let (_things, asked) = informer(answers);
    settle().await;
    settle().await;
    let asked = asked.lock().unwrap();
    let pauses: Vec<_> = asked.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(pauses.len(), 13);
    let within = |pause: Duration, full: Duration| pause >= full / 2 && pause <= full + Duration::from_millis(2);
    assert!(
        within(pauses[0], Duration::from_millis(100)) && within(pauses[3], Duration::from_millis(800)),
        "{pauses:?}"
    );
    assert!(within(pauses[11], Duration::from_secs(30)), "{pauses:?}");
    assert!(pauses[12] < Duration::from_millis(5), "{pauses:?}");
}

#[tokio::test(start_paused = true)]
async fn own_deletions_without_a_revision_are_waited_for_by_uid() {
    let things = Arc::new(Informer::<Thing>::default());
    things.step(Step::Set(item("a", 1, "")));
    things.step(Step::Seen(1));
    let wrote = Wrote::Gone { key: Key::new("ns", "a"), uid: Uid::new("a") };
    assert!(tokio::time::timeout(Duration::from_secs(1), things.shows(&wrote)).await.is_err());
    things.step(Step::Remove(Key::new("ns", "a")));
    things.step(Step::Seen(2));
    things.shows(&wrote).await;
}

#[test]
fn an_index_follows_its_objects() {
    let things = Informer::<Thing>::default();
    things.step(Step::Set(item("a", 1, "x")));
    assert_eq!(things.indexed("group/x").len(), 1);
    things.step(Step::Set(item("a", 2, "y")));
    assert!(things.indexed("group/x").is_empty() && things.indexed("group/y").len() == 1);
    things.step(Step::Remove(Key::new("ns", "a")));
    assert!(things.indexed("group/y").is_empty() && things.namespace("ns").is_empty());
}
