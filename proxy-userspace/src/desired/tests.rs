use serde_json::json;

use super::*;

fn facts() -> NodeFacts {
    NodeFacts { node_name: "n1".into(), ..NodeFacts::default() }
}

fn service(spec: serde_json::Value) -> Service {
    serde_json::from_value(json!({"metadata": {"namespace": "default", "name": "web"}, "spec": spec})).unwrap()
}

/// How far a pod is.
#[derive(Clone, Copy)]
enum Phase {
    Ready,
    /// Terminating, and still answering.
    Leaving,
    /// Terminating, and answering no more.
    Silent,
}

/// Endpoints as (address, node, phase).
fn slice(endpoints: &[(&str, &str, Phase)]) -> EndpointSlice {
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|(ip, node, phase)| {
            let conditions = match phase {
                Phase::Ready => json!({"ready": true, "serving": true, "terminating": false}),
                Phase::Leaving => json!({"ready": false, "serving": true, "terminating": true}),
                Phase::Silent => json!({"ready": false, "serving": false, "terminating": true}),
            };
            json!({"addresses": [ip], "nodeName": node, "conditions": conditions})
        })
        .collect();
    serde_json::from_value(json!({
        "metadata": {"namespace": "default", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
    }))
    .unwrap()
}

fn node_port(extra: serde_json::Value) -> Service {
    let mut spec = json!({"type": "NodePort", "clusterIPs": ["10.96.1.1"],
        "ports": [{"name": "http", "protocol": "TCP", "port": 80, "nodePort": 30080}]});
    spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    service(spec)
}

fn targets(addresses: &[&str]) -> Vec<Target> {
    let mut targets: Vec<_> = addresses.iter().map(|ip| Target { ip: ip.parse().unwrap(), port: 8080 }).collect();
    targets.sort_unstable();
    targets
}

fn set_for<'a>(entries: &'a [Entry], addr: &str, port: u16, scope: Scope) -> &'a EndpointSet {
    let frontend = Frontend { addr: addr.parse().unwrap(), port, protocol: TCP, scope };
    &entries.iter().find(|entry| entry.frontends.contains(&frontend)).expect("a frontend").set
}

const TWO: &[(&str, &str, Phase)] = &[("10.244.0.1", "n1", Phase::Ready), ("10.244.1.1", "n2", Phase::Ready)];

#[test]
fn cluster_policy_shares_one_set() {
    let entries = desired_service(&node_port(json!({})), &[&slice(TWO)], &facts());
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].frontends.len(), 3);
    assert_eq!(entries[0].set.backends, targets(&["10.244.0.1", "10.244.1.1"]));
    assert_eq!(entries[0].set.flags, 0);
}

#[test]
fn external_local_narrows_only_the_outside_view() {
    let entries = desired_service(&node_port(json!({"externalTrafficPolicy": "Local"})), &[&slice(TWO)], &facts());
    let outside = set_for(&entries, "0.0.0.0", 30080, Scope::External);
    assert_eq!(outside.backends, targets(&["10.244.0.1"]));
    assert_eq!(outside.flags, Slot::KEEP_SOURCE | Slot::DROP_WHEN_EMPTY);
    assert_eq!(set_for(&entries, "0.0.0.0", 30080, Scope::Internal).backends.len(), 2);
    assert_eq!(set_for(&entries, "10.96.1.1", 80, Scope::Internal).backends.len(), 2);
}

#[test]
fn internal_local_governs_the_cluster_ip_only() {
    let entries = desired_service(&node_port(json!({"internalTrafficPolicy": "Local"})), &[&slice(TWO)], &facts());
    assert_eq!(set_for(&entries, "10.96.1.1", 80, Scope::Internal).backends, targets(&["10.244.0.1"]));
    assert_eq!(set_for(&entries, "0.0.0.0", 30080, Scope::Internal).backends.len(), 2);
}

#[test]
fn nobody_anywhere_is_a_refusal_not_a_drop() {
    let entries = desired_service(&node_port(json!({"externalTrafficPolicy": "Local"})), &[], &facts());
    let outside = set_for(&entries, "0.0.0.0", 30080, Scope::External);
    assert!(outside.backends.is_empty());
    assert_eq!(outside.flags & Slot::DROP_WHEN_EMPTY, 0);
}

