//! Products for decoding. A few rows of activations are multiplied by a weight, and the weight is read from
//! memory once.

use std::ops::Range;
use std::sync::Mutex;

use super::{DotJob, DotRows, Kernels, four_bit};
use crate::cpu::pool::{Pool, Scratch, SendPtr, lock};
use crate::matrix::HostMatrix;
use crate::{Isa, Matrix};

/// Minimum number of weight bytes in a task. With smaller tasks, distributing the work would cost too much.
const TASK_BYTES: usize = 64 << 10;

/// Divides the rows of a weight into tasks. The first tasks are long, so that memory is read sequentially.
/// Later tasks are shorter, so that all threads end at about the same time. A task has at least `least` rows,
/// or an equal share of all rows if this share is smaller. Only the last task may be shorter.
fn tasks(rows: usize, least: usize, threads: usize) -> Vec<Range<usize>> {
    let least = least.min(rows.div_ceil(threads));
    let (mut tasks, mut row) = (Vec::new(), 0);
    while row < rows {
        let left = rows - row;
        let share = if threads == 1 { left } else { left * 3 / (4 * threads) };
        let taken = share.max(least).next_multiple_of(4).min(left);
        tasks.push(row..row + taken);
        row += taken;
    }
    tasks
}

/// The multiplication `out = inp Wᵀ` for at most [`SkinnyGemm::MAX_ROWS`] rows of `inp`.
pub(crate) struct SkinnyGemm {
    kernels: &'static Kernels,
    round: bool,
    packed: Mutex<Scratch>,
}

impl SkinnyGemm {
    /// Maximum number of rows for which reading weights in place is faster than packing the weights.
    pub const MAX_ROWS: usize = 8;

    /// Creates a multiplication on `isa`. If `bf16` is set, both operands are rounded to bf16, and sums are
    /// f32.
    pub fn new(isa: Isa, bf16: bool) -> Self {
        Self { kernels: Kernels::select(isa, bf16), round: bf16, packed: Mutex::default() }
    }

    /// Returns the number of words in `n` packed rows of `d_in` elements.
    pub fn scratch(&self, n: usize, d_in: usize) -> usize {
        n * self.stride(d_in)
    }

    /// Returns the number of bytes that are allocated now.
    #[cfg(test)]
    pub fn allocated_bytes(&self) -> u64 {
        lock(&self.packed).allocated_bytes()
    }

    fn stride(&self, d_in: usize) -> usize {
        d_in.div_ceil(self.kernels.pair).next_multiple_of(self.kernels.lanes)
    }

    /// Computes `out (N, OUT) = inp (N, IN) Wᵀ`. After a task has computed a range of columns, the task calls
    /// `then` with the first element of `out` and with the range. No other task accesses these columns.
    ///
    /// # Panics
    /// If a slice is shorter than its shape.
    pub fn forward(
        &self,
        pool: &Pool,
        out: &mut [f32],
        inp: &[f32],
        (w, n): (&Matrix, usize),
        then: impl Fn(SendPtr, Range<usize>) + Sync,
    ) {
        let (d_out, d_in) = (w.rows(), w.cols());
        assert!(out.len() >= n * d_out && inp.len() >= n * d_in);
        let Kernels { pack_row, interleave, dots, chunk, .. } = *self.kernels;
        let weight = w.host();
        let (pack, bytes) = match weight {
            HostMatrix::Dense(_, bytes) => (pack_row, bytes.len()),
            HostMatrix::FourBit(weight) => {
                let pack = if four_bit::is_aligned(weight, d_in, chunk) { interleave } else { pack_row };
                (pack, weight.bytes())
            }
        };

        // `inp` is converted to words once for all rows of `W`.
        let inp_stride = self.stride(d_in);
        let mut packed = lock(&self.packed);
        let packed = packed.at_least(self.scratch(n, d_in));
        for i in 0..n {
            let dst = &mut packed[i * inp_stride..][..inp_stride];
            let row = &inp[i * d_in..][..d_in];
            // SAFETY: `select` checked the instruction set, and `dst` has room for all words of the row.
            unsafe { pack(dst.as_mut_ptr(), row, self.round) };
        }

        let w_stride = bytes / d_out.max(1);
        let tasks = tasks(d_out, TASK_BYTES.div_ceil(w_stride.max(1)), pool.threads());
        let inp = SendPtr(packed.as_mut_ptr());
        let out = SendPtr(out.as_mut_ptr());
        pool.run(tasks.len(), |task, _| {
            let Range { start: row, end } = tasks[task];
            let job = DotJob {
                out: out.at(row),
                out_stride: d_out,
                n,
                inp: inp.at(0),
                inp_stride,
                mask: None,
                w_rows: end - row,
                w: match weight {
                    HostMatrix::Dense(dtype, bytes) => {
                        let stride = d_in * dtype.size();
                        DotRows::Dense { dtype, first: bytes[row * stride..].as_ptr(), stride }
                    }
                    HostMatrix::FourBit(weight) => DotRows::FourBit(weight, row),
                },
                k: d_in,
                alpha: 1.0,
                accumulate: false,
                round: self.round,
            };
            // SAFETY: the shapes were checked above, and a `Matrix` contains all its rows. Tasks write
            // disjoint columns of `out`.
            unsafe { dots(&job) };
            then(out, row..end);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_cover_the_rows_and_keep_every_thread_busy() {
        for (rows, least) in [(0, 1), (1, 8), (3, 1), (70, 9), (128, 147), (2053, 64), (128_256, 16)] {
            for threads in [1, 2, 3, 16] {
                let tasks = tasks(rows, least, threads);
                let (mut row, each) = (0, rows.div_ceil(threads));
                for (i, task) in tasks.iter().enumerate() {
                    assert_eq!((task.start, task.start % 4), (row, 0), "{rows} {least} {threads}");
                    assert!(
                        task.len() >= least.min(each) || i + 1 == tasks.len(),
                        "{rows} {least} {threads}"
                    );
                    row = task.end;
                }
                assert_eq!(row, rows);
                let busy = rows.div_ceil(each.next_multiple_of(4).max(1)).min(threads);
                assert!(
                    tasks.len() >= busy && (threads > 1 || tasks.len() == busy),
                    "{rows} {least} {threads}"
                );
            }
        }
    }
}
