use std::str::FromStr;

use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record};
use serde_json::json;
use tokio::net::UdpSocket;

use super::*;
use crate::forward::ForwardError;

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
        {"metadata": {"namespace": "default", "name": "ext"}, "spec": {"type": "ExternalName", "externalName": "example.org"}},
        {"metadata": {"namespace": "default", "name": "inner"},
            "spec": {"type": "ExternalName", "externalName": "web.default.svc.cluster.local"}},
    ]);
    let slices = json!([{"metadata": {"namespace": "default", "labels": {"kubernetes.io/service-name": "many"}},
        "addressType": "IPv4", "endpoints": endpoints}]);
    let (services, slices): (Vec<_>, Vec<_>) =
        (serde_json::from_value(services).unwrap(), serde_json::from_value(slices).unwrap());
    Snapshot::compute(&services, &slices)
}

async fn server(upstreams: Vec<SocketAddr>) -> Server {
    let clients = vec!["127.0.0.1/32".parse().unwrap()];
    let config = Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        domain: "cluster.local".into(),
        pods: vec!["10.244.0.0/16".parse().unwrap()],
        upstreams,
        clients,
    };
    let server = Server::start(config).await.unwrap();
    server.publish(services());
    server
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

/// Answers every A question with one address for 60 seconds, and counts.
async fn upstream() -> (SocketAddr, Arc<std::sync::atomic::AtomicUsize>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (address, count) = (socket.local_addr().unwrap(), Arc::new(std::sync::atomic::AtomicUsize::new(0)));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
            counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let asked = Message::from_vec(&buffer[..length]).unwrap();
            let mut answer = reply(&asked, ResponseCode::NoError);
            answer.answers.push(Record::from_rdata(
                asked.queries[0].name().clone(),
                60,
                RData::A(A::new(192, 0, 2, 9)),
            ));
            // A forged one first, with another id.
            let mut forged = answer.clone();
            forged.metadata.id = forged.metadata.id.wrapping_add(1);
            forged.answers[0].data = RData::A(A::new(6, 6, 6, 6));
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
    let server = server(Vec::new()).await;
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
async fn long_answers_are_cut_and_whole_over_tcp() {
    let server = server(Vec::new()).await;
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
    let server = server(vec![address]).await;
    for _ in 0..3 {
        let answer = over_udp(&server, &ask("example.org.", "A")).await;
        assert_eq!((data(&answer), answer.metadata.authoritative), (vec!["192.0.2.9".to_owned()], false));
    }
    assert_eq!(count.load(std::sync::atomic::Ordering::SeqCst), 1);
    assert_eq!(server.cached_answers(), 1);
}

#[tokio::test]
async fn an_alias_brings_what_it_leads_to() {
    let (address, _) = upstream().await;
    let server = server(vec![address]).await;
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
    let server = server(vec![silent.local_addr().unwrap(), address]).await;
    assert_eq!(data(&over_udp(&server, &ask("example.org.", "A")).await), ["192.0.2.9"]);
}

#[tokio::test]
async fn failures_have_their_codes() {
    let server = server(Vec::new()).await;
    let unanswered = over_udp(&server, &ask("example.org.", "A")).await;
    assert_eq!(unanswered.metadata.response_code, ResponseCode::ServFail);
    let mut update = ask("web.default.svc.cluster.local.", "A");
    update.metadata.op_code = OpCode::Status;
    assert_eq!(over_udp(&server, &update).await.metadata.response_code, ResponseCode::NotImp);
    let mut none = ask("web.default.svc.cluster.local.", "A");
    none.queries.clear();
    assert_eq!(over_udp(&server, &none).await.metadata.response_code, ResponseCode::FormErr);
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
    let server = server(Vec::new()).await;
    let shared = &server.shared;
    let quick = |asked: &[u8]| {
        let mut answer = Vec::new();
        shared.quick.answer(&shared.snapshot(), asked, PAYLOAD, &mut answer).then_some(answer)
    };
    let taken = [
        "web.default.svc.cluster.local.",
        "WEB.dEfault.SVC.cluster.local.",
        "many.default.svc.cluster.local.",
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
                edns.set_max_payload(payload);
                edns
            });
            let Some(bytes) = quick(&asked.to_vec().unwrap()) else {
                let too_long = name.starts_with("many") && kind == "A";
                assert!(left.contains(&name) || ["SRV", "ANY"].contains(&kind) || too_long, "{name} {kind}");
                continue;
            };
            assert!(taken.contains(&name), "{name} {kind}");
            let general = encode(shared.answer_now(&asked).unwrap(), datagram_limit(&asked)).unwrap();
            assert_eq!(comparable(&bytes), comparable(&general), "{name} {kind} {payload:?}");
            compared += 1;
        }
    }
    assert!(compared > 30, "{compared}");
}

#[tokio::test]
async fn what_is_unusual_about_a_question_is_left_to_the_general_code() {
    let server = server(Vec::new()).await;
    let plain = ask("web.default.svc.cluster.local.", "A").to_vec().unwrap();
    let services = services();
    let quick = |asked: &[u8]| server.shared.quick.answer(&services, asked, PAYLOAD, &mut Vec::new());
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
    let server = server(Vec::new()).await;
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
    let server = server(Vec::new()).await;
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
    assert_eq!(server.refused(), 2);
}

#[tokio::test]
async fn one_client_does_not_use_up_the_forwarder() {
    // An upstream that never answers, so that every question stays under way.
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let forwarder = Arc::new(Forwarder::new(vec![silent.local_addr().unwrap()]));
    let question_of = |client: &str, index: usize| {
        let (forwarder, client) = (Arc::clone(&forwarder), client.parse().unwrap());
        let asked = ask(&format!("n{index}.example.org."), "A");
        async move { forwarder.ask(&asked.queries[0], &asked, client, Transport::Udp).await }
    };
    let mut all: JoinSet<_> = (0..200).map(|index| question_of("192.0.2.1", index)).collect();
    let other = question_of("192.0.2.2", 1000).await;
    assert!(matches!(other, Err(ForwardError::Unanswered)), "another client was asked for all the same");
    let mut refused = 0;
    while let Some(ended) = all.join_next().await {
        refused += usize::from(matches!(ended.unwrap(), Err(ForwardError::Busy(_))));
    }
    assert_eq!(refused, 100, "the first has its share and no more");
}
