//! ValidatingAdmissionPolicies and their bindings: their form. Expressions are not read here.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::webhooks::{FAILURE, MATCH, conditions, rule};
use super::{Aspect, Behaviour, DEFAULT, Generation, Part, Version};
use crate::default::{Object, set_absent};
use crate::names::{dns_1035_label, dns_subdomain, path_segment, qualified_name};
use crate::validate::{At, Errors, internal};
use crate::value::{items, text};

pub const POLICY: Behaviour = Behaviour {
    validate: Some(policy),
    validate_part: Some(|part, new, _, errors| {
        if part == Part::Status {
            let status = At::of(new, "status");
            for warning in status.at("typeChecking").at("expressionWarnings").items() {
                warning.at("warning").needs_text(errors);
                if warning.at("fieldRef").text().trim().is_empty() {
                    warning.at("fieldRef").required("", errors);
                }
            }
            crate::validate::conditions::conditions(&status.at("conditions"), errors);
        }
    }),
    defaults: &[
        ("admissionregistration.v1.ValidatingAdmissionPolicySpec", |m| set_absent(m, "failurePolicy", "Fail")),
        ("admissionregistration.v1.MatchResources", default),
        ("admissionregistration.v1.NamedRuleWithOperations", |m| set_absent(m, "scope", "*")),
    ],
    generation: Generation::Body,
    version: Version::Needed,
    cells: Some(|o, _| {
        let kind = &o["spec"]["paramKind"];
        let shown = match kind {
            Value::Null => "<unset>".to_owned(),
            kind => format!("{}/{}", text(&kind["apiVersion"]), text(&kind["kind"])),
        };
        vec![("Validations", json!(items(&o["spec"]["validations"]).len())), ("ParamKind", json!(shown))]
    }),
    inactive: Some("no request is held against it"),
    missing: &[(Aspect::Validation, "expressions"), (Aspect::Warnings, "of expressions whose types do not fit")],
    ..DEFAULT
};

pub const BINDING: Behaviour = Behaviour {
    validate: Some(|object, errors| binding(&At::of(object, "spec"), errors)),
    generation: Generation::Body,
    version: Version::Needed,
    cells: Some(|o, _| {
        let reference = &o["spec"]["paramRef"];
        let shown = match (text(&reference["name"]), text(&reference["namespace"])) {
            ("", _) if reference["selector"].is_null() => "<unset>".to_owned(),
            ("", _) => crate::table::cells::selector(&reference["selector"]),
            (name, "") => format!("*/{name}"),
            (name, namespace) => format!("{namespace}/{name}"),
        };
        vec![("PolicyName", json!(text(&o["spec"]["policyName"]))), ("ParamRef", json!(shown))]
    }),
    inactive: Some("no request is held against its policy"),
    none: &[Aspect::Defaults, Aspect::Warnings],
    ..DEFAULT
};

fn default(map: &mut Object) {
    set_absent(map, "matchPolicy", "Equivalent");
    set_absent(map, "namespaceSelector", json!({}));
    set_absent(map, "objectSelector", json!({}));
}

const ANNOTATIONS: usize = 20;
const ANNOTATION_BYTES: usize = 5 * 1024;

fn policy(object: &Value, errors: &mut Errors) {
    let spec = At::of(object, "spec");
    needs_one_of(&spec.at("failurePolicy"), &FAILURE, errors);
    if spec.at("paramKind").is_given() {
        param_kind(&spec.at("paramKind"), errors);
    }
    let constraints = spec.at("matchConstraints");
    match constraints.is_given() {
        false => constraints.required("", errors),
        true => {
            matches(&constraints, errors);
            if constraints.at("resourceRules").is_empty() {
                constraints.at("resourceRules").required("", errors);
            }
        }
    }
    conditions(&spec.at("matchConditions"), errors);
    spec.at("variables").items().for_each(|variable| self::variable(&variable, errors));
    let (validations, annotations) = (spec.at("validations"), spec.at("auditAnnotations"));
    if validations.is_empty() && annotations.is_empty() {
        let why = "validations or auditAnnotations must contain at least one item";
        validations.required(why, errors);
        annotations.required(why, errors);
    }
    validations.items().for_each(|validation| self::validation(&validation, errors));
    if items(annotations.value).len() > ANNOTATIONS {
        let shown = internal::shown_list("admissionregistration.v1.AuditAnnotation", annotations.value);
        annotations.invalid_as(shown, format!("must not have more than {ANNOTATIONS} auditAnnotations"), errors);
    }
    let mut keys = HashSet::new();
    for annotation in annotations.items() {
        self::annotation(&annotation, text(&object["metadata"]["name"]), errors);
        if !keys.insert(annotation.at("key").text()) {
            annotation.at("key").duplicate(errors);
        }
    }
}

fn needs_one_of(at: &At<'_>, options: &[&str], errors: &mut Errors) {
    match at.is_given() {
        true => at.one_of(options, errors),
        false => at.required("", errors),
    }
}

