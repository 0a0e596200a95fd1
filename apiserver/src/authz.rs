//! Who may do what: RBAC over the stored roles, and what a node's agent may touch beyond it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use api::status::Status;
use serde::Deserialize;

use crate::identity::User;
use crate::object::Collection;
use crate::reader::Reader;
use crate::request::Target;

mod escalation;
mod node;

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub struct Attributes {
    pub verb: String,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    /// The node whose pods a list or watch selects, if it selects one.
    pub node_name: Option<String>,
    /// A path that is no resource; the fields above but `verb` are then empty.
    pub path: Option<String>,
}

impl Attributes {
    /// An object of the API; the verb is left to the caller.
    pub fn of(target: &Target) -> Self {
        Self {
            group: target.kind.group.to_string(),
            resource: target.kind.plural.to_string(),
            subresource: target.part.map_or_else(String::new, |part| part.name().into()),
            namespace: target.namespace.clone(),
            name: target.name.clone(),
            ..Self::default()
        }
    }

    fn full_resource(&self) -> String {
        match &*self.subresource {
            "" => self.resource.clone(),
            subresource => format!("{}/{subresource}", self.resource),
        }
    }

    /// The sentence of a refusal.
    pub fn refusal(&self, user: &User) -> String {
        let (name, verb) = (&user.name, &self.verb);
        if let Some(path) = &self.path {
            return format!("User \"{name}\" cannot {verb} path \"{path}\"");
        }
        let place = match &*self.namespace {
            "" => "at the cluster scope".to_owned(),
            namespace => format!("in the namespace \"{namespace}\""),
        };
        format!(
            "User \"{name}\" cannot {verb} resource \"{}\" in API group \"{}\" {place}",
            self.full_resource(),
            self.group
        )
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    pub verbs: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty")]
    pub non_resource_urls: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Role {
    metadata: api::view::Meta,
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Binding {
    metadata: api::view::Meta,
    subjects: Vec<Subject>,
    role_ref: RoleRef,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Subject {
    kind: String,
    name: String,
    namespace: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct RoleRef {
    kind: String,
    name: String,
}

/// The stored roles and bindings, decoded once per change of any of them.
#[derive(Debug, Default)]
struct Policy {
    cluster_roles: HashMap<String, Vec<Rule>>,
    roles: HashMap<(String, String), Vec<Rule>>,
    cluster_bindings: Vec<Binding>,
    bindings: HashMap<String, Vec<Binding>>,
}

const RBAC: &str = "rbac.authorization.k8s.io";
const PARTS: [&str; 4] = ["clusterroles", "roles", "clusterrolebindings", "rolebindings"];

/// Keeps the decoded policy of one server.
#[derive(Default)]
pub struct Authorizer {
    policy: Mutex<([u64; 4], Arc<Policy>)>,
}

impl Authorizer {
    /// # Errors
    /// 403 with upstream's sentence.
    pub fn check(&self, reader: &Reader, user: &User, asked: &Attributes) -> Result<(), Status> {
        let Err(why) = self.judge(reader, user, asked) else { return Ok(()) };
        let mut refusal = asked.refusal(user);
        if !why.is_empty() {
            refusal += &format!(": {why}");
        }
        Err(Status::forbidden(&asked.group, &asked.resource, &asked.name, &refusal))
    }

    pub fn allows(&self, reader: &Reader, user: &User, asked: &Attributes) -> bool {
        self.decide(reader, user, asked).is_some()
    }

    /// Why it is allowed (empty for masters, who need no reason), or `None`.
    pub fn decide(&self, reader: &Reader, user: &User, asked: &Attributes) -> Option<String> {
        self.judge(reader, user, asked).ok()
    }

    /// Why it is allowed, or why not, where there is more to say than that nothing allows it.
    fn judge(&self, reader: &Reader, user: &User, asked: &Attributes) -> Result<String, String> {
        if user.is_master() {
            return Ok(String::new());
        }
        let mut why = String::new();
        if let Some(node) = user.as_node() {
            let policy = self.policy(reader);
            let role = policy.cluster_roles.get("system:node").map(Vec::as_slice).unwrap_or_default();
            match node::decide(reader, node, asked, role) {
                Ok(()) => return Ok(String::new()),
                Err(refused) => why = refused,
            }
        }
        let mut reason = None;
        self.visit(reader, user, &asked.namespace, &mut |binding, subject, rules| {
            if rules.iter().any(|rule| rule.covers(asked)) {
                reason = Some(binding.describe(subject));
            }
            reason.is_none()
        });
        reason.ok_or(why)
    }

    /// Every rule that holds for a user in a namespace.
    pub fn rules(&self, reader: &Reader, user: &User, namespace: &str) -> Vec<Rule> {
        let mut all = Vec::new();
        self.visit(reader, user, namespace, &mut |_, _, rules| {
            all.extend_from_slice(rules);
            true
        });
        all
    }

    /// Calls `see` with the rules of each binding that names the user, until it says stop.
    fn visit(
        &self,
        reader: &Reader,
        user: &User,
        namespace: &str,
        see: &mut dyn FnMut(&Binding, &Subject, &[Rule]) -> bool,
    ) {
        let policy = self.policy(reader);
        let cluster = policy.cluster_bindings.iter().map(|binding| (binding, ""));
        let local = policy.bindings.get(namespace).into_iter().flatten().map(|binding| (binding, namespace));
        for (binding, namespace) in cluster.chain(local) {
            let named = binding.subjects.iter().find(|subject| subject.is(user, &binding.metadata.namespace));
            if let Some(subject) = named
                && let Some(rules) = policy.rules_of(&binding.role_ref, namespace)
                && !see(binding, subject, rules)
            {
                return;
            }
        }
    }

    fn policy(&self, reader: &Reader) -> Arc<Policy> {
        let caches = PARTS.map(|plural| reader.cache().collection(&Collection::new(RBAC, plural)));
        let now = caches.each_ref().map(|cache| *cache.subscribe().borrow());
        let mut kept = self.policy.lock().unwrap_or_else(PoisonError::into_inner);
        let (seen, policy) = &mut *kept;
        let never = policy.cluster_roles.is_empty() && policy.roles.is_empty();
        if *seen != now || never {
            let [cluster_roles, roles, cluster_bindings, bindings] = caches.map(|cache| cache.list("").objects);
            let mut fresh = Policy::default();
            for role in cluster_roles.iter().map(|object| decode::<Role>(object)) {
                fresh.cluster_roles.insert(role.metadata.name, role.rules);
            }
            for role in roles.iter().map(|object| decode::<Role>(object)) {
                fresh.roles.insert((role.metadata.namespace, role.metadata.name), role.rules);
            }
            fresh.cluster_bindings = cluster_bindings.iter().map(|object| decode(object)).collect();
            for binding in bindings.iter().map(|object| decode::<Binding>(object)) {
                fresh.bindings.entry(binding.metadata.namespace.clone()).or_default().push(binding);
            }
            (*seen, *policy) = (now, Arc::new(fresh));
        }
        policy.clone()
    }
}

/// Stored roles passed validation; one that does not decode grants nothing.
fn decode<T: Default + serde::de::DeserializeOwned>(object: &crate::object::Object) -> T {
    api::view::decode(&object.json).unwrap_or_else(|error| {
        tracing::error!(key = object.key.as_str(), %error, "role or binding does not decode; it grants nothing");
        T::default()
    })
}

impl Policy {
    fn rules_of(&self, reference: &RoleRef, namespace: &str) -> Option<&[Rule]> {
        let rules = match &*reference.kind {
            "ClusterRole" => self.cluster_roles.get(&reference.name),
            _ => self.roles.get(&(namespace.to_owned(), reference.name.clone())),
        };
        rules.map(Vec::as_slice)
    }
}

impl Binding {
    /// As access reviews give their reason.
    fn describe(&self, subject: &Subject) -> String {
        let (RoleRef { kind, name }, own) = (&self.role_ref, &self.metadata.name);
        let who = match &*subject.kind {
            "ServiceAccount" => format!("ServiceAccount \"{}/{}\"", subject.name, subject.namespace),
            kind => format!("{kind} {:?}", subject.name),
        };
        match &*self.metadata.namespace {
            "" => format!("RBAC: allowed by ClusterRoleBinding {own:?} of {kind} {name:?} to {who}"),
            namespace => format!("RBAC: allowed by RoleBinding \"{own}/{namespace}\" of {kind} {name:?} to {who}"),
        }
    }
}

impl Subject {
    fn is(&self, user: &User, binding_namespace: &str) -> bool {
        match &*self.kind {
            "User" => self.name == user.name,
            "Group" => user.in_group(&self.name),
            "ServiceAccount" => {
                let namespace = if self.namespace.is_empty() { binding_namespace } else { &self.namespace };
                user.as_service_account() == Some((namespace, &self.name))
            }
            _ => false,
        }
    }
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == "*" || item == wanted)
}

impl Rule {
    pub fn covers(&self, asked: &Attributes) -> bool {
        if !has(&self.verbs, &asked.verb) {
            return false;
        }
        if let Some(path) = &asked.path {
            return self.non_resource_urls.iter().any(|url| match url.strip_suffix('*') {
                Some(prefix) => path.starts_with(prefix),
                None => url == path,
            });
        }
        has(&self.api_groups, &asked.group)
            && self.covers_resource(asked)
            && (self.resource_names.is_empty() || self.resource_names.contains(&asked.name))
    }

    fn covers_resource(&self, asked: &Attributes) -> bool {
        let full = asked.full_resource();
        let any_of_sub = format!("*/{}", asked.subresource);
        self.resources
            .iter()
            .any(|own| own == "*" || *own == full || (!asked.subresource.is_empty() && *own == any_of_sub))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(verb: &str, resource: &str, subresource: &str, name: &str) -> Attributes {
        let text = str::to_owned;
        Attributes {
            verb: text(verb),
            resource: text(resource),
            subresource: text(subresource),
            name: text(name),
            ..Attributes::default()
        }
    }

    pub(super) fn rule(verbs: &[&str], resources: &[&str], names: &[&str]) -> Rule {
        let all = |items: &[&str]| items.iter().map(|item| (*item).to_owned()).collect();
        Rule {
            verbs: all(verbs),
            api_groups: all(&[""]),
            resources: all(resources),
            resource_names: all(names),
            ..Rule::default()
        }
    }

    #[test]
    fn a_rule_names_subresources_apart() {
        let pods = rule(&["get"], &["pods"], &[]);
        assert!(pods.covers(&ask("get", "pods", "", "a")) && !pods.covers(&ask("get", "pods", "log", "a")));
        assert!(rule(&["*"], &["*/log"], &[]).covers(&ask("get", "pods", "log", "")));
        assert!(rule(&["*"], &["*"], &[]).covers(&ask("get", "pods", "log", "")));
        let one = rule(&["get"], &["pods"], &["a"]);
        assert!(one.covers(&ask("get", "pods", "", "a")) && !one.covers(&ask("list", "pods", "", "")));
    }

    #[test]
    fn paths_match_by_prefix_only_with_a_star() {
        let urls = Rule {
            verbs: vec!["get".into()],
            non_resource_urls: vec!["/healthz".into(), "/api/*".into()],
            ..Rule::default()
        };
        let path = |path: &str| Attributes { verb: "get".into(), path: Some(path.into()), ..Attributes::default() };
        assert!(urls.covers(&path("/healthz")) && urls.covers(&path("/api/v1")) && !urls.covers(&path("/healthz/x")));
    }
}
