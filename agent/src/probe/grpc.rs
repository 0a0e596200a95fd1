//! A probe by gRPC: `grpc.health.v1.Health/Check`, one call over HTTP/2 in clear. Its two messages have one field each,
//! so they are written and read here.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use causes::chain;
use http::{HeaderMap, Request};
use tokio::net::TcpStream;

use super::words::dial_error;

const METHOD: &str = "/grpc.health.v1.Health/Check";
const SERVING: u64 = 1;
const UNIMPLEMENTED: &str = "12";
/// An answer has a few bytes.
const MAX_ANSWER: usize = 4096;

/// Asks the server at `address` for the health of one of its services, or of itself.
pub async fn check(address: &str, service: &str, timeout: Duration) -> Result<(), String> {
    let deadline = tokio::time::Instant::now() + timeout;
    let connected = tokio::time::timeout_at(deadline, TcpStream::connect(address)).await;
    let stream = connected.map_err(|_| {
        format!("timeout: failed to connect service {address:?} within {timeout:?}: context deadline exceeded")
    })?;
    let stream = stream
        .map_err(|error| format!("error: failed to connect service at {address:?}: {}", dial_error(address, &error)))?;
    let called = tokio::time::timeout_at(deadline, call(stream, address, service)).await;
    let answer = called.map_err(|_| format!("timeout: health rpc did not complete within {timeout:?}"))?;
    match answer.map_err(|error| format!("error: health rpc probe failed: {}", chain(&error)))? {
        Answer { status: Some(code), message, .. } if code == UNIMPLEMENTED => Err(format!(
            "error: this server at {address:?} does not implement the grpc health protocol \
             (grpc.health.v1.Health): {message}"
        )),
        Answer { status: Some(code), message, .. } if code != "0" => {
            Err(format!("error: health rpc probe failed: rpc error: code = {} desc = {message}", code_name(&code)))
        }
        Answer { health: SERVING, .. } => Ok(()),
        Answer { health, .. } => Err(format!("service unhealthy (responded with {:?})", health_name(health))),
    }
}

#[derive(Debug, Default, PartialEq)]
struct Answer {
    status: Option<String>,
    message: String,
    /// `HealthCheckResponse.status`; zero, as of a field left out, is UNKNOWN.
    health: u64,
}

async fn call(stream: TcpStream, address: &str, service: &str) -> Result<Answer, h2::Error> {
    let (client, connection) = h2::client::handshake(stream).await?;
    let exchange = exchange(client, address, service);
    tokio::pin!(exchange, connection);
    tokio::select! {
        answer = &mut exchange => answer,
        ended = &mut connection => match ended {
            Err(error) => Err(error),
            Ok(()) => exchange.await,
        },
    }
}

async fn exchange(client: h2::client::SendRequest<Bytes>, address: &str, service: &str) -> Result<Answer, h2::Error> {
    let request = Request::post(format!("http://{address}{METHOD}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/1.34")
        .body(());
    let request = request.map_err(|_| h2::Error::from(h2::Reason::INTERNAL_ERROR))?;
    let mut client = client.ready().await?;
    let (response, mut body) = client.send_request(request, false)?;
    body.send_data(message(service), true)?;
    let (head, mut body) = response.await?.into_parts();
    let mut bytes = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        if bytes.len() + chunk.len() > MAX_ANSWER {
            return Err(h2::Reason::FRAME_SIZE_ERROR.into());
        }
        bytes.extend_from_slice(&chunk);
    }
    let trailers = body.trailers().await?.unwrap_or_default();
    Ok(answer(&head.headers, &trailers, &bytes))
}

fn answer(headers: &HeaderMap, trailers: &HeaderMap, body: &[u8]) -> Answer {
    let find = |name: &str| trailers.get(name).or_else(|| headers.get(name)).and_then(|value| value.to_str().ok());
    Answer {
        status: find("grpc-status").map(str::to_owned),
        message: find("grpc-message").unwrap_or_default().to_owned(),
        health: health(body).unwrap_or_default(),
    }
}

