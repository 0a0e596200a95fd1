//! A person is given a certificate, as a cluster's administrator gives one.

use anyhow::{Result, ensure};
use e2e::{Space, text, until};
use rcgen::{CertificateParams, DnType, KeyPair};

pub fn given(space: &Space<'_>) -> Result<()> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "e2e-jane");
    params.distinguished_name.push(DnType::OrganizationName, "e2e-readers");
    let request = base64(params.serialize_request(&key)?.pem()?.as_bytes());
    space.apply_text(&format!(
        "{{apiVersion: certificates.k8s.io/v1, kind: CertificateSigningRequest, metadata: {{name: e2e-jane}}, spec: {{request: {request}, signerName: kubernetes.io/kube-apiserver-client, expirationSeconds: 3600, usages: [client auth]}}}}"
    ))?;
    let shown = space.kubectl(&["get", "csr", "e2e-jane"])?;
    ensure!(shown.contains("60m") && shown.contains("Pending"), "{shown}");
    space.kubectl(&["certificate", "approve", "e2e-jane"])?;
    until("the certificate is there", || Ok(space.kubectl(&["get", "csr", "e2e-jane"])?.contains("Approved,Issued")))?;
    let folder = tempfile::tempdir()?;
    let place = |name: &str| folder.path().join(name).display().to_string();
    let template = "go-template={{.status.certificate | base64decode}}";
    std::fs::write(place("cert"), space.kubectl(&["get", "csr", "e2e-jane", "-o", template])?)?;
    std::fs::write(place("key"), key.serialize_pem())?;
    let (cert, key) = (format!("--client-certificate={}", place("cert")), format!("--client-key={}", place("key")));
    // The kubeconfig has its owner's within, which go before files.
    let settings = space.kubectl(&["config", "view", "--raw", "-o", "json"])?;
    let mut settings: serde_json::Value = serde_json::from_str(&settings)?;
    settings["users"] = serde_json::json!([{"name": settings["users"][0]["name"], "user": {}}]);
    std::fs::write(place("config"), settings.to_string())?;
    let config = format!("--kubeconfig={}", place("config"));
    let refused = space.kubectl_fails(&[&config, &cert, &key, "get", "pods"])?;
    ensure!(refused.contains("User \"e2e-jane\" cannot list resource \"pods\""), "{refused}");
    space.kubectl(&["create", "rolebinding", "readers", "--clusterrole=view", "--group=e2e-readers"])?;
    let seen = space.try_kubectl(&[&config, &cert, &key, "get", "pods"])?;
    ensure!(seen.status.success(), "{}", text(&seen.stderr));
    space.kubectl(&["delete", "csr", "e2e-jane"]).map(drop)
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::prelude::BASE64_STANDARD.encode(bytes)
}
