//! Which node is chosen, and what is said where none is.

use std::sync::Arc;

use api::uid::Uid;
use client::Key;
use serde_json::{Value, json};

use super::*;
use crate::controllers::views::{Node, Pod};
use crate::scheduler::demand::Demand;
use crate::scheduler::snapshot::Resident;

fn node(name: &str, cpu: &str, spec: Value) -> Arc<Node> {
    let status = json!({"allocatable": {"cpu": cpu, "memory": "1Gi", "pods": "2"}});
    let value = json!({"metadata": {"name": name, "labels": {"disk": name}}, "spec": spec, "status": status});
    Arc::new(serde_json::from_value(value).unwrap())
}

fn demand(cpu: &str, mut spec: Value) -> Arc<Demand> {
    spec["containers"] = json!([{"name": "c", "resources": {"requests": {"cpu": cpu}}}]);
    let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap();
    Arc::new(Demand::of(&pod))
}

fn cluster(nodes: &[Arc<Node>], pods: &[(&str, Arc<Demand>)]) -> Snapshot {
    let mut all = Snapshot::default();
    for node in nodes {
        all.set_node(node.clone());
    }
    for (index, (node, demand)) in pods.iter().enumerate() {
        let name = format!("p{index}");
        all.put(
            Resident { key: Key::new("ns", &name), uid: Uid::new(name), demand: demand.clone(), ending: false },
            node,
        );
    }
    all
}

fn choose(demand: &Arc<Demand>, all: &Snapshot) -> Result<String, String> {
    decide(&Asker::new(&Uid::new("p"), demand, all), all, 0).map(|choice| choice.node).map_err(|refused| refused.why)
}

fn refused(demand: &Arc<Demand>, all: &Snapshot) -> String {
    choose(demand, all).unwrap_err()
}

fn sentence(nodes: usize, reasons: &str) -> String {
    format!("0/{nodes} nodes are available: {reasons}.")
}

#[test]
fn what_does_not_fit_is_said_with_counts() {
    let all = cluster(&[node("a", "1", json!({})), node("b", "2", json!({}))], &[]);
    assert_eq!(choose(&demand("1500m", json!({})), &all), Ok("b".into()));
    let too_much = refused(&demand("3", json!({})), &all);
    assert_eq!(too_much, sentence(2, "2 Insufficient cpu"), "more than any node has");
    let none = demand("0", json!({}));
    let full = cluster(&[node("a", "1", json!({}))], &[("a", none.clone()), ("a", none.clone())]);
    assert_eq!(refused(&none, &full), sentence(1, "1 Too many pods"));
    assert_eq!(refused(&none, &Snapshot::default()), "no nodes available to schedule pods");
}

#[test]
fn reasons_are_in_the_order_of_their_texts() {
    let tainted = json!({"taints": [{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}]});
    let mut nodes = vec![node("control", "4", tainted)];
    nodes.extend((0..2).map(|index| node(&format!("w{index}"), "1", json!({}))));
    let busy = demand("800m", json!({}));
    let all = cluster(&nodes, &[("w0", busy.clone()), ("w1", busy.clone())]);
    let reasons = "1 node(s) had untolerated taint {node-role.kubernetes.io/control-plane: }, 2 Insufficient cpu";
    assert_eq!(refused(&busy, &all), sentence(3, reasons));
}

