//! Who is near whom, and what is said of that.

use api::uid::Uid;
use client::Key;
use serde_json::{Value, json};

use super::*;
use crate::controllers::views::{Node, Pod};
use crate::scheduler::decide::decide;
use crate::scheduler::filter::Asker;

/// Nodes `a1`, `a2`, `b1`, …: the first letter is the zone.
fn cluster(nodes: &[&str]) -> Snapshot {
    let mut all = Snapshot::default();
    for name in nodes {
        let labels = json!({"host": name, "zone": name[..1]});
        let status = json!({"allocatable": {"cpu": "8", "memory": "8Gi", "pods": "100"}});
        let node: Node =
            serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}, "status": status})).unwrap();
        all.set_node(Arc::new(node));
    }
    all.set_namespace("ns", Some(BTreeMap::from([("team".to_owned(), "red".to_owned())])));
    all
}

fn demand(namespace: &str, app: &str, spec: Value) -> Arc<Demand> {
    let meta = json!({"name": "p", "namespace": namespace, "labels": {"app": app}});
    let pod: Pod = serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap();
    Arc::new(Demand::of(&pod))
}

/// The n-th pod of these on a node.
fn run(all: &mut Snapshot, node: &str, demand: &Arc<Demand>) {
    let name = format!("u{}", all.places().iter().map(Place::count).sum::<i64>());
    all.put(Resident { key: Key::new("ns", &name), uid: Uid::new(name), demand: demand.clone(), ending: false }, node);
}

/// The chosen node, or what is said.
fn choose(all: &Snapshot, demand: &Arc<Demand>) -> String {
    match decide(&Asker::new(&Uid::new("p"), demand, all), all, 0) {
        Ok(choice) => choice.node,
        Err(refused) => refused.why,
    }
}

/// The nodes that would do.
fn fits(all: &Snapshot, demand: &Arc<Demand>) -> Vec<String> {
    let around = Surroundings::of(demand, all);
    let would = all.places().iter().filter(|place| around.misfit(place).is_none());
    would.map(|place| place.name().to_owned()).collect()
}

fn term(app: &str, key: &str) -> Value {
    json!({"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": key})
}

fn required(kind: &str, terms: Value) -> Value {
    json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": terms}}})
}

#[test]
fn pods_keep_apart_whoever_came_first() {
    let mut all = cluster(&["a1", "a2", "b1"]);
    let shy = demand("ns", "shy", required("podAntiAffinity", json!([term("web", "host"), term("shy", "zone")])));
    let web = demand("ns", "web", json!({}));
    run(&mut all, "a1", &web);
    assert_eq!(fits(&all, &shy), ["a2", "b1"]);
    run(&mut all, "a2", &shy);
    assert_eq!(fits(&all, &shy), ["b1"], "none of its own kind in that zone");
    assert_eq!(fits(&all, &web), ["a1", "b1"], "who is there does not want it");
    run(&mut all, "b1", &shy);
    let said = "0/3 nodes are available: 3 node(s) didn't match pod anti-affinity rules.";
    assert_eq!(choose(&all, &shy), said);
    let mut both = cluster(&["a1"]);
    run(&mut both, "a1", &shy);
    assert_eq!(
        choose(&both, &web),
        "0/1 nodes are available: 1 node(s) didn't satisfy existing pods anti-affinity rules."
    );
    // Namesakes of another namespace are nobody's business.
    assert_eq!(fits(&both, &demand("other", "web", json!({}))), ["a1"]);
}

#[test]
fn pods_go_where_their_company_is() {
    let mut all = cluster(&["a1", "a2", "b1"]);
    let fond = demand("ns", "fond", required("podAffinity", json!([term("web", "zone")])));
    assert_eq!(choose(&all, &fond), "0/3 nodes are available: 3 node(s) didn't match pod affinity rules.");
    run(&mut all, "a2", &demand("ns", "web", json!({})));
    assert_eq!(fits(&all, &fond), ["a1", "a2"]);
    // The first of those that want each other goes anywhere, the next to it.
    let herd = demand("ns", "herd", required("podAffinity", json!([term("herd", "zone")])));
    assert_eq!(fits(&all, &herd), ["a1", "a2", "b1"]);
    run(&mut all, "b1", &herd);
    assert_eq!(fits(&all, &herd), ["b1"]);
    let nowhere = demand("ns", "herd", required("podAffinity", json!([term("herd", "rack")])));
    assert_eq!(fits(&all, &nowhere), [""; 0], "no node has that label");
}

#[test]
fn terms_name_namespaces() {
    let mut all = cluster(&["a1", "b1"]);
    run(&mut all, "a1", &demand("ns", "web", json!({})));
    let asks = |more: Value| {
        let mut term = term("web", "host");
        term.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        fits(&all, &demand("other", "x", required("podAffinity", json!([term])))).join(" ")
    };
    assert_eq!(asks(json!({})), "", "its own namespace alone");
    assert_eq!(asks(json!({"namespaces": ["ns"]})), "a1");
    assert_eq!(asks(json!({"namespaceSelector": {}})), "a1");
    assert_eq!(asks(json!({"namespaceSelector": {"matchLabels": {"team": "red"}}})), "a1");
    assert_eq!(asks(json!({"namespaceSelector": {"matchLabels": {"team": "blue"}}})), "");
    // Only pods that have the value that this one has.
    assert_eq!(asks(json!({"namespaces": ["ns"], "matchLabelKeys": ["app"]})), "");
    assert_eq!(asks(json!({"namespaces": ["ns"], "mismatchLabelKeys": ["app"]})), "a1");
}

