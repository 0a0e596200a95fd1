//! The `proxy` subresource of pods and services: a request is carried to what it names, and the answer brought back.
//!
//! Who may ask was decided before; what the caller proved that with stays here. Where an answer leads to, and where the
//! links of its page do, is changed to what is seen from outside (`html`).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use api::status::Status;
use axum::body::{Body, BodyDataStream};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use html::Packing;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::http::uri::PathAndQuery;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::reply::{self, Reply};
use crate::engine::{Engine, Target};
use crate::limits::Seat;
use crate::nodes::Duplex;

mod html;
mod tls;

const PATIENCE: Duration = Duration::from_secs(10);
/// Segments before what is proxied: `api`, `v1`, `namespaces`, NAMESPACE, `pods`, NAME, `proxy`.
const SEGMENTS: usize = 7;
/// A page is held whole to change its links. One that is larger, packed or unpacked, goes on as it is.
const MAX_PAGE: usize = 4 << 20;

/// About one connection alone (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "proxy-connection",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Http,
    Https,
}

/// `[scheme:]name[:port]`, as the path names what is asked.
#[derive(Debug, PartialEq, Eq)]
struct Place<'a> {
    scheme: Scheme,
    name: &'a str,
    port: &'a str,
}

impl<'a> Place<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let (scheme, name, port) = match parts.as_slice() {
            [name] => ("", *name, ""),
            [name, port] => ("", *name, *port),
            [scheme, name, port] => (*scheme, *name, *port),
            _ => return None,
        };
        let scheme = match scheme {
            "" | "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return None,
        };
        (!name.is_empty()).then_some(Self { scheme, name, port })
    }
}

/// Carries a request; `target` has the place as its name.
pub async fn carry(
    engine: &Engine,
    target: &Target,
    mut parts: Parts,
    body: Incoming,
    seat: Seat,
) -> Result<Reply, Status> {
    let singular = target.kind.kind.to_lowercase();
    let place = Place::parse(&target.name)
        .ok_or_else(|| Status::bad_request(format!("invalid {singular} request {:?}", target.name)))?;
    let address = match &*target.kind.plural {
        "pods" => pod(engine, target, &place).await?,
        "services" => service(engine, target, &place)?,
        _ => return Err(Status::plain(501, "NotImplemented", "nodes have no port of their own to be proxied to yet")),
    };
    let (prefix, rest) = split(parts.uri.path());
    let query = parts.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    if rest.is_empty() && matches!(parts.method, Method::GET | Method::HEAD) {
        return redirect(&format!("{prefix}/{query}"));
    }
    let path = format!("{}{query}", if rest.is_empty() { "/" } else { rest });
    let path: PathAndQuery = path.parse().map_err(|_| Status::bad_request("the path cannot be proxied"))?;
    let (prefix, host) = (prefix.to_owned(), host_of(&parts));
    let method = parts.method.clone();
    let upgrade = parts.headers.contains_key(header::UPGRADE).then(|| parts.extensions.remove::<OnUpgrade>()).flatten();
    let kept = if upgrade.is_some() { Kept::Upgrade } else { Kept::Nothing };
    let request = onward(parts, path, &host, kept, body);
    let mut answer = match send(&place, address, request).await {
        Ok(answer) => answer,
        Err(why) => return Ok(reply::text(503, format!("error trying to reach service: {why}"))),
    };
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some(ours) = upgrade else {
            return Ok(reply::text(502, "the service switched protocols where nobody asked for it"));
        };
        let theirs = hyper::upgrade::on(&mut answer);
        tokio::spawn(join(ours, theirs, seat));
        return Ok(back(answer.map(|_| Body::empty()), &prefix, &host, address, Kept::Upgrade));
    }
    let whole = method != Method::HEAD && is_page(&answer);
    let answer = back(answer.map(Body::new), &prefix, &host, address, Kept::Nothing);
    let answer = if whole { with_links(answer, |link| relocate(link, &prefix, &host, address)).await } else { answer };
    Ok(reply::holding(answer, seat))
}

