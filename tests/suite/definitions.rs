//! Kinds that users define, and the oldest kind that keeps pods.

use anyhow::{Result, ensure};
use e2e::{Space, until};

const DEFINITION: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: shops.e2e.example.com}
spec:
  group: e2e.example.com
  scope: Namespaced
  names: {plural: shops, singular: shop, kind: Shop, listKind: ShopList, shortNames: [sh]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    additionalPrinterColumns: [{name: Sells, type: string, jsonPath: .spec.sells}]
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec: {type: object, required: [sells], properties: {sells: {type: string}, open: {type: boolean, default: true}}}
";

const CONTROLLER: &str = "
apiVersion: v1
kind: ReplicationController
metadata: {name: kept}
spec:
  replicas: 2
  template:
    metadata: {labels: {app: kept}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: 'busybox:latest', command: [sleep, '1000']}]}
";

pub fn defined(space: &Space<'_>) -> Result<()> {
    space.apply_text(DEFINITION)?;
    space.kubectl(&["wait", "--for=condition=Established", "crd/shops.e2e.example.com", "--timeout=30s"])?;
    let shop = |name: &str, more: &str| {
        format!(
            "{{apiVersion: e2e.example.com/v1, kind: Shop, metadata: {{name: {name}{more}}}, spec: {{sells: tea}}}}"
        )
    };
    space.apply_text(&shop("owner", ""))?;
    let shown = space.kubectl(&["get", "sh"])?;
    ensure!(shown.contains("SELLS") && shown.contains("tea"), "{shown}");
    ensure!(space.get(&["shop", "owner"], "{.spec.open}")? == "true", "its default is not filled in");
    let uid = space.get(&["shop", "owner"], "{.metadata.uid}")?;
    let owned = format!(", ownerReferences: [{{apiVersion: e2e.example.com/v1, kind: Shop, name: owner, uid: {uid}}}]");
    space.apply_text(&shop("branch", &owned))?;
    space.kubectl(&["delete", "shop", "owner", "--timeout=30s"])?;
    until("what a deleted object owned goes too", || {
        Ok(!space.try_kubectl(&["get", "shop", "branch"])?.status.success())
    })?;
    // It goes with its definition.
    space.apply_text(&shop("last", ""))?;
    space.kubectl(&["delete", "crd", "shops.e2e.example.com", "--timeout=60s"])?;
    let gone = space.kubectl_fails(&["get", "shops.e2e.example.com"])?;
    ensure!(gone.contains("the server doesn't have a resource type"), "{gone}");
    Ok(())
}

pub fn replicated(space: &Space<'_>) -> Result<()> {
    space.apply_text(CONTROLLER)?;
    let ready = |count: &str| {
        let count = format!("--for=jsonpath={{.status.readyReplicas}}={count}");
        space.kubectl(&["wait", &count, "rc/kept", "--timeout=60s"])
    };
    ready("2")?;
    space.kubectl(&["scale", "rc", "kept", "--replicas=3"])?;
    ready("3")?;
    space.kubectl(&["delete", "rc", "kept", "--cascade=orphan", "--timeout=30s"])?;
    ensure!(space.count("pods", "app=kept")? == 3, "pods went with what only kept them");
    Ok(())
}
