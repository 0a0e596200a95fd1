//! PodDisruptionBudgets.

use serde_json::{Value, json};

use super::{Aspect, Behaviour, DEFAULT, Generation, Part, Version};
use crate::validate::conditions::conditions;
use crate::validate::{At, Errors};
use crate::value::{number, plain};

pub const BEHAVIOUR: Behaviour = Behaviour {
    validate: Some(|object, errors| spec(&At::of(object, "spec"), errors)),
    validate_part: Some(|part, new, _, errors| {
        if part == Part::Status {
            let status = At::of(new, "status");
            conditions(&status.at("conditions"), errors);
            for field in ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"] {
                status.at(field).not_negative(errors);
            }
        }
    }),
    generation: Generation::Spec,
    version: Version::Needed,
    cells: Some(|o, _| {
        let limit = |v: &Value| if v.is_null() { "N/A".to_string() } else { plain(v) };
        vec![
            ("Min Available", json!(limit(&o["spec"]["minAvailable"]))),
            ("Max Unavailable", json!(limit(&o["spec"]["maxUnavailable"]))),
            ("Allowed Disruptions", json!(number(&o["status"]["disruptionsAllowed"]))),
        ]
    }),
    inactive: Some("its status is not counted, so evictions of the pods it selects are refused"),
    none: &[Aspect::Defaults, Aspect::Warnings],
    ..DEFAULT
};

fn spec(spec: &At<'_>, errors: &mut Errors) {
    let (least, most) = (spec.at("minAvailable"), spec.at("maxUnavailable"));
    if least.is_given() && most.is_given() {
        let why = "minAvailable and maxUnavailable cannot be both set";
        spec.invalid_struct("policy.v1.PodDisruptionBudgetSpec", why, errors);
    }
    for limit in [least, most].iter().filter(|limit| limit.is_given()) {
        limit.amount(errors);
        limit.at_most_all(errors);
    }
    spec.at("selector").selector(errors);
    spec.at("unhealthyPodEvictionPolicy").one_of_if_given(&["AlwaysAllow", "IfHealthyBudget"], errors);
}
