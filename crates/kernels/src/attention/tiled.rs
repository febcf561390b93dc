//! Attention in tiles: keys in panels of [`KEYS`], queries in blocks of [`QUERIES`], never a square of scores.
//!
//! One task is one kv head of one segment. It copies its keys and values once, keys transposed so that a
//! tile of scores is a plain product, and every row is padded with zeros to whole vectors.

use std::cell::RefCell;
use std::ops::Range;

use super::product::{Strided, product};
use super::{check_dims, reference_scale};
use crate::math::{dot_lanes, exp};
use crate::simd::{Lanes, WIDEST, simd_fn};
use crate::softmax::{exponentials, largest, scale};
use crate::{AttentionDims, Isa, Segment};

/// Keys of a panel.
const KEYS: usize = 64;
/// Query rows of a block: their scores of a panel, with both operands, stay in the second cache.
const QUERIES: usize = 48;
/// Queries that one forward task takes, when a segment is split.
const TASK_QUERIES: usize = 192;

/// One kv head of a segment, and a range of its queries: what one thread computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    segment: Segment,
    kv_head: usize,
    queries: Range<usize>,
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

/// [`forward`](super::forward) in f32 on `isa`, one task after the other.
///
/// # Panics
/// As [`forward`](super::forward).
pub fn forward_tiled(
    isa: Isa,
    out: &mut [f32],
    lse: &mut [f32],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    segments: &[Segment],
    dims: AttentionDims,
) {
    for segment in segments {
        let rows = segment.q_start + segment.q_len;
        assert!(out.len() >= rows * dims.heads * dims.head_dim && lse.len() >= rows * dims.heads);
    }
    for task in forward_tasks(segments, dims) {
        // SAFETY: the outputs hold the rows of every segment, and nothing else writes them.
        unsafe { forward_task(isa, out.as_mut_ptr(), lse.as_mut_ptr(), q, k, v, &task, dims) };
    }
}

/// [`backward`](super::backward) in f32 on `isa`, one task after the other.
///
/// # Panics
/// As [`backward`](super::backward).
pub fn backward_tiled(
    isa: Isa,
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
    dout: &[f32],
    out: &[f32],
    lse: &[f32],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    segments: &[Segment],
    dims: AttentionDims,
) {
    for segment in segments {
        let kv_len = (segment.kv_start + segment.kv_len) * dims.kv_heads * dims.head_dim;
        assert!(dq.len() >= (segment.q_start + segment.q_len) * dims.heads * dims.head_dim);
        assert!(dk.len() >= kv_len && dv.len() >= kv_len);
    }
    for task in backward_tasks(segments, dims) {
        let (dq, dk, dv) = (dq.as_mut_ptr(), dk.as_mut_ptr(), dv.as_mut_ptr());
        // SAFETY: the outputs hold the rows of every segment, and nothing else writes them.
        unsafe { backward_task(isa, dq, dk, dv, dout, out, lse, q, k, v, &task, dims) };
    }
}

/// One task of a forward pass.
///
/// # Safety
/// `out` and `lse` are valid for writing every row of the task's segment, and no other task writes the same
/// kv head of the same queries at the same time.
pub unsafe fn forward_task(
    isa: Isa,
    out: *mut f32,
    lse: *mut f32,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    task: &Task,
    dims: AttentionDims,
) {
    let Task { segment, queries, .. } = task;
    SCRATCH.with_borrow_mut(|scratch| {
        let before = segment.kv_len - segment.q_len;
        let shape = &Shape::of(task, dims, before + queries.end);
        let (keys, head_dim) = (shape.keys, dims.head_dim);
        scratch.reserve(forward_sizes(task, dims));
        let kv_row = |j: usize| ((segment.kv_start + j) * dims.kv_heads + task.kv_head) * head_dim;
        resize(&mut scratch.k_panels, shape.padded_keys * shape.width);
        transpose(&mut scratch.k_panels, k, kv_row, shape);
        gather(&mut scratch.v, v, kv_row, keys, shape, 1.0);
        for head in shape.heads.clone() {
            for first in queries.clone().step_by(QUERIES) {
                let rows = QUERIES.min(queries.end - first);
                let q_row = |i: usize| ((segment.q_start + first + i) * dims.heads + head) * head_dim;
                gather(&mut scratch.q, q, q_row, rows, shape, reference_scale(dims) as f32);
                resize(&mut scratch.out, rows * shape.width);
                resize(&mut scratch.scores, rows * (before + first + rows).div_ceil(KEYS) * KEYS);
                resize(&mut scratch.lse, rows);
                let Scratch { q, k_panels, v, out: mixed, scores, lse: sums, .. } = &mut *scratch;
                forward_block(isa, mixed, sums, scores, q, k_panels, v, before + first, rows, shape.width);
                for i in 0..rows {
                    let mixed = &mixed[i * shape.width..][..head_dim];
                    // SAFETY: this row and head are the task's own, as the caller promises.
                    unsafe {
                        out.add(q_row(i)).copy_from_nonoverlapping(mixed.as_ptr(), head_dim);
                        *lse.add(q_row(i) / head_dim) = sums[i];
                    }
                }
            }
        }
    });
}

