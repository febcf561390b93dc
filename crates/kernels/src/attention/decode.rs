//! Attention for generated tokens: one query per sequence. Keys and values are read in place.
//!
//! ```text
//! task: some kv heads of one sequence, one run (at most RUN consecutive keys)
//!   for each kv head:
//!   scores = q kᵀ for the query heads that read the kv head
//!   largest score, weights = e^(score - largest), their sum
//!   mixed = weights v
//! the last task of a kv head: out = Σ over runs of mixed, rescaled to the largest score of all runs
//! ```
//!
//! - Each key and value is read from memory once. Nothing is packed.
//! - Runs begin at multiples of RUN, and their results are combined in order. An output therefore depends
//!   neither on the number of threads nor on other sequences.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::AttentionInputs;
use super::tiled::{OperandFormat, cap_lanes, total, with_buffers};
use crate::cpu::pool::SendPtr;
use crate::gemm::{DotJob, DotRows, prefetch_far};
use crate::simd::{Lanes, WIDEST, simd_fn};
use crate::softmax::{exponentials, largest};
use crate::{AttentionDims, DType, Segment};

/// Maximum number of consecutive keys in a task (a "run"). The keys and values of a run fit in L2.
const RUN: usize = 256;
/// Minimum number of tasks for each thread, if there are enough kv heads.
const TASKS_PER_THREAD: usize = 2;
/// Number of keys that are multiplied at a time, while the next `PREFETCH_KEYS` keys are prefetched.
const PREFETCH_KEYS: usize = 16;

/// The runs of one segment: its keys, divided at multiples of [`RUN`].
#[derive(Clone, Copy, Debug)]
struct Runs {
    segment: Segment,
    /// First visible key.
    first_key: usize,
    /// End of the visible keys.
    end_key: usize,
    /// Index of the run that contains the first visible key.
    first: usize,
    /// Number of runs of [`RUN`] keys that contain visible keys.
    count: usize,
    /// Number of runs of all earlier segments.
    before: usize,
}

/// The tasks of one call, and the data that all tasks share.
pub(crate) struct DecodeAttention<'a> {
    format: OperandFormat,
    inputs: AttentionInputs<'a>,
    runs: Vec<Runs>,
    /// Number of unfinished tasks, for each kv head of each segment.
    pending: Vec<AtomicUsize>,
    tasks: Vec<(usize, usize, Range<usize>)>,
}

impl<'a> DecodeAttention<'a> {
    /// Divides the work of `inputs` into tasks. A task has several kv heads if there are many sequences for
    /// `threads` threads, because computing a kv head of a short sequence takes less time than starting a
    /// task.
    ///
    /// # Panics
    /// If a segment has more than one query.
    pub fn new(format: OperandFormat, inputs: AttentionInputs<'a>, threads: usize) -> Self {
        let kv_heads = inputs.dims.kv_heads;
        let runs = runs(inputs.segments, inputs.dims, inputs.scores.window);
        let pending = runs.iter().flat_map(|runs| (0..kv_heads).map(|_| AtomicUsize::new(runs.count)));
        let at_once = (runs.len() * kv_heads / (TASKS_PER_THREAD * threads)).clamp(1, kv_heads);
        let heads = move |first: usize| first..kv_heads.min(first + at_once);
        let of_segment = |(segment, runs): (usize, &Runs)| {
            let count = runs.count;
            let of_run =
                move |run| (0..kv_heads).step_by(at_once).map(move |head| (segment, run, heads(head)));
            (0..count).flat_map(of_run)
        };
        let tasks = runs.iter().enumerate().flat_map(of_segment).collect();
        Self { format, inputs, pending: pending.collect(), tasks, runs }
    }

    pub fn tasks(&self) -> usize {
        self.tasks.len()
    }

