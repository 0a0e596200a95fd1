use std::str::FromStr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{DNSClass, RData, RecordType};
use serde_json::json;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::*;
use crate::forward::{Flags, ForwardError};
use crate::message::SOURCE_OPTION;
use crate::sockets::Sockets;

mod autopath;

fn ask(name: &str, kind: &str) -> Message {
    let mut message = Message::new(77, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.queries.push(Query::query(Name::from_ascii(name).unwrap(), RecordType::from_str(kind).unwrap()));
    message
}

fn services() -> Snapshot {
    let endpoints: Vec<_> = (1..=200).map(|last| json!({"addresses": [format!("10.244.0.{last}")]})).collect();
    let services = json!([
        {"metadata": {"namespace": "default", "name": "web"}, "spec": {"clusterIPs": ["10.96.0.80"], "ports": []}},
        {"metadata": {"namespace": "default", "name": "many"}, "spec": {"clusterIPs": ["None"], "ports": []}},
        {"metadata": {"namespace": "default", "name": "vacant"}, "spec": {"clusterIPs": ["None"], "ports": []}},
        {"metadata": {"namespace": "default", "name": "ext"}, "spec": {"type": "ExternalName", "externalName": "example.org"}},
        {"metadata": {"namespace": "default", "name": "inner"},
            "spec": {"type": "ExternalName", "externalName": "web.default.svc.cluster.local"}},
    ]);
    let slices = json!([{"metadata": {"namespace": "default", "labels": {"kubernetes.io/service-name": "many"}},
        "addressType": "IPv4", "endpoints": endpoints}]);
    let (services, slices): (Vec<_>, Vec<_>) =
        (serde_json::from_value(services).unwrap(), serde_json::from_value(slices).unwrap());
    Snapshot::compute(["default".to_owned()], &services, &slices)
}

fn config(upstreams: Vec<SocketAddr>) -> Config {
    Config {
        domain: "cluster.local".into(),
        node: "node1".into(),
        pods: vec!["10.244.0.0/16".parse().unwrap()],
        servers: vec!["10.96.0.10".parse().unwrap()],
        upstreams,
        stubs: Vec::new(),
        clients: vec!["127.0.0.1/32".parse().unwrap()],
        log: QueryLog::Off,
        autopath: Autopath::Off,
    }
}

fn start(config: Config) -> Server {
    let server = Server::start(config, Sockets::bind("127.0.0.1:0".parse().unwrap()).unwrap()).unwrap();
    server.publish(services());
    server
}

fn server(upstreams: Vec<SocketAddr>) -> Server {
    start(config(upstreams))
}

async fn over_udp(server: &Server, asked: &Message) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&asked.to_vec().unwrap(), server.address()).await.unwrap();
    let mut buffer = vec![0; 4096];
    let length = timeout(Duration::from_secs(10), socket.recv(&mut buffer)).await.unwrap().unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

async fn over_tcp(server: &Server, asked: &Message) -> Message {
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    let bytes = asked.to_vec().unwrap();
    stream.write_all(&[&(bytes.len() as u16).to_be_bytes()[..], &bytes].concat()).await.unwrap();
    let length = stream.read_u16().await.unwrap();
    let mut buffer = vec![0; length.into()];
    stream.read_exact(&mut buffer).await.unwrap();
    Message::from_vec(&buffer).unwrap()
}

