//! The service path of one node: loaded programs, their maps, and the one place that writes them.

mod bound;
mod maps;
mod sweep;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use proxy_common::*;

use crate::desired::{Contents, Entry, HostPort, ServiceName, desired_host_ports, host_ports_of};
use crate::family::{Addresses, Families, Twin};
use crate::layout::{self, Layout};
use crate::links::{self, LinkError};
use crate::migrate::earlier;
use crate::migrate::{MigrateError, Migration, Pass};
use crate::object::{self, Attachment, LoadError, PacketHook, Pins, Programs};
use crate::sys::{self, Map, Put};
use crate::table::{Limits, Refusal, Table};

pub(crate) use maps::{Maps, Twins, written};
use sweep::Suspects;

pub(crate) const LIMITS: Limits = Limits {
    slots: MAX_SLOTS as u32,
    members: MAX_MEMBERS as u32,
    backends: MAX_BACKENDS as u32,
    frontends: MAX_FRONTENDS,
};
/// Of all flows, what one pod may have: the part with this number. Whoever opens more is refused, and its neighbours go on.
pub(crate) const POD_SHARE: u32 = 8;
const SWEEP_EVERY: Duration = Duration::from_secs(30);
/// Nanoseconds that carrying flows over takes at most; after that the programs answer for what they do not know.
const CARRIED_WITHIN: u64 = 3_000_000_000;

#[derive(Debug, Clone)]
pub struct Config {
    /// Folder of pins; a BPF file system is mounted there when it lies on none.
    pub bpf_root: PathBuf,
    /// The cgroup2 folder whose processes' sockets are seen.
    pub cgroup_root: PathBuf,
    pub socket_hooks: SocketHooks,
    pub attachment: Attachment,
    /// Those of the node. Maps that have other sizes for it now are made anew, and what they held is carried over.
    pub families: Families,
}

/// Services work without socket hooks too, packet by packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketHooks {
    Attached,
    Absent,
}

#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Migrate(#[from] MigrateError),
    #[error("map {map} refuses a change")]
    Write { map: &'static str, source: io::Error },
    #[error("the network namespace of {whose} cannot be read")]
    Netns { whose: String, source: io::Error },
    #[error("the sweeper thread cannot start")]
    Thread(#[source] io::Error),
    #[error("{what}: the packet that is measured is dropped")]
    Dropped { what: &'static str },
}

pub(crate) type Result<T> = std::result::Result<T, ProxyError>;

/// Services that are not, or not wholly, translated, and why.
pub type Refusals = Vec<(ServiceName, Refusal)>;

/// A running service path. Dropping it leaves everything in the kernel at work.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    programs: Programs,
    sweeper: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    pins: Pins,
    maps: Maps,
    state: Mutex<State>,
    wake: Condvar,
    socket_hooks: SocketHooks,
}

#[derive(Debug)]
struct State {
    table: Table,
    tidy: Tidy,
}

/// What the sweeper is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tidy {
    Idle,
    /// Sets changed: hand places out again.
    Due,
    Stop,
}

impl Proxy {
    /// Loads the programs, takes up pinned maps and links, and attaches the socket hooks.
    ///
    /// # Errors
    /// [`ProxyError::Load`] where the machine lacks something or the kernel refuses the object, `Migrate` where the contents of
    /// an earlier layout cannot be carried over, `Link` where a program cannot be attached, `Write` and `Thread` where the kernel
    /// gives no more. What an earlier process attached stays at work, and the next start goes on from what this one pinned.
    pub fn start(config: &Config) -> Result<Self> {
        Self::start_in_layouts(config, layout::CURRENT)
    }

    /// The same with maps of other layouts than this version's: so tests play a later version.
    ///
    /// # Errors
    /// As for [`Proxy::start`].
    pub fn start_in_layouts(config: &Config, layouts: &'static [Layout]) -> Result<Self> {
        object::check_machine(&config.cgroup_root)?;
        object::prepare_root(&config.bpf_root)?;
        let pins = Pins::in_layouts(&config.bpf_root, layouts).of(config.families).by(config.attachment);
        let programs = take_over(&pins)?;
        let maps = Maps::open(&pins)?;
        let mut table = maps.adopt()?;
        let pods = maps.pods()?.into_iter().map(|(ip, _)| ip).collect();
        table.take_up_host_ports(&pods).ops.iter().try_for_each(|op| maps.run(op))?;
        match config.socket_hooks {
            SocketHooks::Attached => links::attach_socket_hooks(&pins, &programs, &config.cgroup_root)?,
            SocketHooks::Absent => links::detach_socket_hooks(&pins)?,
        }
        let shared = Arc::new(Shared::new(pins, maps, table, config.socket_hooks));
        let sweeping = Arc::clone(&shared);
        let sweeper =
            std::thread::Builder::new().name("proxy-sweeper".into()).spawn(move || sweeping.sweep_until_stopped());
        Ok(Self { shared, programs, sweeper: Some(sweeper.map_err(ProxyError::Thread)?) })
    }

