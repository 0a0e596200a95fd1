//! LimitRanges: what pods and claims of a namespace are given when they do not say, and what they may ask for.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::quantity::Quantity;

/// Says what was filled in.
const ANNOTATION: &str = "kubernetes.io/limit-ranger";

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The limits of one type among all ranges of a namespace.
fn of_type<'a>(ranges: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    ranges.iter().flat_map(|range| items(&range["spec"]["limits"])).filter(move |limit| limit["type"] == kind)
}

/// Gives every container the requests and limits that its namespace has for it.
pub fn fill(ranges: &[Value], pod: &mut Value) {
    let mut told = Vec::new();
    for limit in of_type(ranges, "Container") {
        for (list, what) in [("containers", "container"), ("initContainers", "init container")] {
            for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
                let name = text(&container["name"]).to_owned();
                let requests = fill_amounts(container, "requests", &limit["defaultRequest"]);
                let limits = fill_amounts(container, "limits", &limit["default"]);
                for (set, amounts) in [(requests, "request"), (limits, "limit")] {
                    if !set.is_empty() {
                        told.push(format!("{} {amounts} for {what} {name}", set.join(", ")));
                    }
                }
            }
        }
    }
    if !told.is_empty() {
        if !pod["metadata"]["annotations"].is_object() {
            pod["metadata"]["annotations"] = json!({});
        }
        pod["metadata"]["annotations"][ANNOTATION] = json!(format!("LimitRanger plugin set: {}", told.join("; ")));
    }
}

/// Adds the amounts that are missing; gives their names.
fn fill_amounts(container: &mut Value, list: &str, defaults: &Value) -> Vec<String> {
    let missing: Map<String, Value> = defaults
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, _)| container["resources"][list].get(*name).is_none())
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let names: Vec<String> = missing.keys().cloned().collect();
    if names.is_empty() {
        return names;
    }
    for part in ["resources", list] {
        let place = if part == "resources" { &mut container["resources"] } else { &mut container["resources"][list] };
        if !place.is_object() {
            *place = json!({});
        }
    }
    if let Some(amounts) = container["resources"][list].as_object_mut() {
        amounts.extend(missing);
    }
    names
}

type Amounts = BTreeMap<String, Quantity>;

fn amounts(value: &Value) -> Amounts {
    let pairs = value.as_object().into_iter().flatten();
    pairs.filter_map(|(name, amount)| Some((name.clone(), Quantity::parse(text(amount)).ok()?))).collect()
}

/// What is asked for, and at most used.
struct Asked {
    requests: Amounts,
    limits: Amounts,
}

impl Asked {
    fn of(resources: &Value) -> Self {
        Self { requests: amounts(&resources["requests"]), limits: amounts(&resources["limits"]) }
    }

    /// Of a whole pod: its containers together, or one of its init containers with the sidecars before it.
    fn of_pod(spec: &Value) -> Self {
        let total = |list: &str| {
            let (mut running, mut most): (BTreeMap<String, i64>, BTreeMap<String, i64>) = Default::default();
            for init in items(&spec["initContainers"]) {
                for (name, amount) in amounts(&init["resources"][list]) {
                    let sidecars = running.entry(name.clone()).or_default();
                    let together = *sidecars + amount.milli_value();
                    if init["restartPolicy"] == "Always" {
                        *sidecars = together;
                    }
                    let most = most.entry(name).or_default();
                    *most = together.max(*most);
                }
            }
            for (name, amount) in items(&spec["containers"]).flat_map(|c| amounts(&c["resources"][list])) {
                *running.entry(name).or_default() += amount.milli_value();
            }
            for (name, amount) in most {
                let together = running.entry(name).or_default();
                *together = amount.max(*together);
            }
            running.into_iter().map(|(name, milli)| (name, Quantity::from_milli(milli))).collect()
        };
        Self { requests: total("requests"), limits: total("limits") }
    }
}

/// What of a pod or claim is beyond its namespace's limits, in upstream's words.
pub fn complaints(ranges: &[Value], plural: &str, object: &Value) -> Vec<String> {
    let mut out = Vec::new();
    match plural {
        "pods" => {
            for limit in of_type(ranges, "Container") {
                for list in ["containers", "initContainers"] {
                    for container in items(&object["spec"][list]) {
                        check(limit, &Asked::of(&container["resources"]), &mut out);
                    }
                }
            }
            for limit in of_type(ranges, "Pod") {
                check(limit, &Asked::of_pod(&object["spec"]), &mut out);
            }
        }
        "persistentvolumeclaims" => {
            for limit in of_type(ranges, "PersistentVolumeClaim") {
                let requests = amounts(&object["spec"]["resources"]["requests"]);
                // Claims have no limits of use: their request is held against both ends.
                let asked = Asked { limits: requests.clone(), requests };
                check(limit, &asked, &mut out);
            }
        }
        _ => {}
    }
    out
}

