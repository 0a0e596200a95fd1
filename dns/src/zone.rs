//! Answers from the cluster zone, as the Kubernetes DNS specification 1.1 lays it out; where it is silent, as CoreDNS answers.
//! Pure.
//!
//! In one thing the zone is truer than CoreDNS: a name above others exists (RFC 8020), so `_tcp.web.default.svc` has no data
//! where CoreDNS denies it, and with it everything below.

use std::collections::BTreeSet;
use std::net::IpAddr;

use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use ipnetwork::IpNetwork;

use crate::snapshot::{Host, Port, Records, Snapshot};

/// Clients may keep an answer this long.
pub(crate) const TTL: u32 = 5;
/// Refresh, retry, expire, and how long absence may be kept.
pub(crate) const SOA_TIMES: [u32; 4] = [7200, 1800, 86400, TTL];
const VERSION: &str = "1.1.0";
/// It changes with the software only; CoreDNS says the same.
const VERSION_TTL: u32 = 28_800;
/// Aliases followed; what goes on longer is a circle, or as good as one.
const LONGEST_CHAIN: usize = 8;
/// Below the domain, the name of this server.
const SERVER: [&str; 2] = ["ns", "dns"];

/// What the zone has to say about a question: the aliases met on the way, and what is at their end.
#[derive(Debug, PartialEq)]
pub(crate) struct Resolved {
    pub aliases: Vec<Record>,
    pub end: Outcome,
}

#[derive(Debug, PartialEq)]
pub(crate) enum Outcome {
    Found(Found),
    /// Aliases that lead to no end.
    Circle,
    /// The name exists, but has no such record.
    NoData(Box<Record>),
    NoName(Box<Record>),
    /// Not a name of this zone.
    Elsewhere(Name),
}

#[derive(Debug, Default, PartialEq)]
pub(crate) struct Found {
    pub answers: Vec<Record>,
    pub additionals: Vec<Record>,
}

/// What one name has.
enum Step {
    Alias(Name),
    End(Outcome),
}

/// The name and layout of the zone.
#[derive(Debug, Clone)]
pub(crate) struct Zone {
    domain: Name,
    /// Of all pods' addresses.
    pods: Vec<IpNetwork>,
    /// Where clients reach this server.
    servers: Vec<IpAddr>,
}

impl Zone {
    pub fn new(domain: Name, pods: Vec<IpNetwork>, servers: Vec<IpAddr>) -> Self {
        Self { domain: domain.to_lowercase(), pods, servers }
    }

    /// Follows aliases as long as they stay in the zone: clients do not ask again.
    pub fn resolve(&self, snapshot: &Snapshot, name: &Name, kind: RecordType) -> Resolved {
        let mut aliases = Vec::new();
        let mut name = name.clone();
        loop {
            let target = match self.lookup(snapshot, &name, kind) {
                Step::End(end) => return Resolved { aliases, end },
                Step::Alias(target) => target,
            };
            aliases.push(record(&name, RData::CNAME(CNAME(target.clone()))));
            if kind == RecordType::CNAME {
                return Resolved { aliases, end: Outcome::Found(Found::default()) };
            }
            let seen = aliases.iter().any(|alias| alias.name == target);
            if seen || aliases.len() > LONGEST_CHAIN {
                return Resolved { aliases, end: Outcome::Circle };
            }
            name = target;
        }
    }

    fn lookup(&self, snapshot: &Snapshot, name: &Name, kind: RecordType) -> Step {
        if !self.domain.zone_of(name) {
            return Step::End(self.reverse(snapshot, name, kind));
        }
        let labels = self.labels_below(name).unwrap_or_default();
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        if let [service, namespace, "svc"] = labels.as_slice()
            && let Some(Records::External { target }) = snapshot.service(namespace, service)
        {
            return match alias_of(target, kind) {
                Some(target) => Step::Alias(target),
                None => Step::End(Outcome::NoData(Box::new(self.soa(snapshot)))),
            };
        }
        let whole = self.labels_below(name).is_some();
        let found = whole.then(|| self.records(snapshot, name, &labels, kind)).flatten();
        let soa = || Box::new(self.soa(snapshot));
        Step::End(match found {
            None => Outcome::NoName(soa()),
            Some(found) if found.answers.is_empty() => Outcome::NoData(soa()),
            Some(found) => Outcome::Found(found),
        })
    }

