use std::str::FromStr;

use api::view::{EndpointSlice, Service};
use serde_json::json;

use super::*;

fn snapshot() -> Snapshot {
    let services = json!([
        {"metadata": {"namespace": "default", "name": "web"}, "spec": {"clusterIPs": ["10.96.0.80", "fd00::80"],
            "ports": [{"name": "http", "protocol": "TCP", "port": 80}, {"name": "dns", "protocol": "UDP", "port": 53}]}},
        {"metadata": {"namespace": "default", "name": "db"}, "spec": {"clusterIPs": ["None"],
            "ports": [{"name": "sql", "port": 5432}]}},
        {"metadata": {"namespace": "default", "name": "empty"}, "spec": {"clusterIPs": ["None"], "ports": []}},
        {"metadata": {"namespace": "default", "name": "ext"}, "spec": {"type": "ExternalName", "externalName": "example.org"}},
        {"metadata": {"namespace": "kube", "name": "api"}, "spec": {"clusterIPs": ["10.96.0.1"], "ports": [{"port": 443}]}},
    ]);
    let slices = json!([{"metadata": {"namespace": "default", "labels": {"kubernetes.io/service-name": "db"}},
        "addressType": "IPv4", "ports": [{"name": "sql", "protocol": "TCP", "port": 5432}],
        "endpoints": [{"addresses": ["10.244.0.7"], "hostname": "db-0", "conditions": {"ready": true}},
            {"addresses": ["10.244.0.8"], "conditions": {"ready": true}},
            {"addresses": ["10.244.0.9"], "conditions": {"ready": false}}]}]);
    let services: Vec<Service> = serde_json::from_value(services).unwrap();
    let slices: Vec<EndpointSlice> = serde_json::from_value(slices).unwrap();
    Snapshot::compute(&services, &slices)
}

fn pods() -> Vec<IpNetwork> {
    ["10.244.0.0/16", "fd00:10:244::/48"].map(|range| range.parse().unwrap()).into()
}

/// A lookup told in one line: the records' data, or what is said instead.
fn ask(name: &str, kind: &str) -> String {
    let zone = Zone::new(Name::from_ascii("cluster.local.").unwrap(), pods());
    let kind = RecordType::from_str(kind).unwrap();
    let data = |records: &[Record]| records.iter().map(|record| record.data.to_string()).collect::<Vec<_>>().join(", ");
    match zone.lookup(&snapshot(), &Name::from_ascii(name).unwrap(), kind) {
        Outcome::Found(found) if found.additionals.is_empty() => data(&found.answers),
        Outcome::Found(found) => format!("{} + {}", data(&found.answers), data(&found.additionals)),
        Outcome::Alias(_, target) => format!("alias {target}"),
        Outcome::NoData(soa) => {
            assert_eq!((soa.name.to_string().as_str(), soa.ttl), ("cluster.local.", 5));
            "no data".into()
        }
        Outcome::NoName(_) => "no name".into(),
        Outcome::Elsewhere => "elsewhere".into(),
    }
}

#[test]
fn the_specification_by_example() {
    let cases = [
        ("web.default.svc.cluster.local.", "A", "10.96.0.80"),
        ("WEB.Default.svc.Cluster.Local.", "A", "10.96.0.80"),
        ("web.default.svc.cluster.local.", "AAAA", "fd00::80"),
        ("web.default.svc.cluster.local.", "MX", "no data"),
        ("api.kube.svc.cluster.local.", "AAAA", "no data"),
        ("api.kube.svc.cluster.local.", "A", "10.96.0.1"),
        ("none.default.svc.cluster.local.", "A", "no name"),
        ("web.none.svc.cluster.local.", "A", "no name"),
        ("x.web.default.svc.cluster.local.", "A", "no name"),
        (
            "_http._tcp.web.default.svc.cluster.local.",
            "SRV",
            "0 100 80 web.default.svc.cluster.local. + 10.96.0.80, fd00::80",
        ),
        (
            "_dns._udp.web.default.svc.cluster.local.",
            "SRV",
            "0 100 53 web.default.svc.cluster.local. + 10.96.0.80, fd00::80",
        ),
        ("_http._udp.web.default.svc.cluster.local.", "SRV", "no name"),
        ("_http._tcp.web.default.svc.cluster.local.", "A", "no data"),
        ("_tcp.web.default.svc.cluster.local.", "SRV", "no data"),
        ("db.default.svc.cluster.local.", "A", "10.244.0.7, 10.244.0.8"),
        ("db-0.db.default.svc.cluster.local.", "A", "10.244.0.7"),
        ("10-244-0-8.db.default.svc.cluster.local.", "A", "10.244.0.8"),
        ("10-244-0-9.db.default.svc.cluster.local.", "A", "no name"),
        (
            "_sql._tcp.db.default.svc.cluster.local.",
            "SRV",
            "0 50 5432 db-0.db.default.svc.cluster.local., 0 50 5432 10-244-0-8.db.default.svc.cluster.local. + 10.244.0.7, 10.244.0.8",
        ),
        ("empty.default.svc.cluster.local.", "A", "no data"),
        ("ext.default.svc.cluster.local.", "A", "alias example.org."),
        ("ext.default.svc.cluster.local.", "CNAME", "alias example.org."),
        ("10-244-0-5.default.pod.cluster.local.", "A", "10.244.0.5"),
        ("10-244-0-5.other.pod.cluster.local.", "A", "10.244.0.5"),
        ("10-244-0-5.default.pod.cluster.local.", "AAAA", "no data"),
        ("fd00-10-244--5.default.pod.cluster.local.", "AAAA", "fd00:10:244::5"),
        ("10-245-0-5.default.pod.cluster.local.", "A", "no name"),
        ("10-96-0-80.default.pod.cluster.local.", "A", "no name"),
        ("192-0-2-1.default.pod.cluster.local.", "A", "no name"),
        ("fd00--80.default.pod.cluster.local.", "AAAA", "no name"),
        ("x.10-244-0-5.default.pod.cluster.local.", "A", "no name"),
        ("10-244-5.default.pod.cluster.local.", "A", "no name"),
        ("host.default.pod.cluster.local.", "A", "no name"),
        ("dns-version.cluster.local.", "TXT", "1.1.0"),
        ("cluster.local.", "NS", "ns.dns.cluster.local."),
        ("cluster.local.", "A", "no data"),
        ("svc.cluster.local.", "A", "no data"),
        ("default.svc.cluster.local.", "A", "no data"),
        ("other.svc.cluster.local.", "A", "no name"),
        ("other.cluster.local.", "A", "no name"),
        ("80.0.96.10.in-addr.arpa.", "PTR", "web.default.svc.cluster.local."),
        ("7.0.244.10.in-addr.arpa.", "PTR", "db-0.db.default.svc.cluster.local."),
        ("80.0.96.10.in-addr.arpa.", "A", "no data"),
        ("1.2.3.4.in-addr.arpa.", "PTR", "elsewhere"),
        ("example.org.", "A", "elsewhere"),
        ("notcluster.local.", "A", "elsewhere"),
    ];
    for (name, kind, expected) in cases {
        assert_eq!(ask(name, kind), expected, "{name} {kind}");
    }
}
