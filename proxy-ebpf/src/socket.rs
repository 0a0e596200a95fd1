//! Hooks at the socket: a connection to a service is sent to an endpoint before any packet exists.
//!
//! They act only on sockets of known network namespaces. Both families share all code and every record, for the kernel hands one
//! socket's calls to hooks of both (connect6, then sendmsg4, then recvmsg6, where an IPv6 socket has a mapped address).

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_ktime_get_coarse_ns, bpf_set_retval};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};
use proxy_common::*;

use crate::atomic::swap_half;
use crate::choose::{Caller, Choice, Endpoint, any, choose, contains, find_service, node_port};
use crate::maps::{CONNECTED, LED, LOCAL_NETNS, LOCAL_NETNS6, ORIGINS, PEERS, SENDERS, count, whole};
use crate::snat;

const ALLOW: i32 = 1;
const DENY: i32 = 0;
const EPERM: i32 = 1;
const ECONNREFUSED: i32 = 111;
const EADDRINUSE: i32 = 98;
/// A peer unused for so long may give its place to another.
const PEER_IDLE_NS: u64 = 120_000_000_000;
/// The place of no sender.
const NONE: u32 = PEERS_PER_SOCKET as u32;
/// Looks at a lock before the call goes the packet path. Whoever holds it may have lost the processor.
const PATIENCE: u32 = 64;

/// The form of the address that a call carries.
#[derive(Clone, Copy)]
enum Form {
    V4,
    /// IPv6, or IPv4 mapped.
    V6,
}

/// What a hook decided about the call.
#[must_use]
enum Verdict {
    Pass,
    Refuse,
    /// The service is for others.
    Bar,
}

#[cgroup_sock_addr(connect4)]
fn amphi_connect4(ctx: SockAddrContext) -> i32 {
    finish(connect(&ctx, Form::V4))
}

#[cgroup_sock_addr(connect6)]
fn amphi_connect6(ctx: SockAddrContext) -> i32 {
    finish(connect(&ctx, Form::V6))
}

#[cgroup_sock_addr(sendmsg4)]
fn amphi_sendmsg4(ctx: SockAddrContext) -> i32 {
    finish(send(&ctx, Form::V4))
}

#[cgroup_sock_addr(sendmsg6)]
fn amphi_sendmsg6(ctx: SockAddrContext) -> i32 {
    finish(send(&ctx, Form::V6))
}

#[cgroup_sock_addr(recvmsg4)]
fn amphi_recvmsg4(ctx: SockAddrContext) -> i32 {
    restore(&ctx, Form::V4);
    ALLOW
}

#[cgroup_sock_addr(recvmsg6)]
fn amphi_recvmsg6(ctx: SockAddrContext) -> i32 {
    restore(&ctx, Form::V6);
    ALLOW
}

#[cgroup_sock_addr(getpeername4)]
fn amphi_getpeername4(ctx: SockAddrContext) -> i32 {
    restore(&ctx, Form::V4);
    ALLOW
}

#[cgroup_sock_addr(getpeername6)]
fn amphi_getpeername6(ctx: SockAddrContext) -> i32 {
    restore(&ctx, Form::V6);
    ALLOW
}

#[cgroup_sock_addr(bind4)]
fn amphi_bind4(ctx: SockAddrContext) -> i32 {
    bind(&ctx, Form::V4)
}

#[cgroup_sock_addr(bind6)]
fn amphi_bind6(ctx: SockAddrContext) -> i32 {
    bind(&ctx, Form::V6)
}

fn finish(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Pass => ALLOW,
        Verdict::Refuse => {
            count(Counter::SocketRefused);
            deny(ECONNREFUSED)
        }
        Verdict::Bar => {
            count(Counter::DropSourceRange);
            deny(EPERM)
        }
    }
}

fn deny(errno: i32) -> i32 {
    // SAFETY: the helper takes any negative errno; every hook that calls this may set one.
    unsafe { bpf_set_retval(-errno) };
    DENY
}

