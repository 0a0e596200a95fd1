//! What readers see of a collection, and how long the history lasts.

use super::history::{AGE as HISTORY_AGE, BYTES as HISTORY_BYTES, size};
use super::*;
use crate::object::{Encoded, Header};
use serde_json::json;

fn object(name: &str, revision: Revision) -> Arc<Object> {
    let json = Encoded::new(&json!({"metadata": {"name": name}})).with_version(revision);
    Arc::new(Object { key: ObjectKey::new("ns", name), revision, header: Header::default(), json })
}

fn filled() -> (Cache, Arc<CollectionCache>) {
    let cache = Cache::new(10);
    let pods = Collection::new("", "pods");
    for (revision, name) in [(11, "a"), (12, "b"), (13, "a")] {
        cache.apply(&pods, &ObjectKey::new("ns", name), revision, Some(object(name, revision)));
    }
    cache.apply(&pods, &ObjectKey::new("ns", "b"), 14, None);
    let collection = cache.collection(&pods);
    (cache, collection)
}

fn versions(snapshot: &Snapshot) -> Vec<Revision> {
    snapshot.objects.iter().map(|object| object.revision).collect()
}

#[test]
fn a_list_is_the_state_at_its_revision() {
    let (_, pods) = filled();
    assert_eq!((pods.list("").revision, versions(&pods.list("ns"))), (14, vec![13]));
    assert_eq!(versions(&pods.list_at("", 12).unwrap()), [11, 12]);
    assert_eq!(versions(&pods.list_at("ns", 13).unwrap()), [13, 12]);
    assert!(pods.list("other").objects.is_empty());
}

#[test]
fn a_watch_continues_exactly_after_its_revision() {
    let (_, pods) = filled();
    let kinds: Vec<_> = pods.since(11).unwrap().iter().map(|c| (c.kind, c.revision())).collect();
    assert_eq!(kinds, [(ChangeKind::Added, 12), (ChangeKind::Modified, 13), (ChangeKind::Deleted, 14)]);
    assert_eq!(pods.since(9).unwrap_err(), Expired { oldest: 10 });
}

#[test]
fn what_came_before_a_collection_was_made_anew_is_still_told() {
    let (cache, pods) = filled();
    let mut follow = pods.follow(None, 12).unwrap();
    cache.renew(&Collection::new("", "pods"), 15, Arc::clone);
    assert_eq!(names(&follow.next().unwrap()), [13, 14]);
    assert!(follow.next().is_err() && follow.is_replaced());
}

#[test]
fn other_collections_move_the_common_revision() {
    let (cache, pods) = filled();
    cache.apply(&Collection::new("", "nodes"), &ObjectKey::new("", "n"), 15, Some(object("n", 15)));
    assert_eq!(pods.list("").revision, 15);
}

#[tokio::test(start_paused = true)]
async fn old_changes_leave_history_but_not_the_state() {
    let (cache, pods) = filled();
    tokio::time::advance(HISTORY_AGE * 2).await;
    cache.apply(&Collection::new("", "pods"), &ObjectKey::new("ns", "c"), 16, Some(object("c", 16)));
    assert_eq!(pods.since(13).unwrap_err(), Expired { oldest: 14 });
    assert_eq!(versions(&pods.list("")), [13, 16]);
}

#[tokio::test(start_paused = true)]
async fn history_goes_by_age_without_another_write() {
    let (cache, pods) = filled();
    assert!(cache.history_bytes().0 > 0);
    let (cache, stop) = (Arc::new(cache), CancellationToken::new());
    let forgetting = tokio::spawn({
        let (cache, stop) = (cache.clone(), stop.clone());
        async move { cache.forget(stop).await }
    });
    tokio::time::sleep(HISTORY_AGE - Duration::from_secs(1)).await;
    assert!(pods.since(13).is_ok());
    tokio::time::sleep(TOGETHER * 2).await;
    assert_eq!((pods.since(13).unwrap_err(), cache.history_bytes().0), (Expired { oldest: 14 }, 0));
    stop.cancel();
    forgetting.await.unwrap();
}

#[test]
fn all_collections_share_one_budget() {
    let cache = Cache::new(0);
    let large = |revision| {
        let text = json!({"metadata": {"name": "a"}, "data": "x".repeat(1 << 20)});
        let json = Encoded::new(&text).with_version(revision);
        Arc::new(Object { key: ObjectKey::new("ns", "a"), revision, header: Header::default(), json })
    };
    let (pods, secrets) = (Collection::new("", "pods"), Collection::new("", "secrets"));
    for revision in 1..=40 {
        let place = if revision % 2 == 0 { &pods } else { &secrets };
        cache.apply(place, &ObjectKey::new("ns", "a"), revision, Some(large(revision)));
    }
    assert!(cache.history_bytes().0 <= HISTORY_BYTES);
    let oldest = |collection| cache.collection(collection).since(0).unwrap_err().oldest;
    assert_eq!((oldest(&pods), oldest(&secrets)), (8, 9), "the oldest go first, whose ever they are");
}

