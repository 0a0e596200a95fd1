//! Admission: what may be done to an object beyond who may do it, and what is added to it on the way.
//!
//! A request that changes something, or connects to something, passes a chain of members once: those that change the object,
//! in their order, then (when it is valid) those that only look. The chain is a [`table`]; a member is a file and a row.
//! Members wait as long as they like: nothing of the engine is held meanwhile, and what changed under a write is found out
//! when it commits, after which the attempt is made again, its admission with it.
//!
//! What members look up beside the request is what they saw, not what will hold: a LimitRange, a ServiceAccount or a
//! priority class may change between the look and the commit, as it may just after. Only that the namespace of a new
//! object is there is held against the store in the same transaction.

use std::fmt::Debug;

use api::kind::{Gvk, Part};
use api::status::Status;
use async_trait::async_trait;
use serde_json::Value;

use crate::authz::Authorizer;
use crate::reader::Reader;
use crate::request::{Context, DeleteOptions, Target, WriteOptions};

mod certificates;
mod claim_resize;
mod default_class;
mod default_toleration_seconds;
mod limit_ranger;
mod namespace_lifecycle;
mod node_restriction;
mod pod_security;
mod priority;
mod runtime_class;
mod service_account;
mod service_external_ips;
mod table;
mod taint_nodes_by_condition;

pub use pod_security::Exemptions;
pub use service_external_ips::ExternalIps;

/// What an administrator chooses about admission.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    pub pod_security: Exemptions,
    pub external_ips: ExternalIps,
    /// Members beside the built-in ones, after them.
    pub members: Vec<Row>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

impl Operation {
    /// As reviews and refusals spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

/// The options that came with a request.
#[derive(Debug, Clone, Copy)]
pub enum Options<'a> {
    Write(&'a WriteOptions),
    Delete(&'a DeleteOptions),
    /// A connection's options are its object.
    None,
}

/// Which time members that change objects are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    First,
    /// A member changed what earlier ones had seen.
    Again,
}

/// A request before it takes effect.
#[derive(Debug)]
pub struct Review<'a> {
    pub operation: Operation,
    /// What the path names; for a collection that is deleted, the collection.
    pub target: &'a Target,
    pub context: &'a Context,
    pub options: Options<'a>,
    /// What is to be: of an update the whole next state, of a connection its options, of a deletion nothing (null).
    pub object: Value,
    /// What is: of an update and a deletion.
    pub old: Option<&'a Value>,
    pub pass: Pass,
    wanted: Pass,
    warnings: Vec<String>,
}

impl<'a> Review<'a> {
    pub(crate) fn new(operation: Operation, target: &'a Target, context: &'a Context, options: Options<'a>) -> Self {
        Self {
            operation,
            target,
            context,
            options,
            object: Value::Null,
            old: None,
            pass: Pass::First,
            wanted: Pass::First,
            warnings: Vec::new(),
        }
    }

    /// The same request about another form of its object.
    pub(crate) fn about<'b>(&self, object: Value, old: &'b Value) -> Review<'b>
    where
        'a: 'b,
    {
        let same = Review::new(self.operation, self.target, self.context, self.options);
        Review { object, old: Some(old), pass: self.pass, ..same }
    }

    /// What object and old object are: where a part is no slice of its object, a kind of its own.
    pub fn kind(&self) -> Gvk {
        let part = self.target.part.and_then(|part| self.target.kind.subresource(part));
        part.map_or_else(|| self.target.kind.gvk(), |part| part.gvk.clone())
    }

    /// As the request has it; empty before a generated name is made, and of a collection.
    pub fn name(&self) -> &str {
        match &*self.target.name {
            "" => self.object["metadata"]["name"].as_str().unwrap_or_default(),
            name => name,
        }
    }

    pub fn namespace(&self) -> &str {
        &self.target.namespace
    }

    pub fn dry_run(&self) -> bool {
        match self.options {
            Options::Write(options) => options.dry_run,
            Options::Delete(options) => options.dry_run,
            Options::None => false,
        }
    }

    /// Whether this is about `group`/`plural` itself, no part of it.
    pub(crate) fn is_of(&self, group: &str, plural: &str) -> bool {
        self.target.part.is_none() && *self.target.kind.group == *group && *self.target.kind.plural == *plural
    }

    /// Text for a `Warning: 299` header.
    pub fn warn(&mut self, text: String) {
        self.warnings.push(text);
    }

    pub(crate) fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    /// For a member that changed the object in ways that others may have something to say about: all are asked again, once.
    pub fn ask_again(&mut self) {
        self.wanted = Pass::Again;
    }

    /// 403 with a sentence about the object, under the name that it has or is to be generated from.
    pub fn forbidden(&self, why: &str) -> Status {
        let of = |object: &'a Value, field: &str| object["metadata"][field].as_str().unwrap_or_default();
        let generated = self.object["metadata"]["generateName"].as_str().unwrap_or_default();
        let known = [self.name(), generated, self.old.map_or("", |old| of(old, "name")), "Unknown"];
        let name = known.into_iter().find(|name| !name.is_empty()).unwrap_or_default();
        Status::forbidden(&self.target.kind.group, &self.target.kind.plural, name, why)
    }
}