    /// Runs task `task`. `shared` must have [`shared_len`] elements.
    ///
    /// # Safety
    /// `out` and `lse` must be valid for writing every row of the segments, and `shared` must be valid for
    /// its length. Each task must run only once.
    pub unsafe fn run(&self, task: usize, shared: SendPtr, out: *mut f32, lse: *mut f32) {
        let (segment, run, ref kv_heads) = self.tasks[task];
        for kv_head in kv_heads.clone() {
            // While the first head is computed, the keys and values of all heads are prefetched.
            let ahead = if kv_head == kv_heads.start { kv_heads.len() } else { 0 };
            // SAFETY: the caller guarantees the pointers, and no other task has this run and kv head.
            unsafe { self.run_head((segment, run, kv_head), ahead, shared, out, lse) };
        }
    }

    /// Computes one run of one kv head. The keys and values of `ahead` kv heads are prefetched.
    ///
    /// # Safety
    /// The requirements of [`run`](Self::run) apply.
    unsafe fn run_head(
        &self,
        (segment, run, kv_head): (usize, usize, usize),
        ahead: usize,
        shared: SendPtr,
        out: *mut f32,
        lse: *mut f32,
    ) {
        let (runs, dims) = (&self.runs[segment], self.inputs.dims);
        let group = dims.heads / dims.kv_heads;
        let partial = partial_len(dims);
        let place = |run: usize| (runs.before + run) * dims.heads + kv_head * group;
        with_buffers(lens(self.format, dims), |[queries, scores]| {
            // SAFETY: no other task writes the results of this run and kv head.
            let results =
                unsafe { std::slice::from_raw_parts_mut(shared.at(place(run) * partial), group * partial) };
            self.score(runs, run, (kv_head, ahead), queries, scores);
            let keys = runs.keys(run);
            let (isa, softcap) = (self.format.isa(), self.inputs.scores.softcap);
            weigh(isa, scores, results, keys.len(), partial, softcap);
            let row = dims.kv_heads * dims.head_dim;
            let start = (runs.segment.kv_start + keys.start) * row + kv_head * dims.head_dim;
            mix(isa, results, partial, scores, &self.inputs.v[start..], (keys.len(), row), dims.head_dim);
        });
        // `AcqRel` makes the results of the other tasks of this kv head visible. Only the last of these tasks
        // continues.
        if self.pending[segment * dims.kv_heads + kv_head].fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        for head in 0..group {
            let of_run = |run: usize| {
                let at = (place(run) + head) * partial;
                // SAFETY: all tasks of this kv head have ended, so no task writes these results.
                unsafe { std::slice::from_raw_parts(shared.at(at).cast_const(), partial) }
            };
            let row = runs.segment.q_start * dims.heads + kv_head * group + head;
            // SAFETY: the caller guarantees that the row exists. No other task writes this row and head.
            let out = unsafe { std::slice::from_raw_parts_mut(out.add(row * dims.head_dim), dims.head_dim) };
            let log_sum = combine(out, (0..runs.count).map(of_run));
            // SAFETY: the caller guarantees that the row exists. No other task writes this row and head.
            unsafe { *lse.add(row) = log_sum };
        }
    }

