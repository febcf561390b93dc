//! What one thread computes, and its sizes.

use std::ops::Range;

use super::KEYS;
use crate::attention::check_dims;
use crate::simd::WIDEST;
use crate::{AttentionDims, Segment};

/// Queries that one forward task takes, when a segment is split.
const TASK_QUERIES: usize = 192;

/// One kv head of a segment, and a range of its queries: what one thread computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    pub(super) segment: Segment,
    pub(super) kv_head: usize,
    pub(super) queries: Range<usize>,
}

/// The independent tasks of a forward pass, the longest first within a segment.
pub fn forward_tasks(segments: &[Segment], dims: AttentionDims) -> Vec<Task> {
    tasks(segments, dims, TASK_QUERIES)
}

/// The independent tasks of a backward pass: every key and value gradient is written by exactly one.
pub fn backward_tasks(segments: &[Segment], dims: AttentionDims) -> Vec<Task> {
    tasks(segments, dims, usize::MAX)
}

fn tasks(segments: &[Segment], dims: AttentionDims, most: usize) -> Vec<Task> {
    check_dims(segments, dims);
    let mut tasks = Vec::new();
    for &segment in segments {
        for first in (0..segment.q_len.max(1)).step_by(most).collect::<Vec<_>>().into_iter().rev() {
            let queries = first..segment.q_len.min(first.saturating_add(most));
            let task = |kv_head| Task { segment, kv_head, queries: queries.clone() };
            tasks.extend((0..dims.kv_heads).map(task));
        }
    }
    tasks
}

/// The sizes of one task.
#[derive(Clone)]
pub(super) struct Shape {
    pub heads: Range<usize>,
    pub head_dim: usize,
    /// `head_dim`, padded to whole vectors.
    pub width: usize,
    pub keys: usize,
    /// `keys`, padded to whole panels.
    pub padded_keys: usize,
}

impl Shape {
    pub fn of(task: &Task, dims: AttentionDims, keys: usize) -> Self {
        let group = dims.heads / dims.kv_heads;
        Self {
            heads: task.kv_head * group..(task.kv_head + 1) * group,
            head_dim: dims.head_dim,
            width: dims.head_dim.next_multiple_of(WIDEST),
            keys,
            padded_keys: keys.next_multiple_of(KEYS),
        }
    }
}