/// What members look at beside the request.
#[derive(Clone, Copy)]
pub struct Cluster<'a> {
    pub reader: &'a Reader,
    pub authorizer: &'a Authorizer,
    pub settings: &'a Settings,
}

/// A member of the chain.
#[async_trait]
pub trait Member: Debug + Send + Sync {
    /// Whether there is anything for it in a request that its row is about. Asked first, and often: nothing is made for
    /// those who say no.
    fn concerns(&self, _review: &Review<'_>) -> bool {
        true
    }

    /// Changes the object, or refuses.
    async fn mutate(&self, _cluster: Cluster<'_>, _review: &mut Review<'_>) -> Result<(), Status> {
        Ok(())
    }

    /// Looks at what is to be stored; gives warnings, or refuses.
    async fn validate(&self, _cluster: Cluster<'_>, _review: &Review<'_>) -> Result<Vec<String>, Status> {
        Ok(Vec::new())
    }
}

/// What a member does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acts {
    Mutates,
    Validates,
    Both,
}

/// Which parts of a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parts {
    Itself,
    One(Part),
    All,
}

#[derive(Debug, Clone, Copy)]
pub enum Resources {
    All,
    /// Group, plural, parts.
    Of(&'static [(&'static str, &'static str, Parts)]),
}

impl Resources {
    fn hold(self, target: &Target) -> bool {
        let Self::Of(list) = self else { return true };
        let part = |parts: Parts| match parts {
            Parts::Itself => target.part.is_none(),
            Parts::One(part) => target.part == Some(part),
            Parts::All => true,
        };
        let (group, plural) = (&*target.kind.group, &*target.kind.plural);
        list.iter().any(|(g, p, parts)| (*g, *p) == (group, plural) && part(*parts))
    }
}

/// A member's place in the chain.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Upstream's name of it, where it has one.
    pub name: &'static str,
    pub operations: &'static [Operation],
    pub resources: Resources,
    pub acts: Acts,
    pub member: &'static dyn Member,
}

impl Row {
    fn concerns(&self, review: &Review<'_>) -> bool {
        self.operations.contains(&review.operation)
            && self.resources.hold(review.target)
            && self.member.concerns(review)
    }
}

/// The two ends of admission: before an object is as it is to be stored, and after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Mutate,
    Validate,
}

/// All members in their order.
#[derive(Debug)]
pub(crate) struct Chain {
    rows: Vec<Row>,
}

impl Chain {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self { rows: [table::BUILTIN, &settings.members].concat() }
    }

    /// Whether anybody has something to say.
    pub(crate) fn concerns(&self, review: &Review<'_>) -> bool {
        self.rows.iter().any(|row| row.concerns(review))
    }

    pub(crate) async fn run(&self, phase: Phase, cluster: Cluster<'_>, review: &mut Review<'_>) -> Result<(), Status> {
        match phase {
            Phase::Mutate => self.mutate(cluster, review).await,
            Phase::Validate => self.validate(cluster, review).await,
        }
    }

    /// Lets members change the object: once, and a second time when one of them asked for it.
    async fn mutate(&self, cluster: Cluster<'_>, review: &mut Review<'_>) -> Result<(), Status> {
        self.pass(cluster, review).await?;
        if review.wanted == Pass::Again {
            review.pass = Pass::Again;
            self.pass(cluster, review).await?;
        }
        Ok(())
    }

    async fn pass(&self, cluster: Cluster<'_>, review: &mut Review<'_>) -> Result<(), Status> {
        for row in self.rows.iter().filter(|row| row.acts != Acts::Validates) {
            if row.concerns(review) {
                row.member.mutate(cluster, review).await?;
            }
        }
        Ok(())
    }

    /// Lets members look at what is to be stored. Their warnings are the review's.
    async fn validate(&self, cluster: Cluster<'_>, review: &mut Review<'_>) -> Result<(), Status> {
        for row in self.rows.iter().filter(|row| row.acts != Acts::Mutates) {
            if row.concerns(review) {
                let warnings = row.member.validate(cluster, review).await?;
                review.warnings.extend(warnings);
            }
        }
        Ok(())
    }
}