    /// Removes programs, maps and the mount. For `reset`; a running agent never calls it.
    ///
    /// # Errors
    /// As for [`object::remove_root`], or where a device does not let go of a program.
    pub fn unload(bpf_root: &Path) -> io::Result<()> {
        links::release(&Pins::new(bpf_root)).map_err(io::Error::other)?;
        object::remove_root(bpf_root)
    }

    /// Brings all Services to `contents`. Unchanged ones cost a comparison.
    ///
    /// # Errors
    /// [`ProxyError::Write`] where a map refuses a step. The maps can be read at any step, so services go on with what is
    /// written; but the steps behind it count as made, and only the next start, which looks at the maps, makes them.
    pub fn apply(&self, contents: &Contents) -> Result<Refusals> {
        self.shared.change(|table| table.replace(contents))
    }

    /// Brings one service to `entries`; none removes it.
    ///
    /// # Errors
    /// As for [`Proxy::apply`].
    pub fn apply_service(&self, name: &str, entries: &[Entry]) -> Result<Refusals> {
        self.shared.change(|table| table.change(name, entries))
    }

    /// Tells the packet programs about their node, in whose network namespace the caller is, in the families that it has.
    ///
    /// # Errors
    /// [`ProxyError::Write`] where the programs cannot be told, or the ports in use not be read: they go on with what they know.
    pub fn configure_node(&self, v4: Option<&NodeConfig>, v6: Option<&NodeConfig<Ip>>) -> Result<()> {
        self.shared.configure(&self.shared.maps.v4, v4)?;
        self.shared.configure(&self.shared.maps.v6, v6)
    }

    /// The addresses that carry NodePorts: this node's and the others', of either family.
    ///
    /// # Errors
    /// [`ProxyError::Write`] where a map refuses, with `E2BIG` for more addresses than it holds. Some have changed by then; a
    /// repeat changes the rest.
    pub fn set_node_addresses(&self, this: &[IpAddr], others: &[IpAddr]) -> Result<()> {
        self.shared.maps.v4.set_node_addresses(this, others)?;
        self.shared.maps.v6.set_node_addresses(this, others)?;
        self.shared.places_changed()
    }

    /// Sockets of the node's own namespace are translated from now on.
    ///
    /// # Errors
    /// [`ProxyError::Netns`] where `netns` is no network namespace or cannot be entered, [`ProxyError::Write`] where the map
    /// refuses. Then what the node sends to services is translated packet by packet, until a repeat succeeds.
    pub fn add_node_netns(&self, netns: &File, addresses: Addresses) -> Result<()> {
        self.add_netns(netns, Netns::NODE, addresses, "the node")
    }

    /// A pod of this node: packets to its addresses go into `ifindex`, and its sockets are translated.
    ///
    /// # Errors
    /// [`ProxyError::Netns`] where `netns` is no network namespace or cannot be entered, [`ProxyError::Write`] where a map
    /// refuses, with `E2BIG` where it has all the pods it can hold. A repeat adds what is missing, [`Proxy::remove_pod`] takes
    /// away what is there.
    pub fn add_pod(&self, addresses: Addresses, ifindex: u32, netns: &File) -> Result<()> {
        self.add_netns(netns, Netns::POD, addresses, "a pod")?;
        for ip in addresses.iter() {
            self.shared.maps.v4.add_pod(ip, ifindex)?;
            self.shared.maps.v6.add_pod(ip, ifindex)?;
        }
        self.shared.places_changed()
    }

    /// The ports of the node that lead to a pod's address, whatever Services there are, as far as they are of its family. They go with
    /// the pod; what is another's already waits until it is free.
    ///
    /// # Errors
    /// As for [`Proxy::apply`]. A port that is another's is no error: it is among the refusals.
    pub fn set_host_ports(&self, pod: IpAddr, ports: &[HostPort]) -> Result<Vec<Refusal>> {
        let name = host_ports_of(pod);
        let refusals = self.apply_service(&name, &desired_host_ports(pod, ports))?;
        Ok(refusals.into_iter().filter(|(whose, _)| *whose == name).map(|(_, refusal)| refusal).collect())
    }