#[inline(always)]
fn connect(ctx: &SockAddrContext, form: Form) -> Verdict {
    let Some(here) = local_netns(ctx) else { return Verdict::Pass };
    let protocol = protocol(ctx);
    let given = address(ctx, form);
    let Some(service) = find_service(given.ip, given.port, protocol, Scope::Internal, here.caller()) else {
        forget_origin(ctx);
        return Verdict::Pass;
    };
    match choose(service, here.client(service.slot, given.ip)) {
        // Connecting a datagram socket never fails on Linux, and some programs do it once and for all: what it sends is answered by
        // the packet program, or translated there once an endpoint exists.
        Choice::Refuse | Choice::Bar if protocol == UDP => {
            forget_origin(ctx);
            Verdict::Pass
        }
        Choice::Refuse => Verdict::Refuse,
        Choice::Bar => Verdict::Bar,
        // The packet program drops and counts.
        Choice::Drop => {
            forget_origin(ctx);
            Verdict::Pass
        }
        Choice::Endpoint(endpoint) => {
            let first = Sender { service: given, backend: address_of(endpoint), member: endpoint.member, used: 0 };
            // What this socket asked of another service of the same endpoint would be answered as if it had asked this one.
            let Some(Sender { backend, member, .. }) = unasked(ctx, protocol, service.slot, first) else {
                forget_origin(ctx);
                count(Counter::SocketLeft);
                return Verdict::Pass;
            };
            let mut origin = Connected { head: Head::NOW, service: given, backend, member };
            // SAFETY: the helper checks the socket of the context.
            let stored = unsafe { CONNECTED.get_or_insert_ptr_mut(ctx, Some(&mut origin)) };
            if !stored.is_null() {
                // SAFETY: not null, so a value of this socket's storage. A second connect replaces what the first one left.
                unsafe { *stored = origin };
            }
            if protocol == UDP {
                // A failed insert costs the socket that it hears late of the endpoint's end.
                let _ = LED.insert(cookie(ctx), member, 0);
            }
            set_address(ctx, form, backend);
            count(Counter::SocketTranslated);
            Verdict::Pass
        }
    }
}

#[inline(always)]
fn cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the helper takes this program type's context.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

#[inline(always)]
fn address_of(endpoint: Endpoint) -> Address {
    Address::new(endpoint.ip, endpoint.port)
}

/// The endpoint, or another of the service that answers nothing else that the socket asked; none: it has to go the packet path.
#[inline(always)]
fn unasked(ctx: &SockAddrContext, protocol: u8, slot: Slot, mut first: Sender) -> Option<Sender> {
    if protocol != UDP {
        return Some(first);
    }
    // SAFETY: the helper checks the socket of the context.
    let senders = unsafe { SENDERS.get_ptr_mut(ctx) };
    if senders.is_null() {
        return Some(first);
    }
    for _ in 0..4 {
        if amphi_is_asked(senders, &raw mut first) == 0 {
            return Some(first);
        }
        let Choice::Endpoint(endpoint) = any(slot) else { return None };
        (first.backend, first.member) = (address_of(endpoint), endpoint.member);
    }
    None
}

/// Whether answers of an endpoint mean another service to a socket.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn amphi_is_asked(senders: *mut Senders, new: *mut Sender) -> u32 {
    // SAFETY: callers give values of their own.
    let (Some(senders), Some(new)) = (unsafe { senders.as_ref() }, unsafe { new.as_ref() }) else { return 1 };
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    let others = |sender: &&Sender| {
        is_same(sender.backend, new.backend) && !is_same(sender.service, new.service) && !is_idle(sender, now)
    };
    senders.list.iter().find(others).is_some() as u32
}

/// A socket that connects elsewhere must not show the service of an earlier connect.
#[inline(always)]
fn forget_origin(ctx: &SockAddrContext) {
    // SAFETY: the helper checks the socket of the context.
    let (stored, earlier) = unsafe { (CONNECTED.get_ptr_mut(ctx), ORIGINS.get_ptr_mut(ctx)) };
    if !stored.is_null() {
        // SAFETY: not null, so a value of this socket's storage.
        unsafe { *stored = Connected::default() };
        let _ = LED.remove(cookie(ctx));
    }
    if !earlier.is_null() {
        // SAFETY: as above.
        unsafe { *earlier = Origin::default() };
    }
}

