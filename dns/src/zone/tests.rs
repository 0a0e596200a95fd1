use std::str::FromStr;

use api::view::{EndpointSlice, Service};
use serde_json::json;

use super::*;

fn snapshot() -> Snapshot {
    let external = |name: &str, target: &str| json!({"metadata": {"namespace": "default", "name": name}, "spec": {"type": "ExternalName", "externalName": target}});
    let mut services = json!([
        {"metadata": {"namespace": "default", "name": "web"}, "spec": {"clusterIPs": ["10.96.0.80", "fd00::80"],
            "ports": [{"name": "http", "protocol": "TCP", "port": 80}, {"name": "dns", "protocol": "UDP", "port": 53}]}},
        {"metadata": {"namespace": "default", "name": "six"}, "spec": {"clusterIPs": ["fd00::6"], "ports": [{"port": 80}]}},
        {"metadata": {"namespace": "default", "name": "db"}, "spec": {"clusterIPs": ["None"],
            "ports": [{"name": "sql", "port": 5432}]}},
        {"metadata": {"namespace": "default", "name": "all"}, "spec": {"clusterIPs": ["None"], "publishNotReadyAddresses": true}},
        {"metadata": {"namespace": "default", "name": "empty"}, "spec": {"clusterIPs": ["None"], "ports": []}},
        {"metadata": {"namespace": "default", "name": "marked", "labels": {"service.kubernetes.io/headless": ""}},
            "spec": {"clusterIPs": ["10.96.0.99"]}},
        {"metadata": {"namespace": "kube", "name": "api"}, "spec": {"clusterIPs": ["10.96.0.1"], "ports": [{"port": 443}]}},
    ]);
    services.as_array_mut().unwrap().extend([
        external("ext", "example.org"),
        external("inner", "web.default.svc.cluster.local"),
        external("outer", "ext.default.svc.cluster.local."),
        external("dangling", "none.default.svc.cluster.local"),
        external("circle", "back.default.svc.cluster.local"),
        external("back", "Circle.default.svc.cluster.local"),
        external("itself", "itself.default.svc.cluster.local"),
        external("number", "192.0.2.1"),
    ]);
    let slice = |service: &str, family: &str, endpoints: serde_json::Value| {
        json!({"metadata": {"namespace": "default", "labels": {"kubernetes.io/service-name": service}},
        "addressType": family, "ports": [{"name": "sql", "protocol": "TCP", "port": 5432}], "endpoints": endpoints})
    };
    let ready = |address: &str, hostname: &str| json!({"addresses": [address], "hostname": hostname, "conditions": {"ready": true}});
    let late = json!({"addresses": ["10.244.0.9"], "conditions": {"ready": false}});
    let slices = json!([
        slice("db", "IPv4", json!([ready("10.244.0.7", "db-0"), ready("10.244.0.8", ""), late.clone()])),
        slice("db", "IPv6", json!([ready("fd00:10:244::7", "db-0"), ready("fd00:10:244::8", "")])),
        slice("db", "FQDN", json!([ready("db.example.org", "db-0")])),
        slice("all", "IPv4", json!([late.clone()])),
        slice("empty", "IPv4", json!([late])),
        slice("marked", "IPv4", json!([ready("10.244.0.7", "")])),
    ]);
    let services: Vec<Service> = serde_json::from_value(services).unwrap();
    let slices: Vec<EndpointSlice> = serde_json::from_value(slices).unwrap();
    Snapshot::compute(["default", "kube", "bare"].map(str::to_owned), &services, &slices)
}

fn zone() -> Zone {
    let pods = ["10.244.0.0/16", "fd00:10:244::/48"].map(|range| range.parse().unwrap());
    let servers = ["10.96.0.10", "fd00::10"].map(|address| address.parse().unwrap());
    Zone::new(Name::from_ascii("cluster.local.").unwrap(), pods.into(), servers.into())
}