    /// Takes away all that is kept of a pod by one of its addresses; its sockets are translated no more. One that is not there is no
    /// error.
    ///
    /// # Errors
    /// [`ProxyError::Write`] where a map refuses. A repeat removes what is left, but for host ports: see [`Proxy::apply`].
    pub fn remove_pod(&self, ip: IpAddr) -> Result<()> {
        // As long as the pod is known, a process that comes next takes them up.
        self.set_host_ports(ip, &[])?;
        let maps = &self.shared.maps;
        maps.v4.forget_pod(ip)?;
        maps.v6.forget_pod(ip)?;
        self.shared.places_changed()?;
        maps.v4.forget_share(ip)?;
        maps.v6.forget_share(ip)?;
        self.forget_netns(Netns::POD, ip.into(), None)
    }

    /// Address and host end of every pod that the maps hold, for removing what no pod owns any more.
    ///
    /// # Errors
    /// [`ProxyError::Write`] where a map of pods cannot be read.
    pub fn pods(&self) -> Result<Vec<(IpAddr, u32)>> {
        self.shared.maps.pods()
    }

    /// Whether sockets of the namespace with this cookie are translated.
    ///
    /// # Errors
    /// [`ProxyError::Write`] where the map of namespaces cannot be read.
    pub fn is_local_netns(&self, cookie: u64) -> Result<bool> {
        Ok(self.shared.maps.local_netns.get(&cookie).map_err(written("LOCAL_NETNS"))?.is_some())
    }

    fn add_netns(&self, netns: &File, kind: u32, addresses: Addresses, whose: &str) -> Result<()> {
        let cookie =
            sys::netns_cookie(netns).map_err(|source| ProxyError::Netns { whose: whose.to_owned(), source })?;
        self.forget_netns(kind, addresses, Some(cookie))?;
        let maps = &self.shared.maps;
        match addresses.v6 {
            Some(ip) => maps.local_netns6.put(&cookie, &ip.into(), Put::Any).map_err(written("LOCAL_NETNS6"))?,
            None => drop(maps.local_netns6.remove(&cookie).map_err(written("LOCAL_NETNS6"))?),
        }
        let owner = Netns { kind, ip: addresses.v4.map_or(Ip4::UNSPECIFIED, Ip4::from) };
        maps.local_netns.put(&cookie, &owner.bits(), Put::Any).map_err(written("LOCAL_NETNS"))
    }

    /// Drops namespaces of the same owner, which an earlier run left.
    fn forget_netns(&self, kind: u32, addresses: Addresses, keep: Option<u64>) -> Result<()> {
        let (maps, v4) = (&self.shared.maps, addresses.v4.map(Ip4::from));
        let v6 = addresses.v6.map(Ip::from);
        let of_v6 = maps.local_netns6.entries().map_err(written("LOCAL_NETNS6"))?;
        let of_v6: HashMap<u64, Ip> = of_v6.into_iter().collect();
        for (cookie, bits) in maps.local_netns.entries().map_err(written("LOCAL_NETNS"))? {
            let (owner, second) = (Netns::from_bits(bits), of_v6.get(&cookie));
            let is_same = v4 == Some(owner.ip) || (v6.is_some() && v6.as_ref() == second);
            if owner.kind == kind && is_same && Some(cookie) != keep {
                maps.local_netns.remove(&cookie).map_err(written("LOCAL_NETNS"))?;
                maps.local_netns6.remove(&cookie).map_err(written("LOCAL_NETNS6"))?;
            }
        }
        Ok(())
    }

    /// Puts the hook's program on a device, before those of others. One that is there is replaced without a gap.
    ///
    /// # Errors
    /// [`ProxyError::Link`] with the kernel's errno, such as `ENODEV` for a device that is gone by now. May be repeated.
    pub fn attach_device(&self, device: &str, ifindex: u32, hook: PacketHook) -> Result<()> {
        Ok(links::attach_device(&self.shared.pins, &self.programs, device, ifindex, hook)?)
    }

    /// Forgets a device; its links go. One that has none is no error.
    ///
    /// # Errors
    /// [`ProxyError::Link`] where a pin cannot be removed. May be repeated.
    pub fn detach_device(&self, device: &str) -> Result<()> {
        Ok(links::detach_device(&self.shared.pins, device)?)
    }

