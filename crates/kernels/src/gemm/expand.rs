//! Low-rank update of a few rows: `out += alpha · mid Bᵀ`. Each task updates the columns whose multiplication
//! by the base weight it has just computed.

use super::dots::tallest;
use super::micro_kernel::{BF16, F32, MicroKernel, size_of_source};
use crate::DType;
use crate::packed_lora::PANEL_COLS;

/// Arguments of [`expand`]: a low-rank update of some columns in some rows.
#[derive(Clone, Copy)]
pub(crate) struct ExpandJob {
    /// Pointer to the first column of the first row.
    pub out: *mut f32,
    /// Distance from one row of the output to the next, in elements.
    pub out_stride: usize,
    pub rows: usize,
    /// Pointer to a matrix of shape `(rows, rank)`.
    pub mid: *const f32,
    /// Pointer to the panels of `Bᵀ`, in the format of [`PackedLora`](crate::PackedLora).
    pub panels: *const u8,
    pub dtype: DType,
    pub rank: usize,
    /// First column of `Bᵀ`, and number of columns.
    pub cols: (usize, usize),
    pub alpha: f32,
}

/// Runs an [`ExpandJob`]. The terms of a result are added in ascending order along the rank. A result
/// therefore depends neither on the other rows nor on the columns of the task.
///
/// # Safety
/// The processor must support the instruction set of `T`, and every pointer must be valid for its shape.
#[inline(always)]
pub(super) unsafe fn expand<T: MicroKernel>(job: &ExpandJob) {
    // SAFETY: the caller meets the safety requirements.
    unsafe {
        match job.dtype {
            DType::F32 => expand_of::<T, F32>(job),
            DType::Bf16 => expand_of::<T, BF16>(job),
            other => unreachable!("a packed pair of {other:?}"),
        }
    }
}

/// Runs [`expand`] for one element type.
///
/// # Safety
/// The requirements of [`expand`] apply.
#[inline(always)]
unsafe fn expand_of<T: MicroKernel, const D: u8>(job: &ExpandJob) {
    let (first, count) = job.cols;
    let mut done = 0;
    while done < count {
        let col = first + done;
        let within = col % PANEL_COLS;
        let most = (count - done).min(PANEL_COLS - within);
        let at = col / PANEL_COLS * PANEL_COLS * job.rank + within;
        let cols = most.min(T::NR);
        // SAFETY: columns `col .. col + cols` are in one panel and in every row of the output. A vector that
        // reaches past the panel reads at most the padding.
        unsafe {
            let panel = job.panels.add(at * size_of_source::<D>());
            let mut row = 0;
            while row < job.rows {
                let at = (job.out.add(row * job.out_stride + done), job.mid.add(row * job.rank));
                row += match (job.rows - row).min(tallest::<T>()) {
                    1 => expand_rows::<T, D, 1>(job, panel, at, cols),
                    2 => expand_rows::<T, D, 2>(job, panel, at, cols),
                    3 => expand_rows::<T, D, 3>(job, panel, at, cols),
                    _ => expand_rows::<T, D, 4>(job, panel, at, cols),
                };
            }
        }
        done += cols;
    }
}

/// Adds the update to `cols` columns of `N` rows. The columns fill at most two vectors. Returns `N`.
///
/// # Safety
/// The requirements of [`expand`] apply, and the rows and columns must exist.
#[inline(always)]
unsafe fn expand_rows<T: MicroKernel, const D: u8, const N: usize>(
    job: &ExpandJob,
    panel: *const u8,
    (out, mid): (*mut f32, *const f32),
    cols: usize,
) -> usize {
    let (lower, upper) = (cols.min(T::LANES), cols.saturating_sub(T::LANES));
    let size = size_of_source::<D>();
    // SAFETY: the caller meets the safety requirements. The second vector is loaded only if the second vector
    // contains columns.
    unsafe {
        let mut acc = [[T::zero(); 2]; N];
        for r in 0..job.rank {
            let b = panel.add(r * PANEL_COLS * size);
            let b0 = T::words_by_rows::<D>(b, false);
            let b1 = if upper > 0 { T::words_by_rows::<D>(b.add(T::LANES * size), false) } else { b0 };
            for i in 0..N {
                let a = T::splat(*mid.add(i * job.rank + r));
                acc[i][0] = T::step(acc[i][0], a, b0);
                acc[i][1] = T::step(acc[i][1], a, b1);
            }
        }
        let alpha = T::splat(job.alpha);
        for (i, [s0, s1]) in acc.into_iter().enumerate() {
            let c0 = out.add(i * job.out_stride);
            let c1 = c0.wrapping_add(T::LANES);
            if cols == T::NR {
                T::store(c0, T::mul_add(T::load(c0), alpha, s0));
                T::store(c1, T::mul_add(T::load(c1), alpha, s1));
            } else {
                T::store_first(c0, lower, T::mul_add(T::load_first(c0, lower), alpha, s0));
                T::store_first(c1, upper, T::mul_add(T::load_first(c1, upper), alpha, s1));
            }
        }
    }
    N
}
