//! Nobody grants permissions that they do not hold: what writes of roles and bindings are held against.

use api::status::Status;
use serde_json::{Value, json};

use super::{Attributes, Authorizer, RBAC, Role, Rule};
use crate::identity::User;
use crate::reader::Reader;
use crate::request::Target;

/// What the garbage collector changes of an object, and what follows from it.
const COLLECTORS: [&str; 4] = ["ownerReferences", "finalizers", "selfLink", "managedFields"];
/// Of a role that is held against what its author holds.
const PERMISSIONS: usize = 10_000;

/// Somebody's write of a role or binding.
struct Grant<'a> {
    user: &'a User,
    target: &'a Target,
    object: &'a Value,
    old: Option<&'a Value>,
}

impl Authorizer {
    /// Nobody grants permissions that they do not hold, unless they may `escalate` (roles) or `bind` (bindings).
    ///
    /// Every change is looked at but the garbage collector's, not only that of rules: a label may have another role take
    /// the rules over.
    pub(crate) fn check_escalation(
        &self,
        reader: &Reader,
        user: &User,
        target: &Target,
        object: &Value,
        old: Option<&Value>,
    ) -> Result<(), Status> {
        let collected = old.is_some_and(|old| only_collected(object, old));
        if *target.kind.group != *RBAC || collected || user.is_master() {
            return Ok(());
        }
        let grant = Grant { user, target, object, old };
        if self.allows(reader, user, &grant.permission()) {
            return Ok(());
        }
        self.check_held(reader, &grant, &grant.rules(reader)?)?;
        // What it selects, or will, nobody knows: only who has everything may touch it.
        if grant.aggregates() && self.check_held(reader, &grant, &full_authority()).is_err() {
            return Err(grant.refused("must have cluster-admin privileges to use the aggregationRule"));
        }
        Ok(())
    }

    fn check_held(&self, reader: &Reader, grant: &Grant<'_>, granted: &[Rule]) -> Result<(), Status> {
        // Each single permission is looked at: a role of a few lists may stand for billions.
        if granted.iter().map(Rule::permissions).fold(0, usize::saturating_add) > PERMISSIONS {
            return Err(grant.refused(&format!(
                "a role that grants more than {PERMISSIONS} single permissions can only be granted by who may escalate or bind"
            )));
        }
        let own = self.rules(reader, grant.user, &grant.target.namespace);
        let missing: Vec<Rule> = granted.iter().flat_map(|rule| uncovered(rule, &own)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let shown: Vec<String> = missing.iter().map(show).collect();
        let User { name, groups, .. } = grant.user;
        let groups = groups.iter().map(|group| format!("{group:?}")).collect::<Vec<_>>().join(" ");
        Err(grant.refused(&format!(
            "user {name:?} (groups=[{groups}]) is attempting to grant RBAC permissions not currently held:\n{}",
            shown.join("\n")
        )))
    }
}

impl Grant<'_> {
    fn name(&self) -> &str {
        self.object["metadata"]["name"].as_str().unwrap_or_default()
    }

    /// What a binding binds: the kind's plural, and the name.
    fn bound(&self) -> Option<(&'static str, &str)> {
        let role = self.object.get("roleRef")?;
        let plural = if role["kind"] == "ClusterRole" { "clusterroles" } else { "roles" };
        Some((plural, role["name"].as_str().unwrap_or_default()))
    }

    /// Whoever has it may grant whatever.
    fn permission(&self) -> Attributes {
        let (verb, (resource, name)) = match self.bound() {
            Some(role) => ("bind", role),
            None => ("escalate", (&*self.target.kind.plural, self.name())),
        };
        Attributes {
            verb: verb.into(),
            group: RBAC.into(),
            resource: resource.into(),
            namespace: self.target.namespace.clone(),
            name: name.into(),
            ..Attributes::default()
        }
    }

    /// What is granted. Whoever cannot be told it is not let grant it.
    fn rules(&self, reader: &Reader) -> Result<Vec<Rule>, Status> {
        if let Some((plural, name)) = self.bound() {
            let namespace = if plural == "clusterroles" { "" } else { &*self.target.namespace };
            let found = reader.lookup(RBAC, plural, namespace, name);
            let found = found.ok_or_else(|| Status::not_found(RBAC, plural, name))?;
            return Ok(api::view::decode::<Role>(&found.json).map_err(Status::internal)?.rules);
        }
        let rules = Some(&self.object["rules"]).filter(|rules| !rules.is_null()).cloned().unwrap_or_else(|| json!([]));
        serde_json::from_value(rules).map_err(|why| Status::bad_request(format!("rules cannot be read: {why}")))
    }

    /// It takes its rules over from others, or did.
    fn aggregates(&self) -> bool {
        [Some(self.object), self.old].into_iter().flatten().any(|role| {
            role["aggregationRule"]["clusterRoleSelectors"].as_array().is_some_and(|selectors| !selectors.is_empty())
        })
    }

    fn refused(&self, why: &str) -> Status {
        Status::forbidden(RBAC, &self.target.kind.plural, self.name(), why)
    }
}

/// Nothing changes but what the garbage collector has to change for an object to go.
fn only_collected(object: &Value, old: &Value) -> bool {
    let without = |object: &Value| {
        let mut object = object.clone();
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.retain(|field, _| !COLLECTORS.contains(&&**field));
        }
        object
    };
    without(object) == without(old)
}

fn full_authority() -> Vec<Rule> {
    let all = || vec!["*".to_owned()];
    vec![
        Rule { verbs: all(), api_groups: all(), resources: all(), ..Rule::default() },
        Rule { verbs: all(), non_resource_urls: all(), ..Rule::default() },
    ]
}