/// `HealthCheckRequest { service = 1 }` in a frame: no compression, length, bytes.
fn message(service: &str) -> Bytes {
    let mut fields = BytesMut::new();
    if !service.is_empty() {
        fields.put_u8(0x0a);
        put_varint(&mut fields, service.len() as u64);
        fields.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(fields.len() as u32);
    frame.put_slice(&fields);
    frame.freeze()
}

fn put_varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Field 1 of the answer's message; others are passed over.
fn health(frame: &[u8]) -> Option<u64> {
    let mut bytes = frame.get(5..)?;
    let mut health = 0;
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        match (key >> 3, key & 7) {
            (1, 0) => health = varint(&mut bytes)?,
            (_, 0) => drop(varint(&mut bytes)?),
            (_, 1) => bytes = bytes.get(8..)?,
            (_, 2) => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                bytes = bytes.get(length..)?;
            }
            (_, 5) => bytes = bytes.get(4..)?,
            _ => return None,
        }
    }
    Some(health)
}

fn health_name(health: u64) -> String {
    match health {
        0 => "UNKNOWN".into(),
        2 => "NOT_SERVING".into(),
        3 => "SERVICE_UNKNOWN".into(),
        other => other.to_string(),
    }
}

fn code_name(code: &str) -> String {
    const NAMES: [&str; 17] = [
        "OK",
        "Canceled",
        "Unknown",
        "InvalidArgument",
        "DeadlineExceeded",
        "NotFound",
        "AlreadyExists",
        "PermissionDenied",
        "ResourceExhausted",
        "FailedPrecondition",
        "Aborted",
        "OutOfRange",
        "Unimplemented",
        "Internal",
        "Unavailable",
        "DataLoss",
        "Unauthenticated",
    ];
    let known = code.parse::<usize>().ok().and_then(|code| NAMES.get(code));
    known.map_or_else(|| format!("Code({code})"), |name| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        assert_eq!(message("").as_ref(), [0, 0, 0, 0, 0]);
        assert_eq!(message("web").as_ref(), [0, 0, 0, 0, 5, 0x0a, 3, b'w', b'e', b'b']);
        assert_eq!(message(&"x".repeat(200))[5..8], [0x0a, 0xc8, 1]);
        assert_eq!(health(&[0, 0, 0, 0, 2, 8, 1]), Some(1));
        assert_eq!(health(&[0, 0, 0, 0, 0]), Some(0));
        assert_eq!(health(&[0, 0, 0, 0, 5, 0x12, 1, b'x', 8, 2]), Some(2), "an unknown field before");
        assert_eq!(health(&[0, 0, 0, 0, 2, 8, 0x80]), None);
        assert_eq!(health(&[]), None);
    }

    /// A server that answers one call.
    async fn serve(health: u8, trailers: &'static [(&'static str, &'static str)]) -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(call) = connection.accept().await {
                let (request, mut respond) = call.unwrap();
                assert_eq!(request.uri().path(), METHOD);
                let response = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
                let mut stream = respond.send_response(response, false).unwrap();
                stream.send_data(Bytes::copy_from_slice(&[0, 0, 0, 0, 2, 8, health]), false).unwrap();
                let named = trailers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
                stream.send_trailers(named.collect()).unwrap();
            }
        });
        port
    }

    #[tokio::test]
    async fn calls() {
        let ask = |port: u16| async move { check(&format!("127.0.0.1:{port}"), "web", Duration::from_secs(10)).await };
        assert_eq!(ask(serve(1, &[("grpc-status", "0")]).await).await, Ok(()));
        let unhealthy = ask(serve(2, &[("grpc-status", "0")]).await).await.unwrap_err();
        assert_eq!(unhealthy, "service unhealthy (responded with \"NOT_SERVING\")");
        let absent = ask(serve(0, &[("grpc-status", "12"), ("grpc-message", "no")]).await).await.unwrap_err();
        assert!(absent.contains("does not implement the grpc health protocol"), "{absent}");
        let unknown = ask(serve(0, &[("grpc-status", "5"), ("grpc-message", "who")]).await).await.unwrap_err();
        assert_eq!(unknown, "error: health rpc probe failed: rpc error: code = NotFound desc = who");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let silent = listener.local_addr().unwrap().to_string();
        let late = check(&silent, "", Duration::from_millis(50)).await.unwrap_err();
        assert_eq!(late, "timeout: health rpc did not complete within 50ms");
        drop(listener);
        assert!(check(&silent, "", Duration::from_secs(5)).await.unwrap_err().starts_with("error: failed to connect"));
    }
}