    /// What a name of the zone has of this type; none where there is no such name.
    fn records(&self, snapshot: &Snapshot, name: &Name, labels: &[&str], kind: RecordType) -> Option<Found> {
        match labels {
            [] => Some(self.apex(snapshot, name, kind)),
            ["dns-version"] => Some(version(name, kind)),
            ["dns"] | ["svc" | "pod"] => Some(Found::default()),
            ["ns", "dns"] => Some(addresses(name, kind, &self.servers)),
            [namespace, "svc" | "pod"] => snapshot.has_namespace(namespace).then(Found::default),
            [address, namespace, "pod"] => {
                let address = self.pod_address(address).filter(|_| snapshot.has_namespace(namespace));
                address.map(|address| addresses(name, kind, &[address]))
            }
            [below @ .., service, namespace, "svc"] => {
                let own = self.below(&[service, namespace, "svc"]);
                match snapshot.service(namespace, service)? {
                    Records::External { .. } => None,
                    Records::ClusterIp { addresses, ports } => {
                        of_service((addresses, ports), below, (name, &own), kind)
                    }
                    Records::Headless { endpoints, addresses } => {
                        of_endpoints((addresses, endpoints), below, (name, &own), kind)
                    }
                }
            }
            _ => None,
        }
    }

    /// The address that a pod's name says, where pods can have it: no name of the zone speaks for anybody else. Whether there
    /// is such a pod, and in which namespace, only a watch of all pods could tell.
    fn pod_address(&self, label: &str) -> Option<IpAddr> {
        pod_address(label).filter(|address| self.pods.iter().any(|range| range.contains(*address)))
    }

    /// The labels left of the domain, in small letters; none where one is not text.
    fn labels_below(&self, name: &Name) -> Option<Vec<String>> {
        let count = usize::from(name.num_labels()).checked_sub(self.domain.num_labels().into())?;
        let labels = name.iter().take(count).map(|label| std::str::from_utf8(label).ok().map(str::to_lowercase));
        labels.collect()
    }

    fn apex(&self, snapshot: &Snapshot, name: &Name, kind: RecordType) -> Found {
        let server = self.below(&SERVER);
        match kind {
            RecordType::SOA => Found { answers: vec![self.soa(snapshot)], additionals: Vec::new() },
            RecordType::NS => {
                Found { additionals: both(&server, &self.servers), answers: vec![record(name, RData::NS(NS(server)))] }
            }
            _ => Found::default(),
        }
    }

    fn reverse(&self, snapshot: &Snapshot, name: &Name, kind: RecordType) -> Outcome {
        let owners = reverse_address(name).map_or(&[][..], |address| snapshot.owners(&address));
        if owners.is_empty() {
            return Outcome::Elsewhere(name.clone());
        }
        if kind != RecordType::PTR {
            return Outcome::NoData(Box::new(self.soa(snapshot)));
        }
        let answers = owners.iter().map(|owner| {
            let (namespace, service) = &owner.service;
            let labels = owner.endpoint.iter().map(String::as_str).chain([service, namespace, "svc"]);
            record(name, RData::PTR(PTR(self.below(&labels.collect::<Vec<_>>()))))
        });
        Outcome::Found(Found { answers: answers.collect(), additionals: Vec::new() })
    }

    /// A name of the zone. Labels that are too long for DNS give the zone's own name; Kubernetes allows none.
    fn below(&self, labels: &[&str]) -> Name {
        let relative = Name::from_labels(labels.iter().map(|label| label.as_bytes()));
        relative.and_then(|name| name.append_domain(&self.domain)).unwrap_or_else(|_| self.domain.clone())
    }

    fn soa(&self, snapshot: &Snapshot) -> Record {
        let (server, mailbox) = (self.below(&SERVER), self.below(&["hostmaster"]));
        let [refresh, retry, expire, minimum] = SOA_TIMES;
        let soa = SOA::new(server, mailbox, snapshot.serial(), refresh as i32, retry as i32, expire as i32, minimum);
        Record::from_rdata(self.domain.clone(), TTL, RData::SOA(soa))
    }
}

/// Where an alias leads who asks for this type. A question for all types, and one for SRV, gets no alias from CoreDNS.
fn alias_of(target: &str, kind: RecordType) -> Option<Name> {
    let name = Name::from_ascii(format!("{target}.")).ok();
    name.filter(|_| !matches!(kind, RecordType::ANY | RecordType::SRV))
}

fn version(name: &Name, kind: RecordType) -> Found {
    let text = || Record::from_rdata(name.clone(), VERSION_TTL, RData::TXT(TXT::new(vec![VERSION.into()])));
    Found { answers: (kind == RecordType::TXT).then(text).into_iter().collect(), additionals: Vec::new() }
}

