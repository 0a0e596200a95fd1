//! Small bodies that would cost much: each is refused with a sentence, on the stack of a server's worker and in time.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::time::{Duration, Instant};

use api::decode::{self, FieldValidation, MediaType};
use api::kind::{Kind, Registry};
use api::patch::{self, PatchType};
use serde_json::json;

/// What tokio gives a worker thread.
const STACK: usize = 2 << 20;
/// Without optimisation, on a busy machine; what the budget stops takes minutes or all memory.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs on a worker's stack, and in time.
fn run<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let start = Instant::now();
    let out = std::thread::scope(|scope| {
        std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work).unwrap().join().unwrap()
    });
    assert!(start.elapsed() < PATIENCE, "took {:?}", start.elapsed());
    out
}

fn kind(group: &str, plural: &str) -> std::sync::Arc<Kind> {
    Registry::builtin().find(group, "v1", plural).unwrap()
}

fn refusal(kind: &Kind, media: MediaType, body: &[u8]) -> (u16, String) {
    run(|| {
        let refused = decode::object(kind, media, body, FieldValidation::Strict).unwrap_err();
        (refused.code, refused.message)
    })
}

fn assert_refused(media: MediaType, body: &[u8], why: &str) {
    let (code, message) = refusal(&kind("", "configmaps"), media, body);
    assert!(code == 400 && message.contains(why), "{code} {message}");
}

const DEEP: &str = "lists and objects may be nested 100 deep";
const MANY: &str = "the limit is 500000";

#[test]
fn nested_text_is_refused() {
    for (media, body) in [
        (MediaType::Json, "[".repeat(300_000)),
        (MediaType::Json, r#"{"a":"#.repeat(300_000)),
        (MediaType::Yaml, "- ".repeat(300_000)),
        (MediaType::Yaml, "[".repeat(300_000)),
        (MediaType::Yaml, "{a: ".repeat(300_000)),
        (MediaType::Yaml, "? ".repeat(300_000)),
    ] {
        assert_refused(media, body.as_bytes(), DEEP);
    }
    let fields = format!(r#"{{"metadata":{{"managedFields":[{{"fieldsV1":{}"#, r#"{"f:a":"#.repeat(120));
    assert_refused(MediaType::Json, fields.as_bytes(), DEEP);
}

#[test]
fn nested_messages_are_refused() {
    // `not` of a schema is a schema: field 28, written from the inside out and turned round.
    let tag = [0xe2, 0x01];
    let mut reversed = Vec::new();
    for _ in 0..100_000 {
        let mut length = reversed.len();
        let mut head = tag.to_vec();
        while length >= 0x80 {
            head.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        head.push(length as u8);
        reversed.extend(head.into_iter().rev());
    }
    let schema: Vec<u8> = reversed.into_iter().rev().collect();
    let wrap = |tag: u8, bytes: &[u8]| {
        let mut out = vec![tag << 3 | 2];
        let mut length = bytes.len();
        while length >= 0x80 {
            out.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        out.push(length as u8);
        out.extend_from_slice(bytes);
        out
    };
    // spec.versions[0].schema.openAPIV3Schema
    let definition = wrap(2, &wrap(7, &wrap(4, &wrap(1, &schema))));
    let meta = [wrap(1, b"apiextensions.k8s.io/v1"), wrap(2, b"CustomResourceDefinition")].concat();
    let body = [b"k8s\0".to_vec(), wrap(1, &meta), wrap(2, &definition)].concat();
    let kind = kind("apiextensions.k8s.io", "customresourcedefinitions");
    let (code, message) = refusal(&kind, MediaType::Protobuf, &body);
    assert!(code == 400 && message.contains(DEEP), "{code} {message}");
}

#[test]
fn what_multiplies_is_refused() {
    let mut laughs = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for level in 1..30 {
        let before = format!("*a{}", level - 1);
        laughs += &format!("a{level}: &a{level} [{}]\n", vec![before; 10].join(","));
    }
    assert_refused(MediaType::Yaml, laughs.as_bytes(), MANY);
    let anchors = (0..90).map(|i| format!("&b{i} [")).collect::<String>() + &"x,".repeat(100_000);
    assert_refused(MediaType::Yaml, (anchors + &"]".repeat(90)).as_bytes(), MANY);
    let ones = format!("[{}1]", "1,".repeat(1_500_000));
    assert_refused(MediaType::Json, ones.as_bytes(), MANY);
}

#[test]
fn many_keys_take_their_time_once() {
    let keys: String = (0..150_000).map(|i| format!("k{i}: 1\n")).collect();
    let yaml = format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: a}}\ndata:\n{}", keys.replace('k', "  k"));
    let (code, message) = refusal(&kind("", "configmaps"), MediaType::Yaml, yaml.as_bytes());
    assert!(code == 400 && message.contains("of type string"), "{code} {message}");
    let patch: String = (0..150_000).map(|i| format!(r#","k{i}":null"#)).collect();
    let patch = format!(r#"{{"data":{{"k":null{patch}}}}}"#);
    let map = kind("", "configmaps");
    let current = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}});
    for merge in [PatchType::Merge, PatchType::StrategicMerge] {
        let patched = run(|| {
            patch::apply(&map.gvk(), &map.schema, merge, &current, patch.as_bytes(), FieldValidation::Strict).unwrap()
        });
        assert_eq!(patched.warnings, Vec::<String>::new());
    }
}

#[test]
fn a_long_path_with_many_findings_is_told_a_hundred_times() {
    let unknown: String = (0..30_000).map(|i| format!(r#""u{i}":1,"#)).collect();
    let key = "x".repeat(500_000);
    let body = format!(
        r#"{{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","spec":{{"versions":[{{"schema":
        {{"openAPIV3Schema":{{"properties":{{"{key}":{{{unknown}"type":"object"}}}}}}}}}}]}}}}"#
    );
    let definitions = kind("apiextensions.k8s.io", "customresourcedefinitions");
    let decoded =
        run(|| decode::object(&definitions, MediaType::Json, body.as_bytes(), FieldValidation::Warn).unwrap());
    assert_eq!(decoded.warnings.len(), 100);
}

