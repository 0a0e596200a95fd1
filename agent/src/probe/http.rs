//! A probe by HTTP: one request, and what its answer means. Certificates are not verified, as nothing tells by whom
//! a pod's should be signed.

use std::sync::OnceLock;
use std::time::Duration;

use causes::chain;
use reqwest::header::{ACCEPT, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use reqwest::{Client, Url, redirect};

use super::words::dial_error;
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

/// Asks `address`, which is a host with a port.
pub async fn get(address: &str, http: &HttpHandler, timeout: Duration) -> Result<(), String> {
    let scheme = http.scheme.as_deref().unwrap_or("HTTP").to_ascii_lowercase();
    let url = url(&scheme, address, &http.path)?;
    let failed = |error: reqwest::Error| {
        if error.is_timeout() {
            return timed_out(&url);
        }
        let first: &dyn std::error::Error = &error;
        let cause = std::iter::successors(Some(first), |error| error.source()).last().unwrap_or(first);
        let what = if error.is_connect() { dial_error(address, cause) } else { cause.to_string() };
        format!("Get {:?}: {what}", url.as_str())
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
    use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    const PATIENCE: Duration = Duration::from_secs(10);

    async fn listen() -> (TcpListener, String) {
        let _ = rustls::crypto::ring::default_provider().install_default(); // another test was quicker
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        (listener, address)
    }

    /// Reads a request's head and answers; what was asked comes back.
    async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, text: &str) -> String {
        let (mut head, mut buffer) = (Vec::new(), [0; 1024]);
        while !head.ends_with(b"\r\n\r\n") {
            let count = stream.read(&mut buffer).await.unwrap();
            assert!(count > 0);
            head.extend_from_slice(&buffer[..count]);
        }
        stream.write_all(text.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        String::from_utf8(head).unwrap()
    }

    fn head(code: u16, more: &str) -> String {
        format!("HTTP/1.1 {code} X\r\nContent-Length: 0\r\nConnection: close\r\n{more}\r\n")
    }

    #[tokio::test]
    async fn answers_and_what_they_mean() {
        let at = |path: &str| HttpHandler { path: path.into(), ..HttpHandler::default() };
        for (code, good) in [(200, true), (204, true), (304, true), (404, false), (500, false)] {
            let (listener, address) = listen().await;
            let server = tokio::spawn(async move { answer(listener.accept().await.unwrap().0, &head(code, "")).await });
            let outcome = get(&address, &at("/a?b=c"), PATIENCE).await;
            let asked = server.await.unwrap().to_lowercase();
            assert!(
                asked.starts_with("get /a?b=c http/1.1\r\n") && asked.contains("user-agent: kube-probe/1.34"),
                "{asked}"
            );
            let expected = if good { Ok(()) } else { Err(format!("HTTP probe failed with statuscode: {code}")) };
            assert_eq!(outcome, expected);
        }
        let (listener, address) = listen().await;
        let outcome = get(&address, &at("/"), Duration::from_millis(50)).await.unwrap_err();
        assert!(outcome.contains("context deadline exceeded"), "{outcome}");
        drop(listener);
        let outcome = get(&address, &at("/"), PATIENCE).await.unwrap_err();
        assert!(
            outcome.starts_with(&format!("Get \"http://{address}/\": dial tcp {address}: connect: connection refused")),
            "{outcome}"
        );
    }

    #[tokio::test]
    async fn redirects_are_followed_on_the_same_host_only() {
        for (location, second, expected) in [
            ("/ready", Some(200), Ok(())),
            ("/ready", Some(503), Err("HTTP probe failed with statuscode: 503".to_owned())),
            ("http://192.0.2.77/", None, Ok(())),
        ] {
            let (listener, address) = listen().await;
            let server = tokio::spawn(async move {
                let first = head(302, &format!("Location: {location}\r\n"));
                answer(listener.accept().await.unwrap().0, &first).await;
                if let Some(code) = second {
                    answer(listener.accept().await.unwrap().0, &head(code, "")).await;
                }
            });
            assert_eq!(get(&address, &HttpHandler::default(), PATIENCE).await, expected, "{location} {second:?}");
            server.await.unwrap();
        }
    }

    #[tokio::test]
    async fn any_certificate_will_do() {
        let (listener, address) = listen().await;
        let made = rcgen::generate_simple_self_signed(["elsewhere.example".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder().with_no_client_auth();
        let config = config.with_single_cert(vec![made.cert.der().clone()], key).unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
        let server = tokio::spawn(async move {
            let stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
            answer(stream, &head(200, "")).await
        });
        let secure = HttpHandler { scheme: Some("HTTPS".into()), ..HttpHandler::default() };
        assert_eq!(get(&address, &secure, PATIENCE).await, Ok(()));
        server.await.unwrap();
    }

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
