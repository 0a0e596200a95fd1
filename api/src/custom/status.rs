//! What a definition's status says: which names it got, whether it is served, whether it is approved. Pure.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::conditions::{self, Condition};
use crate::time::rfc3339;
use crate::value::{items, text};
use crate::write::section;

/// Holds a definition until its objects are gone.
pub const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

/// A definition that is deleted waits for its objects.
pub fn begin_deletion(definition: &mut Value, now: Timestamp) {
    let metadata = section(definition, "metadata");
    let finalizers = metadata.entry("finalizers").or_insert_with(|| json!([]));
    if let Some(list) = finalizers.as_array_mut()
        && !list.iter().any(|own| *own == CLEANUP)
    {
        list.push(json!(CLEANUP));
    }
    say(definition, pending(), now);
}

/// A group of Kubernetes itself.
pub fn is_protected_group(group: &str) -> bool {
    let below = |domain: &str| group == domain || group.ends_with(&format!(".{domain}"));
    below("k8s.io") || below("kubernetes.io")
}

/// A condition of it is true.
pub fn holds(definition: &Value, condition: &str) -> bool {
    find(definition, condition).is_some_and(|found| found["status"] == "True")
}

fn find<'v>(definition: &'v Value, condition: &str) -> Option<&'v Value> {
    items(&definition["status"]["conditions"]).find(|found| found["type"] == condition)
}

/// Its objects will be deleted.
pub fn pending() -> Condition {
    let message = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
    Condition::new("Terminating", true).because("InstanceDeletionPending", message)
}

/// Its objects are being deleted.
pub fn terminating() -> Condition {
    Condition::new("Terminating", true).because("InstanceDeletionInProgress", "CustomResource deletion is in progress")
}

/// They could not be.
pub fn not_deleted(why: &str) -> Condition {
    let message = format!("could not issue all deletes: {why}");
    Condition::new("Terminating", true).because("InstanceDeletionFailed", message)
}

/// They are gone.
pub fn deleted(definition: &Value) -> Condition {
    let gone = Condition::new("Terminating", false);
    match holds(definition, "Established") {
        true => gone.because("InstanceDeletionCompleted", "removed all instances"),
        false => gone.because("NeverEstablished", "resource was never established"),
    }
}

/// Says something in a definition's status.
pub fn say(definition: &mut Value, said: Condition, now: Timestamp) {
    let stored = &definition["status"]["conditions"];
    let merged = conditions::merge(stored, &[], &[said], conditions::PLAIN, &rfc3339(now));
    section(definition, "status").insert("conditions".into(), json!(merged));
}

/// The definition with the status that it should have, beside the others of its group; the same where it is settled.
pub fn settled(definition: &Value, others: &[&Value], now: Timestamp) -> Value {
    let mut next = definition.clone();
    let (accepted, named) = names(definition, others);
    section(&mut next, "status").insert("acceptedNames".into(), accepted);
    let fine = named == fine_names();
    let established = || match fine {
        true => {
            Condition::new("Established", true).because("InitialNamesAccepted", "the initial names have been accepted")
        }
        false => Condition::new("Established", false).because("NotAccepted", "not all names are accepted"),
    };
    let established = (!holds(definition, "Established")).then(established);
    for said in [Some(named), established, approval(definition)].into_iter().flatten() {
        if !said.is_said_in(&definition["status"]["conditions"]) {
            say(&mut next, said, now);
        }
    }
    next
}

fn fine_names() -> Condition {
    Condition::new("NamesAccepted", true).because("NoConflicts", "no conflicts found")
}

/// The names that it gets: those asked for, but for those that others of its group have.
fn names(definition: &Value, others: &[&Value]) -> (Value, Condition) {
    let (asked, had) = (&definition["spec"]["names"], &definition["status"]["acceptedNames"]);
    let group = &definition["spec"]["group"];
    let taken = |fields: &[&str], name: &str| {
        others.iter().filter(|other| other["spec"]["group"] == *group).any(|other| {
            let names = &other["status"]["acceptedNames"];
            fields.iter().any(|field| names[*field] == name || items(&names[*field]).any(|short| *short == name))
        })
    };
    const RESOURCES: [&str; 3] = ["plural", "singular", "shortNames"];
    const KINDS: [&str; 2] = ["kind", "listKind"];
    let mut accepted = if had.is_object() { had.clone() } else { json!({"plural": "", "kind": ""}) };
    let mut conflict = None;
    let in_use = |name: &str| format!("{name:?} is already in use");
    for (field, fields, reason) in [
        ("plural", &RESOURCES[..], "PluralConflict"),
        ("singular", &RESOURCES[..], "SingularConflict"),
        ("shortNames", &RESOURCES[..], "ShortNamesConflict"),
        ("kind", &KINDS[..], "KindConflict"),
        ("listKind", &KINDS[..], "ListKindConflict"),
    ] {
        let wanted: Vec<&str> = match &asked[field] {
            Value::Array(list) => list.iter().map(text).collect(),
            name => vec![text(name)],
        };
        let own = |name: &str| had[field] == name || items(&had[field]).any(|own| *own == name);
        let lost: Vec<String> =
            wanted.iter().filter(|name| !own(name) && taken(fields, name)).map(|name| in_use(name)).collect();
        match lost.as_slice() {
            [] => put(&mut accepted, field, &asked[field]),
            [one] => conflict = Some((reason, one.clone())),
            many => conflict = Some((reason, format!("[{}]", many.join(", ")))),
        }
    }
    put(&mut accepted, "categories", &asked["categories"]);
    let named = match conflict {
        None => fine_names(),
        Some((reason, message)) => Condition::new("NamesAccepted", false).because(reason, message),
    };
    (accepted, named)
}

fn put(names: &mut Value, field: &str, value: &Value) {
    let Some(map) = names.as_object_mut() else { return };
    match value {
        Value::Null => drop(map.remove(field)),
        value => drop(map.insert(field.into(), value.clone())),
    }
}

/// Of groups of Kubernetes itself: where they were agreed on.
fn approval(definition: &Value) -> Option<Condition> {
    const NAME: &str = "KubernetesAPIApprovalPolicyConformant";
    if !is_protected_group(text(&definition["spec"]["group"])) {
        return None;
    }
    let given = text(&definition["metadata"]["annotations"]["api-approved.kubernetes.io"]);
    let see = "see https://github.com/kubernetes/enhancements/pull/1111";
    let must = "protected groups must have approval annotation \"api-approved.kubernetes.io\"";
    Some(match given {
        "" => Condition::new(NAME, false).because("MissingAnnotation", format!("{must}, {see}")),
        text if text.starts_with("unapproved") => {
            Condition::new(NAME, false).because("UnapprovedAnnotation", format!("not approved: {text:?}"))
        }
        text if text.contains("://") => {
            Condition::new(NAME, true).because("ApprovedAnnotation", format!("approved in {text}"))
        }
        _ => {
            let message = format!("{must} with either a URL or a reason starting with \"unapproved\", {see}");
            Condition::new(NAME, false).because("InvalidAnnotation", message)
        }
    })
}