#[inline(always)]
fn send(ctx: &SockAddrContext, form: Form) -> Verdict {
    let Some(here) = local_netns(ctx) else { return Verdict::Pass };
    let given = address(ctx, form);
    let Some(service) = find_service(given.ip, given.port, UDP, Scope::Internal, here.caller()) else {
        return Verdict::Pass;
    };
    if let Some(backend) = connected_to(ctx, service.slot, given) {
        set_address(ctx, form, backend);
        return Verdict::Pass;
    }
    // SAFETY: the helper checks the socket of the context, and makes a zeroed value where there is none.
    let senders = unsafe { SENDERS.get_or_insert_ptr_mut(ctx, None) };
    if senders.is_null() || !lock(senders) {
        count(Counter::SocketLeft);
        return Verdict::Pass;
    }
    // SAFETY: the helper checks the socket of the context.
    let connected = unsafe { CONNECTED.get_ptr_mut(ctx) };
    // SAFETY: not null, so a value of this socket's storage, which this thread has locked.
    let verdict = translate(ctx, form, unsafe { &mut *senders }, connected, service.slot, given, || {
        choose(service, here.client(service.slot, given.ip))
    });
    unlock(senders);
    verdict
}

/// A socket that has connected to a service sends to it where its connection leads.
#[inline(always)]
fn connected_to(ctx: &SockAddrContext, slot: Slot, given: Address) -> Option<Address> {
    // SAFETY: the helper checks the socket of the context.
    let stored = unsafe { CONNECTED.get_ptr_mut(ctx) };
    if stored.is_null() {
        return None;
    }
    // SAFETY: not null, so a value of this socket's storage.
    let stored = unsafe { &*stored };
    (is_same(stored.service, given) && contains(slot, stored.member)).then_some(stored.backend)
}

/// Several threads may send on one socket at once.
#[inline(always)]
fn lock(senders: *mut Senders) -> bool {
    for _ in 0..PATIENCE {
        // SAFETY: within a value of a socket's storage.
        if unsafe { swap_half(&raw mut (*senders).head.lock, 0, 1) } {
            return true;
        }
    }
    false
}

#[inline(always)]
fn unlock(senders: *mut Senders) {
    // SAFETY: within a value of a socket's storage; whoever has locked it says that it is done.
    unsafe { write_volatile(&raw mut (*senders).head.lock, 0) };
}

#[inline(always)]
fn translate(
    ctx: &SockAddrContext,
    form: Form,
    senders: &mut Senders,
    connected: *mut Connected,
    slot: Slot,
    given: Address,
    choose: impl FnOnce() -> Choice,
) -> Verdict {
    senders.head.version = Head::NOW.version;
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    let mut service = given;
    let place = amphi_same_as_before(senders, slot.bits(), &raw mut service, now);
    if let Some(sender) = senders.list.get(place as usize) {
        set_address(ctx, form, sender.backend);
        return Verdict::Pass;
    }
    match choose() {
        Choice::Refuse => Verdict::Refuse,
        Choice::Bar => Verdict::Bar,
        Choice::Drop => Verdict::Pass,
        Choice::Endpoint(first) => {
            let mut sender = Sender { service, backend: address_of(first), member: first.member, used: now };
            if amphi_remember(senders, connected, &raw mut sender) != 0
                || another(senders, connected, slot, &mut sender)
            {
                set_address(ctx, form, sender.backend);
                count(Counter::SocketTranslated);
            } else {
                count(Counter::SocketLeft);
            }
            Verdict::Pass
        }
    }
}

#[inline(always)]
fn is_same(one: Address, other: Address) -> bool {
    one.ip == other.ip && one.port == other.port
}

#[inline(always)]
fn is_idle(sender: &Sender, now: u64) -> bool {
    sender.used == 0 || now.wrapping_sub(sender.used) >= PEER_IDLE_NS
}

/// The place of the endpoint that a socket already uses for a service, as a connection table would keep it, while it is in the set;
/// `PEERS_PER_SOCKET`: none.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn amphi_same_as_before(senders: *mut Senders, slot: u64, service: *mut Address, now: u64) -> u32 {
    // SAFETY: callers give values of their own.
    let (Some(senders), Some(service)) = (unsafe { senders.as_mut() }, unsafe { service.as_ref() }) else {
        return NONE;
    };
    for (place, sender) in senders.list.iter_mut().enumerate() {
        if sender.used != 0 && is_same(sender.service, *service) {
            if !is_idle(sender, now) && contains(Slot::from_bits(slot), sender.member) {
                sender.used = now;
                return place as u32;
            }
            return NONE;
        }
    }
    NONE
}

