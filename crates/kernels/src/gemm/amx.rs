//! AMX: `tdpbf16ps` multiplies tile registers of 16 rows by 16 bf16 pairs, and accumulates in f32. Each pair
//! is one 32-bit word.
//!
//! [`tiles`] computes blocks of C with at most 32 x 32 elements. Four registers contain the accumulators:
//!
//! ```text
//!                               B: 16 words of 32 columns
//!                               tmm6      tmm7
//! A: 16 words of 32 rows  tmm4  tmm0      tmm1
//!                         tmm5  tmm2      tmm3
//! ```
//!
//! - `B` is packed as for AVX512-BF16. `A` is packed in squares of 16 rows by 16 words, without a
//!   transposition.
//! - Both operands are padded with zeros to whole squares along `k`, because a register has the same shape
//!   for all of `k`.
//! - At the last rows and columns of C, the registers have smaller shapes. No load or store reaches past the
//!   edge of C.
//! - The accumulators start with the elements of C or with zeros.
//!
//! [`columns`] multiplies a few rows by a weight that stays in place.
//!
//! All other kernels are taken from AVX512-BF16. The registers are released at the end of a call. The
//! operating system then need not save the registers at a thread switch.

use std::arch::asm;

use super::avx512::Avx512;
use super::avx512bf16::{self, Avx512Bf16};
use super::micro_kernel::{F32, MicroKernel, element};
use super::pack::Elements;
use super::{ColumnDots, Kernels, PackJob, SmallProduct, TileJob, TileMask, part};
use crate::DType;

mod columns;

/// Maximum number of rows in a tile register, and of 32-bit words in each row.
const SIDE: usize = 16;
const SQUARE: usize = SIDE * SIDE;
/// Number of columns in a block: two tile registers.
const NR: usize = 2 * SIDE;
/// Maximum number of 32-bit words in the inner dimension of a [`SmallProduct`] with a transposed `A`.
const MAX_TRANSPOSED: usize = 64;

pub(super) static KERNELS: Kernels = Kernels {
    mr: SIDE,
    is_limited_by_reads: true,
    pack_a,
    pack_b,
    tiles,
    small_product,
    column_dots: Some(ColumnDots { pack: columns::pack, dots: columns::dots }),
    ..avx512bf16::KERNELS
};

/// Shapes of the tile registers, in the layout that `ldtilecfg` reads.
#[repr(C, align(64))]
#[derive(Clone, Copy, PartialEq)]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Shapes {
    /// Returns the layout of eight registers with the given shapes `(rows, words)`. An empty register gets an
    /// arbitrary valid shape.
    fn new(shapes: [(usize, usize); 8]) -> Self {
        let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
        for (i, (n, words)) in shapes.into_iter().enumerate() {
            let (n, words) = if n * words == 0 { (1, 1) } else { (n, words) };
            (rows[i], row_bytes[i]) = (n as u8, 4 * words as u16);
        }
        Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
    }
}

/// The tile registers of this thread. Dropping this value releases the registers.
struct Registers(Option<Shapes>);

impl Registers {
    /// Sets the shapes of the registers.
    ///
    /// # Safety
    /// The processor must support AMX, and this process must have permission to use AMX.
    unsafe fn set(&mut self, shapes: Shapes) {
        if self.0 != Some(shapes) {
            let shapes = self.0.insert(shapes);
            // SAFETY: the caller guarantees that AMX is usable, and the shapes are valid for palette 1.
            unsafe { asm!("ldtilecfg [{}]", in(reg) shapes, options(nostack, readonly)) };
        }
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        if self.0.is_some() {
            // SAFETY: `set` was called before, so the processor supports AMX.
            unsafe { asm!("tilerelease", options(nostack, nomem)) };
        }
    }
}

