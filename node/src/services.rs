//! Services and their slices, from the caches to the kernel and to DNS: one service per change, in the order of changes.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use api::view::{EndpointSlice, Service};
use client::events::Reference;
use client::{Caches, Key, Revision};
use dns::Snapshot;
use proxy_userspace::Proxy;
use proxy_userspace::desired::{LocalServer, NodeFacts, desired, desired_service};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::Settings;
use crate::outlook::Namespace;
use complaints::Complaint;
pub use complaints::Complaints;

mod complaints;

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
    changed: Arc<Changed>,
}

impl Feed {
    pub fn new(settings: &Settings, proxy: Arc<Proxy>, dns: Arc<dns::Server>, complaints: Complaints) -> Self {
        let server = dns.address();
        let local = LocalServer { address: (settings.cluster_dns, DNS_PORT).into(), server };
        let facts = NodeFacts {
            node_name: settings.name.clone(),
            local_servers: vec![local],
            external_ips: settings.external_ips,
        };
        Self { settled: watch::channel(0).0, proxy, dns, facts, complaints, changed: Arc::default() }
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
        tasks.spawn(self.run(caches.clone()));
        settled
    }

    async fn run(self, caches: Arc<Caches>) {
        caches.synced().await;
        self.changed.take();
        let mut snapshot = self.everything(&caches);
        loop {
            self.changed.wake.notified().await;
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

    /// The whole state at once: what an earlier agent left is reconciled, not flushed.
    fn everything(&self, caches: &Caches) -> Snapshot {
        let services: Vec<Service> = caches.of::<Service>().all().iter().map(|service| (**service).clone()).collect();
        let slices: Vec<EndpointSlice> =
            caches.of::<EndpointSlice>().all().iter().map(|slice| (**slice).clone()).collect();
        let applied = self.proxy.apply(&desired(&services, &slices, &self.facts));
        self.report(caches, applied);
        let namespaces = caches.of::<Namespace>().all();
        let names = namespaces.iter().map(|namespace| namespace.metadata.name.clone());
        let snapshot = Snapshot::compute(names, &services, &slices);
        self.dns.publish(snapshot.clone());
        snapshot
    }

    fn one(&self, caches: &Caches, key: &Key, snapshot: &mut Snapshot) {
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
            Some(service) => snapshot.set(service, &slices),
            None => snapshot.remove(&key.namespace, &key.name),
        }
    }

    /// What the kernel does not hold is said on the Service that misses it.
    fn report(&self, caches: &Caches, applied: Result<proxy_userspace::Refusals, proxy_userspace::ProxyError>) {
        match applied {
            Ok(refusals) => {
                let refused: HashMap<_, _> = refusals.into_iter().collect();
                for (name, refusal) in refused {
                    let (namespace, name) = name.split_once('/').unwrap_or(("", &name));
                    let Some(service) = caches.of::<Service>().get(namespace, name) else {
                        tracing::warn!(name, %refusal, "not in the service path");
                        continue;
                    };
                    let about = Reference { kind: "Service".into(), ..Reference::pod(&service.metadata) };
                    self.complaints.add(Complaint { about, message: refusal.to_string() });
                }
            }
            Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "service path not updated"),
        }
    }
}
