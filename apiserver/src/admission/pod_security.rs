//! Pod security admission: pods against what their namespace enforces are refused, and templates are warned about.

use api::kind::Part;
use api::pod_security::{self, Level, Policy, Standard, evaluate};
use api::status::Status;
use async_trait::async_trait;
use serde_json::Value;

use super::{Cluster, Member, Review};

/// Whom and what pod security admission lets through unseen.
#[derive(Debug, Clone, Default)]
pub struct Exemptions {
    pub users: Vec<String>,
    pub namespaces: Vec<String>,
    pub runtime_classes: Vec<String>,
}

fn holds(list: &[String], name: &str) -> bool {
    !name.is_empty() && list.iter().any(|exempt| exempt == name)
}

#[derive(Debug)]
pub(super) struct PodSecurity;

#[async_trait]
impl Member for PodSecurity {
    fn concerns(&self, review: &Review<'_>) -> bool {
        let pods = review.target.kind.behaviour.pod.is_some();
        match review.target.part {
            None => pods || review.is_of("", "namespaces"),
            Some(Part::EphemeralContainers | Part::Resize) => pods,
            Some(_) => false,
        }
    }

    async fn validate(&self, cluster: Cluster<'_>, review: &Review<'_>) -> Result<Vec<String>, Status> {
        if review.is_of("", "namespaces") { check_namespace(cluster, review) } else { check(cluster, review) }
    }
}

/// Pods are held against what their namespace enforces, and templates of pods against what it warns of.
fn check(cluster: Cluster<'_>, review: &Review<'_>) -> Result<Vec<String>, Status> {
    let exempt = &cluster.settings.pod_security;
    let (new, kind, user) = (&review.object, &review.target.kind, &*review.context.user.name);
    if holds(&exempt.namespaces, review.namespace()) || holds(&exempt.users, user) {
        return Ok(Vec::new());
    }
    let Some((metadata, spec)) = pod_security::pod_of(kind, new) else {
        return Ok(Vec::new());
    };
    if holds(&exempt.runtime_classes, spec["runtimeClassName"].as_str().unwrap_or_default()) {
        return Ok(Vec::new());
    }
    let pods = kind.group.is_empty() && kind.plural == "pods";
    if pods && review.old.is_some_and(|old| !pod_security::is_significant(new, old)) {
        return Ok(Vec::new());
    }
    let policy = policy_of(cluster, review.namespace());
    if policy.is_privileged() {
        return Ok(Vec::new());
    }
    let told = |standard: Standard| {
        let found = evaluate(standard, metadata, spec);
        (!found.is_empty()).then(|| format!("{:?}: {}", standard.to_string(), pod_security::details(&found)))
    };
    if let Some(why) = told(policy.enforce).filter(|_| pods) {
        return Err(review.forbidden(&format!("violates PodSecurity {why}")));
    }
    if let Some(why) = told(policy.audit) {
        let (namespace, kind, name) = (review.namespace(), &*kind.kind, review.name());
        tracing::warn!(user, namespace, kind, name, "would violate PodSecurity {why}");
    }
    Ok(told(policy.warn).map(|why| format!("would violate PodSecurity {why}")).into_iter().collect())
}

fn policy_of(cluster: Cluster<'_>, namespace: &str) -> Policy {
    let found = cluster.reader.lookup("", "namespaces", "", namespace);
    found.map_or(Policy::DEFAULT, |found| Policy::of_labels(&found.value()["metadata"]["labels"]).0)
}

/// Labels that are wrong are refused when they are new; those that enforce more tell of pods that are there.
fn check_namespace(cluster: Cluster<'_>, review: &Review<'_>) -> Result<Vec<String>, Status> {
    let (policy, errors) = Policy::of_labels(&review.object["metadata"]["labels"]);
    let before = review.old.map(|old| Policy::of_labels(&old["metadata"]["labels"]));
    let name = review.name();
    if !errors.is_empty() && before.as_ref().is_none_or(|(_, known)| *known != errors) {
        return Err(Status::invalid("", "Namespace", name, errors));
    }
    let Some((before, _)) = before else { return Ok(Vec::new()) };
    let (now, was) = (policy.enforce, before.enforce);
    let exempt = &cluster.settings.pod_security;
    let relaxed = now.version == was.version && now.level <= was.level;
    if now.level == Level::Privileged || relaxed || holds(&exempt.namespaces, name) {
        return Ok(Vec::new());
    }
    let pods: Vec<Value> = cluster.reader.listed("", "pods", name).iter().map(|pod| pod.value()).collect();
    let class = |pod: &Value| pod["spec"]["runtimeClassName"].as_str().unwrap_or_default().to_owned();
    let seen = pods.iter().filter(|pod| !holds(&exempt.runtime_classes, &class(pod)));
    Ok(pod_security::about_existing(name, now, seen))
}
