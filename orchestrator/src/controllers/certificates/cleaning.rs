//! Forgets requests whose time is over: decided ones after an hour, others after a day, and what has a certificate that ended.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use client::{Caches, Kept, Key};
use jiff::Timestamp;
use serde_json::Value;

use super::super::given::{Account, Given};
use super::super::runtime::{Action, Controller, Plan, Queue};
use super::super::views::{SIGNING_REQUESTS, SigningRequest};
use super::{APPROVED, DENIED, FAILED, find, watch_requests};

const DECIDED: i64 = 3600;
const PENDING: i64 = 24 * 3600;

pub struct Cleaning;

impl Controller for Cleaning {
    const NAME: &'static str = "certificatesigningrequest-cleaner-controller";
    const ACCOUNT: Account = Account::Service("certificate-controller");
    const READS: &'static [Kept] = &[Kept::of::<SigningRequest>()];

    fn new(_: &Given) -> Self {
        Self
    }

    fn watch(&self, caches: &Caches, queue: &Queue) {
        watch_requests(caches, queue);
    }

    fn reconcile(&self, key: &Key, caches: &Caches) -> Plan {
        find(caches, key).map(|request| plan(&request, Timestamp::now())).unwrap_or_default()
    }
}

pub(super) fn plan(request: &SigningRequest, now: Timestamp) -> Plan {
    let key = Key::of(&request.metadata.meta);
    let Some(until) = until(request) else { return Plan::new() };
    match u64::try_from(until.as_second() - now.as_second()) {
        Ok(left @ 1..) => vec![Action::Again { key, after: Duration::from_secs(left) }],
        _ => {
            let uid = Some(request.metadata.meta.uid.clone());
            vec![Action::Delete { resource: SIGNING_REQUESTS, key, uid, propagation: None }]
        }
    }
}

/// When nobody needs it any more; `None` if that cannot be told.
fn until(request: &SigningRequest) -> Option<Timestamp> {
    let decided = [APPROVED, DENIED, FAILED].iter().filter_map(|kind| request.condition(kind));
    let decided = decided.filter_map(|condition| time(&condition["lastUpdateTime"])).min();
    let from = match decided {
        Some(decided) => decided.as_second() + DECIDED,
        None => time(&Value::from(request.metadata.owned.creation_timestamp.as_str()))?.as_second() + PENDING,
    };
    let ends = ends(&request.status.certificate).unwrap_or(i64::MAX);
    Timestamp::from_second(from.min(ends)).ok()
}

fn time(text: &Value) -> Option<Timestamp> {
    text.as_str()?.parse().ok()
}

/// Unix seconds at which a certificate ends.
fn ends(certificate: &str) -> Option<i64> {
    let pem = BASE64_STANDARD.decode(certificate).ok()?;
    apiserver::pki::request::ends(&pem)
}