    /// Computes the scores of a run. Each query head has a row of [`RUN`] scores. The keys and values of
    /// `prefetched` kv heads are prefetched.
    fn score(
        &self,
        runs: &Runs,
        run: usize,
        (kv_head, prefetched): (usize, usize),
        queries: &mut [f32],
        scores: &mut [f32],
    ) {
        let AttentionInputs { q, k, v, dims, scores: params, .. } = self.inputs;
        let AttentionDims { heads, kv_heads, head_dim } = dims;
        let (group, stride, row) = (heads / kv_heads, self.format.row_words(head_dim), kv_heads * head_dim);
        let first = runs.segment.q_start * heads + kv_head * group;
        for (i, words) in queries.chunks_exact_mut(stride).enumerate() {
            self.format.pack_row(words, &q[(first + i) * head_dim..][..head_dim]);
        }
        let (keys, bytes) = (runs.keys(run), size_of::<f32>() * head_dim * prefetched);
        let at = |key: usize| (runs.segment.kv_start + key) * row + kv_head * head_dim;
        // If the last key and value of the run exist, all earlier keys and values exist too.
        assert!(k.len().min(v.len()) >= at(keys.end - 1) + head_dim && scores.len() >= group * RUN);
        for start in keys.clone().step_by(PREFETCH_KEYS) {
            let end = keys.end.min(start + PREFETCH_KEYS);
            let ahead = |key: usize| at((key + PREFETCH_KEYS).min(keys.end - 1));
            for key in start..end {
                prefetch_far(k.as_ptr().wrapping_add(ahead(key)).cast(), bytes);
                prefetch_far(v.as_ptr().wrapping_add(at(key)).cast(), bytes);
            }
            let job = DotJob {
                out: scores[start - keys.start..].as_mut_ptr(),
                out_stride: RUN,
                n: group,
                inp: queries.as_ptr(),
                inp_stride: stride,
                mask: None,
                w_rows: end - start,
                w: DotRows::Dense {
                    dtype: DType::F32,
                    first: k[at(start)..].as_ptr().cast(),
                    stride: row * size_of::<f32>(),
                },
                k: head_dim,
                alpha: params.scale,
                accumulate: false,
                round: false,
            };
            // SAFETY: `queries` and `scores` have rows for all query heads of the group, and the assertion
            // above covers the keys.
            unsafe { self.format.dots(&job) };
        }
    }
}

impl Runs {
    /// Returns the visible keys of a run.
    fn keys(&self, run: usize) -> Range<usize> {
        let start = (self.first + run) * RUN;
        start.max(self.first_key)..(start + RUN).min(self.end_key)
    }
}

fn runs(segments: &[Segment], dims: AttentionDims, window: Option<usize>) -> Vec<Runs> {
    super::check_dims(segments, dims);
    let mut before = 0;
    let of_segment = |&segment: &Segment| {
        assert_eq!(segment.q_len, 1, "one query a sequence: {segment:?}");
        let end_key = segment.kv_len;
        let first_key = end_key.saturating_sub(window.unwrap_or(end_key));
        let first = first_key / RUN;
        let runs = Runs { segment, first_key, end_key, first, count: end_key.div_ceil(RUN) - first, before };
        before += runs.count;
        runs
    };
    segments.iter().map(of_segment).collect()
}

/// Returns the number of elements that one query head stores for [`RUN`] consecutive keys: the weighted sum
/// of the values, the largest score and the sum of the weights. Padding keeps the results of different tasks
/// on different cache lines, so that tasks do not slow each other down.
fn partial_len(dims: AttentionDims) -> usize {
    (dims.head_dim + 2).next_multiple_of(WIDEST)
}

/// Returns the number of elements of `shared` in [`DecodeAttention::run`].
pub(crate) fn shared_len(segments: &[Segment], dims: AttentionDims, window: Option<usize>) -> usize {
    let runs: usize = runs(segments, dims, window).iter().map(|runs| runs.count).sum();
    runs * dims.heads * partial_len(dims)
}

/// Returns the number of elements in the buffers of one task.
pub(crate) fn task_len(format: OperandFormat, dims: AttentionDims) -> usize {
    total(lens(format, dims))
}

/// Returns the lengths of the two buffers of a task: the packed queries, and the scores of these queries.
fn lens(format: OperandFormat, dims: AttentionDims) -> [usize; 2] {
    let group = dims.heads / dims.kv_heads;
    [group * format.row_words(dims.head_dim), group * RUN]
}

simd_fn! {
    /// Replaces scores by weights `e^(score - largest)`. Each query head has a row of [`RUN`] scores. The
    /// largest score and the sum of the weights are written to the last two elements of the head's result.
    fn weigh(
        scores: &mut [f32],
        results: &mut [f32],
        keys: usize,
        partial: usize,
        softcap: Option<f32>,
    ) = weigh_lanes
}

#[inline(always)]
fn weigh_lanes<L: Lanes>(
    scores: &mut [f32],
    results: &mut [f32],
    keys: usize,
    partial: usize,
    softcap: Option<f32>,
) {
    for (row, result) in scores.chunks_exact_mut(RUN).zip(results.chunks_exact_mut(partial)) {
        if let Some(cap) = softcap {
            cap_lanes::<L>(&mut row[..keys.next_multiple_of(L::COUNT)], cap);
        }
        let row = &mut row[..keys];
        let max = largest::<L>(row);
        result[partial - 2] = max;
        result[partial - 1] = exponentials::<L>(row, max);
    }
}

