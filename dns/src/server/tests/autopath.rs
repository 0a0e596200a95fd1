//! What pods hear who look along their search list.

use super::*;

const LIST: [&str; 4] = ["default.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example"];
const POD: &str = "127.0.0.1";
/// All that the other name servers know; whatever else is asked for is not there.
const KNOWN: [(&str, ResponseCode); 7] = [
    ("db.lab.corp.example.", ResponseCode::NoError),
    ("example.org.", ResponseCode::NoError),
    ("first.lab.corp.example.", ResponseCode::NoError),
    ("first.lab.", ResponseCode::NoError),
    ("fails.lab.corp.example.", ResponseCode::ServFail),
    ("fails.lab.", ResponseCode::NoError),
    ("gone.other.", ResponseCode::NoError),
];

/// Says what it knows, of type A, and writes down the names that it was asked for.
async fn others() -> (SocketAddr, Arc<std::sync::Mutex<Vec<String>>>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (address, names) = (socket.local_addr().unwrap(), Arc::<std::sync::Mutex<Vec<String>>>::default());
    let written = Arc::clone(&names);
    tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
            let asked = Message::from_vec(&buffer[..length]).unwrap();
            let (name, kind) = (asked.queries[0].name().clone(), asked.queries[0].query_type());
            if kind != RecordType::HINFO {
                written.lock().unwrap().push(name.to_string());
            }
            let known = KNOWN.iter().find(|(known, _)| *known == name.to_string()).map(|(_, code)| *code);
            let mut answer = Message::response(asked.metadata.id, OpCode::Query);
            answer.queries.clone_from(&asked.queries);
            answer.metadata.response_code = known.unwrap_or(ResponseCode::NXDomain);
            if kind == RecordType::A && known == Some(ResponseCode::NoError) {
                answer.answers.push(Record::from_rdata(name, 60, RData::A(A::new(192, 0, 2, 9))));
            } else {
                let zone = Name::root();
                let soa = SOA::new(zone.clone(), zone.clone(), 1, 1, 1, 1, 20);
                answer.authorities.push(Record::from_rdata(zone, 300, RData::SOA(soa)));
            }
            socket.send_to(&answer.to_vec().unwrap(), client).await.unwrap();
        }
    });
    (address, names)
}

fn cluster() -> Snapshot {
    let service = |namespace: &str, name: &str, spec: serde_json::Value| {
        serde_json::from_value(json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec})).unwrap()
    };
    let services = [
        service("default", "web", json!({"clusterIPs": ["10.96.0.80"]})),
        service("default", "peers", json!({"clusterIPs": ["None"]})),
        service("other", "api", json!({"clusterIPs": ["10.96.0.90"]})),
        service("other", "ext", json!({"type": "ExternalName", "externalName": "example.org"})),
        service("other", "gone", json!({"type": "ExternalName", "externalName": "no.example"})),
    ];
    Snapshot::compute(["default", "other"].map(str::to_owned), &services, &[])
}

fn with_list(config: Config) -> Server {
    let server = start(Config { autopath: Autopath::On, ..config });
    server.publish(cluster());
    let list = LIST.map(str::to_owned);
    server.pod_came(POD.parse().unwrap(), &Uid::new("uid"), "default", Some(&list));
    server
}

fn told(answer: &Message) -> String {
    let records = [vec![answer.metadata.response_code.to_str().to_owned()], data(answer)].concat();
    records.join(" ")
}

