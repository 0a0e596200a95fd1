//! Deployments.

use serde_json::{Value, json};

use super::{Behaviour, DEFAULT, Generation, Part};
use crate::default::{Object, nested, set, set_absent, text as member};
use crate::status::FieldError;
use crate::table::cells::template as columns;
use crate::validate::amount::{amount, percent_or_number};
use crate::validate::meta::{immutable, not_negative};
use crate::validate::workload::{Counts, chosen, counts, template};
use crate::validate::{At, Errors};
use crate::value::{number, text};

pub const BEHAVIOUR: Behaviour = Behaviour {
    validate: Some(deployment),
    validate_update: Some(|new, old, errors| {
        immutable(&new["spec"]["selector"], &old["spec"]["selector"], "spec.selector", errors);
        deployment(new, errors);
    }),
    validate_part: Some(|part, new, old, errors| {
        if part == Part::Status {
            counts(&COUNTS, &At::of(new, "status"), &At::of(old, "status"), errors);
        }
    }),
    defaults: &[("apps.v1.Deployment", default)],
    generation: Generation::Spec,
    status_keeps: &["labels"],
    pod: Some("/spec/template"),
    cells: Some(|o, _| {
        let status = &o["status"];
        let ready = format!("{}/{}", number(&status["readyReplicas"]), number(&o["spec"]["replicas"]));
        let mut out = vec![
            ("Ready", json!(ready)),
            ("Up-to-date", json!(number(&status["updatedReplicas"]))),
            ("Available", json!(number(&status["availableReplicas"]))),
        ];
        out.extend(columns(o));
        out
    }),
    ..DEFAULT
};

const COUNTS: Counts = Counts {
    fields: &[
        "observedGeneration",
        "replicas",
        "updatedReplicas",
        "readyReplicas",
        "availableReplicas",
        "unavailableReplicas",
        "terminatingReplicas",
        "collisionCount",
    ],
    parts: &["updatedReplicas", "readyReplicas", "availableReplicas"],
    ready: "cannot be greater than readyReplicas",
};

fn deployment(object: &Value, errors: &mut Errors) {
    let spec = &object["spec"];
    not_negative(&spec["replicas"], "spec.replicas", errors);
    chosen(spec, "deployment", errors);
    template(spec, errors);
    strategy(&spec["strategy"], errors);
    not_negative(&spec["minReadySeconds"], "spec.minReadySeconds", errors);
    not_negative(&spec["revisionHistoryLimit"], "spec.revisionHistoryLimit", errors);
    if let Some(deadline) = spec["progressDeadlineSeconds"].as_i64() {
        not_negative(&spec["progressDeadlineSeconds"], "spec.progressDeadlineSeconds", errors);
        if deadline <= spec["minReadySeconds"].as_i64().unwrap_or(0) {
            errors.push(FieldError::invalid(
                "spec.progressDeadlineSeconds",
                deadline,
                "must be greater than minReadySeconds",
            ));
        }
    }
}

fn strategy(strategy: &Value, errors: &mut Errors) {
    let rolling = &strategy["rollingUpdate"];
    match text(&strategy["type"]) {
        "Recreate" => {
            if !rolling.is_null() {
                let why = "may not be specified when strategy `type` is 'Recreate'";
                errors.push(FieldError::forbidden("spec.strategy.rollingUpdate", why));
            }
        }
        "RollingUpdate" => {
            let path = "spec.strategy.rollingUpdate";
            let parts = ["maxUnavailable", "maxSurge"];
            for name in parts {
                amount(&rolling[name], &format!("{path}.{name}"), errors);
            }
            if parts.iter().all(|name| percent_or_number(&rolling[*name]) == Some(0)) {
                let why = "may not be 0 when `maxSurge` is 0";
                errors.push(FieldError::invalid(
                    format!("{path}.maxUnavailable"),
                    rolling["maxUnavailable"].clone(),
                    why,
                ));
            }
            if text(&rolling["maxUnavailable"]).ends_with('%')
                && percent_or_number(&rolling["maxUnavailable"]).is_some_and(|n| n > 100)
            {
                errors.push(FieldError::invalid(
                    format!("{path}.maxUnavailable"),
                    rolling["maxUnavailable"].clone(),
                    "must not be greater than 100%",
                ));
            }
        }
        other => {
            let shown = crate::status::verbatim(&format!("{{\"Type\":{other:?},\"RollingUpdate\":null}}"));
            errors.push(FieldError::not_supported("spec.strategy", shown, &["Recreate", "RollingUpdate"]));
        }
    }
}

fn default(map: &mut Object) {
    nested(map, "spec", |spec| {
        set_absent(spec, "replicas", 1);
        nested(spec, "strategy", |strategy| {
            set(strategy, "type", "RollingUpdate");
            if member(strategy, "type") == "RollingUpdate" {
                nested(strategy, "rollingUpdate", |rolling| {
                    set_absent(rolling, "maxUnavailable", "25%");
                    set_absent(rolling, "maxSurge", "25%");
                });
            }
        });
        set_absent(spec, "revisionHistoryLimit", 10);
        set_absent(spec, "progressDeadlineSeconds", 600);
    });
}
