//! Products for decoding. A few rows of activations are multiplied by a weight, and the weight is read from
//! memory once.

use std::ops::Range;
use std::sync::Mutex;

use super::{COLUMN_BLOCK, COLUMN_GROUP, ColumnPackJob, DotJob, DotRows, Kernels, four_bit, part};
use crate::cpu::pool::{Latch, Pool, Scratch, SendPtr, lock};
use crate::matrix::HostMatrix;
use crate::{DType, Isa, Matrix};

/// Minimum number of weight bytes in a task. With smaller tasks, distributing the work would cost too much.
const TASK_BYTES: usize = 64 << 10;

/// Minimum number of 32-bit words of packed `inp` in a task that packs.
const PACK_WORDS: usize = 4 << 10;

/// Divides the rows of a weight into tasks of a multiple of `unit` rows. The first tasks are long, so that
/// memory is read sequentially. Later tasks are shorter, so that all threads end at about the same time. A
/// task has at least `least` rows, or an equal share of all rows if this share is smaller. Only the last task
/// may be shorter.
fn tasks(rows: usize, least: usize, unit: usize, threads: usize) -> Vec<Range<usize>> {
    let least = least.min(rows.div_ceil(threads));
    let (mut tasks, mut row) = (Vec::new(), 0);
    while row < rows {
        let left = rows - row;
        let share = if threads == 1 { left } else { left * 3 / (4 * threads) };
        let taken = share.max(least).next_multiple_of(unit).min(left);
        tasks.push(row..row + taken);
        row += taken;
    }
    tasks
}

/// The order of the elements of packed `inp`, which depends on the weight that reads `inp`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    ByRows,
    /// By rows, in the order in which a 4-bit weight is decoded.
    Interleaved,
    /// By columns, for [`ColumnDots`](super::ColumnDots).
    ByColumns,
}

/// Work that belongs to a multiplication, and runs in the same parallel region.
pub(crate) struct Before<'a> {
    /// Number of tasks that run before the multiplication.
    pub tasks: usize,
    pub run: &'a (dyn Fn(usize) + Sync),
    /// Called by each task of the multiplication before it starts, with the index of the weight and the
    /// columns.
    pub prefetch: &'a (dyn Fn(usize, Range<usize>) + Sync),
}