fn param_kind(kind: &At<'_>, errors: &mut Errors) {
    let version = kind.at("apiVersion");
    match version.text().split('/').collect::<Vec<_>>().as_slice() {
        [""] => version.required("", errors),
        [name] => version_name(&version, name, errors),
        [group, name] => {
            let complaints = dns_subdomain(group);
            if !complaints.is_empty() {
                version.invalid_as(*group, complaints.join(","), errors);
            }
            version_name(&version, name, errors);
        }
        _ => version.invalid(format!("unexpected GroupVersion string: {}", version.text()), errors),
    }
    let name = kind.at("kind");
    let complaints = dns_1035_label(&name.text().to_lowercase());
    match name.text() {
        "" => name.required("", errors),
        _ if !complaints.is_empty() => {
            let why = format!("may have mixed case, but should otherwise match: {}", complaints.join(","));
            name.invalid(why, errors);
        }
        _ => {}
    }
}

fn version_name(at: &At<'_>, name: &str, errors: &mut Errors) {
    let complaints = dns_1035_label(name);
    match name {
        "" => at.invalid("version must be specified", errors),
        _ if !complaints.is_empty() => at.invalid_as(name, complaints.join(","), errors),
        _ => {}
    }
}

fn matches(matches: &At<'_>, errors: &mut Errors) {
    needs_one_of(&matches.at("matchPolicy"), &MATCH, errors);
    for field in ["namespaceSelector", "objectSelector"] {
        let selector = matches.at(field);
        match selector.is_given() {
            true => selector.selector(errors),
            false => selector.required("", errors),
        }
    }
    for list in ["resourceRules", "excludeResourceRules"] {
        for named in matches.at(list).items() {
            let mut names = HashSet::new();
            for name in named.at("resourceNames").items() {
                name.named(path_segment, errors);
                if !names.insert(name.text()) {
                    name.duplicate(errors);
                }
            }
            rule(&named, errors);
        }
    }
}

/// Words of the language that name nothing.
const RESERVED: [&str; 21] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

fn variable(variable: &At<'_>, errors: &mut Errors) {
    let (name, expression) = (variable.at("name"), variable.at("expression"));
    let identifier = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            && !RESERVED.contains(&text)
    };
    if name.text().trim().is_empty() {
        name.required("name is not specified", errors);
    } else if !identifier(name.text()) {
        name.invalid("must be a valid CEL identifier", errors);
    }
    if expression.text().trim().is_empty() {
        expression.required("expression is not specified", errors);
    }
}

fn validation(validation: &At<'_>, errors: &mut Errors) {
    if validation.at("expression").text().trim().is_empty() {
        validation.at("expression").required("expression is not specified", errors);
    }
    for field in ["messageExpression", "message"] {
        let at = validation.at(field);
        let trimmed = at.text().trim();
        if !at.is_empty() && trimmed.is_empty() {
            at.invalid("must be non-empty if specified", errors);
        } else if field == "message" && trimmed.contains(['\n', '\r']) {
            at.invalid("must not contain line breaks", errors);
        }
    }
    let reasons = ["Forbidden", "Invalid", "RequestEntityTooLarge"];
    validation.at("reason").one_of_if_given(&reasons, errors);
}

fn annotation(annotation: &At<'_>, policy: &str, errors: &mut Errors) {
    let key = annotation.at("key");
    match policy {
        "" => key.invalid("requires metadata.name be non-empty", errors),
        _ => {
            let full = json!(format!("{policy}/{}", key.text()));
            At::new(&full, key.path()).named(qualified_name, errors);
        }
    }
    let value = annotation.at("valueExpression");
    match value.text().trim() {
        "" => value.required("valueExpression is not specified", errors),
        text if text.len() > ANNOTATION_BYTES => {
            value.required(&format!("must not exceed {ANNOTATION_BYTES} bytes in length"), errors);
        }
        _ => {}
    }
}

fn binding(spec: &At<'_>, errors: &mut Errors) {
    spec.at("policyName").needs_name(dns_subdomain, errors);
    if spec.at("paramRef").is_given() {
        param_ref(&spec.at("paramRef"), errors);
    }
    if spec.at("matchResources").is_given() {
        matches(&spec.at("matchResources"), errors);
    }
    let actions = spec.at("validationActions");
    let mut seen = HashSet::new();
    for action in actions.items() {
        action.one_of(&["Audit", "Deny", "Warn"], errors);
        if !seen.insert(action.text()) {
            action.duplicate(errors);
        }
    }
    if seen.contains("Deny") && seen.contains("Warn") {
        let why = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)";
        actions.invalid(why, errors);
    }
    if seen.is_empty() {
        actions.required("at least one validation action is required", errors);
    }
}

fn param_ref(reference: &At<'_>, errors: &mut Errors) {
    const BOTH: &str = "name and selector are mutually exclusive";
    let (name, selector) = (reference.at("name"), reference.at("selector"));
    if !name.is_empty() {
        name.named(path_segment, errors);
        if selector.is_given() {
            name.forbidden(BOTH, errors);
        }
    }
    selector.selector(errors);
    match (name.is_empty(), selector.is_given()) {
        (false, true) => selector.forbidden(BOTH, errors),
        (true, false) => reference.required("one of name or selector must be specified", errors),
        _ => {}
    }
    let action = reference.at("parameterNotFoundAction");
    match action.is_empty() {
        true => action.required("", errors),
        false => action.one_of(&["Deny", "Allow"], errors),
    }
}
