//! Pod security admission: pods against what their namespace enforces are refused, and templates are warned about.

use api::kind::Part;
use api::pod_security::{self, Level, Policy, Standard, evaluate};
use api::status::Status;
use serde_json::Value;

use super::super::{Context, Engine, Target};

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

impl Engine {
    /// Looks at a finished object; gives warnings, or a refusal.
    pub(crate) fn check_pod_security(
        &self,
        context: &Context,
        target: &Target,
        new: &Value,
        old: Option<&Value>,
    ) -> Result<Vec<String>, Status> {
        let kind = &target.kind;
        if kind.group.is_empty() && kind.plural == "namespaces" {
            return self.check_namespace_policy(target, new, old);
        }
        let pods = kind.group.is_empty() && kind.plural == "pods";
        let seen = match target.part {
            None => true,
            Some(Part::EphemeralContainers | Part::Resize) => pods,
            Some(_) => false,
        };
        let exempt = &self.settings.pod_security;
        if !seen || holds(&exempt.namespaces, &target.namespace) || holds(&exempt.users, &context.user.name) {
            return Ok(Vec::new());
        }
        let Some((metadata, spec)) = pod_security::pod_of(kind, new) else {
            return Ok(Vec::new());
        };
        if holds(&exempt.runtime_classes, spec["runtimeClassName"].as_str().unwrap_or_default()) {
            return Ok(Vec::new());
        }
        if pods && old.is_some_and(|old| !pod_security::is_significant(new, old)) {
            return Ok(Vec::new());
        }
        let policy = self.policy_of(&target.namespace);
        if policy.is_privileged() {
            return Ok(Vec::new());
        }
        let told = |standard: Standard| {
            let found = evaluate(standard, metadata, spec);
            (!found.is_empty()).then(|| format!("{:?}: {}", standard.to_string(), pod_security::details(&found)))
        };
        if let Some(why) = told(policy.enforce).filter(|_| pods) {
            return Err(target.forbidden_named(new, &format!("violates PodSecurity {why}")));
        }
        if let Some(why) = told(policy.audit) {
            let (user, namespace) = (&*context.user.name, &*target.namespace);
            let (kind, name) = (&*kind.kind, new["metadata"]["name"].as_str().unwrap_or_default());
            tracing::warn!(user, namespace, kind, name, "would violate PodSecurity {why}");
        }
        Ok(told(policy.warn).map(|why| format!("would violate PodSecurity {why}")).into_iter().collect())
    }

    fn policy_of(&self, namespace: &str) -> Policy {
        let found = self.lookup("", "namespaces", "", namespace);
        found.map_or(Policy::DEFAULT, |found| Policy::of_labels(&found.value()["metadata"]["labels"]).0)
    }

    /// Labels that are wrong are refused when they are new; those that enforce more tell of pods that are there.
    fn check_namespace_policy(&self, target: &Target, new: &Value, old: Option<&Value>) -> Result<Vec<String>, Status> {
        if target.part.is_some() {
            return Ok(Vec::new());
        }
        let (policy, errors) = Policy::of_labels(&new["metadata"]["labels"]);
        let before = old.map(|old| Policy::of_labels(&old["metadata"]["labels"]));
        let name = new["metadata"]["name"].as_str().unwrap_or_default();
        if !errors.is_empty() && before.as_ref().is_none_or(|(_, known)| *known != errors) {
            return Err(Status::invalid("", "Namespace", name, errors));
        }
        let Some((before, _)) = before else { return Ok(Vec::new()) };
        let (now, was) = (policy.enforce, before.enforce);
        let relaxed = now.version == was.version && now.level <= was.level;
        if now.level == Level::Privileged || relaxed || holds(&self.settings.pod_security.namespaces, name) {
            return Ok(Vec::new());
        }
        let pods: Vec<Value> = match self.registry().find("", "v1", "pods") {
            Some(kind) => self.all(&kind, name).iter().map(|pod| pod.value()).collect(),
            None => Vec::new(),
        };
        let classes = &self.settings.pod_security.runtime_classes;
        let seen =
            pods.iter().filter(|pod| !holds(classes, pod["spec"]["runtimeClassName"].as_str().unwrap_or_default()));
        Ok(pod_security::about_existing(name, now, seen))
    }
}