    /// Forgets the devices that are none of `present`.
    ///
    /// # Errors
    /// [`ProxyError::Link`] where the pins cannot be listed or one not be removed. A repeat goes on with the rest.
    pub fn forget_devices(&self, present: &[&str]) -> Result<()> {
        Ok(links::forget_devices(&self.shared.pins, present)?)
    }

    /// Every counter by name.
    ///
    /// # Errors
    /// [`ProxyError::Write`] where the map of counters cannot be read.
    pub fn counters(&self) -> Result<Vec<(&'static str, u64)>> {
        named(&self.shared.maps.counters).map_err(written("COUNTERS"))
    }

    /// Frontends held now, and the most there may be.
    pub fn usage(&self) -> (usize, usize) {
        (self.shared.lock().table.len(), MAX_FRONTENDS)
    }

    /// Services that are not wholly translated because a map is full. They are tried again whenever places come free.
    pub fn refused(&self) -> usize {
        self.shared.lock().table.refused()
    }

    /// Ends every connection of the packet path at once, as if it had never been: for tests of what becomes of their packets.
    ///
    /// # Errors
    /// [`ProxyError::Write`] where the map of flows refuses; some are gone by then.
    pub fn forget_flows(&self) -> Result<()> {
        self.shared.maps.v4.forget_flows()?;
        self.shared.maps.v6.forget_flows()
    }

    /// A loaded program, to be tried on packets.
    ///
    /// # Errors
    /// [`LoadError::Missing`], which loading has ruled out for every [`PacketHook`].
    pub fn program(&self, hook: PacketHook) -> Result<&std::os::fd::OwnedFd> {
        Ok(self.programs.get(hook.program())?)
    }
}

/// Loads the programs and puts them in the place of an earlier process's, with all that its maps hold.
fn take_over(pins: &Pins) -> Result<Programs> {
    let migration = Migration::find(pins)?;
    let programs = object::load(pins)?;
    let maps = Maps::open(pins)?;
    migration.carry(pins, Pass::First)?;
    maps.rebuild_ports(&migration)?;
    if migration.has("FRONTENDS", Some(earlier::LAYOUT)) {
        let ops = maps.adopt()?.replace(&earlier::services(pins)?).ops;
        ops.iter().try_for_each(|op| maps.run(op))?;
    }
    if migration.has("FLOWS", Some(earlier::LAYOUT)) {
        tracing::warn!(
            "an earlier version of amphipod ran here, whose connections this one cannot take over where they were translated packet \
             by packet: they break, and clients with session affinity choose anew"
        );
    }
    let carrying: Map<u32, u64> = object::open(pins, "CARRYING")?;
    let say = |until: u64| carrying.put(&0, &until, Put::Any).map_err(written("CARRYING"));
    if migration.has_flows() {
        // Not for ever, should this process end here.
        say(sys::monotonic_nanoseconds() + CARRIED_WITHIN)?;
    }
    links::renew(pins, &programs)?;
    migration.carry(pins, Pass::Second)?;
    maps.rebuild_ports(&migration)?;
    say(0)?;
    migration.finish(pins)?;
    Ok(programs)
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.lock().tidy = Tidy::Stop;
        self.shared.wake.notify_all();
        if let Some(sweeper) = self.sweeper.take()
            && sweeper.join().is_err()
        {
            tracing::error!("the proxy's sweeper panicked");
        }
    }
}

/// What an agent's pinned maps tell to others on the machine, whether the agent runs or not.
#[derive(Debug)]
pub struct Pinned {
    counters: Map<u32, u64>,
    local_netns: Map<u64, u64>,
}

impl Pinned {
    /// # Errors
    /// `ENOENT` where no agent with this version's layout of these maps was started under the root, `EPERM` without the right to
    /// look.
    pub fn open(bpf_root: &Path) -> io::Result<Self> {
        let pins = Pins::new(bpf_root);
        Ok(Self { counters: Map::open(&pins.map("COUNTERS"))?, local_netns: Map::open(&pins.map("LOCAL_NETNS"))? })
    }

    /// Every counter by name.
    ///
    /// # Errors
    /// The kernel's, of reading the map.
    pub fn counters(&self) -> io::Result<Vec<(&'static str, u64)>> {
        named(&self.counters)
    }