/// Packs at most 16 rows of `A` as squares of 16 x 16 words. Word `p` of row `i` goes to index
/// `p / 16 * 256 + i * 16 + p % 16`. Each row is padded with zeros to a multiple of 16 words.
///
/// # Safety
/// The requirements of [`pack`](super::pack::pack) apply, and `dst` must have room for whole squares.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn pack_a(job: &PackJob<'_>) {
    assert!(matches!(job.src.elements, Elements::Dense(DType::F32)), "rows of `A` are f32");
    assert!(job.width == SIDE && job.outers <= SIDE);
    let mut prefetch = job.prefetch;
    let src = job.src.bytes.as_ptr();
    // SAFETY: the caller guarantees that `src` is readable and `dst` is writable. A short last chunk of a row
    // is copied to a buffer of zeros.
    unsafe {
        prefetch.fetch::<Avx512Bf16>(prefetch.lines());
        for i in 0..job.outers {
            for (square, first) in (0..job.k_len).step_by(2 * SIDE).enumerate() {
                let len = (job.k_len - first).min(2 * SIDE);
                let at = (job.outer + i) * job.src.outer + (job.k + first) * job.src.k;
                let words = if job.src.k == 1 && len == 2 * SIDE {
                    Avx512Bf16::words_by_rows::<F32>(src.add(4 * at), true)
                } else {
                    let mut padded = [0.0f32; 2 * SIDE];
                    for (j, v) in padded[..len].iter_mut().enumerate() {
                        *v = element::<F32>(src, at + j * job.src.k);
                    }
                    Avx512Bf16::words_by_rows::<F32>(padded.as_ptr().cast(), true)
                };
                Avx512::store(job.dst.add(square * SQUARE + i * SIDE), words);
            }
        }
    }
}

/// Packs panels of `B` in the format of AVX512-BF16. Each panel is padded with zeros to a multiple of 16
/// words along `k`.
///
/// # Safety
/// The requirements of [`pack`](super::pack::pack) apply, and `dst` must have room for whole squares.
unsafe fn pack_b(job: &PackJob<'_>) {
    let steps = job.k_len.div_ceil(2);
    let padding = steps.next_multiple_of(SIDE) - steps;
    // SAFETY: the caller meets the safety requirements, and zeros are valid words.
    unsafe {
        (avx512bf16::KERNELS.pack)(job);
        for panel in 0..job.outers.div_ceil(job.width) {
            job.dst.add(panel * job.panel + steps * job.width).write_bytes(0, padding * job.width);
        }
    }
}

/// Runs a [`TileJob`] whose operands were packed by [`pack_a`] and [`pack_b`]. Two panels of `A` are
/// multiplied at a time.
///
/// # Safety
/// The processor must support AMX, this process must have permission to use AMX, and every pointer must be
/// valid for its shape.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn tiles(job: &TileJob) {
    assert!(matches!(job.mask, TileMask::Nothing) && job.b_step == NR, "`A` and `B` are packed");
    let (panels, across) = (job.m.div_ceil(SIDE), job.n.div_ceil(NR));
    let mut prefetch = job.prefetch;
    let lines = prefetch.lines().div_ceil((panels.div_ceil(2) * across).max(1));
    let mut registers = Registers(None);
    for p in (0..panels).step_by(2) {
        let (row, upper) = part(job.m, panels, p);
        let lower = if p + 1 < panels { part(job.m, panels, p + 1).1 } else { 0 };
        for j in 0..across {
            let cols = (job.n - j * NR).min(NR);
            let (left, right) = (cols.min(SIDE), cols.saturating_sub(SIDE));
            let [upper_left, upper_right] = [(upper, left), (upper, right)];
            let shapes = [
                upper_left,
                upper_right,
                (lower, left),
                (lower, right),
                (upper, SIDE),
                (lower, SIDE),
                (SIDE, left),
                (SIDE, right),
            ];
            // SAFETY: panels `p` and `p + 1` of `A` and panel `j` of `B` exist unless their shapes are empty.
            // The registers have the rows and columns of this block of C.
            unsafe {
                prefetch.fetch::<Avx512Bf16>(lines);
                registers.set(Shapes::new(shapes));
                let block = Block {
                    a: job.a.add(p * job.a_panel),
                    a_panel: job.a_panel,
                    b: job.b.add(j * job.b_panel),
                    squares: job.steps.div_ceil(SIDE),
                    c: job.c.add(row * job.ldc + j * NR),
                    ldc: job.ldc,
                    rows: [upper, lower],
                    cols,
                    accumulate: job.accumulate,
                };
                if job.alpha == 1.0 { block.run() } else { block.run_scaled(job.alpha) }
            }
        }
    }
}

