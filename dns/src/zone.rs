//! Answers from the cluster zone, as the Kubernetes DNS specification 1.1 lays it out. Pure.

use std::net::IpAddr;

use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use ipnetwork::IpNetwork;

use crate::snapshot::{Host, Owner, Port, Records, Snapshot};

/// Clients may keep an answer this long.
pub(crate) const TTL: u32 = 5;
/// Refresh, retry, expire, and how long absence may be kept.
pub(crate) const SOA_TIMES: [u32; 4] = [7200, 1800, 86400, TTL];
const VERSION: &str = "1.1.0";

/// What the zone has to say about a question.
#[derive(Debug, PartialEq)]
pub(crate) enum Outcome {
    Found(Found),
    /// The name is another's: the answer is this record and whatever the target has.
    Alias(Box<Record>, Name),
    /// The name exists, but has no such record.
    NoData(Box<Record>),
    NoName(Box<Record>),
    /// Not a name of this zone.
    Elsewhere,
}

#[derive(Debug, Default, PartialEq)]
pub(crate) struct Found {
    pub answers: Vec<Record>,
    pub additionals: Vec<Record>,
}

/// The name and layout of the zone.
#[derive(Debug, Clone)]
pub(crate) struct Zone {
    domain: Name,
    /// Of all pods' addresses.
    pods: Vec<IpNetwork>,
}

impl Zone {
    pub fn new(domain: Name, pods: Vec<IpNetwork>) -> Self {
        Self { domain: domain.to_lowercase(), pods }
    }

    /// The address that a pod's name says, where pods can have it: no name of the zone speaks for anybody else. Whether there
    /// is such a pod, and in which namespace, only a watch of all pods could tell.
    fn pod_address(&self, label: &str) -> Option<IpAddr> {
        pod_address(label).filter(|address| self.pods.iter().any(|range| range.contains(*address)))
    }

    pub fn lookup(&self, snapshot: &Snapshot, name: &Name, kind: RecordType) -> Outcome {
        if !self.domain.zone_of(name) {
            return self.reverse(snapshot, name, kind);
        }
        let labels = match self.labels_below(name) {
            Some(labels) => labels,
            None => return Outcome::NoName(Box::new(self.soa(snapshot))),
        };
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let found = match labels.as_slice() {
            [] => Some(self.apex(snapshot, name, kind)),
            ["dns-version"] => {
                Some(typed(kind, RecordType::TXT, || vec![record(name, RData::TXT(TXT::new(vec![VERSION.into()])))]))
            }
            ["svc" | "pod"] => Some(Found::default()),
            [namespace, "svc"] => snapshot.has_namespace(namespace).then(Found::default),
            [_, "pod"] => Some(Found::default()),
            [address, _, "pod"] => self.pod_address(address).map(|address| addresses(name, kind, &[address])),
            [below @ .., service, namespace, "svc"] => match snapshot.service(namespace, service) {
                Some(Records::External { target }) if below.is_empty() => return self.alias(snapshot, name, target),
                Some(records) => self.in_service(records, below, name, kind, service, namespace),
                None => None,
            },
            _ => None,
        };
        match found {
            None => Outcome::NoName(Box::new(self.soa(snapshot))),
            Some(found) if found.answers.is_empty() => Outcome::NoData(Box::new(self.soa(snapshot))),
            Some(found) => Outcome::Found(found),
        }
    }

    /// The labels left of the domain, in small letters; none where one is not text.
    fn labels_below(&self, name: &Name) -> Option<Vec<String>> {
        let count = usize::from(name.num_labels()).checked_sub(self.domain.num_labels().into())?;
        let labels = name.iter().take(count).map(|label| std::str::from_utf8(label).ok().map(str::to_lowercase));
        labels.collect()
    }

    fn apex(&self, snapshot: &Snapshot, name: &Name, kind: RecordType) -> Found {
        let answers = match kind {
            RecordType::SOA => vec![self.soa(snapshot)],
            RecordType::NS => vec![record(name, RData::NS(NS(self.below(&["ns", "dns"]))))],
            _ => Vec::new(),
        };
        Found { answers, additionals: Vec::new() }
    }

    fn in_service(
        &self,
        records: &Records,
        below: &[&str],
        name: &Name,
        kind: RecordType,
        service: &str,
        namespace: &str,
    ) -> Option<Found> {
        let own = self.below(&[service, namespace, "svc"]);
        match (records, below) {
            (Records::ClusterIp { addresses: ips, ports }, []) if kind == RecordType::SRV => {
                Some(srv_of_service(name, &own, ports.iter(), ips))
            }
            (Records::ClusterIp { addresses: ips, .. }, []) => Some(addresses(name, kind, ips)),
            (Records::ClusterIp { addresses: ips, ports }, [port, protocol]) => {
                let mut matching = ports.iter().filter(|candidate| is_port(candidate, port, protocol)).peekable();
                matching.peek()?;
                Some(if kind == RecordType::SRV { srv_of_service(name, &own, matching, ips) } else { Found::default() })
            }
            (Records::ClusterIp { ports, .. }, [protocol]) => {
                ports.iter().any(|port| is_protocol(port, protocol)).then(Found::default)
            }
            (Records::Headless { endpoints }, []) if kind == RecordType::SRV => {
                Some(srv_of_hosts(name, &own, endpoints, |_| true))
            }
            (Records::Headless { endpoints }, []) => {
                let ips: Vec<IpAddr> = endpoints.iter().map(|host| host.address).collect();
                Some(addresses(name, kind, &ips))
            }
            (Records::Headless { endpoints }, [port, protocol]) => {
                let has =
                    endpoints.iter().flat_map(|host| &host.ports).any(|candidate| is_port(candidate, port, protocol));
                has.then(|| match kind {
                    RecordType::SRV => {
                        srv_of_hosts(name, &own, endpoints, |candidate| is_port(candidate, port, protocol))
                    }
                    _ => Found::default(),
                })
            }
            (Records::Headless { endpoints }, [label]) => {
                let ips: Vec<IpAddr> =
                    endpoints.iter().filter(|host| host.name == *label).map(|host| host.address).collect();
                if ips.is_empty() {
                    let ports = endpoints.iter().flat_map(|host| &host.ports);
                    return ports.into_iter().any(|port| is_protocol(port, label)).then(Found::default);
                }
                Some(addresses(name, kind, &ips))
            }
            _ => None,
        }
    }

