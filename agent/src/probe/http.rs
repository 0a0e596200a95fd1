//! A probe by HTTP: one request, and what its answer means. Certificates are not verified, as nothing tells by whom
//! a pod's should be signed.

use std::sync::OnceLock;
use std::time::Duration;

use pod::causes::chain;
use reqwest::header::{ACCEPT, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use reqwest::{Client, Url, redirect};

use super::{Target, address};
use crate::model::HttpHandler;

const AGENT: &str = "kube-probe/1.34";
/// As many redirects as the kubelet follows, and none to another host: such an answer counts as it is.
const MAX_REDIRECTS: usize = 10;

/// One for all probes of the node: no connection is kept, so nothing of one probe shows in the next.
fn client() -> Result<&'static Client, String> {
    static CLIENT: OnceLock<Result<Client, String>> = OnceLock::new();
    let build = || {
        let builder = Client::builder()
            .tls_danger_accept_invalid_certs(true)
            .no_proxy()
            .pool_max_idle_per_host(0)
            .redirect(redirect::Policy::custom(follow));
        builder.build().map_err(|error| chain(&error))
    };
    CLIENT.get_or_init(build).as_ref().map_err(Clone::clone)
}

fn follow(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let first = attempt.previous().first().and_then(Url::host_str).map(str::to_owned);
    if attempt.url().host_str().map(str::to_owned) != first {
        return attempt.stop();
    }
    if attempt.previous().len() >= MAX_REDIRECTS {
        return attempt.error("stopped after 10 redirects");
    }
    attempt.follow()
}

pub async fn get(target: &Target, http: &HttpHandler, timeout: Duration) -> Result<(), String> {
    let scheme = http.scheme.as_deref().unwrap_or("HTTP").to_ascii_lowercase();
    let address = address(target, &http.port, http.host.as_deref())?;
    let url = url(&scheme, &address, &http.path)?;
    let failed = |error: reqwest::Error| {
        if error.is_timeout() {
            return timed_out(&url);
        }
        let cause = std::iter::successors(std::error::Error::source(&error), |error| error.source()).last();
        let cause = cause.map_or_else(|| error.to_string(), ToString::to_string);
        if error.is_connect() {
            return format!("Get {:?}: dial tcp {address}: connect: {cause}", url.as_str());
        }
        format!("Get {:?}: {cause}", url.as_str())
    };
    let request = client()?.get(url.clone()).headers(headers(http)?).timeout(timeout);
    let response = request.send().await.map_err(failed)?;
    match response.status().as_u16() {
        200..=399 => Ok(()),
        code => Err(format!("HTTP probe failed with statuscode: {code}")),
    }
}

fn timed_out(url: &Url) -> String {
    format!("Get {:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)", url.as_str())
}

fn url(scheme: &str, address: &str, path: &str) -> Result<Url, String> {
    let slash = if path.starts_with('/') { "" } else { "/" };
    let text = format!("{scheme}://{address}{slash}{path}");
    // The parser would quietly leave line ends out.
    if text.chars().any(char::is_control) {
        return Err(format!("parse {text:?}: net/url: invalid control character in URL"));
    }
    Url::parse(&text).map_err(|error| format!("parse {text:?}: {error}"))
}

/// Those of the pod, and the usual ones that it does not set. A value is one line, or none.
fn headers(http: &HttpHandler) -> Result<HeaderMap, String> {
    let mut map = HeaderMap::new();
    for header in &http.http_headers {
        let name: HeaderName =
            header.name.parse().map_err(|_| format!("invalid header field name {:?}", header.name))?;
        let value = HeaderValue::from_str(&header.value);
        let value = value.map_err(|_| format!("invalid header field value for {:?}", header.name))?;
        map.append(name, value);
    }
    for (name, value) in [(USER_AGENT, AGENT), (ACCEPT, "*/*")] {
        map.entry(name).or_insert(HeaderValue::from_static(value));
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::HttpHeader;

    #[test]
    fn nothing_of_a_pod_adds_lines_to_a_request() {
        for bad in ["/a\r\nX: y", "/a\nb", "/\0", "/a HTTP/1.1\r\n\r\nGET /b"] {
            assert!(url("http", "10.0.0.1:80", bad).unwrap_err().contains("control character"), "{bad:?}");
        }
        assert_eq!(url("http", "10.0.0.1:80", "x?y=a b").unwrap().as_str(), "http://10.0.0.1/x?y=a%20b");
        for (name, value) in [("X", "a\r\nY: b"), ("X", "a\nb"), ("X\r\nY", "b"), ("X Y", "b"), ("", "b")] {
            let header = HttpHeader { name: name.into(), value: value.into() };
            assert!(
                headers(&HttpHandler { http_headers: vec![header], ..HttpHandler::default() }).is_err(),
                "{name:?}"
            );
        }
        let own = HttpHeader { name: "user-agent".into(), value: "me".into() };
        let map = headers(&HttpHandler { http_headers: vec![own], ..HttpHandler::default() }).unwrap();
        assert_eq!((map[USER_AGENT].to_str().unwrap(), map.len()), ("me", 2));
    }
}