/// One block of C: the product of at most two panels of `A` and one panel of `B`.
#[derive(Clone, Copy)]
struct Block {
    a: *const f32,
    a_panel: usize,
    b: *const f32,
    /// Number of squares of 16 x 16 words along `k`.
    squares: usize,
    c: *mut f32,
    ldc: usize,
    /// Number of rows in each of the two panels of `A`. The second number is 0 if there is only one panel.
    rows: [usize; 2],
    cols: usize,
    accumulate: bool,
}

impl Block {
    /// Multiplies the panels of `A` by the panel of `B`.
    ///
    /// # Safety
    /// The requirements of [`tiles`] apply, and the registers must have the shapes of this block.
    unsafe fn run(self) {
        // SAFETY: the caller meets the safety requirements.
        unsafe {
            match (self.rows[1] > 0, self.cols > SIDE) {
                (false, false) => self.multiply::<false, false>(),
                (false, true) => self.multiply::<false, true>(),
                (true, false) => self.multiply::<true, false>(),
                (true, true) => self.multiply::<true, true>(),
            }
        }
    }

    /// Computes the product in a buffer. Then writes `alpha` times the product to C, or adds it to C if
    /// `accumulate` is set.
    ///
    /// # Safety
    /// The requirements of [`run`](Self::run) apply.
    unsafe fn run_scaled(self, alpha: f32) {
        let mut sums = [0.0f32; NR * NR];
        // SAFETY: the buffer has `NR` rows and columns, and C has the rows and columns of the block.
        unsafe {
            Self { c: sums.as_mut_ptr(), ldc: NR, accumulate: false, ..self }.run();
            for i in 0..self.rows[0] + self.rows[1] {
                for j in 0..self.cols {
                    let c = self.c.add(i * self.ldc + j);
                    *c = alpha.mul_add(sums[i * NR + j], if self.accumulate { *c } else { 0.0 });
                }
            }
        }
    }

