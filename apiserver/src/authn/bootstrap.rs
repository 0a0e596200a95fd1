//! Bootstrap tokens: what a machine that wants to join says of itself, `ID.SECRET`, held against a Secret of kube-system.
//!
//! Names, fields and groups are Kubernetes'; whoever makes such Secrets decides who may join.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::identity::{AUTHENTICATED, User};
use crate::reader::Reader;

const TYPE: &str = "bootstrap.kubernetes.io/token";
const GROUP: &str = "system:bootstrappers";
/// Letters and digits of the two parts of a token.
const ID: usize = 6;
const SECRET: usize = 16;

/// The user a token stands for; `None` when it proves nothing.
pub fn check(reader: &Reader, token: &str, now: Timestamp) -> Option<User> {
    let (id, secret) = parse(token)?;
    let found = reader.lookup("", "secrets", "kube-system", &format!("bootstrap-token-{id}"))?;
    user(&found.value(), id, secret, now)
}

fn parse(token: &str) -> Option<(&str, &str)> {
    let is_part = |text: &str, length| {
        text.len() == length && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    token.split_once('.').filter(|(id, secret)| is_part(id, ID) && is_part(secret, SECRET))
}

fn user(object: &Value, id: &str, secret: &str, now: Timestamp) -> Option<User> {
    let data = |key: &str| {
        let text = object["data"][key].as_str()?;
        String::from_utf8(BASE64_STANDARD.decode(text).ok()?).ok()
    };
    let given = |key: &str| data(key).filter(|text| !text.is_empty());
    let serves = object["type"] == TYPE
        && object["metadata"]["deletionTimestamp"].is_null()
        && is_same(&data("token-secret")?, secret)
        && data("token-id")? == id
        && data("usage-bootstrap-authentication")? == "true"
        && given("expiration").is_none_or(|text| text.parse::<Timestamp>().is_ok_and(|end| now < end));
    if !serves {
        return None;
    }
    let mut groups = vec![GROUP.to_owned()];
    for group in given("auth-extra-groups").iter().flat_map(|groups| groups.split(',')) {
        // One that is nobody's to give makes the token worth nothing.
        groups.push(is_group(group).then(|| group.to_owned())?);
    }
    groups.sort();
    groups.dedup();
    groups.push(AUTHENTICATED.to_owned());
    Some(User { name: format!("system:bootstrap:{id}"), groups, ..User::default() })
}

/// How long it takes says nothing about where two secrets differ.
fn is_same(one: &str, other: &str) -> bool {
    Sha256::digest(one) == Sha256::digest(other)
}

fn is_group(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("system:bootstrappers:") else { return false };
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=256).contains(&rest.len())
        && rest.bytes().all(|byte| letter(byte) || byte == b':' || byte == b'-')
        && rest.bytes().last().is_some_and(letter)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn token(fields: &[(&str, &str)]) -> Value {
        let usual =
            [("token-id", "abcdef"), ("token-secret", "0123456789abcdef"), ("usage-bootstrap-authentication", "true")];
        let mut data = serde_json::Map::new();
        for (key, text) in usual.iter().chain(fields) {
            data.insert((*key).to_owned(), json!(BASE64_STANDARD.encode(text)));
        }
        json!({"metadata": {"name": "bootstrap-token-abcdef"}, "type": TYPE, "data": data})
    }

    fn groups(object: &Value) -> Option<Vec<String>> {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        user(object, "abcdef", "0123456789abcdef", now).map(|user| user.groups)
    }

    #[test]
    fn a_token_stands_for_a_joining_machine_and_its_groups() {
        assert_eq!(parse("abcdef.0123456789abcdef"), Some(("abcdef", "0123456789abcdef")));
        for other in ["abcdef0123456789abcdef", "abcde.0123456789abcdef", "ABCDEF.0123456789abcdef", "abcdef.", ""] {
            assert_eq!(parse(other), None, "{other}");
        }
        assert_eq!(groups(&token(&[])).unwrap(), [GROUP, AUTHENTICATED]);
        let more = token(&[("auth-extra-groups", "system:bootstrappers:b,system:bootstrappers:a:1")]);
        let all = ["system:bootstrappers", "system:bootstrappers:a:1", "system:bootstrappers:b", AUTHENTICATED];
        assert_eq!(groups(&more).unwrap(), all);
        assert!(groups(&token(&[("expiration", "2026-01-01T00:00:01Z")])).is_some());
        assert!(groups(&token(&[("expiration", ""), ("auth-extra-groups", "")])).is_some());
    }

    #[test]
    fn what_is_over_meant_otherwise_or_greedy_stands_for_nobody() {
        let mut of_another_type = token(&[]);
        of_another_type["type"] = json!("Opaque");
        let mut going = token(&[]);
        going["metadata"]["deletionTimestamp"] = json!("2025-12-31T00:00:00Z");
        let refused = [
            token(&[("expiration", "2026-01-01T00:00:00Z")]),
            token(&[("expiration", "soon")]),
            token(&[("token-secret", "0123456789abcdee")]),
            token(&[("token-id", "abcdeg")]),
            token(&[("usage-bootstrap-authentication", "no")]),
            token(&[("auth-extra-groups", "system:masters")]),
            token(&[("auth-extra-groups", "system:bootstrappers:a-")]),
            token(&[("auth-extra-groups", "system:bootstrappers:a, system:bootstrappers:b")]),
            of_another_type,
            going,
        ];
        for object in refused {
            assert_eq!(groups(&object), None, "{object}");
        }
    }
}
