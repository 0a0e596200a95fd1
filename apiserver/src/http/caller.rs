//! Who a request is from: proven by certificate or token, and whom it asks to be taken for.

use api::status::Status;
use hyper::header;
use hyper::http::request::Parts;

use super::health;
use super::read::header_of;
use super::reply::{self, Reply};
use crate::authn::Certificate;
use crate::authz::Attributes;
use crate::identity::{AUTHENTICATED, User};
use crate::shared::{Anonymous, Shared};

pub fn authenticate(shared: &Shared, parts: &Parts, certificate: Option<&Certificate>) -> Result<User, Status> {
    if let Some(certificate) = certificate {
        // Checked at the handshake, and connections stay open for days.
        let alive = certificate.expires > jiff::Timestamp::now().as_second();
        return if alive { Ok(certificate.user.clone()) } else { Err(Status::unauthorized()) };
    }
    let Some(token) = header_of(parts, header::AUTHORIZATION).and_then(|text| text.strip_prefix("Bearer ")) else {
        let allowed = match shared.anonymous {
            Anonymous::Allowed => true,
            Anonymous::ProbesOnly => health::is_probe(parts.uri.path()),
            Anonymous::Refused => false,
        };
        return if allowed { Ok(User::anonymous()) } else { Err(Status::unauthorized()) };
    };
    let audiences = [shared.tokens.issuer.clone()];
    let found = shared.tokens.check(&shared.engine, token.trim(), &audiences);
    found.map(|(user, _)| user).ok_or_else(Status::unauthorized)
}

fn impersonation<'a>(parts: &'a Parts, name: &str) -> Vec<&'a str> {
    parts.headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect()
}

/// Groups or a uid without a user mean nothing, and upstream says so in plain text.
pub fn impersonates_nobody(parts: &Parts) -> Option<Reply> {
    if !impersonation(parts, "impersonate-user").is_empty() {
        return None;
    }
    let groups = impersonation(parts, "impersonate-group").into_iter().map(|group| format!("{{Group  {group}    }}"));
    let uids = impersonation(parts, "impersonate-uid")
        .into_iter()
        .map(|uid| format!("{{UID  {uid}  authentication.k8s.io/v1  }}"));
    let asked = groups.chain(uids).collect::<Vec<_>>().join(" ");
    let path = parts.uri.path();
    let text = || format!("Internal Server Error: {path:?}: requested [{asked}] without impersonating a user\n");
    (!asked.is_empty()).then(|| reply::text(500, text()))
}

/// `Impersonate-*` headers: each part has to be allowed to the real user.
pub fn impersonate(shared: &Shared, parts: &Parts, user: User) -> Result<User, Status> {
    let Some(name) = impersonation(parts, "impersonate-user").into_iter().next().map(str::to_owned) else {
        return Ok(user);
    };
    let mut groups: Vec<String> = impersonation(parts, "impersonate-group").into_iter().map(str::to_owned).collect();
    let uid = impersonation(parts, "impersonate-uid").into_iter().next().unwrap_or_default().to_owned();
    let mut wanted = User { name: name.clone(), uid, ..User::default() };
    let allowed = |resource: &str, namespace: &str, name: &str| {
        let text = str::to_owned;
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let group = if matches!(resource, "uids" | "userextras") { "authentication.k8s.io" } else { "" };
        let asked = Attributes {
            verb: text("impersonate"),
            group: text(group),
            resource: text(resource),
            subresource: text(subresource),
            namespace: text(namespace),
            name: text(name),
            ..Attributes::default()
        };
        shared.engine.authorizer.check(&shared.engine, &user, &asked)
    };
    match wanted.as_service_account() {
        Some((namespace, account)) => allowed("serviceaccounts", namespace, account)?,
        None => allowed("users", "", &name)?,
    }
    for group in &groups {
        allowed("groups", "", group)?;
    }
    if !wanted.uid.is_empty() {
        allowed("uids", "", &wanted.uid)?;
    }
    for (header, value) in &parts.headers {
        let Some(key) = header.as_str().strip_prefix("impersonate-extra-") else { continue };
        let (key, value) = (
            super::path::decode(key),
            value
                .to_str()
                .map_err(|_| Status::bad_request("the values of Impersonate-Extra headers have to be visible ASCII"))?,
        );
        allowed(&format!("userextras/{key}"), "", value)?;
        wanted.extra.entry(key).or_default().push(value.to_owned());
    }
    if groups.is_empty()
        && let Some((namespace, account)) = wanted.as_service_account()
    {
        groups = User::service_account(namespace, account).groups;
    }
    if name != "system:anonymous"
        && !groups.iter().any(|group| group == AUTHENTICATED || group == crate::identity::UNAUTHENTICATED)
    {
        groups.push(AUTHENTICATED.into());
    }
    wanted.groups = groups;
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hyper::Request;

    use super::*;
    use crate::nodes::NoNodes;
    use crate::server::{Config, Server};

    #[tokio::test]
    async fn a_certificate_that_ended_proves_nothing_on_a_connection_it_opened() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::on_loopback(folder.path().join("store.redb"));
        let server = Server::open(&config, Arc::new(NoNodes)).await.unwrap();
        let parts = Request::new(()).into_parts().0;
        let now = jiff::Timestamp::now().as_second();
        let asks = |expires| {
            let certificate = Certificate { user: User::new("kept", &[]), expires };
            authenticate(server.shared(), &parts, Some(&certificate)).map(|user| user.name)
        };
        assert_eq!(asks(now + 60).unwrap(), "kept");
        assert_eq!(asks(now - 1).unwrap_err().code, 401, "nor is it taken for nobody's");
    }
}
