//! Pod specs that would reach out of their pod are refused, in upstream's words.
#![expect(clippy::unwrap_used, reason = "a test")]

use api::kind::{Part, Registry};
use api::validate;
use serde_json::{Value, json};

fn complaints(change: Value) -> Vec<String> {
    let kind = Registry::builtin().find("", "v1", "pods").unwrap();
    let mut pod =
        json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    pod["spec"] = api::patch::merge(&pod["spec"], &change);
    api::default::apply(&kind, &mut pod);
    validate::create(&kind, &pod).iter().map(ToString::to_string).collect()
}

#[test]
fn an_unmasked_proc_needs_a_user_namespace() {
    let unmasked = json!([{"name": "c", "image": "i", "securityContext": {"procMount": "Unmasked"}}]);
    let want = "spec.containers[0].securityContext.procMount: Invalid value: \"Unmasked\": `hostUsers` must be false to use `Unmasked`";
    assert_eq!(complaints(json!({"containers": unmasked})), [want]);
    assert_eq!(complaints(json!({"containers": unmasked, "hostUsers": true})), [want]);
    assert!(complaints(json!({"containers": unmasked, "hostUsers": false})).is_empty());
}

#[test]
fn a_user_namespace_does_not_go_with_the_hosts() {
    let errors = complaints(json!({"hostUsers": false, "hostNetwork": true, "hostPID": true, "hostIPC": true}));
    // The names that upstream gives them there.
    let want = ["spec.hostNetwork", "spec.HostPID", "spec.HostIPC"]
        .map(|field| format!("{field}: Forbidden: when `hostUsers` is false"));
    assert_eq!(errors, want);
}

#[test]
fn sysctls_need_the_namespace_they_are_of() {
    let sysctl = |name: &str, more: Value| {
        let mut spec = json!({"securityContext": {"sysctls": [{"name": name, "value": "1"}]}});
        spec = api::patch::merge(&spec, &more);
        complaints(spec)
    };
    let told =
        |name: &str, why: &str| vec![format!("spec.securityContext.sysctls[0].name: Invalid value: \"{name}\": {why}")];
    for name in ["net.ipv4.tcp_syncookies", "net/ipv4/conf/eth0.1/x"] {
        assert_eq!(
            sysctl(name, json!({"hostNetwork": true})),
            told(name, "may not be specified when 'hostNetwork' is true")
        );
        assert!(sysctl(name, json!({"hostIPC": true})).is_empty());
    }
    for name in ["kernel.sem", "kernel.shmmax", "kernel.msgmax", "fs.mqueue.msg_max"] {
        assert_eq!(sysctl(name, json!({"hostIPC": true})), told(name, "may not be specified when 'hostIPC' is true"));
        assert!(sysctl(name, json!({"hostNetwork": true})).is_empty());
    }
    let twice =
        json!({"securityContext": {"sysctls": [{"name": "net.a", "value": "1"}, {"name": "net.a", "value": "2"}]}});
    assert_eq!(complaints(twice), ["spec.securityContext.sysctls[1].name: Duplicate value: \"net.a\""]);
}

#[test]
fn header_names_are_one_word() {
    let probe = |name: &str| json!([{"name": "c", "image": "i", "livenessProbe": {"httpGet": {"port": 80, "httpHeaders": [{"name": name, "value": "x"}]}}}]);
    assert!(complaints(json!({"containers": probe("X-Own")})).is_empty());
    let refused = complaints(json!({"containers": probe("X\r\nHost")}));
    assert!(refused[0].starts_with("spec.containers[0].livenessProbe.httpGet.httpHeaders: Invalid value: \"X\\r\\nHost\": a valid HTTP header must"), "{refused:?}");
}

#[test]
fn a_pods_address_is_one() {
    let kind = Registry::builtin().find("", "v1", "pods").unwrap();
    let old =
        json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let complaints = |ip: &str| {
        let mut new = old.clone();
        new["status"] = json!({"podIP": ip, "podIPs": [{"ip": ip}]});
        validate::update(&kind, Some(Part::Status), &new, &old).iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert!(complaints("10.244.0.9").is_empty() && complaints("fd00::9").is_empty());
    for ip in ["localhost", "127.1", "0177.0.0.1", "2130706433", "[::]", "127.0.0.1%2f"] {
        assert!(complaints(ip)[0].contains("must be a valid IP address"), "{ip}");
    }
}