#[test]
fn many_objects_have_more_history() {
    let cache = Cache::new(0);
    let pods = Collection::new("", "pods");
    let large = |name: &str, revision| {
        let json = Encoded::new(&json!({"data": "x".repeat(4 << 20)})).with_version(revision);
        Arc::new(Object { key: ObjectKey::new("ns", name), revision, header: Header::default(), json })
    };
    let one = size(&large("a", 1));
    for revision in 1..=100 {
        let name = revision.to_string();
        cache.apply(&pods, &ObjectKey::new("ns", &name), revision, Some(large(&name, revision)));
    }
    let (kept, most) = cache.history_bytes();
    assert!((10 * one..11 * one).contains(&most) && kept <= most && kept > most - one, "{kept} {most}");
    for revision in 101..=200 {
        cache.apply(&pods, &ObjectKey::new("ns", &(revision - 100).to_string()), revision, None);
    }
    assert_eq!(cache.history_bytes().1, HISTORY_BYTES);
}

fn pod(name: &str, node: &str, revision: Revision) -> Arc<Object> {
    let mut object = Arc::unwrap_or_clone(object(name, revision));
    object.header.fields.push((topics::NODE.into(), node.into()));
    Arc::new(object)
}

fn names(changes: &[Arc<Change>]) -> Vec<Revision> {
    changes.iter().map(|change| change.revision()).collect()
}

#[test]
fn a_topic_wakes_its_watchers_alone() {
    let cache = Cache::new(10);
    let name = Collection::new("", "pods");
    let pods = cache.collection(&name);
    let put = |pod_name: &str, node: &str, revision| {
        cache.apply(&name, &ObjectKey::new("ns", pod_name), revision, Some(pod(pod_name, node, revision)));
    };
    put("a", "", 11);
    let on = |node: &str| pods.follow(Some(&Topic::Node(node.into())), 11).unwrap();
    let (mut one, mut two) = (on("one"), on("two"));
    let mut a = pods.follow(Some(&Topic::Object(ObjectKey::new("ns", "a"))), 10).unwrap();
    assert_eq!(names(&a.next().unwrap()), [11], "what came before it began");
    put("a", "one", 12);
    put("b", "two", 13);
    let woken = |follow: &Follow| follow.changed.has_changed().unwrap();
    assert!(woken(&one) && woken(&two) && woken(&a));
    assert_eq!(names(&one.next().unwrap()), [12]);
    assert_eq!((names(&two.next().unwrap()), names(&a.next().unwrap())), (vec![13], vec![12]));
    put("b", "two", 14);
    assert!(!woken(&one) && woken(&two) && !woken(&a));
    // It left its node: those who saw it there hear of it.
    put("a", "", 15);
    assert!(woken(&one) && woken(&a));
    cache.apply(&name, &ObjectKey::new("ns", "b"), 16, None);
    assert_eq!(names(&two.next().unwrap()), [14, 16]);
    assert_eq!((two.cursor(), one.next().unwrap().len()), (16, 1));
}

#[tokio::test(start_paused = true)]
async fn a_topic_that_lost_nothing_outlives_the_history() {
    let cache = Cache::new(10);
    let name = Collection::new("", "pods");
    let pods = cache.collection(&name);
    let put = |node: &str, revision| {
        cache.apply(&name, &ObjectKey::new("ns", node), revision, Some(pod(node, node, revision)));
    };
    let on = |node: &str| pods.follow(Some(&Topic::Node(node.into())), 10).unwrap();
    let (mut quiet, mut slow) = (on("quiet"), on("busy"));
    put("busy", 11);
    tokio::time::advance(HISTORY_AGE * 2).await;
    put("other", 12);
    assert_eq!(slow.next().unwrap_err(), Expired { oldest: 11 });
    assert!(quiet.next().unwrap().is_empty());
    put("quiet", 13);
    assert_eq!(names(&quiet.next().unwrap()), [13]);
    assert_eq!(pods.follow(None, 10).unwrap_err(), Expired { oldest: 11 }, "who comes anew does not know");
    drop((quiet, slow));
    assert!(pods.read(|state| state.topics.is_empty()));
}

#[test]
fn a_transaction_is_seen_whole() {
    let cache = Cache::new(0);
    let pods = Collection::new("", "pods");
    let published = |name: &str| Published {
        collection: pods.clone(),
        key: ObjectKey::new("ns", name),
        object: Some(object(name, 1)),
    };
    let mut follow = cache.collection(&pods).follow(None, 0).unwrap();
    cache.publish(1, vec![published("a"), published("b")]);
    assert_eq!(names(&follow.next().unwrap()), [1, 1]);
}
