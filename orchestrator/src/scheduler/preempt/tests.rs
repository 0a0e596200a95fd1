//! Who is sent away, and what is said where nobody is.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::*;
use crate::controllers::views::Node;
use crate::scheduler::decide::decide;

/// Nodes of one CPU and pods on them, with what is known of them.
#[derive(Default)]
struct Cluster {
    all: Snapshot,
    pods: HashMap<Key, Arc<Pod>>,
    budgets: Vec<Arc<Budget>>,
    ending: HashSet<Uid>,
}

fn pod(name: &str, cpu: &str, priority: i64) -> Value {
    let containers = json!([{"name": "c", "resources": {"requests": {"cpu": cpu}}}]);
    let meta = json!({"name": name, "namespace": "ns", "uid": name, "labels": {"name": name}});
    json!({"metadata": meta, "spec": {"containers": containers, "priority": priority}})
}

fn demand(pod: &Value) -> Arc<Demand> {
    Arc::new(Demand::of(&serde_json::from_value(pod.clone()).unwrap()))
}

impl Cluster {
    fn new(nodes: &[&str]) -> Self {
        let mut cluster = Self::default();
        for name in nodes {
            let status = json!({"allocatable": {"cpu": "1", "memory": "1Gi", "pods": "10"}});
            let node: Node = serde_json::from_value(json!({"metadata": {"name": name}, "status": status})).unwrap();
            cluster.all.set_node(Arc::new(node));
        }
        cluster
    }

    fn runs(&mut self, node: &str, pod: Value) {
        let pod: Arc<Pod> = Arc::new(serde_json::from_value(pod).unwrap());
        let key = Key::of(&pod.metadata.meta);
        let demand = Arc::new(Demand::of(&pod));
        self.all.put(Resident { key: key.clone(), uid: pod.metadata.meta.uid.clone(), demand, ending: false }, node);
        self.pods.insert(key, pod);
    }

    fn guards(&mut self, names: &[&str], allowed: i64, disrupted: Value) {
        let selector = json!({"matchExpressions": [{"key": "name", "operator": "In", "values": names}]});
        let status = json!({"disruptionsAllowed": allowed, "disruptedPods": disrupted});
        let budget = json!({"metadata": {"namespace": "ns"}, "spec": {"selector": selector}, "status": status});
        self.budgets.push(Arc::new(serde_json::from_value(budget).unwrap()));
    }

    /// `node -victim -victim`, or what is said.
    fn preempt(&self, demand: &Arc<Demand>) -> String {
        let own = Uid::new("p");
        let asker = Asker::new(&own, demand, &self.all);
        let refused = decide(&asker, &self.all, 0).expect_err("no node takes it");
        let world = World { pod: &|key| self.pods.get(key).cloned(), budgets: &self.budgets, ending: &self.ending };
        match preempt(&asker, &self.all, &refused, &world) {
            Ok(plan) => plan.victims.iter().fold(plan.node, |text, victim| format!("{text} -{}", victim.uid)),
            Err(declined) => declined.to_string(),
        }
    }
}

#[test]
fn as_few_go_as_can_and_the_least_important() {
    let mut cluster = Cluster::new(&["a"]);
    for (name, cpu, priority) in [("low", "300m", 1), ("mid", "300m", 2), ("small", "100m", 1), ("peer", "300m", 5)] {
        cluster.runs("a", pod(name, cpu, priority));
    }
    assert_eq!(cluster.preempt(&demand(&pod("p", "300m", 5))), "a -low");
    assert_eq!(cluster.preempt(&demand(&pod("p", "600m", 5))), "a -mid -low");
    assert_eq!(cluster.preempt(&demand(&pod("p", "700m", 5))), "a -mid -low -small");
}

