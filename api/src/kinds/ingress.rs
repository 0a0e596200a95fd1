//! Ingresses and their classes.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Behaviour, DEFAULT, Generation};
use crate::table::cells::{NONE, at_most_three, or_none};
use crate::value::{count, items, text};

pub const BEHAVIOUR: Behaviour = Behaviour {
    generation: Generation::Spec,
    cells: Some(cells),
    inactive: Some("no traffic is routed by it"),
    ..DEFAULT
};

pub const CLASS: Behaviour = Behaviour {
    generation: Generation::Spec,
    cells: Some(|o, _| {
        let p = &o["spec"]["parameters"];
        let name = [&p["kind"], &p["apiGroup"], &p["name"]].map(text);
        let shown = match name {
            ["", ..] => NONE.to_string(),
            [kind, "", name] => format!("{kind}/{name}"),
            [kind, group, name] => format!("{kind}.{group}/{name}"),
        };
        vec![("Controller", o["spec"]["controller"].clone()), ("Parameters", json!(shown))]
    }),
    ..DEFAULT
};

fn cells(ingress: &Value, _: Timestamp) -> Vec<(&'static str, Value)> {
    let spec = &ingress["spec"];
    let hosts: Vec<String> =
        items(&spec["rules"]).map(|r| text(&r["host"]).to_string()).filter(|h| !h.is_empty()).collect();
    let hosts = if hosts.is_empty() { "*".into() } else { at_most_three(&hosts) };
    let addresses: Vec<&str> = items(&ingress["status"]["loadBalancer"]["ingress"])
        .map(|i| if text(&i["ip"]).is_empty() { text(&i["hostname"]) } else { text(&i["ip"]) })
        .collect();
    vec![
        ("Class", json!(or_none(text(&spec["ingressClassName"]).into()))),
        ("Hosts", json!(hosts)),
        ("Address", json!(addresses.join(","))),
        ("Ports", json!(if count(&spec["tls"]) > 0 { "80, 443" } else { "80" })),
    ]
}
