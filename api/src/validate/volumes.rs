//! Volumes of a cluster: their sources, sizes, modes and places.

use serde_json::Value;

use super::pod::placement::node_term;
use super::{At, Errors, one_source};
use crate::names::{dns_label, dns_subdomain};
use crate::quantity::Quantity;
use crate::value::items;

/// Where a volume is described.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place<'a> {
    /// In an object of this name.
    Object(&'a str),
    /// In the attachment of a volume that has no object.
    Inline,
}

/// In the order in which upstream looks at them; of several the later ones are refused.
pub const SOURCES: [&str; 22] = [
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "glusterfs",
    "flocker",
    "nfs",
    "rbd",
    "quobyte",
    "cephfs",
    "iscsi",
    "cinder",
    "fc",
    "flexVolume",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "scaleIO",
    "local",
    "storageos",
    "csi",
];

const INLINE: &str = "may not be specified in the context of inline volumes";

pub fn volume(spec: &At<'_>, place: Place<'_>, errors: &mut Errors) {
    let inline = place == Place::Inline;
    let refuse = |name: &str, errors: &mut Errors| {
        if inline && !spec.at(name).is_empty() {
            spec.at(name).forbidden(INLINE, errors);
        }
    };
    if inline {
        refuse("claimRef", errors);
        refuse("capacity", errors);
        if !spec.at("csi").is_given() {
            spec.at("csi").required("has to be specified in the context of inline volumes", errors);
        }
    }
    if spec.at("accessModes").is_empty() {
        spec.at("accessModes").required("", errors);
    }
    access_modes(&spec.at("accessModes"), errors);
    if !inline {
        capacity(&spec.at("capacity"), errors);
    }
    let policy = spec.at("persistentVolumeReclaimPolicy");
    match policy.text() {
        "" => {}
        "Retain" if inline => {}
        _ if inline => policy.forbidden("may only be Retain in the context of inline volumes", errors),
        _ => policy.one_of(&["Delete", "Recycle", "Retain"], errors),
    }
    let affinity = spec.at("nodeAffinity");
    match affinity.is_given() {
        true if inline => affinity.forbidden(INLINE, errors),
        true => node_affinity(&affinity.at("required"), errors),
        false => {}
    }
    let placed = affinity.is_given() && !inline;
    let check = |name: &str, at: At<'_>, errors: &mut Errors| {
        source(name, &at, spec, place, errors);
        if name == "local" && !placed {
            affinity.required("Local volume requires node affinity", errors);
        }
    };
    let found = one_source(spec, &SOURCES, check, errors);
    if found == 0 {
        spec.required("must specify a volume type", errors);
    }
    let root = spec.at("hostPath").at("path").text();
    if !root.is_empty() && root.bytes().all(|b| b == b'/') && policy.text() == "Recycle" {
        policy.forbidden("may not be 'recycle' for a hostPath mount of '/'", errors);
    }
    match inline {
        true => refuse("storageClassName", errors),
        false => spec.at("storageClassName").named_if_given(dns_subdomain, errors),
    }
    let mode = spec.at("volumeMode");
    match mode.is_given() {
        true if inline && mode.text() != "Filesystem" => {
            let why = "may not specify volumeMode other than Filesystem in the context of inline volumes";
            mode.forbidden(why, errors);
        }
        true if !inline => mode.one_of(&["Block", "Filesystem"], errors),
        _ => {}
    }
    let class = spec.at("volumeAttributesClassName");
    if class.is_given() && !inline {
        match class.text() {
            "" => class.required("an empty string is disallowed", errors),
            _ => class.named(dns_subdomain, errors),
        }
        if !spec.at("csi").is_given() {
            spec.at("csi").required("has to be specified when using volumeAttributesClassName", errors);
        }
    }
}

pub fn access_modes(modes: &At<'_>, errors: &mut Errors) {
    let supported = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
    for mode in modes.items().filter(|mode| !supported.contains(&mode.text())) {
        At::new(mode.value, modes.path()).not_supported(&supported, errors);
    }
    let others = supported.iter().filter(|mode| **mode != "ReadWriteOncePod").any(|mode| modes.has_text(mode));
    if modes.has_text("ReadWriteOncePod") && others {
        modes.forbidden("may not use ReadWriteOncePod with other access modes", errors);
    }
}