impl Before<'_> {
    pub const NOTHING: Self = Before { tasks: 0, run: &|_| {}, prefetch: &|_, _| {} };
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
    /// Maximum number of generated tokens in a pass. All generated tokens use this multiplication, so that a
    /// reply does not depend on the other replies in the batch. With more rows, packing the weights would be
    /// faster.
    pub const MAX_GENERATED_ROWS: usize = 64;

    /// Creates a multiplication on `isa`. If `bf16` is set, both operands are rounded to bf16, and sums are
    /// f32.
    pub fn new(isa: Isa, bf16: bool) -> Self {
        Self { kernels: Kernels::select(isa, bf16), round: bf16, packed: Mutex::default() }
    }

    /// Returns the number of 32-bit words in `n` packed rows of `d_in` elements. The number is the same for
    /// every [`Order`].
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
    /// columns, and all tasks of `before` have ended, the task calls `then` with the index of the weight, the
    /// first element of `out` and the range. No other task accesses these columns.
    ///
    /// # Panics
    /// If a slice is shorter than its shape.
    pub fn forward(
        &self,
        pool: &Pool,
        out: &mut [&mut [f32]],
        inp: &[f32],
        (weights, n): (&[&Matrix], usize),
        before: Before<'_>,
        then: impl Fn(usize, SendPtr, Range<usize>) + Sync,
    ) {
        let mut factors = Vec::with_capacity(weights.len());
        for (index, (out, w)) in out.iter_mut().zip(weights).enumerate() {
            assert!(out.len() >= n * w.rows() && inp.len() >= n * w.cols());
            assert_eq!(w.cols(), weights[0].cols(), "weights of one group have one input");
            let (out, shape) = (SendPtr(out.as_mut_ptr()), (w.rows(), w.cols()));
            let order = self.order(w.host(), w.cols());
            factors.push(SkinnyFactor { index, out, weight: w.host(), shape, order });
        }
        // Weights that read `inp` in the same order share one packed input and one parallel region.
        let mut before = before;
        for factors in factors.chunk_by(|a, b| a.order == b.order) {
            self.region(pool, factors, (inp, n), &before, &then);
            before.tasks = 0;
        }
    }

    fn order(&self, weight: HostMatrix<'_>, d_in: usize) -> Order {
        match weight {
            HostMatrix::FourBit(weight) if four_bit::is_aligned(weight, d_in, self.kernels.chunk) => {
                Order::Interleaved
            }
            HostMatrix::Dense(DType::Bf16, _)
                if self.kernels.column_dots.is_some() && d_in.is_multiple_of(COLUMN_BLOCK) =>
            {
                Order::ByColumns
            }
            HostMatrix::Dense(..) | HostMatrix::FourBit(_) => Order::ByRows,
        }
    }

    /// Multiplies `inp` by some weights, in one parallel region.
    fn region(
        &self,
        pool: &Pool,
        factors: &[SkinnyFactor<'_>],
        (inp, n): (&[f32], usize),
        before: &Before<'_>,
        then: &(impl Fn(usize, SendPtr, Range<usize>) + Sync),
    ) {
        let (order, d_in) = (factors[0].order, factors[0].shape.1);
        // `inp` is packed once for all rows of all weights.
        let stride = self.stride(d_in);
        let mut packed = lock(&self.packed);
        let packed = SendPtr(packed.at_least(self.scratch(n, d_in)).as_mut_ptr());
        let mut pieces = self.pieces(order, n, d_in);
        // If there is little to pack, packing it here takes less time than letting other threads wait for the
        // packed rows.
        if n * stride <= 2 * PACK_WORDS {
            pieces.drain(..).for_each(|piece| self.pack((packed, stride), inp, d_in, order, piece));
        }
        let tasks = self.tasks(factors, pool.threads());
        let (is_packed, is_before) = (Latch::new(pieces.len()), Latch::new(before.tasks));
        let first = pieces.len() + before.tasks;
        pool.run(first + tasks.len(), |task, _| {
            if let Some(&piece) = pieces.get(task) {
                return is_packed.run(|| self.pack((packed, stride), inp, d_in, order, piece));
            }
            if task < first {
                return is_before.run(|| (before.run)(task - pieces.len()));
            }
            let (factor, rows) = &tasks[task - first];
            (before.prefetch)(factor.index, rows.clone());
            is_packed.wait();
            // SAFETY: `forward` checked the shapes, and `packed` contains `n` rows. Tasks write disjoint
            // columns of `out`.
            unsafe { self.multiply(factor, rows.clone(), (packed, stride), n) };
            is_before.wait();
            then(factor.index, factor.out, rows.clone());
        });
    }

    /// Returns the tasks of some weights: a weight, and a range of its rows.
    fn tasks<'a, 'b>(
        &self,
        factors: &'b [SkinnyFactor<'a>],
        threads: usize,
    ) -> Vec<(&'b SkinnyFactor<'a>, Range<usize>)> {
        let of = |factor: &'b SkinnyFactor<'a>| {
            let (d_out, bytes) = (factor.shape.0, factor.weight.bytes());
            let least = TASK_BYTES.div_ceil((bytes / d_out.max(1)).max(1));
            let unit = if factor.order == Order::ByColumns { COLUMN_GROUP } else { 4 };
            tasks(d_out, least, unit, threads).into_iter().map(move |rows| (factor, rows))
        };
        factors.iter().flat_map(of).collect()
    }

    /// Divides the packing of `n` rows into pieces.
    fn pieces(&self, order: Order, n: usize, d_in: usize) -> Vec<Piece> {
        if order != Order::ByColumns {
            return (0..n).map(|row| Piece { rows: (row, 1), blocks: (0, 0) }).collect();
        }
        let blocks = d_in / COLUMN_BLOCK;
        let group = |row: usize| {
            let rows = (n - row).min(COLUMN_GROUP);
            let parts = (rows * self.stride(d_in)).div_ceil(PACK_WORDS).clamp(1, blocks.max(1));
            (0..parts).map(move |i| Piece { rows: (row, rows), blocks: part(blocks, parts, i) })
        };
        (0..n).step_by(COLUMN_GROUP).flat_map(group).collect()
    }

    /// Packs a piece of `inp`.
    fn pack(
        &self,
        (packed, stride): (SendPtr, usize),
        inp: &[f32],
        d_in: usize,
        order: Order,
        Piece { rows: (first, count), blocks }: Piece,
    ) {
        let dst = packed.at(first * stride);
        let inp = &inp[first * d_in..][..count * d_in];
        // SAFETY: `select` checked the instruction set. Each row or group of rows has its own words, of
        // which each piece writes those of its blocks.
        unsafe {
            match (order, self.kernels.column_dots) {
                (Order::ByColumns, Some(columns)) => {
                    (columns.pack)(&ColumnPackJob { dst, inp, k: d_in, blocks });
                }
                (Order::Interleaved, _) => (self.kernels.interleave)(dst, inp, self.round),
                _ => (self.kernels.pack_row)(dst, inp, self.round),
            }
        }
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
        let SkinnyFactor { out, weight, shape: (d_out, d_in), order, .. } = *factor;
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
        let dots = match self.kernels.column_dots.filter(|_| order == Order::ByColumns) {
            Some(columns) => columns.dots,
            None => self.kernels.dots,
        };
        // SAFETY: the caller guarantees the pointers, and a `Matrix` contains all its rows.
        unsafe { dots(&job) };
    }
}

/// A part of `inp` to pack.
#[derive(Clone, Copy)]
struct Piece {
    /// Rows, as `(first, count)`.
    rows: (usize, usize),
    /// Blocks of [`COLUMN_BLOCK`] elements, as `(first, count)`. Only for [`Order::ByColumns`].
    blocks: (usize, usize),
}

/// One of the weights that [`SkinnyGemm::forward`] multiplies, and its output.
#[derive(Clone, Copy)]
struct SkinnyFactor<'a> {
    index: usize,
    out: SendPtr,
    weight: HostMatrix<'a>,
    /// `(OUT, IN)`.
    shape: (usize, usize),
    order: Order,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_cover_the_rows_and_keep_every_thread_busy() {
        for (rows, least) in [(0, 1), (1, 8), (3, 1), (70, 9), (128, 147), (2053, 64), (128_256, 16)] {
            for threads in [1, 2, 3, 16] {
                let tasks = tasks(rows, least, 4, threads);
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