#[test]
fn terminating_endpoints_serve_when_nobody_else_does() {
    let leaving = slice(&[("10.244.0.1", "n1", Phase::Leaving), ("10.244.0.2", "n1", Phase::Silent)]);
    let entries = desired_service(&node_port(json!({})), &[&leaving], &facts());
    assert_eq!(entries[0].set.backends, targets(&["10.244.0.1"]));
    let mixed = slice(&[("10.244.0.1", "n1", Phase::Leaving), ("10.244.0.3", "n1", Phase::Ready)]);
    let entries = desired_service(&node_port(json!({})), &[&mixed], &facts());
    assert_eq!(entries[0].set.backends, targets(&["10.244.0.3"]));
}

#[test]
fn affinity_takes_its_default_time() {
    let entries = desired_service(&node_port(json!({"sessionAffinity": "ClientIP"})), &[&slice(TWO)], &facts());
    assert_eq!((entries[0].set.flags, entries[0].set.affinity_seconds), (Slot::AFFINITY, 10_800));
    let config = json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}}});
    assert_eq!(desired_service(&node_port(config), &[], &facts())[0].set.affinity_seconds, 5);
}

#[test]
fn headless_external_name_and_foreign_proxies_have_no_entries() {
    for spec in [
        json!({"clusterIPs": ["None"], "ports": [{"port": 80}]}),
        json!({"type": "ExternalName", "externalName": "example.org", "ports": [{"port": 80}]}),
    ] {
        assert!(desired_service(&service(spec), &[], &facts()).is_empty());
    }
    let mut foreign = node_port(json!({}));
    foreign.metadata.labels.insert(PROXY_NAME_LABEL.into(), "other".into());
    let mut headless = node_port(json!({}));
    headless.metadata.labels.insert(HEADLESS_LABEL.into(), String::new());
    assert!(desired_service(&headless, &[&slice(TWO)], &facts()).is_empty());
    assert!(desired_service(&foreign, &[], &facts()).is_empty());
}

#[test]
fn ports_match_by_name_and_protocol() {
    let mut spec = node_port(json!({}));
    spec.spec.ports[0].name = "other".into();
    assert!(desired_service(&spec, &[&slice(TWO)], &facts())[0].set.backends.is_empty());
    let mut spec = node_port(json!({}));
    spec.spec.ports[0].protocol = "UDP".into();
    assert!(desired_service(&spec, &[&slice(TWO)], &facts())[0].set.backends.is_empty());
}

#[test]
fn a_local_server_wins_over_the_service_of_its_address() {
    let local = LocalServer { address: "10.96.0.10:53".parse().unwrap(), server: "10.0.0.1:5353".parse().unwrap() };
    let facts = NodeFacts { local_servers: vec![local], ..facts() };
    let dns = service(json!({"clusterIPs": ["10.96.0.10"], "ports": [{"name": "dns", "protocol": "UDP", "port": 53},
        {"name": "metrics", "protocol": "TCP", "port": 9153}]}));
    let contents = desired(&[dns], &[], &facts);
    assert_eq!(contents[LOCAL_SERVERS].len(), 2);
    assert_eq!(contents["default/web"].len(), 1);
    assert_eq!(contents["default/web"][0].port, 9153);
}

#[test]
fn load_balancer_and_external_addresses_use_the_service_port() {
    let mut balanced = node_port(json!({"type": "LoadBalancer", "externalIPs": ["203.0.113.9"]}));
    balanced.status = serde_json::from_value(json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}]}})).unwrap();
    let serving = NodeFacts { external_ips: ExternalIps::Served, ..facts() };
    let entries = desired_service(&balanced, &[&slice(TWO)], &serving);
    for address in ["203.0.113.9", "198.51.100.1"] {
        assert_eq!(set_for(&entries, address, 80, Scope::External).backends.len(), 2);
        assert_eq!(set_for(&entries, address, 80, Scope::Internal).backends.len(), 2);
    }
    let entries = desired_service(&balanced, &[&slice(TWO)], &facts());
    let captured = |entry: &Entry| entry.frontends.iter().any(|to| to.addr == Ipv4Addr::new(203, 0, 113, 9));
    assert!(!entries.iter().any(captured), "nobody takes an address that is not theirs, unless the cluster lets them");
}

