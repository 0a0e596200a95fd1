//! Hooks at the socket: a connection to a service is sent to an endpoint before any packet exists.
//!
//! They act only on sockets of known network namespaces. IPv4 sockets and IPv6 sockets with mapped addresses share all code, for
//! the kernel hands one socket's calls to hooks of both families (connect6, then sendmsg4, then recvmsg6).

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_ktime_get_coarse_ns, bpf_set_retval};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};
use proxy_common::*;

use crate::choose::{Choice, any, choose, contains, find_service};
use crate::maps::{FRONTENDS, LOCAL_NETNS, ORIGINS, PEERS, count, node, whole};

const ALLOW: i32 = 1;
const DENY: i32 = 0;
const ECONNREFUSED: i32 = 111;
const EADDRINUSE: i32 = 98;
/// The third word of ::ffff:0.0.0.0.
const MAPPED: u32 = 0x0000_ffffu32.to_be();
/// A peer unused for so long may give its place to another.
const PEER_IDLE_NS: u64 = 120_000_000_000;

/// The address that a call carries, in the two forms that an IPv4 address has.
#[derive(Clone, Copy)]
enum Form {
    V4,
    Mapped,
}

/// What a hook decided about the call.
#[must_use]
enum Verdict {
    Pass,
    Refuse,
}

#[cgroup_sock_addr(connect4)]
fn amphi_connect4(ctx: SockAddrContext) -> i32 {
    finish(connect(&ctx, Form::V4))
}

#[cgroup_sock_addr(connect6)]
fn amphi_connect6(ctx: SockAddrContext) -> i32 {
    if is_mapped(&ctx) { finish(connect(&ctx, Form::Mapped)) } else { ALLOW }
}

#[cgroup_sock_addr(sendmsg4)]
fn amphi_sendmsg4(ctx: SockAddrContext) -> i32 {
    finish(send(&ctx, Form::V4))
}

#[cgroup_sock_addr(sendmsg6)]
fn amphi_sendmsg6(ctx: SockAddrContext) -> i32 {
    if is_mapped(&ctx) { finish(send(&ctx, Form::Mapped)) } else { ALLOW }
}

#[cgroup_sock_addr(recvmsg4)]
fn amphi_recvmsg4(ctx: SockAddrContext) -> i32 {
    restore(&ctx, Form::V4);
    ALLOW
}

#[cgroup_sock_addr(recvmsg6)]
fn amphi_recvmsg6(ctx: SockAddrContext) -> i32 {
    if is_mapped(&ctx) {
        restore(&ctx, Form::Mapped);
    }
    ALLOW
}

#[cgroup_sock_addr(getpeername4)]
fn amphi_getpeername4(ctx: SockAddrContext) -> i32 {
    restore(&ctx, Form::V4);
    ALLOW
}

#[cgroup_sock_addr(getpeername6)]
fn amphi_getpeername6(ctx: SockAddrContext) -> i32 {
    if is_mapped(&ctx) {
        restore(&ctx, Form::Mapped);
    }
    ALLOW
}

#[cgroup_sock_addr(bind4)]
fn amphi_bind4(ctx: SockAddrContext) -> i32 {
    bind(&ctx)
}

#[cgroup_sock_addr(bind6)]
fn amphi_bind6(ctx: SockAddrContext) -> i32 {
    bind(&ctx)
}

