//! Query parameters, checked as upstream does.

use api::decode::FieldValidation;
use api::kind::Kind;
use api::managed::Conflicts;
use api::selector::{Fields, Labels};
use api::status::{FieldError, Status};
use api::validate::{MANAGER_BYTES, manager as manager_name};

use super::path::Query;
use crate::engine::{ListOptions, VersionMatch, WatchOptions, WriteOptions, check_list, check_watch};

/// What a writing request says beside its body.
#[derive(Debug)]
pub struct WriteParams {
    pub options: WriteOptions,
    pub validation: FieldValidation,
    pub conflicts: Conflicts,
}

/// By which kind of request something is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writing {
    Create,
    Update,
    Patch,
    Apply,
}

impl Writing {
    /// The name of its options that upstream's errors carry.
    fn options(self) -> &'static str {
        match self {
            Self::Create => "CreateOptions",
            Self::Update => "UpdateOptions",
            Self::Patch | Self::Apply => "PatchOptions",
        }
    }
}

pub fn write(query: &Query, user_agent: Option<&str>, writing: Writing) -> Result<WriteParams, Status> {
    let mut errors = Vec::new();
    let manager = query.get("fieldManager").unwrap_or_default();
    if writing == Writing::Apply && manager.is_empty() {
        errors.push(FieldError::required("fieldManager", "is required for apply patch"));
    }
    manager_name(manager, "fieldManager", &mut errors);
    let dry_run: Vec<&str> = query.all("dryRun").filter(|text| !text.is_empty()).collect();
    if dry_run.iter().any(|all| *all != "All") {
        errors.push(FieldError::not_supported("dryRun", serde_json::json!(dry_run), &["All"]));
    }
    let validation = match query.get("fieldValidation").unwrap_or_default() {
        "" | "Warn" => FieldValidation::Warn,
        "Strict" => FieldValidation::Strict,
        "Ignore" => FieldValidation::Ignore,
        other => {
            errors.push(FieldError::not_supported("fieldValidation", other, &["", "Ignore", "Strict", "Warn"]));
            FieldValidation::Warn
        }
    };
    let forced = query.get("force").is_some_and(|_| query.flag("force"));
    let conflicts = if forced { Conflicts::Force } else { Conflicts::Refuse };
    if query.get("force").is_some() && writing == Writing::Patch {
        errors.push(FieldError::forbidden("force", "may not be specified for non-apply patch"));
    }
    if !errors.is_empty() {
        return Err(Status::invalid("meta.k8s.io", writing.options(), "", errors));
    }
    let manager = if manager.is_empty() { agent_name(user_agent) } else { manager.to_owned() };
    Ok(WriteParams { options: WriteOptions { manager, dry_run: !dry_run.is_empty() }, validation, conflicts })
}

/// The first word of a User-Agent names the manager of clients that name none.
fn agent_name(user_agent: Option<&str>) -> String {
    let name = user_agent.unwrap_or("unknown").split('/').next().unwrap_or_default();
    name.chars().filter(|c| !c.is_control()).take(MANAGER_BYTES).collect()
}

fn selectors(kind: &Kind, query: &Query) -> Result<(Labels, Fields), Status> {
    let labels = Labels::parse(query.get("labelSelector").unwrap_or_default()).map_err(Status::bad_request)?;
    let fields = Fields::parse(kind, query.get("fieldSelector").unwrap_or_default()).map_err(Status::bad_request)?;
    Ok((labels, fields))
}

fn version(query: &Query, field: &str) -> Result<Option<u64>, Status> {
    match query.get("resourceVersion") {
        None | Some("") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|_| {
            let prefix = if field.is_empty() { String::new() } else { format!("{field}: Invalid value: {text:?}: ") };
            Status::unknown(format!("{prefix}strconv.ParseUint: parsing {text:?}: invalid syntax"))
        }),
    }
}

/// A number, refused as upstream does when it is none.
pub fn number<T: std::str::FromStr>(query: &Query, name: &str) -> Result<Option<T>, Status> {
    let text = query.get(name).filter(|text| !text.is_empty());
    let refused = |text| Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"));
    text.map(|text| text.parse().map_err(|_| refused(text))).transpose()
}

pub fn list(kind: &Kind, query: &Query) -> Result<ListOptions, Status> {
    let initial = query.get("sendInitialEvents").map(|_| query.flag("sendInitialEvents"));
    let version_match = check_list(query.get("resourceVersion"), query.get("resourceVersionMatch"), initial)?;
    let (labels, fields) = selectors(kind, query)?;
    number::<i64>(query, "timeoutSeconds")?;
    Ok(ListOptions {
        labels,
        fields,
        limit: number::<i64>(query, "limit")?.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(0),
        continue_token: query.get("continue").unwrap_or_default().to_owned(),
        version: version(query, "")?,
        version_match: version_match.filter(|asked| *asked == VersionMatch::Exact),
    })
}

pub fn get(query: &Query) -> Result<Option<u64>, Status> {
    version(query, "resourceVersion")
}

pub fn watch(kind: &Kind, query: &Query) -> Result<WatchOptions, Status> {
    let initial = query.get("sendInitialEvents").map(|_| query.flag("sendInitialEvents"));
    check_watch(query.get("resourceVersionMatch"), initial)?;
    let (labels, fields) = selectors(kind, query)?;
    Ok(WatchOptions {
        labels,
        fields,
        version: version(query, "resourceVersion")?,
        bookmarks: query.flag("allowWatchBookmarks"),
        initial_events: initial == Some(true),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apply_needs_a_manager() {
        let refused = write(&Query::parse(""), Some("kubectl/v1.32"), Writing::Apply).unwrap_err();
        assert!(refused.message.contains("fieldManager: Required value: is required for apply patch"));
        let named = write(&Query::parse("dryRun=All"), Some("kubectl/v1.32"), Writing::Create).unwrap();
        assert_eq!((named.options.manager.as_str(), named.options.dry_run), ("kubectl", true));
    }

    #[test]
    fn force_is_for_apply_only() {
        let applied = write(&Query::parse("force=true&fieldManager=x"), None, Writing::Apply).unwrap();
        assert_eq!(applied.conflicts, Conflicts::Force);
        assert_eq!(write(&Query::parse("force=true"), None, Writing::Patch).unwrap_err().code, 422);
    }
}