    /// Multiplies with only the registers that the block needs. `LOWER` enables the second panel of rows, and
    /// `RIGHT` enables the last 16 columns.
    ///
    /// # Safety
    /// The requirements of [`run`](Self::run) apply.
    #[inline(always)]
    unsafe fn multiply<const LOWER: bool, const RIGHT: bool>(self) {
        let Self { a, a_panel, b, squares, c, ldc, rows, accumulate, .. } = self;
        // SAFETY: the caller guarantees that each operand contains `squares` squares, and that C contains the
        // rows and columns of the shapes. The assembler omits all instructions for absent rows and columns.
        unsafe {
            asm!(
                "test {accumulate:e}, {accumulate:e}",
                "jz 2f",
                "tileloadd tmm0, [{c} + {ldc}*1]",
                ".if {right}",
                "tileloadd tmm1, [{c} + {ldc}*1 + 64]",
                ".endif",
                ".if {lower}",
                "tileloadd tmm2, [{c_lower} + {ldc}*1]",
                ".if {right}",
                "tileloadd tmm3, [{c_lower} + {ldc}*1 + 64]",
                ".endif",
                ".endif",
                "jmp 3f",
                "2:",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "3:",
                "tileloadd tmm6, [{b} + {b_row}*1]",
                "tileloadd tmm4, [{a} + {a_row}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                ".if {right}",
                "tileloadd tmm7, [{b} + {b_row}*1 + 64]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                ".endif",
                ".if {lower}",
                "tileloadd tmm5, [{a_lower} + {a_row}*1]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                ".if {right}",
                "tdpbf16ps tmm3, tmm5, tmm7",
                ".endif",
                ".endif",
                "add {a}, 1024",
                "add {a_lower}, 1024",
                "add {b}, 2048",
                "dec {squares}",
                "jnz 3b",
                "tilestored [{c} + {ldc}*1], tmm0",
                ".if {right}",
                "tilestored [{c} + {ldc}*1 + 64], tmm1",
                ".endif",
                ".if {lower}",
                "tilestored [{c_lower} + {ldc}*1], tmm2",
                ".if {right}",
                "tilestored [{c_lower} + {ldc}*1 + 64], tmm3",
                ".endif",
                ".endif",
                a = inout(reg) a => _,
                a_lower = inout(reg) a.wrapping_add(a_panel) => _,
                a_row = in(reg) 4 * SIDE,
                b = inout(reg) b => _,
                b_row = in(reg) 4 * NR,
                squares = inout(reg) squares => _,
                c = in(reg) c,
                c_lower = in(reg) c.wrapping_add(rows[0] * ldc),
                ldc = in(reg) 4 * ldc,
                accumulate = in(reg) u32::from(accumulate),
                lower = const LOWER as usize,
                right = const RIGHT as usize,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

/// Runs a [`SmallProduct`] in strips of 16 rows by at most 64 columns. Registers `tmm0` to `tmm3` contain the
/// accumulators.
///
/// The last words along `k` may not fill a register. These words are loaded into `tmm5` and `tmm7`, which
/// have smaller shapes.
///
/// # Safety
/// The requirements of [`tiles`] apply.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn small_product(job: &SmallProduct) {
    let SmallProduct { m, n, steps, a_strides: (a_row, a_step), stride, .. } = *job;
    let mut prefetch = job.prefetch;
    let lines = prefetch.lines().div_ceil(m.div_ceil(SIDE) * n.div_ceil(4 * SIDE));
    let (squares, left) = (steps / SIDE, steps % SIDE);
    let mut registers = Registers(None);
    let mut transposed = [0.0f32; MAX_TRANSPOSED * SIDE];
    for row in (0..m).step_by(SIDE) {
        let rows = (m - row).min(SIDE);
        let (sum, last) = ((rows, SIDE), left.max(1));
        // SAFETY: the caller guarantees that the operands are valid. `A` and C contain the `rows` rows that
        // begin at `row`.
        unsafe {
            registers.set(Shapes::new([
                sum,
                sum,
                sum,
                sum,
                (rows, SIDE),
                (rows, last),
                (SIDE, SIDE),
                (last, SIDE),
            ]));
            let mut strip = Strip {
                a: job.a.add(row * a_row),
                a_row,
                a_square: SIDE,
                b: job.b,
                squares,
                left,
                c: job.c.add(row * stride),
                stride,
                accumulate: job.accumulate,
            };
            if a_step != 1 {
                transpose(&mut transposed, strip.a, (rows, steps), (a_row, a_step));
                strip = Strip { a: transposed.as_ptr(), a_row: SIDE, a_square: SQUARE, ..strip };
            }
            for column in (0..n).step_by(4 * SIDE) {
                prefetch.fetch::<Avx512Bf16>(lines);
                let strip = Strip { b: strip.b.add(column), c: strip.c.add(column), ..strip };
                match (n - column) / SIDE {
                    0 => unreachable!("part of a vector"),
                    1 => strip.multiply::<1>(),
                    2 => strip.multiply::<2>(),
                    3 => strip.multiply::<3>(),
                    _ => strip.multiply::<4>(),
                }
            }
        }
    }
}

/// Copies a transposed `A` to squares of 16 x 16 words. The words of a row of `A` are `a_step` words apart.
///
/// # Safety
/// The processor must support AVX-512, and the rows must exist.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn transpose(
    squares: &mut [f32; MAX_TRANSPOSED * SIDE],
    a: *const f32,
    (rows, steps): (usize, usize),
    (a_row, a_step): (usize, usize),
) {
    assert!(a_row == 1 && steps <= MAX_TRANSPOSED, "rows of words, or columns of few");
    for (square, first) in squares.chunks_exact_mut(SQUARE).zip((0..steps).step_by(SIDE)) {
        // SAFETY: the caller guarantees that the rows exist, and a square contains 16 vectors.
        unsafe {
            let mut words = [Avx512::zero(); SIDE];
            for (i, words) in words.iter_mut().take(steps - first).enumerate() {
                *words = Avx512::load_first(a.add((first + i) * a_step), rows);
            }
            Avx512::transpose(&mut words);
            for (i, words) in words.into_iter().enumerate() {
                Avx512::store(square.as_mut_ptr().add(i * SIDE), words);
            }
        }
    }
}

/// A part of a [`SmallProduct`]: at most 16 rows by 64 columns.
#[derive(Clone, Copy)]
struct Strip {
    a: *const f32,
    /// Distance from one row of `A` to the next, in 32-bit words.
    a_row: usize,
    /// Distance from one square of `A` to the next, in 32-bit words.
    a_square: usize,
    b: *const f32,
    /// Number of whole squares along `k`.
    squares: usize,
    /// Number of 32-bit words along `k` after the last whole square.
    left: usize,
    c: *mut f32,
    /// Distance between adjacent rows of packed `B`, and of C, in 32-bit words.
    stride: usize,
    accumulate: bool,
}

impl Strip {
    /// Multiplies the strip. Every 16 columns use one accumulator register.
    ///
    /// # Safety
    /// The requirements of [`small_product`] apply, and the registers must have the shapes of this strip.
    #[inline(always)]
    unsafe fn multiply<const REGISTERS: usize>(self) {
        let Self { a, a_row, a_square, b, squares, left, c, stride, accumulate } = self;
        // SAFETY: the caller guarantees that the operands and the shapes are valid. The assembler omits all
        // instructions for absent columns.
        unsafe {
            asm!(
                "test {accumulate:e}, {accumulate:e}",
                "jz 2f",
                "tileloadd tmm0, [{c} + {stride}*1]",
                ".if {registers} > 1; tileloadd tmm1, [{c} + {stride}*1 + 64]; .endif",
                ".if {registers} > 2; tileloadd tmm2, [{c} + {stride}*1 + 128]; .endif",
                ".if {registers} > 3; tileloadd tmm3, [{c} + {stride}*1 + 192]; .endif",
                "jmp 3f",
                "2:",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "3:",
                "test {squares}, {squares}",
                "jz 5f",
                "4:",
                "tileloadd tmm4, [{a} + {a_row}*1]",
                "tileloadd tmm6, [{b} + {stride}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                ".if {registers} > 1; tileloadd tmm6, [{b} + {stride}*1 + 64]; tdpbf16ps tmm1, tmm4, tmm6; .endif",
                ".if {registers} > 2; tileloadd tmm6, [{b} + {stride}*1 + 128]; tdpbf16ps tmm2, tmm4, tmm6; .endif",
                ".if {registers} > 3; tileloadd tmm6, [{b} + {stride}*1 + 192]; tdpbf16ps tmm3, tmm4, tmm6; .endif",
                "add {a}, {a_square}",
                "add {b}, {b_square}",
                "dec {squares}",
                "jnz 4b",
                "5:",
                "test {left:e}, {left:e}",
                "jz 6f",
                "tileloadd tmm5, [{a} + {a_row}*1]",
                "tileloadd tmm7, [{b} + {stride}*1]",
                "tdpbf16ps tmm0, tmm5, tmm7",
                ".if {registers} > 1; tileloadd tmm7, [{b} + {stride}*1 + 64]; tdpbf16ps tmm1, tmm5, tmm7; .endif",
                ".if {registers} > 2; tileloadd tmm7, [{b} + {stride}*1 + 128]; tdpbf16ps tmm2, tmm5, tmm7; .endif",
                ".if {registers} > 3; tileloadd tmm7, [{b} + {stride}*1 + 192]; tdpbf16ps tmm3, tmm5, tmm7; .endif",
                "6:",
                "tilestored [{c} + {stride}*1], tmm0",
                ".if {registers} > 1; tilestored [{c} + {stride}*1 + 64], tmm1; .endif",
                ".if {registers} > 2; tilestored [{c} + {stride}*1 + 128], tmm2; .endif",
                ".if {registers} > 3; tilestored [{c} + {stride}*1 + 192], tmm3; .endif",
                a = inout(reg) a => _,
                a_row = in(reg) 4 * a_row,
                a_square = in(reg) 4 * a_square,
                b = inout(reg) b => _,
                b_square = in(reg) 4 * SIDE * stride,
                squares = inout(reg) squares => _,
                left = in(reg) left as u32,
                c = in(reg) c,
                stride = in(reg) 4 * stride,
                accumulate = in(reg) u32::from(accumulate),
                registers = const REGISTERS,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::View;
    use crate::rng::Stream;
    use crate::{Bytes, Isa, Matrix, bf16_to_f32, f32_to_bf16, from_f32};

    /// Returns the two bf16 elements of a word.
    fn pair(word: f32) -> [f64; 2] {
        let bits = word.to_bits();
        [bits as u16, (bits >> 16) as u16].map(|half| bf16_to_f32(half) as f64)
    }

    /// Returns element `(i, j)` of the product of packed squares of `A` and a packed panel of `B`.
    fn multiply(a: &[f32], b: &[f32], squares: usize, i: usize, j: usize) -> f64 {
        let words = (0..squares * SIDE).map(|p| {
            let [a, b] = [a[p / SIDE * SQUARE + i * SIDE + p % SIDE], b[p * NR + j]].map(pair);
            a[0] * b[0] + a[1] * b[1]
        });
        words.sum()
    }

    #[test]
    fn packed_squares_and_panels_give_the_product() {
        if !Isa::Avx512Bf16.is_supported() {
            return;
        }
        let mut stream = Stream::new(41);
        for (m, n, k) in [(16, 32, 64), (1, 1, 1), (9, 45, 31), (16, 70, 97), (3, 16, 33)] {
            let [a, b] = [m * k, n * k].map(|len| {
                let values: Vec<f32> = (0..len).map(|_| stream.next_uniform() - 0.5).collect();
                values.into_iter().map(|v| bf16_to_f32(f32_to_bf16(v))).collect::<Vec<f32>>()
            });
            let mut bytes = vec![0; 2 * n * k];
            from_f32(DType::Bf16, &b, &mut bytes);
            let weight = Matrix::dense(DType::Bf16, Bytes::from_vec(bytes), n, k);
            let a_by_columns: Vec<f32> = (0..m * k).map(|i| a[i % m * k + i / m]).collect();
            let squares = k.div_ceil(2 * SIDE);
            let panel = squares * SIDE * NR;
            for view in [View::f32(&a, k, 1), View::f32(&a_by_columns, 1, m)] {
                let mut packed_a = vec![f32::NAN; squares * SQUARE];
                let mut packed_b = vec![f32::NAN; n.div_ceil(NR) * panel];
                let job = PackJob::new(packed_a.as_mut_ptr(), SIDE, view, (0, m), (0, k), true);
                let (dst, view) = (packed_b.as_mut_ptr(), View::rows_of(&weight));
                let of_b = PackJob { panel, ..PackJob::new(dst, NR, view, (0, n), (0, k), true) };
                // SAFETY: the instruction set was checked, and both buffers have room for whole squares.
                unsafe {
                    pack_a(&job);
                    pack_b(&of_b);
                }
                for (i, j) in (0..m * n).map(|at| (at / n, at % n)) {
                    let found = multiply(&packed_a, &packed_b[j / NR * panel..], squares, i, j % NR);
                    let terms = (0..k).map(|p| a[i * k + p] as f64 * b[j * k + p] as f64);
                    let expected: f64 = terms.sum();
                    assert!((found - expected).abs() < 1e-12, "{m} {n} {k} [{i},{j}]: {found} {expected}");
                }
            }
        }
    }
}
