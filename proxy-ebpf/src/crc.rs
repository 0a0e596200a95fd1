//! CRC-32C where some bytes change: the sum is linear, so what the change alone sums up to is added, wherever in the packet it is.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_loop;

/// The polynomial, lowest power first.
const POLYNOMIAL: u32 = 0x82f6_3b78;
const ONE: u32 = 1 << 31;
/// A packet has fewer bytes than two to this power.
const POWERS: usize = 16;

/// What a sum is multiplied by for two to the power of the index zero bytes behind it.
#[unsafe(no_mangle)]
static AMPHI_ZEROS: [u32; POWERS] = zeros();

const fn zeros() -> [u32; POWERS] {
    let mut all = [0; POWERS];
    // One byte: eight powers of the variable.
    let (mut power, mut index) = (ONE >> 8, 0);
    while index < POWERS {
        all[index] = power;
        power = product(power, power);
        index += 1;
    }
    all
}

/// Of two polynomials, modulo that of the sum.
#[inline(always)]
const fn product(one: u32, mut other: u32) -> u32 {
    let (mut sum, mut bit) = (0, 0);
    while bit < 32 {
        sum ^= other & 0u32.wrapping_sub(one >> (31 - bit) & 1);
        other = (other >> 1) ^ (POLYNOMIAL & 0u32.wrapping_sub(other & 1));
        bit += 1;
    }
    sum
}

struct Shift {
    sum: u32,
    behind: u32,
}

/// What to add to the sum of a packet of which four bytes change by `change`, as a word in the machine's order, with so many bytes
/// behind them.
#[inline(always)]
pub fn difference(change: u32, behind: u32) -> u32 {
    amphi_crc_difference(change, behind)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn amphi_crc_difference(change: u32, behind: u32) -> u32 {
    // The four bytes are the sum so far of a message of them alone, moved on by their own length.
    let mut shift = Shift { sum: u32::from_le(change), behind: behind.wrapping_add(4) };
    // SAFETY: the callback takes what it is given here, which outlives the call.
    unsafe { bpf_loop(POWERS as u32, step as *mut c_void, (&raw mut shift).cast(), 0) };
    shift.sum
}

unsafe extern "C" fn step(index: u32, shift: *mut Shift) -> i64 {
    // SAFETY: `amphi_crc_difference` passes its own.
    let shift = unsafe { &mut *shift };
    let Some(zeros) = AMPHI_ZEROS.get(index as usize) else { return 1 };
    if shift.behind >> (index & 31) & 1 != 0 {
        shift.sum = product(*zeros, shift.sum);
    }
    0
}
