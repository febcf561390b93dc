//! Working memory of a task. Each thread has one allocation, and every task divides this allocation into
//! buffers.

use std::cell::RefCell;

use crate::cpu::pool::Scratch;
use crate::simd::WIDEST;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Rounds a length up to whole cache lines.
fn apart(len: usize) -> usize {
    len.next_multiple_of(WIDEST)
}

/// Returns the number of elements that buffers of these lengths need.
pub(in crate::attention) fn total<const N: usize>(lens: [usize; N]) -> usize {
    lens.map(apart).iter().sum()
}

/// Runs `task` on buffers of these lengths. The buffers contain arbitrary values from earlier tasks.
pub(in crate::attention) fn with_buffers<const N: usize>(
    lens: [usize; N],
    task: impl FnOnce([&mut [f32]; N]),
) {
    SCRATCH.with_borrow_mut(|scratch| {
        let mut rest = scratch.at_least(total(lens));
        task(lens.map(|len| {
            let (buffer, behind) = std::mem::take(&mut rest).split_at_mut(apart(len));
            rest = behind;
            &mut buffer[..len]
        }));
    });
}

/// Returns the size of the working memory of this thread in bytes.
#[cfg(test)]
pub(crate) fn scratch_bytes() -> u64 {
    SCRATCH.with_borrow(|scratch| scratch.allocated_bytes())
}
