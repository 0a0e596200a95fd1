//! Get and list: from memory, at a revision, in pages.

use std::sync::Arc;

use api::selector::{Fields, Labels};
use api::status::{FieldError, Status};
use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::general_purpose::{GeneralPurpose, NO_PAD};
use serde::{Deserialize, Serialize};

use super::Engine;
use crate::cache::{Expired, Snapshot};
use crate::object::{Object, ObjectKey, Revision};
use crate::request::Target;

/// How long a page token works, also on a quiet cluster.
const TOKEN_AGE_SECONDS: i64 = 300;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VersionMatch {
    NotOlderThan,
    Exact,
}

#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    pub labels: Labels,
    pub fields: Fields,
    /// 0: no limit.
    pub limit: usize,
    pub continue_token: String,
    pub version: Option<Revision>,
    pub version_match: Option<VersionMatch>,
}

#[derive(Debug)]
pub struct List {
    pub revision: Revision,
    pub objects: Vec<Arc<Object>>,
    /// Empty on the last page.
    pub continue_token: String,
    /// Unknown where a selector filters.
    pub remaining: Option<usize>,
}

/// As Go decodes tokens: without padding, indifferent to bits that are left over.
const TOKENS: GeneralPurpose = GeneralPurpose::new(&URL_SAFE, NO_PAD.with_decode_allow_trailing_bits(true));

/// What a page token says; opaque to clients.
#[derive(Debug, Serialize, Deserialize)]
struct Token {
    revision: Revision,
    /// The last key given.
    after: String,
    /// Unix seconds of the first page.
    issued: i64,
}

impl Engine {
    /// The object, not older than `version`.
    ///
    /// # Errors
    /// 404 when it is not there, 500 when it is stored and cannot be read, 504 when `version` lies ahead and does not
    /// come in time. Without a version: 500 when the store does not answer, 503 when the server is shutting down.
    pub async fn get(&self, target: &Target, version: Option<Revision>) -> Result<Arc<Object>, Status> {
        self.wait_for(version).await?;
        self.find(target)
    }

    /// What is selected: now, at a revision, or the page after a token.
    ///
    /// # Errors
    /// 410 Expired when the revision is older than the history; for a page's token, with another one that goes on from
    /// its place in the present state. 400 for a token that cannot be read or comes with a revision; 500, 503 and 504
    /// as in [`Engine::get`].
    pub async fn list(&self, target: &Target, options: &ListOptions) -> Result<List, Status> {
        if !options.continue_token.is_empty() {
            return self.next_page(target, options);
        }
        self.wait_for(options.version).await?;
        let objects = self.objects(&target.kind);
        let snapshot = match (options.version, options.version_match) {
            (Some(version), Some(VersionMatch::Exact)) => {
                objects.list_at(&target.namespace, version).map_err(|_| expired(None))?
            }
            _ => objects.list(&target.namespace),
        };
        Ok(page(snapshot, "", options, jiff::Timestamp::now().as_second()))
    }

    fn next_page(&self, target: &Target, options: &ListOptions) -> Result<List, Status> {
        if options.version.is_some_and(|version| version != 0) {
            return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
        }
        let token = parse_token(&options.continue_token)?;
        let objects = self.objects(&target.kind);
        let stale = jiff::Timestamp::now().as_second() - token.issued > TOKEN_AGE_SECONDS;
        let snapshot =
            if stale { Err(Expired { oldest: 0 }) } else { objects.list_at(&target.namespace, token.revision) };
        let snapshot = snapshot.map_err(|_| {
            let now = jiff::Timestamp::now().as_second();
            expired(Some(Token { revision: objects.current(), after: token.after.clone(), issued: now }.encode()))
        })?;
        Ok(page(snapshot, &token.after, options, token.issued))
    }
}

impl Token {
    fn encode(&self) -> String {
        TOKENS.encode(serde_json::to_vec(self).unwrap_or_default())
    }
}

fn parse_token(text: &str) -> Result<Token, Status> {
    let invalid =
        |why: String| Status::bad_request(format!("invalid continue token: continue key is not valid: {why}"));
    let bytes = TOKENS.decode(text).map_err(|error| invalid(error.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|_| {
        let first = bytes.first().copied().unwrap_or_default();
        invalid(format!("invalid character '\\u{first:04x}' looking for beginning of value"))
    })
}

fn expired(token: Option<String>) -> Status {
    let mut status = match &token {
        None => Status::expired("The resourceVersion for the provided list is too old."),
        Some(_) => Status::expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.",
        ),
    };
    status.continue_token = token;
    status
}

