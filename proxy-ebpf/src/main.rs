//! The BPF programs of the service path and the pod network, one small program per hook.
//!
//! `socket` sends connections to services straight to an endpoint when a program connects; `tc` does the same for packets that no
//! socket hook saw, moves packets between pods, and hides pods behind the node's address on the way out. Both read the maps of
//! `maps`, which user space fills. A program's body is parse → decide → verdict. What it does is written for both families at once:
//! `wire` has what differs in their headers, `family` the maps of each, `steps` the names of what is verified by itself.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "atomic operations, which the stable library leaves out for this target")]

mod atomic;
mod choose;
mod family;
mod flow;
mod forward;
mod icmp;
mod mangle;
mod maps;
mod neighbour;
mod packet;
mod parse;
mod reject;
mod shares;
mod snat;
mod socket;
mod steps;
mod tc;
mod wire;

/// The helpers that the programs need are for GPL-compatible programs; of this crate's two licences the kernel is given that one.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: no panicking path survives optimisation; the verifier would refuse this loop if one did.
    unsafe { core::hint::unreachable_unchecked() }
}
