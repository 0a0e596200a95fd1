//! Every map, what it holds and why it has its type. User space pins them by these names, and gives those of one family the sizes that
//! the families of its node leave them.

use aya_ebpf::Global;
use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, SkStorage};
use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use aya_ebpf::macros::btf_map;
use proxy_common::*;

const MMAPABLE: usize = 1 << 10;

/// Whether the node has addresses of a family. Constants once the programs are loaded: what a node does not serve is no part of them.
#[unsafe(no_mangle)]
pub static SERVES_V4: Global<u32> = Global::new(1);
#[unsafe(no_mangle)]
pub static SERVES_V6: Global<u32> = Global::new(1);

/// Address, port, protocol, scope → slot. A plain hash: a full one refuses the service instead of losing another.
#[btf_map]
pub static FRONTENDS: HashMap<FrontendKey, u64, MAX_FRONTENDS> = HashMap::new();

/// What a port of every address of the node leads to (`NodePort`), by family, protocol and number.
#[btf_map]
pub static NODE_PORTS: Array<u64, MAX_NODE_PORTS, MMAPABLE> = Array::new();

/// One endpoint set per slot (`Slot` bits). Mapped into user space, which flips a set with one store.
#[btf_map]
pub static SLOTS: Array<u64, MAX_SLOTS, MMAPABLE> = Array::new();

/// `Affinity` bits of each slot that has it.
#[btf_map]
pub static AFFINITY_OF: Array<u64, MAX_SLOTS, MMAPABLE> = Array::new();

/// Endpoints (`Member` bits), set after set, each set sorted.
#[btf_map]
pub static SETS: Array<u64, MAX_MEMBERS, MMAPABLE> = Array::new();

/// Who the members are.
#[btf_map]
pub static BACKENDS: Array<Backend, MAX_BACKENDS, MMAPABLE> = Array::new();

/// Who went where. LRU: losing an entry costs a client its endpoint, not its connection.
#[btf_map]
pub static AFFINITY: LruHashMap<AffinityKey, AffinityValue, MAX_AFFINITY> = LruHashMap::new();

/// Network namespace cookie → `Netns` bits: the only sockets that the socket hooks touch.
#[btf_map]
pub static LOCAL_NETNS: HashMap<u64, u64, MAX_NETNS> = HashMap::new();

/// Of those that have one, the IPv6 address: who stays with an endpoint is known by the address that he has in that family.
#[btf_map]
pub static LOCAL_NETNS6: HashMap<u64, Ip, MAX_NETNS> = HashMap::new();

/// Address of a pod on this node → `PodLink` bits.
#[btf_map]
pub static PODS: HashMap<Ip4, u64, MAX_PODS> = HashMap::new();

/// Address of a pod on this node → its confirmed flows. The programs count up, the sweep counts anew.
#[btf_map]
pub static SHARES: HashMap<Ip4, u64, MAX_PODS> = HashMap::new();

/// Address of any node → `THIS_NODE` or `OTHER_NODE`.
#[btf_map]
pub static NODE_ADDRESSES: HashMap<Ip4, u32, MAX_NODE_ADDRESSES> = HashMap::new();

#[btf_map]
pub static NODE: Array<NodeConfig, 1> = Array::new();

/// Monotonic nanoseconds until which flows may still be on their way from an earlier version's maps; 0 as a rule.
#[btf_map]
pub static CARRYING: Array<u64, 1> = Array::new();

/// Connections, by what their clients' packets show. A plain hash, swept by deadline: nothing evicts a live connection.
#[btf_map]
pub static FLOWS: HashMap<Tuple, Flow, MAX_FLOWS> = HashMap::new();

/// Who shows the ports of the range for translated sources; by it answers find their connection.
#[btf_map]
pub static SNAT: Array<SnatPlace, MAX_SNAT_PLACES, MMAPABLE> = Array::new();

/// Endpoint (`end` bits) → `Exposed` bits; by it answers to clients that kept their own address and port find their connection.
#[btf_map]
pub static EXPOSED: HashMap<u64, u64, MAX_EXPOSED> = HashMap::new();