/// Notes that replies of a backend are its service's; 0 when they already mean another service, as that which the socket is or was
/// connected to, or there is no room.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn amphi_remember(senders: *mut Senders, connected: *mut Connected, sender: *mut Sender) -> u32 {
    // SAFETY: callers give values of their own.
    let (Some(senders), Some(new)) = (unsafe { senders.as_mut() }, unsafe { sender.as_ref() }) else { return 0 };
    // SAFETY: as above; it may be none.
    if let Some(means) = unsafe { connected.as_ref() }
        && means.head.version != 0
        && is_same(means.backend, new.backend)
        && !is_same(means.service, new.service)
    {
        return 0;
    }
    for sender in &senders.list {
        if is_same(sender.backend, new.backend) && !is_same(sender.service, new.service) && !is_idle(sender, new.used) {
            return 0;
        }
    }
    for sender in &mut senders.list {
        let mine = is_same(sender.service, new.service) || is_same(sender.backend, new.backend);
        if mine || is_idle(sender, new.used) {
            *sender = *new;
            return 1;
        }
    }
    0
}

/// A few more draws when the first endpoint was taken by another service of the same socket.
#[inline(always)]
fn another(senders: &mut Senders, connected: *mut Connected, slot: Slot, sender: &mut Sender) -> bool {
    for _ in 0..3 {
        if let Choice::Endpoint(endpoint) = any(slot) {
            (sender.backend, sender.member) = (address_of(endpoint), endpoint.member);
            if amphi_remember(senders, connected, sender) != 0 {
                return true;
            }
        }
    }
    false
}

/// Shows the address that the program used in place of the endpoint's.
#[inline(always)]
fn restore(ctx: &SockAddrContext, form: Form) {
    let seen = address(ctx, form);
    // SAFETY: the helper checks the socket of the context.
    let origin = unsafe { CONNECTED.get_ptr_mut(ctx) };
    if !origin.is_null() {
        // SAFETY: not null, so a value of this socket's storage.
        let origin = unsafe { &*origin };
        if origin.head.version != 0 && is_same(origin.backend, seen) {
            return set_address(ctx, form, origin.service);
        }
    }
    // SAFETY: as above.
    let senders = unsafe { SENDERS.get_ptr_mut(ctx) };
    if !senders.is_null() {
        // Whether or not the lock is had: what is just being replaced belongs to no answer that is on its way.
        let locked = lock(senders);
        let mut backend = seen;
        let place = amphi_sender_of(senders, &raw mut backend) as usize;
        if place < PEERS_PER_SOCKET {
            // SAFETY: not null, so a value of this socket's storage; the place is within its list.
            set_address(ctx, form, unsafe { (*senders).list[place].service });
        }
        if locked {
            unlock(senders);
        }
        if place < PEERS_PER_SOCKET {
            return;
        }
    }
    if let Some(service) = of_earlier_layout(ctx, seen) {
        set_address(ctx, form, service);
    }
}

/// The place of a backend among a socket's senders; `PEERS_PER_SOCKET`: none.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn amphi_sender_of(senders: *mut Senders, backend: *mut Address) -> u32 {
    // SAFETY: callers give values of their own.
    let (Some(senders), Some(backend)) = (unsafe { senders.as_ref() }, unsafe { backend.as_ref() }) else {
        return NONE;
    };
    let found = senders.list.iter().position(|sender| sender.used != 0 && is_same(sender.backend, *backend));
    found.map_or(NONE, |place| place as u32)
}

/// The service behind an endpoint for sockets that were translated before there was layout 2.
#[inline(always)]
fn of_earlier_layout(ctx: &SockAddrContext, seen: Address) -> Option<Address> {
    let seen = seen.ip.to_v4()?.0 as u64 | (seen.port.0 as u64) << 32;
    let address = |bits: u64| Address::new(Ip::v4(Ip4(bits as u32)), Port((bits >> 32) as u16));
    // SAFETY: the helper checks the socket of the context.
    let origin = unsafe { ORIGINS.get_ptr_mut(ctx) };
    if !origin.is_null() {
        // SAFETY: not null, so a value of this socket's storage.
        let origin = unsafe { *origin };
        if origin.backend == seen {
            return Some(address(origin.service));
        }
    }
    // SAFETY: as above.
    let peers = unsafe { PEERS.get_ptr_mut(ctx) };
    if peers.is_null() {
        return None;
    }
    // SAFETY: not null, so a value of this socket's storage.
    let peer = unsafe { &(*peers).list }.iter().find(|peer| peer.backend == seen)?;
    Some(address(peer.service))
}