fn check(limit: &Value, asked: &Asked, out: &mut Vec<String>) {
    let kind = text(&limit["type"]);
    for (name, min) in amounts(&limit["min"]) {
        let start = format!("minimum {name} usage per {kind} is {min}");
        match (asked.requests.get(&name), asked.limits.get(&name)) {
            (None, _) => out.push(format!("{start}.  No request is specified")),
            (Some(request), _) if *request < min => out.push(format!("{start}, but request is {request}")),
            (_, Some(most)) if *most < min => out.push(format!("{start}, but limit is {most}")),
            _ => {}
        }
    }
    for (name, max) in amounts(&limit["max"]) {
        let start = format!("maximum {name} usage per {kind} is {max}");
        match (asked.requests.get(&name), asked.limits.get(&name)) {
            (_, None) => out.push(format!("{start}.  No limit is specified")),
            (_, Some(most)) if *most > max => out.push(format!("{start}, but limit is {most}")),
            (Some(request), _) if *request > max => out.push(format!("{start}, but request is {request}")),
            _ => {}
        }
    }
    for (name, ratio) in amounts(&limit["maxLimitRequestRatio"]) {
        let start = format!("{name} max limit to request ratio per {kind} is {ratio}");
        let known = |amounts: &Amounts| amounts.get(&name).copied().filter(|amount| !amount.is_zero());
        match (known(&asked.requests), known(&asked.limits)) {
            (None, _) => out.push(format!("{start}, but no request is specified or request is 0")),
            (_, None) => out.push(format!("{start}, but no limit is specified or limit is 0")),
            (Some(request), Some(most)) => {
                #[expect(clippy::cast_precision_loss, reason = "a ratio is told to six digits")]
                let observed = most.milli_value() as f64 / request.milli_value() as f64;
                #[expect(clippy::cast_precision_loss, reason = "a ratio is told to six digits")]
                let allowed = ratio.milli_value() as f64 / 1000.0;
                if observed > allowed {
                    out.push(format!("{start}, but provided ratio is {observed:.6}"));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(limit: Value) -> Vec<Value> {
        vec![json!({"spec": {"limits": [limit]}})]
    }

    #[test]
    fn containers_get_what_they_do_not_say() {
        let ranges = range(
            json!({"type": "Container", "default": {"cpu": "1", "memory": "1Gi"}, "defaultRequest": {"cpu": "500m"}}),
        );
        let mut pod = json!({"metadata": {}, "spec": {"containers": [{"name": "c"}, {"name": "d", "resources": {"limits": {"cpu": "2", "memory": "2Gi"}}}]}});
        fill(&ranges, &mut pod);
        let want = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}});
        assert_eq!(pod["spec"]["containers"][0]["resources"], want);
        assert_eq!(
            pod["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: cpu request for container c; cpu, memory limit for container c; cpu request for container d"
        );
    }

    #[test]
    fn what_is_beyond_the_limits_is_told() {
        let pod = |requests: Value, limits: Value| json!({"spec": {"containers": [{"name": "c", "resources": {"requests": requests, "limits": limits}}]}});
        let told = |limit: Value, pod: &Value| complaints(&range(limit), "pods", pod);
        let cpu = pod(json!({"cpu": "1"}), json!({"cpu": "3"}));
        assert_eq!(
            told(json!({"type": "Container", "max": {"cpu": "2"}}), &cpu),
            ["maximum cpu usage per Container is 2, but limit is 3"]
        );
        assert_eq!(
            told(json!({"type": "Container", "min": {"cpu": "2"}}), &cpu),
            ["minimum cpu usage per Container is 2, but request is 1"]
        );
        assert_eq!(
            told(json!({"type": "Pod", "max": {"memory": "1Gi"}}), &cpu),
            ["maximum memory usage per Pod is 1Gi.  No limit is specified"]
        );
        assert_eq!(
            told(json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "2"}}), &cpu),
            ["cpu max limit to request ratio per Container is 2, but provided ratio is 3.000000"]
        );
        assert!(told(json!({"type": "Container", "max": {"cpu": "3"}, "min": {"cpu": "1"}}), &cpu).is_empty());
        let claim = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
        let storage = range(json!({"type": "PersistentVolumeClaim", "max": {"storage": "1Gi"}}));
        assert_eq!(complaints(&storage, "persistentvolumeclaims", &claim).len(), 1);
    }

    #[test]
    fn a_pod_asks_for_what_runs_at_once() {
        let container = |cpu: &str| json!({"resources": {"requests": {"cpu": cpu}}});
        let mut sidecar = container("1");
        sidecar["restartPolicy"] = json!("Always");
        let spec = json!({"initContainers": [sidecar, container("5")], "containers": [container("2"), container("1")]});
        assert_eq!(
            Asked::of_pod(&spec).requests["cpu"],
            Quantity::from_int(6),
            "the second init container beside the sidecar"
        );
    }
}
