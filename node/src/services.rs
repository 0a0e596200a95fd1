//! Services and their slices, from the caches to the kernel and to DNS: one service per change, in the order of changes.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use api::view::{EndpointSlice, Meta, Service, ZONE};
use client::events::Reference;
use client::{Caches, Key, Revision};
use dns::Snapshot;
use proxy_userspace::Proxy;
use proxy_userspace::desired::{LocalServer, NodeFacts, desired, desired_service, health_check_port, ready_here};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::Settings;
use crate::outlook::{Namespace, Own};
use complaints::Complaint;
pub use complaints::Complaints;
use health::{Health, HealthChecks};

mod complaints;
mod health;

const DNS_PORT: u16 = 53;

/// What a change is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Subject {
    /// A Service or its slices.
    Service(Key),
    Namespace(String),
}

/// What changed, each once.
#[derive(Default)]
pub struct Changed {
    state: Mutex<(VecDeque<Subject>, HashSet<Subject>)>,
    wake: Notify,
}

impl Changed {
    fn add(&self, subject: Subject) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.1.insert(subject.clone()) {
            state.0.push_back(subject);
        }
        drop(state);
        self.wake.notify_one();
    }

    fn take(&self) -> Vec<Subject> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.1.clear();
        state.0.drain(..).collect()
    }
}

/// Tells what of the slices this node's service path has taken in.
#[derive(Clone)]
pub struct Settled {
    changed: Arc<Changed>,
    revision: watch::Receiver<Revision>,
}

impl Settled {
    /// Of a node without a service path: there is nothing to wait for.
    pub fn nothing() -> Self {
        Self { changed: Arc::default(), revision: watch::channel(Revision::MAX).1 }
    }

    /// Waits until everything the caches hold of slices now is in the kernel.
    pub async fn caught_up(&mut self, caches: &Caches) {
        let seen = caches.of::<EndpointSlice>().seen();
        self.changed.wake.notify_one();
        // The sender ends with the feed, and with it the whole process.
        let _ = self.revision.wait_for(|settled| *settled >= seen).await;
    }
}

pub struct Feed {
    settled: watch::Sender<Revision>,
    proxy: Arc<Proxy>,
    dns: Arc<dns::Server>,
    facts: NodeFacts,
    complaints: Complaints,
    health: HealthChecks,
    changed: Arc<Changed>,
    own: Own,
}

impl Feed {
    pub fn new(
        settings: &Settings,
        proxy: Arc<Proxy>,
        dns: Arc<dns::Server>,
        complaints: Complaints,
        own: Own,
    ) -> Self {
        let server = dns.address();
        let local = LocalServer { address: (settings.cluster_dns, DNS_PORT).into(), server };
        let facts = NodeFacts {
            node_name: settings.name.clone(),
            zone: String::new(),
            local_servers: vec![local],
            external_ips: settings.external_ips,
        };
        let health = HealthChecks::new(&settings.name, complaints.clone());
        Self { settled: watch::channel(0).0, proxy, dns, facts, complaints, health, changed: Arc::default(), own }
    }

    /// Subscribes to the caches and starts feeding.
    pub fn start(self, caches: &Arc<Caches>, tasks: &mut JoinSet<()>) -> Settled {
        let settled = Settled { changed: self.changed.clone(), revision: self.settled.subscribe() };
        let services = self.changed.clone();
        caches.of::<Service>().on_change(move |old, new| {
            if let Some(service) = new.or(old) {
                services.add(Subject::Service(Key::of(&service.metadata)));
            }
        });
        let slices = self.changed.clone();
        caches.of::<EndpointSlice>().on_change(move |old, new| {
            for slice in [old, new].into_iter().flatten() {
                if let Some(name) = slice.service_name() {
                    slices.add(Subject::Service(Key::new(&slice.metadata.namespace, name)));
                }
            }
        });
        let namespaces = self.changed.clone();
        caches.of::<Namespace>().on_change(move |old, new| {
            // Nothing of one that stays tells DNS more.
            if let (None, Some(namespace)) | (Some(namespace), None) = (old, new) {
                namespaces.add(Subject::Namespace(namespace.metadata.name.clone()));
            }
        });
        let (complaints, known) = (self.complaints.clone(), Arc::downgrade(caches));
        self.proxy.on_doubt(move |name, error| {
            if let Some(caches) = known.upgrade() {
                complain(&caches, &complaints, name, complaints::NOT_UPDATED, causes::chain(error));
            }
        });
        tasks.spawn(self.run(caches.clone()));
        settled
    }