#[test]
fn each_family_of_a_service_has_endpoints_of_its_own() {
    let spec = json!({"type": "NodePort", "clusterIPs": ["fd00:96::1", "10.96.1.1"], "externalIPs": ["0.0.0.0"],
        "ports": [{"name": "http", "protocol": "TCP", "port": 80, "nodePort": 30080}]});
    let mut six = slice(&[("fd00:244::5", "n1", Phase::Ready)]);
    six.address_type = "IPv6".into();
    // A slice that does not hold what it says adds nothing.
    let mut wrong = slice(&[("10.244.0.9", "n1", Phase::Ready)]);
    wrong.address_type = "IPv6".into();
    let serving = NodeFacts { external_ips: ExternalIps::Served, ..facts() };
    let entries = desired_service(&service(spec), &[&slice(TWO), &six, &wrong], &serving);
    for (addr, port, expected) in [
        ("10.96.1.1", 80, targets(&["10.244.0.1", "10.244.1.1"])),
        ("fd00:96::1", 80, targets(&["fd00:244::5"])),
        ("0.0.0.0", 30080, targets(&["10.244.0.1", "10.244.1.1"])),
        ("::", 30080, targets(&["fd00:244::5"])),
    ] {
        assert_eq!(set_for(&entries, addr, port, Scope::Internal).backends, expected, "{addr}");
    }
    // "Every address" is no external address: its port 80 would be the node's own.
    assert!(!entries.iter().any(|entry| entry.frontends.iter().any(|to| to.addr.is_unspecified() && to.port == 80)));
}

fn balanced(extra: serde_json::Value) -> Service {
    let mut service = node_port(extra);
    service.spec.type_ = "LoadBalancer".into();
    let ingress = json!([{"ip": "192.0.2.7"}, {"ip": "192.0.2.8", "ipMode": "Proxy"}, {"ip": "2001:db8::7"}]);
    service.status.load_balancer.ingress = serde_json::from_value(ingress).unwrap();
    service
}

#[test]
fn a_balancer_that_is_a_proxy_has_its_address_for_itself() {
    let entries = desired_service(&balanced(json!({})), &[&slice(TWO)], &facts());
    let addresses: Vec<_> = entries.iter().flat_map(|entry| &entry.frontends).map(|frontend| frontend.addr).collect();
    let has = |ip: &str| addresses.contains(&ip.parse().unwrap());
    assert!(has("192.0.2.7") && !has("192.0.2.8") && !has("2001:db8::7"));
    assert_eq!((entries.len(), addresses.len()), (1, 5));
}

#[test]
fn source_ranges_are_for_balancers_addresses_alone() {
    let ranges = json!(["10.1.2.3/8 ", "2001:db8::/32", "10.0.0.0/8", "nonsense"]);
    for (policy, backends, flags) in [
        ("Cluster", &["10.244.0.1", "10.244.1.1"][..], 0),
        ("Local", &["10.244.0.1"][..], Slot::KEEP_SOURCE | Slot::DROP_WHEN_EMPTY),
    ] {
        let spec =
            json!({"loadBalancerSourceRanges": ranges, "externalTrafficPolicy": policy, "externalIPs": ["192.0.2.7"]});
        let serving = NodeFacts { external_ips: ExternalIps::Served, ..facts() };
        let entries = desired_service(&balanced(spec), &[&slice(TWO)], &serving);
        let only = vec![range("10.0.0.0".parse().unwrap(), 8).unwrap()];
        let inside = set_for(&entries, "192.0.2.7", 80, Scope::Internal);
        assert_eq!((inside.flags, &inside.ranges), (Slot::SOURCE_RANGES, &only));
        let outside = set_for(&entries, "192.0.2.7", 80, Scope::External);
        assert_eq!((outside.flags, &outside.ranges), (flags | Slot::SOURCE_RANGES, &only));
        assert_eq!(outside.backends, targets(backends));
        for (addr, port, scope) in [
            ("10.96.1.1", 80, Scope::Internal),
            ("0.0.0.0", 30080, Scope::External),
            ("0.0.0.0", 30080, Scope::Internal),
        ] {
            let set = set_for(&entries, addr, port, scope);
            assert!(set.ranges.is_empty() && set.flags & Slot::SOURCE_RANGES == 0, "{addr}");
        }
        let led = entries.iter().flat_map(|entry| &entry.frontends).filter(|frontend| frontend.addr == only_address());
        assert_eq!(led.count(), 2, "an external address that is the balancer's too is for the same clients");
    }
}

fn only_address() -> IpAddr {
    "192.0.2.7".parse().unwrap()
}