/// Keeps the node's programs off NodePorts, and takes note of what they use of the range for translated sources.
#[inline(always)]
fn bind(ctx: &SockAddrContext, form: Form) -> i32 {
    let Some(here) = local_netns(ctx) else { return ALLOW };
    let port = Port(port_word(ctx) as u16);
    if here.caller() != Caller::Node || port.get() == 0 {
        return ALLOW;
    }
    let protocol = protocol(ctx);
    let is_node_port = |family| {
        node_port(family, protocol, port)
            .is_some_and(|port| port.slot(Scope::Internal).is_some() || port.slot(Scope::External).is_some())
    };
    // An IPv6 socket may serve both families.
    if is_node_port(Family::V4) || (matches!(form, Form::V6) && is_node_port(Family::V6)) {
        count(Counter::BindRefused);
        return deny(EADDRINUSE);
    }
    snat::note_bound::<Ip4>(port);
    if matches!(form, Form::V6) {
        snat::note_bound::<Ip>(port);
    }
    ALLOW
}

/// The known network namespace of a socket.
#[derive(Clone, Copy)]
struct Here {
    cookie: u64,
    netns: Netns,
}

impl Here {
    #[inline(always)]
    fn caller(self) -> Caller {
        if self.netns.kind == Netns::NODE { Caller::Node } else { Caller::Elsewhere }
    }

    /// Who asks, in the family of the address that he asks; nobody's business where it makes no difference to the service.
    #[inline(always)]
    fn client(self, slot: Slot, asked: Ip) -> Ip {
        if asked.to_v4().is_some() || !slot.has(Slot::AFFINITY | Slot::SOURCE_RANGES) {
            return Ip::v4(self.netns.ip);
        }
        // SAFETY: a map element; one that is recycled is another client's, who then shares an endpoint.
        LOCAL_NETNS6.get_ptr(self.cookie).map_or(Ip::default(), |ip| unsafe { *ip })
    }
}

#[inline(always)]
fn local_netns(ctx: &SockAddrContext) -> Option<Here> {
    // SAFETY: the helper takes this program type's context.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: the pointer is to a map element.
    let netns = Netns::from_bits(unsafe { whole(LOCAL_NETNS.get_ptr(cookie)?) });
    Some(Here { cookie, netns })
}

/// Reads one word of the context: the verifier takes only whole words at the known offsets.
macro_rules! word {
    ($ctx:expr, $($field:tt)+) => {
        // SAFETY: the context is valid while the program runs.
        unsafe { read_volatile(addr_of!((*$ctx.sock_addr).$($field)+)) }
    };
}

macro_rules! set_word {
    ($ctx:expr, $value:expr, $($field:tt)+) => {
        // SAFETY: as for reading; the hooks that call this may write the field.
        unsafe { write_volatile(addr_of_mut!((*$ctx.sock_addr).$($field)+), $value) }
    };
}

/// Multipath TCP sockets are TCP to everyone else.
#[inline(always)]
fn protocol(ctx: &SockAddrContext) -> u8 {
    let number: u32 = word!(ctx, protocol);
    if number == UDP as u32 { UDP } else { TCP }
}

#[inline(always)]
fn port_word(ctx: &SockAddrContext) -> u32 {
    word!(ctx, user_port)
}

#[inline(always)]
fn address(ctx: &SockAddrContext, form: Form) -> Address {
    let ip = match form {
        Form::V4 => Ip::v4(Ip4(word!(ctx, user_ip4))),
        Form::V6 => Ip::from_quads([
            word!(ctx, user_ip6[0]),
            word!(ctx, user_ip6[1]),
            word!(ctx, user_ip6[2]),
            word!(ctx, user_ip6[3]),
        ]),
    };
    Address::new(ip, Port(port_word(ctx) as u16))
}

#[inline(always)]
fn set_address(ctx: &SockAddrContext, form: Form, to: Address) {
    let [first, second, third, fourth] = to.ip.quads();
    match form {
        Form::V4 => set_word!(ctx, fourth, user_ip4),
        Form::V6 => {
            set_word!(ctx, first, user_ip6[0]);
            set_word!(ctx, second, user_ip6[1]);
            set_word!(ctx, third, user_ip6[2]);
            set_word!(ctx, fourth, user_ip6[3]);
        }
    }
    set_word!(ctx, to.port.0 as u32, user_port);
}