#[tokio::test]
async fn a_pod_hears_at_once_what_its_list_leads_to() {
    let (address, names) = others().await;
    let server = with_list(config(vec![address]));
    let logging = with_list(Config { log: QueryLog::On, ..config(vec![address]) });
    for (name, kind, expected) in [
        // There is such a name: nothing to walk for.
        ("web", "A", "No Error 10.96.0.80"),
        ("web", "AAAA", "No Error"),
        // At each place of the list.
        ("api.other", "A", "No Error api.other.svc.cluster.local. 10.96.0.90"),
        ("api.other.svc", "A", "No Error api.other.svc.cluster.local. 10.96.0.90"),
        ("db.lab", "A", "No Error db.lab.corp.example. 192.0.2.9"),
        ("first.lab", "A", "No Error first.lab.corp.example. 192.0.2.9"),
        ("example.org", "A", "No Error example.org. 192.0.2.9"),
        ("api.other.svc.cluster.local", "A", "No Error api.other.svc.cluster.local. 10.96.0.90"),
        ("no.where", "A", "Non-Existent Domain"),
        // An alias of the zone, and one that leads to nothing, behind which resolvers look further.
        ("ext.other", "A", "No Error ext.other.svc.cluster.local. example.org. 192.0.2.9"),
        ("gone.other", "A", "No Error gone.other. 192.0.2.9"),
        // The name is there, and has no such record: no alias, so that each resolver goes on as it does.
        ("api.other", "AAAA", "No Error"),
        ("example.org", "AAAA", "No Error"),
        // What fails is left to the resolver.
        ("fails.lab", "A", "Non-Existent Domain"),
        // Services, and what is below them.
        ("example", "A", "Non-Existent Domain"),
        ("x.web", "A", "Non-Existent Domain"),
        ("peers-0.peers", "A", "Non-Existent Domain"),
        ("example.org", "TXT", "Non-Existent Domain"),
    ] {
        let mut asked = ask(&format!("{name}.{}.", LIST[0]), kind);
        let mut answers = vec![over_udp(&server, &asked).await, over_tcp(&server, &asked).await];
        answers.push(over_udp(&logging, &asked).await);
        asked.edns = Some(Edns::new());
        answers.push(over_udp(&server, &asked).await);
        assert!(answers[3].edns.is_some());
        for answer in answers {
            assert_eq!(told(&answer), expected, "{name} {kind}");
            assert!(!answer.metadata.authentic_data && answer.queries == asked.queries, "{name} {kind}");
            if answer.answers.is_empty() {
                assert_eq!(answer.authorities[0].name.to_string(), "cluster.local.", "{name} {kind}");
            }
        }
    }
    let names = names.lock().unwrap();
    for never in ["first.lab.", "fails.lab.", "example.", "x.web.", "peers-0.peers.", "web.corp.example."] {
        assert!(!names.iter().any(|name| name == never), "{never} {names:?}");
    }
}

#[tokio::test]
async fn an_alias_holds_no_longer_than_the_zones_denial() {
    let server = with_list(config(vec![others().await.0]));
    let answer = over_udp(&server, &ask("Example.ORG.default.svc.Cluster.local.", "A")).await;
    let records: Vec<_> = answer.answers.iter().map(|record| (record.name.to_string(), record.ttl)).collect();
    assert_eq!(records, [("Example.ORG.default.svc.Cluster.local.".into(), 5), ("Example.ORG.".into(), 60)]);
    assert!(server.metrics().contains("amphipod_dns_autopath_answers_total 1\n"));
}

#[tokio::test]
async fn nobody_else_is_answered_beyond_the_zone() {
    let (address, names) = others().await;
    let (off, on) = (server(vec![address]), with_list(config(vec![address])));
    off.pod_came(POD.parse().unwrap(), &Uid::new("uid"), "default", Some(&LIST.map(str::to_owned)));
    let asked = ask("example.org.default.svc.cluster.local.", "A");
    // Switched off; asked for along another namespace's list; further along the own one.
    assert_eq!(told(&over_udp(&off, &asked).await), "Non-Existent Domain");
    for name in ["example.org.other.svc.cluster.local.", "example.org.svc.cluster.local."] {
        assert_eq!(told(&over_udp(&on, &ask(name, "A")).await), "Non-Existent Domain", "{name}");
    }
    // The node, and pods whose list is not known.
    on.pod_went(POD.parse().unwrap(), &Uid::new("uid"));
    assert_eq!(told(&over_udp(&on, &asked).await), "Non-Existent Domain");
    on.pod_came(POD.parse().unwrap(), &Uid::new("uid"), "default", None);
    assert_eq!(told(&over_tcp(&on, &asked).await), "Non-Existent Domain");
    assert_eq!(*names.lock().unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn without_other_name_servers_the_zone_answers_alone() {
    let server = with_list(config(Vec::new()));
    assert_eq!(
        told(&over_udp(&server, &ask("example.org.default.svc.cluster.local.", "A")).await),
        "Non-Existent Domain"
    );
    let inside = over_udp(&server, &ask("api.other.default.svc.cluster.local.", "A")).await;
    assert_eq!(told(&inside), "No Error api.other.svc.cluster.local. 10.96.0.90");
}
