//! The atomic operations that the kernel's instruction set has and stable Rust does not offer for this target.

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd};

/// Changes half a word from one value to another; false when it held something else.
///
/// # Safety
/// `word` points to an aligned half word of a map.
#[inline(always)]
pub unsafe fn swap_half(word: *mut u32, from: u32, to: u32) -> bool {
    // SAFETY: the caller vouches for the pointer.
    unsafe { atomic_cxchg::<u32, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(word, from, to).1 }
}

/// The same for a whole word.
///
/// # Safety
/// `word` points to an aligned word of a map.
#[inline(always)]
pub unsafe fn swap(word: *mut u64, from: u64, to: u64) -> bool {
    // SAFETY: the caller vouches for the pointer.
    unsafe { atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(word, from, to).1 }
}

/// The number before it was counted up.
///
/// # Safety
/// `word` points to an aligned word of a map.
#[inline(always)]
pub unsafe fn next(word: *mut u64) -> u64 {
    // SAFETY: the caller vouches for the pointer.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(word, 1) }
}
