//! What a watch's steps mean to those who use the object.

use std::collections::BTreeSet;

use super::*;

fn place() -> Place {
    let object = Object { kind: Referent::ConfigMap, namespace: "ns".into(), name: "a".into() };
    Place { object, shown: watch::Sender::new(Shown::default()) }
}

fn item(name: &str, revision: Revision) -> Item {
    let json = format!(r#"{{"metadata":{{"namespace":"ns","name":"{name}","resourceVersion":"{revision}"}}}}"#);
    Item::from_json(json.into()).unwrap()
}

#[test]
fn only_what_differs_from_a_complete_state_is_news() {
    let place = place();
    let there = |names: &[&str]| Step::Retain(names.iter().map(|name| Key::new("ns", name)).collect::<BTreeSet<_>>());
    assert_eq!(place.take(Step::Set(item("a", 3))), News::None, "the first state");
    assert_eq!(place.take(there(&["a"])), News::None);
    place.take(Step::Seen(7));
    assert_eq!(place.take(Step::Set(item("a", 8))), News::Changed);
    // The watch begins anew, with the state that is known.
    assert_eq!(place.take(Step::Set(item("a", 8))), News::None);
    assert_eq!(place.take(there(&[])), News::Changed, "gone unseen");
    assert_eq!(place.take(Step::Remove(Key::new("ns", "a"))), News::None, "it was gone");
    assert_eq!(place.take(Step::Set(item("a", 12))), News::Changed, "it is back");
}

#[test]
fn an_answer_that_the_watch_showed_already_makes_it_as_new() {
    let answer = |revision: &str| Ok(Arc::new(serde_json::json!({"metadata": {"resourceVersion": revision}})));
    let absent = || Err(Status::not_found("", "configmaps", "a"));
    assert!(is_as_known(&answer("3"), Some(&item("a", 3))) && is_as_known(&absent(), None));
    assert!(!is_as_known(&answer("4"), Some(&item("a", 3))) && !is_as_known(&absent(), Some(&item("a", 3))));
    assert!(!is_as_known(&Err(Status::service_unavailable("away")), None));
}
