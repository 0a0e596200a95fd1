//! How many flows each pod has: those that were answered and are not over. Counted as they change; the next sweep counts anew.

use proxy_common::*;

use crate::forward::is_pod_address;
use crate::maps::SHARES;

/// Changes a flow, and the count of whoever began it with it.
#[inline(always)]
pub fn change(flow: &mut Flow, client: Ip4, change: impl FnOnce(&mut Flow)) {
    let before = flow.counts();
    change(flow);
    moved(client, before, flow.counts());
}

/// Whether one of this client's flows counted before, and does now.
#[inline(always)]
pub fn moved(client: Ip4, before: bool, now: bool) {
    if before == now {
        return;
    }
    if let Some(flows) = SHARES.get_ptr_mut(client.0) {
        // SAFETY: an aligned element of a map. Two processors at once may lose a flow, and it may be recycled for another pod.
        unsafe { *flows = if now { *flows + 1 } else { (*flows).saturating_sub(1) } };
    }
}

/// Whether a client is a pod that has as many flows as one may have.
#[inline(always)]
pub fn is_spent(client: Ip4, node: &NodeConfig) -> bool {
    // SAFETY: the pointer is to a map element.
    is_pod_address(client, node)
        && SHARES.get_ptr(client.0).is_some_and(|flows| unsafe { core::ptr::read_volatile(flows) } >= MAX_POD_FLOWS)
}