    async fn run(mut self, caches: Arc<Caches>) {
        caches.synced().await;
        self.changed.take();
        self.facts.zone = self.zone();
        let mut snapshot = self.everything(&caches);
        let mut own = self.own.clone();
        loop {
            tokio::select! {
                () = self.changed.wake.notified() => {}
                Ok(()) = own.changed() => {
                    let zone = self.zone();
                    if zone != self.facts.zone {
                        // Others are nearest now.
                        self.facts.zone = zone;
                        snapshot = self.everything(&caches);
                    }
                    continue;
                }
            }
            // Taken before the keys: what was seen by now is among them.
            let seen = caches.of::<EndpointSlice>().seen();
            let subjects = self.changed.take();
            for subject in &subjects {
                match subject {
                    Subject::Service(key) => self.one(&caches, key, &mut snapshot),
                    Subject::Namespace(name) => match caches.of::<Namespace>().get("", name) {
                        Some(_) => snapshot.set_namespace(name),
                        None => snapshot.remove_namespace(name),
                    },
                }
            }
            if !subjects.is_empty() {
                self.dns.publish(snapshot.clone());
            }
            self.settled.send_replace(seen);
        }
    }

    fn zone(&self) -> String {
        let own = self.own.borrow();
        let labels = own.as_ref().map(|node| &node["metadata"]["labels"]);
        labels.and_then(|labels| labels[ZONE].as_str()).unwrap_or_default().to_owned()
    }

    /// The whole state at once: what an earlier agent left is reconciled, not flushed.
    fn everything(&mut self, caches: &Caches) -> Snapshot {
        let services: Vec<Service> = caches.of::<Service>().all().iter().map(|service| (**service).clone()).collect();
        let slices: Vec<EndpointSlice> =
            caches.of::<EndpointSlice>().all().iter().map(|slice| (**slice).clone()).collect();
        let applied = self.proxy.apply(&desired(&services, &slices, &self.facts));
        self.report(caches, applied);
        self.health.retain(|namespace, name| caches.of::<Service>().get(namespace, name).is_some());
        for service in &services {
            let Meta { namespace, name, .. } = &service.metadata;
            let of_service = caches.of::<EndpointSlice>().indexed(&format!("service/{namespace}/{name}"));
            self.check_health(service, &of_service.iter().map(|slice| &**slice).collect::<Vec<_>>());
        }
        let namespaces = caches.of::<Namespace>().all();
        let names = namespaces.iter().map(|namespace| namespace.metadata.name.clone());
        let snapshot = Snapshot::compute(names, &services, &slices);
        self.dns.publish(snapshot.clone());
        snapshot
    }

    fn one(&mut self, caches: &Caches, key: &Key, snapshot: &mut Snapshot) {
        let service = caches.of::<Service>().get(&key.namespace, &key.name);
        let slices = caches.of::<EndpointSlice>().indexed(&format!("service/{}/{}", key.namespace, key.name));
        let slices: Vec<&EndpointSlice> = slices.iter().map(|slice| &**slice).collect();
        let entries = match &service {
            Some(service) => desired_service(service, &slices, &self.facts),
            None => Vec::new(),
        };
        let applied = self.proxy.apply_service(&format!("{}/{}", key.namespace, key.name), &entries);
        self.report(caches, applied);
        match &service {
            Some(service) => {
                self.check_health(service, &slices);
                snapshot.set(service, &slices);
            }
            None => {
                self.health.close(&key.namespace, &key.name);
                snapshot.remove(&key.namespace, &key.name);
            }
        }
    }

    /// What balancers are told of a Service by now.
    fn check_health(&mut self, service: &Service, slices: &[&EndpointSlice]) {
        let Meta { namespace, name, .. } = &service.metadata;
        let health = health_check_port(service).map(|port| Health {
            port,
            endpoints: ready_here(slices, &self.facts),
            certain: self.proxy.is_certain(&format!("{namespace}/{name}")),
        });
        match health {
            Some(health) => self.health.set(&Reference::new("v1", "Service", &service.metadata), health),
            None => self.health.close(namespace, name),
        }
    }

    /// What the kernel does not hold is said on the Service that misses it.
    fn report(&self, caches: &Caches, refusals: proxy_userspace::Refusals) {
        let refused: HashMap<_, _> = refusals.into_iter().collect();
        for (name, refusal) in refused {
            complain(caches, &self.complaints, &name, complaints::FULL, refusal.to_string());
        }
    }
}

/// Says something on a Service, by the name that the service path has for it.
fn complain(caches: &Caches, complaints: &Complaints, name: &str, reason: &'static str, message: String) {
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    let Some(service) = caches.of::<Service>().get(namespace, name) else {
        tracing::warn!(name, message, "not in the service path");
        return;
    };
    complaints.add(Complaint { about: Reference::new("v1", "Service", &service.metadata), reason, message });
}
