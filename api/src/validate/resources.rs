//! Names of resources, and what is counted of them.

use super::{At, Errors};
use crate::names::qualified_name;
use crate::quantity::Quantity;

/// Counted by number.
const COUNTED: [&str; 9] = [
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];
/// Measured.
const MEASURED: [&str; 11] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "storage",
];

fn is_huge_page(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// Kubernetes' own.
fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

fn is_extended(name: &str) -> bool {
    !is_native(name) && !name.starts_with("requests.") && qualified_name(&format!("requests.{name}")).is_empty()
}

/// What a quota may count.
pub fn is_quota(name: &str) -> bool {
    let measured = MEASURED.contains(&name) && name != "storage";
    COUNTED.contains(&name) || measured || is_huge_page(name) || name.starts_with("requests.hugepages-")
}

pub fn may_overcommit(name: &str) -> bool {
    is_native(name) && !is_huge_page(name)
}

/// A name that is a standard resource's, or says whose it is.
pub fn known(name: &At<'_>, errors: &mut Errors) {
    let (text, before) = (name.text(), errors.len());
    name.named(qualified_name, errors);
    if errors.len() == before
        && !text.contains('/')
        && !COUNTED.contains(&text)
        && !MEASURED.contains(&text)
        && !is_huge_page(text)
    {
        name.invalid("must be a standard resource type or fully qualified", errors);
    }
}

/// A resource that containers ask for.
pub fn of_container(name: &At<'_>, errors: &mut Errors) {
    known(name, errors);
    let text = name.text();
    let standard = matches!(text, "cpu" | "memory" | "ephemeral-storage") || is_huge_page(text);
    if !text.contains('/') && !standard {
        name.invalid("must be a standard resource for containers", errors);
    } else if !is_native(text) && !is_extended(text) {
        name.invalid("doesn't follow extended resource name standard", errors);
    }
}

/// An amount that a quota may set.
pub fn amount(name: &str, amount: &At<'_>, errors: &mut Errors) {
    amount.not_negative_quantity(errors);
    let whole = COUNTED.contains(&name) || is_extended(name);
    if whole && amount.quantity().is_some_and(|amount| !Quantity::is_integer(amount)) {
        amount.invalid("must be an integer", errors);
    }
}
