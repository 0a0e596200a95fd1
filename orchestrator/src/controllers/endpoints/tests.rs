//! What a Service's endpoints are, and how slices and Endpoints come to show them.

use api::view::EndpointSlice;

use super::super::runtime::Action;
use super::super::views::Endpoints;
use super::mirroring::{SKIP_MIRROR, mirror, mirrored};
use super::objects::{OVER_CAPACITY, Subsets, subsets, write_endpoints};
use super::slices::{CONTROLLER, endpoint, groups, placed, plan_slices};
use super::*;

fn service(target: Value) -> Service {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "ns", "uid": "s"},
        "spec": {"clusterIPs": ["10.96.0.9"], "selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": target, "protocol": "TCP"}]},
    }))
    .unwrap()
}

#[derive(PartialEq)]
enum Life {
    Ready,
    Unready,
    /// It is being deleted, and still ready.
    Leaving,
}

fn pod(name: &str, life: Life) -> Arc<Pod> {
    let mut value = json!({
        "metadata": {"name": name, "namespace": "ns", "uid": name, "labels": {"app": "web"}},
        "spec": {"nodeName": "n", "containers": [{"ports": [{"name": "web", "containerPort": 8080, "protocol": "TCP"}]}]},
        "status": {"phase": "Running", "podIP": format!("10.244.0.{}", name.len()), "conditions": [{"type": "Ready", "status": if life == Life::Unready { "False" } else { "True" }}]},
    });
    if life == Life::Leaving {
        value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    Arc::new(serde_json::from_value(value).unwrap())
}

#[test]
fn conditions_tell_ready_serving_and_terminating() {
    let service = service(json!(8080));
    let groups = endpoints_of(&service, &[pod("a", Life::Ready), pod("bb", Life::Unready), pod("ccc", Life::Leaving)]);
    let facts: Vec<_> = groups[0].1.iter().map(|a| (a.ready, a.serving, a.terminating)).collect();
    assert_eq!(facts, [(true, true, false), (false, false, false), (false, true, true)]);
}

#[test]
fn a_named_port_is_found_in_the_pod() {
    let service = service(json!("web"));
    let groups = endpoints_of(&service, &[pod("a", Life::Ready)]);
    assert_eq!(groups[0].0[0].2, Some(8080));
}

#[test]
fn slices_that_fit_stay_and_one_that_differs_is_changed() {
    let service = service(json!(8080));
    let one = groups(&endpoints_of(&service, &[pod("a", Life::Ready)]), endpoint);
    let made = plan_slices(&service, CONTROLLER, one.clone(), &[]);
    let Action::Create { object, .. } = &made[0] else { panic!() };
    let mut stored = object.clone();
    stored["metadata"]["name"] = json!("web-x");
    let stored: Arc<EndpointSlice> = Arc::new(serde_json::from_value(stored).unwrap());
    assert!(plan_slices(&service, CONTROLLER, one, std::slice::from_ref(&stored)).is_empty());
    let two = groups(&endpoints_of(&service, &[pod("a", Life::Ready), pod("bb", Life::Ready)]), endpoint);
    assert!(matches!(&plan_slices(&service, CONTROLLER, two, &[stored])[..], [Action::Patch { .. }]));
}

#[test]
fn endpoints_are_meant_for_those_whom_the_service_wants_near() {
    let found = endpoints_of(&service(json!(8080)), &[pod("a", Life::Ready), pod("ccc", Life::Leaving)]);
    let (ready, leaving) = (&found[0].1[0], &found[0].1[1]);
    let (zones, nodes) = (json!([{"name": "z"}]), json!([{"name": "n"}]));
    for (distribution, zone, hints) in [
        ("", "z", Value::Null),
        ("PreferClose", "z", json!({"forZones": zones})),
        ("PreferSameZone", "z", json!({"forZones": zones})),
        ("PreferSameZone", "", Value::Null),
        ("PreferSameNode", "z", json!({"forZones": zones, "forNodes": nodes})),
        ("PreferSameNode", "", json!({"forNodes": nodes})),
    ] {
        let shown = placed(ready, zone, distribution);
        assert_eq!((&shown["hints"], shown["zone"].as_str().unwrap_or_default()), (&hints, zone), "{distribution}");
        assert_eq!(placed(leaving, zone, distribution)["hints"], Value::Null);
    }
}

#[test]
fn a_slice_follows_its_services_distribution() {
    let service = service(json!(8080));
    let found = endpoints_of(&service, &[pod("a", Life::Ready)]);
    let with = |distribution: &'static str| groups(&found, move |address| placed(address, "z", distribution));
    let Action::Create { object, .. } = &plan_slices(&service, CONTROLLER, with(""), &[])[0] else { panic!() };
    let mut stored = object.clone();
    stored["metadata"]["name"] = json!("web-x");
    let stored: Arc<EndpointSlice> = Arc::new(serde_json::from_value(stored).unwrap());
    assert!(plan_slices(&service, CONTROLLER, with(""), std::slice::from_ref(&stored)).is_empty());
    let changed = plan_slices(&service, CONTROLLER, with("PreferSameZone"), &[stored]);
    assert!(matches!(&changed[..], [Action::Patch { patch, .. }] if !patch["endpoints"][0]["hints"].is_null()));
}

#[test]
fn endpoints_show_ready_and_unready_apart() {
    let service = service(json!(8080));
    let shown =
        subsets(&endpoints_of(&service, &[pod("a", Life::Ready), pod("bb", Life::Unready), pod("ccc", Life::Leaving)]));
    assert_eq!(shown.list[0]["addresses"].as_array().unwrap().len(), 1);
    assert_eq!(shown.list[0]["notReadyAddresses"].as_array().unwrap().len(), 1);
    assert!(!shown.truncated);
}

#[test]
fn too_many_addresses_are_cut_and_said_so() {
    let address = |index: usize, ready| Address {
        ip: format!("10.244.{}.{}", index / 250, index % 250),
        node: String::new(),
        hostname: String::new(),
        pod: format!("p{index}"),
        namespace: "ns".into(),
        uid: Uid::default(),
        ready,
        serving: ready,
        terminating: false,
    };
    let all = (0..1100).map(|index| address(index, index % 11 != 0)).collect();
    let shown = subsets(&[(Ports::new(), all)]);
    assert_eq!(shown.list[0]["addresses"].as_array().unwrap().len(), 1000, "ready ones first");
    assert!(shown.list[0].get("notReadyAddresses").is_none() && shown.truncated);
    let service = service(json!(80));
    let made = write_endpoints(&service, None, shown.clone());
    let Action::Create { object, .. } = &made[0] else { panic!("{made:?}") };
    assert_eq!(object["metadata"]["annotations"][OVER_CAPACITY], "truncated");
    let mut fits: Endpoints = serde_json::from_value(object.clone()).unwrap();
    assert!(write_endpoints(&service, Some(&fits), shown.clone()).is_empty());
    fits.subsets.clear();
    let cleared = write_endpoints(&service, Some(&fits), Subsets { list: Vec::new(), truncated: false });
    assert!(
        matches!(&cleared[..], [Action::Patch { patch, .. }] if patch["metadata"]["annotations"][OVER_CAPACITY].is_null())
    );
}

#[test]
fn a_label_that_the_service_lost_goes_from_its_slices() {
    let found = [("tier".to_owned(), "front".to_owned()), ("kept".to_owned(), "yes".to_owned())].into();
    let wanted = [("kept".to_owned(), "yes".to_owned())].into();
    assert_eq!(relabelled(&found, &wanted), json!({"tier": null, "kept": "yes"}));
}

#[test]
fn hand_made_endpoints_are_mirrored_unless_they_say_no() {
    let subset = json!({"addresses": [{"ip": "10.1.1.1"}], "ports": [{"port": 80}]});
    let (ports, addresses) = mirror(&subset);
    assert_eq!((ports[0].2, addresses[0].ip.as_str(), addresses[0].ready), (Some(80), "10.1.1.1", true));
    let skip: Endpoints = serde_json::from_value(json!({"metadata": {"labels": {SKIP_MIRROR: "true"}}})).unwrap();
    assert!(!mirrored(&skip));
}

/// 5,000 endpoints in slices, as they come to be stored.
fn stored(service: &Service, addresses: &[Address]) -> Vec<Arc<EndpointSlice>> {
    let wanted = groups(&[(Ports::new(), addresses.to_vec())], endpoint);
    let made = plan_slices(service, CONTROLLER, wanted, &[]).into_iter().enumerate().map(|(index, action)| {
        let Action::Create { mut object, .. } = action else { panic!("{action:?}") };
        object["metadata"]["name"] = json!(format!("web-{index}"));
        Arc::new(serde_json::from_value(object).unwrap())
    });
    made.collect()
}

fn many(count: usize) -> Vec<Address> {
    let pods = (0..count).map(|index| Address {
        ip: format!("10.244.{}.{}", index / 250, index % 250),
        node: "n".into(),
        hostname: String::new(),
        pod: format!("p{index:04}"),
        namespace: "ns".into(),
        uid: Uid::new(format!("u{index}")),
        ready: true,
        serving: true,
        terminating: false,
    });
    pods.collect()
}

#[test]
fn one_pod_of_thousands_changes_one_slice() {
    let service = service(json!(80));
    let all = many(5000);
    let slices = stored(&service, &all);
    assert_eq!(slices.len(), 50);
    let plan = |addresses: Vec<Address>| {
        plan_slices(&service, CONTROLLER, groups(&[(Ports::new(), addresses)], endpoint), &slices)
    };
    assert_eq!(plan(all.clone()), [], "nothing changed");
    let mut unready = all.clone();
    unready[1234].ready = false;
    let without = all.iter().enumerate().filter(|(index, _)| *index != 1234).map(|(_, address)| address.clone());
    let mut replaced: Vec<_> = without.clone().collect();
    replaced.push(Address { pod: "q".into(), uid: Uid::new("new"), ip: "10.244.99.9".into(), ..all[0].clone() });
    for (name, addresses) in [("unready", unready), ("gone", without.collect()), ("replaced", replaced)] {
        let made = plan(addresses);
        assert!(matches!(&made[..], [Action::Patch { key, .. }] if key.name == "web-12"), "{name}: {}", made.len());
    }
    // All slices are full: one more pod makes one slice.
    assert!(matches!(&plan(many(5001))[..], [Action::Create { .. }]));
}

#[test]
fn a_slice_that_is_left_with_nothing_goes_and_the_last_one_stays() {
    let service = service(json!(80));
    let slices = stored(&service, &many(150));
    let plan = |count| {
        let wanted = if count == 0 { Vec::new() } else { groups(&[(Ports::new(), many(count))], endpoint) };
        plan_slices(&service, CONTROLLER, wanted, &slices)
    };
    assert!(matches!(&plan(100)[..], [Action::Delete { key, .. }] if key.name == "web-1"));
    let emptied = plan(0);
    assert_eq!(emptied.len(), 2, "{emptied:?}");
    assert!(
        emptied.iter().any(|action| matches!(action, Action::Patch { patch, .. } if patch["endpoints"] == json!([])))
    );
    assert!(emptied.iter().any(|action| matches!(action, Action::Delete { .. })));
}

#[test]
fn each_family_has_slices_of_its_own() {
    let mut service = service(json!(8080));
    let mut dual = (*pod("a", Life::Ready)).clone();
    let ips = json!([{"ip": "10.244.0.1"}, {"ip": "fd00:10:244::1"}]);
    dual.status.pod_ips = serde_json::from_value(ips).unwrap();
    let pods = [Arc::new(dual), pod("bb", Life::Ready)];
    let plan = |service: &Service, existing: &[Arc<EndpointSlice>]| {
        plan_slices(service, CONTROLLER, groups(&endpoints_of(service, &pods), endpoint), existing)
    };
    service.spec.ip_families = vec!["IPv6".into(), "IPv4".into()];
    let made = plan(&service, &[]).into_iter().enumerate().map(|(index, action)| {
        let Action::Create { mut object, .. } = action else { panic!("{action:?}") };
        object["metadata"]["name"] = json!(format!("web-{index}"));
        Arc::new(serde_json::from_value::<EndpointSlice>(object).unwrap())
    });
    let made: Vec<_> = made.collect();
    let shown: Vec<(&str, usize)> = made.iter().map(|slice| (&*slice.address_type, slice.endpoints.len())).collect();
    assert_eq!(shown, [("IPv6", 1), ("IPv4", 2)]);
    assert_eq!(made[0].endpoints[0].addresses, ["fd00:10:244::1"]);
    assert_eq!(plan(&service, &made), []);
    // Without the second family its slice goes, and the other stays as it is.
    service.spec.ip_families = vec!["IPv4".into()];
    assert!(matches!(&plan(&service, &made)[..], [Action::Delete { key, .. }] if key.name == "web-0"));
}

#[test]
fn plans_are_as_agreed() {
    let service = service(json!(8080));
    let of = |pods: &[Arc<Pod>]| groups(&endpoints_of(&service, pods), endpoint);
    let slices =
        |pods: &[Arc<Pod>], existing: &[Arc<EndpointSlice>]| plan_slices(&service, CONTROLLER, of(pods), existing);
    let (one, two) = ([pod("a", Life::Ready)], [pod("a", Life::Ready), pod("bb", Life::Unready)]);
    let Action::Create { mut object, .. } = slices(&one, &[]).remove(0) else { panic!() };
    object["metadata"]["name"] = json!("web-x");
    object["metadata"]["resourceVersion"] = json!("7");
    let stored: [Arc<EndpointSlice>; 1] = [Arc::new(serde_json::from_value(object).unwrap())];
    let objects = |pods: &[Arc<Pod>], found: Option<&Endpoints>| {
        write_endpoints(&service, found, subsets(&endpoints_of(&service, pods)))
    };
    super::super::golden::check(
        "endpoints",
        &[
            ("the first slice", slices(&one, &[])),
            ("another pod", slices(&two, &stored)),
            ("no change", slices(&one, &stored)),
            ("the last pod went", slices(&[], &stored)),
            ("the first Endpoints", objects(&two, None)),
            ("nothing is left of them", objects(&[], Some(&Endpoints::default()))),
        ],
    );
}
