//! How many flows each pod has: those that were answered and are not over. Counted as they change; the next sweep counts anew.

use proxy_common::*;

use crate::family::Net;
use crate::forward::is_pod_address;

/// Changes a flow, and the count of whoever began it with it.
#[inline(always)]
pub fn change<A: Net>(flow: &mut Flow<A>, client: A, change: impl FnOnce(&mut Flow<A>)) {
    let counted = flow.counts();
    change(flow);
    if flow.counts() != counted {
        update(client, |flows| if counted { flows.saturating_sub(1) } else { flows + 1 });
    }
}

/// One of this client's flows counts no more.
#[inline(always)]
pub fn lose<A: Net>(client: A) {
    update(client, |flows| flows.saturating_sub(1));
}

#[inline(always)]
fn update<A: Net>(client: A, count: impl FnOnce(u64) -> u64) {
    if let Some(flows) = A::shares().get_ptr_mut(client) {
        // SAFETY: an aligned element of a map. Two processors at once may lose a flow, and it may be recycled for another pod.
        unsafe { *flows = count(*flows) };
    }
}

/// Whether a client is a pod that has as many flows as one may have.
#[inline(always)]
pub fn is_spent<A: Net>(client: A, node: &NodeConfig<A>) -> bool {
    // SAFETY: the pointer is to a map element.
    node.pod_flows != 0
        && is_pod_address(client, node)
        && A::shares()
            .get_ptr(client)
            .is_some_and(|flows| unsafe { core::ptr::read_volatile(flows) } >= node.pod_flows as u64)
}
