//! Deployment: ReplicaSets by template, rolled over within surge and unavailability, with revisions.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::selector::Labels;
use client::{Caches, Kept, Key};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::given::{Account, Given};
use super::ownership;
use super::runtime::{Action, Controller, Plan, Queue};
use super::views::{DEPLOYMENTS, Deployment, Pod, REPLICA_SETS, ReplicaSet};
use client::events::{EventType, Reference};

const REVISION: &str = "deployment.kubernetes.io/revision";
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
const HASH: &str = "pod-template-hash";
/// Annotations that stay with the Deployment.
const NOT_COPIED: [&str; 5] = ["kubectl.kubernetes.io/last-applied-configuration", REVISION, DESIRED, MAXIMUM, HISTORY];

mod resize;
mod sizes;
mod status;

use sizes::{DESIRED, MAXIMUM, bounds, scale, sizes, total};
use status::status;

pub struct Deployments;

impl Controller for Deployments {
    const NAME: &'static str = "deployment-controller";
    const ACCOUNT: Account = Account::Service("deployment-controller");
    const READS: &'static [Kept] = &[Kept::of::<Deployment>(), Kept::of::<ReplicaSet>(), Kept::of::<Pod>()];

    fn new(_: &Given) -> Self {
        Self
    }

    fn watch(&self, caches: &Caches, queue: &Queue) {
        let own = queue.clone();
        caches.of::<Deployment>().on_change(move |old, new| {
            if let Some(deployment) = new.or(old) {
                own.add(Key::of(&deployment.metadata.meta));
            }
        });
        let sets = queue.clone();
        caches.of::<ReplicaSet>().on_change(move |old, new| {
            for set in [old, new].into_iter().flatten() {
                if let Some(owner) = set.metadata.owned.controller().filter(|owner| owner.kind == "Deployment") {
                    sets.add(Key::new(&set.metadata.meta.namespace, &owner.name));
                }
            }
        });
        // Recreate waits for the last old pod to be gone.
        let (queue, sets) = (queue.clone(), caches.of::<ReplicaSet>());
        caches.of::<Pod>().on_change(move |old, new| {
            if let (Some(pod), None) = (old, new) {
                let owner = pod
                    .metadata
                    .owned
                    .controller()
                    .and_then(|owner| sets.get(&pod.metadata.meta.namespace, &owner.name));
                if let Some(owner) = owner.as_ref().and_then(|set| set.metadata.owned.controller()) {
                    queue.add(Key::new(&pod.metadata.meta.namespace, &owner.name));
                }
            }
        });
    }

    fn reconcile(&self, key: &Key, caches: &Caches) -> Plan {
        let Some(deployment) = caches.of::<Deployment>().get(&key.namespace, &key.name) else { return Plan::new() };
        let Ok(labels) = Labels::from_object(&deployment.spec.selector) else { return Plan::new() };
        let uid = &deployment.metadata.meta.uid;
        let sets = caches.of::<ReplicaSet>();
        let owned = sets.indexed(&format!("owner/{uid}"));
        let orphans = sets.indexed(&format!("orphan/{}", key.namespace));
        let selected =
            |set: &&Arc<ReplicaSet>| labels.matches(|key| set.metadata.meta.labels.get(key).map(String::as_str));
        let selected: Vec<_> = owned.iter().chain(&orphans).filter(selected).cloned().collect();
        let pods = caches.of::<Pod>();
        let running = |set: &ReplicaSet| {
            pods.indexed(&format!("owner/{}", set.metadata.meta.uid)).iter().any(|pod| !pod.has_ended())
        };
        pass(&deployment, &selected, &running, &|name| sets.get(&key.namespace, name), Timestamp::now())
    }
}