/// Answers A questions with one address for 60 seconds and others with their absence, and counts what it is asked. What nobody
/// else asks (HINFO) is not counted.
async fn upstream() -> (SocketAddr, Arc<AtomicUsize>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (address, count) = (socket.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
            let asked = Message::from_vec(&buffer[..length]).unwrap();
            let query = &asked.queries[0];
            counted.fetch_add(usize::from(query.query_type() != RecordType::HINFO), Ordering::SeqCst);
            let mut answer = Message::response(asked.metadata.id, OpCode::Query);
            answer.queries.clone_from(&asked.queries);
            let zone = Name::from_ascii("org.").unwrap();
            match query.query_type() {
                RecordType::A => {
                    let data = RData::A(A::new(192, 0, 2, 9));
                    answer.answers.push(Record::from_rdata(query.name().clone(), 60, data));
                }
                _ => {
                    answer.metadata.response_code = ResponseCode::NXDomain;
                    let soa = SOA::new(zone.clone(), zone.clone(), 1, 1, 1, 1, 20);
                    answer.authorities.push(Record::from_rdata(zone, 300, RData::SOA(soa)));
                }
            }
            // A forged one first, with another id.
            let mut forged = answer.clone();
            forged.metadata.id = forged.metadata.id.wrapping_add(1);
            forged.answers.iter_mut().for_each(|record| record.data = RData::A(A::new(6, 6, 6, 6)));
            for message in [forged, answer] {
                socket.send_to(&message.to_vec().unwrap(), client).await.unwrap();
            }
        }
    });
    (address, count)
}

fn data(message: &Message) -> Vec<String> {
    message.answers.iter().map(|record| record.data.to_string()).collect()
}

#[tokio::test]
async fn the_zone_is_answered_over_udp_and_tcp() {
    let server = server(Vec::new());
    let asked = ask("Web.default.svc.cluster.local.", "A");
    for answer in [over_udp(&server, &asked).await, over_tcp(&server, &asked).await] {
        assert_eq!(data(&answer), ["10.96.0.80"]);
        assert_eq!(answer.queries, asked.queries);
        assert!(answer.metadata.authoritative && answer.metadata.recursion_available && answer.metadata.id == 77);
    }
    let missing = over_udp(&server, &ask("nope.default.svc.cluster.local.", "A")).await;
    assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(missing.authorities.len(), 1);
}

#[tokio::test]
async fn what_is_asked_before_there_is_content_waits_for_it() {
    let server = Server::start(config(Vec::new()), Sockets::bind("127.0.0.1:0".parse().unwrap()).unwrap()).unwrap();
    let asked = ask("web.default.svc.cluster.local.", "A");
    let answers = async { tokio::join!(over_udp(&server, &asked), over_tcp(&server, &asked)) };
    tokio::pin!(answers);
    assert!(timeout(Duration::from_millis(200), &mut answers).await.is_err(), "answered from nothing");
    server.publish(services());
    let (datagram, stream) = answers.await;
    assert_eq!((data(&datagram), data(&stream)), (vec!["10.96.0.80".to_owned()], vec!["10.96.0.80".to_owned()]));
}

#[tokio::test]
async fn long_answers_are_cut_and_whole_over_tcp() {
    let server = server(Vec::new());
    let mut asked = ask("many.default.svc.cluster.local.", "A");
    let plain = over_udp(&server, &asked).await;
    assert!(plain.metadata.truncation && plain.answers.len() > 10);
    assert!(plain.to_vec().unwrap().len() <= 512);
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    asked.edns = Some(edns);
    let wider = over_udp(&server, &asked).await;
    assert!(wider.metadata.truncation && wider.answers.len() > plain.answers.len() && wider.edns.is_some());
    assert!(wider.to_vec().unwrap().len() <= 1232);
    let whole = over_tcp(&server, &asked).await;
    assert!(!whole.metadata.truncation && whole.answers.len() == 200);
}

#[tokio::test]
async fn other_names_are_forwarded_once_and_then_kept() {
    let (address, count) = upstream().await;
    let server = server(vec![address]);
    for _ in 0..3 {
        let answer = over_udp(&server, &ask("example.org.", "A")).await;
        assert_eq!((data(&answer), answer.metadata.authoritative), (vec!["192.0.2.9".to_owned()], false));
    }
    assert_eq!(count.load(Ordering::SeqCst), 1);
    let told = server.metrics();
    for line in ["cache_hits_total 2", "cache_misses_total 1", "forward_requests_total{zone=\".\"} 1"] {
        assert!(told.contains(&format!("amphipod_dns_{line}\n")), "{line}\n{told}");
    }
}

