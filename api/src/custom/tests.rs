use jiff::Timestamp;
use serde_json::json;

use super::*;
use crate::decode::{self, FieldValidation, MediaType};
use crate::managed::{self, Conflicts, Writer};

fn definition() -> Value {
    let text = include_bytes!("../../tests/data/crontab.yaml");
    let mut definition = decode::untyped(MediaType::Yaml, text).unwrap();
    definition["status"] = json!({"acceptedNames": definition["spec"]["names"], "conditions": [{"type": "Established", "status": "True"}]});
    definition
}

fn kind() -> Kind {
    kinds(&definition()).remove(0)
}

fn crontab(spec: Value) -> Value {
    json!({"apiVersion": "stable.example.com/v1", "kind": "CronTab", "metadata": {"name": "c", "namespace": "n"}, "spec": spec})
}

fn decoded(object: &Value, validation: FieldValidation) -> Result<decode::Decoded, crate::status::Status> {
    decode::object(&kind(), MediaType::Json, object.to_string().as_bytes(), validation)
}

fn errors(object: &Value) -> Vec<String> {
    crate::validate::create(&kind(), object).iter().map(ToString::to_string).collect()
}

#[test]
fn what_a_schema_does_not_have_is_dropped_and_told() {
    let sent =
        crontab(json!({"cronSpec": "*", "odd": 1, "port": "a", "free": {"x": [null], "known": {"a": 1, "b": 2}},
        "rules": [{"name": "r", "odd": {}}], "labels": {"k": "v"}, "tags": [], "color": null}));
    let kept = decoded(&sent, FieldValidation::Ignore).unwrap().value;
    let want = json!({"cronSpec": "*", "port": "a", "free": {"x": [null], "known": {"a": 1}},
        "rules": [{"name": "r"}], "labels": {"k": "v"}, "tags": []});
    assert_eq!(kept["spec"], want);
    let refused = decoded(&sent, FieldValidation::Strict).unwrap_err();
    let told =
        [r#"unknown field "spec.free.known.b""#, r#"unknown field "spec.odd""#, r#"unknown field "spec.rules[0].odd""#];
    assert!(told.iter().all(|text| refused.message.contains(text)), "{refused}");
    assert_eq!(decoded(&sent, FieldValidation::Warn).unwrap().warnings.len(), 3);
    let other = decoded(&json!({"apiVersion": "stable.example.com/v1", "kind": "Other"}), FieldValidation::Strict);
    assert!(other.unwrap_err().message.ends_with(r#"kind: Invalid value: "Other": must be CronTab"#));
}

#[test]
fn absent_values_are_filled_in_and_nulls_are_what_the_schema_says() {
    let mut object = decoded(
        &crontab(json!({"cronSpec": "*", "note": null, "replicas": null, "rules": [{"name": "r"}]})),
        FieldValidation::Strict,
    )
    .unwrap()
    .value;
    crate::default::apply(&kind(), &mut object);
    assert_eq!(
        object["spec"],
        json!({"cronSpec": "*", "note": null, "replicas": 1, "rules": [{"name": "r", "on": true}]})
    );
    let once = object.clone();
    crate::default::apply(&kind(), &mut object);
    assert_eq!(object, once);
}

#[test]
fn objects_are_held_against_the_schema() {
    assert_eq!(errors(&crontab(json!({"cronSpec": "*"}))), Vec::<String>::new());
    assert_eq!(
        errors(&crontab(json!({"cronSpec": "a b", "replicas": 11}))),
        [
            r#"spec.cronSpec: Invalid value: "a b": spec.cronSpec in body should match '^\S+$'"#,
            "spec.replicas: Invalid value: 11: spec.replicas in body should be less than or equal to 10",
        ]
    );
    assert_eq!(errors(&crontab(json!({}))), ["spec.cronSpec: Required value"]);
    assert_eq!(
        errors(&crontab(json!({"cronSpec": "*", "tags": ["a", "b", "a"], "rules": [{"name": "r"}, {"name": "r"}]}))),
        [r#"spec.rules[1]: Duplicate value: {"name":"r"}"#, r#"spec.tags[2]: Duplicate value: "a""#,]
    );
    assert_eq!(
        errors(&crontab(json!({"cronSpec": "*", "template": {"kind": "X_", "metadata": {"labels": {"a b": ""}}}})))
            .len(),
        3
    );
    assert_eq!(
        errors(&crontab(json!({"cronSpec": "*", "replicas": -1}))),
        [".spec.replicas: Invalid value: -1: should be a non-negative integer"]
    );
}

#[test]
fn a_status_is_held_against_its_own_schema_alone() {
    let old = crontab(json!({"cronSpec": "no longer fine"}));
    let mut new = old.clone();
    new["status"] = json!({"replicas": "three"});
    let told = crate::validate::update(&kind(), Some(Part::Status), &new, &old);
    assert_eq!(
        told[0].to_string(),
        r#"status.replicas: Invalid value: "string": replicas in body must be of type integer: "string""#
    );
}

#[test]
fn lists_merge_as_the_schema_says() {
    let kind = kind();
    let writer = |manager| Writer { manager, part: None, now: Timestamp::UNIX_EPOCH };
    let first = crontab(json!({"cronSpec": "*", "tags": ["a"], "rules": [{"name": "one", "on": true}]}));
    let live = managed::apply(&kind, None, &first, writer("one"), Conflicts::Refuse).unwrap();
    let second = crontab(json!({"tags": ["b"], "rules": [{"name": "two"}]}));
    let both = managed::apply(&kind, Some(&live), &second, writer("two"), Conflicts::Refuse).unwrap();
    assert_eq!(both["spec"]["tags"], json!(["a", "b"]));
    assert_eq!(both["spec"]["rules"], json!([{"name": "one", "on": true}, {"name": "two"}]));
    let third = crontab(json!({"rules": [{"name": "one", "on": false}]}));
    let conflict = managed::apply(&kind, Some(&both), &third, writer("two"), Conflicts::Refuse).unwrap_err();
    assert!(conflict.message.contains(r#".spec.rules[name="one"].on"#), "{conflict}");
    let odd = managed::apply(&kind, None, &crontab(json!({"odd": 1})), writer("one"), Conflicts::Refuse).unwrap_err();
    assert!(odd.message.ends_with(".spec.odd: field not declared in schema"), "{odd}");
}

#[test]
fn columns_show_what_their_paths_find() {
    let mut object = crontab(json!({"cronSpec": "* *", "replicas": 3}));
    object["metadata"]["creationTimestamp"] = json!("2020-01-01T00:00:00Z");
    let table = crate::table::table(
        &kind(),
        json!({}),
        vec![crate::table::row(&kind(), &object, None, "2020-01-01T01:00:00Z".parse().unwrap())],
    );
    let names: Vec<&Value> = items(&table["columnDefinitions"]).map(|column| &column["name"]).collect();
    assert_eq!(names, ["Name", "Spec", "Replicas", "Age"]);
    assert_eq!(table["rows"][0]["cells"], json!(["c", "* *", 3, "60m"]));
}

#[test]
fn objects_are_selected_and_scaled_by_their_paths() {
    let kind = kind();
    let mut object = crontab(json!({"cronSpec": "*", "color": "blue", "replicas": 2}));
    object["status"] = json!({"replicas": 1, "labelSelector": "a=b"});
    let fields = crate::selector::Fields::parse(&kind, "spec.color=blue").unwrap();
    assert!(fields.matches_object(&kind, &object));
    assert!(crate::selector::Fields::parse(&kind, "spec.other=blue").is_err());
    let scale = crate::write::scale_of(&kind, &object);
    assert_eq!((&scale["spec"]["replicas"], &scale["status"]), (&json!(2), &json!({"replicas": 1, "selector": "a=b"})));
    crate::write::apply_scale(&kind, &mut object, &json!({"spec": {"replicas": 5}}));
    assert_eq!(object["spec"]["replicas"], 5);
}

#[test]
fn the_generation_counts_what_is_wanted() {
    let kind = kind();
    let mut old = crontab(json!({"cronSpec": "*"}));
    old["metadata"]["generation"] = json!(1);
    let mut new = old.clone();
    new["status"] = json!({"replicas": 1});
    crate::write::prepare_update(&kind, None, &mut new, &old);
    assert_eq!(new, old, "the status is not written here");
    new["spec"]["cronSpec"] = json!("+");
    crate::write::prepare_update(&kind, None, &mut new, &old);
    assert_eq!(new["metadata"]["generation"], 2);
    let mut reported = old.clone();
    (reported["status"], reported["spec"], reported["metadata"]["labels"]) =
        (json!({"replicas": 1}), json!({}), json!({"a": "b"}));
    crate::write::prepare_update(&kind, Some(Part::Status), &mut reported, &old);
    assert_eq!((&reported["spec"], reported["metadata"].get("labels")), (&old["spec"], None));
    assert_eq!(reported["status"]["replicas"], 1);
}

#[test]
fn names_that_another_has_are_not_accepted() {
    let now = Timestamp::UNIX_EPOCH;
    let mut new = definition();
    new.as_object_mut().unwrap().remove("status");
    let first = status::settled(&new, &[], now);
    assert!(status::holds(&first, "NamesAccepted") && status::holds(&first, "Established"));
    assert_eq!(first["status"]["acceptedNames"], new["spec"]["names"]);
    assert_eq!(status::settled(&first, &[], "2030-01-01T00:00:00Z".parse().unwrap()), first, "what is settled stays");
    let mut other = new.clone();
    other["spec"]["names"] = json!({"plural": "tabs", "singular": "tab", "kind": "CronTab", "listKind": "TabList", "shortNames": ["ct", "t"]});
    let refused = status::settled(&other, &[&first], now);
    let named = items(&refused["status"]["conditions"]).find(|c| c["type"] == "NamesAccepted").unwrap();
    assert_eq!(
        (&named["status"], &named["reason"], &named["message"]),
        (&json!("False"), &json!("KindConflict"), &json!("\"CronTab\" is already in use"))
    );
    assert!(!status::holds(&refused, "Established") && kinds(&refused).is_empty());
    assert_eq!(refused["status"]["acceptedNames"]["plural"], "tabs");
}

#[test]
fn versions_say_what_is_better_than_they_are() {
    let mut old = definition();
    let mut second = old["spec"]["versions"][0].clone();
    (second["name"], second["storage"], second["deprecated"]) = (json!("v1beta1"), json!(false), json!(true));
    old["spec"]["versions"].as_array_mut().unwrap().push(second);
    let rows = kinds(&old);
    assert_eq!(
        rows[1].deprecated(),
        Some("stable.example.com/v1beta1 CronTab is deprecated; use stable.example.com/v1 CronTab")
    );
    assert_eq!((rows[0].deprecated(), &*rows[1].storage.version), (None, "v1"));
}

#[test]
fn documents_have_the_schema() {
    let registry = crate::kind::Registry::builtin().with("crontabs.stable.example.com", kinds(&definition()));
    let v3: Value =
        serde_json::from_slice(&crate::openapi::v3(&registry, "stable.example.com", "v1").unwrap()).unwrap();
    let schemas = &v3["components"]["schemas"];
    let crontab = &schemas["com.example.stable.v1.CronTab"];
    assert_eq!(crontab["x-kubernetes-group-version-kind"][0]["kind"], "CronTab");
    assert_eq!(crontab["properties"]["spec"]["properties"]["replicas"]["default"], 1);
    assert_eq!(crontab["properties"]["spec"]["properties"]["port"]["anyOf"][0]["type"], "integer");
    assert!(schemas["io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"].is_object());
    let patch = &v3["paths"]["/apis/stable.example.com/v1/namespaces/{namespace}/crontabs/{name}"]["patch"];
    assert!(patch["requestBody"]["content"]["application/strategic-merge-patch+json"].is_null());
    let v2: Value = serde_json::from_slice(&crate::openapi::v2(&registry)).unwrap();
    let spec = &v2["definitions"]["com.example.stable.v1.CronTab"]["properties"]["spec"]["properties"];
    assert_eq!(
        (&spec["note"]["type"], &spec["free"]["properties"], &spec["port"]["anyOf"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );
    crate::openapi::v2_protobuf(&registry);
}

#[test]
fn a_pattern_that_is_none_is_refused() {
    let mut definition = definition();
    let spec = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/cronSpec/pattern";
    *definition.pointer_mut(spec).unwrap() = json!("^[a-");
    definition["status"]["storedVersions"] = json!(["v1"]);
    let kinds = crate::kind::Registry::builtin();
    let kind = kinds.find(GROUP, "v1", PLURAL).unwrap();
    let errors: Vec<String> = crate::validate::create(&kind, &definition).iter().map(ToString::to_string).collect();
    let path = "spec.validation.openAPIV3Schema.properties[spec].properties[cronSpec].pattern";
    assert_eq!(
        errors,
        [format!(
            "{path}: Invalid value: \"^[a-\": must be a valid regular expression, but isn't: unclosed character class"
        )]
    );
}

/// What creation says of a definition whose `spec` has this property.
fn with_property(property: &Value) -> Vec<String> {
    let definition = definition_with(property);
    let kind = crate::kind::Registry::builtin().find(GROUP, "v1", PLURAL).unwrap();
    crate::validate::create(&kind, &definition).iter().map(ToString::to_string).collect()
}

fn definition_with(property: &Value) -> Value {
    let mut definition = definition();
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["x"] =
        property.clone();
    definition["status"]["storedVersions"] = json!(["v1"]);
    definition
}

#[test]
fn defaults_are_held_against_their_schema() {
    let path = "spec.validation.openAPIV3Schema.properties[spec].properties[x]";
    let object = |default: Value| {
        json!({"type": "object", "default": default, "required": ["a"], "properties": {
            "a": {"type": "string", "maxLength": 2},
            "list": {"type": "array", "items": {"type": "object", "properties": {"b": {"type": "integer"}}}},
            "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            "map": {"type": "object", "additionalProperties": {"type": "integer"}},
        }})
    };
    for (property, want) in [
        (json!({"type": "integer", "default": 1}), vec![]),
        (json!({"type": "integer", "default": null}), vec![]),
        (
            json!({"type": "integer", "default": "1"}),
            vec![r#".default: Invalid value: "string":  in body must be of type integer: "string""#],
        ),
        (
            json!({"type": "integer", "minimum": 2, "default": 1}),
            vec![".default: Invalid value: 1:  in body should be greater than or equal to 2"],
        ),
        (
            json!({"type": "string", "enum": ["a", "b"], "default": "c"}),
            vec![r#".default: Unsupported value: "c": supported values: "a", "b""#],
        ),
        (object(json!({"a": "x", "list": [{"b": 1}], "any": {"free": 1}, "map": {"free": 1}})), vec![]),
        (object(json!({})), vec![".default.a: Required value"]),
        (object(json!({"a": "long"})), vec![".default.a: Too long: may not be more than 2 bytes"]),
        (
            object(json!({"a": "x", "more": 1})),
            vec![r#".default: Invalid value: {"a":"x","more":1}: must not have unknown fields"#],
        ),
        (
            object(json!({"a": "x", "list": [{"c": 1}]})),
            vec![r#".default: Invalid value: {"a":"x","list":[{"c":1}]}: must not have unknown fields"#],
        ),
        (
            json!({"type": "array", "items": {"type": "string", "default": 1}}),
            vec![r#".items.default: Invalid value: "integer":  in body must be of type string: "integer""#],
        ),
        (
            json!({"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true,
                "default": {"kind": "Pod", "metadata": {"name": "p"}}}),
            vec![".default.apiVersion: Required value"],
        ),
    ] {
        let want: Vec<String> = want.into_iter().map(|why| format!("{path}{why}")).collect();
        assert_eq!(with_property(&property), want, "{property}");
    }
}

#[test]
fn an_update_holds_defaults_against_their_schema_and_lets_unknown_fields_be_that_stand() {
    let kind = crate::kind::Registry::builtin().find(GROUP, "v1", PLURAL).unwrap();
    let property =
        |default: Value| json!({"type": "object", "default": default, "properties": {"a": {"type": "string"}}});
    let told = |old: Value, new: Value| -> Vec<String> {
        let (old, new) = (definition_with(&property(old)), definition_with(&property(new)));
        let told = crate::validate::update(&kind, None, &new, &old);
        told.iter().map(|error| error.detail.clone()).filter(|detail| !detail.is_empty()).collect()
    };
    let (fine, unknown, wrong) = (json!({"a": "x"}), json!({"a": "x", "b": 1}), json!({"a": 1}));
    assert_eq!(told(fine.clone(), fine.clone()), Vec::<String>::new());
    assert_eq!(told(fine.clone(), unknown.clone()), ["must not have unknown fields"]);
    assert_eq!(told(unknown.clone(), unknown), Vec::<String>::new());
    assert_eq!(told(fine, wrong), [r#"a in body must be of type string: "integer""#]);
}