/// The single permissions of `rule` that none of `own` covers, joined per group and resource.
fn uncovered(rule: &Rule, own: &[Rule]) -> Vec<Rule> {
    let mut missing: Vec<Rule> = Vec::new();
    for single in rule.split().into_iter().filter(|single| !own.iter().any(|rule| rule.covers(single))) {
        let urls: Vec<String> = single.path.clone().into_iter().collect();
        let resources = if urls.is_empty() { vec![single.full_resource()] } else { Vec::new() };
        let groups = if urls.is_empty() { vec![single.group.clone()] } else { Vec::new() };
        let names: Vec<String> = Some(single.name.clone()).filter(|name| !name.is_empty()).into_iter().collect();
        match missing.iter_mut().find(|m| {
            m.resources == resources
                && m.api_groups == groups
                && m.resource_names == names
                && m.non_resource_urls == urls
        }) {
            Some(known) => known.verbs.push(single.verb),
            None => missing.push(Rule {
                verbs: vec![single.verb],
                api_groups: groups,
                resources,
                resource_names: names,
                non_resource_urls: urls,
            }),
        }
    }
    missing
}

/// A rule as the refusal prints it.
fn show(rule: &Rule) -> String {
    let list = |items: &[String]| items.iter().map(|item| format!("{item:?}")).collect::<Vec<_>>().join(" ");
    let mut parts = Vec::new();
    for (name, items) in [
        ("NonResourceURLs", &rule.non_resource_urls),
        ("APIGroups", &rule.api_groups),
        ("Resources", &rule.resources),
        ("ResourceNames", &rule.resource_names),
        ("Verbs", &rule.verbs),
    ] {
        if !items.is_empty() {
            parts.push(format!("{name}:[{}]", list(items)));
        }
    }
    format!("{{{}}}", parts.join(", "))
}

impl Rule {
    /// How many single permissions a rule stands for.
    fn permissions(&self) -> usize {
        let resources = self.api_groups.len().saturating_mul(self.resources.len());
        let named = resources.saturating_mul(self.resource_names.len().max(1));
        self.verbs.len().saturating_mul(self.non_resource_urls.len().saturating_add(named))
    }

    /// The single permissions of a rule.
    fn split(&self) -> Vec<Attributes> {
        let names = if self.resource_names.is_empty() { vec![String::new()] } else { self.resource_names.clone() };
        let mut all = Vec::new();
        for verb in &self.verbs {
            for path in &self.non_resource_urls {
                all.push(Attributes { verb: verb.clone(), path: Some(path.clone()), ..Attributes::default() });
            }
            for group in &self.api_groups {
                for resource in &self.resources {
                    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
                    all.extend(names.iter().map(|name| Attributes {
                        verb: verb.clone(),
                        group: group.clone(),
                        resource: resource.into(),
                        subresource: subresource.into(),
                        name: name.clone(),
                        ..Attributes::default()
                    }));
                }
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::rule;
    use super::*;

    /// Nothing of that kind comes through the API; the store is older than any of its checks.
    #[tokio::test]
    async fn rules_that_cannot_be_read_are_not_let_grant() {
        let folder = tempfile::tempdir().unwrap();
        let config = crate::server::Config::on_loopback(folder.path().join("store.redb"));
        let server = crate::server::Server::open(&config, std::sync::Arc::new(crate::nodes::NoNodes)).await.unwrap();
        let engine = &server.shared().engine;
        let target = Target::new(engine.registry().find(RBAC, "v1", "roles").unwrap(), "default", "odd");
        let eve = User::new("eve", &[]);
        let refused = |rules: Value| {
            engine.authorizer.check_escalation(
                engine,
                &eve,
                &target,
                &json!({"metadata": {"name": "odd"}, "rules": rules}),
                None,
            )
        };
        for rules in [json!([{"verbs": 7}]), json!("none"), json!([{"verbs": ["get"], "apiGroups": [null]}])] {
            assert_eq!(refused(rules.clone()).unwrap_err().code, 400, "{rules}");
        }
        refused(json!([])).unwrap();
    }

    #[test]
    fn only_the_collectors_fields_change_unseen() {
        let old = json!({"metadata": {"name": "a", "finalizers": ["x"]}, "rules": []});
        let changed = |metadata: Value| only_collected(&json!({"metadata": metadata, "rules": []}), &old);
        assert!(changed(json!({"name": "a", "ownerReferences": [{"uid": "u"}], "managedFields": [{}]})));
        assert!(!changed(json!({"name": "a", "finalizers": ["x"], "labels": {"to": "view"}})));
    }

    #[test]
    fn permissions_are_counted_before_they_are_made() {
        let many = |count: usize| (0..count).map(|i| i.to_string()).collect::<Vec<_>>();
        let rule = Rule { verbs: many(1000), api_groups: many(1000), resources: many(1000), ..Rule::default() };
        assert_eq!(
            (rule.permissions(), self::rule(&["get", "list"], &["pods"], &[]).permissions()),
            (1_000_000_000, 2)
        );
        let most = Rule {
            verbs: many(9),
            api_groups: many(9),
            resources: many(9),
            resource_names: many(2),
            ..Rule::default()
        };
        assert_eq!(most.permissions(), most.split().len());
    }

    #[test]
    fn what_is_not_held_is_listed() {
        let own = [rule(&["get"], &["pods"], &[])];
        let missing = uncovered(&rule(&["get", "list"], &["pods", "secrets"], &[]), &own);
        let shown: Vec<_> = missing.iter().map(show).collect();
        assert_eq!(
            shown,
            [
                "{APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\" \"list\"]}",
                "{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"list\"]}"
            ]
        );
    }
}
