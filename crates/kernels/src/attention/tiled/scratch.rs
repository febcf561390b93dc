//! Working memory of a task, which each thread keeps.

use std::cell::RefCell;

/// Copies of operands and results of one task, rows padded to whole vectors; grows only. As `Scratch<usize>`,
/// how many elements each of them has.
#[derive(Clone, Default)]
pub struct Scratch<T = Vec<f32>> {
    pub(super) q: T,
    pub(super) k: T,
    pub(super) v: T,
    pub(super) k_panels: T,
    pub(super) v_panels: T,
    pub(super) out: T,
    pub(super) dout: T,
    pub(super) lse: T,
    pub(super) scores: T,
    pub(super) dscores: T,
    pub(super) dq: T,
    pub(super) dk: T,
    pub(super) dv: T,
}

impl<T> Scratch<T> {
    /// Every buffer, always in the same order.
    pub fn buffers(&mut self) -> [&mut T; 13] {
        let Self { q, k, v, k_panels, v_panels, out, dout, lse, scores, dscores, dq, dk, dv } = self;
        [q, k, v, k_panels, v_panels, out, dout, lse, scores, dscores, dq, dk, dv]
    }
}

impl Scratch {
    /// Room for all that a task will ask for, and no more: the memory plan counts on it.
    pub(super) fn reserve(&mut self, mut sizes: Scratch<usize>) {
        for (buffer, &mut size) in self.buffers().into_iter().zip(sizes.buffers()) {
            buffer.reserve_exact(size.saturating_sub(buffer.len()));
        }
    }
}

thread_local! {
    pub(super) static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Bytes that this thread's tiles hold at present.
#[cfg(test)]
pub(crate) fn scratch_bytes() -> u64 {
    SCRATCH.with_borrow_mut(|scratch| scratch.buffers().map(|b| 4 * b.capacity() as u64).iter().sum())
}

/// Makes `data` hold `len` elements, of unspecified value.
pub(super) fn resize(data: &mut Vec<f32>, len: usize) {
    data.resize(len, 0.0);
}
