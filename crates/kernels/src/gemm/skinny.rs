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

/// The multiplication `out = inp Wᵀ` for a few rows of `inp`. The bits of a row do not depend on the number
/// of rows.
pub(crate) struct SkinnyGemm {
    kernels: &'static Kernels,
    round: bool,
    packed: Mutex<Scratch>,
}

impl SkinnyGemm {
    /// Maximum number of rows for which reading weights in place is faster than packing the weights.
    pub const MAX_ROWS: usize = 8;
    /// Maximum number of generated tokens in a pass. All of them use this multiplication, so that a reply
    /// does not depend on the other replies in the batch. With more rows, packing the weights would be
    /// faster.
    pub const MAX_GENERATED_ROWS: usize = 64;

    /// Creates a multiplication on `isa`. If `bf16` is set, both operands are rounded to bf16, and sums are
    /// f32.
    pub fn new(isa: Isa, bf16: bool) -> Self {
        Self { kernels: Kernels::select(isa, bf16), round: bf16, packed: Mutex::default() }
    }

    /// Returns the number of 32-bit words in `n` packed rows of `d_in` elements.
    pub fn scratch(&self, n: usize, d_in: usize) -> usize {
        n * self.stride(d_in)
    }

    #[cfg(test)]
    pub fn allocated_bytes(&self) -> u64 {
        lock(&self.packed).allocated_bytes()
    }

    fn stride(&self, d_in: usize) -> usize {
        d_in.div_ceil(self.kernels.pair).next_multiple_of(self.kernels.lanes)
    }

    /// Computes `out (N, OUT) = inp (N, IN) Wᵀ` for each of `weights`. After a task has computed a range of
    /// columns, the task calls `then` with the index of the weight, the first element of `out` and the range.
    /// No other task accesses these columns.
    ///
    /// # Panics
    /// If a slice is shorter than its shape.
    pub fn forward(
        &self,
        pool: &Pool,
        out: &mut [&mut [f32]],
        inp: &[f32],
        (weights, n): (&[&Matrix], usize),
        then: impl Fn(usize, SendPtr, Range<usize>) + Sync,
    ) {
        let mut factors = Vec::with_capacity(weights.len());
        for (index, (out, w)) in out.iter_mut().zip(weights).enumerate() {
            assert!(out.len() >= n * w.rows() && inp.len() >= n * w.cols());
            assert_eq!(w.cols(), weights[0].cols(), "weights of one group have one input");
            let (out, shape) = (SendPtr(out.as_mut_ptr()), (w.rows(), w.cols()));
            factors.push(SkinnyFactor { index, out, weight: w.host(), shape });
        }
        // Weights that read `inp` in the same order share one packed input and one parallel region.
        let of_order = |factor: &SkinnyFactor<'_>| self.is_interleaved(factor);
        for factors in factors.chunk_by(|a, b| of_order(a) == of_order(b)) {
            self.region(pool, factors, inp, n, &then);
        }
    }

    /// Returns whether `inp` must be in the order in which a 4-bit weight is decoded.
    fn is_interleaved(&self, factor: &SkinnyFactor<'_>) -> bool {
        match factor.weight {
            HostMatrix::Dense(..) => false,
            HostMatrix::FourBit(weight) => four_bit::is_aligned(weight, factor.shape.1, self.kernels.chunk),
        }
    }

    /// Multiplies `inp` by some weights, in one parallel region.
    fn region(
        &self,
        pool: &Pool,
        factors: &[SkinnyFactor<'_>],
        inp: &[f32],
        n: usize,
        then: &(impl Fn(usize, SendPtr, Range<usize>) + Sync),
    ) {
        let d_in = factors[0].shape.1;
        let pack =
            if self.is_interleaved(&factors[0]) { self.kernels.interleave } else { self.kernels.pack_row };
        // `inp` is packed once for all rows of all weights.
        let stride = self.stride(d_in);
        let mut packed = lock(&self.packed);
        let packed = SendPtr(packed.at_least(self.scratch(n, d_in)).as_mut_ptr());
        let pack_one = |i: usize| {
            let row = &inp[i * d_in..][..d_in];
            // SAFETY: `select` checked the instruction set, and each row has its own `stride` words.
            unsafe { pack(packed.at(i * stride), row, self.round) };
        };
        // A few rows are packed in less time than a parallel region takes.
        match n > Self::MAX_ROWS {
            true => pool.run(n, |i, _| pack_one(i)),
            false => (0..n).for_each(pack_one),
        }
        let tasks_of = |factor: &SkinnyFactor<'_>| {
            let (d_out, bytes) = (factor.shape.0, factor.weight.bytes());
            let least = TASK_BYTES.div_ceil((bytes / d_out.max(1)).max(1));
            tasks(d_out, least, pool.threads())
        };
        let tasks: Vec<(&SkinnyFactor<'_>, Range<usize>)> = factors
            .iter()
            .flat_map(|factor| tasks_of(factor).into_iter().map(move |rows| (factor, rows)))
            .collect();
        pool.run(tasks.len(), |task, _| {
            let (factor, rows) = &tasks[task];
            // SAFETY: `forward` checked the shapes, and `packed` contains `n` rows. Tasks write disjoint
            // columns of `out`.
            unsafe { self.multiply(factor, rows.clone(), (packed, stride), n) };
            then(factor.index, factor.out, rows.clone());
        });
    }

    /// Multiplies the packed rows of `inp` by the rows `rows` of a weight.
    ///
    /// # Safety
    /// `inp` must be valid for `n` rows, which are `stride` words apart. `out` must be valid for `n` rows,
    /// and no other task may access these columns.
    unsafe fn multiply(
        &self,
        factor: &SkinnyFactor<'_>,
        rows: Range<usize>,
        (inp, stride): (SendPtr, usize),
        n: usize,
    ) {
        let SkinnyFactor { out, weight, shape: (d_out, d_in), .. } = *factor;
        let job = DotJob {
            out: out.at(rows.start),
            out_stride: d_out,
            n,
            inp: inp.at(0),
            inp_stride: stride,
            mask: None,
            w_rows: rows.len(),
            w: match weight {
                HostMatrix::Dense(dtype, bytes) => {
                    let stride = d_in * dtype.size();
                    DotRows::Dense { dtype, first: bytes[rows.start * stride..].as_ptr(), stride }
                }
                HostMatrix::FourBit(weight) => DotRows::FourBit(weight, rows.start),
            },
            k: d_in,
            alpha: 1.0,
            accumulate: false,
            round: self.round,
        };
        // SAFETY: the caller guarantees the pointers, and a `Matrix` contains all its rows.
        unsafe { (self.kernels.dots)(&job) };
    }
}

/// One of the weights that [`SkinnyGemm::forward`] multiplies, and its output.
#[derive(Clone, Copy)]
struct SkinnyFactor<'a> {
    index: usize,
    out: SendPtr,
    weight: HostMatrix<'a>,
    /// `(OUT, IN)`.
    shape: (usize, usize),
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
