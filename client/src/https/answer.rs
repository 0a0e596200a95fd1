//! A server's refusal, from its answer: a Status, or whatever stood between.

use api::status::{Cause, Details, Status};
use api::uid::Uid;
use serde::Deserialize;

/// The reasons of the API machinery; [`Status`] knows them by these words.
const REASONS: [&str; 19] = [
    "Unauthorized",
    "Forbidden",
    "NotFound",
    "AlreadyExists",
    "Conflict",
    "Gone",
    "Invalid",
    "ServerTimeout",
    "StoreReadError",
    "Timeout",
    "TooManyRequests",
    "BadRequest",
    "MethodNotAllowed",
    "NotAcceptable",
    "RequestEntityTooLarge",
    "UnsupportedMediaType",
    "InternalError",
    "Expired",
    "ServiceUnavailable",
];

#[derive(Deserialize)]
struct Told {
    kind: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    code: u16,
    details: Option<ToldDetails>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ToldDetails {
    name: String,
    group: String,
    kind: String,
    uid: Uid,
    causes: Vec<ToldCause>,
    retry_after_seconds: Option<u32>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ToldCause {
    reason: String,
    message: String,
    field: String,
}

/// What an answer of that code says; its body may be anything.
pub fn refusal(code: u16, body: &[u8]) -> Status {
    match serde_json::from_slice::<Told>(body) {
        Ok(told) if told.kind == "Status" => {
            let code = if told.code == 0 { code } else { told.code };
            let mut status = Status::plain(code, known(&told.reason), told.message);
            status.details = told.details.map(|details| Box::new(details.into()));
            status
        }
        _ => {
            let start = String::from_utf8_lossy(&body[..body.len().min(200)]);
            Status::plain(code, "", format!("the server answered {code}: {start}"))
        }
    }
}

/// The refusal of an answer that is none.
pub(super) fn undecodable(error: impl std::fmt::Display) -> Status {
    Status::internal(format!("the server's answer cannot be read: {error}"))
}

fn known(reason: &str) -> &'static str {
    // InsufficientStorage is ours; a reason that nobody knows is told by its code alone.
    REASONS.into_iter().chain(["InsufficientStorage"]).find(|known| *known == reason).unwrap_or_default()
}

impl From<ToldDetails> for Details {
    fn from(told: ToldDetails) -> Self {
        let cause = |told: ToldCause| Cause { reason: told.reason, message: told.message, field: told.field };
        Self {
            name: told.name,
            group: told.group,
            kind: told.kind,
            uid: told.uid,
            causes: told.causes.into_iter().map(cause).collect(),
            retry_after_seconds: told.retry_after_seconds,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_comes_back_as_it_was_sent() {
        let sent = Status::already_exists("apps", "deployments", "web");
        assert_eq!(refusal(409, sent.to_value().to_string().as_bytes()), sent);
        let proxy = refusal(502, b"<html>bad gateway</html>");
        assert_eq!((proxy.code, proxy.reason), (502, ""));
        assert!(proxy.message.contains("bad gateway"));
    }
}