#[test]
fn what_is_said_where_nobody_goes() {
    let mut cluster = Cluster::new(&["a"]);
    cluster.runs("a", pod("low", "800m", 0));
    let mut shy = pod("p", "800m", 5);
    shy["spec"]["preemptionPolicy"] = json!("Never");
    assert_eq!(cluster.preempt(&demand(&shy)), "not eligible due to preemptionPolicy=Never.");
    let none = "0/1 nodes are available: 1 No preemption victims found for incoming pod.";
    assert_eq!(cluster.preempt(&demand(&pod("p", "800m", 0))), none);
    // One of its own rank stays, and takes too much.
    let mut cluster = Cluster::new(&["a", "b"]);
    cluster.runs("a", pod("low", "400m", 0));
    cluster.runs("a", pod("peer", "500m", 5));
    let picky = json!({"taints": [{"key": "k", "effect": "NoSchedule"}]});
    let node = json!({"metadata": {"name": "b"}, "spec": picky, "status": {"allocatable": {"cpu": "1", "pods": "10"}}});
    cluster.all.set_node(Arc::new(serde_json::from_value(node).unwrap()));
    let said = "0/2 nodes are available: 1 Insufficient cpu, 1 Preemption is not helpful for scheduling.";
    assert_eq!(cluster.preempt(&demand(&pod("p", "800m", 5))), said);
}

#[test]
fn the_node_whose_victims_weigh_least_is_chosen() {
    let wants = demand(&pod("p", "1", 9));
    // The most important of them counts, then all together, then their number.
    let mut cluster = Cluster::new(&["a", "b", "c"]);
    for (node, name, cpu, priority) in [
        ("a", "a", "1", 3),
        ("b", "b1", "500m", 2),
        ("b", "b2", "500m", 1),
        ("c", "c1", "500m", 2),
        ("c", "c2", "500m", 0),
    ] {
        cluster.runs(node, pod(name, cpu, priority));
    }
    assert_eq!(cluster.preempt(&wants), "c -c1 -c2");
    // Of equal ones that which has been there for the shorter time.
    let mut cluster = Cluster::new(&["a", "b"]);
    for (node, since) in [("a", "2024-01-01T00:00:00Z"), ("b", "2024-01-02T00:00:00Z")] {
        let mut old = pod(node, "1", 0);
        old["status"]["startTime"] = json!(since);
        cluster.runs(node, old);
    }
    assert_eq!(cluster.preempt(&wants), "b -b");
}

#[test]
fn budgets_are_broken_last() {
    let mut cluster = Cluster::new(&["a", "b"]);
    cluster.runs("a", pod("a", "1", 0));
    cluster.runs("b", pod("b", "1", 3));
    cluster.guards(&["a"], 0, json!({}));
    let wants = demand(&pod("p", "1", 9));
    assert_eq!(cluster.preempt(&wants), "b -b", "though it is more important");
    cluster.budgets.clear();
    cluster.guards(&["a"], 0, json!({"a": "2024-01-01T00:00:00Z"}));
    assert_eq!(cluster.preempt(&wants), "a -a", "it is counted out already");
    // Of two on one node that which is not guarded goes, though it is more important.
    let mut cluster = Cluster::new(&["a"]);
    cluster.runs("a", pod("x", "500m", 0));
    cluster.runs("a", pod("y", "500m", 1));
    cluster.guards(&["x"], 0, json!({}));
    assert_eq!(cluster.preempt(&demand(&pod("p", "500m", 9))), "a -y");
    // A budget that has one to spare lets one go.
    cluster.budgets.clear();
    cluster.guards(&["x", "y"], 1, json!({}));
    assert_eq!(cluster.preempt(&demand(&pod("p", "1", 9))), "a -y -x");
}

#[test]
fn while_they_end_nobody_else_is_sent_away() {
    let mut cluster = Cluster::new(&["a", "b"]);
    cluster.runs("a", pod("a", "1", 0));
    cluster.runs("b", pod("b", "1", 0));
    let mine = pod("p", "1", 9);
    let resident = Resident { key: Key::new("ns", "p"), uid: Uid::new("p"), demand: demand(&mine), ending: false };
    cluster.all.nominate(resident, "a");
    cluster.ending.insert(Uid::new("a"));
    assert_eq!(cluster.preempt(&demand(&mine)), "not eligible due to a terminating pod on the nominated node.");
    // Another of the same rank finds the place promised, one that is more important does not.
    cluster.ending.clear();
    let asks = |priority| {
        let demand = demand(&pod("q", "1", priority));
        let own = Uid::new("q");
        let asker = Asker::new(&own, &demand, &cluster.all);
        let refused = decide(&asker, &cluster.all, 0).unwrap_err();
        let world = World { pod: &|key| cluster.pods.get(key).cloned(), budgets: &[], ending: &cluster.ending };
        preempt(&asker, &cluster.all, &refused, &world).unwrap().node
    };
    assert_eq!((asks(9).as_str(), asks(10).as_str()), ("b", "a"));
}
