use api::view::Service;
use serde_json::{from_value, json};

use super::*;

fn searches(domains: &[&str]) -> Vec<String> {
    domains.iter().map(|domain| (*domain).to_owned()).collect()
}

fn usual() -> Vec<String> {
    searches(&["shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example."])
}

fn question(name: &str, kind: RecordType) -> Query {
    Query::query(Name::from_ascii(name).unwrap(), kind)
}

fn places(name: &str, kind: RecordType) -> Option<Vec<String>> {
    let service = |name: &str, ip: &str| {
        from_value::<Service>(json!({"metadata": {"namespace": "shop", "name": name}, "spec": {"clusterIPs": [ip]}}))
    };
    let services = [service("web", "10.96.0.1").unwrap(), service("peers", "None").unwrap()];
    let snapshot = Snapshot::compute(["shop".to_owned()], &services, &[]);
    let path = SearchPath::of("shop", &usual()).unwrap();
    let places = path.places(&snapshot, &question(name, kind));
    places.map(|places| places.iter().map(Name::to_string).collect())
}

#[test]
fn the_rest_of_the_list_and_the_name_itself_are_left() {
    let expected = ["Ex.ORG.svc.cluster.local.", "Ex.ORG.cluster.local.", "Ex.ORG.corp.example.", "Ex.ORG."];
    for kind in [RecordType::A, RecordType::AAAA] {
        assert_eq!(places("Ex.ORG.Shop.svc.cluster.LOCAL.", kind).unwrap(), expected);
    }
}

#[test]
fn other_questions_are_left_alone() {
    for name in [
        // Of the list, but not its first.
        "ex.org.svc.cluster.local.",
        "ex.org.",
        // Another namespace's.
        "ex.org.other.svc.cluster.local.",
        "ex.org.xshop.svc.cluster.local.",
        // The list's own, and a service that may be there or not.
        "shop.svc.cluster.local.",
        "ex.shop.svc.cluster.local.",
        // Below services that are there, with endpoints or without.
        "x.web.shop.svc.cluster.local.",
        "peers-0.PEERS.shop.svc.cluster.local.",
    ] {
        assert_eq!(places(name, RecordType::A), None, "{name}");
    }
    for kind in [RecordType::TXT, RecordType::SRV, RecordType::CNAME, RecordType::ANY, RecordType::HTTPS] {
        assert_eq!(places("ex.org.shop.svc.cluster.local.", kind), None, "{kind}");
    }
    // A name that is too long at one place: resolvers make of it what they will.
    let long = ["x".repeat(60), "y".repeat(60), "z".repeat(60), "w".repeat(44)].join(".");
    assert!(places(&format!("{long}.shop.svc.cluster.local."), RecordType::A).is_some());
    let path = SearchPath::of("shop", &searches(&["shop.svc.x", "a-domain-that-is-longer-than-the-first.example"]));
    let asked = question(&format!("{long}.shop.svc.x."), RecordType::A);
    assert_eq!(path.unwrap().places(&Snapshot::default(), &asked), None);
}

#[test]
fn a_list_of_doubtful_meaning_is_none() {
    assert!(SearchPath::of("shop", &usual()).is_some());
    let (many, long) = (vec!["x.example"; 6], "x".repeat(60) + ".example");
    for list in [
        &[][..],
        &["svc.cluster.local"],
        &["other.svc.cluster.local", "svc.cluster.local"],
        &["shop.pod.cluster.local"],
        &["shop.svc.cluster.local", "a..b"],
        &[&["shop.svc.cluster.local"], &many[..]].concat(),
        &[&["shop.svc.cluster.local"], &[long.as_str(); 4][..]].concat(),
    ] {
        assert_eq!(SearchPath::of("shop", &searches(list)), None, "{list:?}");
    }
}

#[test]
fn an_address_is_the_last_pods_that_came_to_it() {
    let client: IpAddr = "10.244.0.5".parse().unwrap();
    let path = || SearchPath::of("shop", &usual());
    let all = Searches::new(Autopath::On);
    assert!(all.of(client).is_none());
    all.set(client, &Uid::new("first"), path());
    assert!(all.of(client).is_some() && all.of("::ffff:10.244.0.5".parse().unwrap()).is_some());
    all.set(client, &Uid::new("second"), path());
    all.forget(client, &Uid::new("first"));
    assert!(all.of(client).is_some(), "the second pod's");
    all.forget(client, &Uid::new("second"));
    assert!(all.of(client).is_none());
    all.set(client, &Uid::new("third"), path());
    all.set(client, &Uid::new("fourth"), None);
    assert!(all.of(client).is_none(), "of the fourth nothing is known");
    let off = Searches::new(Autopath::Off);
    off.set(client, &Uid::new("first"), path());
    assert!(off.of(client).is_none());
}