pub(crate) fn selected(object: &Object, labels: &Labels, fields: &Fields) -> bool {
    let header = &object.header;
    let label = |key: &str| header.labels.get(key).map(String::as_str);
    let field = |path: &str| {
        header.fields.iter().find(|(name, _)| *name == path).map_or("".into(), |(_, value)| (&**value).into())
    };
    (labels.is_everything() || labels.matches(label)) && (fields.is_everything() || fields.matches(field))
}

/// Cuts a page out of a snapshot.
fn page(snapshot: Snapshot, after: &str, options: &ListOptions, issued: i64) -> List {
    let Snapshot { revision, objects } = snapshot;
    let after = (!after.is_empty()).then(|| ObjectKey::parse(after));
    let start = after.map_or(0, |after| objects.partition_point(|object| object.key <= after));
    let limit = if options.limit == 0 { usize::MAX } else { options.limit };
    let mut matching = objects[start..].iter().filter(|object| selected(object, &options.labels, &options.fields));
    let taken: Vec<_> = matching.by_ref().take(limit).cloned().collect();
    let rest = matching.count();
    let continue_token = match (rest, taken.last()) {
        (1.., Some(last)) => Token { revision, after: last.key.as_str().to_owned(), issued }.encode(),
        _ => String::new(),
    };
    let filtered = !options.labels.is_everything() || !options.fields.is_everything();
    List { revision, objects: taken, continue_token, remaining: (rest > 0 && !filtered).then_some(rest) }
}

/// The checks of a list's parameters that belong together, in upstream's words.
///
/// # Errors
/// 422 with everything that contradicts.
pub fn check_list(
    version: Option<&str>,
    version_match: Option<&str>,
    initial_events: Option<bool>,
) -> Result<Option<VersionMatch>, Status> {
    let mut errors = Vec::new();
    let asked = version_match.filter(|text| !text.is_empty());
    if initial_events.is_some() {
        errors.push(FieldError::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
    }
    match (asked, version.unwrap_or_default()) {
        (Some(_), "") => errors.push(FieldError::forbidden(
            "resourceVersionMatch",
            "resourceVersionMatch is forbidden unless resourceVersion is provided",
        )),
        (Some("Exact"), "0") => errors.push(FieldError::forbidden(
            "resourceVersionMatch",
            "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
        )),
        (Some(other), _) if !matches!(other, "Exact" | "NotOlderThan") => {
            errors.push(FieldError::not_supported("resourceVersionMatch", other, &["Exact", "NotOlderThan", ""]));
        }
        _ => {}
    }
    unless_wrong(errors)?;
    Ok(asked.map(|text| if text == "Exact" { VersionMatch::Exact } else { VersionMatch::NotOlderThan }))
}

/// The same of a watch, which begins nowhere but where it is told.
///
/// # Errors
/// As of [`check_list`].
pub fn check_watch(version_match: Option<&str>, initial_events: Option<bool>) -> Result<(), Status> {
    let mut errors = Vec::new();
    match (initial_events, version_match.filter(|text| !text.is_empty())) {
        (None, Some(_)) => errors.push(FieldError::forbidden(
            "resourceVersionMatch",
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        )),
        (Some(_), found) if found != Some("NotOlderThan") => {
            let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            errors.push(FieldError::forbidden("resourceVersionMatch", why));
            if let Some(found) = found {
                errors.push(FieldError::not_supported("resourceVersionMatch", found, &["NotOlderThan"]));
            }
        }
        _ => {}
    }
    unless_wrong(errors)
}

fn unless_wrong(errors: Vec<FieldError>) -> Result<(), Status> {
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid("meta.k8s.io", "ListOptions", "", errors)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip_and_rubbish_is_named() {
        let token = Token { revision: 7, after: "ns/a".into(), issued: 1 };
        assert_eq!(parse_token(&token.encode()).unwrap().after, "ns/a");
        assert!(parse_token("garbage").unwrap_err().message.starts_with("invalid continue token"));
    }

    #[test]
    fn parameters_are_checked_as_upstream_words_them() {
        let why = |version| check_list(version, Some("Exact"), None).unwrap_err().message;
        assert!(why(Some("0")).contains("forbidden for resourceVersion"));
        assert!(why(None).contains("unless resourceVersion is provided"));
        assert!(check_watch(None, Some(true)).unwrap_err().message.contains("requires setting"));
        assert_eq!(check_list(Some("5"), Some("Exact"), None).unwrap(), Some(VersionMatch::Exact));
    }
}
