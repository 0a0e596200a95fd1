//! What an autoscaler may ask for.

use serde_json::Value;

use crate::names::{self, path_segment, qualified_name};
use crate::validate::{At, Errors};
use crate::value::{items, text};

/// What an update finds; what was stored before a rule was there may stay.
#[derive(Debug, Clone, Copy)]
pub enum Before<'a> {
    Nothing,
    Stored(&'a Value),
}

const PERIOD: i64 = 1800;
const WINDOW: i64 = 3600;

/// Of both versions: the older has no metrics of its own.
pub fn spec(spec: &At<'_>, before: Before<'_>, errors: &mut Errors) {
    let (least, most) = (spec.at("minReplicas"), spec.at("maxReplicas"));
    let zero = matches!(before, Before::Stored(old) if old["minReplicas"] == 0);
    let floor = if zero { 0 } else { 1 };
    if least.number().is_some_and(|n| n < floor) {
        least.invalid(format!("must be greater than or equal to {floor}"), errors);
    }
    let replicas = most.number().unwrap_or(0);
    if replicas < 1 {
        most.invalid_as(replicas, "must be greater than 0", errors);
    }
    if least.number().is_some_and(|n| replicas < n) {
        most.invalid_as(replicas, "must be greater than or equal to `minReplicas`", errors);
    }
    let target = spec.at("scaleTargetRef");
    reference(&target, Group::of_target(&target, before), errors);
    metrics(spec, Group::of_metrics(before), errors);
    let share = spec.at("targetCPUUtilizationPercentage");
    if share.number().is_some_and(|n| n < 1) {
        // The older version's one metric is told under its place in the newer one.
        let at = At::new(share.value, "spec.metrics[0].resource.target.averageUtilization");
        at.invalid("must be greater than 0", errors);
    }
    for direction in ["scaleUp", "scaleDown"] {
        rules(&spec.at("behavior").at(direction), errors);
    }
}

/// What a reference's version has to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Group {
    Needed,
    CoreToo,
    Any,
}

impl Group {
    /// Only ReplicationControllers are of the core group, and what an update leaves is not looked at.
    fn of_target(target: &At<'_>, before: Before<'_>) -> Self {
        let same =
            |old: &Value| ["apiVersion", "kind"].iter().all(|f| old["scaleTargetRef"][*f] == *target.at(f).value);
        match before {
            Before::Stored(old) if same(old) => Group::Any,
            _ if target.at("kind").text() == "ReplicationController" => Group::CoreToo,
            _ => Group::Needed,
        }
    }

    /// What objects of metrics are of; once wrong, they may stay so.
    fn of_metrics(before: Before<'_>) -> Self {
        let Before::Stored(old) = before else { return Group::CoreToo };
        let mut objects = items(&old["metrics"]).map(|m| &m["object"]["describedObject"]).filter(|o| !o.is_null());
        let wrong = objects.any(|object| group_of(text(&object["apiVersion"])).is_err());
        if wrong { Group::Any } else { Group::CoreToo }
    }
}

/// The group of `group/version`; "" is the core group's.
fn group_of(version: &str) -> Result<&str, String> {
    match version.split('/').collect::<Vec<_>>().as_slice() {
        [_] => Ok(""),
        [group, _] => Ok(group),
        _ => Err(format!("unexpected GroupVersion string: {version}")),
    }
}

fn reference(at: &At<'_>, group: Group, errors: &mut Errors) {
    at.at("kind").needs_name(path_segment, errors);
    at.at("name").needs_name(path_segment, errors);
    let version = at.at("apiVersion");
    match group_of(version.text()) {
        _ if group == Group::Any => {}
        Err(why) => version.invalid(why, errors),
        Ok("") if group == Group::Needed => version.invalid("apiVersion must specify API group", errors),
        Ok(_) => {}
    }
}

/// Kinds of metrics, with the member that describes each.
const SOURCES: [(&str, &str); 5] = [
    ("ContainerResource", "containerResource"),
    ("External", "external"),
    ("Object", "object"),
    ("Pods", "pods"),
    ("Resource", "resource"),
];
/// In the order in which they are looked at.
const MEMBERS: [&str; 5] = ["object", "external", "pods", "resource", "containerResource"];

fn metrics(spec: &At<'_>, group: Group, errors: &mut Errors) {
    let metrics = spec.at("metrics");
    for metric in metrics.items() {
        self::metric(&metric, group, errors);
    }
    let external = items(metrics.value).any(|metric| matches!(text(&metric["type"]), "Object" | "External"));
    if spec.at("minReplicas").number() == Some(0) && !external {
        let why = "must specify at least one Object or External metric to support scaling to zero replicas";
        metrics.forbidden(why, errors);
    }
}