simd_fn! {
    /// Computes `Σ weights[h, key] · values[key]` for each query head `h`, and writes the sum to the
    /// beginning of the head's result. `shape` is the number of keys, and the distance between their rows in
    /// `values`.
    fn mix(
        results: &mut [f32],
        partial: usize,
        weights: &[f32],
        values: &[f32],
        shape: (usize, usize),
        head_dim: usize,
    ) = mix_lanes
}

#[inline(always)]
fn mix_lanes<L: Lanes>(
    results: &mut [f32],
    partial: usize,
    weights: &[f32],
    values: &[f32],
    (keys, row): (usize, usize),
    head_dim: usize,
) {
    // Four heads times `widest` vectors are the accumulators: 16 of the 32 registers of AVX-512, or 8 of 16
    // registers.
    let widest = if L::COUNT == WIDEST { 4 } else { 2 };
    let heads = results.len() / partial;
    for head in (0..heads).step_by(4) {
        let (results, weights) = (&mut results[head * partial..], &weights[head * RUN..]);
        let mut column = 0;
        while column < head_dim {
            let vectors = ((head_dim - column) / L::COUNT).clamp(1, widest);
            macro_rules! choose {
                ($($v:literal: $($h:literal)*;)*) => {
                    match (vectors, (heads - head).min(4)) {
                        $($(($v, $h) if $v <= widest => {
                            let values = (values, keys, row);
                            mix_tile::<L, $h, $v>(results, partial, weights, values, column..head_dim);
                        })*)*
                        _ => unreachable!("at most four heads and vectors"),
                    }
                };
            }
            choose! { 4: 4 3 2 1; 3: 4 3 2 1; 2: 4 3 2 1; 1: 4 3 2 1; }
            column += vectors * L::COUNT;
        }
    }
}

/// Computes `V` vectors of the weighted sums of `H` query heads. The accumulators stay in registers.
#[inline(always)]
fn mix_tile<L: Lanes, const H: usize, const V: usize>(
    results: &mut [f32],
    partial: usize,
    weights: &[f32],
    (values, keys, row): (&[f32], usize, usize),
    columns: Range<usize>,
) {
    let end = columns.end.min(columns.start + V * L::COUNT);
    let weights: [&[f32]; H] = std::array::from_fn(|h| &weights[h * RUN..][..keys]);
    let mut sums = [[L::splat(0.0); V]; H];
    for key in 0..keys {
        let value = &values[key * row..][columns.start..end];
        let value: [L; V] = std::array::from_fn(|v| L::read(value, v * L::COUNT));
        for h in 0..H {
            let weight = L::splat(weights[h][key]);
            for v in 0..V {
                sums[h][v] = weight.mul_add(value[v], sums[h][v]);
            }
        }
    }
    for h in 0..H {
        let result = &mut results[h * partial..][columns.start..end];
        for v in 0..V {
            sums[h][v].write(result, v * L::COUNT);
        }
    }
}

/// Combines the results of all runs of keys in order, and writes the output to `out`. Returns the log of the
/// softmax denominator.
fn combine<'a>(out: &mut [f32], runs: impl Iterator<Item = &'a [f32]> + Clone) -> f32 {
    let parts = |run: &'a [f32]| (run[run.len() - 2], run[run.len() - 1]);
    let max = runs.clone().map(|run| parts(run).0).fold(f32::NEG_INFINITY, f32::max);
    let factor = |largest: f32| (largest - max).exp();
    let sum: f32 = runs.clone().map(parts).map(|(largest, sum)| factor(largest) * sum).sum();
    out.fill(0.0);
    for run in runs {
        let share = factor(parts(run).0) / sum;
        for (out, &mixed) in out.iter_mut().zip(run) {
            *out += share * mixed;
        }
    }
    max + sum.ln()
}