    /// Whether the sockets of a namespace are translated.
    ///
    /// # Errors
    /// `EINVAL` where `netns` is no network namespace, `EPERM` where it cannot be entered; else the kernel's, of reading the map.
    pub fn is_local_netns(&self, netns: &File) -> io::Result<bool> {
        Ok(self.local_netns.get(&crate::sys::netns_cookie(netns)?)?.is_some())
    }
}

fn named(counters: &Map<u32, u64>) -> io::Result<Vec<(&'static str, u64)>> {
    let cpus = sys::possible_cpus();
    let sum = |index| counters.per_cpu(index, cpus).map(|values| values.iter().sum());
    Counter::NAMES.iter().zip(0u32..).map(|(name, index)| Ok((*name, sum(index)?))).collect()
}

impl Shared {
    fn new(pins: Pins, maps: Maps, table: Table, socket_hooks: SocketHooks) -> Self {
        let state = Mutex::new(State { table, tidy: Tidy::Due });
        Self { pins, maps, state, wake: Condvar::new(), socket_hooks }
    }

    /// A panic elsewhere leaves the table as it was: every change to it is made before anything can fail.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, plan: impl Fn(&mut Table) -> crate::table::Change) -> Result<Refusals> {
        let mut state = self.lock();
        let change = plan(&mut state.table);
        if !change.ops.is_empty() {
            state.tidy = Tidy::Due;
            self.wake.notify_all();
        }
        change.ops.iter().try_for_each(|op| self.maps.run(op))?;
        Ok(change.refusals)
    }

    /// Tells the programs of one family; none: the node has no address of it.
    fn configure<A: Twin>(&self, maps: &Twins<A>, node: Option<&NodeConfig<A>>) -> Result<()> {
        if let Some(node) = node {
            maps.note_bound(node)?;
        }
        let probe_ports = (self.socket_hooks == SocketHooks::Absent).into();
        let pod_flows = maps.most_flows / POD_SHARE;
        let told = node.map(|node| NodeConfig { probe_ports, pod_flows, ..*node }).unwrap_or_default();
        self.renew_epoch(maps, |epoch, _| NodeConfig { epoch, ..told })
    }

    /// Pods or node addresses came or went: flows look up anew where their packets go.
    fn places_changed(&self) -> Result<()> {
        self.renew_epoch(&self.maps.v4, |epoch, before| NodeConfig { epoch, ..before })?;
        self.renew_epoch(&self.maps.v6, |epoch, before| NodeConfig { epoch, ..before })
    }

    fn renew_epoch<A: Twin>(
        &self,
        maps: &Twins<A>,
        node: impl FnOnce(u32, NodeConfig<A>) -> NodeConfig<A>,
    ) -> Result<()> {
        // One change at a time, so that no epoch comes twice.
        let _state = self.lock();
        let before = maps.node.get(&0).map_err(written(A::NODE))?.unwrap_or_default();
        let epoch = before.epoch.wrapping_add(1).max(1);
        maps.node.put(&0, &node(epoch, before), Put::Any).map_err(written(A::NODE))
    }

    /// The first sweep is due at once: processes that end before each other's next sweep would otherwise leave every flow behind.
    fn sweep_until_stopped(&self) {
        let mut due = Instant::now();
        let mut suspects = Suspects::default();
        loop {
            let state = self.lock();
            let left = due.saturating_duration_since(Instant::now());
            let waited = self.wake.wait_timeout_while(state, left, |state| state.tidy == Tidy::Idle);
            let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if state.tidy == Tidy::Stop {
                return;
            }
            state.tidy = Tidy::Idle;
            let waste = state.table.take_waste();
            drop(state);
            if !waste.is_empty() {
                match sys::wait_for_programs() {
                    Ok(()) => self.reclaim(waste),
                    Err(error) => tracing::error!(%error, "membarrier failed: places of old endpoint sets stay unused"),
                }
            }
            if Instant::now() >= due {
                due = Instant::now() + SWEEP_EVERY;
                if let Err(error) = self.maps.sweep(&mut suspects) {
                    tracing::error!(error = &error as &dyn std::error::Error, "sweeping flows failed");
                }
            }
        }
    }

    /// Hands places out again, to those first who found none.
    fn reclaim(&self, waste: crate::table::Waste) {
        self.lock().table.reclaim(waste);
        if self.lock().table.refused() == 0 {
            return;
        }
        match self.change(Table::retry) {
            Ok(refusals) => tracing::info!(still_refused = refusals.len(), "services without room were tried again"),
            Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "trying services again failed"),
        }
    }
}

#[cfg(test)]
mod tests;
