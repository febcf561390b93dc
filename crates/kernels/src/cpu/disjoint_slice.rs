//! Mutable access to disjoint ranges of one slice from parallel tasks.

use std::ops::Range;

use super::pool::{Pool, SendPtr};

/// Minimum number of elements for which waking a thread is worthwhile.
const TASK_ELEMENTS: usize = 16 << 10;

/// A slice that tasks split into disjoint ranges.
pub(crate) struct DisjointSlice {
    start: SendPtr,
    len: usize,
}

impl DisjointSlice {
    /// Wraps `data`. The borrow of `data` must last as long as tasks use the slice.
    pub fn new(data: &mut [f32]) -> Self {
        Self { start: SendPtr(data.as_mut_ptr()), len: data.len() }
    }

    /// Returns the elements of `range`.
    ///
    /// # Panics
    /// If `range` reaches past the end.
    ///
    /// # Safety
    /// The borrow of the slice must still be live, and no other task may access an overlapping range.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn range(&self, range: Range<usize>) -> &mut [f32] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: the range is inside the slice, and the caller guarantees exclusive access.
        unsafe { std::slice::from_raw_parts_mut(self.start.at(range.start), range.len()) }
    }
}

impl Pool {
    /// Splits the rows `0 .. n` into ranges of about the same length, and runs `task` on each range. A row
    /// has `cols` elements.
    pub fn over_rows(&self, n: usize, cols: usize, task: impl Fn(Range<usize>) + Sync) {
        let least = TASK_ELEMENTS.div_ceil(cols.max(1));
        let tasks = (n / least).clamp(1, 4 * self.threads());
        let rows = n.div_ceil(tasks).max(1);
        self.run(n.div_ceil(rows), |index, _| task(index * rows..((index + 1) * rows).min(n)));
    }
}
