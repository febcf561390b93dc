//! Tasks of tiled attention, and the blocks of queries in a task.

use std::cmp::Reverse;
use std::ops::Range;

use super::operand_format::{OperandFormat, RowView};
use super::{KEYS, QUERIES};
use crate::attention::check_dims;
use crate::gemm::Prefetch;
use crate::simd::WIDEST;
use crate::{AttentionDims, Segment};

/// Maximum number of queries in one forward task.
const TASK_QUERIES: usize = 192;

/// The work of one thread: one kv head of a segment, and a range of the queries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Task {
    segment: Segment,
    kv_head: usize,
    queries: Range<usize>,
}

/// Returns the independent tasks of a forward pass. The longest task is first.
pub(crate) fn forward_tasks(segments: &[Segment], dims: AttentionDims) -> Vec<Task> {
    tasks(segments, dims, TASK_QUERIES)
}

/// Returns the independent tasks of a backward pass. The longest task is first. Each gradient of a key or
/// value is written by exactly one task.
pub(crate) fn backward_tasks(segments: &[Segment], dims: AttentionDims) -> Vec<Task> {
    tasks(segments, dims, usize::MAX)
}

fn tasks(segments: &[Segment], dims: AttentionDims, most: usize) -> Vec<Task> {
    check_dims(segments, dims);
    let mut tasks = Vec::new();
    for &segment in segments {
        for first in (0..segment.q_len.max(1)).step_by(most) {
            let queries = first..segment.q_len.min(first.saturating_add(most));
            let task = |kv_head| Task { segment, kv_head, queries: queries.clone() };
            tasks.extend((0..dims.kv_heads).map(task));
        }
    }
    // Threads run the tasks in this order. The last tasks are short, so all threads finish at about the same
    // time.
    tasks.sort_by_key(|task| Reverse(task.queries.len() * task.keys()));
    tasks
}

impl Task {
    /// Returns the number of keys up to and including the position of the task's last query.
    fn keys(&self) -> usize {
        self.segment.kv_len - self.segment.q_len + self.queries.end
    }
}

/// Sizes of a task, and offsets of its rows.
pub(super) struct Shape<'a> {
    task: &'a Task,
    dims: AttentionDims,
    pub head_dim: usize,
    /// `HS`, rounded up to whole vectors.
    pub width: usize,
    /// Number of 32-bit words in `HS` elements.
    pub steps: usize,
    /// Number of keys up to and including the position of the task's last query.
    pub keys: usize,
    /// Number of 32-bit words in all [`keys`](Shape::keys), packed in panels.
    pub panels: usize,
    /// Number of query heads in one block.
    heads: usize,
    /// Maximum number of keys that are visible to a query.
    window: usize,
}

impl<'a> Shape<'a> {
    pub fn of(task: &'a Task, dims: AttentionDims, format: OperandFormat, window: Option<usize>) -> Self {
        let AttentionDims { heads, kv_heads, head_dim } = dims;
        let (keys, steps, group) = (task.keys(), format.of(head_dim), (heads / kv_heads).max(1));
        Self {
            task,
            dims,
            head_dim,
            width: head_dim.next_multiple_of(WIDEST),
            steps,
            keys,
            panels: keys.next_multiple_of(KEYS) * steps,
            heads: if format.are_pairs() { group.div_ceil(group.div_ceil(QUERIES)) } else { 1 },
            window: window.unwrap_or(usize::MAX),
        }
    }

    /// Returns the maximum number of rows in a block.
    pub fn rows(&self) -> usize {
        self.heads * (QUERIES / self.heads).min(self.task.queries.len())
    }

    /// Returns the offset of row `j` of the task's keys or values.
    pub fn key_row(&self, j: usize) -> usize {
        let Task { segment, kv_head, .. } = self.task;
        ((segment.kv_start + j) * self.dims.kv_heads + kv_head) * self.head_dim
    }

    /// Returns a view of the task's keys or values inside `inp (M, KH, HS)`.
    pub fn key_rows<'b>(&self, inp: &'b [f32]) -> RowView<'b> {
        RowView {
            data: &inp[self.key_row(0)..],
            stride: self.dims.kv_heads * self.head_dim,
            rows: self.keys,
            cols: self.head_dim,
        }
    }

    /// Returns the blocks of the task, ordered by query head, then by query.
    pub fn blocks(&self) -> impl Iterator<Item = Block> {
        let Task { segment, kv_head, queries } = self.task;
        let AttentionDims { heads, kv_heads, head_dim } = self.dims;
        let group = heads / kv_heads;
        let stride = heads * head_dim;
        (0..group).step_by(self.heads).flat_map(move |head| {
            let together = self.heads.min(group - head);
            queries.clone().step_by(QUERIES / self.heads).map(move |first| Block {
                rows: together * (QUERIES / self.heads).min(queries.end - first),
                heads: together,
                before: segment.kv_len - segment.q_len + first,
                start: (segment.q_start + first) * stride + (kv_head * group + head) * head_dim,
                stride,
                head_dim,
                window: self.window,
            })
        })
    }
}

/// A block of query rows that are computed at once. The rows are ordered by query, and the rows of a query by
/// head.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pub rows: usize,
    heads: usize,
    /// Number of keys that precede the position of the first query.
    before: usize,
    /// Offset of the first row, in elements.
    start: usize,
    /// Distance from one query to the next, in elements.
    stride: usize,
    pub head_dim: usize,
    /// Maximum number of keys that are visible to a row.
    window: usize,
}

impl Block {
    /// Returns the offset of row `i` in operands `(N, NH, HS)`.
    pub fn row(&self, i: usize) -> usize {
        self.start + i / self.heads * self.stride + i % self.heads * self.head_dim
    }

    /// Returns a prefetch of the block's rows of `inp (N, NH, HS)`.
    pub fn prefetch(&self, inp: *const f32) -> Prefetch {
        let start = inp.wrapping_add(self.start).cast();
        Prefetch::new(start, self.rows / self.heads, 4 * self.heads * self.head_dim, 4 * self.stride)
    }

    /// Returns the end of the range of keys that are visible to row `i`.
    pub fn visible(&self, i: usize) -> usize {
        self.before + i / self.heads + 1
    }

    /// Returns the first key that is visible to row `i`.
    pub fn first(&self, i: usize) -> usize {
        self.visible(i).saturating_sub(self.window)
    }

    /// Returns the first key of each panel that contains a key visible to any row.
    pub fn panels(&self) -> impl Iterator<Item = usize> + Clone + use<> {
        (self.first(0) / KEYS * KEYS..self.keys()).step_by(KEYS)
    }

    /// Returns the end of the range of keys that are visible to the last row.
    pub fn keys(&self) -> usize {
        self.before + self.rows / self.heads
    }
}
