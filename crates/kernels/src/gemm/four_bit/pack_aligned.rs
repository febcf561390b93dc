//! Packing of 4-bit weights whose blocks end at vector boundaries. Values go directly from codes to panels.

use crate::FourBit;
use crate::gemm::micro_kernel::MicroKernel;
use crate::gemm::pack::{COLUMN_STEPS, PackJob, prefetch_steps};

/// Returns whether each row of a square of `LANES` rows by `LANES` words is inside one block, and whether
/// blocks begin at the same columns in all rows.
#[inline(always)]
pub(super) fn is_aligned_by_rows<T: MicroKernel>(job: &PackJob<'_>, w: &FourBit) -> bool {
    let square = T::LANES * T::PAIR;
    let whole = |n: usize| n.is_multiple_of(square);
    whole(w.block_size()) && whole(job.k) && whole(job.k_len) && job.src.outer.is_multiple_of(w.block_size())
}

/// Packs an [aligned](is_aligned_by_rows) weight that is contiguous along `k`. Squares of `LANES` rows are
/// looked up, transposed, and stored in panels.
///
/// # Safety
/// The requirements of [`pack`](super::pack) apply.
#[inline(always)]
pub(super) unsafe fn pack_by_rows<T: MicroKernel>(job: &PackJob<'_>, w: &FourBit) {
    let (codes, scales, square) = (w.codes().as_ptr(), w.scales().view(), T::LANES * T::PAIR);
    for first in (0..job.outers).step_by(T::LANES) {
        let last = (job.outers - first).min(T::LANES) - 1;
        let mut to = job.dst.wrapping_add(first / job.width * job.panel + first % job.width);
        // If fewer than `LANES` rows remain, the last row is repeated.
        let rows: [usize; 16] =
            std::array::from_fn(|i| (job.outer + first + i.min(last)) * job.src.outer + job.k);
        let mut done = 0;
        while done < job.k_len {
            // Blocks begin at the same columns in all rows, so the current blocks of all rows end at `until`.
            let until = ((((job.k + done) >> w.block_log2()) + 1) << w.block_log2()) - job.k;
            // SAFETY: squares are inside the view, and each row of a square is inside one block. Panels have
            // room for whole vectors.
            unsafe {
                let mut tables = [T::table(w.table(), [0.0; 2], job.round); 16];
                for (table, row) in tables.iter_mut().zip(rows).take(T::LANES) {
                    let scale = scales.at((row + done) >> w.block_log2());
                    *table = T::table(w.table(), [scale; 2], job.round);
                    // Prefetches the next `LANES` rows.
                    T::prefetch(codes.wrapping_add((row + done + T::LANES * job.src.outer) / 2));
                }
                while done < until.min(job.k_len) {
                    let mut v = [T::zero(); 16];
                    for i in 0..T::LANES {
                        v[i] = T::lookup(tables[i], codes.add((rows[i] + done) / 2));
                    }
                    T::transpose(&mut v);
                    for (i, &v) in v.iter().enumerate().take(T::LANES) {
                        T::store(to.wrapping_add(i * job.width), v);
                    }
                    to = to.wrapping_add(T::LANES * job.width);
                    done += square;
                }
            }
        }
    }
}

/// Returns whether every vector ends with a whole byte, and is inside one block and inside one row.
#[inline(always)]
pub(super) fn is_aligned_by_columns<T: MicroKernel>(job: &PackJob<'_>, w: &FourBit) -> bool {
    let whole = |n: usize| n.is_multiple_of(T::LANES);
    const { assert!(T::LANES.is_multiple_of(2), "a vector ends with a byte of codes") };
    whole(w.block_size()) && [job.src.k, job.outer, job.outers].into_iter().all(whole)
}

/// Packs an [aligned](is_aligned_by_columns) weight that is contiguous along `outer`. Values go directly from
/// codes to panels.
///
/// # Safety
/// The requirements of [`pack`](super::pack) apply.
#[inline(always)]
pub(super) unsafe fn pack_by_columns<T: MicroKernel>(job: &PackJob<'_>, w: &FourBit) {
    let (codes, scales) = (w.codes().as_ptr(), w.scales().view());
    for step in 0..job.k_len.div_ceil(T::PAIR) {
        // If the number of rows is odd, the last row is paired with zeros.
        let row = job.k + step * T::PAIR;
        let partner = (T::PAIR == 2 && step * 2 + 1 < job.k_len).then_some(row + 1);
        let at = |row: usize| row * job.src.k + job.outer;
        let (e0, e1) = (at(row), at(partner.unwrap_or(row)));
        let mut first = 0;
        // SAFETY: each vector is inside the view and inside one block. Panels have room for whole vectors.
        unsafe {
            if step.is_multiple_of(COLUMN_STEPS) {
                prefetch_steps::<T>(job, step);
            }
            while first < job.outers {
                let blocks = [e0, e1].map(|e| (e + first) >> w.block_log2());
                let ends = blocks.map(|block| (block + 1) << w.block_log2());
                let until = job.outers.min(ends[0] - e0).min(ends[1] - e1);
                let upper = if partner.is_some() { scales.at(blocks[1]) } else { 0.0 };
                let table = T::table(w.table(), [scales.at(blocks[0]), upper], job.round);
                while first < until {
                    let [p0, p1] = [e0, e1].map(|e| codes.add((e + first) / 2));
                    let panel = first / job.width * job.panel + first % job.width;
                    let to = job.dst.wrapping_add(panel + step * job.width);
                    T::store(to, T::lookup_by_columns(table, p0, p1));
                    first += T::LANES;
                }
            }
        }
    }
}