/// One task of a backward pass.
///
/// # Safety
/// `dq`, `dk` and `dv` are valid for writing every row of the task's segment, and no other task writes the
/// same kv head of the same segment at the same time.
pub unsafe fn backward_task(
    isa: Isa,
    dq: *mut f32,
    dk: *mut f32,
    dv: *mut f32,
    dout: &[f32],
    out: &[f32],
    lse: &[f32],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    task: &Task,
    dims: AttentionDims,
) {
    let Task { segment, queries, .. } = task;
    SCRATCH.with_borrow_mut(|scratch| {
        let shape = &Shape::of(task, dims, segment.kv_len);
        let (keys, head_dim, width) = (shape.keys, dims.head_dim, shape.width);
        let before = segment.kv_len - segment.q_len;
        scratch.reserve(backward_sizes(task, dims));
        let kv_row = |j: usize| ((segment.kv_start + j) * dims.kv_heads + task.kv_head) * head_dim;
        resize(&mut scratch.k_panels, shape.padded_keys * width);
        resize(&mut scratch.v_panels, shape.padded_keys * width);
        transpose(&mut scratch.k_panels, k, kv_row, shape);
        transpose(&mut scratch.v_panels, v, kv_row, shape);
        gather(&mut scratch.k, k, kv_row, keys, shape, 1.0);
        for sums in [&mut scratch.dk, &mut scratch.dv] {
            resize(sums, keys * width);
            sums.fill(0.0);
        }
        let scale = reference_scale(dims) as f32;
        for head in shape.heads.clone() {
            for first in queries.clone().step_by(QUERIES) {
                let rows = QUERIES.min(queries.end - first);
                let q_row = |i: usize| ((segment.q_start + first + i) * dims.heads + head) * head_dim;
                gather(&mut scratch.q, q, q_row, rows, shape, scale);
                gather(&mut scratch.dout, dout, q_row, rows, shape, 1.0);
                gather(&mut scratch.out, out, q_row, rows, shape, 1.0);
                scratch.lse.clear();
                scratch.lse.extend((0..rows).map(|i| lse[q_row(i) / head_dim]));
                resize(&mut scratch.dq, rows * width);
                resize(&mut scratch.scores, rows * KEYS);
                resize(&mut scratch.dscores, rows * KEYS);
                backward_block(isa, scratch, before + first, rows, width);
                for i in 0..rows {
                    for (d, sum) in scratch.dq[i * width..][..head_dim].iter().enumerate() {
                        // SAFETY: this row and head are the task's own, as the caller promises.
                        unsafe { *dq.add(q_row(i) + d) = scale * sum };
                    }
                }
            }
        }
        for j in 0..keys {
            let (from_k, from_v) =
                (&scratch.dk[j * width..][..head_dim], &scratch.dv[j * width..][..head_dim]);
            // SAFETY: this row and kv head are the task's own, as the caller promises.
            unsafe {
                dk.add(kv_row(j)).copy_from_nonoverlapping(from_k.as_ptr(), head_dim);
                dv.add(kv_row(j)).copy_from_nonoverlapping(from_v.as_ptr(), head_dim);
            }
        }
    });
}

/// Copies of operands and results of one task, rows padded to whole vectors; grows only. As `Scratch<usize>`,
/// how many elements each of them has.
#[derive(Clone, Default)]
pub struct Scratch<T = Vec<f32>> {
    q: T,
    k: T,
    v: T,
    k_panels: T,
    v_panels: T,
    out: T,
    dout: T,
    lse: T,
    scores: T,
    dscores: T,
    dq: T,
    dk: T,
    dv: T,
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
    fn reserve(&mut self, mut sizes: Scratch<usize>) {
        for (buffer, &mut size) in self.buffers().into_iter().zip(sizes.buffers()) {
            buffer.reserve_exact(size.saturating_sub(buffer.len()));
        }
    }
}