/// An answer that leads elsewhere is not shown.
fn is_page<T>(answer: &Response<T>) -> bool {
    let kind = answer.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    kind == "text/html" && !answer.headers().contains_key(header::LOCATION)
}

/// A page with its links changed; one that cannot be understood goes on as it is.
async fn with_links(answer: Reply, change: impl Fn(&str) -> String) -> Reply {
    let encoding = answer.headers().get(header::CONTENT_ENCODING).map(|value| value.to_str().unwrap_or("?"));
    let Some(packing) = Packing::of(encoding.unwrap_or_default()) else { return answer };
    let (mut head, body) = answer.into_parts();
    let (packed, rest) = take(body.into_data_stream()).await;
    let changed = match rest {
        Rest::End => html::rewrite(&packed, packing, MAX_PAGE, change).unwrap_or_else(|error| {
            tracing::debug!(%error, ?packing, "a proxied page cannot be unpacked");
            None
        }),
        Rest::More(rest) => {
            let all = futures::stream::once(std::future::ready(Ok(packed.into()))).chain(rest);
            return Response::from_parts(head, Body::from_stream(all));
        }
    };
    if let Some(changed) = changed {
        head.headers.remove(header::CONTENT_LENGTH);
        return Response::from_parts(head, Body::from(changed));
    }
    Response::from_parts(head, Body::from(packed))
}

