//! What the allocator keeps of memory that is free again.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// By then a start is over.
const SETTLE: Duration = Duration::from_secs(10);
/// So much, bytes, is worth looking for.
const WORTH_IT: usize = 4 << 20;
/// Less never is.
const LEAST: usize = 1 << 20;

/// Whether enough of what was held, in bytes, is free by now: of little a half is, else the last of a busy time would stay.
pub fn is_worth_it(held: usize, holds: usize) -> bool {
    held.saturating_sub(holds) > WORTH_IT.min(held / 2).max(LEAST)
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_a_busy_time_is_given_back() {
        for (held, holds, wanted) in [
            (32 << 20, 27 << 20, true),
            (32 << 20, 29 << 20, false),
            (3 << 20, 1 << 20, true),
            (3 << 20, 2 << 20, false),
            (800 << 10, 0, false),
        ] {
            assert_eq!(is_worth_it(held, holds), wanted, "{held} → {holds}");
        }
    }
}