#[tokio::test]
async fn absence_is_told_as_the_name_server_does_and_kept() {
    let (address, count) = upstream().await;
    let server = server(vec![address]);
    for _ in 0..2 {
        let answer = over_udp(&server, &ask("example.org.", "AAAA")).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(answer.authorities[0].record_type(), RecordType::SOA);
    }
    assert_eq!(count.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn capitals_come_back_as_they_were_also_from_the_cache() {
    let (address, count) = upstream().await;
    let server = server(vec![address]);
    for name in ["Example.ORG.", "eXAMPLE.org."] {
        let answer = over_udp(&server, &ask(name, "A")).await;
        assert_eq!(answer.queries[0].name().to_string(), name);
        assert_eq!(answer.answers[0].name.to_string(), name);
    }
    assert_eq!(count.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_zone_of_others_is_asked_for_at_its_own_servers() {
    let ((everybody, others), (corp, own)) = (upstream().await, upstream().await);
    let stub = Stub { zone: Name::from_ascii("corp.").unwrap(), servers: vec![corp] };
    let server = start(Config { stubs: vec![stub], ..config(vec![everybody]) });
    assert_eq!(data(&over_udp(&server, &ask("host.corp.", "A")).await), ["192.0.2.9"]);
    assert_eq!((others.load(Ordering::SeqCst), own.load(Ordering::SeqCst)), (0, 1));
    assert_eq!(data(&over_udp(&server, &ask("example.org.", "A")).await), ["192.0.2.9"]);
    assert_eq!((others.load(Ordering::SeqCst), own.load(Ordering::SeqCst)), (1, 1));
}

#[tokio::test]
async fn who_asks_is_told_where_an_answer_comes_from() {
    let (address, _) = upstream().await;
    let stub = Stub { zone: Name::from_ascii("corp.").unwrap(), servers: vec![address] };
    let server = start(Config { stubs: vec![stub], ..config(vec![address]) });
    let at = server.address();
    for (name, expected) in [
        ("web.default.svc.cluster.local", "10.96.0.80 from zone"),
        ("example.org", "192.0.2.9 from forward"),
        ("example.org", "192.0.2.9 from cache"),
        ("host.corp", "192.0.2.9 from stub corp."),
        ("10.96.0.80", "web.default.svc.cluster.local. from zone"),
    ] {
        let reply = tokio::task::spawn_blocking(move || crate::query(at, name, "a").unwrap()).await.unwrap();
        assert_eq!(format!("{} from {}", reply.records.join(" "), reply.source), expected, "{name}");
    }
    // One that does not fit into a datagram.
    let many = tokio::task::spawn_blocking(move || crate::query(at, "many.default.svc.cluster.local", "A").unwrap());
    assert_eq!(many.await.unwrap().records.len(), 200);
}

/// Relays datagrams to whom it is told, in both directions.
async fn relay(to: Arc<std::sync::OnceLock<SocketAddr>>) -> SocketAddr {
    let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
            let (asked, back) = (buffer[..length].to_vec(), Arc::clone(&socket));
            let to = *to.wait();
            tokio::spawn(async move {
                let onward = UdpSocket::bind("127.0.0.1:0").await.unwrap();
                onward.send_to(&asked, to).await.unwrap();
                let mut answer = vec![0; 4096];
                if let Ok(Ok(length)) = timeout(Duration::from_secs(5), onward.recv(&mut answer)).await {
                    back.send_to(&answer[..length], client).await.unwrap();
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn a_name_server_that_leads_back_is_asked_no_more() {
    let (to, (good, _)) = (Arc::new(std::sync::OnceLock::new()), upstream().await);
    let looping = relay(Arc::clone(&to)).await;
    let server = server(vec![looping, good]);
    to.set(server.address()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while server.names.forwarder.routes()[0].addresses() != [good] {
        assert!(Instant::now() < deadline, "the loop is not found");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(server.metrics().contains("amphipod_dns_forward_loops 1\n"));
    assert_eq!(data(&over_udp(&server, &ask("example.org.", "A")).await), ["192.0.2.9"]);
}

#[tokio::test]
async fn the_server_says_what_it_is() {
    let server = server(Vec::new());
    for (name, expected) in [
        ("version.bind.", concat!("Amphipod-", env!("CARGO_PKG_VERSION"))),
        ("version.server.", concat!("Amphipod-", env!("CARGO_PKG_VERSION"))),
        ("hostname.bind.", "node1"),
        ("ID.server.", "node1"),
    ] {
        let mut asked = ask(name, "TXT");
        asked.queries[0].set_query_class(DNSClass::CH);
        let answer = over_udp(&server, &asked).await;
        assert_eq!((data(&answer), answer.answers[0].dns_class), (vec![expected.to_owned()], DNSClass::CH), "{name}");
    }
    let mut other = ask("authors.nowhere.", "TXT");
    other.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(over_udp(&server, &other).await.metadata.response_code, ResponseCode::Refused);
}

#[tokio::test]
async fn an_alias_brings_what_it_leads_to() {
    let (address, _) = upstream().await;
    let server = server(vec![address]);
    let outer = over_udp(&server, &ask("ext.default.svc.cluster.local.", "A")).await;
    assert_eq!(data(&outer), ["example.org.", "192.0.2.9"]);
    let inner = over_udp(&server, &ask("inner.default.svc.cluster.local.", "A")).await;
    assert_eq!(data(&inner), ["web.default.svc.cluster.local.", "10.96.0.80"]);
    let alone = over_udp(&server, &ask("ext.default.svc.cluster.local.", "CNAME")).await;
    assert_eq!(data(&alone), ["example.org."]);
}

#[tokio::test]
async fn a_silent_name_server_gives_way_to_the_next() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (address, _) = upstream().await;
    let server = server(vec![silent.local_addr().unwrap(), address]);
    assert_eq!(data(&over_udp(&server, &ask("example.org.", "A")).await), ["192.0.2.9"]);
}

#[tokio::test]
async fn failures_have_their_codes() {
    let server = server(Vec::new());
    let unanswered = over_udp(&server, &ask("example.org.", "A")).await;
    assert_eq!(unanswered.metadata.response_code, ResponseCode::ServFail);
    let mut update = ask("web.default.svc.cluster.local.", "A");
    update.metadata.op_code = OpCode::Status;
    assert_eq!(over_udp(&server, &update).await.metadata.response_code, ResponseCode::NotImp);
    let mut none = ask("web.default.svc.cluster.local.", "A");
    none.queries.clear();
    assert_eq!(over_udp(&server, &none).await.metadata.response_code, ResponseCode::FormErr);
    let mut newer = ask("web.default.svc.cluster.local.", "A");
    let mut edns = Edns::new();
    edns.set_version(1);
    newer.edns = Some(edns);
    let refused = over_udp(&server, &newer).await;
    // The number has two names.
    let code = u16::from(refused.metadata.response_code);
    assert_eq!((code, refused.edns.unwrap().version()), (ResponseCode::BADVERS.into(), 0));
    for kind in [RecordType::AXFR, RecordType::IXFR] {
        let mut asked = ask("cluster.local.", "A");
        asked.queries[0].set_query_type(kind);
        let transfer = over_udp(&server, &asked).await;
        assert_eq!(transfer.metadata.response_code, ResponseCode::Refused);
    }
    // A question that ends too soon is one that cannot be read, and its header says whose it was.
    let mut cut = ask("web.default.svc.cluster.local.", "A").to_vec().unwrap();
    cut.truncate(20);
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&cut, server.address()).await.unwrap();
    let mut buffer = [0; 64];
    let length = timeout(Duration::from_secs(10), socket.recv(&mut buffer)).await.unwrap().unwrap();
    let answer = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!((answer.metadata.id, answer.metadata.response_code), (77, ResponseCode::FormErr));
    // Rubbish is not answered, and does not stop the server.
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(b"rubbish", server.address()).await.unwrap();
    assert_eq!(data(&over_udp(&server, &ask("web.default.svc.cluster.local.", "A")).await), ["10.96.0.80"]);
}

/// Sorted, for which address comes first is chance.
fn comparable(bytes: &[u8]) -> Message {
    let mut message = Message::from_vec(bytes).unwrap();
    message.answers.sort_by_key(|record| record.data.to_string());
    message
}

#[tokio::test]
async fn quick_answers_are_those_of_the_general_code() {
    let server = server(Vec::new());
    let names = &server.names;
    let quick = |asked: &[u8]| {
        let mut answer = Vec::new();
        names.quick.answer(&names.snapshot(), asked, &mut answer).map(|said| (said, answer))
    };
    let taken = [
        "web.default.svc.cluster.local.",
        "WEB.dEfault.SVC.cluster.local.",
        "many.default.svc.cluster.local.",
        "vacant.default.svc.cluster.local.",
        "none.default.svc.cluster.local.",
        "www.example.org.default.svc.cluster.local.",
        "web.other.svc.cluster.local.",
    ];
    let left = [
        "x.web.default.svc.cluster.local.",
        "_http._tcp.web.default.svc.cluster.local.",
        "ext.default.svc.cluster.local.",
        "default.svc.cluster.local.",
        "svc.cluster.local.",
        "cluster.local.",
        "web.default.xsvc.cluster.local.",
        "10-244-0-5.default.pod.cluster.local.",
        "example.org.",
        ".",
    ];
    let mut compared = 0;
    for (name, kind) in taken.iter().chain(&left).flat_map(|name| ["A", "AAAA", "SRV", "ANY"].map(|kind| (*name, kind)))
    {
        for payload in [None, Some(1232), Some(4096)] {
            let mut asked = ask(name, kind);
            asked.metadata.checking_disabled = payload == Some(1232);
            asked.edns = payload.map(|payload| {
                let mut edns = Edns::new();
                // Nothing of the zone is signed, whoever asks for signatures.
                edns.set_max_payload(payload).set_dnssec_ok(payload == 4096);
                edns
            });
            let Some((said, bytes)) = quick(&asked.to_vec().unwrap()) else {
                let too_long = name.starts_with("many") && kind == "A";
                assert!(left.contains(&name) || ["SRV", "ANY"].contains(&kind) || too_long, "{name} {kind}");
                continue;
            };
            assert!(taken.contains(&name), "{name} {kind}");
            let client = "127.0.0.1:1".parse().unwrap();
            let request = Request::from_bytes(asked.to_vec().unwrap(), client, Protocol::Udp).unwrap();
            let general = names.answer_now(&request).unwrap().fit(&request).unwrap();
            let (quick, general) = (comparable(&bytes), comparable(&general));
            assert_eq!(quick, general, "{name} {kind} {payload:?}");
            let told = (RecordType::from(said.kind).to_string(), ResponseCode::from_low(said.code));
            assert_eq!(told, (kind.to_owned(), general.metadata.response_code));
            compared += 1;
        }
    }
    assert!(compared > 30, "{compared}");
}

#[tokio::test]
async fn what_is_unusual_about_a_question_is_left_to_the_general_code() {
    let server = server(Vec::new());
    let plain = ask("web.default.svc.cluster.local.", "A").to_vec().unwrap();
    let services = services();
    let quick = |asked: &[u8]| server.names.quick.answer(&services, asked, &mut Vec::new()).is_some();
    assert!(quick(&plain));
    // Every cut, and a byte too many.
    assert!((0..plain.len()).all(|length| !quick(&plain[..length])));
    assert!(!quick(&[&plain[..], &[0]].concat()));
    let changed = |at: usize, byte: u8| {
        let mut asked = plain.clone();
        asked[at] = byte;
        quick(&asked)
    };
    // An answer, a status request, a cut-off query, two questions, other sections, a pointer for a name, another class.
    for (at, byte) in [(2, 0x80), (2, 0x10), (2, 2), (5, 2), (7, 1), (9, 1), (11, 1), (12, 0xc0), (plain.len() - 1, 3)]
    {
        assert!(!changed(at, byte), "{at} {byte}");
    }
    let mut newer = ask("web.default.svc.cluster.local.", "A");
    let mut edns = Edns::new();
    edns.set_version(1);
    newer.edns = Some(edns);
    assert!(!quick(&newer.to_vec().unwrap()));
    for (code, taken) in [(10, true), (SOURCE_OPTION, false)] {
        let mut asked = ask("web.default.svc.cluster.local.", "A");
        let mut edns = Edns::new();
        edns.options_mut().insert(EdnsOption::Unknown(code, vec![1; 8]));
        asked.edns = Some(edns);
        assert_eq!(quick(&asked.to_vec().unwrap()), taken, "{code}");
    }
    // Whatever comes, nothing panics.
    for seed in 0..20_000u32 {
        let mut asked = plain.clone();
        let at = seed.wrapping_mul(2_654_435_761) as usize % asked.len();
        asked[at] = (seed.wrapping_mul(40_503) >> 7) as u8;
        asked.truncate(asked.len() - (seed as usize % 7) / 5);
        quick(&asked);
    }
}

#[tokio::test]
async fn a_dropped_server_frees_its_port() {
    let server = server(Vec::new());
    let address = server.address();
    let (again, deadline) = (address, tokio::time::Instant::now() + Duration::from_secs(10));
    drop(server);
    while std::net::UdpSocket::bind(again).is_err() {
        assert!(tokio::time::Instant::now() < deadline, "the port is still taken");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_stranger_hears_nothing() {
    let server = server(Vec::new());
    let asked = ask("web.default.svc.cluster.local.", "A").to_vec().unwrap();
    // Any other loopback address is one that the server was not told of.
    let socket = UdpSocket::bind("127.0.0.2:0").await.unwrap();
    socket.send_to(&asked, server.address()).await.unwrap();
    let bound = tokio::net::TcpSocket::new_v4().unwrap();
    bound.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut stream = bound.connect(server.address()).await.unwrap();
    assert_eq!(timeout(Duration::from_secs(10), stream.read(&mut [0; 16])).await.unwrap().unwrap_or(0), 0);
    // Whoever is known is answered after it, so the datagram was not merely late.
    assert_eq!(data(&over_udp(&server, &ask("web.default.svc.cluster.local.", "A")).await), ["10.96.0.80"]);
    assert!(socket.try_recv(&mut [0; 512]).is_err());
    assert_eq!(server.clients.refused(), 2);
}

#[tokio::test]
async fn one_client_does_not_use_up_the_forwarder() {
    // An upstream that never answers, so that every question stays under way.
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let forwarder = Arc::new(Forwarder::new(vec![silent.local_addr().unwrap()], Vec::new()).unwrap());
    let question_of = |client: &str, index: usize| {
        let (forwarder, client) = (Arc::clone(&forwarder), client.parse().unwrap());
        let query = ask(&format!("n{index}.example.org."), "A").queries.remove(0);
        async move { forwarder.ask(&query, Flags { dnssec: false, checking_disabled: false }, client).await }
    };
    let mut all: JoinSet<_> = (0..200).map(|index| question_of("192.0.2.1", index)).collect();
    let other = question_of("192.0.2.2", 1000).await;
    assert!(matches!(other, Err(ForwardError::Unanswered(_))), "another client was asked for all the same");
    let mut refused = 0;
    while let Some(ended) = all.join_next().await {
        refused += usize::from(matches!(ended.unwrap(), Err(ForwardError::Busy(_))));
    }
    assert_eq!(refused, 100, "the first has its share and no more");
}