/// Sets are taken first, and count when they are: what is made beside one that is about to be ours would be too much.
///
/// `running` tells whether a ReplicaSet has pods that did not end, `named` which one has a name.
fn pass(
    deployment: &Deployment,
    selected: &[Arc<ReplicaSet>],
    running: &dyn Fn(&ReplicaSet) -> bool,
    named: &dyn Fn(&str) -> Option<Arc<ReplicaSet>>,
    now: Timestamp,
) -> Plan {
    let adopted: Plan = selected.iter().filter_map(|set| adopt(deployment, set)).collect();
    if !adopted.is_empty() {
        return adopted;
    }
    let is_mine = |set: &ReplicaSet| {
        set.metadata.owned.controller().is_some_and(|owner| owner.uid == deployment.metadata.meta.uid)
    };
    let mine: Vec<_> = selected.iter().filter(|set| is_mine(set)).cloned().collect();
    let is_old = |set: &ReplicaSet| !same_template(&set.spec.template, &deployment.spec.template);
    let run = mine.iter().any(|set| is_old(set) && running(set));
    let old_pods = if run { OldPods::Running } else { OldPods::Gone };
    let taken = |name: &str| named(name).is_some_and(|set| !mine.iter().any(|own| Arc::ptr_eq(own, &set)));
    plan(deployment, &mine, old_pods, &taken, now)
}

/// An orphan becomes ours, as long as both stay.
fn adopt(deployment: &Deployment, set: &ReplicaSet) -> Option<Action> {
    let stay = set.metadata.meta.deletion_timestamp.is_none() && deployment.metadata.meta.deletion_timestamp.is_none();
    let orphan = stay && set.metadata.owned.controller().is_none();
    orphan.then(|| ownership::adopt(REPLICA_SETS, &set.metadata, owner(deployment)))
}

fn owner(deployment: &Deployment) -> Value {
    ownership::owner("apps/v1", "Deployment", &deployment.metadata.meta)
}

/// The template without what tells ReplicaSets of one Deployment apart.
fn bare(template: &Value) -> Value {
    let mut template = template.clone();
    if let Some(labels) = template["metadata"]["labels"].as_object_mut() {
        labels.remove(HASH);
    }
    template
}

fn same_template(a: &Value, b: &Value) -> bool {
    bare(a) == bare(b)
}

fn hash(template: &Value, collisions: i64) -> String {
    ownership::hash(&format!("{}{collisions}", bare(template)))
}

