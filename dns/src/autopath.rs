//! Answers in one go what a pod's resolver would otherwise ask along its whole search list, after CoreDNS' autopath. Pure.
//!
//! It is off unless asked for, because a server cannot tell a question that the search list made from one that a program asks
//! with a dot at its end: `web.other.shop.svc.cluster.local.` is then answered with what the rest of the list leads to, where
//! there is no such name. And servers that deny a name for one type and know it for another (RFC 8020 forbids it) can make
//! the two questions of one look-up end at different places, where a resolver would have ended both at the first.
//!
//! Elsewhere the answer is what the resolver would have come to by itself. What it would have to decide is left to it: it hears
//! what the zone alone says, and goes on as it does. Single labels are services of the pod's own namespace, and stay what the
//! zone says of them, and so do names below a service that is there, such as those of a StatefulSet's pods on their way.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};

use api::uid::Uid;
use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::rdata::CNAME;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::message::Answer;
use crate::snapshot::Snapshot;
use crate::zone::TTL;

/// Whether the server goes on along the search list of who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Autopath {
    On,
    Off,
}

impl From<bool> for Autopath {
    fn from(wanted: bool) -> Self {
        if wanted { Self::On } else { Self::Off }
    }
}

/// Resolvers that still run take no more domains than these, or none at all of a longer line.
const MOST_DOMAINS: usize = 6;
const LONGEST_LINE: usize = 255;

/// The search list of one pod.
#[derive(Debug, PartialEq)]
pub(crate) struct SearchPath {
    namespace: String,
    first: Name,
    rest: Vec<Name>,
}

impl SearchPath {
    /// None of a list that resolvers may understand in different ways, or that does not begin with the pod's namespace.
    pub fn of(namespace: &str, searches: &[String]) -> Option<Self> {
        if searches.len() > MOST_DOMAINS || searches.join(" ").len() > LONGEST_LINE {
            return None;
        }
        let absolute = |domain: &String| Name::from_ascii(format!("{}.", domain.trim_end_matches('.'))).ok();
        let mut domains = searches.iter().map(absolute).collect::<Option<Vec<_>>>()?.into_iter();
        let first = domains.next()?;
        let mut labels = first.iter();
        let own = labels.next()? == namespace.as_bytes() && labels.next()? == b"svc";
        own.then(|| Self { namespace: namespace.to_owned(), rest: domains.collect(), first })
    }

    /// Where a resolver looks next for what it asked for first, in order; none where that is no question of a search list, or
    /// one about a service of the pod's namespace.
    pub fn places(&self, snapshot: &Snapshot, asked: &Query) -> Option<Vec<Name>> {
        let (name, addresses) = (asked.name(), matches!(asked.query_type(), RecordType::A | RecordType::AAAA));
        if !addresses || asked.query_class() != DNSClass::IN || !self.first.zone_of(name) {
            return None;
        }
        let labels: Vec<&[u8]> = name.iter().take(name.iter().len().checked_sub(self.first.iter().len())?).collect();
        let [_, .., last] = labels.as_slice() else { return None };
        if std::str::from_utf8(last).is_ok_and(|last| snapshot.service(&self.namespace, last).is_some()) {
            return None;
        }
        let alone = Name::from_labels(labels.iter().copied()).ok()?;
        let below: Option<Vec<Name>> =
            self.rest.iter().map(|domain| alone.clone().append_domain(domain).ok()).collect();
        Some(below?.into_iter().chain([alone]).collect())
    }
}

/// What one place of the list means for the question.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// No such name: a resolver asks for the next one.
    On,
    /// The walk ends with this answer.
    End(Box<Answer>),
}

/// `denial` is the zone's answer to the question as it was asked, `said` that for the name at this place.
pub(crate) fn judge(asked: &Query, denial: &Answer, place: &Name, said: Answer) -> Verdict {
    match said.metadata.response_code {
        ResponseCode::NXDomain => Verdict::On,
        ResponseCode::NoError if said.answers.is_empty() => Verdict::End(Box::new(no_data(denial))),
        ResponseCode::NoError => Verdict::End(Box::new(alias(asked, place, said))),
        // A failure: the resolver goes there by itself, and does with it what it does.
        _ => Verdict::End(Box::new(denial.clone())),
    }
}

/// The name is there, without such a record. No alias tells where: to glibc a message with any record is a find, after which it
/// looks no further; without one each resolver stops, or goes on, as it would have at that place.
fn no_data(denial: &Answer) -> Answer {
    let mut answer = denial.clone();
    answer.metadata.response_code = ResponseCode::NoError;
    answer
}

/// The alias holds as long as what it leads to, but never longer than the zone's word that there is no such name.
fn alias(asked: &Query, place: &Name, said: Answer) -> Answer {
    let ttl = said.answers.iter().map(|record| record.ttl).min().unwrap_or(TTL).min(TTL);
    let mut answer = said;
    answer.metadata.authentic_data = false;
    let alias = Record::from_rdata(asked.name().clone(), ttl, RData::CNAME(CNAME(place.clone())));
    answer.answers.insert(0, alias);
    answer
}

/// The search lists of this node's pods, by the address that each has to itself.
#[derive(Debug)]
pub(crate) struct Searches {
    mode: Autopath,
    by_client: RwLock<HashMap<IpAddr, Searching>>,
}

#[derive(Debug)]
struct Searching {
    pod: Uid,
    path: Arc<SearchPath>,
}

impl Searches {
    pub fn new(mode: Autopath) -> Self {
        Self { mode, by_client: RwLock::default() }
    }

    /// Without a path, nothing is known of who has the address now.
    pub fn set(&self, client: IpAddr, pod: &Uid, path: Option<SearchPath>) {
        let mut all = self.by_client.write().unwrap_or_else(PoisonError::into_inner);
        match path.filter(|_| self.mode == Autopath::On) {
            Some(path) => drop(all.insert(client, Searching { pod: pod.clone(), path: Arc::new(path) })),
            None => drop(all.remove(&client)),
        }
    }

    /// The address may be another pod's by now, which stays.
    pub fn forget(&self, client: IpAddr, pod: &Uid) {
        let mut all = self.by_client.write().unwrap_or_else(PoisonError::into_inner);
        if all.get(&client).is_some_and(|known| known.pod == *pod) {
            all.remove(&client);
        }
    }

    pub fn of(&self, client: IpAddr) -> Option<Arc<SearchPath>> {
        if self.mode == Autopath::Off {
            return None;
        }
        let all = self.by_client.read().unwrap_or_else(PoisonError::into_inner);
        all.get(&client.to_canonical()).map(|known| Arc::clone(&known.path))
    }
}

#[cfg(test)]
mod tests;
