//! What users get for their mistakes.

use anyhow::{Result, ensure};
use e2e::{Space, text, yaml};

/// A manifest and what kubectl must say of it.
const MANIFESTS: &[(&str, &str)] = &[
    (
        "{apiVersion: v1, kind: Pod, metadata: {name: x}, spec: {containers: [{name: c, image: i, imagePolicy: Always}]}}",
        "unknown field \"spec.containers[0].imagePolicy\"",
    ),
    (
        "{apiVersion: v1, kind: Service, metadata: {name: x}, spec: {ports: [{port: eighty}]}}",
        "cannot unmarshal string into Go struct field ServicePort.spec.ports.port of type int32",
    ),
    (
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: Bad_Name}}",
        "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters",
    ),
    (
        "{apiVersion: apps/v1, kind: Deployment, metadata: {name: x}, spec: {template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}}",
        "spec.selector: Required value",
    ),
    (
        "{apiVersion: apps/v1, kind: Deployment, metadata: {name: x}, spec: {selector: {matchLabels: {a: c}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}}",
        "`selector` does not match template `labels`",
    ),
    (
        "{apiVersion: v1, kind: Service, metadata: {name: x}, spec: {type: NodePort, ports: [{port: 80, nodePort: 80}]}}",
        "The range of valid ports is 30000-32767",
    ),
    ("{apiVersion: v2, kind: Pod, metadata: {name: x}}", "no matches for kind \"Pod\" in version \"v2\""),
];

pub fn manifests(space: &Space<'_>) -> Result<()> {
    for (manifest, said) in MANIFESTS {
        for validate in ["--validate=strict", "--validate=false"] {
            let output = space.kubectl_with(&["apply", validate, "-f", "-"], &yaml(manifest), &[])?;
            // Without validation an unknown field is dropped with a warning, as upstream does.
            if validate == "--validate=false" && said.contains("unknown field") {
                ensure!(output.status.success(), "{}", text(&output.stderr));
                space.kubectl(&["delete", "pod", "x", "--now"])?;
                continue;
            }
            let words = text(&output.stderr);
            ensure!(
                !output.status.success() && words.contains(said),
                "{manifest}\n    wanted: {said}\n    said: {words}"
            );
        }
    }
    let absent = space.kubectl_fails(&["get", "pod", "nonesuch"])?;
    ensure!(absent.contains("Error from server (NotFound): pods \"nonesuch\" not found"), "{absent}");
    Ok(())
}