/// A question's answer in one line: the aliases, then the records' data and those beside them, or what is said instead.
fn ask(zone: &Zone, snapshot: &Snapshot, name: &str, kind: &str) -> String {
    let kind = RecordType::from_str(kind).unwrap();
    let asked = Name::from_ascii(name).unwrap();
    let Resolved { aliases, end } = zone.resolve(snapshot, &asked, kind);
    let data = |records: &[Record]| records.iter().map(|record| record.data.to_string()).collect::<Vec<_>>().join(", ");
    let end = match end {
        Outcome::Found(found) => {
            assert!(found.answers.iter().all(|record| record.ttl == if kind == RecordType::TXT { 28_800 } else { 5 }));
            if aliases.is_empty() {
                assert!(
                    found.answers.iter().all(|record| record.name.to_string() == name),
                    "the case that was asked for"
                );
            }
            match found.additionals.as_slice() {
                [] => data(&found.answers),
                beside => format!("{} + {}", data(&found.answers), data(beside)),
            }
        }
        Outcome::Circle => "circle".into(),
        Outcome::Elsewhere(name) => format!("elsewhere {name}"),
        Outcome::NoData(soa) | Outcome::NoName(soa) if soa.name.to_string() != "cluster.local." || soa.ttl != 5 => {
            panic!("{soa}")
        }
        Outcome::NoData(_) => "NOERROR".into(),
        Outcome::NoName(_) => "NXDOMAIN".into(),
    };
    match aliases.as_slice() {
        [] => end,
        aliases => [data(aliases), end].join(" > "),
    }
}