/// The connections that began last, in a ring: a flood of openings only pushes out its like.
#[btf_map]
pub static NEWEST: Array<Tuple, MAX_NEW_FLOWS> = Array::new();

/// How many connections ever began.
#[btf_map]
pub static BEGUN: Array<u64, 1> = Array::new();

/// Ports (source | destination << 16) of fragmented packets, for the fragments that carry none.
#[btf_map]
pub static FRAGMENTS: LruHashMap<FragmentKey, u32, MAX_FRAGMENTS> = LruHashMap::new();

/// The twins for IPv6 of the maps whose keys or values are addresses as packets show them.
#[btf_map]
pub static PODS6: HashMap<Ip, u64, MAX_PODS> = HashMap::new();

#[btf_map]
pub static SHARES6: HashMap<Ip, u64, MAX_PODS> = HashMap::new();

#[btf_map]
pub static NODE_ADDRESSES6: HashMap<Ip, u32, MAX_NODE_ADDRESSES> = HashMap::new();

#[btf_map]
pub static NODE6: Array<NodeConfig<Ip>, 1> = Array::new();

#[btf_map]
pub static FLOWS6: HashMap<Tuple<Ip>, Flow<Ip>, MAX_FLOWS> = HashMap::new();

#[btf_map]
pub static SNAT6: Array<SnatPlace<Ip>, MAX_SNAT_PLACES6, MMAPABLE> = Array::new();

/// Key and value are of three words: a value that is read while its element is recycled leads to no flow.
#[btf_map]
pub static EXPOSED6: HashMap<[u64; 3], [u64; 3], MAX_EXPOSED> = HashMap::new();

#[btf_map]
pub static NEWEST6: Array<Tuple<Ip>, MAX_NEW_FLOWS6> = Array::new();

#[btf_map]
pub static BEGUN6: Array<u64, 1> = Array::new();

#[btf_map]
pub static FRAGMENTS6: LruHashMap<FragmentKey6, u32, MAX_FRAGMENTS> = LruHashMap::new();

/// Where a connected socket was meant to go. Dies with the socket.
#[btf_map]
pub static CONNECTED: SkStorage<Connected> = SkStorage::new();

/// The services that an unconnected UDP socket sends to. Dies with the socket.
#[btf_map]
pub static SENDERS: SkStorage<Senders> = SkStorage::new();

/// What sockets have from layout 1 in place of `CONNECTED`.
#[btf_map]
pub static ORIGINS: SkStorage<Origin> = SkStorage::new();

/// And in place of `SENDERS`.
#[btf_map]
pub static PEERS: SkStorage<Peers> = SkStorage::new();

#[btf_map]
pub static COUNTERS: PerCpuArray<u64, { Counter::COUNT }> = PerCpuArray::new();

#[inline(always)]
pub fn count(counter: Counter) {
    count_number(counter as u32);
}

/// The same by the counter's number.
#[inline(always)]
pub fn count_number(counter: u32) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter) {
        // SAFETY: a per-CPU element, valid while the program runs; only this CPU writes it.
        unsafe { *value += 1 };
    }
}

/// The node for a function that is verified by itself, which cannot be told that it only reads.
pub const fn of_map<A>(node: &NodeConfig<A>) -> *mut NodeConfig<A> {
    core::ptr::from_ref(node).cast_mut()
}

/// Whether a flow that nobody knows may be one that is not carried over yet: then its packets are lost, not answered, and sent
/// again soon.
#[inline(never)]
pub fn flows_are_carried() -> bool {
    // SAFETY: the pointer is to a map element; the helper has no preconditions.
    CARRYING.get_ptr(0).is_some_and(|until| unsafe { whole(until) > bpf_ktime_get_coarse_ns() })
}

/// Reads a packed value in one load, so that no half of it is another's.
///
/// # Safety
/// `value` points to an element of a map.
pub unsafe fn whole(value: *const u64) -> u64 {
    // SAFETY: map values are aligned to 8 bytes and stay readable while the program runs.
    unsafe { core::ptr::read_volatile(value) }
}
