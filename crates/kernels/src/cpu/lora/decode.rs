//! Multiplies a few rows by the low-rank pairs of many adapters, within the multiplication by the base
//! weights of a [`ProjectGroup`].
//!
//! ```text
//! one parallel region:
//!   first tasks:                mid = inp Aᵀ for every pair of the group
//!   tasks of each base weight:  out[.., cols] = inp W[cols]ᵀ, wait for the first tasks,
//!                               then out[rows, cols] += scaling · mid B[cols]ᵀ
//! ```
//!
//! The matrices of each adapter are read only once. Ranks may differ between adapters, and no rank is padded.
//! Rows without an adapter have no pair. The result has the same bits as that of [`LowRank::forward`].

use std::ops::Range;

use super::LowRank;
use crate::cpu::pool::SendPtr;
use crate::gemm::{DotJob, DotRows, ExpandJob, prefetch_far};
use crate::lora::LoraDims;
use crate::{Buffer, LoraSegment, PackedLora, ProjectGroup};

/// Minimum number of bytes of `A` in a task. With smaller tasks, distributing the work would cost too much.
/// With larger tasks, only few threads would compute `mid`, and the tasks of the base product would wait for
/// it.
const TASK_BYTES: usize = 8 << 10;

/// Maximum number of bytes of a pair's `Bᵀ` that are prefetched for a task. The prefetches must not evict the
/// operands of the multiplication from L2.
const MAX_PREFETCH_BYTES: usize = 16 << 10;

/// One adapter's pair `A, B` for one weight of a [`ProjectGroup`].
pub(crate) struct DecodePair<'a> {
    /// Index of the weight in [`ProjectGroup::weights`].
    weight: usize,
    rows: Range<usize>,
    packed: &'a PackedLora,
    a: *const u8,
    /// The product `inp Aᵀ`, `(rows, R)`.
    mid: SendPtr,
}

// SAFETY: `a` points to `A`. `A` outlives the pair, and tasks only read it.
unsafe impl Sync for DecodePair<'_> {}

/// Returns whether [`decode_pairs`] accepts every pair in `lora`: the pair must be packed and have no
/// dropout.
pub(crate) fn is_packed(lora: &[LoraSegment<'_>]) -> bool {
    let is_packed = |segment: &LoraSegment<'_>| {
        let mut pairs = segment.pairs.iter().zip(&segment.packed);
        pairs.all(|(pair, packed)| pair.is_none_or(|pair| pair.dropout.is_none() && packed.is_some()))
    };
    lora.iter().all(is_packed)
}

/// Returns the pairs of all adapters in `group`. Each pair has its own range of `mid`.
///
/// # Panics
/// If the shape of a pair differs from that of its weight, or if a buffer is too short.
pub(crate) fn decode_pairs<'a>(
    mid: &mut [&mut Buffer],
    inp: &[f32],
    group: &ProjectGroup<'a>,
    n: usize,
) -> Vec<DecodePair<'a>> {
    let mut found = Vec::new();
    for (weight, (w, mid)) in group.weights.iter().zip(mid).enumerate() {
        let ranks = group.lora.iter().filter_map(|segment| segment.pairs[weight].map(|pair| pair.lora.rank));
        let Some(stride) = ranks.max() else { continue };
        let mid = mid.host_slice_mut();
        assert!(mid.len() >= n * stride && inp.len() >= n * w.cols());
        let mid = SendPtr(mid.as_mut_ptr());
        for segment in group.lora {
            let (Some(pair), Some(packed)) = (&segment.pairs[weight], segment.packed[weight]) else {
                continue;
            };
            let (lora, rows) = (&pair.lora, segment.rows.clone());
            assert_eq!(LoraDims::of(lora), packed.dims, "a pair beside another packed pair");
            assert!(lora.d_in == w.cols() && lora.d_out == w.rows() && rows.end <= n);
            // `stride` is the largest rank, so the ranges of different segments are disjoint.
            let mid = SendPtr(mid.at(rows.start * stride));
            found.push(DecodePair { weight, rows, packed, a: packed.a_of(lora), mid });
        }
    }
    found
}

/// Index of a pair, and a range of the rows of its `A (R, IN)`.
pub(crate) type Piece = (usize, Range<usize>);