/// What follows the beginning of a body.
enum Rest {
    End,
    More(BoxStream<'static, Result<Bytes, axum::Error>>),
}

/// A body's beginning, as much as a page may have, and what there is beyond: more of it, or an error.
async fn take(mut body: BodyDataStream) -> (Vec<u8>, Rest) {
    let mut taken = Vec::new();
    while let Some(chunk) = body.next().await {
        match chunk {
            Ok(chunk) if taken.len() + chunk.len() <= MAX_PAGE => taken.extend_from_slice(&chunk),
            beyond => {
                let rest = futures::stream::once(std::future::ready(beyond)).chain(body);
                return (taken, Rest::More(rest.boxed()));
            }
        }
    }
    (taken, Rest::End)
}

/// The path up to the subresource, and what follows it, both as they were sent.
fn split(path: &str) -> (&str, &str) {
    let mut seen = 0;
    let mut inside = false;
    for (at, byte) in path.bytes().enumerate() {
        match (byte, inside) {
            (b'/', true) if seen == SEGMENTS => return path.split_at(at),
            (b'/', _) => inside = false,
            (_, false) => {
                inside = true;
                seen += 1;
            }
            (_, true) => {}
        }
    }
    (path, "")
}

async fn pod(engine: &Engine, target: &Target, place: &Place<'_>) -> Result<SocketAddr, Status> {
    let target = Target::new(target.kind.clone(), &target.namespace, place.name);
    let pod = engine.get(&target, None).await?.value();
    let declared = || {
        let mut containers = pod["spec"]["containers"].as_array().into_iter().flatten();
        containers.find_map(|container| container["ports"][0]["containerPort"].as_u64())
    };
    let port = match place.port {
        "" => declared().and_then(|port| u16::try_from(port).ok()).unwrap_or(match place.scheme {
            Scheme::Http => 80,
            Scheme::Https => 443,
        }),
        text => text.parse().map_err(|_| Status::bad_request(format!("{text:?} is no port number")))?,
    };
    proxyable(pod["status"]["podIP"].as_str().unwrap_or_default(), port)
}

/// One of the ready addresses of a service's port, named or by its number.
fn service(engine: &Engine, target: &Target, place: &Place<'_>) -> Result<SocketAddr, Status> {
    let (namespace, name) = (&*target.namespace, place.name);
    let mut wanted = place.port.to_owned();
    if let Ok(number) = place.port.parse::<u64>() {
        let service = engine.lookup("", "services", namespace, name);
        let service = service.ok_or_else(|| Status::not_found("", "services", name))?.value();
        let mut ports = service["spec"]["ports"].as_array().into_iter().flatten();
        let found = ports.find(|port| port["port"].as_u64() == Some(number));
        let found = found.ok_or_else(|| {
            Status::service_unavailable(format!("no service port {number} found for service {name:?}"))
        })?;
        wanted = found["name"].as_str().unwrap_or_default().to_owned();
    }
    let endpoints = engine.lookup("", "endpoints", namespace, name);
    let endpoints = endpoints.ok_or_else(|| Status::not_found("", "endpoints", name))?.value();
    let mut addresses = Vec::new();
    for subset in endpoints["subsets"].as_array().into_iter().flatten() {
        let mut ports = subset["ports"].as_array().into_iter().flatten();
        let port = ports.find(|port| port["name"].as_str().unwrap_or_default() == wanted);
        let Some(port) = port.and_then(|port| u16::try_from(port["port"].as_u64()?).ok()) else { continue };
        let ready = subset["addresses"].as_array().into_iter().flatten();
        addresses.extend(ready.filter_map(|address| Some((address["ip"].as_str()?.to_owned(), port))));
    }
    match addresses.len() {
        0 => Err(Status::service_unavailable(format!("no endpoints available for service {name:?}"))),
        count => {
            let (ip, port) = &addresses[random(count)];
            proxyable(ip, *port)
        }
    }
}

/// Any of so many: endpoints take turns, and nobody gains by guessing whose it is.
fn random(count: usize) -> usize {
    let (low, _) = uuid::Uuid::new_v4().as_u64_pair();
    usize::try_from(low % count as u64).unwrap_or(0)
}

/// Addresses that mean this machine itself would lead behind its walls.
fn proxyable(ip: &str, port: u16) -> Result<SocketAddr, Status> {
    let ip: Option<IpAddr> = ip.parse().ok();
    let local = |ip: &IpAddr| match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local() || ip.is_multicast() || ip.is_unspecified(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unicast_link_local() || ip.is_multicast() || ip.is_unspecified(),
    };
    match ip.filter(|ip| !local(ip)) {
        Some(ip) => Ok(SocketAddr::new(ip, port)),
        None => Err(Status::bad_request("address not allowed")),
    }
}

/// A page's links are relative to its folder, which the path without a slash is not.
fn redirect(to: &str) -> Result<Reply, Status> {
    let location = HeaderValue::from_str(to).map_err(|_| Status::bad_request("the path cannot be proxied"))?;
    let mut reply = Response::new(Body::empty());
    *reply.status_mut() = StatusCode::MOVED_PERMANENTLY;
    reply.headers_mut().insert(header::LOCATION, location);
    Ok(reply)
}

/// Whom the client believes it talks to.
fn host_of(parts: &Parts) -> String {
    let named = parts.headers.get(header::HOST).and_then(|host| host.to_str().ok());
    named.or_else(|| parts.uri.authority().map(|authority| authority.as_str())).unwrap_or_default().to_owned()
}

/// The request as its receiver gets it: without what was for us.
fn onward(parts: Parts, path: PathAndQuery, host: &str, kept: Kept, body: Incoming) -> Request<Incoming> {
    let mut request = Request::new(body);
    *request.method_mut() = parts.method;
    *request.version_mut() = Version::HTTP_11;
    let asked = parts.uri.path().to_owned();
    *request.uri_mut() = Uri::from(path);
    let mut headers = parts.headers;
    strip(&mut headers, kept);
    headers.remove(header::AUTHORIZATION);
    let ours: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("impersonate-")).cloned().collect();
    ours.iter().for_each(|name| drop(headers.remove(name)));
    let named =
        [("host", host), ("x-forwarded-host", host), ("x-forwarded-proto", "https"), ("x-forwarded-uri", &asked)];
    for (name, value) in named {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    *request.headers_mut() = headers;
    request
}

fn strip(headers: &mut HeaderMap, kept: Kept) {
    HOP_BY_HOP.iter().for_each(|name| drop(headers.remove(*name)));
    match kept {
        Kept::Upgrade => drop(headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"))),
        Kept::Nothing => drop(headers.remove(header::UPGRADE)),
    }
}

async fn send(
    place: &Place<'_>,
    address: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<Incoming>, String> {
    let dialled = tokio::time::timeout(PATIENCE, TcpStream::connect(address)).await;
    let stream = match dialled {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(format!("dial tcp {address}: {error}")),
        Err(_) => return Err(format!("dial tcp {address}: i/o timeout")),
    };
    let stream: Box<dyn Duplex> = match place.scheme {
        Scheme::Http => Box::new(stream),
        Scheme::Https => {
            let secured = tokio::time::timeout(PATIENCE, tls::connect(address, stream)).await;
            Box::new(secured.map_err(|_| "TLS handshake timeout".to_owned())?.map_err(|error| error.to_string())?)
        }
    };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    tokio::spawn(async move {
        // What goes wrong is the request's to tell.
        let _ended = connection.with_upgrades().await;
    });
    sender.send_request(request).await.map_err(|error| error.to_string())
}

/// What of the connection headers goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kept {
    Nothing,
    Upgrade,
}

/// The answer as the client gets it.
fn back(mut answer: Reply, prefix: &str, host: &str, backend: SocketAddr, kept: Kept) -> Reply {
    *answer.version_mut() = Version::default();
    let headers = answer.headers_mut();
    strip(headers, kept);
    // Whom a page may share its answers with is for this server to say.
    let shared: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("access-control-allow-")).cloned().collect();
    shared.iter().for_each(|name| drop(headers.remove(name)));
    let moved = headers.get(header::LOCATION).and_then(|to| to.to_str().ok());
    if let Some(Ok(to)) = moved.map(|to| HeaderValue::from_str(&relocate(to, prefix, host, backend))) {
        headers.insert(header::LOCATION, to);
    }
    answer
}

/// An address of the backend's own, seen from outside: its path lies below the prefix.
fn relocate(to: &str, prefix: &str, host: &str, backend: SocketAddr) -> String {
    let (authority, start) = authority(to);
    let path = &to[start..];
    // Whoever was asked under the name that the client knows may go on by that name.
    let head = match authority {
        None => "",
        Some(authority) if authority == host => &to[..start],
        Some(authority) if authority == backend.to_string() => "",
        Some(_) => return to.to_owned(),
    };
    match path {
        path if !path.starts_with('/') => to.to_owned(),
        path if path.starts_with(prefix) => format!("{head}{path}"),
        path => format!("{head}{prefix}{path}"),
    }
}

/// The host and port that an address names, if it names any, and where its path begins.
fn authority(address: &str) -> (Option<&str>, usize) {
    let scheme = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphabetic())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
    };
    let from = match address.split_once("//") {
        Some(("", _)) => 2,
        Some((before, _)) if before.strip_suffix(':').is_some_and(scheme) => before.len() + 2,
        _ => return (None, 0),
    };
    let length = address[from..].find(['/', '?', '#']).unwrap_or(address.len() - from);
    (Some(&address[from..from + length]), from + length)
}

