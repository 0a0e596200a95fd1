//! How many flows each pod has: those that were answered and are not over. Counted as they change; the next sweep counts anew.

use proxy_common::*;

use crate::forward::is_pod_address;
use crate::maps::SHARES;

/// Changes a flow, and the count of whoever began it with it.
#[inline(always)]
pub fn change(flow: &mut Flow, client: Ip4, change: impl FnOnce(&mut Flow)) {
    let counted = flow.counts();
    change(flow);
    if flow.counts() != counted {
        update(client, |flows| if counted { flows.saturating_sub(1) } else { flows + 1 });
    }
}

/// One of this client's flows counts no more.
#[inline(always)]
pub fn lose(client: Ip4) {
    update(client, |flows| flows.saturating_sub(1));
}

#[inline(always)]
fn update(client: Ip4, count: impl FnOnce(u64) -> u64) {
    if let Some(flows) = SHARES.get_ptr_mut(client.0) {
        // SAFETY: an aligned element of a map. Two processors at once may lose a flow, and it may be recycled for another pod.
        unsafe { *flows = count(*flows) };
    }
}

/// Whether a client is a pod that has as many flows as one may have.
#[inline(always)]
pub fn is_spent(client: Ip4, node: &NodeConfig) -> bool {
    // SAFETY: the pointer is to a map element.
    is_pod_address(client, node)
        && SHARES.get_ptr(client.0).is_some_and(|flows| unsafe { core::ptr::read_volatile(flows) } >= MAX_POD_FLOWS)
}
