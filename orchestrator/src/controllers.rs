//! The controllers: each a pure `reconcile` over shared caches, run by one runtime ([`runtime`]), listed in one table
//! ([`table`]).

use std::collections::BTreeSet;

use thiserror::Error;

pub mod amount;
pub mod bootstrap_tokens;
pub mod certificates;
pub mod cron_job;
pub mod daemon_set;
pub mod deployment;
pub mod endpoints;
pub mod gc;
pub mod given;
#[cfg(test)]
mod golden;
pub mod housekeeping;
pub mod job;
pub mod namespaces;
pub mod node_ipam;
pub mod ownership;
pub mod peers;
pub mod pod_gc;
pub mod pods;
pub mod replicaset;
pub mod replication_controller;
pub mod revisions;
pub mod runtime;
pub mod stateful_set;
pub mod table;
pub mod taint_eviction;
pub mod ttl_after_finished;
pub mod views;

use table::TABLE;

/// Which controllers run: names, `*` for all, `-name` for all but one, as kube-controller-manager's flag; empty for none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection(BTreeSet<&'static str>);

/// Every name the flag takes.
pub fn names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|row| row.name)
}

#[derive(Debug, Error, PartialEq, Eq)]
#[error("there is no controller {0:?}; the names are: {list}", list = names().collect::<Vec<_>>().join(", "))]
pub struct UnknownController(String);

impl Selection {
    /// From the flag's items.
    ///
    /// # Errors
    /// The first name that no controller has.
    pub fn parse(items: &[String]) -> Result<Self, UnknownController> {
        let find = |name: &str| names().find(|known| *known == name).ok_or_else(|| UnknownController(name.to_owned()));
        let mut chosen = BTreeSet::new();
        if items.iter().any(|item| item == "*") {
            chosen.extend(names());
        }
        for item in items.iter().filter(|item| !matches!(item.as_str(), "" | "*")) {
            match item.strip_prefix('-') {
                Some(name) => drop(chosen.remove(find(name)?)),
                None => drop(chosen.insert(find(item)?)),
            }
        }
        Ok(Self(chosen))
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.contains(name)
    }
}

#[cfg(test)]
mod tests;
