use serde_json::{Value, json};

use super::*;

const OLD: &str = "old";
const NEW: &str = "new";

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().unwrap()
}

fn set(strategy: Value) -> DaemonSet {
    serde_json::from_value(json!({
        "metadata": {"name": "agent", "namespace": "ns", "uid": "u", "generation": 1},
        "spec": {"selector": {"matchLabels": {"app": "agent"}}, "revisionHistoryLimit": 10, "updateStrategy": strategy,
            "template": {"metadata": {"labels": {"app": "agent"}}, "spec": {"containers": [{"name": "c"}]}}},
    }))
    .unwrap()
}

fn rolling(unavailable: i64, surge: i64) -> DaemonSet {
    set(json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": unavailable, "maxSurge": surge}}))
}

fn node(name: &str, spec: Value) -> Arc<Node> {
    Arc::new(serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap())
}

/// Of the set, made from a revision, on a node; its name ends with the minute in which it was made.
fn pod(name: &str, hash: &str, node: &str, looks: &str) -> Arc<Pod> {
    let owner =
        json!([{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "agent", "uid": "u", "controller": true}]);
    let ready = json!([{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:59:00Z"}]);
    let conditions = if looks == "ready" { ready } else { json!([]) };
    let phase = if looks == "Failed" { "Failed" } else { "Running" };
    Arc::new(serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "ns", "uid": name, "resourceVersion": "1", "ownerReferences": owner,
            "labels": {"app": "agent", POD_LABEL: hash}, "creationTimestamp": format!("2026-01-01T00:0{}:00Z", name.len()),
            "deletionTimestamp": (looks == "going").then_some("2026-01-01T00:59:00Z")},
        "spec": {"nodeName": node}, "status": {"phase": phase, "conditions": conditions},
    })).unwrap())
}

/// With its revision stored under the hash [`NEW`].
fn at(set: &DaemonSet, nodes: &[Arc<Node>], pods: &[Arc<Pod>]) -> Plan {
    let mut template = set.spec.template.clone();
    template["$patch"] = json!("replace");
    let revision = json!({"metadata": {"name": "agent-new", "labels": {POD_LABEL: NEW}}, "revision": 2,
        "data": {"spec": {"template": template}}});
    let revisions = vec![Arc::new(serde_json::from_value(revision).unwrap())];
    let seen = Seen { pods: pods.to_vec(), nodes: nodes.to_vec(), revisions, ..Seen::default() };
    plan(set, &seen, &|_| false, now())
}

/// Names of pods that go, and nodes that get one.
fn moves(plan: &Plan) -> (Vec<String>, Vec<String>) {
    let (mut gone, mut made) = (Vec::new(), Vec::new());
    for action in plan {
        match action {
            Action::Delete { key, .. } => gone.push(key.name.clone()),
            Action::Slowly(actions) => made.extend(actions.iter().map(|action| {
                let Action::Create { object, .. } = action else { panic!("{action:?}") };
                let pod: Pod = serde_json::from_value(object.clone()).unwrap();
                fit::node_of(&pod).to_owned()
            })),
            _ => {}
        }
    }
    (gone, made)
}

#[test]
fn plans_are_as_agreed() {
    let plain = rolling(1, 0);
    let none = plan(&plain, &Seen::default(), &|_| false, now());
    let two = [node("a", json!({})), node("b", json!({}))];
    super::super::golden::check(
        "daemonset",
        &[
            ("nothing is there", none),
            ("its revision is there, and two nodes", at(&plain, &two, &[])),
            ("both have a pod", at(&plain, &two, &[pod("p", NEW, "a", "ready"), pod("q", NEW, "b", "")])),
            ("an old one on each", at(&plain, &two, &[pod("p", OLD, "a", "ready"), pod("q", OLD, "b", "ready")])),
            ("one of them failed", at(&plain, &two, &[pod("p", NEW, "a", "ready"), pod("q", NEW, "b", "Failed")])),
        ],
    );
}

