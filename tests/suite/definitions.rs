//! Kinds that users define, and the oldest kind that keeps pods: in a namespace of their own.

use anyhow::{Result, ensure};
use e2e::Cluster;

const SPACE: &str = "--namespace=definitions";

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
metadata: {name: kept, namespace: definitions}
spec:
  replicas: 2
  template:
    metadata: {labels: {app: kept}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: 'busybox:latest', command: [sleep, '1000']}]}
";

pub fn all(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["create", "namespace", "definitions"])?;
    defined(cluster)?;
    replicated(cluster)?;
    cluster.kubectl(&["delete", "namespace", "definitions", "--timeout=60s"])?;
    cluster.kubectl(&["delete", "crd", "shops.e2e.example.com", "--timeout=60s"])?;
    let gone = cluster.try_kubectl(&["get", "shops"])?;
    ensure!(!gone.status.success(), "a kind that is no longer defined is served");
    Ok(())
}

fn defined(cluster: &Cluster) -> Result<()> {
    cluster.apply_text(DEFINITION)?;
    cluster.kubectl(&["wait", "--for=condition=Established", "crd/shops.e2e.example.com", "--timeout=30s"])?;
    let shop = |name: &str, more: &str| {
        format!(
            "{{apiVersion: e2e.example.com/v1, kind: Shop, metadata: {{name: {name}, namespace: definitions{more}}}, spec: {{sells: tea}}}}"
        )
    };
    cluster.apply_text(&shop("owner", ""))?;
    let shown = cluster.kubectl(&[SPACE, "get", "sh"])?;
    ensure!(shown.contains("SELLS") && shown.contains("tea"), "{shown}");
    let uid = cluster.get(&[SPACE, "shop", "owner"], "{.metadata.uid}")?;
    let owned = format!(", ownerReferences: [{{apiVersion: e2e.example.com/v1, kind: Shop, name: owner, uid: {uid}}}]");
    cluster.apply_text(&shop("branch", &owned))?;
    cluster.kubectl(&[SPACE, "delete", "shop", "owner", "--timeout=30s"])?;
    cluster.until("what a deleted object owned goes too", |cluster| {
        Ok(!cluster.try_kubectl(&[SPACE, "get", "shop", "branch"])?.status.success())
    })?;
    // It goes with its namespace.
    cluster.apply_text(&shop("last", "")).map(drop)
}

fn replicated(cluster: &Cluster) -> Result<()> {
    cluster.apply_text(CONTROLLER)?;
    cluster.kubectl(&[SPACE, "wait", "--for=jsonpath={.status.readyReplicas}=2", "rc/kept", "--timeout=60s"])?;
    cluster.kubectl(&[SPACE, "scale", "rc", "kept", "--replicas=3"])?;
    cluster.kubectl(&[SPACE, "wait", "--for=jsonpath={.status.readyReplicas}=3", "rc/kept", "--timeout=60s"])?;
    cluster.kubectl(&[SPACE, "delete", "rc", "kept", "--cascade=orphan", "--timeout=30s"])?;
    let left = cluster.kubectl(&[SPACE, "get", "pods", "-l", "app=kept", "-o", "name"])?;
    ensure!(left.lines().count() == 3, "pods went with what only kept them: {left}");
    Ok(())
}
