//! CertificateSigningRequests: who asks is said once, who approves does not sign.

use serde_json::{Value, json};

use super::{Asker, Behaviour, DEFAULT, Part};
use crate::selector::field;
use crate::write::{keep, section};

pub const BEHAVIOUR: Behaviour = Behaviour {
    asked_by: Some(asks_for_itself),
    // Who asked for what is said once.
    update: Some(|new, old| keep(new, old, "spec")),
    update_part: Some(|part, new, sent, old| match part {
        Part::Approval => approve(new, sent),
        Part::Status => sign(new, old),
        _ => {}
    }),
    selectable: &[field("spec.signerName")],
    ..DEFAULT
};

/// A request for a certificate says who makes it: not what its author writes there.
fn asks_for_itself(request: &mut Value, user: &Asker<'_>) {
    for (field, value) in [
        ("username", json!(user.name)),
        ("uid", json!(user.uid)),
        ("groups", json!(user.groups)),
        ("extra", json!(user.extra)),
    ] {
        request["spec"][field] = value;
    }
}

fn conditions_of(object: &mut Value, conditions: Vec<Value>) {
    let status = section(object, "status");
    if conditions.is_empty() {
        status.remove("conditions");
    } else {
        status.insert("conditions".into(), json!(conditions));
    }
}

/// Whoever signs does not approve.
fn sign(out: &mut Value, old: &Value) {
    let decides = |condition: &Value| matches!(condition["type"].as_str(), Some("Approved" | "Denied"));
    let of = |object: &Value| object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let mut conditions = of(old);
    conditions.retain(decides);
    conditions.extend(of(out).into_iter().filter(|condition| !decides(condition)));
    conditions_of(out, conditions);
}

/// Whoever approves does not sign, and changes nothing of what was asked for.
fn approve(out: &mut Value, sent: &Value) {
    if let Some(metadata) = sent.get("metadata") {
        out["metadata"] = metadata.clone();
    }
    conditions_of(out, sent["status"]["conditions"].as_array().cloned().unwrap_or_default());
}