/// An amount of anything.
pub fn basic_amount(amount: &At<'_>, errors: &mut Errors) {
    if let Some(value) = amount.quantity().map(Quantity::value).filter(|value| *value < 0) {
        amount.invalid_as(value, "must be a valid resource quantity", errors);
    }
}

fn capacity(capacity: &At<'_>, errors: &mut Errors) {
    if capacity.is_empty() {
        capacity.required("", errors);
    }
    let count = capacity.entries().count();
    if !capacity.at("storage").is_given() || count > 1 {
        match capacity.is_given() {
            true => capacity.not_supported(&["storage"], errors),
            false => At::new(&Value::Null, capacity.path()).not_supported_null(&["storage"], errors),
        }
    }
    for (_, amount) in capacity.entries() {
        basic_amount(&amount, errors);
        amount.positive_quantity(errors);
    }
}

fn node_affinity(required: &At<'_>, errors: &mut Errors) {
    if !required.is_given() {
        return required.required("must specify required node constraints", errors);
    }
    let terms = required.at("nodeSelectorTerms");
    if terms.is_empty() {
        return terms.required("must have at least one node selector term", errors);
    }
    for term in terms.items() {
        node_term(term.value, term.path(), errors);
    }
}

/// The labels of places had other names once; a term may be changed to the new ones.
pub fn with_new_labels(affinity: &Value) -> Value {
    let mut affinity = affinity.clone();
    for term in affinity["required"]["nodeSelectorTerms"].as_array_mut().into_iter().flatten() {
        for rule in term["matchExpressions"].as_array_mut().into_iter().flatten() {
            let new = match rule["key"].as_str() {
                Some("failure-domain.beta.kubernetes.io/zone") => "topology.kubernetes.io/zone",
                Some("failure-domain.beta.kubernetes.io/region") => "topology.kubernetes.io/region",
                Some("beta.kubernetes.io/instance-type") => "node.kubernetes.io/instance-type",
                _ => continue,
            };
            rule["key"] = new.into();
        }
    }
    affinity
}

/// Fields that a source has to have.
const NEEDED: [(&str, &[&str]); 12] = [
    ("gcePersistentDisk", &["pdName"]),
    ("awsElasticBlockStore", &["volumeID"]),
    ("glusterfs", &["endpoints", "path"]),
    ("nfs", &["server", "path"]),
    ("cinder", &["volumeID"]),
    ("flexVolume", &["driver"]),
    ("azureFile", &["secretName", "shareName"]),
    ("vsphereVolume", &["volumePath"]),
    ("photonPersistentDisk", &["pdID"]),
    ("portworxVolume", &["volumeID"]),
    ("azureDisk", &["diskName", "diskURI"]),
    ("scaleIO", &["gateway", "system", "volumeName"]),
];

fn source(name: &str, at: &At<'_>, spec: &At<'_>, place: Place<'_>, errors: &mut Errors) {
    // Upstream names this one differently here.
    let renamed = At::new(at.value, format!("{}.persistentDisk", spec.path()));
    let at = if name == "gcePersistentDisk" { &renamed } else { at };
    let needed = NEEDED.iter().find(|(source, _)| *source == name).map_or(&[][..], |(_, fields)| fields);
    for field in needed {
        at.at(field).needs_text(errors);
    }
    match name {
        "hostPath" => super::pod::volume::host_path(at.value, at.path(), errors),
        "local" => {
            let path = at.at("path");
            match path.text() {
                "" => path.required("", errors),
                _ => super::pod::volume::no_backsteps(path.value, path.path(), errors),
            }
        }
        "csi" => csi(at, errors),
        "nfs" if !at.at("path").text().starts_with('/') => {
            at.at("path").invalid("must be an absolute path", errors);
        }
        "fc" => fibre_channel(at, errors),
        "iscsi" => iscsi(at, if let Place::Object(name) = place { name } else { "" }, errors),
        "gcePersistentDisk" | "awsElasticBlockStore" => {
            let partition = at.at("partition");
            if partition.number().is_some_and(|n| !(0..=255).contains(&n)) {
                partition.invalid("must be between 0 and 255, inclusive", errors);
            }
        }
        "rbd" | "cephfs" => {
            if at.at("monitors").is_empty() {
                at.at("monitors").required("", errors);
            }
            if name == "rbd" {
                at.at("image").needs_text(errors);
            }
        }
        _ => older(name, at, errors),
    }
}