#[test]
fn selectors_and_affinity_choose_by_label() {
    let all = cluster(&[node("a", "1", json!({})), node("b", "1", json!({}))], &[]);
    assert_eq!(choose(&demand("0", json!({"nodeSelector": {"disk": "b"}})), &all), Ok("b".into()));
    let affinity = |term: Value| json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}});
    let not_a = json!({"matchExpressions": [{"key": "disk", "operator": "NotIn", "values": ["a"]}]});
    assert_eq!(choose(&demand("0", affinity(not_a)), &all), Ok("b".into()));
    let nowhere = refused(&demand("0", json!({"nodeSelector": {"disk": "z"}})), &all);
    assert_eq!(nowhere, sentence(2, "2 node(s) didn't match Pod's node affinity/selector"));
    let named =
        |name: &str| affinity(json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]}));
    assert_eq!(choose(&demand("0", named("b")), &all), Ok("b".into()));
    let gone = refused(&demand("0", named("gone")), &all);
    assert_eq!(gone, sentence(2, "2 node(s) didn't satisfy plugin(s) [NodeAffinity]"));
    let preferred = json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 1, "preference": {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["b"]}]}}]}}});
    assert_eq!(choose(&demand("0", preferred), &all), Ok("b".into()));
}

#[test]
fn taints_keep_away_whoever_does_not_tolerate_them() {
    let taint = |effect: &str| json!({"taints": [{"key": "k", "value": "v", "effect": effect}]});
    let all = cluster(&[node("a", "1", taint("NoSchedule"))], &[]);
    let away = refused(&demand("0", json!({})), &all);
    assert_eq!(away, sentence(1, "1 node(s) had untolerated taint {k: v}"));
    let tolerant = json!({"tolerations": [{"key": "k", "operator": "Exists"}]});
    assert_eq!(choose(&demand("0", tolerant), &all), Ok("a".into()));
    let closed = cluster(&[node("a", "1", json!({"unschedulable": true}))], &[]);
    let shut = refused(&demand("0", json!({})), &closed);
    assert_eq!(shut, sentence(1, "1 node(s) were unschedulable"));
    // A soft one is a last resort.
    let soft = cluster(&[node("a", "1", taint("PreferNoSchedule")), node("b", "1", json!({}))], &[]);
    assert_eq!(choose(&demand("0", json!({})), &soft), Ok("b".into()));
}

#[test]
fn host_ports_are_there_once() {
    let port = |ip: &str| {
        let ports = json!([{"containerPort": 80, "hostPort": 80, "hostIP": ip, "protocol": "TCP"}]);
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [{"ports": ports}]}})).unwrap();
        Arc::new(Demand::of(&pod))
    };
    let all = cluster(&[node("a", "1", json!({}))], &[("a", port("10.0.0.1"))]);
    assert_eq!(choose(&port("10.0.0.2"), &all), Ok("a".into()));
    let reason = "1 node(s) didn't have free ports for the requested pod ports";
    assert_eq!(refused(&port(""), &all), sentence(1, reason));
}

#[test]
fn the_emptier_node_is_preferred_and_of_equal_ones_that_with_fewer_pods() {
    let nodes = [node("a", "2", json!({})), node("b", "2", json!({}))];
    let all = cluster(&nodes, &[("a", demand("1", json!({})))]);
    assert_eq!(choose(&demand("100m", json!({})), &all), Ok("b".into()));
}

#[test]
fn a_large_cluster_is_looked_at_in_turns() {
    let nodes: Vec<_> = (0..1000).map(|index| node(&format!("n{index:04}"), "2", json!({}))).collect();
    let (all, wanted) = (cluster(&nodes, &[]), demand("1", json!({})));
    assert_eq!((enough(99), enough(100), enough(1000), enough(5000), enough(50_000)), (99, 100, 420, 500, 2500));
    let first = decide(&Asker::new(&Uid::new("p"), &wanted, &all), &all, 0).unwrap();
    assert_eq!((first.node.as_str(), first.next), ("n0000", 420));
    let second = decide(&Asker::new(&Uid::new("p"), &wanted, &all), &all, first.next).unwrap();
    assert_eq!((second.node.as_str(), second.next), ("n0420", 840));
    // A pod that fits on one node alone finds it all the same.
    let one = demand("1", json!({"nodeSelector": {"disk": "n0500"}}));
    assert_eq!(decide(&Asker::new(&Uid::new("p"), &one, &all), &all, 700).unwrap().node, "n0500");
}
