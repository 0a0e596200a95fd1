//! DaemonSets.

use serde_json::{Value, json};

use super::{Behaviour, DEFAULT, Generation, Part};
use crate::default::{Object, nested, set, set_absent, text as member};
use crate::selector::Labels;
use crate::table::cells::{or_none, template as columns};
use crate::validate::amount::amount_of;
use crate::validate::workload::{Counts, counts, fits};
use crate::validate::{At, Errors, internal, pod};
use crate::value::{number, text};
use crate::write::section;

pub const BEHAVIOUR: Behaviour = Behaviour {
    validate: Some(|object, errors| daemon_set(&At::of(object, "spec"), errors)),
    validate_update: Some(|new, old, errors| {
        let (spec, before) = (At::of(new, "spec"), At::of(old, "spec"));
        spec.at("selector").unchanged(&before.at("selector"), errors);
        daemon_set(&spec, errors);
    }),
    validate_part: Some(|part, new, old, errors| {
        if part == Part::Status {
            counts(&COUNTS, &At::of(new, "status"), &At::of(old, "status"), errors);
        }
    }),
    defaults: &[("apps.v1.DaemonSet", default)],
    generation: Generation::Spec,
    create: Some(|set| {
        let given = text(&set["metadata"]["annotations"][TEMPLATE]).parse::<i64>().unwrap_or(0);
        section(section_of(set), "annotations").insert(TEMPLATE.into(), json!(given.max(1).to_string()));
    }),
    update: Some(template_generation),
    pod: Some("/spec/template"),
    cells: Some(|o, _| {
        let status = |name: &str| json!(number(&o["status"][name]));
        let nodes = Labels::from_map(&o["spec"]["template"]["spec"]["nodeSelector"]).to_string();
        let mut out = vec![
            ("Desired", status("desiredNumberScheduled")),
            ("Current", status("currentNumberScheduled")),
            ("Ready", status("numberReady")),
            ("Up-to-date", status("updatedNumberScheduled")),
            ("Available", status("numberAvailable")),
            ("Node Selector", json!(or_none(nodes))),
        ];
        out.extend(columns(o));
        out
    }),
    ..DEFAULT
};

/// How often the template changed, as an annotation since it is no field any more.
const TEMPLATE: &str = "deprecated.daemonset.template.generation";

fn section_of(set: &mut Value) -> &mut Value {
    section(set, "metadata");
    &mut set["metadata"]
}

fn template_generation(new: &mut Value, old: &Value) {
    let before = text(&old["metadata"]["annotations"][TEMPLATE]).parse::<i64>().unwrap_or(0);
    let changed = new["spec"]["template"] != old["spec"]["template"];
    let now = before + i64::from(changed);
    if now > 0 {
        section(section_of(new), "annotations").insert(TEMPLATE.into(), json!(now.to_string()));
    }
}

const COUNTS: Counts = Counts {
    fields: &[
        "currentNumberScheduled",
        "numberMisscheduled",
        "desiredNumberScheduled",
        "numberReady",
        "observedGeneration",
        "updatedNumberScheduled",
        "numberAvailable",
        "numberUnavailable",
        "collisionCount",
    ],
    parts: &[],
    ready: "",
};

fn daemon_set(spec: &At<'_>, errors: &mut Errors) {
    let selector = spec.at("selector");
    selector.selector(errors);
    fits(spec, "", errors);
    if selector.is_given() && selector.is_empty() {
        selector.invalid("empty selector is invalid for daemonset", errors);
    }
    let template = spec.at("template");
    pod::template(template.value, template.path(), errors);
    let pod = template.at("spec");
    pod.at("restartPolicy").one_of(&["Always"], errors);
    if pod.at("activeDeadlineSeconds").is_given() {
        pod.at("activeDeadlineSeconds").forbidden("activeDeadlineSeconds in DaemonSet is not Supported", errors);
    }
    spec.at("minReadySeconds").not_negative(errors);
    strategy(&spec.at("updateStrategy"), errors);
    spec.at("revisionHistoryLimit").not_negative(errors);
}

fn strategy(strategy: &At<'_>, errors: &mut Errors) {
    let rolling = strategy.at("rollingUpdate");
    match strategy.at("type").text() {
        "OnDelete" => {}
        "RollingUpdate" if !rolling.is_given() => rolling.required("", errors),
        "RollingUpdate" => {
            let (unavailable, surge) = (rolling.at("maxUnavailable"), rolling.at("maxSurge"));
            unavailable.amount(errors);
            surge.amount(errors);
            unavailable.at_most_all(errors);
            surge.at_most_all(errors);
            match (amount_of(unavailable.value) != 0, amount_of(surge.value) != 0) {
                (true, true) => surge.invalid("may not be set when maxUnavailable is non-zero", errors),
                (false, false) => unavailable.required("cannot be 0 when maxSurge is 0", errors),
                _ => {}
            }
        }
        _ => {
            let shown: Value = internal::shown("apps.v1.DaemonSetUpdateStrategy", strategy.value);
            At::new(&shown, strategy.path()).not_supported(&["RollingUpdate", "OnDelete"], errors);
        }
    }
}

fn default(map: &mut Object) {
    nested(map, "spec", |spec| {
        nested(spec, "updateStrategy", |strategy| {
            set(strategy, "type", "RollingUpdate");
            if member(strategy, "type") == "RollingUpdate" {
                nested(strategy, "rollingUpdate", |rolling| {
                    set_absent(rolling, "maxUnavailable", 1);
                    set_absent(rolling, "maxSurge", 0);
                });
            }
        });
        set_absent(spec, "revisionHistoryLimit", 10);
    });
}