/// Sources of systems that have drivers of their own by now.
fn older(name: &str, at: &At<'_>, errors: &mut Errors) {
    match name {
        "glusterfs" => {
            let namespace = at.at("endpointsNamespace");
            if namespace.is_given() && namespace.is_empty() {
                let why = "if the endpointnamespace is set, it must be a valid namespace name";
                namespace.invalid(why, errors);
            }
            namespace.named_if_given(dns_label, errors);
        }
        "flocker" => {
            let (name, id) = (at.at("datasetName"), at.at("datasetUUID"));
            match (name.is_empty(), id.is_empty()) {
                (true, true) => at.required("one of datasetName and datasetUUID is required", errors),
                (false, false) => {
                    let why = "datasetName and datasetUUID can not be specified simultaneously";
                    at.invalid_as("resource", why, errors);
                }
                _ => {}
            }
            if name.text().contains('/') {
                name.invalid("must not contain '/'", errors);
            }
        }
        "quobyte" => {
            let (registry, why) = (at.at("registry"), "must be a host:port pair or multiple pairs separated by commas");
            if registry.is_empty() {
                registry.required(why, errors);
            } else if at.at("tenant").text().len() > 64 {
                at.at("tenant").required("must be a UUID and may not exceed a length of 64 characters", errors);
            } else {
                let pairs = registry.text().split(',').filter(|pair| !pair.contains(':'));
                pairs.for_each(|_| registry.invalid(why, errors));
            }
            at.at("volume").needs_text(errors);
        }
        "cinder" | "storageos" => {
            if name == "storageos" {
                at.at("volumeName").needs_name(dns_label, errors);
                at.at("volumeNamespace").named_if_given(dns_label, errors);
            }
            let secret = at.at("secretRef");
            if secret.is_given() {
                secret.at("name").needs_text(errors);
                secret.at("namespace").needs_text(errors);
            }
        }
        "azureFile" => {
            let namespace = at.at("secretNamespace");
            if namespace.is_given() && namespace.is_empty() {
                namespace.required("", errors);
            }
        }
        "azureDisk" => azure_disk(at, errors),
        "flexVolume" => {
            for (key, option) in at.at("options").entries() {
                let domain = format!(".{}", key.split('/').next().unwrap_or_default().to_lowercase());
                if key.contains('/') && (domain.ends_with(".kubernetes.io") || domain.ends_with(".k8s.io")) {
                    option.invalid_as(key, "kubernetes.io and k8s.io namespaces are reserved", errors);
                }
            }
        }
        _ => {}
    }
}

fn azure_disk(at: &At<'_>, errors: &mut Errors) {
    at.at("cachingMode").one_of_if_given(&["None", "ReadOnly", "ReadWrite"], errors);
    let (kind, uri) = (at.at("kind"), at.at("diskURI"));
    kind.one_of_if_given(&["Dedicated", "Managed", "Shared"], errors);
    let (start, form) = match kind.text() {
        "Managed" => (
            "/subscriptions/",
            "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}",
        ),
        _ => ("https://", "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd"),
    };
    if kind.is_given() && !uri.text().starts_with(start) {
        uri.not_supported(&[form], errors);
    }
}

/// The name of a CSI driver.
pub fn driver(name: &At<'_>, errors: &mut Errors) {
    let text = name.text();
    if text.is_empty() {
        name.required("", errors);
    }
    if text.len() > 63 {
        name.too_long(63, errors);
    }
    name.complain(dns_subdomain(&text.to_lowercase()), errors);
}

