//! NetworkPolicies.

use serde_json::json;

use super::{Behaviour, DEFAULT, Generation};
use crate::default::set_absent;
use crate::table::cells::selector;

pub const BEHAVIOUR: Behaviour = Behaviour {
    defaults: &[
        ("networking.v1.NetworkPolicyPort", |m| set_absent(m, "protocol", "TCP")),
        ("networking.v1.NetworkPolicySpec", |m| {
            if !m.contains_key("policyTypes") {
                let egress = m.get("egress").is_some_and(|v| v.as_array().is_some_and(|e| !e.is_empty()));
                m.insert("policyTypes".into(), if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) });
            }
        }),
    ],
    generation: Generation::Spec,
    cells: Some(|o, _| vec![("Pod-Selector", json!(selector(&o["spec"]["podSelector"])))]),
    inactive: Some("no traffic is restricted"),
    ..DEFAULT
};
