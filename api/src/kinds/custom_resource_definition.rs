//! CustomResourceDefinitions: their form. Expressions are not read here.

mod defaults;
mod schema;

use std::collections::HashSet;

use serde_json::{Value, json};

use super::webhooks::{client, review_versions};
use super::{Aspect, Behaviour, DEFAULT, Deletion, Generation, Part, Version};
use crate::custom::path::{NoPath, Path};
use crate::custom::status::{begin_deletion, is_protected_group};
use crate::default::{Object, nested, set, set_absent, text as member};
use crate::kinds::MARK;
use crate::names::{dns_1035_label, dns_subdomain};
use crate::validate::{At, Errors, Unknown, internal};
use crate::value::{items, text};

pub const BEHAVIOUR: Behaviour = Behaviour {
    validate: Some(|object, errors| {
        let required = format!("{}.{}", text(&object["spec"]["names"]["plural"]), text(&object["spec"]["group"]));
        if text(&object["metadata"]["name"]) != required {
            let name = At::of(object, "metadata").at("name");
            name.invalid("must be spec.names.plural+\".\"+spec.group", errors);
        }
        spec(&At::of(object, "spec"), Unknown::Refused, errors);
        status(object, errors);
        approval(object, None, errors);
    }),
    validate_update: Some(|new, old, errors| {
        let (now, was) = (At::of(new, "spec"), At::of(old, "spec"));
        spec(&now, unknown(&was), errors);
        if items(&old["status"]["conditions"]).any(|c| c["type"] == "Established" && c["status"] == "True") {
            now.at("scope").unchanged(&was.at("scope"), errors);
            now.at("names").at("kind").unchanged(&was.at("names").at("kind"), errors);
        }
        now.at("group").unchanged(&was.at("group"), errors);
        now.at("names").at("plural").unchanged(&was.at("names").at("plural"), errors);
        status(new, errors);
        approval(new, Some(old), errors);
    }),
    validate_part: Some(|part, new, _, errors| {
        if part == Part::Status {
            status(new, errors);
        }
    }),
    defaults: &[
        ("apiextensions.v1.CustomResourceDefinitionSpec", |m| {
            nested(m, "names", |names| {
                let kind = member(names, "kind").to_owned();
                if !kind.is_empty() {
                    set(names, "singular", kind.to_lowercase());
                    set(names, "listKind", format!("{kind}List"));
                }
            });
            set_absent(m, "conversion", json!({"strategy": "None"}));
        }),
        ("apiextensions.v1.CustomResourceDefinition", |m| {
            let stored = storage_of(m.get("spec").unwrap_or(&Value::Null)).map(str::to_owned);
            let none =
                |status: &Object| status.get("storedVersions").and_then(Value::as_array).is_none_or(Vec::is_empty);
            if let Some(version) = stored {
                nested(m, "status", |status| {
                    if none(status) {
                        status.insert("storedVersions".into(), json!([version]));
                    }
                });
            }
        }),
        ("apiextensions.v1.ServiceReference", |m| set_absent(m, "port", 443)),
    ],
    generation: Generation::Spec,
    version: Version::Needed,
    create: Some(remember_storage),
    update: Some(|new, _| remember_storage(new)),
    warnings: Some(warnings),
    delete: Deletion { begin: Some(begin_deletion), ..Deletion::DEFAULT },
    missing: &[(Aspect::Validation, "expressions, defaults inside of metadata")],
    ..DEFAULT
};

/// What of a definition nothing acts on yet, and formats that nobody knows.
fn warnings(definition: &Value) -> Vec<String> {
    let spec = At::of(definition, "spec");
    let mut found = Vec::new();
    if spec.at("conversion").at("strategy").text() == "Webhook" && spec.at("versions").items().count() > 1 {
        found.push(format!(
            "{MARK}spec.conversion is not acted on yet: only the version in which objects are stored is served"
        ));
    }
    for version in spec.at("versions").items() {
        schema::warnings(&version.at("schema").at("openAPIV3Schema"), &mut found);
    }
    let blank = |path: &At<'_>| {
        let why = Path::parse(path.text()).err()?;
        Some(format!("{}: {:?} {why}, nothing is shown in this column", path.path(), path.text()))
    };
    let versions = spec.at("versions");
    let columns =
        versions.items().flat_map(|version| version.at("additionalPrinterColumns").items().collect::<Vec<_>>());
    found.extend(columns.filter_map(|column| blank(&column.at("jsonPath"))));
    found
}

