//! A question to a server of this kind, which also says where its answer comes from.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::str::FromStr;
use std::time::{Duration, Instant};

use hickory_proto::ProtoError;
use hickory_proto::op::{Edns, Message, MessageType, Query};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{Name, RecordType};

use crate::message::SOURCE_OPTION;
use crate::metrics::code_name;
use crate::udp::PAYLOAD;

/// How long one try may take: longer than the server itself waits for others.
const PATIENCE: Duration = Duration::from_secs(5);
const TRIES: usize = 2;

#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    #[error("{0:?} is no domain name")]
    Name(String),
    #[error("{0:?} is no type of records, such as A, AAAA, SRV, PTR or TXT")]
    Type(String),
    #[error("{server} does not answer")]
    Silent { server: SocketAddr, source: io::Error },
    #[error("the question cannot be written")]
    Encoding(#[source] ProtoError),
}

/// What a server said.
#[derive(Debug)]
pub struct Reply {
    /// The answers' data, as in a zone file.
    pub records: Vec<String>,
    /// Such as `NXDOMAIN`.
    pub code: String,
    /// `zone`, `cache`, `forward`, `stub ZONE`, or `elsewhere` if the server does not tell.
    pub source: String,
    pub took: Duration,
}

/// Asks for a whole name, or for the name of an address.
///
/// # Errors
/// [`QueryError::Name`] and [`QueryError::Type`] for what is none; [`QueryError::Silent`] where two tries, of five seconds each,
/// brought nothing or something else than a reply. A code such as NXDOMAIN is no error: it is what the server said.
pub fn query(server: SocketAddr, name: &str, kind: &str) -> Result<Reply, QueryError> {
    let asked = message(name, kind)?;
    let bytes = asked.to_vec().map_err(QueryError::Encoding)?;
    let since = Instant::now();
    let mut outcome = Err(io::ErrorKind::TimedOut.into());
    for _ in 0..TRIES {
        outcome = exchange(server, &bytes, &asked);
        if outcome.is_ok() {
            break;
        }
    }
    let answer = outcome.map_err(|source| QueryError::Silent { server, source })?;
    let told = answer.edns.as_ref().and_then(|edns| edns.option(EdnsCode::Unknown(SOURCE_OPTION)));
    let source = match told {
        Some(EdnsOption::Unknown(_, text)) => String::from_utf8_lossy(text).into_owned(),
        _ => "elsewhere".into(),
    };
    Ok(Reply {
        records: answer.answers.iter().map(|record| record.data.to_string()).collect(),
        code: code_name(answer.metadata.response_code),
        source,
        took: since.elapsed(),
    })
}

fn message(name: &str, kind: &str) -> Result<Message, QueryError> {
    let (name, kind) = match name.parse::<IpAddr>() {
        Ok(address) => (Name::from(address), RecordType::PTR),
        Err(_) => {
            let whole = Name::from_ascii(format!("{}.", name.strip_suffix('.').unwrap_or(name)));
            let kind = RecordType::from_str(&kind.to_uppercase()).map_err(|_| QueryError::Type(kind.into()))?;
            (whole.map_err(|_| QueryError::Name(name.into()))?, kind)
        }
    };
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.queries.push(Query::query(name, kind));
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD).set_version(0);
    edns.options_mut().insert(EdnsOption::Unknown(SOURCE_OPTION, Vec::new()));
    message.edns = Some(edns);
    Ok(message)
}

fn exchange(server: SocketAddr, bytes: &[u8], asked: &Message) -> io::Result<Message> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(bytes)?;
    let mut buffer = [0; PAYLOAD as usize];
    let length = socket.recv(&mut buffer)?;
    let answer = matching(&buffer[..length], asked)?;
    if answer.metadata.truncation { over_tcp(server, bytes, asked) } else { Ok(answer) }
}

fn over_tcp(server: SocketAddr, bytes: &[u8], asked: &Message) -> io::Result<Message> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], bytes].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut buffer = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut buffer)?;
    matching(&buffer, asked)
}

/// The message, if it answers this question.
fn matching(bytes: &[u8], asked: &Message) -> io::Result<Message> {
    let answer = Message::from_vec(bytes).map_err(io::Error::other)?;
    let is_reply = answer.metadata.id == asked.metadata.id && answer.metadata.message_type == MessageType::Response;
    is_reply.then_some(answer).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_addresses_and_types_are_understood_as_typed() {
        let asked = |name: &str, kind: &str| {
            let query = message(name, kind).map(|message| message.queries[0].clone());
            query.map(|query| format!("{} {}", query.name(), query.query_type())).map_err(|error| error.to_string())
        };
        assert_eq!(asked("web.default.svc.cluster.local", "srv").unwrap(), "web.default.svc.cluster.local. SRV");
        assert_eq!(asked("10.96.0.1", "A").unwrap(), "1.0.96.10.in-addr.arpa. PTR");
        assert!(asked("fd00::1", "A").unwrap().ends_with("0.0.d.f.ip6.arpa. PTR"));
        assert!(asked("a..b", "A").unwrap_err().contains("\"a..b\""));
        assert!(asked("a", "ADDRESS").unwrap_err().contains("\"ADDRESS\""));
    }
}
