//! Matrix multiplication, generic over the instruction set.
//!
//! `C = alpha · A B` in f32. The operands may have any strides. `B` may be a frozen weight in a mapped file,
//! because packing converts the elements. The loops follow BLIS:
//!
//! ```text
//! for rows of C, MC at a time                      bounds the size of packed A
//!   for blocks of k, MAX_PACKED_BLOCKS at a time
//!     in parallel, for panels of MR rows:          all threads read one packed A
//!       pack A
//!     in parallel, for tasks of about NC columns:  packed B belongs to one thread and stays in L2
//!       for blocks of k, at most KC words each:
//!         pack B
//!         for panels of A, for panels of B:        the panel of A stays in L1
//!           MR x NR sums in registers over the block, then C += alpha · sums
//! ```
//!
//! - A panel is a packed strip of at most `MR` rows of `A`, or of `NR` columns of `B`. A tile is the block of
//!   `C` that one panel of `A` and one panel of `B` determine. Its sums stay in registers.
//! - A word is 32 bits: one f32, or two bf16 that are adjacent along `k`. Words are pairs if the back end
//!   computes in bf16 and the instruction set multiplies bf16 pairs. A step is one word along `k`.
//! - AMX multiplies faster than one core reads operands. Its tasks are therefore larger, so that they read
//!   `A` less often ([`Grid`]).
//! - The blocks of `k` depend only on the size of `k`, and are added in ascending order. An element of `C`
//!   therefore has the same bits for any number of threads and tasks.
//! - While one panel is multiplied, the next part of `B` is prefetched. Without the prefetch, packing would
//!   stall on every cache line, because the weight is not in a cache.
//! - Multiplications with few rows read weights in place ([`SkinnyGemm`]), because packing a weight costs
//!   more than multiplying by the weight once.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512bf16;
mod dots;
mod expand;
mod four_bit;
mod micro_kernel;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
mod neon_bf16;
mod pack;
mod partition;
mod prefetch;
mod scalar;
mod skinny;
mod small_product;
mod tile;

use std::sync::Mutex;

use crate::Isa;
use crate::cpu::pool::{Pool, Scratch, SendPtr, lock};

pub(crate) use dots::{DotJob, DotRows};
pub(crate) use expand::ExpandJob;
pub(crate) use pack::{PackJob, View};
pub(crate) use partition::part;
pub(crate) use prefetch::{Prefetch, prefetch_far};
pub(crate) use skinny::{Before, SkinnyGemm};
pub(crate) use small_product::SmallProduct;
pub(crate) use tile::{RowMask, TileJob, TileMask};

/// Maximum number of 32-bit words along `k` that are accumulated in registers before `C` is read or written.
/// A panel of `A` with this length fits in L1.
const KC: usize = 384;
/// Maximum number of blocks of `k` that are packed at once. This number limits the memory for packed `A`.
const MAX_PACKED_BLOCKS: usize = 8;
/// Maximum number of rows of `A` that are packed at once.
const MC: usize = 1024;
/// Maximum number of columns of `B` that one thread packs at once. A packed block of `NC` columns and `KC`
/// 32-bit words takes 192 KiB of L2.
const NC: usize = 128;

/// Maximum number of panels of `B` in a task of kernels that divide by [`Grid`].
const GRID_PANELS: usize = 8;

/// A division of a result into tasks: some ranges of columns by some ranges of rows.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Grid {
    col_tasks: usize,
    row_tasks: usize,
}

impl Grid {
    /// Time to read a row of packed `A` from another core, as a number of columns that are multiplied
    /// meanwhile.
    const A_COLS: usize = 256;
    /// Time to pack a column of `B`, as a number of rows that are multiplied meanwhile.
    const B_ROWS: usize = 128;

    /// Returns the grid with the least time on `threads` threads, for `m` rows in panels of `mr`, and `n`
    /// columns in panels of `nr`. Every task reads its rows of `A` and packs its columns of `B`, so with
    /// small tasks the threads would wait for memory.
    fn new(threads: usize, (m, mr): (usize, usize), (n, nr): (usize, usize)) -> Self {
        let (rows, cols) = (m.div_ceil(mr), n.div_ceil(nr));
        let time = |&Self { col_tasks, row_tasks }: &Self| {
            let (rows, cols) = (rows.div_ceil(row_tasks) * mr, cols.div_ceil(col_tasks) * nr);
            let task = rows * cols + rows * Self::A_COLS + cols * Self::B_ROWS;
            (col_tasks * row_tasks).div_ceil(threads) * task
        };
        let of_width = |panels: usize| {
            let col_tasks = cols.div_ceil(panels);
            (1..=rows.min(2 * threads)).map(move |row_tasks| Self { col_tasks, row_tasks })
        };
        let grids = (1..=GRID_PANELS.min(cols)).flat_map(of_width);
        grids.min_by_key(time).unwrap_or(Self { col_tasks: 1, row_tasks: 1 })
    }
}

