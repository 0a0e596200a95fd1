use std::str::FromStr;

use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record};
use serde_json::json;

use super::*;

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
    let config = Config { listen: "127.0.0.1:0".parse().unwrap(), domain: "cluster.local".into(), upstreams };
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