    fn alias(&self, snapshot: &Snapshot, name: &Name, target: &str) -> Outcome {
        match Name::from_ascii(format!("{target}.")) {
            Ok(target) => Outcome::Alias(Box::new(record(name, RData::CNAME(CNAME(target.clone())))), target),
            Err(_) => Outcome::NoData(Box::new(self.soa(snapshot))),
        }
    }

    fn reverse(&self, snapshot: &Snapshot, name: &Name, kind: RecordType) -> Outcome {
        let Some(Owner { service: (namespace, service), endpoint }) =
            reverse_address(name).and_then(|address| snapshot.owner(&address))
        else {
            return Outcome::Elsewhere;
        };
        if kind != RecordType::PTR {
            return Outcome::NoData(Box::new(self.soa(snapshot)));
        }
        let mut labels = vec![service.as_str(), namespace.as_str(), "svc"];
        if let Some(endpoint) = endpoint {
            labels.insert(0, endpoint);
        }
        let answers = vec![record(name, RData::PTR(PTR(self.below(&labels))))];
        Outcome::Found(Found { answers, additionals: Vec::new() })
    }

    /// A name of the zone. Labels that are too long for DNS give the zone's own name; Kubernetes allows none.
    fn below(&self, labels: &[&str]) -> Name {
        let relative = Name::from_labels(labels.iter().map(|label| label.as_bytes()));
        relative.and_then(|name| name.append_domain(&self.domain)).unwrap_or_else(|_| self.domain.clone())
    }

    fn soa(&self, snapshot: &Snapshot) -> Record {
        let (server, mailbox) = (self.below(&["ns", "dns"]), self.below(&["hostmaster"]));
        let [refresh, retry, expire, minimum] = SOA_TIMES;
        let soa = SOA::new(server, mailbox, snapshot.serial(), refresh as i32, retry as i32, expire as i32, minimum);
        Record::from_rdata(self.domain.clone(), TTL, RData::SOA(soa))
    }
}

fn record(name: &Name, data: RData) -> Record {
    Record::from_rdata(name.clone(), TTL, data)
}

fn typed(kind: RecordType, wanted: RecordType, records: impl FnOnce() -> Vec<Record>) -> Found {
    Found {
        answers: if kind == wanted || kind == RecordType::ANY { records() } else { Vec::new() },
        additionals: Vec::new(),
    }
}

fn addresses(name: &Name, kind: RecordType, addresses: &[IpAddr]) -> Found {
    let answers = addresses.iter().filter_map(|address| match (address, kind) {
        (IpAddr::V4(ip), RecordType::A | RecordType::ANY) => Some(record(name, RData::A(A(*ip)))),
        (IpAddr::V6(ip), RecordType::AAAA | RecordType::ANY) => Some(record(name, RData::AAAA(AAAA(*ip)))),
        _ => None,
    });
    Found { answers: answers.collect(), additionals: Vec::new() }
}

fn both(name: &Name, ips: &[IpAddr]) -> Vec<Record> {
    addresses(name, RecordType::ANY, ips).answers
}

fn srv_of_service<'a>(name: &Name, target: &Name, ports: impl Iterator<Item = &'a Port>, ips: &[IpAddr]) -> Found {
    let answers: Vec<_> = ports.map(|port| srv(name, 100, port.number, target.clone())).collect();
    Found { additionals: if answers.is_empty() { Vec::new() } else { both(target, ips) }, answers }
}

fn srv_of_hosts(name: &Name, service: &Name, hosts: &[Host], wanted: impl Fn(&Port) -> bool) -> Found {
    let weight = u16::try_from(100 / hosts.len().max(1)).unwrap_or(1).max(1);
    let mut found = Found::default();
    for host in hosts {
        let Ok(target) = Name::from_labels([host.name.as_bytes()]).and_then(|label| label.append_domain(service))
        else {
            continue;
        };
        let ports = host.ports.iter().filter(|port| wanted(port));
        let answers: Vec<_> = ports.map(|port| srv(name, weight, port.number, target.clone())).collect();
        if !answers.is_empty() {
            found.answers.extend(answers);
            found.additionals.extend(both(&target, &[host.address]));
        }
    }
    found
}

fn srv(name: &Name, weight: u16, port: u16, target: Name) -> Record {
    record(name, RData::SRV(SRV::new(0, weight, port, target)))
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