fn finish(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Pass => ALLOW,
        Verdict::Refuse => {
            count(Counter::SocketRefused);
            deny(ECONNREFUSED)
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
    let Some(netns) = local_netns(ctx) else { return Verdict::Pass };
    let protocol = protocol(ctx);
    let given = address(ctx, form);
    let loopback = netns.kind == Netns::NODE;
    let Some(service) = find_service(given.addr, given.port, protocol, Scope::Internal, loopback) else {
        forget_origin(ctx);
        return Verdict::Pass;
    };
    match choose(service, netns.ip) {
        Choice::Refuse => Verdict::Refuse,
        // The packet program drops and counts.
        Choice::Drop => Verdict::Pass,
        Choice::Endpoint(backend) => {
            let mut origin = Origin { service: given.bits(), backend: backend.bits() };
            // SAFETY: the helper checks the socket of the context.
            let stored = unsafe { ORIGINS.get_or_insert_ptr_mut(ctx, Some(&mut origin)) };
            if !stored.is_null() {
                // SAFETY: not null, so a value of this socket's storage. A second connect replaces what the first one left.
                unsafe { *stored = origin };
            }
            set_address(ctx, form, backend);
            count(Counter::SocketTranslated);
            Verdict::Pass
        }
    }
}

/// A socket that connects elsewhere must not show the service of an earlier connect.
#[inline(always)]
fn forget_origin(ctx: &SockAddrContext) {
    // SAFETY: the helper checks the socket of the context.
    let stored = unsafe { ORIGINS.get_ptr_mut(ctx) };
    if !stored.is_null() {
        // SAFETY: not null, so a value of this socket's storage.
        unsafe { *stored = Origin::default() };
    }
}

#[inline(always)]
fn send(ctx: &SockAddrContext, form: Form) -> Verdict {
    let Some(netns) = local_netns(ctx) else { return Verdict::Pass };
    let given = address(ctx, form);
    let loopback = netns.kind == Netns::NODE;
    let Some(service) = find_service(given.addr, given.port, UDP, Scope::Internal, loopback) else {
        return Verdict::Pass;
    };
    // SAFETY: the helper checks the socket of the context, and makes a zeroed value where there is none.
    let peers = unsafe { PEERS.get_or_insert_ptr_mut(ctx, None) };
    if peers.is_null() {
        count(Counter::SocketLeft);
        return Verdict::Pass;
    }
    // SAFETY: not null, so a value of this socket's storage.
    let peers = unsafe { &mut *peers };
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    if let Some(backend) = same_as_before(peers, service.slot, given.bits(), now) {
        set_address(ctx, form, backend);
        return Verdict::Pass;
    }
    match choose(service, netns.ip) {
        Choice::Refuse => Verdict::Refuse,
        Choice::Drop => Verdict::Pass,
        Choice::Endpoint(first) => {
            let backend = match remember(peers, given.bits(), first, now) {
                true => Some(first),
                false => another(peers, service.slot, given.bits(), now),
            };
            match backend {
                Some(backend) => {
                    set_address(ctx, form, backend);
                    count(Counter::SocketTranslated);
                }
                None => count(Counter::SocketLeft),
            }
            Verdict::Pass
        }
    }
}

/// The endpoint this socket already uses for the service, as a connection table would keep it, while it is in the set.
#[inline(always)]
fn same_as_before(peers: &mut Peers, slot: Slot, service: u64, now: u64) -> Option<Backend> {
    for peer in &mut peers.list {
        if peer.service == service && peer.backend != 0 {
            if now.wrapping_sub(peer.used) < PEER_IDLE_NS && contains(slot, peer.backend) {
                peer.used = now;
                return Some(Backend::from_bits(peer.backend));
            }
            return None;
        }
    }
    None
}

/// Notes that replies of `backend` are the service's. False when they already mean another service, or there is no room.
#[inline(always)]
fn remember(peers: &mut Peers, service: u64, backend: Backend, now: u64) -> bool {
    let bits = backend.bits();
    for peer in &peers.list {
        if peer.backend == bits && peer.service != service && now.wrapping_sub(peer.used) < PEER_IDLE_NS {
            return false;
        }
    }
    for peer in &mut peers.list {
        let mine = peer.service == service || peer.backend == bits;
        if mine || peer.backend == 0 || now.wrapping_sub(peer.used) >= PEER_IDLE_NS {
            *peer = Peer { service, backend: bits, used: now };
            return true;
        }
    }
    false
}

/// A few more draws when the first endpoint was taken by another service of the same socket.
#[inline(always)]
fn another(peers: &mut Peers, slot: Slot, service: u64, now: u64) -> Option<Backend> {
    for _ in 0..3 {
        if let Choice::Endpoint(backend) = any(slot)
            && remember(peers, service, backend, now)
        {
            return Some(backend);
        }
    }
    None
}

/// Shows the address that the program used in place of the endpoint's.
#[inline(always)]
fn restore(ctx: &SockAddrContext, form: Form) {
    let seen = address(ctx, form).bits();
    // SAFETY: the helper checks the socket of the context.
    let origin = unsafe { ORIGINS.get_ptr_mut(ctx) };
    if !origin.is_null() {
        // SAFETY: not null, so a value of this socket's storage.
        let origin = unsafe { *origin };
        if origin.backend == seen {
            return set_address(ctx, form, Backend::from_bits(origin.service));
        }
    }
    // SAFETY: as above.
    let peers = unsafe { PEERS.get_ptr_mut(ctx) };
    if peers.is_null() {
        return;
    }
    // SAFETY: not null, so a value of this socket's storage.
    for peer in unsafe { &(*peers).list } {
        if peer.backend == seen {
            return set_address(ctx, form, Backend::from_bits(peer.service));
        }
    }
}

/// Keeps the node's programs off NodePorts and off the range for translated sources.
#[inline(always)]
fn bind(ctx: &SockAddrContext) -> i32 {
    let Some(netns) = local_netns(ctx) else { return ALLOW };
    let port = Port(port_word(ctx) as u16);
    if netns.kind != Netns::NODE || port.get() == 0 {
        return ALLOW;
    }
    let key = FrontendKey { addr: Ip4::UNSPECIFIED, port, protocol: protocol(ctx), scope: Scope::Internal as u8 };
    // SAFETY: the pointer is to a map element.
    let node_port = FRONTENDS.get_ptr(key).is_some_and(|value| key.slot_of(unsafe { whole(value) }).is_some());
    if node_port || is_snat_port(port) {
        count(Counter::BindRefused);
        return deny(EADDRINUSE);
    }
    ALLOW
}

fn is_snat_port(port: Port) -> bool {
    node().is_some_and(|node| port.get().wrapping_sub(node.snat_first) < node.snat_count)
}

#[inline(always)]
fn local_netns(ctx: &SockAddrContext) -> Option<Netns> {
    // SAFETY: the helper takes this program type's context.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: the pointer is to a map element.
    Some(Netns::from_bits(unsafe { whole(LOCAL_NETNS.get_ptr(cookie)?) }))
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
fn is_mapped(ctx: &SockAddrContext) -> bool {
    word!(ctx, user_ip6[0]) == 0 && word!(ctx, user_ip6[1]) == 0 && word!(ctx, user_ip6[2]) == MAPPED
}

#[inline(always)]
fn address(ctx: &SockAddrContext, form: Form) -> Backend {
    let addr = match form {
        Form::V4 => word!(ctx, user_ip4),
        Form::Mapped => word!(ctx, user_ip6[3]),
    };
    Backend::new(Ip4(addr), Port(port_word(ctx) as u16))
}

#[inline(always)]
fn set_address(ctx: &SockAddrContext, form: Form, to: Backend) {
    match form {
        Form::V4 => set_word!(ctx, to.addr.0, user_ip4),
        Form::Mapped => set_word!(ctx, to.addr.0, user_ip6[3]),
    }
    set_word!(ctx, to.port.0 as u32, user_port);
}