#[test]
fn nodes_are_asked_what_they_bear() {
    let tainted = |key: &str, effect: &str| node("a", json!({"taints": [{"key": key, "effect": effect}]}));
    let has =
        |node: Arc<Node>| moves(&at(&rolling(1, 0), std::slice::from_ref(&node), &[pod("p", NEW, "a", "ready")])).0;
    let gets = |node: Arc<Node>| moves(&at(&rolling(1, 0), std::slice::from_ref(&node), &[])).1;
    let none: [&str; 0] = [];
    assert_eq!((has(tainted("x", "NoSchedule")), gets(tainted("x", "NoSchedule")).len()), (vec![], 0));
    assert_eq!((has(tainted("x", "NoExecute")), gets(tainted("x", "NoExecute")).len()), (vec!["p".to_owned()], 0));
    assert_eq!(has(tainted("node.kubernetes.io/not-ready", "NoExecute")), none);
    assert_eq!(gets(tainted("node.kubernetes.io/unschedulable", "NoSchedule")), ["a"]);
    let mut chosen = rolling(1, 0);
    chosen.spec.template["spec"]["nodeSelector"] = json!({"disk": "fast"});
    assert_eq!(
        moves(&at(&chosen, &[node("a", json!({}))], &[pod("p", NEW, "a", "ready")])),
        (vec!["p".to_owned()], vec![])
    );
    // The scheduler never placed it, and its node is gone; another's end is the collector's.
    let mut waiting = Arc::unwrap_or_clone(pod("w", NEW, "", ""));
    waiting.spec.affinity = Some(json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        {"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["gone"]}]}]}}}));
    assert_eq!(moves(&at(&rolling(1, 0), &[], &[Arc::new(waiting), pod("p", NEW, "gone", "ready")])).0, ["w"]);
}

#[test]
fn as_many_as_may_be_out_are_replaced() {
    let nodes: Vec<_> = ["a", "b", "c"].into_iter().map(|name| node(name, json!({}))).collect();
    let old = |node: &str, looks: &str| pod(node, OLD, node, looks);
    let all = |looks: [&str; 3]| [old("a", looks[0]), old("b", looks[1]), old("c", looks[2])];
    let gone = |most: i64, pods: &[Arc<Pod>]| moves(&at(&rolling(most, 0), &nodes, pods)).0;
    assert_eq!(gone(1, &all(["ready"; 3])), ["a"]);
    assert_eq!(gone(2, &all(["ready"; 3])), ["a", "b"]);
    assert_eq!(gone(1, &all(["ready", "", "ready"])), ["b"], "who serves nobody goes first");
    assert_eq!(gone(1, &all(["going", "ready", "ready"])).len(), 0);
    let on_delete = set(json!({"type": "OnDelete"}));
    assert_eq!(moves(&at(&on_delete, &nodes, &all(["ready"; 3]))), (vec![], vec![]));
    let twice = [pod("p", NEW, "a", "ready"), pod("pp", NEW, "a", "ready")];
    assert_eq!(moves(&at(&rolling(1, 0), &nodes[..1], &twice)).0, ["pp"], "the oldest stays");
}

#[test]
fn a_surge_makes_the_new_one_first() {
    let nodes = [node("a", json!({})), node("b", json!({}))];
    let at = |pods: &[Arc<Pod>]| moves(&at(&rolling(0, 1), &nodes, pods));
    let (a, b) = (pod("p", OLD, "a", "ready"), pod("q", OLD, "b", "ready"));
    assert_eq!(at(&[a.clone(), b.clone()]), (vec![], vec!["a".to_owned()]));
    assert_eq!(at(&[a.clone(), b.clone(), pod("nn", NEW, "a", "")]), (vec![], vec![]));
    assert_eq!(at(&[a, b, pod("nn", NEW, "a", "ready")]).0, ["p"]);
}

#[test]
fn the_status_counts_the_oldest_pod_of_each_node() {
    let nodes = [
        node("a", json!({})),
        node("b", json!({})),
        node("c", json!({"taints": [{"key": "x", "effect": "NoSchedule"}]})),
    ];
    let pods = [pod("p", OLD, "a", "ready"), pod("nn", NEW, "a", ""), pod("q", NEW, "c", "ready")];
    let set = rolling(0, 1);
    let status = Round::of(&set, NEW, &nodes, &pods, now()).status();
    let wanted = view::DaemonSetStatus {
        observed_generation: 1,
        desired_number_scheduled: 2,
        current_number_scheduled: 1,
        number_misscheduled: 1,
        number_ready: 1,
        number_available: 1,
        number_unavailable: 1,
        ..view::DaemonSetStatus::default()
    };
    assert_eq!(status, wanted);
}
