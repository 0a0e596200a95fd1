//! What Services have beside what clients ask for, and what they keep or lose when their type changes.

use serde_json::{Map, Value, json};

use crate::default::text;
use crate::value::items;
use crate::write::section;

/// `clusterIPs` beside `clusterIP`, and neither for a Service that has no address. Families are the server's to decide.
pub fn prepare_create(service: &mut Value) {
    let spec = section(service, "spec");
    if text(spec, "type") == "ExternalName" {
        for name in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            spec.remove(name);
        }
        return;
    }
    if let (Some(ip), None) = (spec.get("clusterIP").filter(|ip| **ip != json!("")).cloned(), spec.get("clusterIPs")) {
        spec.insert("clusterIPs".into(), json!([ip]));
    }
}

/// An update that leaves allocated values out keeps them, and one that changes the type loses what the new type lacks.
pub fn update_service(service: &mut Value, old: &Value) {
    let before = Needs::of(old);
    let after = Needs::of(service);
    let (new, old) = (section(service, "spec"), &old["spec"]);
    if before.address && after.address {
        for name in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            let absent = new.get(name).is_none_or(|v| v.is_null() || *v == json!(""));
            if let (true, Some(value)) = (absent, old.get(name)) {
                new.insert(name.into(), value.clone());
            }
        }
    }
    // Whoever changes only the first address means the list too.
    if new.get("clusterIP") != old.get("clusterIP") && new.get("clusterIPs") == old.get("clusterIPs") {
        match new.get("clusterIP").cloned() {
            Some(ip) => new.insert("clusterIPs".into(), json!([ip])),
            None => new.remove("clusterIPs"),
        };
    }
    if text(new, "ipFamilyPolicy") == "SingleStack" && text_of(old, "ipFamilyPolicy") != "SingleStack" {
        keep_first(new, old);
    }
    match (before.outside, after.outside) {
        (true, true) => keep_node_ports(new, old),
        (true, false) => drop_node_ports(new, old),
        (false, _) => {}
    }
    if before.health_port && after.health_port && number(member(new, "healthCheckNodePort")) == 0 {
        new.insert("healthCheckNodePort".into(), old["healthCheckNodePort"].clone());
    } else if before.health_port && !after.health_port {
        drop_same(new, old, &["healthCheckNodePort"]);
    }
    if before.outside && !after.outside && new.get("externalIPs").is_none() {
        drop_same(new, old, &["externalTrafficPolicy"]);
    }
    if before.address && !after.address {
        let lost = ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"];
        drop_same(new, old, &lost);
    }
    if text_of(old, "type") == "LoadBalancer" && text(new, "type") != "LoadBalancer" {
        drop_same(new, old, &["allocateLoadBalancerNodePorts", "loadBalancerClass"]);
    }
}

/// Who changes two families to one, and names none, means the first.
fn keep_first(new: &mut Map<String, Value>, old: &Value) {
    for name in ["clusterIPs", "ipFamilies"] {
        if new.get(name) == old.get(name)
            && let Some(Value::Array(list)) = new.get_mut(name)
        {
            list.truncate(1);
        }
    }
}

/// What a Service of its type has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    pub address: bool,
    /// Its ports are ports of every node.
    pub node_ports: bool,
    /// Nodes answer at a port of theirs whether they have an endpoint.
    pub health_port: bool,
    /// The outside reaches it.
    outside: bool,
}

impl Needs {
    pub fn of(service: &Value) -> Self {
        let spec = &service["spec"];
        let balanced = text_of(spec, "type") == "LoadBalancer";
        let allocates = spec["allocateLoadBalancerNodePorts"].as_bool().unwrap_or(true);
        let given = items(&spec["ports"]).any(|port| number(&port["nodePort"]) != 0);
        let outside = balanced || text_of(spec, "type") == "NodePort";
        Self {
            address: text_of(spec, "type") != "ExternalName",
            node_ports: outside && (!balanced || allocates || given),
            health_port: balanced && text_of(spec, "externalTrafficPolicy") == "Local",
            outside,
        }
    }
}

fn text_of<'a>(spec: &'a Value, name: &str) -> &'a str {
    spec[name].as_str().unwrap_or_default()
}

/// Null when there is none.
fn member<'a>(map: &'a Map<String, Value>, name: &str) -> &'a Value {
    map.get(name).unwrap_or(&Value::Null)
}

fn number(port: &Value) -> u64 {
    port.as_u64().unwrap_or(0)
}

