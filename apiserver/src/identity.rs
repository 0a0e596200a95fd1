//! Who a request comes from.

use std::collections::BTreeMap;

pub const MASTERS: &str = "system:masters";
pub const AUTHENTICATED: &str = "system:authenticated";
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// The group of all nodes' agents, and what their names begin with.
pub const NODES: &str = "system:nodes";
pub const NODE: &str = "system:node:";
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    pub fn new(name: impl Into<String>, groups: &[&str]) -> Self {
        let groups = groups.iter().map(|&group| group.to_owned()).collect();
        Self { name: name.into(), groups, ..Self::default() }
    }

    pub fn anonymous() -> Self {
        Self::new("system:anonymous", &[UNAUTHENTICATED])
    }

    pub fn service_account(namespace: &str, name: &str) -> Self {
        let own = format!("system:serviceaccounts:{namespace}");
        Self::new(format!("{SERVICE_ACCOUNT}{namespace}:{name}"), &["system:serviceaccounts", &own, AUTHENTICATED])
    }

    /// The agent of a node.
    pub fn node(name: &str) -> Self {
        Self::new(format!("{NODE}{name}"), &[NODES, AUTHENTICATED])
    }

    pub fn is_master(&self) -> bool {
        self.in_group(MASTERS)
    }

    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|own| own == group)
    }

    /// Namespace and name, when this is a service account.
    pub fn as_service_account(&self) -> Option<(&str, &str)> {
        self.name.strip_prefix(SERVICE_ACCOUNT)?.split_once(':')
    }

    /// The node's name, when this is a node's agent.
    pub fn as_node(&self) -> Option<&str> {
        self.name.strip_prefix(NODE).filter(|_| self.in_group(NODES))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_and_nodes_are_told_by_name() {
        assert_eq!(User::service_account("ns", "robot").as_service_account(), Some(("ns", "robot")));
        assert_eq!(User::node("a").as_node(), Some("a"));
        assert_eq!(User::new("system:node:a", &[]).as_node(), None, "the name alone is no proof");
    }
}