/// The names of a service with addresses of its own. `names`: the one asked for, and the service's.
fn of_service(
    (ips, ports): (&[IpAddr], &[Port]),
    below: &[&str],
    (name, own): (&Name, &Name),
    kind: RecordType,
) -> Option<Found> {
    let srv = |ports: &mut dyn Iterator<Item = &Port>| {
        let places: BTreeSet<(Name, u16)> = ports.map(|port| (own.clone(), port.number)).collect();
        srv(name, places, both(own, ips))
    };
    match below {
        [] if kind == RecordType::SRV => Some(srv(&mut ports.iter())),
        [] => Some(addresses(name, kind, ips)),
        [port, protocol] => {
            let mut matching = ports.iter().filter(|candidate| is_port(candidate, port, protocol)).peekable();
            matching.peek()?;
            Some(if kind == RecordType::SRV { srv(&mut matching) } else { Found::default() })
        }
        [protocol] => ports.iter().any(|port| is_protocol(port, protocol)).then(Found::default),
        _ => None,
    }
}

/// The names of a headless service, which are there as long as it has endpoints.
fn of_endpoints(
    (ips, all): (&[IpAddr], &[Host]),
    below: &[&str],
    (name, own): (&Name, &Name),
    kind: RecordType,
) -> Option<Found> {
    let ports = || all.iter().flat_map(|host| &host.ports);
    match below {
        _ if all.is_empty() => None,
        [] if kind == RecordType::SRV => Some(srv_of_hosts(name, own, all, |_| true)),
        [] => Some(addresses(name, kind, ips)),
        [port, protocol] => ports().any(|candidate| is_port(candidate, port, protocol)).then(|| match kind {
            RecordType::SRV => srv_of_hosts(name, own, all, |candidate| is_port(candidate, port, protocol)),
            _ => Found::default(),
        }),
        [label] if all.iter().any(|host| host.name == *label) => {
            let own: Vec<&Host> = all.iter().filter(|host| host.name == *label).collect();
            match kind {
                RecordType::SRV => Some(srv_of_hosts(name, &name.base_name(), own, |_| true)),
                _ => Some(addresses(name, kind, &own.iter().map(|host| host.address).collect::<Vec<_>>())),
            }
        }
        [label] => ports().any(|port| is_protocol(port, label)).then(Found::default),
        _ => None,
    }
}

fn record(name: &Name, data: RData) -> Record {
    Record::from_rdata(name.clone(), TTL, data)
}

fn addresses(name: &Name, kind: RecordType, addresses: &[IpAddr]) -> Found {
    let answers = both(name, addresses).into_iter().filter(|record| record.record_type() == kind);
    Found { answers: answers.collect(), additionals: Vec::new() }
}

fn both(name: &Name, ips: &[IpAddr]) -> Vec<Record> {
    let data = ips.iter().map(|address| match address {
        IpAddr::V4(ip) => RData::A(A(*ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(*ip)),
    });
    data.map(|data| record(name, data)).collect()
}

/// Each endpoint under its own name; one with an address of each family has one name.
fn srv_of_hosts<'a>(
    name: &Name,
    service: &Name,
    hosts: impl IntoIterator<Item = &'a Host>,
    wanted: impl Fn(&Port) -> bool,
) -> Found {
    let (mut places, mut glue) = (BTreeSet::new(), Vec::new());
    for host in hosts {
        let Ok(target) = Name::from_labels([host.name.as_bytes()]).and_then(|label| label.append_domain(service))
        else {
            continue;
        };
        let ports: Vec<u16> = host.ports.iter().filter(|port| wanted(port)).map(|port| port.number).collect();
        if !ports.is_empty() {
            glue.extend(both(&target, &[host.address]));
        }
        places.extend(ports.into_iter().map(|port| (target.clone(), port)));
    }
    srv(name, places, glue)
}

/// A record for each place, all of one weight.
fn srv(name: &Name, places: BTreeSet<(Name, u16)>, glue: Vec<Record>) -> Found {
    let weight = u16::try_from(100 / places.len().max(1)).unwrap_or(1).max(1);
    let additionals = if places.is_empty() { Vec::new() } else { glue };
    let answers = places.into_iter().map(|(target, port)| record(name, RData::SRV(SRV::new(0, weight, port, target))));
    Found { answers: answers.collect(), additionals }
}

fn is_port(port: &Port, name: &str, protocol: &str) -> bool {
    !port.name.is_empty() && name.strip_prefix('_') == Some(&port.name) && is_protocol(port, protocol)
}

fn is_protocol(port: &Port, label: &str) -> bool {
    label.strip_prefix('_') == Some(&port.protocol)
}

/// `10-244-0-5`, or the same of an IPv6 address.
fn pod_address(label: &str) -> Option<IpAddr> {
    let dotted = label.replace('-', ".").parse().map(IpAddr::V4);
    dotted.or_else(|_| label.replace('-', ":").parse().map(IpAddr::V6)).ok()
}

/// The address of a name below in-addr.arpa or ip6.arpa, when it is a whole one.
fn reverse_address(name: &Name) -> Option<IpAddr> {
    let net = name.parse_arpa_name().ok()?;
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
}

#[cfg(test)]
mod tests;