/// Divides the rows of `A` of all pairs into tasks of similar size. Every task except the last one reads at
/// least [`TASK_BYTES`] of `A`.
pub(crate) fn shrink_tasks(pairs: &[DecodePair<'_>]) -> Vec<Vec<Piece>> {
    let (mut tasks, mut task, mut bytes) = (Vec::new(), Vec::new(), 0);
    for (index, pair) in pairs.iter().enumerate() {
        let LoraDims { rank, d_in, .. } = pair.packed.dims;
        let row_bytes = (d_in * pair.packed.dtype.size()).max(1);
        let mut first = 0;
        while first < rank {
            // One tile of dot products reads four rows of `A`. The number of rows is therefore a multiple of
            // four, unless the pair ends earlier.
            let wanted = (TASK_BYTES - bytes).div_ceil(row_bytes).next_multiple_of(4);
            let end = rank.min(first + wanted);
            task.push((index, first..end));
            bytes += (end - first) * row_bytes;
            first = end;
            if bytes >= TASK_BYTES {
                tasks.push(std::mem::take(&mut task));
                bytes = 0;
            }
        }
    }
    tasks.extend((!task.is_empty()).then_some(task));
    tasks
}

/// Prefetches the columns `cols` of `Bᵀ` for every pair of one weight. The multiplication by the base weight
/// hides the delay of these reads, which are short and far apart.
pub(crate) fn prefetch_columns(pairs: &[DecodePair<'_>], weight: usize, cols: Range<usize>) {
    for DecodePair { packed, .. } in pairs.iter().filter(|pair| pair.weight == weight) {
        let bytes = packed.bytes_of(cols.clone());
        let start = packed.panels().wrapping_add(bytes.start);
        prefetch_far(start, bytes.len().min(MAX_PREFETCH_BYTES));
    }
}

impl LowRank {
    /// Computes one of the [`shrink_tasks`]: some columns of `mid = inp Aᵀ`.
    pub fn shrink(&self, inp: &[f32], pairs: &[DecodePair<'_>], task: &[Piece]) {
        for (index, ranks) in task {
            let DecodePair { rows, packed, a, mid, .. } = &pairs[*index];
            let LoraDims { rank, d_in, .. } = packed.dims;
            let stride = d_in * packed.dtype.size();
            let job = DotJob {
                out: mid.at(ranks.start),
                out_stride: rank,
                n: rows.len(),
                inp: inp[rows.start * d_in..].as_ptr(),
                inp_stride: d_in,
                mask: None,
                w_rows: ranks.len(),
                w: DotRows::Dense {
                    dtype: packed.dtype,
                    first: a.wrapping_add(ranks.start * stride),
                    stride,
                },
                k: d_in,
                alpha: 1.0,
                accumulate: false,
                round: false,
            };
            // SAFETY: `decode_pairs` checked the lengths. The pairs have disjoint ranges of `mid`, and tasks
            // write disjoint columns of `mid`.
            unsafe { (self.kernels.dots)(&job) };
        }
    }

    /// Computes `out[rows, cols] += scaling · mid B[cols]ᵀ` for every pair of one weight. `out` points to the
    /// first element of an output with `d_out` columns.
    ///
    /// # Safety
    /// `out` contains all rows of the pairs, and no other task accesses the columns `cols`.
    pub unsafe fn expand(&self, out: SendPtr, pairs: &[DecodePair<'_>], weight: usize, cols: Range<usize>) {
        for DecodePair { rows, packed, mid, .. } in pairs.iter().filter(|pair| pair.weight == weight) {
            let LoraDims { rank, d_out, scaling, .. } = packed.dims;
            assert!(cols.end <= d_out);
            let job = ExpandJob {
                out: out.at(rows.start * d_out + cols.start),
                out_stride: d_out,
                rows: rows.len(),
                mid: mid.at(0),
                panels: packed.panels(),
                dtype: packed.dtype,
                rank,
                cols: (cols.start, cols.len()),
                alpha: scaling,
            };
            // SAFETY: the caller guarantees access to the output. `shrink` has written `mid`, and a packed
            // pair contains the panels of all its outputs.
            unsafe { (self.kernels.expand)(&job) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LoraRef;

    #[test]
    fn tasks_have_every_rank_once_and_enough_bytes() {
        for (ranks, d_in) in [(vec![8; 8], 768), (vec![1, 64, 3, 16], 2048), (vec![2], 5), (vec![], 9)] {
            let packed: Vec<PackedLora> = ranks
                .iter()
                .map(|&rank| {
                    let params = Buffer::host(rank * (d_in + 7));
                    let lora =
                        LoraRef { params: &params, a: 0, b: rank * d_in, rank, d_in, d_out: 7, scaling: 1.0 };
                    PackedLora::pack(&lora)
                })
                .collect();
            let pair = |packed| DecodePair {
                weight: 0,
                rows: 0..1,
                packed,
                a: std::ptr::null(),
                mid: SendPtr(std::ptr::null_mut()),
            };
            let pairs: Vec<DecodePair<'_>> = packed.iter().map(pair).collect();
            let tasks = shrink_tasks(&pairs);
            let bytes =
                |task: &Vec<Piece>| task.iter().map(|(_, ranks)| ranks.len() * d_in * 2).sum::<usize>();
            assert!(tasks.iter().rev().skip(1).all(|task| bytes(task) >= TASK_BYTES), "{ranks:?}");
            let found: Vec<Piece> = tasks.into_iter().flatten().collect();
            let mut next = vec![0; ranks.len()];
            for (index, piece) in found {
                assert_eq!(piece.start, next[index]);
                next[index] = piece.end;
            }
            assert_eq!(next, ranks);
        }
    }
}