/// After an upgrade: bytes both ways until both ends are done.
async fn join(ours: OnUpgrade, theirs: OnUpgrade, seat: Seat) {
    let _seat = seat;
    match tokio::try_join!(ours, theirs) {
        Ok((ours, theirs)) => {
            let (mut ours, mut theirs) = (TokioIo::new(ours), TokioIo::new(theirs));
            // An end that breaks off is the end of the connection, as it would be without us.
            let _ended = tokio::io::copy_bidirectional(&mut ours, &mut theirs).await;
        }
        Err(error) => tracing::debug!(%error, "a proxied upgrade came to nothing"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_kubernetes_writes_them() {
        let place = |scheme, name, port| Some(Place { scheme, name, port });
        assert_eq!(Place::parse("web"), place(Scheme::Http, "web", ""));
        assert_eq!(Place::parse("web:80"), place(Scheme::Http, "web", "80"));
        assert_eq!(Place::parse("https:web:"), place(Scheme::Https, "web", ""));
        assert_eq!(Place::parse("ftp:web:1"), None);
        assert_eq!(Place::parse("a:b:c:d"), None);
        assert_eq!(Place::parse(":80"), None);
    }

    #[test]
    fn the_rest_of_a_path_stays_as_it_was_sent() {
        let prefix = "/api/v1/namespaces/ns/pods/web/proxy";
        assert_eq!(split(prefix), (prefix, ""));
        assert_eq!(split(&format!("{prefix}/")), (prefix, "/"));
        assert_eq!(split(&format!("{prefix}/a//b%2Fc/")), (prefix, "/a//b%2Fc/"));
    }

    #[test]
    fn the_machine_itself_is_out_of_reach() {
        for ip in ["127.0.0.1", "169.254.169.254", "::1", "fe80::1", "::ffff:127.0.0.1", "0.0.0.0", "", "x"] {
            assert_eq!(proxyable(ip, 80).unwrap_err().message, "address not allowed", "{ip}");
        }
        assert!(proxyable("10.244.0.5", 80).is_ok());
    }

    #[test]
    fn where_an_answer_leads_to_is_below_the_prefix() {
        let backend = "10.244.0.5:80".parse().unwrap();
        let to = |location| relocate(location, "/p/proxy", "api:6443", backend);
        assert_eq!(to("/login?next=1"), "/p/proxy/login?next=1");
        assert_eq!(to("http://10.244.0.5:80/x"), "/p/proxy/x");
        assert_eq!(to("/p/proxy/x"), "/p/proxy/x");
        assert_eq!(to("http://elsewhere/x"), "http://elsewhere/x");
        assert_eq!(to("relative"), "relative");
        assert_eq!(to("//elsewhere/x"), "//elsewhere/x");
        assert_eq!(to("/x?to=http://y#z"), "/p/proxy/x?to=http://y#z");
        assert_eq!(to("https://api:6443/x#y"), "https://api:6443/p/proxy/x#y");
        assert_eq!(to("http://10.244.0.5:80"), "http://10.244.0.5:80");
        assert_eq!(to("mailto:me@elsewhere"), "mailto:me@elsewhere");
        assert_eq!(to(""), "");
    }

    fn answer(headers: &[(&'static str, &'static str)], body: impl Into<Body>) -> Reply {
        let mut answer = Response::new(body.into());
        let headers =
            headers.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        answer.headers_mut().extend(headers);
        answer
    }

    async fn shown(answer: Reply) -> (HeaderMap, Vec<u8>) {
        let (head, body) = answer.into_parts();
        (head.headers, axum::body::to_bytes(body, usize::MAX).await.unwrap().to_vec())
    }

    #[test]
    fn only_pages_have_links() {
        for (headers, page) in [
            (&[("content-type", "text/html; charset=utf-8")][..], true),
            (&[("content-type", "application/json")][..], false),
            (&[("content-type", "text/html"), ("location", "/x")][..], false),
            (&[][..], false),
        ] {
            assert_eq!(is_page(&answer(headers, "")), page, "{headers:?}");
        }
    }

    #[tokio::test]
    async fn links_of_a_page_lead_through_the_proxy() {
        let change = |link: &str| format!("/p{link}");
        let (headers, page) = shown(with_links(answer(&[("content-length", "11")], "<a href=/x>"), change).await).await;
        assert_eq!((page.as_slice(), headers.get("content-length")), (&b"<a href=/p/x>"[..], None));
        let brotli = answer(&[("content-encoding", "br")], "<a href=/x>");
        assert_eq!(shown(with_links(brotli, change).await).await.1, b"<a href=/x>");
        let broken = answer(&[("content-encoding", "gzip")], "<a href=/x>");
        assert_eq!(shown(with_links(broken, change).await).await.1, b"<a href=/x>");
        let mut large = b"<a href=/x>".to_vec();
        large.resize(MAX_PAGE + 1, b' ');
        assert!(shown(with_links(answer(&[], large.clone()), change).await).await.1 == large, "it goes on unchanged");
    }
}
