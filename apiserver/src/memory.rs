//! What the allocator keeps of memory that is free again.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// By then a start is over.
const SETTLE: Duration = Duration::from_secs(10);
/// Less than this, bytes, is not worth looking for.
pub const WORTH_IT: usize = 4 << 20;

/// Gives free pages back to the system. The allocator does so by itself only at the ends of its arenas, and what ages here lies
/// in their middle: without this a server holds for ever what its busiest five minutes took.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "malloc_trim has no safe form")]
pub fn give_back() {
    // SAFETY: it takes no pointers, locks each arena itself, and touches only what is free.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators give back by themselves.
#[cfg(not(target_env = "gnu"))]
pub fn give_back() {}

/// Gives back what the start took and does not need any more.
pub async fn after_start(stop: CancellationToken) {
    if stop.run_until_cancelled(tokio::time::sleep(SETTLE)).await.is_some() {
        give_back();
    }
}
