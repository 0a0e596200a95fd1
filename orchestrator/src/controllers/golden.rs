//! Plans as text, held against `orchestrator/tests/output/NAME.txt`. With `UPDATE_GOLDEN=1` the files are written anew, to be
//! read as a diff.

use std::fmt::Write as _;
use std::path::PathBuf;

use api::uid::Uid;

use super::runtime::{Action, Plan};

/// Fails where the plans differ from what was agreed on.
pub fn check(name: &str, plans: &[(&str, Plan)]) {
    let mut text = String::new();
    for (title, plan) in plans {
        writeln!(text, "# {title}").unwrap();
        show(plan, "", &mut text);
        text.push('\n');
    }
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/output").join(format!("{name}.txt"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let agreed = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, agreed, "{} differs; if that is meant: UPDATE_GOLDEN=1", path.display());
}

fn show(plan: &[Action], indent: &str, out: &mut String) {
    if plan.is_empty() {
        writeln!(out, "{indent}nothing").unwrap();
    }
    for action in plan {
        match action {
            Action::Create { resource, namespace, object, announce } => {
                let said = if announce.is_some() { ", announced" } else { "" };
                writeln!(out, "{indent}create in {}/{namespace}{said}: {object}", resource.plural).unwrap();
            }
            Action::Patch { resource, key, subresource, version, patch } => {
                let slice = if subresource.is_empty() { String::new() } else { format!("/{subresource}") };
                let at = version.as_ref().map(|version| format!(" at {version}")).unwrap_or_default();
                writeln!(out, "{indent}patch {}{slice} {key}{at}: {patch}", resource.plural).unwrap();
            }
            Action::Delete { resource, key, uid, propagation } => {
                let uid = uid.as_ref().map_or("any", Uid::as_str);
                let way = propagation.map(|way| format!(", {}", way.as_str())).unwrap_or_default();
                writeln!(out, "{indent}delete {} {key} ({uid}){way}", resource.plural).unwrap();
            }
            Action::SendAway { pod, reason, message } => {
                writeln!(out, "{indent}send away {}/{} ({}): {reason}: {message}", pod.namespace, pod.name, pod.uid)
                    .unwrap();
            }
            Action::Again { key, after } => writeln!(out, "{indent}again {key} in {after:?}").unwrap(),
            Action::Event { about, type_, reason, message } => {
                let type_ = type_.as_str();
                writeln!(out, "{indent}event {type_} {reason} on {} {}: {message}", about.kind, about.name).unwrap();
            }
            Action::IfAllowed { review, then, otherwise } => {
                writeln!(out, "{indent}if allowed {review}:").unwrap();
                show(then, &format!("{indent}    "), out);
                writeln!(out, "{indent}otherwise:").unwrap();
                show(otherwise, &format!("{indent}    "), out);
            }
            Action::Slowly(actions) => {
                writeln!(out, "{indent}one, two, four … at once:").unwrap();
                show(actions, &format!("{indent}    "), out);
            }
            Action::InTurn(actions) => {
                writeln!(out, "{indent}one after the other:").unwrap();
                show(actions, &format!("{indent}    "), out);
            }
        }
    }
}
