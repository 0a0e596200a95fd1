//! Subresources that are not a slice of their object: scale, binding, eviction.

use api::conditions::{self, Condition};
use api::kind::Part;
use api::managed::{self, Conflicts, Writer};
use api::status::{Cause, FieldError, Status};
use api::uid::Uid;
use serde_json::{Value, json};

use super::delete::Reviewed;
use super::write::{Draft, Written};
use super::{Engine, Shown, deleting};
use crate::object::Revision;
use crate::request::{Context, DeleteOptions, Target, WriteOptions};

impl Engine {
    /// Changes an object through its Scale; the outcome is the Scale.
    ///
    /// # Errors
    /// Those of [`Engine::update`]; 400 for another name, 422 for negative replicas.
    pub async fn update_scale(
        &self,
        context: &Context,
        target: &Target,
        options: &WriteOptions,
        change: &(dyn Fn(&Value) -> Result<Value, Status> + Send + Sync),
    ) -> Result<Written, Status> {
        let through = |current: Option<&Value>| {
            let current = current.ok_or_else(|| target.not_found())?;
            let scale = change(&api::write::scale_of(&target.kind, current))?;
            check_scale(target, &scale)?;
            let mut next = current.clone();
            api::write::apply_scale(&target.kind, &mut next, &scale);
            match scale["metadata"]["resourceVersion"].as_str() {
                Some(version) if !version.is_empty() => next["metadata"]["resourceVersion"] = json!(version),
                _ => {}
            }
            Ok(Draft::Update(next))
        };
        let mut written = self.update(context, target, options, &through).await?;
        written.object = Shown::Value(api::write::scale_of(&target.kind, &written.object.into_value()));
        Ok(written)
    }

    /// Server-side apply of a Scale: what it owns of the object is its replicas.
    ///
    /// # Errors
    /// Those of [`Engine::update_scale`]; 400 for what is no Scale, 409 when others own the replicas and conflicts
    /// are refused.
    pub async fn apply_scale(
        &self,
        context: &Context,
        target: &Target,
        options: &WriteOptions,
        applied: &Value,
        conflicts: Conflicts,
    ) -> Result<Written, Status> {
        let kind = &target.kind;
        if (&applied["apiVersion"], &applied["kind"]) != (&json!("autoscaling/v1"), &json!("Scale")) {
            let text = |field: &str| applied[field].as_str().unwrap_or_default();
            return Err(Status::bad_request(format!(
                "invalid object type: {}, Kind={}",
                text("apiVersion"),
                text("kind")
            )));
        }
        let writer = Writer { manager: &options.manager, part: target.part, now: context.now };
        let apply = |live: Option<&Value>| {
            let live = live.ok_or_else(|| target.not_found())?;
            check_scale(target, applied)?;
            let mut config = json!({
                "apiVersion": kind.api_version(),
                "kind": kind.kind,
                "metadata": {"name": target.name, "namespace": target.namespace},
            });
            if let Some(replicas) = applied["spec"].get("replicas") {
                api::write::with_replicas(kind, &mut config, replicas.clone());
            }
            if let Some(version) = applied["metadata"].get("resourceVersion") {
                config["metadata"]["resourceVersion"] = version.clone();
            }
            managed::apply(kind, Some(live), &config, writer, conflicts).map(Draft::Apply)
        };
        let mut written = self.update(context, target, options, &apply).await?;
        written.object = Shown::Value(api::write::scale_of(&target.kind, &written.object.into_value()));
        Ok(written)
    }

    /// `pods/NAME/binding`, or a Binding by itself: gives the pod its node, once; the pod's new revision.
    ///
    /// # Errors
    /// 404 when the pod is not there; 409 Conflict when it is another, has a node or is being deleted; 500, as
    /// upstream, for a target that is no node; what admission says.
    pub async fn bind(
        &self,
        context: &Context,
        asked: &Target,
        options: &WriteOptions,
        binding: Value,
    ) -> Result<(Revision, Vec<String>), Status> {
        let (binding, warnings) = self.admit(context, asked, options, binding).await?;
        let node = binding["target"]["name"].as_str().unwrap_or_default();
        check_binding(&binding)?;
        let uid = Uid::of(&binding);
        let target = &self.bound_by(asked, &binding)?;
        let assign = |current: Option<&Value>| {
            let current = current.ok_or_else(|| target.not_found())?;
            if !uid.is_empty() && current["metadata"]["uid"] != uid {
                return Err(target.conflict("Precondition failed: the pod was replaced"));
            }
            if deleting(current) {
                return Err(
                    target.conflict(&format!("pod {} is being deleted, cannot be assigned to a host", target.name))
                );
            }
            if let Some(bound) = current["spec"]["nodeName"].as_str().filter(|bound| !bound.is_empty()) {
                return Err(Status::conflict(
                    "",
                    "pods/binding",
                    &target.name,
                    &format!("pod {} is already assigned to node \"{bound}\"", target.name),
                ));
            }
            Ok(Draft::Own(bound_pod(current, node, &binding, context)))
        };
        let written = self.update(context, target, options, &assign).await?;
        Ok((written.object.revision(), warnings))
    }