fn revision_of(annotations: &BTreeMap<String, String>) -> i64 {
    annotations.get(REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Pods of earlier templates: a Deployment that is recreated waits for their end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OldPods {
    Running,
    Gone,
}

/// `taken` tells whether somebody else has a ReplicaSet of that name.
fn plan(
    deployment: &Deployment,
    sets: &[Arc<ReplicaSet>],
    old_pods: OldPods,
    taken: &dyn Fn(&str) -> bool,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::new();
    let current = sets.iter().filter(|set| same_template(&set.spec.template, &deployment.spec.template));
    let current = current
        .min_by_key(|set| (set.metadata.owned.creation_timestamp.clone(), set.metadata.meta.name.clone()))
        .cloned();
    let old: Vec<_> = sets
        .iter()
        .filter(|set| current.as_ref().is_none_or(|current| current.metadata.meta.uid != set.metadata.meta.uid))
        .cloned()
        .collect();
    if deployment.metadata.meta.deletion_timestamp.is_none() {
        let newest_old = old.iter().map(|set| revision_of(&set.metadata.meta.annotations)).max().unwrap_or(0);
        if let Some(set) = &current {
            plan.extend(annotate(deployment, set, newest_old));
        }
        match &current {
            _ if deployment.spec.paused || was_resized(deployment, sets) => {
                plan.extend(resize::resize(deployment, current.as_ref(), &old));
            }
            Some(set) => plan.extend(roll(deployment, set, &old, old_pods)),
            None => plan.push(create(deployment, sets, newest_old + 1, old_pods, taken)),
        }
        plan.extend(clean_up(deployment, current.as_deref(), &old));
    }
    let said = said(deployment, sets, &plan);
    plan.extend(said);
    plan.extend(status(deployment, current.as_deref(), sets, now));
    plan
}

/// One event per ReplicaSet whose size the plan changes.
fn said(deployment: &Deployment, sets: &[Arc<ReplicaSet>], plan: &Plan) -> Plan {
    let about = Reference::new("apps/v1", "Deployment", &deployment.metadata.meta);
    let event = |name: &str, from: i64, to: i64| {
        let way = if to > from { "up" } else { "down" };
        let message = format!("Scaled {way} replica set {name} from {from} to {to}");
        let event =
            Action::Event { about: about.clone(), type_: EventType::Normal, reason: "ScalingReplicaSet", message };
        (from != to).then_some(event)
    };
    let size_of =
        |name: &str| sets.iter().find(|set| set.metadata.meta.name == name).map_or(0, |set| set.spec.replicas);
    let change = |action: &Action| match action {
        Action::Create { object, .. } => {
            let name = object["metadata"]["name"].as_str()?;
            event(name, 0, object["spec"]["replicas"].as_i64()?)
        }
        Action::Patch { key, subresource: "", patch, .. } => {
            event(&key.name, size_of(&key.name), patch["spec"]["replicas"].as_i64()?)
        }
        _ => None,
    };
    plan.iter().filter_map(change).collect()
}

/// The new ReplicaSet, already as large as the bounds allow. A name that somebody else has gives way to another.
fn create(
    deployment: &Deployment,
    sets: &[Arc<ReplicaSet>],
    revision: i64,
    old_pods: OldPods,
    taken: &dyn Fn(&str) -> bool,
) -> Action {
    let meta = &deployment.metadata.meta;
    let collisions = deployment.status["collisionCount"].as_i64().unwrap_or(0);
    let hash = hash(&deployment.spec.template, collisions);
    if taken(&format!("{}-{hash}", meta.name)) {
        return Action::Patch {
            resource: DEPLOYMENTS,
            key: Key::of(meta),
            subresource: "status",
            version: None,
            patch: json!({"status": {"collisionCount": collisions + 1}}),
        };
    }
    let mut template = deployment.spec.template.clone();
    template["metadata"]["labels"][HASH] = json!(hash);
    let mut selector = deployment.spec.selector.clone();
    selector["matchLabels"][HASH] = json!(hash);
    let replicas = first_size(deployment, sets, old_pods);
    let mut annotations = copied(deployment);
    annotations.extend(sizes(deployment));
    annotations.insert(REVISION.into(), revision.to_string());
    let object = json!({
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": format!("{}-{hash}", meta.name),
            "namespace": meta.namespace,
            "labels": template["metadata"]["labels"],
            "annotations": annotations,
            "ownerReferences": [owner(deployment)],
        },
        "spec": {
            "replicas": replicas,
            "minReadySeconds": deployment.spec.min_ready_seconds,
            "selector": selector,
            "template": template,
        },
    });
    Action::Create { resource: REPLICA_SETS, namespace: meta.namespace.clone(), object, announce: None }
}

fn first_size(deployment: &Deployment, sets: &[Arc<ReplicaSet>], old_pods: OldPods) -> i64 {
    if deployment.spec.strategy.type_ == "Recreate" {
        return if old_pods == OldPods::Running { 0 } else { deployment.spec.replicas };
    }
    grown(deployment, 0, sets)
}

fn copied(deployment: &Deployment) -> BTreeMap<String, String> {
    let own = deployment.metadata.meta.annotations.iter();
    own.filter(|(key, _)| !NOT_COPIED.contains(&key.as_str()))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// The current set's annotations, and the Deployment's own revision.
fn annotate(deployment: &Deployment, set: &ReplicaSet, newest_old: i64) -> Plan {
    let mut plan = Plan::new();
    let found = &set.metadata.meta.annotations;
    let (mut revision, mut wanted) = (revision_of(found), copied(deployment));
    if revision <= newest_old {
        if revision > 0 {
            let mut history = found.get(HISTORY).map(|text| format!("{text},")).unwrap_or_default();
            history += &revision.to_string();
            wanted.insert(HISTORY.into(), history);
        }
        revision = newest_old + 1;
    }
    wanted.insert(REVISION.into(), revision.to_string());
    let changed: BTreeMap<_, _> = wanted.iter().filter(|(key, value)| found.get(*key) != Some(value)).collect();
    if !changed.is_empty() || set.spec.min_ready_seconds != deployment.spec.min_ready_seconds {
        plan.push(Action::Patch {
            resource: REPLICA_SETS,
            key: Key::of(&set.metadata.meta),
            subresource: "",
            version: None,
            patch: json!({"metadata": {"annotations": changed}, "spec": {"minReadySeconds": deployment.spec.min_ready_seconds}}),
        });
    }
    if revision_of(&deployment.metadata.meta.annotations) != revision {
        plan.push(Action::Patch {
            resource: DEPLOYMENTS,
            key: Key::of(&deployment.metadata.meta),
            subresource: "",
            version: None,
            patch: json!({"metadata": {"annotations": {REVISION: revision.to_string()}}}),
        });
    }
    plan
}

/// How large the new set may be, with the others as they are.
fn grown(deployment: &Deployment, own: i64, others: &[Arc<ReplicaSet>]) -> i64 {
    let wanted = deployment.spec.replicas;
    let room = wanted + bounds(deployment).surge - own - total(others, |set| set.spec.replicas);
    own + room.min(wanted - own).max(0)
}

/// The Deployment was given another size since its running sets got theirs.
fn was_resized(deployment: &Deployment, sets: &[Arc<ReplicaSet>]) -> bool {
    let noted = |set: &&Arc<ReplicaSet>| set.metadata.meta.annotations.get(DESIRED)?.parse::<i64>().ok();
    let running = sets.iter().filter(|set| set.spec.replicas > 0);
    running.filter_map(|set| noted(&set)).any(|size| size != deployment.spec.replicas)
}

/// One step of the rollout.
fn roll(deployment: &Deployment, current: &Arc<ReplicaSet>, old: &[Arc<ReplicaSet>], old_pods: OldPods) -> Plan {
    let wanted = deployment.spec.replicas;
    if deployment.spec.strategy.type_ == "Recreate" {
        let running = old.iter().filter(|set| set.spec.replicas > 0);
        let mut plan: Plan = running.filter_map(|set| scale(deployment, set, 0)).collect();
        if old_pods == OldPods::Gone {
            plan.extend(scale(deployment, current, wanted));
        }
        return plan;
    }
    let own = current.spec.replicas;
    let size = if own > wanted { wanted } else { grown(deployment, own, old) };
    let grown = (size != own).then(|| scale(deployment, current, size)).flatten();
    let mut plan: Plan = grown.into_iter().collect();
    plan.extend(shrink(deployment, current, old));
    plan
}

/// Takes old pods away: the broken ones at once, the others as new ones become available.
fn shrink(deployment: &Deployment, current: &ReplicaSet, old: &[Arc<ReplicaSet>]) -> Plan {
    let old_total = total(old, |set| set.spec.replicas);
    if old_total == 0 {
        return Plan::new();
    }
    let minimum = deployment.spec.replicas - bounds(deployment).unavailable;
    let unavailable_new = current.spec.replicas - current.status.available_replicas;
    let mut removable = old_total + current.spec.replicas - minimum - unavailable_new;
    // What was taken away already still counts as available for a while.
    if removable <= 0 {
        return Plan::new();
    }
    let mut sizes: BTreeMap<&str, i64> = old.iter().map(|set| (&*set.metadata.meta.name, set.spec.replicas)).collect();
    let mut oldest: Vec<_> = old.iter().collect();
    oldest.sort_by(|a, b| a.metadata.owned.creation_timestamp.cmp(&b.metadata.owned.creation_timestamp));
    for set in &oldest {
        let broken = (set.spec.replicas - set.status.available_replicas).clamp(0, removable);
        removable -= broken;
        sizes.entry(&set.metadata.meta.name).and_modify(|size| *size -= broken);
    }
    let available = total(old, |set| set.status.available_replicas) + current.status.available_replicas;
    let mut spare = (available - minimum).max(0);
    for set in &oldest {
        let size = sizes.entry(&set.metadata.meta.name).or_default();
        let gone = spare.min(*size).max(0);
        spare -= gone;
        *size -= gone;
    }
    let shrunk = oldest.into_iter().filter(|set| sizes[&*set.metadata.meta.name] != set.spec.replicas);
    shrunk.filter_map(|set| scale(deployment, set, sizes[&*set.metadata.meta.name])).collect()
}

/// Old sets beyond the history limit, oldest revision first, once the rollout is complete.
fn clean_up(deployment: &Deployment, current: Option<&ReplicaSet>, old: &[Arc<ReplicaSet>]) -> Plan {
    let complete = current.is_some_and(|set| {
        set.status.available_replicas == deployment.spec.replicas && set.spec.replicas == deployment.spec.replicas
    });
    let limit = usize::try_from(deployment.spec.revision_history_limit.unwrap_or(10)).unwrap_or(usize::MAX);
    if !complete || old.len() <= limit {
        return Plan::new();
    }
    let idle = |set: &&Arc<ReplicaSet>| {
        set.spec.replicas == 0
            && set.status.replicas == 0
            && set.metadata.meta.generation.unwrap_or_default() <= set.status.observed_generation
            && set.metadata.meta.deletion_timestamp.is_none()
    };
    let mut candidates: Vec<_> = old.iter().filter(idle).collect();
    candidates.sort_by_key(|set| revision_of(&set.metadata.meta.annotations));
    let surplus = old.len() - limit;
    let delete = |set: &Arc<ReplicaSet>| Action::Delete {
        resource: REPLICA_SETS,
        key: Key::of(&set.metadata.meta),
        uid: Some(set.metadata.meta.uid.clone()),
        propagation: None,
    };
    candidates.into_iter().take(surplus).map(delete).collect()
}

#[cfg(test)]
mod tests {
    use super::sizes::Bounds;
    use super::*;

    fn plan(deployment: &Deployment, sets: &[Arc<ReplicaSet>], old_pods: OldPods, now: Timestamp) -> Plan {
        super::plan(deployment, sets, old_pods, &|_| false, now)
    }

    fn deployment(replicas: i64, image: &str, surge: &str, unavailable: &str) -> Deployment {
        let number = |text: &str| text.parse::<i64>().map_or(json!(text), |n| json!(n));
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "ns", "uid": "d", "generation": 1},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": template(image),
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": number(surge), "maxUnavailable": number(unavailable)}}},
        }))
        .unwrap()
    }

    fn template(image: &str) -> Value {
        json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}})
    }

    fn set(name: &str, image: &str, replicas: i64, available: i64, revision: i64) -> Arc<ReplicaSet> {
        Arc::new(serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "ns", "uid": name, "annotations": {REVISION: revision.to_string()}, "creationTimestamp": format!("2026-01-0{revision}T00:00:00Z")},
            "spec": {"replicas": replicas, "template": template(image)},
            "status": {"replicas": replicas, "readyReplicas": available, "availableReplicas": available},
        })).unwrap())
    }

    fn scales(plan: &Plan) -> Vec<(String, i64)> {
        plan.iter()
            .filter_map(|action| match action {
                Action::Patch { key, subresource: "", patch, .. } => {
                    patch["spec"]["replicas"].as_i64().map(|n| (key.name.clone(), n))
                }
                _ => None,
            })
            .collect()
    }

    #[test]
    fn percentages_round_up_for_surge_and_down_for_unavailable() {
        assert_eq!(bounds(&deployment(3, "a", "25%", "25%")), Bounds { surge: 1, unavailable: 0 });
        assert_eq!(bounds(&deployment(10, "a", "25%", "25%")), Bounds { surge: 3, unavailable: 2 });
        assert_eq!(bounds(&deployment(1, "a", "0", "0")), Bounds { surge: 0, unavailable: 1 });
    }

    #[test]
    fn a_first_set_is_made_whole_with_hash_and_revision() {
        let made = plan(&deployment(3, "a", "25%", "25%"), &[], OldPods::Gone, Timestamp::UNIX_EPOCH);
        let Action::Create { object, .. } = &made[0] else { panic!("{made:?}") };
        let hash = object["metadata"]["labels"][HASH].as_str().unwrap();
        assert_eq!(object["metadata"]["name"], format!("web-{hash}"));
        assert_eq!(object["spec"]["selector"]["matchLabels"][HASH], hash);
        assert_eq!(
            (&object["spec"]["replicas"], &object["metadata"]["annotations"][REVISION]),
            (&json!(3), &json!("1"))
        );
    }

    #[test]
    fn a_template_keeps_its_name() {
        let template = json!({"metadata": {"labels": {"app": "web", HASH: "x"}}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}});
        assert_eq!(hash(&template, 0), "bldgjgj7vk", "ReplicaSets that are there have names made so");
    }

    #[test]
    fn a_new_template_grows_within_surge_and_shrinks_as_it_becomes_available() {
        let web = deployment(3, "b", "25%", "25%");
        let made = plan(&web, &[set("old", "a", 3, 3, 1)], OldPods::Running, Timestamp::UNIX_EPOCH);
        let Some(Action::Create { object, .. }) = made.iter().find(|a| matches!(a, Action::Create { .. })) else {
            panic!()
        };
        assert_eq!(object["spec"]["replicas"], 1);
        let waiting =
            plan(&web, &[set("old", "a", 3, 3, 1), set("new", "b", 1, 0, 2)], OldPods::Running, Timestamp::UNIX_EPOCH);
        assert_eq!(scales(&waiting), []);
        let stepped =
            plan(&web, &[set("old", "a", 3, 3, 1), set("new", "b", 1, 1, 2)], OldPods::Running, Timestamp::UNIX_EPOCH);
        assert_eq!(scales(&stepped), [("old".to_owned(), 2)]);
        let grown =
            plan(&web, &[set("old", "a", 2, 2, 1), set("new", "b", 1, 1, 2)], OldPods::Running, Timestamp::UNIX_EPOCH);
        assert_eq!(scales(&grown), [("new".to_owned(), 2)]);
    }

    /// A new template whose pods never become available takes no more of the old ones than it may.
    #[test]
    fn a_broken_rollout_stops_at_its_bounds() {
        let web = deployment(10, "b", "25%", "25%");
        // 8 old ones are left, while their set still tells of the 10 it had.
        let mut old = Arc::unwrap_or_clone(set("old", "a", 8, 10, 1));
        for (new, stale) in [(5, 10), (5, 9), (5, 8), (3, 10)] {
            old.status.available_replicas = stale;
            let made = plan(
                &web,
                &[Arc::new(old.clone()), set("new", "b", new, 0, 2)],
                OldPods::Running,
                Timestamp::UNIX_EPOCH,
            );
            assert!(!scales(&made).iter().any(|(name, _)| name == "old"), "{new} {stale}: {made:?}");
        }
    }

    #[test]
    fn going_back_reuses_the_old_set_under_a_new_revision() {
        let made = plan(
            &deployment(3, "a", "25%", "25%"),
            &[set("old", "a", 0, 0, 1), set("new", "b", 3, 3, 2)],
            OldPods::Running,
            Timestamp::UNIX_EPOCH,
        );
        let revised = made.iter().any(|action| matches!(action, Action::Patch { key, patch, .. }
            if key.name == "old" && patch["metadata"]["annotations"][REVISION] == "3" && patch["metadata"]["annotations"][HISTORY] == "1"));
        assert!(revised, "{made:?}");
        assert!(!made.iter().any(|action| matches!(action, Action::Create { .. })));
    }

    #[test]
    fn recreate_waits_for_the_old_pods() {
        let mut web = deployment(2, "b", "0", "0");
        web.spec.strategy = Strategy { type_: "Recreate".into(), rolling_update: None };
        let sets = [set("old", "a", 2, 2, 1), set("new", "b", 0, 0, 2)];
        assert_eq!(scales(&plan(&web, &sets, OldPods::Running, Timestamp::UNIX_EPOCH)), [("old".to_owned(), 0)]);
        let sets = [set("old", "a", 0, 0, 1), set("new", "b", 0, 0, 2)];
        assert_eq!(scales(&plan(&web, &sets, OldPods::Gone, Timestamp::UNIX_EPOCH)), [("new".to_owned(), 2)]);
    }

    use super::super::views::Strategy;

    #[test]
    fn a_stalled_rollout_is_said_after_its_deadline() {
        let mut web = deployment(1, "a", "1", "0");
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        web.status = json!({"replicas": 1, "updatedReplicas": 1, "conditions": [{"type": "Progressing", "status": "True", "reason": "ReplicaSetUpdated", "message": "m", "lastUpdateTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
        let made = plan(&web, &[set("s", "a", 1, 0, 1)], OldPods::Gone, now);
        let stalled = made.iter().any(|action| action_reason(action) == Some("ProgressDeadlineExceeded"));
        assert!(stalled, "{made:?}");
    }

    fn action_reason(action: &Action) -> Option<&str> {
        let Action::Patch { subresource: "status", patch, .. } = action else { return None };
        patch["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == "Progressing")?["reason"].as_str()
    }

    #[test]
    fn a_name_that_somebody_has_gives_way() {
        let web = deployment(1, "a", "1", "0");
        let made = super::plan(&web, &[], OldPods::Gone, &|_| true, Timestamp::UNIX_EPOCH);
        let raised = made.iter().any(|action| {
            matches!(action, Action::Patch { subresource: "status", patch, .. }
            if patch["status"]["collisionCount"] == 1)
        });
        assert!(raised && !made.iter().any(|action| matches!(action, Action::Create { .. })), "{made:?}");
    }

    #[test]
    fn pausing_and_resuming_leave_the_progress_open() {
        let mut web = deployment(1, "a", "1", "0");
        web.spec.paused = true;
        let says = |made: &Plan| made.iter().find_map(action_reason).map(str::to_owned);
        let paused = plan(&web, &[set("s", "a", 1, 0, 1)], OldPods::Gone, Timestamp::UNIX_EPOCH);
        assert_eq!(says(&paused).as_deref(), Some("DeploymentPaused"));
        web.spec.paused = false;
        web.status = json!({"replicas": 1, "updatedReplicas": 1, "conditions": [
            {"type": "Progressing", "status": "Unknown", "reason": "DeploymentPaused", "message": "Deployment is paused"},
            {"type": "Foreign", "status": "True"}]});
        let resumed = plan(&web, &[set("s", "a", 1, 0, 1)], OldPods::Gone, Timestamp::UNIX_EPOCH);
        assert_eq!(says(&resumed).as_deref(), Some("DeploymentResumed"));
        let kept = resumed.iter().any(|action| {
            matches!(action, Action::Patch { subresource: "status", patch, .. }
            if patch["status"]["conditions"].as_array().unwrap().iter().any(|c| c["type"] == "Foreign"))
        });
        assert!(kept, "what others wrote stays: {resumed:?}");
    }

    #[test]
    fn plans_are_as_agreed() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let web = deployment(3, "b", "25%", "25%");
        let mut paused = deployment(3, "b", "25%", "25%");
        paused.spec.paused = true;
        let mut recreated = deployment(2, "b", "0", "0");
        recreated.spec.strategy = Strategy { type_: "Recreate".into(), rolling_update: None };
        let at = |sets: &[Arc<ReplicaSet>]| plan(&web, sets, OldPods::Running, now);
        let first = deployment(3, "a", "25%", "25%");
        let name = format!("web-{}", hash(&first.spec.template, 0));
        let owned = |set: Arc<ReplicaSet>| {
            let mut set = Arc::unwrap_or_clone(set);
            set.metadata.owned.owner_references = serde_json::from_value(json!([owner(&first)])).unwrap();
            Arc::new(set)
        };
        super::super::golden::check(
            "deployment",
            &[
                ("nothing is there", plan(&deployment(3, "a", "25%", "25%"), &[], OldPods::Gone, now)),
                ("a new template", at(&[set("old", "a", 3, 3, 1)])),
                ("its first pod is available", at(&[set("old", "a", 3, 3, 1), set("new", "b", 1, 1, 2)])),
                ("its first pod is not", at(&[set("old", "a", 3, 3, 1), set("new", "b", 1, 0, 2)])),
                ("complete", at(&[set("old", "a", 0, 0, 1), set("new", "b", 3, 3, 2)])),
                ("back to the template before", {
                    plan(
                        &deployment(3, "a", "25%", "25%"),
                        &[set("old", "a", 0, 0, 1), set("new", "b", 3, 3, 2)],
                        OldPods::Running,
                        now,
                    )
                }),
                ("an orphan of the template is there under its name", {
                    let orphan = set(&name, "a", 3, 3, 1);
                    pass(&first, std::slice::from_ref(&orphan), &|_| false, &|_| Some(orphan.clone()), now)
                }),
                ("it was adopted", {
                    let mine = owned(set(&name, "a", 3, 3, 1));
                    pass(&first, std::slice::from_ref(&mine), &|_| false, &|_| Some(mine.clone()), now)
                }),
                ("an orphan of another template was adopted, and no room is left", {
                    pass(&first, &[owned(set("old", "b", 4, 0, 1))], &|_| true, &|_| None, now)
                }),
                ("paused", plan(&paused, &[set("old", "a", 3, 3, 1)], OldPods::Running, now)),
                (
                    "all old ones go first",
                    plan(&recreated, &[set("old", "a", 2, 2, 1), set("new", "b", 0, 0, 2)], OldPods::Running, now),
                ),
            ],
        );
    }
}
