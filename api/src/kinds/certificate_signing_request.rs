//! CertificateSigningRequests: who asks is said once, who approves does not sign.

use std::collections::HashSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{Asker, Aspect, Behaviour, DEFAULT, Part};
use crate::names::{dns_label, dns_subdomain};
use crate::selector::field;
use crate::time::human;
use crate::validate::{At, Errors, NameRule, decoded, diff};
use crate::value::{items, text};
use crate::write::{keep, section};

pub const BEHAVIOUR: Behaviour = Behaviour {
    name: |_| Vec::new(),
    validate: Some(|object, errors| request(object, &Value::Null, errors)),
    validate_update: Some(|new, old, errors| {
        request(new, old, errors);
        kept(new, old, &[], errors);
    }),
    validate_part: Some(|part, new, old, errors| {
        request(new, old, errors);
        kept(new, old, &[part], errors);
    }),
    asked_by: Some(asks_for_itself),
    update: Some(|new, old| keep(new, old, "spec")),
    update_part: Some(|part, out, sent, old| match part {
        Part::Approval => {
            if let Some(metadata) = sent.get("metadata") {
                out["metadata"] = metadata.clone();
            }
            conditions_of(out, sent["status"]["conditions"].as_array().cloned().unwrap_or_default());
        }
        Part::Status => sign(out, old),
        _ => {}
    }),
    selectable: &[field("spec.signerName")],
    cells: Some(|o, _| cells(o)),
    none: &[Aspect::Defaults, Aspect::Warnings],
    missing: &[
        (Aspect::Validation, "the signature of what is requested"),
        (Aspect::Validation, "times of conditions that are not sent, which upstream fills in"),
    ],
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

const DECISIONS: [&str; 2] = ["Approved", "Denied"];

fn of_type<'a>(object: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    items(&object["status"]["conditions"]).filter(move |condition| condition["type"] == kind)
}

/// Whoever signs leaves each decision as it is; one more or less is refused.
fn sign(out: &mut Value, old: &Value) {
    let mut conditions = out["status"]["conditions"].as_array().cloned().unwrap_or_default();
    for kind in DECISIONS {
        let before: Vec<Value> = of_type(old, kind).cloned().collect();
        let places: Vec<usize> =
            conditions.iter().enumerate().filter(|(_, c)| c["type"] == kind).map(|(i, _)| i).collect();
        if places.len() == before.len() {
            for (place, condition) in places.into_iter().zip(before) {
                conditions[place] = condition;
            }
        }
    }
    conditions_of(out, conditions);
}

const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

/// What was accepted once may stay.
fn request(object: &Value, old: &Value, errors: &mut Errors) {
    let spec = At::of(object, "spec");
    let asked = spec.at("request");
    if block_type(&decoded(asked.value)).as_deref() != Some("CERTIFICATE REQUEST") {
        asked.invalid("PEM block type must be CERTIFICATE REQUEST", errors);
    }
    let usages = spec.at("usages");
    if usages.is_empty() {
        usages.required("", errors);
    }
    let before: Vec<&str> = items(&old["spec"]["usages"]).map(text).collect();
    if before.iter().all(|usage| USAGES.contains(usage)) {
        usages.items().for_each(|usage| usage.one_of(&USAGES, errors));
    }
    let unique = |list: &[&str]| list.iter().collect::<HashSet<_>>().len() == list.len();
    let mut seen = HashSet::new();
    for usage in usages.items().filter(|usage| !seen.insert(usage.text())) {
        if unique(&before) {
            usage.duplicate(errors);
        }
    }
    signer_name(&spec.at("signerName"), old, errors);
    let expires = spec.at("expirationSeconds");
    if expires.number().is_some_and(|n| n < 600) {
        expires.invalid("may not specify a duration less than 600 seconds (10 minutes)", errors);
    }
    conditions(object, old, errors);
    certificate(object, old, errors);
}

const LEGACY: &str = "kubernetes.io/legacy-unknown";

fn signer_name(name: &At<'_>, old: &Value, errors: &mut Errors) {
    let text = name.text();
    if text == LEGACY && old["spec"]["signerName"] != LEGACY {
        return name.invalid("the legacy signerName is not allowed via this API version", errors);
    }
    if text.is_empty() {
        return name.required("", errors);
    }
    let [domain, path] = text.split('/').collect::<Vec<_>>()[..] else {
        return name.invalid("must be a fully qualified domain and path of the form 'example.com/signer-name'", errors);
    };
    if domain.len() > 253 {
        name.too_long(253, errors);
    }
    labels(name, domain, dns_label, errors);
    if !domain.contains('.') {
        name.invalid_as(domain, "should be a domain with at least two segments separated by dots", errors);
    }
    labels(name, path, dns_subdomain, errors);
    const BYTES: usize = 571;
    if text.len() > BYTES {
        name.too_long(BYTES, errors);
    }
}

/// The first label that is wrong is told.
fn labels(name: &At<'_>, part: &str, rule: NameRule, errors: &mut Errors) {
    let wrong = part.split('.').map(|label| (label, rule(label))).find(|(_, complaints)| !complaints.is_empty());
    for (label, why) in wrong.into_iter().flat_map(|(label, all)| all.into_iter().map(move |why| (label, why))) {
        name.invalid_as(part, format!("validating label {label:?}: {why}"), errors);
    }
}