    fn bound_by(&self, asked: &Target, binding: &Value) -> Result<Target, Status> {
        if asked.part.is_some() {
            return Ok(asked.clone());
        }
        let pods = self.registry().find("", "v1", "pods").ok_or_else(Status::no_route)?;
        let name = binding["metadata"]["name"].as_str().unwrap_or_default();
        Ok(Target { part: Some(Part::Binding), ..Target::new(pods, &asked.namespace, name) })
    }

    /// `pods/NAME/eviction`: a deletion that respects disruption budgets.
    ///
    /// # Errors
    /// 429 TooManyRequests while a budget that selects the pod has no disruption to spare or is not counted yet: to be
    /// tried again. 403 for a budget that counts wrongly, 500 for more than one, 400 for another name. Else those of
    /// [`Engine::delete`].
    pub async fn evict(
        &self,
        context: &Context,
        asked: &Target,
        options: &WriteOptions,
        eviction: Value,
    ) -> Result<Vec<String>, Status> {
        let (eviction, mut warnings) = self.admit(context, asked, options, eviction).await?;
        let name = eviction["metadata"]["name"].as_str().unwrap_or_default();
        if name != asked.name {
            return Err(Status::bad_request("name in URL does not match name in Eviction object"));
        }
        let mut deletion = DeleteOptions::from_value(&eviction["deleteOptions"])?;
        deletion.dry_run |= options.dry_run;
        let target = Target { part: None, ..asked.clone() };
        let pod = self.find(&target)?.value();
        if let Some(budget) = self.check_budgets(&target, &pod)? {
            self.spend(context, &budget, &pod, &deletion).await?;
        }
        let removal = self.delete_as(context, &target, &deletion, Reviewed::Already).await?;
        warnings.extend(removal.warnings);
        Ok(warnings)
    }

    /// A running pod goes only while every budget that selects it has a disruption to spare.
    fn check_budgets(&self, target: &Target, pod: &Value) -> Result<Option<Target>, Status> {
        let pending = matches!(pod["status"]["phase"].as_str(), Some("Pending" | "Succeeded" | "Failed") | None);
        if pending || deleting(pod) {
            return Ok(None);
        }
        let registry = self.registry();
        let Some(kind) = registry.find("policy", "v1", "poddisruptionbudgets") else { return Ok(None) };
        let mut found = Vec::new();
        for budget in self.objects(&kind).list(&target.namespace).objects {
            let budget = budget.value();
            let selects = api::selector::Labels::from_object(&budget["spec"]["selector"])
                .is_ok_and(|labels| labels.matches_object(pod));
            if selects {
                found.push(budget);
            }
        }
        match found.as_slice() {
            [] => Ok(None),
            [budget] => {
                check_budget(budget)?;
                let name = budget["metadata"]["name"].as_str().unwrap_or_default();
                Ok(Some(Target { part: Some(Part::Status), ..Target::new(kind, &target.namespace, name) }))
            }
            _ => Err(Status::internal(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            )),
        }
    }

    /// Takes one disruption of a budget, so that the next eviction is not let through on the same count.
    async fn spend(
        &self,
        context: &Context,
        budget: &Target,
        pod: &Value,
        deletion: &DeleteOptions,
    ) -> Result<(), Status> {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        let take = |current: Option<&Value>| {
            let current = current.ok_or_else(|| budget.not_found())?;
            check_budget(current)?;
            let mut next = current.clone();
            let left = current["status"]["disruptionsAllowed"].as_i64().unwrap_or(0) - 1;
            next["status"]["disruptionsAllowed"] = json!(left);
            next["status"]["disruptedPods"][name] = json!(api::time::rfc3339(context.now));
            Ok(Draft::Own(next))
        };
        let options = WriteOptions { manager: "kube-apiserver".into(), dry_run: deletion.dry_run };
        self.update(context, budget, &options, &take).await.map(drop)
    }
}