#[test]
fn patches_stay_within_their_budget() {
    let map = kind("", "configmaps");
    let current = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v"}});
    let refused = |kind: PatchType, body: String| {
        run(|| {
            let validation = FieldValidation::Strict;
            patch::apply(&map.gvk(), &map.schema, kind, &current, body.as_bytes(), validation).unwrap_err()
        })
    };
    let doubling: Vec<_> = (0..40).map(|i| json!({"op": "copy", "from": "", "path": format!("/c{i}")})).collect();
    let doubled = refused(PatchType::Json, json!(doubling).to_string());
    assert_eq!(doubled.code, 413, "{doubled}");
    let many = json!(vec![json!({"op": "test", "path": "/kind", "value": "ConfigMap"}); 10_001]).to_string();
    assert_eq!(
        refused(PatchType::Json, many).message,
        "The allowed maximum operations in a JSON patch is 10000, got 10001"
    );
    for kind in [PatchType::Json, PatchType::Merge, PatchType::StrategicMerge] {
        let deep = refused(kind, r#"{"a":"#.repeat(200));
        assert!(deep.code == 400 && deep.message.contains(DEEP), "{deep}");
    }
}

/// Lists and maps that are long: whoever compares each member with each needs minutes.
#[test]
fn long_lists_take_their_time_once() {
    let many = |item: fn(usize) -> serde_json::Value| (0..30_000).map(item).collect::<Vec<_>>();
    let pods = kind("", "pods");
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "n"}, "spec": {
        "containers": [{"name": "c", "image": "i",
            "ports": many(|i| json!({"containerPort": i + 1, "name": format!("p{i}")})),
            "env": many(|i| json!({"name": format!("E{i}"), "value": "v"})),
            "volumeMounts": many(|i| json!({"name": format!("v{i}"), "mountPath": format!("/{i}")}))}],
        "volumes": many(|i| json!({"name": format!("v{i}"), "emptyDir": {}})),
        "tolerations": many(|i| json!({"key": format!("k{i}"), "operator": "Exists"})),
        "schedulingGates": many(|i| json!({"name": format!("a.b/g{i}")}))}});
    api::default::apply(&pods, &mut pod);
    let mut changed = pod.clone();
    changed["metadata"]["labels"] = json!({"a": "b"});
    run(|| {
        let _complaints = (api::validate::create(&pods, &pod), api::validate::warnings(&pods, &pod));
        let _complaints = api::validate::update(&pods, None, &changed, &pod);
    });
    let patch =
        json!({"spec": {"containers": [{"name": "c", "env": many(|i| json!({"name": format!("E{i}"), "value": "w"})),
        "$setElementOrder/env": many(|i| json!({"name": format!("E{}", 30_000 - i)}))}],
        "$deleteFromPrimitiveList/x": many(|i| json!(i.to_string())),
        "volumes": many(|i| json!({"name": format!("v{i}"), "$patch": "delete"}))}})
        .to_string();
    let patched = run(|| {
        let (how, validation) = (PatchType::StrategicMerge, FieldValidation::Ignore);
        patch::apply(&pods.gvk(), &pods.schema, how, &pod, patch.as_bytes(), validation).unwrap()
    });
    assert!(patched.value["spec"]["volumes"].is_null(), "each was deleted");
    let second = &patched.value["spec"]["containers"][0]["env"][1]["name"];
    assert_eq!(second, "E29999", "after the one that is not in the order");
}