fn metric(metric: &At<'_>, group: Group, errors: &mut Errors) {
    let kind = metric.at("type");
    let names = SOURCES.map(|(name, _)| name);
    if kind.text().is_empty() {
        kind.required("must specify a metric source type", errors);
    }
    kind.one_of(&names, errors);
    let present: Vec<&str> = MEMBERS.into_iter().filter(|member| metric.at(member).is_given()).collect();
    if let Some(first) = present.first() {
        source(first, &metric.at(first), group, errors);
    }
    let expected = SOURCES.iter().find(|(name, _)| *name == kind.text()).map(|(_, member)| *member);
    match expected {
        Some(member) if !present.contains(&member) => {
            metric.at(member).required("must populate information for the given metric source", errors);
        }
        Some(_) => {}
        None => kind.not_supported(&names, errors),
    }
    if present.len() != 1 {
        for member in present.into_iter().filter(|member| Some(*member) != expected) {
            metric.at(member).forbidden("must populate the given metric source only", errors);
        }
    }
}

fn source(member: &str, source: &At<'_>, group: Group, errors: &mut Errors) {
    let target = source.at("target");
    let (value, average, share) = (target.at("value"), target.at("averageValue"), target.at("averageUtilization"));
    match member {
        "object" => {
            reference(&source.at("describedObject"), group, errors);
            identifier(&source.at("metric"), errors);
            self::target(&target, errors);
            if !value.is_given() && !average.is_given() {
                average.required("must set either a target value or averageValue", errors);
            }
        }
        "external" => {
            identifier(&source.at("metric"), errors);
            self::target(&target, errors);
            match (value.is_given(), average.is_given()) {
                (false, false) => {
                    average.required("must set either a target value for metric or a per-pod target", errors);
                }
                (true, true) => {
                    value.forbidden("may not set both a target value for metric and a per-pod target", errors);
                }
                _ => {}
            }
        }
        "pods" => {
            identifier(&source.at("metric"), errors);
            self::target(&target, errors);
            if !average.is_given() {
                average.required("must specify a positive target averageValue", errors);
            }
        }
        _ => {
            let name = source.at("name");
            match (name.text(), member) {
                ("", _) => name.required("must specify a resource name", errors),
                (_, "containerResource") => container_resource(&name, errors),
                _ => {}
            }
            let container = source.at("container");
            if member == "containerResource" {
                match container.text() {
                    "" => container.required("must specify a container", errors),
                    _ => container.named(names::dns_label, errors),
                }
            }
            self::target(&target, errors);
            match (share.is_given(), average.is_given()) {
                (false, false) => {
                    share.required("must set either a target raw value or a target utilization", errors);
                }
                (true, true) => {
                    average.forbidden("may not set both a target raw value and a target utilization", errors);
                }
                _ => {}
            }
        }
    }
}

fn container_resource(name: &At<'_>, errors: &mut Errors) {
    let complaints = qualified_name(name.text());
    let standard =
        matches!(name.text(), "cpu" | "memory" | "ephemeral-storage") || name.text().starts_with("hugepages-");
    if complaints.is_empty() && !name.text().contains('/') && !standard {
        name.invalid("must be a standard resource for containers", errors);
    }
    name.complain(complaints, errors);
}

fn identifier(metric: &At<'_>, errors: &mut Errors) {
    let name = metric.at("name");
    match name.text() {
        "" => name.required("must specify a metric name", errors),
        _ => name.named(path_segment, errors),
    }
}

fn target(target: &At<'_>, errors: &mut Errors) {
    let kind = target.at("type");
    if kind.text().is_empty() {
        kind.required("must specify a metric target type", errors);
    }
    if !matches!(kind.text(), "Utilization" | "Value" | "AverageValue") {
        kind.invalid("must be either Utilization, Value, or AverageValue", errors);
    }
    for field in ["value", "averageValue"] {
        let amount = target.at(field);
        if amount.quantity().is_some_and(|amount| amount.is_zero() || amount.is_negative()) {
            amount.invalid("must be positive", errors);
        }
    }
    let share = target.at("averageUtilization");
    if share.number().is_some_and(|n| n < 1) {
        share.invalid("must be greater than 0", errors);
    }
}

fn rules(rules: &At<'_>, errors: &mut Errors) {
    if !rules.is_given() {
        return;
    }
    let window = rules.at("stabilizationWindowSeconds");
    if window.number().is_some_and(|n| n < 0) {
        window.invalid("must be greater than or equal to zero", errors);
    }
    if window.number().is_some_and(|n| n > WINDOW) {
        window.invalid(format!("must be less than or equal to {WINDOW}"), errors);
    }
    rules.at("selectPolicy").one_of_if_given(&["Disabled", "Max", "Min"], errors);
    let policies = rules.at("policies");
    if policies.is_empty() {
        policies.required("must specify at least one Policy", errors);
    }
    for policy in policies.items() {
        policy.at("type").one_of(&["Percent", "Pods"], errors);
        for field in ["value", "periodSeconds"] {
            let number = policy.at(field).number().unwrap_or(0);
            if number <= 0 {
                policy.at(field).invalid_as(number, "must be greater than zero", errors);
            }
        }
        if policy.at("periodSeconds").number().is_some_and(|n| n > PERIOD) {
            policy.at("periodSeconds").invalid(format!("must be less than or equal to {PERIOD}"), errors);
        }
    }
    rules.at("tolerance").not_negative_quantity(errors);
}
