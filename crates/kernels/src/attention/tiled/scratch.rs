//! Working memory of a task: one piece that each thread keeps, cut anew by every task.

use std::cell::RefCell;

use crate::cpu::pool::Scratch;
use crate::simd::WIDEST;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Elements from one buffer to the next: each begins with a cache line.
fn apart(len: usize) -> usize {
    len.next_multiple_of(WIDEST)
}

/// Elements that hold buffers of these lengths.
pub(super) fn total<const N: usize>(lens: [usize; N]) -> usize {
    lens.map(apart).iter().sum()
}

/// Runs `task` on buffers of these lengths, whose contents are whatever was left there.
pub(super) fn with_buffers<const N: usize>(lens: [usize; N], task: impl FnOnce([&mut [f32]; N])) {
    SCRATCH.with_borrow_mut(|scratch| {
        let mut rest = scratch.at_least(total(lens));
        task(lens.map(|len| {
            let (buffer, behind) = std::mem::take(&mut rest).split_at_mut(apart(len));
            rest = behind;
            &mut buffer[..len]
        }));
    });
}

/// Bytes that this thread's tiles hold at present.
#[cfg(test)]
pub(crate) fn scratch_bytes() -> u64 {
    SCRATCH.with_borrow(|scratch| scratch.allocated_bytes())
}
