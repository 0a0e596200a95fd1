//! Which families a Service's addresses are of, decided as Kubernetes decides it.

use api::status::FieldError;
use serde_json::{Value, json};

use super::Family;

const SINGLE: &str = "SingleStack";
const REQUIRED: &str = "RequireDualStack";
const PREFERRED: &str = "PreferDualStack";

fn text<'a>(spec: &'a Value, name: &str) -> &'a str {
    spec[name].as_str().unwrap_or_default()
}

fn list<'a>(spec: &'a Value, name: &str) -> Vec<&'a str> {
    spec[name].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// The families that a Service names by now.
pub fn of(service: &Value) -> Vec<Family> {
    list(&service["spec"], "ipFamilies").into_iter().filter_map(Family::named).collect()
}

/// Gives `spec.ipFamilyPolicy` and `spec.ipFamilies` to a Service that has addresses, or is headless. `cluster` are the families
/// that the cluster has ranges of, the usual one first.
///
/// # Errors
/// What of the Service asks for a family that the cluster does not have, or contradicts itself.
pub fn decide(cluster: &[Family], old: Option<&Value>, service: &mut Value) -> Result<(), Vec<FieldError>> {
    let before = old.map(|old| &old["spec"]);
    // Who prefers two families is neither given another nor loses one because the cluster changed.
    let same = |name: &str| before.is_some_and(|before| before[name] == service["spec"][name]);
    if text(&service["spec"], "ipFamilyPolicy") == PREFERRED
        && ["ipFamilyPolicy", "ipFamilies", "clusterIPs"].into_iter().all(same)
    {
        return Ok(());
    }
    let spec = &service["spec"];
    let headless = text(spec, "clusterIP") == "None";
    let selects = spec["selector"].as_object().is_some_and(|selector| !selector.is_empty());
    let policy = match (text(spec, "ipFamilyPolicy"), before.map(|before| text(before, "ipFamilyPolicy"))) {
        ("", Some(kept)) if !kept.is_empty() => kept.to_owned(),
        ("", _) if headless && !selects => REQUIRED.to_owned(),
        ("", _) => SINGLE.to_owned(),
        (given, _) => given.to_owned(),
    };
    let addresses = list(spec, "clusterIPs");
    let mut families = of(service);
    let mut errors = check_single(&policy, &addresses, &families);
    for (place, text) in addresses.iter().enumerate().skip(families.len()).take_while(|(_, text)| **text != "None") {
        let Ok(address) = text.parse() else { continue };
        let family = Family::of(&address);
        if cluster.contains(&family) {
            families.push(family);
        } else {
            let why = format!("{} is not configured on this cluster", family.name());
            errors.push(FieldError::invalid(format!("spec.clusterIPs[{place}]"), json!(addresses), why));
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let usual = cluster.first().copied().unwrap_or(Family::V4);
    let free = headless && !selects;
    // Nothing is allocated to one without addresses and without endpoints of the cluster's making.
    if !free {
        errors = check_cluster(cluster, &policy, &families);
        if !errors.is_empty() {
            return Err(errors);
        }
    }
    if families.is_empty() {
        families.push(usual);
    }
    if policy != SINGLE && families.len() == 1 && (free || cluster.len() == 2) {
        families.push(families[0].other());
    }
    service["spec"]["ipFamilyPolicy"] = json!(policy);
    service["spec"]["ipFamilies"] = families.iter().map(|family| family.name()).collect();
    Ok(())
}

fn check_single(policy: &str, addresses: &[&str], families: &[Family]) -> Vec<FieldError> {
    let several = [("clusterIPs", addresses.len()), ("ipFamilies", families.len())];
    let wrong = several.into_iter().filter(|(_, count)| policy == SINGLE && *count == 2);
    let error = |(name, _)| {
        let why = format!("must be RequireDualStack or PreferDualStack when multiple `{name}` are specified");
        FieldError::invalid("spec.ipFamilyPolicy", policy, why)
    };
    wrong.map(error).collect()
}

fn check_cluster(cluster: &[Family], policy: &str, families: &[Family]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if policy == REQUIRED && cluster.len() < 2 {
        let why = "this cluster is not configured for dual-stack services";
        errors.push(FieldError::invalid("spec.ipFamilyPolicy", policy, why));
    }
    for (place, family) in families.iter().enumerate().filter(|(_, family)| !cluster.contains(family)) {
        let path = format!("spec.ipFamilies[{place}]");
        errors.push(FieldError::invalid(path, family.name(), "not configured on this cluster"));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: &[Family] = &[Family::V4];
    const DUAL: &[Family] = &[Family::V4, Family::V6];
    const DUAL6: &[Family] = &[Family::V6, Family::V4];

    /// Policy and families that come out, or the paths of the errors.
    fn decided(cluster: &[Family], old: Option<Value>, spec: Value) -> Result<(String, String), String> {
        let old = old.map(|spec| json!({"spec": spec}));
        let mut service = json!({"spec": spec});
        match decide(cluster, old.as_ref(), &mut service) {
            Ok(()) => {
                let spec = &service["spec"];
                Ok((text(spec, "ipFamilyPolicy").to_owned(), list(spec, "ipFamilies").join(",")))
            }
            Err(errors) => Err(errors.iter().map(|error| error.path.clone()).collect::<Vec<_>>().join(",")),
        }
    }

    #[test]
    fn new_services() {
        let selects = json!({"a": "b"});
        let policy = |name: &str| json!({"selector": selects, "ipFamilyPolicy": name});
        let families = |list: Value| json!({"selector": selects, "ipFamilies": list});
        let headless = json!({"clusterIP": "None", "clusterIPs": ["None"]});
        let addressed = |list: Value| json!({"selector": selects, "clusterIP": list[0], "clusterIPs": list});
        let both = |list: Value| json!({"ipFamilyPolicy": PREFERRED, "selector": selects, "clusterIPs": list});
        for (cluster, spec, wanted) in [
            (V4, json!({"selector": selects}), Ok((SINGLE, "IPv4"))),
            (DUAL, json!({}), Ok((SINGLE, "IPv4"))),
            (DUAL6, json!({}), Ok((SINGLE, "IPv6"))),
            (V4, policy(PREFERRED), Ok((PREFERRED, "IPv4"))),
            (DUAL, policy(PREFERRED), Ok((PREFERRED, "IPv4,IPv6"))),
            (DUAL6, policy(REQUIRED), Ok((REQUIRED, "IPv6,IPv4"))),
            (V4, policy(REQUIRED), Err("spec.ipFamilyPolicy")),
            (DUAL, families(json!(["IPv6"])), Ok((SINGLE, "IPv6"))),
            (V4, families(json!(["IPv6"])), Err("spec.ipFamilies[0]")),
            (DUAL, families(json!(["IPv4", "IPv6"])), Err("spec.ipFamilyPolicy")),
            (V4, headless.clone(), Ok((REQUIRED, "IPv4,IPv6"))),
            (DUAL6, headless, Ok((REQUIRED, "IPv6,IPv4"))),
            (DUAL, addressed(json!(["fd00::5"])), Ok((SINGLE, "IPv6"))),
            (V4, addressed(json!(["fd00::5"])), Err("spec.clusterIPs[0]")),
            (DUAL, addressed(json!(["10.0.0.5", "fd00::5"])), Err("spec.ipFamilyPolicy")),
            (DUAL, both(json!(["fd00::5", "10.0.0.5"])), Ok((PREFERRED, "IPv6,IPv4"))),
        ] {
            let wanted = wanted.map(|(policy, families): (&str, &str)| (policy.to_owned(), families.to_owned()));
            assert_eq!(decided(cluster, None, spec.clone()), wanted.map_err(str::to_owned), "{spec}");
        }
    }

    #[test]
    fn services_that_change() {
        let single = json!({"ipFamilyPolicy": SINGLE, "ipFamilies": ["IPv4"], "clusterIPs": ["10.0.0.5"]});
        let with = |spec: &Value, name: &str, value: Value| {
            let mut spec = spec.clone();
            spec[name] = value;
            spec
        };
        let upgraded = with(&single, "ipFamilyPolicy", json!(REQUIRED));
        assert_eq!(decided(DUAL, Some(single.clone()), upgraded), Ok((REQUIRED.into(), "IPv4,IPv6".into())));
        // The cluster got another family: that alone changes nothing.
        let preferred = with(&single, "ipFamilyPolicy", json!(PREFERRED));
        assert_eq!(decided(DUAL, Some(preferred.clone()), preferred.clone()), Ok((PREFERRED.into(), "IPv4".into())));
        // Who says no policy keeps the one there was.
        let silent = json!({"clusterIPs": ["10.0.0.5"]});
        assert_eq!(decided(DUAL, Some(single), silent), Ok((SINGLE.into(), "IPv4".into())));
    }
}
