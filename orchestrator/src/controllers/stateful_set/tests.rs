use serde_json::{Value, json};

use super::*;
use crate::controllers::revisions::POD_LABEL;

const OLD: &str = "web-old";
const NEW: &str = "web-new";

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().unwrap()
}

/// Of three, with more of its spec.
fn set(spec: Value) -> StatefulSet {
    let mut object = json!({
        "metadata": {"name": "web", "namespace": "ns", "uid": "u", "generation": 1},
        "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "serviceName": "peers", "revisionHistoryLimit": 10,
            "podManagementPolicy": "OrderedReady", "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "new"}]}}},
        "status": {"currentRevision": OLD, "updateRevision": NEW},
    });
    for (field, value) in spec.as_object().unwrap() {
        object["spec"][field] = value.clone();
    }
    serde_json::from_value(object).unwrap()
}

fn pod(name: &str, revision: &str, looks: &str) -> Arc<Pod> {
    let owner =
        json!([{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "u", "controller": true}]);
    let ready = json!([{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:59:00Z"}]);
    let labels = json!({"app": "web", POD_LABEL: revision, "statefulset.kubernetes.io/pod-name": name,
        "apps.kubernetes.io/pod-index": name.rsplit_once('-').unwrap().1});
    Arc::new(
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "ns", "uid": format!("uid-{name}"), "resourceVersion": "1",
                "ownerReferences": owner, "labels": labels,
                "deletionTimestamp": (looks == "going").then_some("2026-01-01T00:59:00Z")},
            "spec": {"nodeName": "n"},
            "status": {"phase": if matches!(looks, "Pending" | "Failed") { looks } else { "Running" },
                "conditions": if looks == "ready" { ready } else { json!([]) }},
        }))
        .unwrap(),
    )
}

fn ready(names: &[&str], revision: &str) -> Vec<Arc<Pod>> {
    names.iter().map(|name| pod(name, revision, "ready")).collect()
}

fn revision(name: &str, number: i64, image: &str) -> Arc<Revision> {
    let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}, "$patch": "replace"});
    Arc::new(
        serde_json::from_value(
            json!({"metadata": {"name": name}, "revision": number, "data": {"spec": {"template": template}}}),
        )
        .unwrap(),
    )
}

fn claim(name: &str, owners: Value) -> Arc<Claim> {
    let metadata =
        json!({"name": name, "namespace": "ns", "uid": name, "resourceVersion": "5", "ownerReferences": owners});
    Arc::new(serde_json::from_value(json!({"metadata": metadata})).unwrap())
}

/// With its two revisions stored.
fn with(set: &StatefulSet, pods: &[Arc<Pod>], claims: &[Arc<Claim>]) -> Plan {
    let seen = Seen {
        pods: pods.to_vec(),
        revisions: vec![revision(OLD, 1, "old"), revision(NEW, 2, "new")],
        ..Seen::default()
    };
    let find = |name: &str| claims.iter().find(|claim| claim.metadata.meta.name == name).cloned();
    plan(set, &seen, &find, &|_| false, now())
}

/// What a plan does to pods: `+name:image`, `-name`.
fn moves(plan: &Plan) -> Vec<String> {
    let flat = plan.iter().flat_map(|action| match action {
        Action::InTurn(actions) => actions.clone(),
        other => vec![other.clone()],
    });
    flat.filter_map(|action| match action {
        Action::Create { object, .. } if object["kind"] == "Pod" => {
            let image = object["spec"]["containers"][0]["image"].as_str()?;
            Some(format!("+{}:{image}", object["metadata"]["name"].as_str()?))
        }
        Action::Delete { resource, key, .. } if resource == PODS => Some(format!("-{}", key.name)),
        _ => None,
    })
    .collect()
}

fn steps(set: &StatefulSet, pods: &[Arc<Pod>]) -> Vec<String> {
    moves(&with(set, pods, &[]))
}