const CASES: &[(&str, &str, &str)] = &[
    // Services with addresses.
    ("web.default.svc.cluster.local.", "A", "10.96.0.80"),
    ("WEB.Default.svc.Cluster.Local.", "A", "10.96.0.80"),
    ("web.default.svc.cluster.local.", "AAAA", "fd00::80"),
    ("web.default.svc.cluster.local.", "MX", "NOERROR"),
    ("web.default.svc.cluster.local.", "ANY", "NOERROR"),
    ("web.default.svc.cluster.local.", "TXT", "NOERROR"),
    ("six.default.svc.cluster.local.", "A", "NOERROR"),
    ("six.default.svc.cluster.local.", "AAAA", "fd00::6"),
    ("api.kube.svc.cluster.local.", "AAAA", "NOERROR"),
    ("api.kube.svc.cluster.local.", "A", "10.96.0.1"),
    ("none.default.svc.cluster.local.", "A", "NXDOMAIN"),
    ("none.default.svc.cluster.local.", "ANY", "NXDOMAIN"),
    ("web.none.svc.cluster.local.", "A", "NXDOMAIN"),
    ("web.bare.svc.cluster.local.", "A", "NXDOMAIN"),
    ("x.web.default.svc.cluster.local.", "A", "NXDOMAIN"),
    // Their ports.
    (
        "_http._tcp.web.default.svc.cluster.local.",
        "SRV",
        "0 100 80 web.default.svc.cluster.local. + 10.96.0.80, fd00::80",
    ),
    (
        "_DNS._UDP.web.default.svc.cluster.local.",
        "SRV",
        "0 100 53 web.default.svc.cluster.local. + 10.96.0.80, fd00::80",
    ),
    (
        "web.default.svc.cluster.local.",
        "SRV",
        "0 50 53 web.default.svc.cluster.local., 0 50 80 web.default.svc.cluster.local. + 10.96.0.80, fd00::80",
    ),
    ("_http._udp.web.default.svc.cluster.local.", "SRV", "NXDOMAIN"),
    ("_http._tcp.web.default.svc.cluster.local.", "A", "NOERROR"),
    ("_tcp.web.default.svc.cluster.local.", "SRV", "NOERROR"),
    ("_udp.web.default.svc.cluster.local.", "A", "NOERROR"),
    ("_sctp.web.default.svc.cluster.local.", "A", "NXDOMAIN"),
    ("x._http._tcp.web.default.svc.cluster.local.", "SRV", "NXDOMAIN"),
    // Headless services.
    ("db.default.svc.cluster.local.", "A", "10.244.0.7, 10.244.0.8"),
    ("db.default.svc.cluster.local.", "AAAA", "fd00:10:244::7, fd00:10:244::8"),
    ("db.default.svc.cluster.local.", "TXT", "NOERROR"),
    ("db-0.db.default.svc.cluster.local.", "A", "10.244.0.7"),
    ("DB-0.db.default.svc.cluster.local.", "AAAA", "fd00:10:244::7"),
    ("10-244-0-8.db.default.svc.cluster.local.", "A", "10.244.0.8"),
    ("10-244-0-8.db.default.svc.cluster.local.", "AAAA", "NOERROR"),
    ("fd00-10-244--8.db.default.svc.cluster.local.", "AAAA", "fd00:10:244::8"),
    ("10-244-0-9.db.default.svc.cluster.local.", "A", "NXDOMAIN"),
    ("all.default.svc.cluster.local.", "A", "10.244.0.9"),
    (
        "_sql._tcp.db.default.svc.cluster.local.",
        "SRV",
        "0 33 5432 10-244-0-8.db.default.svc.cluster.local., 0 33 5432 db-0.db.default.svc.cluster.local., \
         0 33 5432 fd00-10-244--8.db.default.svc.cluster.local. + 10.244.0.7, 10.244.0.8, fd00:10:244::7, fd00:10:244::8",
    ),
    (
        "db-0.db.default.svc.cluster.local.",
        "SRV",
        "0 100 5432 db-0.db.default.svc.cluster.local. + 10.244.0.7, fd00:10:244::7",
    ),
    ("_sql._tcp.db.default.svc.cluster.local.", "A", "NOERROR"),
    ("_tcp.db.default.svc.cluster.local.", "A", "NOERROR"),
    ("_sql._udp.db.default.svc.cluster.local.", "SRV", "NXDOMAIN"),
    ("marked.default.svc.cluster.local.", "A", "10.244.0.7"),
    // Without ready endpoints there is no name.
    ("empty.default.svc.cluster.local.", "A", "NXDOMAIN"),
    ("empty.default.svc.cluster.local.", "SRV", "NXDOMAIN"),
    ("_sql._tcp.empty.default.svc.cluster.local.", "SRV", "NXDOMAIN"),
    // Aliases.
    ("ext.default.svc.cluster.local.", "A", "example.org. > elsewhere example.org."),
    ("ext.default.svc.cluster.local.", "CNAME", "example.org. > "),
    ("ext.default.svc.cluster.local.", "SRV", "NOERROR"),
    ("ext.default.svc.cluster.local.", "ANY", "NOERROR"),
    ("x.ext.default.svc.cluster.local.", "A", "NXDOMAIN"),
    ("_http._tcp.ext.default.svc.cluster.local.", "SRV", "NXDOMAIN"),
    ("inner.default.svc.cluster.local.", "A", "web.default.svc.cluster.local. > 10.96.0.80"),
    ("inner.default.svc.cluster.local.", "MX", "web.default.svc.cluster.local. > NOERROR"),
    (
        "outer.default.svc.cluster.local.",
        "AAAA",
        "ext.default.svc.cluster.local., example.org. > elsewhere example.org.",
    ),
    ("dangling.default.svc.cluster.local.", "A", "none.default.svc.cluster.local. > NXDOMAIN"),
    ("itself.default.svc.cluster.local.", "A", "itself.default.svc.cluster.local. > circle"),
    (
        "circle.default.svc.cluster.local.",
        "A",
        "back.default.svc.cluster.local., circle.default.svc.cluster.local. > circle",
    ),
    ("number.default.svc.cluster.local.", "A", "NXDOMAIN"),
    // Pods.
    ("10-244-0-5.default.pod.cluster.local.", "A", "10.244.0.5"),
    ("10-244-0-5.bare.pod.cluster.local.", "A", "10.244.0.5"),
    ("10-244-0-5.none.pod.cluster.local.", "A", "NXDOMAIN"),
    ("10-244-0-5.default.pod.cluster.local.", "AAAA", "NOERROR"),
    ("fd00-10-244--5.default.pod.cluster.local.", "AAAA", "fd00:10:244::5"),
    ("fd00-10-244-0-0-0-0-5.default.pod.cluster.local.", "AAAA", "fd00:10:244::5"),
    ("fd00-10-244--5.default.pod.cluster.local.", "A", "NOERROR"),
    ("10-245-0-5.default.pod.cluster.local.", "A", "NXDOMAIN"),
    ("10-96-0-80.default.pod.cluster.local.", "A", "NXDOMAIN"),
    ("192-0-2-1.default.pod.cluster.local.", "A", "NXDOMAIN"),
    ("fd00--80.default.pod.cluster.local.", "AAAA", "NXDOMAIN"),
    ("x.10-244-0-5.default.pod.cluster.local.", "A", "NXDOMAIN"),
    ("10-244-5.default.pod.cluster.local.", "A", "NXDOMAIN"),
    ("host.default.pod.cluster.local.", "A", "NXDOMAIN"),
    // The zone itself, and names that are only above others.
    ("dns-version.cluster.local.", "TXT", "1.1.0"),
    ("dns-version.cluster.local.", "A", "NOERROR"),
    ("cluster.local.", "SOA", "ns.dns.cluster.local. hostmaster.cluster.local. 14 7200 1800 86400 5"),
    ("cluster.local.", "NS", "ns.dns.cluster.local. + 10.96.0.10, fd00::10"),
    ("cluster.local.", "A", "NOERROR"),
    ("cluster.local.", "ANY", "NOERROR"),
    ("ns.dns.cluster.local.", "A", "10.96.0.10"),
    ("ns.dns.cluster.local.", "AAAA", "fd00::10"),
    ("ns.dns.cluster.local.", "NS", "NOERROR"),
    ("dns.cluster.local.", "A", "NOERROR"),
    ("svc.cluster.local.", "A", "NOERROR"),
    ("pod.cluster.local.", "SOA", "NOERROR"),
    ("default.svc.cluster.local.", "A", "NOERROR"),
    ("default.pod.cluster.local.", "A", "NOERROR"),
    ("bare.svc.cluster.local.", "A", "NOERROR"),
    ("none.svc.cluster.local.", "A", "NXDOMAIN"),
    ("none.svc.cluster.local.", "SOA", "NXDOMAIN"),
    ("none.pod.cluster.local.", "A", "NXDOMAIN"),
    ("other.cluster.local.", "A", "NXDOMAIN"),
    // From addresses to names.
    ("80.0.96.10.in-addr.arpa.", "PTR", "web.default.svc.cluster.local."),
    (
        "7.0.244.10.in-addr.arpa.",
        "PTR",
        "db-0.db.default.svc.cluster.local., 10-244-0-7.marked.default.svc.cluster.local.",
    ),
    ("80.0.96.10.in-addr.arpa.", "A", "NOERROR"),
    ("1.2.3.4.in-addr.arpa.", "PTR", "elsewhere 1.2.3.4.in-addr.arpa."),
    ("96.10.in-addr.arpa.", "PTR", "elsewhere 96.10.in-addr.arpa."),
    (
        "0.8.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.",
        "PTR",
        "web.default.svc.cluster.local.",
    ),
    (
        "8.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.4.4.2.0.0.1.0.0.0.0.d.f.ip6.arpa.",
        "PTR",
        "fd00-10-244--8.db.default.svc.cluster.local.",
    ),
    ("example.org.", "A", "elsewhere example.org."),
    ("notcluster.local.", "A", "elsewhere notcluster.local."),
];

#[test]
fn the_specification_by_example() {
    let (zone, snapshot) = (zone(), snapshot());
    let wrong: Vec<String> = CASES
        .iter()
        .filter_map(|(name, kind, expected)| {
            let said = ask(&zone, &snapshot, name, kind);
            (said != *expected).then(|| format!("{name} {kind}: {said}, not {expected}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
