//! What a pod asks of the pods around it (to be near some, apart from others, evenly spread), and who it is to others that ask.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use api::selector::Labels;
use serde_json::{Value, json};

use crate::controllers::views::Pod;

/// Labels of each namespace.
pub type Namespaces = HashMap<String, BTreeMap<String, String>>;

/// What terms of other pods see of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Identity {
    pub namespace: String,
    pub labels: BTreeMap<String, String>,
}

impl Identity {
    pub fn of(pod: &Pod) -> Self {
        let meta = &pod.metadata.meta;
        Self { namespace: meta.namespace.clone(), labels: meta.labels.clone() }
    }

    fn matches(&self, selector: &Labels) -> bool {
        selector.matches(|key| self.labels.get(key).map(String::as_str))
    }
}

/// Pods that are meant, and the label by whose value nodes are together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PodTerm {
    selector: Labels,
    namespaces: Vec<String>,
    /// Namespaces beside those, by their labels.
    namespace_selector: Labels,
    pub key: String,
}

impl PodTerm {
    fn of(term: &Value, own: &Identity) -> Self {
        let texts = |value: &Value| -> Vec<String> {
            value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let mut namespaces = texts(&term["namespaces"]);
        if namespaces.is_empty() && term["namespaceSelector"].is_null() {
            namespaces.push(own.namespace.clone());
        }
        Self {
            selector: selector(term, own),
            namespaces,
            namespace_selector: Labels::from_object(&term["namespaceSelector"]).unwrap_or_default(),
            key: term["topologyKey"].as_str().unwrap_or_default().to_owned(),
        }
    }

    pub fn means(&self, other: &Identity, namespaces: &Namespaces) -> bool {
        let labels = |key: &str| namespaces.get(&other.namespace).and_then(|labels| labels.get(key));
        let there = self.namespaces.contains(&other.namespace)
            || self.namespace_selector.matches(|key| labels(key).map(String::as_str));
        there && other.matches(&self.selector)
    }
}

/// The label selector of a term or constraint, with what it takes from the pod's own labels.
fn selector(of: &Value, own: &Identity) -> Labels {
    let mut selector = of["labelSelector"].clone();
    for (keys, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
        for key in of[keys].as_array().into_iter().flatten().filter_map(Value::as_str) {
            let (Some(value), false) = (own.labels.get(key), selector.is_null()) else { continue };
            let more = json!({"key": key, "operator": operator, "values": [value]});
            match selector["matchExpressions"].as_array_mut() {
                Some(all) => all.push(more),
                None => selector["matchExpressions"] = json!([more]),
            }
        }
    }
    // What was stored passed validation; what does not read means nothing.
    Labels::from_object(&selector).or_else(|_| Labels::from_object(&Value::Null)).unwrap_or_default()
}

/// What happens where pods would be spread less evenly than asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Uneven {
    Refused,
    Disliked,
}

/// Whether nodes that the pod could not go to count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Policy {
    Honor,
    Ignore,
}

impl Policy {
    fn of(value: &Value, default: Self) -> Self {
        match value.as_str() {
            Some("Honor") => Self::Honor,
            Some("Ignore") => Self::Ignore,
            _ => default,
        }
    }
}

/// A topology spread constraint.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Spread {
    selector: Labels,
    pub key: String,
    pub max_skew: i64,
    pub min_domains: usize,
    pub uneven: Uneven,
    pub affinity: Policy,
    pub taints: Policy,
}

impl Spread {
    fn of(constraint: &Value, own: &Identity) -> Self {
        let uneven = match constraint["whenUnsatisfiable"].as_str() {
            Some("ScheduleAnyway") => Uneven::Disliked,
            _ => Uneven::Refused,
        };
        Self {
            selector: selector(constraint, own),
            key: constraint["topologyKey"].as_str().unwrap_or_default().to_owned(),
            max_skew: constraint["maxSkew"].as_i64().unwrap_or(1),
            min_domains: constraint["minDomains"].as_u64().and_then(|count| usize::try_from(count).ok()).unwrap_or(1),
            uneven,
            affinity: Policy::of(&constraint["nodeAffinityPolicy"], Policy::Honor),
            taints: Policy::of(&constraint["nodeTaintsPolicy"], Policy::Ignore),
        }
    }

    /// Pods of the pod's own namespace count.
    pub fn means(&self, own: &Identity, other: &Identity) -> bool {
        own.namespace == other.namespace && other.matches(&self.selector)
    }
}

/// See the module's text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Company {
    /// All of these have to be where it goes.
    pub near: Vec<PodTerm>,
    /// None of these may be there.
    pub apart: Vec<PodTerm>,
    /// With weights, below zero for those that it would rather not be near.
    pub likes: Vec<(i64, PodTerm)>,
    pub spread: Vec<Spread>,
}

impl Company {
    /// `None` for a pod that asks for nothing of the kind.
    pub fn of(pod: &Pod, own: &Identity) -> Option<Arc<Self>> {
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let affinity = pod.spec.affinity.as_ref();
        let terms = |kind: &str| -> Vec<PodTerm> {
            let all = affinity.map(|affinity| list(&affinity[kind]["requiredDuringSchedulingIgnoredDuringExecution"]));
            all.into_iter().flatten().map(|term| PodTerm::of(&term, own)).collect()
        };
        let likes = |kind: &str, sign: i64| -> Vec<(i64, PodTerm)> {
            let all = affinity.map(|affinity| list(&affinity[kind]["preferredDuringSchedulingIgnoredDuringExecution"]));
            let weight = |like: &Value| sign * like["weight"].as_i64().unwrap_or(0);
            let one = |like: Value| (weight(&like), PodTerm::of(&like["podAffinityTerm"], own));
            all.into_iter().flatten().map(one).collect()
        };
        let mut all = Self {
            near: terms("podAffinity"),
            apart: terms("podAntiAffinity"),
            likes: likes("podAffinity", 1),
            spread: pod.spec.topology_spread_constraints.iter().map(|one| Spread::of(one, own)).collect(),
        };
        all.likes.extend(likes("podAntiAffinity", -1));
        (all != Self::default()).then(|| Arc::new(all))
    }

    /// Has something to say of pods that come later.
    pub fn outlasts(&self) -> bool {
        !(self.near.is_empty() && self.apart.is_empty() && self.likes.is_empty())
    }

    /// Where such a pod is, or is not any more, may decide whether one with this company finds a node.
    pub fn minds(&self, own: &Identity, other: &Identity, namespaces: &Namespaces) -> bool {
        self.near.iter().chain(&self.apart).any(|term| term.means(other, namespaces))
            || self.spread.iter().any(|spread| spread.uneven == Uneven::Refused && spread.means(own, other))
    }
}