#[test]
fn plans_are_as_agreed() {
    let template = json!({"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"]}, "status": {"phase": "Pending"}});
    let claims = set(json!({"volumeClaimTemplates": [template]}));
    let shrinks = set(json!({"replicas": 0, "volumeClaimTemplates": [template],
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Delete"}}));
    let none = plan(&set(json!({})), &Seen::default(), &|_| None, &|_| false, now());
    let one = ready(&["web-0"], NEW);
    super::super::golden::check(
        "statefulset",
        &[
            ("nothing is there", none),
            ("its revisions are there", with(&set(json!({})), &[], &[])),
            ("the first is ready", with(&set(json!({})), &one, &[])),
            ("the first with a claim", with(&claims, &[], &[])),
            ("its claim is there", with(&claims, &[], &[claim("data-web-0", json!([]))])),
            ("it shrinks and takes its claims along", with(&shrinks, &one, &[claim("data-web-0", json!([]))])),
            ("all are of the new revision", with(&set(json!({})), &ready(&["web-0", "web-1", "web-2"], NEW), &[])),
        ],
    );
}

#[test]
fn numbers_come_in_order_and_go_in_the_other() {
    let plain = set(json!({}));
    assert_eq!(steps(&plain, &[]), ["+web-0:new"]);
    assert_eq!(steps(&plain, &[pod("web-0", NEW, "")]), [""; 0]);
    assert_eq!(steps(&plain, &ready(&["web-0", "web-2"], NEW)), ["+web-1:new"]);
    assert_eq!(steps(&plain, &[pod("web-0", NEW, "Failed")]), ["-web-0"]);
    assert_eq!(steps(&plain, &[pod("web-0", NEW, "going")]), [""; 0]);
    let one = set(json!({"replicas": 1}));
    assert_eq!(steps(&one, &ready(&["web-0", "web-1", "web-2"], NEW)), ["-web-2"]);
    assert_eq!(
        steps(&one, &[pod("web-0", NEW, "ready"), pod("web-1", NEW, "ready"), pod("web-2", NEW, "going")]),
        [""; 0]
    );
    let ill = [pod("web-0", NEW, ""), pod("web-1", NEW, "ready")];
    assert_eq!(steps(&one, &ill), [""; 0], "none goes while one that stays is ill");
    assert_eq!(
        steps(&one, &[pod("web-0", NEW, "ready"), pod("web-1", NEW, ""), pod("web-2", NEW, "ready")]),
        ["-web-2"]
    );
    let later = set(json!({"ordinals": {"start": 5}, "replicas": 2}));
    assert_eq!(steps(&later, &ready(&["web-5", "web-0"], NEW)), ["+web-6:new"]);
    let patient = set(json!({"minReadySeconds": 120}));
    assert_eq!(steps(&patient, &ready(&["web-0"], NEW)), [""; 0]);
}

#[test]
fn in_parallel_nobody_waits() {
    let all = set(json!({"podManagementPolicy": "Parallel"}));
    assert_eq!(steps(&all, &[pod("web-1", NEW, "")]), ["+web-0:new", "+web-2:new"]);
    let one = set(json!({"podManagementPolicy": "Parallel", "replicas": 1}));
    assert_eq!(
        steps(&one, &[pod("web-0", NEW, ""), pod("web-1", NEW, ""), pod("web-2", NEW, "")]),
        ["-web-2", "-web-1"]
    );
}

#[test]
fn updates_begin_at_the_end() {
    let plain = set(json!({}));
    let all = ["web-0", "web-1", "web-2"];
    assert_eq!(steps(&plain, &ready(&all, OLD)), ["-web-2"]);
    let one = [pod("web-0", OLD, "ready"), pod("web-1", OLD, "ready"), pod("web-2", NEW, "ready")];
    assert_eq!(steps(&plain, &one), ["-web-1"]);
    let strategy = |rolling: Value| set(json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": rolling}}));
    let parted = strategy(json!({"partition": 2}));
    assert_eq!(steps(&parted, &ready(&all, OLD)), ["-web-2"]);
    assert_eq!(steps(&parted, &one), [""; 0]);
    assert_eq!(steps(&parted, &ready(&all[..1], OLD)), ["+web-1:old"], "below the partition the old ones come back");
    assert_eq!(steps(&strategy(json!({"maxUnavailable": 2})), &ready(&all, OLD)), ["-web-2", "-web-1"]);
    let on_delete = set(json!({"updateStrategy": {"type": "OnDelete"}}));
    assert_eq!(steps(&on_delete, &ready(&all, OLD)), [""; 0]);
    assert_eq!(steps(&on_delete, &ready(&all[..1], OLD)), ["+web-1:new"]);
    let mut parallel = set(json!({"podManagementPolicy": "Parallel"}));
    let ill = [pod("web-0", OLD, "ready"), pod("web-1", OLD, "ready"), pod("web-2", NEW, "")];
    assert_eq!(steps(&parallel, &ill), [""; 0], "the one before waits for it");
    parallel.spec.replicas = 2;
    assert_eq!(steps(&parallel, &ready(&["web-0"], OLD)), ["+web-1:new"]);
}

#[test]
fn a_rollout_that_is_done_is_the_current_revision() {
    let status = |set: &StatefulSet, pods: &[Arc<Pod>]| {
        let plan = with(set, pods, &[]);
        let patch = plan.into_iter().find_map(|action| match action {
            Action::Patch { subresource: "status", patch, .. } => Some(patch["status"].clone()),
            _ => None,
        });
        patch.unwrap()
    };
    let half =
        status(&set(json!({})), &[pod("web-0", OLD, "ready"), pod("web-1", NEW, "ready"), pod("web-2", NEW, "going")]);
    assert_eq!(
        (&half["currentRevision"], &half["currentReplicas"], &half["updatedReplicas"]),
        (&json!(OLD), &json!(1), &json!(1))
    );
    let done = status(&set(json!({})), &ready(&["web-0", "web-1", "web-2"], NEW));
    assert_eq!(
        (&done["currentRevision"], &done["currentReplicas"], &done["readyReplicas"]),
        (&json!(NEW), &json!(3), &json!(3))
    );
}

#[test]
fn claims_go_with_whom_the_set_says() {
    let template = json!({"metadata": {"name": "data"}, "spec": {}});
    let retention = |deleted: &str, scaled: &str, replicas: i64| {
        set(json!({"replicas": replicas, "volumeClaimTemplates": [template],
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": deleted, "whenScaled": scaled}}))
    };
    let owners = |set: &StatefulSet, owners: Value| {
        let plan = with(set, &ready(&["web-0"], NEW), &[claim("data-web-0", owners)]);
        let flat = plan.into_iter().flat_map(|action| match action {
            Action::InTurn(actions) => actions,
            other => vec![other],
        });
        flat.filter_map(|action| match action {
            Action::Patch { resource, patch, .. } if resource == view::CLAIMS => {
                let all = patch["metadata"]["ownerReferences"].clone();
                Some(all.as_array().map_or("none".into(), |all| all[0]["kind"].as_str().unwrap().to_owned()))
            }
            _ => None,
        })
        .collect::<Vec<_>>()
    };
    let own = json!([{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "u"}]);
    assert_eq!(owners(&retention("Retain", "Retain", 1), json!([])), [""; 0]);
    assert_eq!(owners(&retention("Delete", "Retain", 1), json!([])), ["StatefulSet"]);
    assert_eq!(owners(&retention("Delete", "Retain", 1), own.clone()), [""; 0]);
    assert_eq!(owners(&retention("Retain", "Retain", 1), own.clone()), ["none"]);
    assert_eq!(owners(&retention("Delete", "Delete", 0), own), ["Pod"]);
    // Its name comes back only after the claim went with the pod before.
    let earlier = json!([{"apiVersion": "v1", "kind": "Pod", "name": "web-0", "uid": "earlier"}]);
    let waits = with(&retention("Retain", "Delete", 1), &[], &[claim("data-web-0", earlier)]);
    assert_eq!(moves(&waits), [""; 0]);
}

#[test]
fn only_numbered_pods_of_its_name_join() {
    let orphan = |name: &str| {
        let mut pod = Arc::unwrap_or_clone(pod(name, NEW, "ready"));
        pod.metadata.owned.owner_references.clear();
        Arc::new(pod)
    };
    let seen = Seen { orphans: vec![orphan("web-1"), orphan("web-x1"), orphan("other-1")], ..Seen::default() };
    let taken = plan(&set(json!({})), &seen, &|_| None, &|_| false, now());
    let [Action::Patch { key, .. }] = &taken[..] else { panic!("{taken:?}") };
    assert_eq!(&*key.name, "web-1");
    let mut bare = Arc::unwrap_or_clone(pod("web-0", NEW, "ready"));
    bare.metadata.meta.labels.remove("apps.kubernetes.io/pod-index");
    let mended = with(&set(json!({"replicas": 1})), &[Arc::new(bare)], &[]);
    let Action::Patch { patch, .. } = &mended[0] else { panic!("{mended:?}") };
    assert_eq!(patch["metadata"]["labels"], json!({"apps.kubernetes.io/pod-index": "0"}));
}