/// Evicted pods that a budget's controller has not counted yet.
const DISRUPTED: usize = 2000;

fn check_budget(budget: &Value) -> Result<(), Status> {
    let status = &budget["status"];
    let number = |value: &Value| value.as_i64().unwrap_or(0);
    let name = budget["metadata"]["name"].as_str().unwrap_or_default();
    if number(&status["observedGeneration"]) < number(&budget["metadata"]["generation"]) {
        let why = format!("The disruption budget {name} is still being processed by the server.");
        let mut refused =
            Status::too_many_requests("Cannot evict pod as it would violate the pod's disruption budget.", 10);
        if let Some(details) = &mut refused.details {
            details.causes = vec![Cause { reason: "DisruptionBudget".into(), message: why, field: String::new() }];
        }
        return Err(refused);
    }
    let refused = |why: &str| Status::forbidden("policy", "poddisruptionbudgets", name, why);
    match number(&status["disruptionsAllowed"]) {
        negative if negative < 0 => Err(refused("pdb disruptions allowed is negative")),
        _ if status["disruptedPods"].as_object().is_some_and(|pods| pods.len() > DISRUPTED) => {
            Err(refused("DisruptedPods map too big - too many evictions not confirmed by PDB controller"))
        }
        0 => Err(budget_refusal(budget)),
        _ => Ok(()),
    }
}

fn budget_refusal(budget: &Value) -> Status {
    let name = budget["metadata"]["name"].as_str().unwrap_or_default();
    let count = |field: &str| budget["status"][field].as_i64().unwrap_or(0);
    let mut status = Status::too_many_requests("Cannot evict pod as it would violate the pod's disruption budget.", 0);
    if let Some(details) = &mut status.details {
        details.retry_after_seconds = None;
        details.causes = vec![Cause {
            reason: "DisruptionBudget".into(),
            message: format!(
                "The disruption budget {name} needs {} healthy pods and has {} currently",
                count("desiredHealthy"),
                count("currentHealthy")
            ),
            field: String::new(),
        }];
    }
    status
}

fn check_scale(target: &Target, scale: &Value) -> Result<(), Status> {
    let name = scale["metadata"]["name"].as_str().unwrap_or_default();
    if name != target.name {
        let why = format!("the name of the object ({name}) does not match the name on the URL ({})", target.name);
        return Err(Status::bad_request(why));
    }
    match scale["spec"]["replicas"].as_i64() {
        // What a definition says of its replicas is told by its own checks.
        Some(negative) if negative < 0 && target.kind.custom.is_none() => {
            let error = FieldError::invalid("spec.replicas", negative, "must be greater than or equal to 0");
            Err(Status::invalid("autoscaling", "Scale", &target.name, vec![error]))
        }
        _ => Ok(()),
    }
}

fn check_binding(binding: &Value) -> Result<(), Status> {
    let mut errors = Vec::new();
    let kind = binding["target"]["kind"].as_str().unwrap_or_default();
    if !matches!(kind, "" | "Node") {
        errors.push(FieldError::not_supported("target.kind", kind, &["Node", "<empty>"]));
    }
    if binding["target"]["name"].as_str().unwrap_or_default().is_empty() {
        errors.push(FieldError::required("target.name", ""));
    }
    match errors.as_slice() {
        [] => Ok(()),
        // Upstream passes these on as they are.
        [one] => Err(Status::unknown(one.to_string())),
        many => {
            Err(Status::unknown(format!("[{}]", many.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))))
        }
    }
}

fn bound_pod(current: &Value, node: &str, binding: &Value, context: &Context) -> Value {
    let mut pod = current.clone();
    pod["spec"]["nodeName"] = json!(node);
    for (key, value) in binding["metadata"]["annotations"].as_object().into_iter().flatten() {
        pod["metadata"]["annotations"][key] = value.clone();
    }
    let now = api::time::rfc3339(context.now);
    let scheduled = [Condition::new("PodScheduled", true)];
    let stored = &current["status"]["conditions"];
    pod["status"]["conditions"] = json!(conditions::merge(stored, &[], &scheduled, conditions::OF_PODS, &now));
    pod
}