/// Takes away what is as it was: whoever changes only the type does not mean to keep it.
fn drop_same(new: &mut Map<String, Value>, old: &Value, names: &[&str]) {
    names.iter().filter(|name| new.get(**name) == old.get(**name)).copied().collect::<Vec<_>>().iter().for_each(
        |name| {
            new.remove(*name);
        },
    );
}

fn node_ports(spec: &Value) -> impl Iterator<Item = u64> {
    items(&spec["ports"]).map(|port| number(&port["nodePort"])).filter(|port| *port != 0)
}

/// A port that names no node port keeps the one that the port of its name had, unless another has that now.
fn keep_node_ports(new: &mut Map<String, Value>, old: &Value) {
    let given: Vec<u64> = items(member(new, "ports")).map(|port| number(&port["nodePort"])).collect();
    let mut used: Vec<u64> = node_ports(old).filter(|port| given.contains(port)).collect();
    for port in new.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        if number(&port["nodePort"]) != 0 {
            continue;
        }
        let before = items(&old["ports"]).find(|other| text_of(other, "name") == text_of(port, "name"));
        let before = before.map_or(0, |before| number(&before["nodePort"]));
        if before != 0 && !used.contains(&before) {
            port["nodePort"] = json!(before);
            used.push(before);
        }
    }
}

fn drop_node_ports(new: &mut Map<String, Value>, old: &Value) {
    let before: Vec<u64> = node_ports(old).collect();
    for port in new.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        if before.contains(&number(&port["nodePort"]))
            && let Some(port) = port.as_object_mut()
        {
            port.remove("nodePort");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(list: Value) -> Value {
        json!({"spec": {"type": "NodePort", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "ports": list}})
    }

    fn updated(old: &Value, mut new: Value) -> Value {
        update_service(&mut new, old);
        new["spec"].clone()
    }

    #[test]
    fn a_change_of_ports_keeps_the_node_ports_of_those_that_stay() {
        let old =
            ports(json!([{"name": "a", "port": 80, "nodePort": 30001}, {"name": "b", "port": 81, "nodePort": 30002}]));
        let new = json!({"spec": {"type": "NodePort", "ports": [
            {"name": "a", "port": 8080}, {"name": "c", "port": 82}, {"name": "b", "port": 81, "nodePort": 30005}]}});
        let new = updated(&old, new);
        let node_ports: Vec<u64> = items(&new["ports"]).map(|port| number(&port["nodePort"])).collect();
        assert_eq!((&new["clusterIP"], node_ports), (&json!("10.96.0.9"), vec![30001, 0, 30005]));
        // One that another has taken is not given twice.
        let taken = json!({"spec": {"type": "NodePort", "ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81, "nodePort": 30001}]}});
        assert_eq!(updated(&old, taken)["ports"][0].get("nodePort"), None);
    }

    #[test]
    fn a_service_without_ports_or_addresses_is_updated() {
        let empty = json!({"spec": {"type": "NodePort"}});
        assert_eq!(updated(&empty, empty.clone()), empty["spec"]);
        let named = json!({"spec": {"type": "ExternalName", "externalName": "a.b"}});
        assert_eq!(updated(&empty, named.clone()), named["spec"]);
    }

    #[test]
    fn leaving_node_port_drops_what_was_allocated() {
        let old = ports(json!([{"port": 80, "nodePort": 30001}]));
        let new = json!({"spec": {"type": "ClusterIP", "ports": [{"port": 80, "nodePort": 30001}]}});
        let new = updated(&old, new);
        assert_eq!((new["ports"][0].get("nodePort"), &new["clusterIP"]), (None, &json!("10.96.0.9")));
        let mut name = old.clone();
        name["spec"]["type"] = json!("ExternalName");
        let name = updated(&old, name);
        assert_eq!((name.get("clusterIP"), name.get("clusterIPs")), (None, None));
    }

    #[test]
    fn the_port_of_health_checks_comes_and_goes_with_the_policy() {
        let balanced = |policy: &str| json!({"spec": {"type": "LoadBalancer", "externalTrafficPolicy": policy, "ports": [{"port": 80}]}});
        let mut old = balanced("Local");
        old["spec"]["healthCheckNodePort"] = json!(30003);
        assert_eq!(updated(&old, balanced("Local"))["healthCheckNodePort"], 30003);
        let mut new = old.clone();
        new["spec"]["externalTrafficPolicy"] = json!("Cluster");
        assert_eq!(updated(&old, new).get("healthCheckNodePort"), None);
    }
}