fn storage_of(spec: &Value) -> Option<&str> {
    items(&spec["versions"]).find(|version| version["storage"] == true).and_then(|version| version["name"].as_str())
}

/// Every version that ever was the stored one.
fn remember_storage(definition: &mut Value) {
    let Some(version) = storage_of(&definition["spec"]).map(str::to_owned) else { return };
    let status = crate::write::section(definition, "status");
    let versions = status.entry("storedVersions").or_insert_with(|| json!([]));
    if versions.is_null() {
        *versions = json!([]);
    }
    if let Some(list) = versions.as_array_mut()
        && !list.iter().any(|known| *known == json!(version))
    {
        list.push(json!(version));
    }
}

/// What versions agree on is told once, above them.
fn shared<'a>(versions: &At<'a>, field: &str) -> Option<At<'a>> {
    let list = items(versions.value);
    let first = list.clone().next()?.get(field).filter(|value| !value.is_null())?;
    let top = if field == "schema" { "validation" } else { field };
    list.clone().all(|version| version.get(field) == Some(first)).then(|| At::new(first, format!("spec.{top}")))
}

/// Each version's, or the one of all.
fn each(versions: &At<'_>, field: &str, errors: &mut Errors, check: impl Fn(&At<'_>, &mut Errors)) {
    match shared(versions, field) {
        Some(all) => check(&all, errors),
        None => versions.items().for_each(|version| check(&version.at(field), errors)),
    }
}

/// What defaults may have after an update: what stands is let be.
fn unknown(before: &At<'_>) -> Unknown {
    let schemas = items(&before.value["versions"]).map(|version| &version["schema"]["openAPIV3Schema"]);
    let stands = schemas.into_iter().any(defaults::any_unknown);
    if stands { Unknown::Stays } else { Unknown::Refused }
}

fn spec(spec: &At<'_>, unknown: Unknown, errors: &mut Errors) {
    let group = spec.at("group");
    let complaints = dns_subdomain(group.text());
    match group.text() {
        "" => group.required("", errors),
        _ if !complaints.is_empty() => group.invalid(complaints.join(","), errors),
        text if !text.contains('.') => group.invalid("should be a domain with at least one dot", errors),
        _ => {}
    }
    let scope = spec.at("scope");
    match scope.text() {
        "" => scope.required("", errors),
        _ => scope.one_of(&["Cluster", "Namespaced"], errors),
    }
    let versions = spec.at("versions");
    for version in versions.items() {
        if !version.at("schema").at("openAPIV3Schema").is_given() {
            version.at("schema").at("openAPIV3Schema").required("", errors);
        }
    }
    if spec.at("preserveUnknownFields").is_true() {
        let why =
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        spec.at("preserveUnknownFields").invalid(why, errors);
    }
    let mut seen = HashSet::new();
    let mut unique = true;
    for version in versions.items() {
        let name = version.at("name");
        unique &= seen.insert(name.text());
        let complaints = dns_1035_label(name.text());
        if !complaints.is_empty() {
            name.invalid(complaints.join(","), errors);
        }
        let warning = version.at("deprecationWarning");
        if warning.is_given() && !version.at("deprecated").is_true() {
            warning.invalid("can only be set for deprecated versions", errors);
        }
        if version.at("deprecated").is_true() {
            self::warning(&warning, errors);
        }
    }
    let shown = || internal::shown_list("apiextensions.v1.CustomResourceDefinitionVersion", versions.value);
    if !unique {
        versions.invalid_as(shown(), "must contain unique version names", errors);
    }
    if items(versions.value).filter(|version| version["storage"] == true).count() != 1 {
        versions.invalid_as(shown(), "must have exactly one version marked as storage version", errors);
    }
    let names = spec.at("names");
    for field in ["plural", "singular", "kind", "listKind"] {
        names.at(field).needs_text(errors);
    }
    self::names(&names, errors);
    each(&versions, "schema", errors, |schema, errors| schema::check(&schema.at("openAPIV3Schema"), unknown, errors));
    each(&versions, "subresources", errors, subresources);
    for version in versions.items() {
        let schema = version.at("schema").at("openAPIV3Schema");
        selectable(&version.at("selectableFields"), schema.value, errors);
    }
    each(&versions, "additionalPrinterColumns", errors, |columns, errors| {
        columns.items().for_each(|column| self::column(&column, errors));
    });
    conversion(&spec.at("conversion"), errors);
}