/// The functions compiled for one instruction set, and the sizes of the tiles.
///
/// All functions are unsafe. The processor must support the instruction set, which [`Kernels::select`]
/// checks. The pointers of a job must be valid for the shape of the job.
pub(crate) struct Kernels {
    /// Number of 32-bit words in a vector. For each word along `k`, a panel of `A` has `lanes` words, and a
    /// panel of `B` has `2 · lanes` words.
    pub lanes: usize,
    pub mr: usize,
    pub nr: usize,
    pub pair: usize,
    /// Whether tiles are so fast that reading and packing the operands limits a multiplication. Tasks are
    /// then divided by [`Grid`].
    pub is_limited_by_reads: bool,
    /// Number of elements of a 4-bit weight that dot products decode at once.
    pub chunk: usize,
    pub pack: unsafe fn(&PackJob<'_>),
    /// Packs `A` for `tiles`, as `pack_b` packs `B`. Both functions may write up to the next multiple of
    /// `lanes` words along `k`.
    pub pack_a: unsafe fn(&PackJob<'_>),
    pub pack_b: unsafe fn(&PackJob<'_>),
    /// Packs a row of f32 as the first operand of `dots`.
    pub pack_row: unsafe fn(*mut f32, &[f32], bool),
    /// Packs a row like `pack_row`, but in the order in which 4-bit weights are decoded. The length must be a
    /// multiple of `chunk`.
    pub interleave: unsafe fn(*mut f32, &[f32], bool),
    /// Packs f32 rows by columns for `small_product`. The rows must consist of whole vectors.
    pub pack_by_columns: unsafe fn(*mut f32, &[f32], usize),
    pub tiles: unsafe fn(&TileJob),
    pub dots: unsafe fn(&DotJob<'_>),
    /// Adds low-rank updates. Only for kernels whose `pair` is 1.
    pub expand: unsafe fn(&ExpandJob),
    /// Multiplies small operands in place.
    pub small_product: unsafe fn(&SmallProduct),
    /// A faster alternative to `dots` for bf16 weights, if the instruction set has one.
    pub column_dots: Option<ColumnDots>,
}

/// Dot products of rows that are packed by columns with rows of a bf16 weight, which are read in place.
#[derive(Clone, Copy)]
pub(crate) struct ColumnDots {
    /// Packs some blocks of a group of rows.
    pub pack: unsafe fn(&ColumnPackJob<'_>),
    /// Runs a job whose rows were packed by `pack`. The weight is bf16, and `k` is a multiple of
    /// [`COLUMN_BLOCK`]. `alpha` is 1, and the job has no mask and does not accumulate. The result of a row
    /// does not depend on the number of rows.
    pub dots: unsafe fn(&DotJob<'_>),
}

/// Number of elements along `k` that [`ColumnDots`] multiplies at once.
pub(crate) const COLUMN_BLOCK: usize = 32;
/// Maximum number of rows that are packed side by side for [`ColumnDots`] (a "group").
pub(crate) const COLUMN_GROUP: usize = 16;

/// Arguments of [`ColumnDots::pack`].
#[derive(Clone, Copy)]
pub(crate) struct ColumnPackJob<'a> {
    /// Pointer to the group. Word `p` of row `i` of the group goes to `p * rows + i`.
    pub dst: *mut f32,
    /// The rows of the group.
    pub inp: &'a [f32],
    /// Number of elements in a row, a multiple of [`COLUMN_BLOCK`].
    pub k: usize,
    /// Blocks of [`COLUMN_BLOCK`] elements to pack, as `(first, count)`.
    pub blocks: (usize, usize),
}

/// Compiles the kernels for one implementor of `MicroKernel`, and collects the functions in `KERNELS`.
macro_rules! kernel_table {
    ($features:literal, $lanes:ty) => {
        kernel_table!(@ $lanes, #[target_feature(enable = $features)]);
    };
    ($lanes:ty) => {
        kernel_table!(@ $lanes, );
    };
    (@ $lanes:ty, $(#[$feature:meta])?) => {
        /// The kernels of this instruction set.
        pub(super) static KERNELS: super::Kernels = {
            $(#[$feature])?
            unsafe fn pack(job: &super::PackJob<'_>) {
                // SAFETY: the instruction set is enabled here. The caller meets the other requirements.
                unsafe { super::pack::pack::<$lanes>(job) }
            }
            $(#[$feature])?
            unsafe fn pack_row(dst: *mut f32, src: &[f32], round: bool) {
                // SAFETY: the instruction set is enabled here. The caller meets the other requirements.
                unsafe { super::pack::pack_row::<$lanes>(dst, src, round) }
            }
            $(#[$feature])?
            unsafe fn interleave(dst: *mut f32, src: &[f32], round: bool) {
                // SAFETY: the instruction set is enabled here. The caller meets the other requirements.
                unsafe { super::four_bit::interleave::<$lanes>(dst, src, round) }
            }
            $(#[$feature])?
            unsafe fn pack_by_columns(dst: *mut f32, rows: &[f32], width: usize) {
                // SAFETY: the instruction set is enabled here. The caller meets the other requirements.
                unsafe { super::small_product::pack_by_columns::<$lanes>(dst, rows, width) }
            }
            $(#[$feature])?
            unsafe fn tiles(job: &super::TileJob) {
                // SAFETY: the instruction set is enabled here. The caller meets the other requirements.
                unsafe { super::tile::tiles::<$lanes>(job) }
            }
            $(#[$feature])?
            unsafe fn dots(job: &super::DotJob<'_>) {
                // SAFETY: the instruction set is enabled here. The caller meets the other requirements.
                unsafe { super::dots::dots::<$lanes>(job) }
            }
            $(#[$feature])?
            unsafe fn expand(job: &super::ExpandJob) {
                // SAFETY: the instruction set is enabled here. The caller meets the other requirements.
                unsafe { super::expand::expand::<$lanes>(job) }
            }
            $(#[$feature])?
            unsafe fn small_product(job: &super::SmallProduct) {
                // SAFETY: the instruction set is enabled here. The caller meets the other requirements.
                unsafe { super::small_product::small_product::<$lanes>(job) }
            }
            super::Kernels {
                lanes: <$lanes as super::micro_kernel::MicroKernel>::LANES,
                mr: <$lanes as super::micro_kernel::MicroKernel>::MR,
                nr: <$lanes as super::micro_kernel::MicroKernel>::NR,
                pair: <$lanes as super::micro_kernel::MicroKernel>::PAIR,
                is_limited_by_reads: false,
                chunk: super::four_bit::chunk::<$lanes>(),
                pack,
                pack_a: pack,
                pack_b: pack,
                pack_row,
                interleave,
                pack_by_columns,
                tiles,
                dots,
                expand,
                small_product,
                column_dots: None,
            }
        };
    };
}
use kernel_table;

impl Kernels {
    /// Selects the kernels of `isa`. If `pairs` is set and `isa` supports bf16 pairs, the kernels multiply
    /// bf16 pairs.
    ///
    /// # Panics
    /// If this machine does not support `isa`.
    pub fn select(isa: Isa, pairs: bool) -> &'static Self {
        assert!(isa.is_supported(), "this machine does not run {isa}");
        #[cfg(target_arch = "x86_64")]
        match isa {
            Isa::Amx if pairs => return &amx::KERNELS,
            Isa::Avx512Bf16 if pairs => return &avx512bf16::KERNELS,
            Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512 => return &avx512::KERNELS,
            Isa::Avx2 => return &avx2::KERNELS,
            Isa::NeonBf16 | Isa::Neon | Isa::Scalar => {}
        }
        #[cfg(target_arch = "aarch64")]
        match isa {
            Isa::NeonBf16 if pairs => return &neon_bf16::KERNELS,
            Isa::NeonBf16 | Isa::Neon => return &neon::KERNELS,
            Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512 | Isa::Avx2 | Isa::Scalar => {}
        }
        let _ = pairs;
        &scalar::KERNELS
    }

    /// Packs the first `m` rows and the first `k` columns of `src` as panels of `A`. The panels begin `panel`
    /// words apart.
    ///
    /// # Safety
    /// `dst` must be valid for all panels.
    ///
    /// # Panics
    /// If `src` contains fewer rows or columns.
    pub unsafe fn pack_panels(
        &self,
        dst: *mut f32,
        panel: usize,
        src: View<'_>,
        (m, k): (usize, usize),
        round: bool,
    ) {
        src.check(m, k);
        let panels = m.div_ceil(self.mr);
        for i in 0..panels {
            let dst = dst.wrapping_add(i * panel);
            let job = PackJob::new(dst, self.lanes, src, part(m, panels, i), (0, k), round);
            // SAFETY: `select` checked the instruction set, and `check` checked the view. The caller
            // guarantees that `dst` has room for all panels.
            unsafe { (self.pack_a)(&job) };
        }
    }

    /// Returns the number of blocks in a sum over `k`, and the number of 32-bit words in a block. The last
    /// block may be shorter.
    pub fn blocks(&self, k: usize) -> (usize, usize) {
        let steps = k.div_ceil(self.pair);
        let block_steps = steps.div_ceil(steps.div_ceil(KC)).next_multiple_of(self.lanes);
        (steps.div_ceil(block_steps), block_steps)
    }
}

/// Arguments of [`Gemm::product`]: `C (m, n) = alpha · A (m, k) B (k, n)`, or `+=` with `accumulate`.
pub(crate) struct Product<'a> {
    pub c: &'a mut [f32],
    /// Distance from one row of `c` to the next, in elements.
    pub ldc: usize,
    /// The operand `A`. Its view is indexed by `(row, k)`.
    pub a: View<'a>,
    /// The operand `B`. Its view is indexed by `(column, k)`.
    pub b: View<'a>,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub alpha: f32,
    pub accumulate: bool,
}

/// Division of a multiplication: `k` into blocks, rows into panels, and columns into tasks.
struct Blocking {
    blocks: usize,
    /// Number of 32-bit words in a block of `k`.
    block_steps: usize,
    panels: usize,
    /// Number of 32-bit words in a panel of `A`.
    a_panel: usize,
    /// Number of tasks that divide the panels of `B`.
    col_tasks: usize,
    /// Number of tasks that divide the rows of one range of columns.
    row_tasks: usize,
    /// Number of columns in the largest task.
    task_cols: usize,
}

impl Blocking {
    /// Returns the number of 32-bit words of packed `A`, and of packed `B` for each thread.
    fn words(&self) -> [usize; 2] {
        let count = self.blocks.min(MAX_PACKED_BLOCKS);
        [count * self.panels * self.a_panel, self.task_cols * self.block_steps]
    }
}

/// Matrix multiplication on one instruction set and in one precision, with buffers for packing.
pub(crate) struct Gemm {
    kernels: &'static Kernels,
    round: bool,
    packed_a: Mutex<Scratch>,
    packed_b: Vec<Mutex<Scratch>>,
}

impl Gemm {
    /// Creates a multiplication on `isa`. If `bf16` is set, both operands are rounded to bf16, and sums are
    /// f32.
    pub fn new(isa: Isa, bf16: bool, threads: usize) -> Self {
        Self {
            kernels: Kernels::select(isa, bf16),
            round: bf16,
            packed_a: Mutex::default(),
            packed_b: (0..threads).map(|_| Mutex::default()).collect(),
        }
    }

    /// Returns the number of 32-bit words of packed `A`, and of packed `B` for each thread. The
    /// multiplication has the shape `(m, n, k)`.
    pub fn scratch(&self, threads: usize, m: usize, n: usize, k: usize) -> [usize; 2] {
        if m == 0 || n == 0 || k == 0 {
            return [0; 2];
        }
        self.blocking(threads, m.div_ceil(m.div_ceil(MC)), n, k).words()
    }

    #[cfg(test)]
    pub fn allocated_bytes(&self) -> u64 {
        lock(&self.packed_a).allocated_bytes()
            + self.packed_b.iter().map(|b| lock(b).allocated_bytes()).sum::<u64>()
    }

    /// Returns the division of a multiplication into blocks, panels and tasks. `m` is at most [`MC`].
    fn blocking(&self, threads: usize, m: usize, n: usize, k: usize) -> Blocking {
        let Kernels { lanes, mr, nr, is_limited_by_reads, .. } = *self.kernels;
        let (blocks, block_steps) = self.kernels.blocks(k);
        let (panels, panels_of_b, a_panel) = (m.div_ceil(mr), n.div_ceil(nr), block_steps * lanes);
        if is_limited_by_reads {
            let Grid { col_tasks, row_tasks } = Grid::new(threads, (m, mr), (n, nr));
            // The size does not depend on `m`, so a multiplication of fewer rows never needs more memory.
            let task_cols = panels_of_b.min(GRID_PANELS) * nr;
            return Blocking { blocks, block_steps, panels, a_panel, col_tasks, row_tasks, task_cols };
        }
        // Every thread gets the same number of column tasks, unless there are too few panels.
        let col_tasks = panels_of_b.div_ceil(NC / nr).max(3 * threads);
        let col_tasks = col_tasks.next_multiple_of(threads).min(panels_of_b);
        // If there are too few column tasks, the rows are divided among tasks too.
        let row_tasks = if threads == 1 { 1 } else { (3 * threads).div_ceil(col_tasks).min(panels) };
        let task_cols = panels_of_b.div_ceil(col_tasks) * nr;
        Blocking { blocks, block_steps, panels, a_panel, col_tasks, row_tasks, task_cols }
    }

    /// Computes the product on all threads of `pool`.
    ///
    /// # Panics
    /// If an operand or the output is too short for its shape.
    pub fn product(&self, pool: &Pool, p: Product<'_>) {
        p.a.check(p.m, p.k);
        p.b.check(p.n, p.k);
        if p.m == 0 || p.n == 0 {
            return;
        }
        assert!(p.ldc >= p.n && p.c.len() >= (p.m - 1) * p.ldc + p.n, "a product longer than its output");
        if p.k == 0 {
            if !p.accumulate {
                p.c.chunks_mut(p.ldc).take(p.m).for_each(|row| row[..p.n].fill(0.0));
            }
            return;
        }
        let row_blocks = p.m.div_ceil(MC);
        for block in 0..row_blocks {
            self.row_block(pool, &p, SendPtr(p.c.as_ptr().cast_mut()), part(p.m, row_blocks, block));
        }
    }

    /// Computes rows `row .. row + m` of the result. `A` is packed once for all threads. Each thread then
    /// packs some columns of `B`, and multiplies them by `A`.
    fn row_block(&self, pool: &Pool, p: &Product<'_>, c: SendPtr, (row, m): (usize, usize)) {
        let blocking = self.blocking(pool.threads(), m, p.n, p.k);
        let [a_words, _] = blocking.words();
        let mut packed_a = lock(&self.packed_a);
        for first in (0..blocking.blocks).step_by(MAX_PACKED_BLOCKS) {
            let count = (blocking.blocks - first).min(MAX_PACKED_BLOCKS);
            let packed = SendPtr(packed_a.at_least(a_words).as_mut_ptr());
            let Kernels { nr, pair, .. } = *self.kernels;
            let block = RowBlock { p, c, row, m, blocking: &blocking, first, count, packed, nr, pair };
            pool.run(blocking.panels, |panel, worker| {
                self.pack_a(&block, panel, (worker, pool.threads()));
            });
            pool.run(block.tasks(), |task, worker| self.multiply(&block, task, (worker, pool.threads())));
        }
    }

    /// Packs one panel of `A`, for all blocks of `k`.
    fn pack_a(&self, block: &RowBlock<'_>, panel: usize, (worker, threads): (usize, usize)) {
        let Kernels { lanes, pack_a, .. } = *self.kernels;
        let &RowBlock { p, row, m, blocking, first, count, packed, .. } = block;
        let &Blocking { panels, a_panel, .. } = blocking;
        let (first_row, rows) = part(m, panels, panel);
        // After all panels of `A` are packed, this thread will probably pack these columns of `B` first. With
        // each panel of `A`, the thread prefetches some of these columns.
        let (col, n) = block.cols_of(worker.min(block.tasks() - 1));
        let (k, k_len) = block.k_of(first);
        let turns = panels.div_ceil(threads);
        let mut prefetch = p.b.prefetch(col, n, k, k_len).part(panel / threads, turns);
        for i in 0..count {
            let dst = packed.at((i * panels + panel) * a_panel);
            let prefetch = std::mem::replace(&mut prefetch, Prefetch::NONE);
            let of_a = (row + first_row, rows);
            let job = PackJob {
                prefetch,
                ..PackJob::new(dst, lanes, p.a, of_a, block.k_of(first + i), self.round)
            };
            // SAFETY: `select` checked the instruction set, and `product` checked the view. Each panel of
            // each block has a separate range of `a_panel` words.
            unsafe { pack_a(&job) };
        }
    }

    /// Runs one task. For each block of `k`, the task packs some columns of `B`, and multiplies some panels
    /// of `A` by these columns.
    fn multiply(&self, block: &RowBlock<'_>, task: usize, (worker, threads): (usize, usize)) {
        let Kernels { nr, pair, pack_b, tiles, .. } = *self.kernels;
        let &RowBlock { p, c, row, m, blocking, first, count, packed, .. } = block;
        let &Blocking { block_steps, panels, a_panel, row_tasks, .. } = blocking;
        let (col, n) = block.cols_of(task);
        // The rows are divided as in `pack_a`, so that each panel begins at the same row as in `pack_a`.
        let (panel, my_panels) = part(panels, row_tasks, task % row_tasks);
        let (my_row, _) = part(m, panels, panel);
        let last = part(m, panels, panel + my_panels - 1);
        let mut packed_b = lock(&self.packed_b[worker]);
        let (b_panel, [_, b_words]) = (block_steps * nr, blocking.words());
        let packed_b = packed_b.at_least(b_words).as_mut_ptr();
        for i in 0..count {
            let (k, k_len) = block.k_of(first + i);
            let job = PackJob {
                panel: b_panel,
                ..PackJob::new(packed_b, nr, p.b, (col, n), (k, k_len), self.round)
            };
            // SAFETY: `packed_b` has a panel for every `nr` columns of the largest task. The other
            // requirements are met as in `pack_a`.
            unsafe { pack_b(&job) };
            let job = TileJob {
                m: last.0 + last.1 - my_row,
                n,
                steps: k_len.div_ceil(pair),
                a: packed.at((i * panels + panel) * a_panel),
                a_panel,
                b: packed_b,
                b_panel,
                b_step: nr,
                c: c.at((row + my_row) * p.ldc + col),
                ldc: p.ldc,
                alpha: p.alpha,
                accumulate: p.accumulate || first + i > 0,
                mask: TileMask::Nothing,
                prefetch: block.prefetch_b(task, i, threads),
            };
            // SAFETY: the panels from `panel` on and the columns from `col` on are packed for this block.
            // Tasks write disjoint rows and columns of `c`, and `product` checked the size of `c`.
            unsafe { tiles(&job) };
        }
    }
}

/// A part of a matrix multiplication: some rows of the result, and some blocks of the inner dimension `k`.
struct RowBlock<'a> {
    p: &'a Product<'a>,
    c: SendPtr,
    /// First row of the result.
    row: usize,
    /// Number of rows of the result.
    m: usize,
    blocking: &'a Blocking,
    /// First block of `k`.
    first: usize,
    /// Number of blocks of `k`.
    count: usize,
    packed: SendPtr,
    nr: usize,
    pair: usize,
}

impl RowBlock<'_> {
    fn tasks(&self) -> usize {
        self.blocking.col_tasks * self.blocking.row_tasks
    }

    /// Returns the range of elements in a block of `k`, as `(first, count)`.
    fn k_of(&self, block: usize) -> (usize, usize) {
        let len = self.blocking.block_steps * self.pair;
        (block * len, len.min(self.p.k - block * len))
    }

    /// Returns the range of columns of a task, as `(first, count)`.
    fn cols_of(&self, task: usize) -> (usize, usize) {
        let (n, nr) = (self.p.n, self.nr);
        let (panel, panels) = part(n.div_ceil(nr), self.blocking.col_tasks, task / self.blocking.row_tasks);
        (panel * nr, (n - panel * nr).min(panels * nr))
    }

    /// Returns the part of `B` that the thread of `task` will pack next if all threads run tasks at the same
    /// speed.
    fn prefetch_b(&self, task: usize, i: usize, threads: usize) -> Prefetch {
        let (task, block) = if i + 1 < self.count {
            (task, self.first + i + 1)
        } else if task + threads < self.tasks() {
            (task + threads, self.first)
        } else {
            return Prefetch::NONE;
        };
        let ((col, n), (k, k_len)) = (self.cols_of(task), self.k_of(block));
        self.p.b.prefetch(col, n, k, k_len)
    }
}

#[cfg(test)]
mod tests;