/// What [`forward_task`] holds.
pub fn forward_sizes(task: &Task, dims: AttentionDims) -> Scratch<usize> {
    let before = task.segment.kv_len - task.segment.q_len;
    let Shape { width, keys, padded_keys, .. } = Shape::of(task, dims, before + task.queries.end);
    let rows = QUERIES.min(task.queries.len());
    let scores = |first: usize| {
        let rows = QUERIES.min(task.queries.end - first);
        rows * (before + first + rows).next_multiple_of(KEYS)
    };
    Scratch {
        q: rows * width,
        v: keys * width,
        k_panels: padded_keys * width,
        out: rows * width,
        lse: rows,
        scores: task.queries.clone().step_by(QUERIES).map(scores).max().unwrap_or(0),
        ..Scratch::default()
    }
}

/// What [`backward_task`] holds.
pub fn backward_sizes(task: &Task, dims: AttentionDims) -> Scratch<usize> {
    let Shape { width, keys, padded_keys, .. } = Shape::of(task, dims, task.segment.kv_len);
    let rows = QUERIES.min(task.queries.len());
    let (block, keys, panels, scores) = (rows * width, keys * width, padded_keys * width, rows * KEYS);
    Scratch {
        q: block,
        k: keys,
        k_panels: panels,
        v_panels: panels,
        out: block,
        dout: block,
        lse: rows,
        scores,
        dscores: scores,
        dq: block,
        dk: keys,
        dv: keys,
        ..Scratch::default()
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Bytes that this thread's tiles hold at present.
#[cfg(test)]
pub(crate) fn scratch_bytes() -> u64 {
    SCRATCH.with_borrow_mut(|scratch| scratch.buffers().map(|b| 4 * b.capacity() as u64).iter().sum())
}

/// The sizes of one task.
#[derive(Clone)]
struct Shape {
    heads: Range<usize>,
    head_dim: usize,
    /// `head_dim`, padded to whole vectors.
    width: usize,
    keys: usize,
    /// `keys`, padded to whole panels.
    padded_keys: usize,
}

impl Shape {
    fn of(task: &Task, dims: AttentionDims, keys: usize) -> Self {
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

/// Makes `data` hold `len` elements, of unspecified value.
fn resize(data: &mut Vec<f32>, len: usize) {
    data.resize(len, 0.0);
}

/// Copies `n` rows of a head together, times `factor`.
fn gather(
    out: &mut Vec<f32>,
    inp: &[f32],
    row: impl Fn(usize) -> usize,
    n: usize,
    shape: &Shape,
    factor: f32,
) {
    resize(out, n * shape.width);
    for (i, out) in out.chunks_exact_mut(shape.width).enumerate() {
        let (copied, padding) = out.split_at_mut(shape.head_dim);
        for (o, x) in copied.iter_mut().zip(&inp[row(i)..][..shape.head_dim]) {
            *o = factor * x;
        }
        padding.fill(0.0);
    }
}

/// Copies the keys of a head into panels `(width, KEYS)`, one column a key, zero beyond the last.
fn transpose(panels: &mut [f32], inp: &[f32], row: impl Fn(usize) -> usize, shape: &Shape) {
    for (p, panel) in panels.chunks_exact_mut(shape.width * KEYS).enumerate() {
        panel[shape.head_dim * KEYS..].fill(0.0);
        for j in 0..KEYS {
            let key = p * KEYS + j;
            for d in 0..shape.head_dim {
                panel[d * KEYS + j] = if key < shape.keys { inp[row(key) + d] } else { 0.0 };
            }
        }
    }
}

simd_fn! {
    /// A block of query rows of one head: `out (rows, width)`, `lse (rows)`. Row `i` sees the first
    /// `before + i + 1` keys; `scores` holds the rows' scores, panel after panel.
    pub fn forward_block(
        out: &mut [f32],
        lse: &mut [f32],
        scores: &mut [f32],
        q: &[f32],
        k_panels: &[f32],
        v: &[f32],
        before: usize,
        rows: usize,
        width: usize,
    ) = forward_lanes
}

#[inline(always)]
fn forward_lanes<L: Lanes>(
    out: &mut [f32],
    lse: &mut [f32],
    scores: &mut [f32],
    q: &[f32],
    k_panels: &[f32],
    v: &[f32],
    before: usize,
    rows: usize,
    width: usize,
) {
    let keys = before + rows;
    // Scores of panel `p` are `(rows, KEYS)` at `p * rows * KEYS`.
    for (panel, k) in scores.chunks_exact_mut(rows * KEYS).zip(k_panels.chunks_exact(width * KEYS)) {
        product::<L>(panel, Strided { data: q, row: width, col: 1 }, k, (rows, KEYS, width), false);
    }
    for i in 0..rows {
        let visible = before + i + 1;
        let mut max = f32::NEG_INFINITY;
        for (p, panel) in scores.chunks_exact_mut(rows * KEYS).enumerate() {
            let row = &mut panel[i * KEYS..][..KEYS];
            row[visible.saturating_sub(p * KEYS).min(KEYS)..].fill(f32::NEG_INFINITY);
            max = max.max(largest::<L>(row));
        }
        let mut sum = 0.0;
        for panel in scores.chunks_exact_mut(rows * KEYS) {
            sum += exponentials::<L>(&mut panel[i * KEYS..][..KEYS], max);
        }
        lse[i] = sum;
        // Kept beside the sum until the products are done.
        out[i * width] = max;
    }
    let maxima: [f32; QUERIES] = std::array::from_fn(|i| if i < rows { out[i * width] } else { 0.0 });
    for (p, panel) in scores.chunks_exact(rows * KEYS).enumerate() {
        let here = KEYS.min(keys - p * KEYS);
        let weights = Strided { data: panel, row: KEYS, col: 1 };
        product::<L>(out, weights, &v[p * KEYS * width..], (rows, width, here), p > 0);
    }
    for i in 0..rows {
        scale::<L>(&mut out[i * width..][..width], 1.0 / lse[i]);
        lse[i] = maxima[i] + lse[i].ln();
    }
}

simd_fn! {
    /// A block of query rows of one head: overwrites `dq`, adds to `dk` and `dv`.
    pub fn backward_block(scratch: &mut Scratch, before: usize, rows: usize, width: usize) = backward_lanes
}

#[inline(always)]
fn backward_lanes<L: Lanes>(scratch: &mut Scratch, before: usize, rows: usize, width: usize) {
    let Scratch { q, k, k_panels, v_panels, out, dout, lse, scores, dscores, dq, dk, dv, .. } = scratch;
    let keys = before + rows;
    for p in 0..keys.div_ceil(KEYS) {
        let (first, panel) = (p * KEYS, p * KEYS * width..(p + 1) * KEYS * width);
        let here = KEYS.min(keys - first);
        let q_rows = Strided { data: q, row: width, col: 1 };
        let dout_rows = Strided { data: dout, row: width, col: 1 };
        product::<L>(scores, q_rows, &k_panels[panel.clone()], (rows, KEYS, width), false);
        product::<L>(dscores, dout_rows, &v_panels[panel], (rows, KEYS, width), false);
        for i in 0..rows {
            let (s, ds) = (&mut scores[i * KEYS..][..KEYS], &mut dscores[i * KEYS..][..KEYS]);
            let delta = dot_lanes::<L>(&dout[i * width..][..width], &out[i * width..][..width]);
            let (log_sum, delta, mut at) = (L::splat(lse[i]), L::splat(delta), 0);
            while at < KEYS {
                let p = exp(L::read(s, at).sub(log_sum));
                p.write(s, at);
                p.mul(L::read(ds, at).sub(delta)).write(ds, at);
                at += L::COUNT;
            }
            let visible = (before + i + 1).saturating_sub(first).min(KEYS);
            s[visible..].fill(0.0);
            ds[visible..].fill(0.0);
        }
        let range = first * width..(first + here) * width;
        let p_columns = Strided { data: scores, row: 1, col: KEYS };
        let ds_columns = Strided { data: dscores, row: 1, col: KEYS };
        let ds_rows = Strided { data: dscores, row: KEYS, col: 1 };
        product::<L>(&mut dv[range.clone()], p_columns, dout, (here, width, rows), true);
        product::<L>(&mut dk[range.clone()], ds_columns, q, (here, width, rows), true);
        product::<L>(dq, ds_rows, &k[range], (rows, width, here), p > 0);
    }
}