fn spread(more: Value) -> Value {
    let mut constraint = json!({"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "web"}}});
    constraint.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"topologySpreadConstraints": [constraint]})
}

#[test]
fn pods_are_spread() {
    let mut all = cluster(&["a1", "a2", "b1"]);
    let web = demand("ns", "web", spread(json!({})));
    run(&mut all, "a1", &web);
    assert_eq!(fits(&all, &web), ["b1"]);
    run(&mut all, "b1", &web);
    assert_eq!(fits(&all, &web), ["a1", "a2", "b1"]);
    run(&mut all, "a1", &web);
    assert_eq!(fits(&all, &demand("ns", "web", spread(json!({"maxSkew": 2})))), ["a1", "a2", "b1"]);
    // Fewer domains than asked for: as if there were one without any.
    assert_eq!(fits(&all, &demand("ns", "web", spread(json!({"minDomains": 3})))), [""; 0]);
    // Those that are being deleted do not count.
    all.ends(&Uid::new("u0"));
    all.ends(&Uid::new("u2"));
    assert_eq!(fits(&all, &web), ["a1", "a2"]);
    let unlabelled = demand("ns", "web", spread(json!({"topologyKey": "rack"})));
    let said =
        "0/3 nodes are available: 3 node(s) didn't match pod topology spread constraints (missing required label).";
    assert_eq!(choose(&all, &unlabelled), said);
}

#[test]
fn nodes_that_are_not_meant_are_no_domains() {
    let mut all = cluster(&["a1", "b1", "c1"]);
    let mut spec = spread(json!({}));
    spec["nodeSelector"] = json!({"zone": "a"});
    let picky = demand("ns", "web", spec.clone());
    run(&mut all, "a1", &picky);
    assert_eq!(choose(&all, &picky), "a1", "its only domain");
    spec["topologySpreadConstraints"][0]["nodeAffinityPolicy"] = json!("Ignore");
    let all_count = demand("ns", "web", spec);
    let said = "0/3 nodes are available: 1 node(s) didn't match pod topology spread constraints, 2 node(s) didn't match Pod's node affinity/selector.";
    assert_eq!(choose(&all, &all_count), said);
}

#[test]
fn likes_choose_among_nodes_that_would_do() {
    let mut all = cluster(&["a1", "a2", "b1", "b2"]);
    run(&mut all, "b1", &demand("ns", "web", json!({})));
    let prefers = |kind: &str, key: &str| {
        let like = json!([{"weight": 100, "podAffinityTerm": term("web", key)}]);
        let affinity = json!({"affinity": {kind: {"preferredDuringSchedulingIgnoredDuringExecution": like}}});
        demand("ns", "x", affinity)
    };
    assert_eq!(choose(&all, &prefers("podAffinity", "host")), "b1");
    assert_eq!(choose(&all, &prefers("podAffinity", "zone")), "b2", "the emptier of that zone");
    assert_eq!(choose(&all, &prefers("podAntiAffinity", "zone")), "a1");
    // Those of the pods that are there count as well.
    run(&mut all, "a2", &prefers("podAffinity", "host"));
    run(&mut all, "a2", &prefers("podAffinity", "host"));
    let web = demand("ns", "web", json!({"containers": []}));
    assert_eq!(choose(&all, &web), "a2");
    let even = demand("ns", "web", spread(json!({"whenUnsatisfiable": "ScheduleAnyway", "topologyKey": "host"})));
    let mut all = cluster(&["a1", "b1"]);
    for node in ["a1", "a1", "b1"] {
        run(&mut all, node, &demand("ns", "web", json!({})));
    }
    assert_eq!(choose(&all, &even), "b1");
}

#[test]
fn what_a_pod_more_or_less_would_change() {
    let mut all = cluster(&["a1", "b1"]);
    let mut spec = required("podAntiAffinity", json!([term("shy", "host")]));
    spec["topologySpreadConstraints"] = spread(json!({}))["topologySpreadConstraints"].clone();
    let (shy, web) = (demand("ns", "shy", spec), demand("ns", "web", json!({})));
    for node in ["a1", "b1", "b1"] {
        run(&mut all, node, &web);
    }
    run(&mut all, "a1", &shy);
    let before = Surroundings::of(&shy, &all);
    for place in all.places() {
        for pod in place.pods.values() {
            let mut without = all.clone();
            without.take(&pod.uid);
            let mut shifted = before.clone();
            shifted.shift(pod, place, -1);
            let fresh = Surroundings::of(&shy, &without);
            for place in without.places() {
                assert_eq!(shifted.misfit(place), fresh.misfit(place), "{} without {}", place.name(), pod.uid);
            }
            shifted.shift(pod, place, 1);
            for place in all.places() {
                assert_eq!(shifted.misfit(place), before.misfit(place));
            }
        }
    }
}