fn csi(at: &At<'_>, errors: &mut Errors) {
    driver(&at.at("driver"), errors);
    at.at("volumeHandle").needs_text(errors);
    for name in
        ["controllerPublishSecretRef", "controllerExpandSecretRef", "nodePublishSecretRef", "nodeExpandSecretRef"]
    {
        let secret = at.at(name);
        if secret.is_given() {
            secret.at("name").needs_name(dns_subdomain, errors);
            secret.at("namespace").needs_name(dns_label, errors);
        }
    }
}

fn fibre_channel(at: &At<'_>, errors: &mut Errors) {
    let (targets, lun) = (at.at("targetWWNs"), at.at("lun"));
    match (items(targets.value).len(), items(at.at("wwids").value).len()) {
        (0, 0) => targets.required("must specify either targetWWNs or wwids, but not both", errors),
        (n, m) if n > 0 && m > 0 => {
            targets.invalid("targetWWNs and wwids can not be specified simultaneously", errors);
        }
        _ => {}
    }
    if targets.is_empty() {
        return;
    }
    match lun.number() {
        None => lun.required("lun is required if targetWWNs is specified", errors),
        Some(n) if !(0..=255).contains(&n) => lun.invalid("must be between 0 and 255, inclusive", errors),
        Some(_) => {}
    }
}

/// `iqn.2001-04.com.example:disk`, `eui.` and 16, or `naa.` and 32 characters.
fn is_initiator(name: &str) -> bool {
    let long = |rest: &str, length: usize| {
        let rest = rest.strip_prefix('.').unwrap_or(rest);
        rest.len() == length && rest.bytes().all(|b| b.is_ascii_alphanumeric())
    };
    if let Some(rest) = name.strip_prefix("eui") {
        return long(rest, 16);
    }
    if let Some(rest) = name.strip_prefix("naa") {
        return long(rest, 32);
    }
    let parts = name.strip_prefix("iqn.").and_then(|rest| rest.split_once('.')).and_then(|(date, rest)| {
        let (year, month) = date.split_once('-')?;
        let (host, disk) = rest.split_once(':')?;
        Some((year, month, host, disk))
    });
    parts.is_some_and(|(year, month, host, disk)| {
        let digits = |text: &str, n: usize| text.len() == n && text.bytes().all(|b| b.is_ascii_digit());
        digits(year, 4)
            && digits(month, 2)
            && !host.is_empty()
            && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b))
            && !disk.is_empty()
            && !disk.chars().any(|c| ",;*&$|".contains(c) || c.is_whitespace())
    })
}

fn iscsi(at: &At<'_>, volume: &str, errors: &mut Errors) {
    let portal = at.at("targetPortal");
    portal.needs_text(errors);
    let initiator = at.at("initiatorName");
    if initiator.is_given() && volume.len() + 1 + portal.text().len() > 64 {
        let why = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.";
        At::new(portal.value, format!("{}.targetportal", at.path())).invalid(why, errors);
    }
    let name = at.at("iqn");
    match name.text() {
        "" => name.required("", errors),
        text if !is_initiator(text) => name.invalid("must be valid format", errors),
        _ => {}
    }
    let lun = at.at("lun");
    if lun.number().is_some_and(|n| !(0..=255).contains(&n)) {
        lun.invalid("must be between 0 and 255, inclusive", errors);
    }
    let secret = at.at("secretRef");
    let authenticates = at.at("chapAuthDiscovery").is_true() || at.at("chapAuthSession").is_true();
    match secret.is_given() {
        false if authenticates => secret.required("", errors),
        true => secret.at("name").needs_text(errors),
        false => {}
    }
    if initiator.is_given() && !is_initiator(initiator.text()) {
        At::new(initiator.value, format!("{}.initiatorname", at.path())).invalid("must be valid format", errors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_initiators() {
        for fine in ["iqn.2001-04.com.example:disk.1", "eui.0123456789abcdef", "naa.0123456789abcdef0123456789abcdef"] {
            assert!(is_initiator(fine), "{fine}");
        }
        for wrong in ["", "iqn", "iqn.2001-4.com:x", "iqn.2001-04.com", "eui.1", "disk"] {
            assert!(!is_initiator(wrong), "{wrong}");
        }
    }
}
