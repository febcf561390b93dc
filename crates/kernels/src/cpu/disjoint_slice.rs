//! Rows of a region shared out between tasks.

use std::ops::Range;

use super::pool::{Pool, SendPtr};

/// Fewest elements a task is worth waking a thread for.
const TASK_ELEMENTS: usize = 16 << 10;

/// A slice of which every task takes a range of its own.
pub(crate) struct DisjointSlice {
    start: SendPtr,
    len: usize,
}

impl DisjointSlice {
    /// DisjointSlice of `data`, which must stay borrowed while they are used.
    pub fn new(data: &mut [f32]) -> Self {
        Self { start: SendPtr(data.as_mut_ptr()), len: data.len() }
    }

    /// The elements `range`.
    ///
    /// # Panics
    /// If `range` reaches past the end.
    ///
    /// # Safety
    /// The slice must still be borrowed, and no other task may hold an overlapping range.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn range(&self, range: Range<usize>) -> &mut [f32] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: inside the slice, and the caller's alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.at(range.start), range.len()) }
    }
}

impl Pool {
    /// Runs `task` on ranges that together are `0 .. n`, each with about the same number of rows of `cols`.
    pub fn over_rows(&self, n: usize, cols: usize, task: impl Fn(Range<usize>) + Sync) {
        let least = TASK_ELEMENTS.div_ceil(cols.max(1));
        let tasks = (n / least).clamp(1, 4 * self.threads());
        let rows = n.div_ceil(tasks).max(1);
        self.run(n.div_ceil(rows), |index, _| task(index * rows..((index + 1) * rows).min(n)));
    }
}