#[test]
fn ownership_of_long_lists_and_maps_takes_its_time_once() {
    let pods = kind("", "pods");
    let variables: Vec<_> = (0..20_000).map(|i| json!({"name": format!("E{i}"), "value": "v"})).collect();
    let labels: serde_json::Map<_, _> = (0..20_000).map(|i| (format!("l{i}"), json!("v"))).collect();
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": labels},
        "spec": {"containers": [{"name": "c", "image": "i", "env": variables}]}});
    run(|| {
        let writer = api::managed::Writer { manager: "m", part: None, now: jiff::Timestamp::UNIX_EPOCH };
        let config = pod.clone();
        api::managed::update(&pods, None, &mut pod, writer);
        let old = pod.clone();
        api::managed::update(&pods, Some(&old), &mut pod, writer);
        api::managed::apply(&pods, Some(&old), &config, writer, api::managed::Conflicts::Force).unwrap();
    });
}

/// What a definition says of its columns is read when it is written, and at every start.
#[test]
fn paths_of_columns_are_read_within_a_limit() {
    let kind = kind("apiextensions.k8s.io", "customresourcedefinitions");
    let defined = |path: &str| {
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "as.b.c"},
            "spec": {"group": "b.c", "scope": "Namespaced", "names": {"plural": "as", "kind": "A"}, "versions": [
                {"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}},
                    "additionalPrinterColumns": [{"name": "x", "type": "string", "jsonPath": path}]}]},
            "status": {"acceptedNames": {"plural": "as", "kind": "A", "listKind": "AList"},
                "conditions": [{"type": "Established", "status": "True"}]}})
    };
    for (path, why) in [
        (format!(".{}", "[?(".repeat(100_000)), "nest filters more than 8 deep"),
        ("..[*]".repeat(100_000), "more than 100 steps"),
    ] {
        let definition = defined(&path);
        let told = run(|| api::validate::create(&kind, &definition));
        let told: Vec<String> = told.iter().map(ToString::to_string).collect();
        let place = "spec.additionalPrinterColumns[0].JSONPath: Invalid value: ";
        assert!(told.iter().any(|told| told.starts_with(place) && told.contains(why)), "{why}");
        // One that is stored all the same shows nothing, and the rest is served.
        let rows = run(|| api::custom::kinds(&definition));
        let custom = rows[0].custom.as_ref().unwrap();
        assert_eq!(custom.blank_columns().map(|(name, _)| name).collect::<Vec<_>>(), ["x"]);
        let cells =
            run(|| api::table::cells(&rows[0], &json!({"metadata": {"name": "a"}}), jiff::Timestamp::UNIX_EPOCH));
        assert_eq!(cells, [json!("a"), json!(null)]);
    }
    let deep: Vec<_> = (0..50_000).map(|n| json!({"n": n})).collect();
    let object = json!({"metadata": {"name": "a"}, "spec": deep});
    let rows = api::custom::kinds(&defined(&format!(".spec{}", "..[*]".repeat(49))));
    let cells = run(|| api::table::cells(&rows[0], &object, jiff::Timestamp::UNIX_EPOCH));
    assert_eq!(cells[1], "<too much to search>");
    let warned = api::validate::warnings(&kind, &defined(".spec["));
    assert!(warned.iter().any(|text| text.contains("is not a JSONPath")), "{warned:?}");
}
