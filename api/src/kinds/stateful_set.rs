//! StatefulSets.

use serde_json::{Map, Value, json};

use super::{Aspect, Behaviour, DEFAULT, Generation, Part};
use crate::default::{Object, nested, set, set_absent, text as member};
use crate::names;
use crate::table::cells::template as columns;
use crate::validate::amount::amount_of;
use crate::validate::workload::{Counts, chosen, counts, fits};
use crate::validate::{At, Errors, pod};
use crate::value::{items, number, text};

pub const BEHAVIOUR: Behaviour = Behaviour {
    name: names::dns_label,
    validate: Some(|object, errors| {
        let spec = At::of(object, "spec");
        stateful_set(&spec, Side::New, errors);
    }),
    validate_update: Some(update),
    validate_part: Some(|part, new, old, errors| {
        if part == Part::Status {
            counts(&COUNTS, &At::of(new, "status"), &At::of(old, "status"), errors);
        }
    }),
    defaults: &[("apps.v1.StatefulSet", default)],
    generation: Generation::Spec,
    pod: Some("/spec/template"),
    cells: Some(|o, _| {
        let ready = format!("{}/{}", number(&o["status"]["readyReplicas"]), number(&o["spec"]["replicas"]));
        let mut out = vec![("Ready", json!(ready))];
        out.extend(columns(o));
        out
    }),
    warnings: Some(|set| {
        let all = set["spec"]["revisionHistoryLimit"].as_i64().is_some_and(|n| n < 0);
        let why =
            "spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended";
        all.then(|| why.to_owned()).into_iter().collect()
    }),
    missing: &[(Aspect::Warnings, "of claims of its templates")],
    ..DEFAULT
};

const COUNTS: Counts = Counts {
    fields: &[
        "replicas",
        "readyReplicas",
        "currentReplicas",
        "updatedReplicas",
        "availableReplicas",
        "observedGeneration",
        "collisionCount",
    ],
    parts: &["readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"],
    ready: "cannot be greater than status.readyReplicas",
};

/// What was stored before a rule was there may stay as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    New,
    Update { template: Template },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Template {
    Checked,
    WasWrong,
}

fn stateful_set(spec: &At<'_>, side: Side, errors: &mut Errors) {
    let management = spec.at("podManagementPolicy");
    match management.text() {
        "" => management.required("", errors),
        "OrderedReady" | "Parallel" => {}
        _ => management.invalid("must be 'OrderedReady' or 'Parallel'", errors),
    }
    strategy(&spec.at("updateStrategy"), errors);
    let retention = spec.at("persistentVolumeClaimRetentionPolicy");
    if retention.is_given() {
        for when in ["whenDeleted", "whenScaled"] {
            retention.at(when).one_of(&["Retain", "Delete"], errors);
        }
    }
    if side == Side::New {
        for claim in spec.at("volumeClaimTemplates").items() {
            super::persistent_volume_claim::spec(&claim.at("spec"), errors);
        }
    }
    spec.at("replicas").not_negative(errors);
    spec.at("minReadySeconds").not_negative(errors);
    spec.at("ordinals").at("start").not_negative(errors);
    if side == Side::New {
        spec.at("serviceName").named_if_given(names::dns_label, errors);
    }
    chosen(spec.value, "statefulset", errors);
    if fits(spec, "", errors) && side != (Side::Update { template: Template::WasWrong }) {
        pod::template(&with_claims(spec.value), "spec.template", errors);
    }
    let pod = spec.at("template").at("spec");
    pod.at("restartPolicy").one_of(&["Always"], errors);
    if pod.at("activeDeadlineSeconds").is_given() {
        pod.at("activeDeadlineSeconds").forbidden("activeDeadlineSeconds in StatefulSet is not Supported", errors);
    }
}

fn strategy(strategy: &At<'_>, errors: &mut Errors) {
    let rolling = strategy.at("rollingUpdate");
    match strategy.at("type").text() {
        "" => strategy.required("", errors),
        "OnDelete" if rolling.is_given() => {
            let ty = "apps.v1.RollingUpdateStatefulSetStrategy";
            rolling.invalid_struct(ty, "only allowed for updateStrategy 'RollingUpdate'", errors);
        }
        "OnDelete" => {}
        "RollingUpdate" => {
            rolling.at("partition").not_negative(errors);
            let unavailable = rolling.at("maxUnavailable");
            if unavailable.is_given() {
                unavailable.amount(errors);
                if amount_of(unavailable.value) == 0 {
                    unavailable.invalid("cannot be 0", errors);
                }
                unavailable.at_most_all(errors);
            }
        }
        _ => {
            let ty = "apps.v1.StatefulSetUpdateStrategy";
            strategy.invalid_struct(ty, "must be 'RollingUpdate' or 'OnDelete'", errors);
        }
    }
}

/// The template as its pods will be: with the volumes of its claims, and without the names that each pod gets.
fn with_claims(spec: &Value) -> Value {
    let mut template = spec["template"].clone();
    let Some(pod) = template["spec"].as_object_mut() else { return template };
    pod.remove("hostname");
    pod.remove("subdomain");
    let claims: Vec<&str> =
        items(&spec["volumeClaimTemplates"]).map(|claim| text(&claim["metadata"]["name"])).collect();
    if claims.is_empty() {
        return template;
    }
    let mut volumes: Vec<Value> =
        claims.iter().map(|name| json!({"name": name, "persistentVolumeClaim": {"claimName": name}})).collect();
    let own = pod.get("volumes").cloned().unwrap_or_default();
    volumes.extend(items(&own).filter(|volume| !claims.contains(&text(&volume["name"]))).cloned());
    pod.insert("volumes".into(), json!(volumes));
    template
}

/// What of the spec may change.
const MUTABLE: [&str; 7] = [
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

fn update(new: &Value, old: &Value, errors: &mut Errors) {
    let mut before = Vec::new();
    stateful_set(&At::of(old, "spec"), Side::Update { template: Template::Checked }, &mut before);
    let template = if before.is_empty() { Template::Checked } else { Template::WasWrong };
    let spec = At::of(new, "spec");
    stateful_set(&spec, Side::Update { template }, errors);
    let fixed = |object: &Value| -> Map<String, Value> {
        let mut spec = object["spec"].as_object().cloned().unwrap_or_default();
        spec.retain(|field, _| !MUTABLE.contains(&field.as_str()));
        spec
    };
    if fixed(new) != fixed(old) {
        let why = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
        spec.forbidden(why, errors);
    }
}

fn default(map: &mut Object) {
    nested(map, "spec", |spec| {
        set(spec, "podManagementPolicy", "OrderedReady");
        nested(spec, "updateStrategy", |strategy| {
            if member(strategy, "type").is_empty() {
                set(strategy, "type", "RollingUpdate");
                set_absent(strategy, "rollingUpdate", json!({}));
            }
            if member(strategy, "type") == "RollingUpdate"
                && let Some(rolling) = strategy.get_mut("rollingUpdate").and_then(Value::as_object_mut)
            {
                set_absent(rolling, "partition", 0);
            }
        });
        nested(spec, "persistentVolumeClaimRetentionPolicy", |policy| {
            set(policy, "whenDeleted", "Retain");
            set(policy, "whenScaled", "Retain");
        });
        set_absent(spec, "replicas", 1);
        set_absent(spec, "revisionHistoryLimit", 10);
    });
}
