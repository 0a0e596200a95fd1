//! Aggregated ClusterRoles: one with an `aggregationRule` has the rules of all that its selectors choose, and keeps them.
//!
//! Here and not among the controllers, because whoever is granted `view`, `edit` or `admin` has to have it from the first
//! request on. The task sleeps until a ClusterRole changes.

use std::sync::Arc;

use api::selector::Labels;
use api::status::Status;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::engine::{Context, Draft, Engine, Target, WriteOptions};
use crate::identity::{MASTERS, User};

const MANAGER: &str = "clusterrole-aggregation-controller";
/// Aggregated roles may be made of aggregated roles; as deep as this in one go.
const DEPTH: usize = 8;

/// Brings aggregated roles up to date whenever a role changes, until told to stop.
pub async fn run(engine: Arc<Engine>, stop: CancellationToken) {
    let Some(kind) = engine.registry().find("rbac.authorization.k8s.io", "v1", "clusterroles") else { return };
    let mut changes = engine.objects(&kind).subscribe();
    loop {
        changes.borrow_and_update();
        if let Err(status) = aggregate(&engine).await {
            tracing::warn!(%status, "aggregated roles are not up to date; they are looked at again with the next change");
        }
        match stop.run_until_cancelled(changes.changed()).await {
            Some(Ok(())) => {}
            _ => return,
        }
    }
}

/// Writes the rules of every aggregated role that has others than it should.
pub async fn aggregate(engine: &Engine) -> Result<(), Status> {
    for _ in 0..DEPTH {
        let outdated = outdated(engine);
        if outdated.is_empty() {
            break;
        }
        for (target, rules) in outdated {
            write(engine, &target, &rules).await?;
        }
    }
    Ok(())
}

async fn write(engine: &Engine, target: &Target, rules: &Value) -> Result<(), Status> {
    let user = User::new("system:serviceaccount:kube-system:clusterrole-aggregation-controller", &[MASTERS]);
    let context = Context { user, now: jiff::Timestamp::now() };
    let options = WriteOptions { manager: MANAGER.into(), dry_run: false };
    let change = |current: Option<&Value>| {
        let mut next = current.ok_or_else(|| target.not_found())?.clone();
        next["rules"] = rules.clone();
        Ok(Draft::Update(next))
    };
    match engine.update(&context, target, &options, &change).await {
        // It went meanwhile.
        Err(status) if status.code == 404 => Ok(()),
        outcome => outcome.map(drop),
    }
}

fn outdated(engine: &Engine) -> Vec<(Target, Value)> {
    let Some(kind) = engine.registry().find("rbac.authorization.k8s.io", "v1", "clusterroles") else {
        return Vec::new();
    };
    let roles: Vec<Value> = engine.all(&kind, "").iter().map(|role| role.value()).collect();
    let wanted = roles.iter().filter_map(|role| Some((role, rules_of(role, &roles)?)));
    let differing = wanted.filter(|(role, rules)| !same(&role["rules"], rules));
    let name = |role: &Value| role["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    differing.map(|(role, rules)| (Target::new(kind.clone(), "", &name(role)), rules)).collect()
}

/// No rules are an empty list or none.
fn same(one: &Value, other: &Value) -> bool {
    let list = |rules: &Value| rules.as_array().cloned().unwrap_or_default();
    list(one) == list(other)
}

/// The rules that an aggregated role should have; `None` for every other role.
fn rules_of(role: &Value, roles: &[Value]) -> Option<Value> {
    let selectors = role["aggregationRule"]["clusterRoleSelectors"].as_array()?;
    // A selector that cannot be read chooses nothing.
    let selectors: Vec<Labels> = selectors.iter().filter_map(|selector| Labels::from_object(selector).ok()).collect();
    let name = &role["metadata"]["name"];
    let mut rules: Vec<Value> = Vec::new();
    for selector in selectors {
        // Roles come in the order of their names.
        let chosen = roles.iter().filter(|other| other["metadata"]["name"] != *name && selector.matches_object(other));
        for rule in chosen.flat_map(|other| other["rules"].as_array().into_iter().flatten()) {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    Some(json!(rules))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_chosen_roles_are_joined_once_each() {
        let role = |name: &str, labels: Value, rules: Value| json!({"metadata": {"name": name, "labels": labels}, "rules": rules});
        let sum = json!({"metadata": {"name": "sum", "labels": {"to": "sum"}}, "rules": null,
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to": "sum"}}, {"matchLabels": {"also": "1"}}]}});
        let roles = [
            role("a", json!({"to": "sum"}), json!([{"verbs": ["get"]}])),
            role("b", json!({"to": "sum", "also": "1"}), json!([{"verbs": ["get"]}, {"verbs": ["list"]}])),
            role("c", json!({}), json!([{"verbs": ["*"]}])),
            sum.clone(),
        ];
        assert_eq!(rules_of(&sum, &roles), Some(json!([{"verbs": ["get"]}, {"verbs": ["list"]}])));
        assert_eq!(rules_of(&roles[0], &roles), None);
    }
}