fn warning(warning: &At<'_>, errors: &mut Errors) {
    if warning.text().len() > 256 {
        warning.invalid("must be <= 256 characters long", errors);
    }
    if warning.is_given() && warning.is_empty() {
        warning.invalid("must not be an empty string", errors);
    }
    if let Some((at, _)) = warning.text().char_indices().find(|(_, c)| c.is_control()) {
        let why = format!("must only contain printable UTF-8 characters; non-printable character found at index {at}");
        warning.invalid(why, errors);
    }
}

fn names(names: &At<'_>, errors: &mut Errors) {
    for field in ["plural", "singular"] {
        let complaints = dns_1035_label(names.at(field).text());
        if !names.at(field).is_empty() && !complaints.is_empty() {
            names.at(field).invalid(complaints.join(","), errors);
        }
    }
    for field in ["kind", "listKind"] {
        let complaints = dns_1035_label(&names.at(field).text().to_lowercase());
        if !names.at(field).is_empty() && !complaints.is_empty() {
            let why = format!("may have mixed case, but should otherwise match: {}", complaints.join(","));
            names.at(field).invalid(why, errors);
        }
    }
    let list = |field: &str, errors: &mut Errors| {
        for name in names.at(field).items() {
            let complaints = dns_1035_label(name.text());
            if !complaints.is_empty() {
                name.invalid(complaints.join(","), errors);
            }
        }
    };
    list("shortNames", errors);
    if !names.at("kind").is_empty() && names.at("kind").text() == names.at("listKind").text() {
        names.at("listKind").invalid("kind and listKind may not be the same", errors);
    }
    list("categories", errors);
}

/// A path from the top of an object.
fn json_path(path: &At<'_>, errors: &mut Errors) -> bool {
    let fine = path.text().starts_with('.');
    if !fine {
        path.invalid("must be a simple json path starting with .", errors);
    }
    fine
}

/// Fields that objects of a kind may be selected by.
const SELECTABLE: usize = 8;

fn selectable(fields: &At<'_>, schema: &Value, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for field in fields.items() {
        let path = field.at("jsonPath");
        if path.is_empty() {
            path.required("", errors);
            continue;
        }
        let steps: Vec<&str> = path.text().trim_start_matches('.').split('.').collect();
        let found = steps.iter().try_fold(schema, |schema, step| schema["properties"].get(*step));
        let Some(found) = found.filter(|_| path.text().starts_with('.')) else {
            path.invalid("is an invalid path: does not refer to a valid field", errors);
            continue;
        };
        if steps.first() == Some(&"metadata") {
            path.invalid("must not point to fields in metadata", errors);
        }
        if !matches!(text(&found["type"]), "string" | "boolean" | "integer") {
            let why = "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.";
            path.invalid(why, errors);
        }
        if !seen.insert(path.text()) {
            path.duplicate(errors);
        }
    }
    if seen.len() > SELECTABLE {
        fields.too_many(SELECTABLE, errors);
    }
}

fn subresources(parts: &At<'_>, errors: &mut Errors) {
    let scale = parts.at("scale");
    if !scale.is_given() {
        return;
    }
    for (field, below) in [("specReplicasPath", ".spec"), ("statusReplicasPath", ".status")] {
        let path = scale.at(field);
        if path.is_empty() {
            path.required("", errors);
        } else if json_path(&path, errors) && !path.text().starts_with(&format!("{below}.")) {
            path.invalid(format!("should be a json path under {below}"), errors);
        }
    }
    let path = scale.at("labelSelectorPath");
    let below = path.text().starts_with(".spec.") || path.text().starts_with(".status.");
    if !path.is_empty() && json_path(&path, errors) && !below {
        path.invalid("should be a json path under either .spec or .status", errors);
    }
}

const TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
const FORMATS: [&str; 8] = ["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];

fn column(column: &At<'_>, errors: &mut Errors) {
    column.at("name").needs_text(errors);
    let (kind, format) = (column.at("type"), column.at("format"));
    let why = format!("must be one of {}", TYPES.join(","));
    match kind.text() {
        "" => kind.required(&why, errors),
        text if !TYPES.contains(&text) => kind.invalid(why, errors),
        _ => {}
    }
    if !format.is_empty() && !FORMATS.contains(&format.text()) {
        format.invalid(format!("must be one of {}", FORMATS.join(",")), errors);
    }
    let path = column.at("jsonPath");
    let path = At::new(path.value, format!("{}.JSONPath", column.path()));
    match path.is_empty() {
        true => path.required("", errors),
        false if json_path(&path, errors) => match Path::parse(path.text()) {
            // Upstream takes what its reader does not understand; see `warnings`.
            Ok(_) | Err(NoPath::Malformed) => {}
            Err(limit) => path.invalid(limit.to_string(), errors),
        },
        false => {}
    }
}

fn conversion(conversion: &At<'_>, errors: &mut Errors) {
    if !conversion.is_given() {
        return;
    }
    let strategy = conversion.at("strategy");
    match strategy.text() {
        "" => strategy.required("", errors),
        _ => strategy.one_of(&["None", "Webhook"], errors),
    }
    let webhook = conversion.at("webhook");
    let at = At::new(webhook.at("clientConfig").value, format!("{}.webhookClientConfig", conversion.path()));
    let versions = webhook.at("conversionReviewVersions");
    let versions = At::new(versions.value, format!("{}.conversionReviewVersions", conversion.path()));
    if strategy.text() == "Webhook" {
        match at.is_given() {
            true => client(&at, errors),
            false => at.required("required when strategy is set to Webhook", errors),
        }
        match versions.is_empty() {
            true => versions.required("", errors),
            false => review_versions(&versions, Unknown::Refused, &["v1", "v1beta1"], errors),
        }
        return;
    }
    for (at, given) in [(&at, at.is_given()), (&versions, !versions.is_empty())] {
        if given {
            at.forbidden("should not be set when strategy is not set to Webhook", errors);
        }
    }
}

fn status(object: &Value, errors: &mut Errors) {
    let status = At::of(object, "status");
    names(&status.at("acceptedNames"), errors);
    let stored = status.at("storedVersions");
    if stored.is_empty() {
        return stored.invalid_as(stored.value.clone(), "must have at least one stored version", errors);
    }
    let versions = || items(&object["spec"]["versions"]);
    for version in versions().filter(|version| version["storage"] == true).map(|version| text(&version["name"])) {
        if !stored.has_text(version) {
            stored.invalid(format!("must have the storage version {version}"), errors);
        }
    }
    for known in stored.items() {
        let name = known.text();
        if !versions().any(|version| version["name"] == *known.value) {
            let why = format!(
                "missing from spec.versions; {name} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {name} and removes {name} from status.storedVersions"
            );
            known.invalid(why, errors);
        }
    }
}

const APPROVED: &str = "api-approved.kubernetes.io";

/// Groups of Kubernetes itself say where they were agreed on.
fn approval(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let group = text(&object["spec"]["group"]);
    if !is_protected_group(group) {
        return;
    }
    let given = &object["metadata"]["annotations"][APPROVED];
    if old.is_some_and(|old| old["metadata"]["annotations"][APPROVED] == *given) {
        return;
    }
    let at = At::new(given, format!("metadata.annotations[{APPROVED}]"));
    let address = |text: &str| {
        text.split_once("://")
            .is_some_and(|(scheme, rest)| !scheme.is_empty() && !rest.is_empty() && !rest.starts_with('/'))
    };
    match text(given) {
        "" => at.required("protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111", errors),
        text if text.starts_with("unapproved") || address(text) => {}
        _ => at.invalid("protected groups must have approval annotation \"api-approved.kubernetes.io\" with either a URL or a reason starting with \"unapproved\", see https://github.com/kubernetes/enhancements/pull/1111", errors),
    }
}