#[test]
fn ranges_end_where_their_length_says() {
    let net = |text: &str| parse_range(text).map(|range| (range.network().to_string(), range.prefix()));
    for (text, expected) in [
        ("10.9.8.7/24", Some(("10.9.8.0", 24))),
        ("10.9.8.7/0", Some(("0.0.0.0", 0))),
        ("10.9.8.7/32", Some(("10.9.8.7", 32))),
        ("2001:db8:1::1/33", Some(("2001:db8::", 33))),
        ("::1/0", Some(("::", 0))),
        ("10.9.8.7/33", None),
        ("::1/129", None),
        ("10.9.8.7", None),
    ] {
        assert_eq!(net(text), expected.map(|(net, length)| (net.to_owned(), length)), "{text}");
    }
}

/// Endpoints as (address, node, zones it is meant for, nodes it is meant for).
fn hinted(endpoints: &[(&str, &str, &[&str], &[&str])]) -> EndpointSlice {
    let plain: Vec<_> = endpoints.iter().map(|(ip, node, ..)| (*ip, *node, Phase::Ready)).collect();
    let mut slice = slice(&plain);
    for (endpoint, (_, _, zones, nodes)) in slice.endpoints.iter_mut().zip(endpoints) {
        let names = |names: &[&str]| names.iter().map(|name| api::view::Hint { name: (*name).into() }).collect();
        (endpoint.hints.for_zones, endpoint.hints.for_nodes) = (names(zones), names(nodes));
    }
    slice
}

#[test]
fn endpoints_meant_for_here_come_first_where_every_one_says_for_whom_it_is() {
    let (a, b, c) = ("10.244.0.1", "10.244.1.1", "10.244.2.1");
    type Case<'a> = (&'a [(&'a str, &'a str, &'a [&'a str], &'a [&'a str])], &'a [&'a str]);
    let cases: &[Case<'_>] = &[
        // Its zone.
        (&[(a, "n1", &["z1"], &[]), (b, "n2", &["z2"], &[]), (c, "n3", &["z1", "z2"], &[])], &[a, c]),
        // One does not say.
        (&[(a, "n1", &["z1"], &[]), (b, "n2", &[], &[])], &[a, b]),
        // None is for here.
        (&[(a, "n1", &["z2"], &[]), (b, "n2", &["z3"], &[])], &[a, b]),
        // Its node, before its zone.
        (&[(a, "n1", &["z1"], &["n1"]), (b, "n2", &["z1"], &["n2"])], &[a]),
        // Its zone, when there is none for its node.
        (&[(b, "n2", &["z1"], &["n2"]), (c, "n3", &["z2"], &["n3"])], &[b]),
    ];
    let here = NodeFacts { zone: "z1".into(), ..facts() };
    for (endpoints, expected) in cases {
        let entries = desired_service(&node_port(json!({})), &[&hinted(endpoints)], &here);
        assert_eq!(entries[0].set.backends, targets(expected), "{endpoints:?}");
    }
    // A node without a zone is in none, and what is meant for others serves all the same when nobody else is ready.
    let nowhere = desired_service(&node_port(json!({})), &[&hinted(cases[0].0)], &facts());
    assert_eq!(nowhere[0].set.backends.len(), 3);
    let local = json!({"externalTrafficPolicy": "Local"});
    let elsewhere = hinted(&[(a, "n1", &["z2"], &[]), (b, "n2", &["z1"], &[])]);
    let entries = desired_service(&node_port(local), &[&elsewhere], &here);
    assert_eq!(set_for(&entries, "0.0.0.0", 30080, Scope::External).backends, targets(&[a]));
    assert_eq!(set_for(&entries, "10.96.1.1", 80, Scope::Internal).backends, targets(&[b]));
}

#[test]
fn balancers_ask_for_what_is_ready_here() {
    let asked = |kind: &str, policy: &str| {
        let mut service = balanced(json!({"externalTrafficPolicy": policy, "healthCheckNodePort": 31000}));
        service.spec.type_ = kind.into();
        health_check_port(&service)
    };
    assert_eq!(asked("LoadBalancer", "Local"), Some(31_000));
    assert_eq!((asked("LoadBalancer", "Cluster"), asked("NodePort", "Local")), (None, None));
    let slices = [
        slice(&[
            ("10.244.0.1", "n1", Phase::Ready),
            ("10.244.0.2", "n1", Phase::Leaving),
            ("10.244.1.1", "n2", Phase::Ready),
        ]),
        slice(&[("10.244.0.1", "n1", Phase::Ready)]),
    ];
    assert_eq!(ready_here(&slices.iter().collect::<Vec<_>>(), &facts()), 1);
}