fn conditions(object: &Value, old: &Value, errors: &mut Errors) {
    let list = At::of(object, "status").at("conditions");
    let before: Vec<&str> = items(&old["status"]["conditions"]).map(|c| text(&c["type"])).collect();
    let both = DECISIONS.iter().all(|kind| before.contains(kind));
    let twice = before.iter().collect::<HashSet<_>>().len() < before.len();
    let mut seen = HashSet::new();
    for condition in list.items() {
        let (kind, status) = (condition.at("type"), condition.at("status"));
        if kind.is_empty() && !before.contains(&"") {
            kind.required("", errors);
        }
        match (status.text(), kind.text()) {
            ("", _) => status.required("", errors),
            (_, "Approved" | "Denied" | "Failed") => status.one_of(&["True"], errors),
            _ => status.one_of(&["False", "True", "Unknown"], errors),
        }
        let other = match kind.text() {
            "Approved" => "Denied",
            "Denied" => "Approved",
            _ => "",
        };
        if !other.is_empty() && !both && seen.contains(other) {
            let why = "Approved and Denied conditions are mutually exclusive";
            list.invalid_as(kind.text(), why, errors);
        }
        if !seen.insert(kind.text()) && !twice {
            kind.duplicate(errors);
        }
    }
}

/// What stands before the data of the first block.
fn block_type(pem: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(pem).ok()?;
    let (_, rest) = text.split_once("-----BEGIN ")?;
    let (kind, rest) = rest.split_once("-----")?;
    rest.contains(&format!("-----END {kind}-----")).then(|| kind.to_owned())
}

/// Certificates only, one block after the other.
fn wrong_certificate(pem: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(pem).into_owned();
    let mut rest = text.as_str();
    let mut blocks = 0;
    while let Some((_, block)) = rest.split_once("-----BEGIN ") {
        let Some((kind, body)) = block.split_once("-----") else { break };
        let Some((body, after)) = body.split_once(&format!("-----END {kind}-----")) else { break };
        if kind != "CERTIFICATE" {
            return Some(format!("only CERTIFICATE PEM blocks are allowed, found {kind:?}"));
        }
        if body.contains(':') {
            return Some("no PEM block headers are permitted".into());
        }
        let data: String = body.split_whitespace().collect();
        // A certificate is a sequence, as its first byte says.
        if STANDARD.decode(data).ok().and_then(|data| data.first().copied()) != Some(0x30) {
            return Some("x509: malformed certificate".into());
        }
        blocks += 1;
        rest = after;
    }
    (blocks == 0).then(|| "must contain at least one CERTIFICATE PEM block".into())
}

fn certificate(object: &Value, old: &Value, errors: &mut Errors) {
    let given = At::of(object, "status").at("certificate");
    let before = &old["status"]["certificate"];
    let stays = given.value == before || (!text(before).is_empty() && wrong_certificate(&decoded(before)).is_some());
    if given.is_empty() || stays {
        return;
    }
    if let Some(why) = wrong_certificate(&decoded(given.value)) {
        given.invalid_as("<certificate data>", why, errors);
    }
}

/// Decisions are made through one part, certificates through another, and neither is taken back.
fn kept(new: &Value, old: &Value, through: &[Part], errors: &mut Errors) {
    let conditions = At::of(new, "status").at("conditions");
    let count = |object: &Value, kind: &str| of_type(object, kind).count();
    for kind in ["Approved", "Denied", "Failed"] {
        if count(new, kind) < count(old, kind) {
            conditions.forbidden(format!("updates may not remove a condition of type {kind:?}"), errors);
        }
    }
    if !through.contains(&Part::Approval) {
        for kind in DECISIONS {
            let same = of_type(new, kind).eq(of_type(old, kind));
            if count(new, kind) > count(old, kind) {
                conditions.forbidden(format!("updates may not add a condition of type {kind:?}"), errors);
            } else if count(new, kind) == count(old, kind) && !same {
                let of = |object: &Value| of_type(object, kind).next().cloned().unwrap_or_default();
                let why = format!("updates may not modify a condition of type {kind:?}\n{}", diff(&of(new), &of(old)));
                conditions.forbidden(why, errors);
            }
        }
    }
    let (certificate, before) = (At::of(new, "status").at("certificate"), &old["status"]["certificate"]);
    if text(certificate.value) != text(before) {
        if !through.contains(&Part::Status) {
            certificate.forbidden("updates may not set certificate content", errors);
        } else if !text(before).is_empty() {
            certificate.forbidden("updates may not modify existing certificate content", errors);
        }
    }
}

fn cells(request: &Value) -> Vec<(&'static str, Value)> {
    let spec = &request["spec"];
    let has = |kind: &str| of_type(request, kind).next().is_some();
    let mut state = if has("Denied") {
        "Denied".to_owned()
    } else if has("Approved") {
        "Approved".to_owned()
    } else {
        "Pending".to_owned()
    };
    if has("Failed") {
        state.push_str(",Failed");
    }
    if !text(&request["status"]["certificate"]).is_empty() {
        state.push_str(",Issued");
    }
    let duration = spec["expirationSeconds"].as_i64().map_or("<none>".to_owned(), human);
    vec![
        ("SignerName", json!(spec["signerName"].as_str().filter(|name| !name.is_empty()).unwrap_or("<none>"))),
        ("Requestor", json!(text(&spec["username"]))),
        ("RequestedDuration", json!(duration)),
        ("Condition", json!(state)),
    ]
}
