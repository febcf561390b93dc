//! Products of a few rows of activations by a bf16 weight, for decoding. The weight is the first operand of
//! the tiles, so its rows are loaded from memory as they are:
//!
//! ```text
//!                                inp: 16 words of at most 16 rows, packed by columns
//!                                tmm5      tmm5      tmm5      tmm6 (the last rows)
//! W: 16 words of 16 rows  tmm4   tmm0      tmm1      tmm2      tmm3
//! ```
//!
//! Every element of a tile is summed along `k` on its own. A result therefore does not depend on the other
//! rows of `inp`, nor on the position of a row in its tile.
//!
//! The sums stay in the registers between two blocks of assembly. This is sound because no code that the
//! compiler generates uses tile registers.

use std::arch::asm;

use super::{Registers, SIDE, SQUARE, Shapes};
use crate::DType;
use crate::gemm::avx512::Avx512;
use crate::gemm::avx512bf16::Avx512Bf16;
use crate::gemm::micro_kernel::{F32, MicroKernel};
use crate::gemm::{COLUMN_BLOCK, COLUMN_GROUP, ColumnPackJob, DotJob, DotRows};

const _: () = assert!(COLUMN_GROUP == SIDE && COLUMN_BLOCK == 2 * SIDE);

/// Maximum number of groups of rows that one pass over the weight multiplies.
const GROUPS: usize = 4;
/// Number of squares along `k` that are multiplied while the next ones are prefetched.
const SQUARES_AHEAD: usize = 8;

/// Packs some blocks of a group of rows, so that every block is a tile of 16 words of each row.
///
/// # Safety
/// The processor must support AVX512-BF16, and `dst` must be valid for all words of the blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn pack(job: &ColumnPackJob<'_>) {
    let &ColumnPackJob { dst, inp, k, blocks: (first, count), .. } = job;
    let rows = inp.len() / k;
    assert!(rows <= SIDE && (first + count) * COLUMN_BLOCK <= k, "a group of rows, and their blocks");
    for block in first..first + count {
        // SAFETY: the assertion checks that the block is inside every row. The caller guarantees room for the
        // 16 words of each row.
        unsafe {
            let mut words = [Avx512::zero(); SIDE];
            for (row, words) in words.iter_mut().take(rows).enumerate() {
                let elements = inp.as_ptr().add(row * k + block * COLUMN_BLOCK);
                *words = Avx512Bf16::words_by_rows::<F32>(elements.cast(), true);
            }
            let dst = dst.add(block * SIDE * rows);
            if rows == 1 {
                Avx512::store(dst, words[0]);
                continue;
            }
            Avx512::transpose(&mut words);
            for (p, words) in words.into_iter().enumerate() {
                Avx512::store_first(dst.add(p * rows), rows, words);
            }
        }
    }
}

/// Runs a [`DotJob`] whose rows were packed by [`pack`]. Each row of the weight is read from memory once for
/// up to 64 rows of `inp`.
///
/// # Safety
/// The processor must support AMX, this process must have permission to use AMX, and every pointer must be
/// valid for its shape.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn dots(job: &DotJob<'_>) {
    let DotRows::Dense { dtype: DType::Bf16, first, stride } = job.w else {
        unreachable!("a weight that is not bf16");
    };
    assert!(job.k.is_multiple_of(COLUMN_BLOCK) && job.mask.is_none());
    assert!(job.alpha == 1.0 && !job.accumulate, "the product overwrites the output");
    let mut registers = Registers(None);
    for row in (0..job.w_rows).step_by(SIDE) {
        let rows = (job.w_rows - row).min(SIDE);
        for column in (0..job.n).step_by(GROUPS * SIDE) {
            let columns = (job.n - column).min(GROUPS * SIDE);
            let mut last = columns % SIDE;
            let mut whole = columns / SIDE;
            if last == 0 && whole == GROUPS {
                (whole, last) = (whole - 1, SIDE);
            }
            // SAFETY: these rows of the weight, and these rows of `inp` and of the output, exist.
            unsafe {
                registers.set(shapes(rows, whole, last));
                let strip = Strip {
                    w: first.add(row * stride),
                    stride,
                    // A row that the next strip reads. The last strip has none.
                    next: if row + SIDE < job.w_rows && column == 0 { SIDE * stride } else { 0 },
                    squares: job.k / COLUMN_BLOCK,
                    inp: job.inp.add(column * job.inp_stride),
                    group: SIDE * job.inp_stride,
                    whole,
                    last,
                    rows,
                };
                strip.run(job.out.add(column * job.out_stride + row), job.out_stride);
            }
        }
    }
}

/// Returns the shapes of the registers for `rows` rows of the weight, `whole` groups of 16 rows of `inp`, and
/// one group of `last` rows.
fn shapes(rows: usize, whole: usize, last: usize) -> Shapes {
    let sum = |group: usize| (rows, if group < whole { SIDE } else { last });
    Shapes::new([sum(0), sum(1), sum(2), sum(3), (rows, SIDE), (SIDE, SIDE), (SIDE, last), (SIDE, SIDE)])
}

/// The product of at most 16 rows of a weight by at most 64 rows of `inp`.
#[derive(Clone, Copy)]
struct Strip {
    w: *const u8,
    /// Distance from one row of the weight to the next, in bytes.
    stride: usize,
    /// Distance to the rows of the weight that are read after these, in bytes. Zero if there are none.
    next: usize,
    /// Number of squares along `k`.
    squares: usize,
    inp: *const f32,
    /// Distance from one group of rows of `inp` to the next, in 32-bit words.
    group: usize,
    /// Number of groups of 16 rows of `inp`.
    whole: usize,
    /// Number of rows in the last group, or 0 if all groups have 16.
    last: usize,
    /// Number of rows of the weight.
    rows: usize,
}

impl Strip {
    /// Multiplies, and writes the result of each row of `inp` to a row of `out`.
    ///
    /// # Safety
    /// The requirements of [`dots`] apply, and the registers must have the shapes of this strip.
    #[inline(always)]
    unsafe fn run(self, out: *mut f32, out_stride: usize) {
        // SAFETY: the caller meets the safety requirements.
        unsafe {
            match (self.whole, self.last > 0) {
                (0, _) => self.sums::<0, true>(out, out_stride),
                (1, false) => self.sums::<1, false>(out, out_stride),
                (1, true) => self.sums::<1, true>(out, out_stride),
                (2, false) => self.sums::<2, false>(out, out_stride),
                (2, true) => self.sums::<2, true>(out, out_stride),
                (3, false) => self.sums::<3, false>(out, out_stride),
                (3, true) => self.sums::<3, true>(out, out_stride),
                _ => unreachable!("at most four groups of rows"),
            }
        }
    }

    /// Runs [`run`](Self::run) for these numbers of groups.
    ///
    /// # Safety
    /// The requirements of [`run`](Self::run) apply.
    #[inline(always)]
    unsafe fn sums<const WHOLE: usize, const LAST: bool>(self, out: *mut f32, out_stride: usize) {
        // SAFETY: the caller guarantees the operands and the shapes. The buffer has room for all sums, and the
        // output has a row for each row of `inp`, and a column for each row of the weight.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                options(nostack, nomem),
            );
            for first in (0..self.squares).step_by(SQUARES_AHEAD) {
                self.prefetch(first + SQUARES_AHEAD);
                self.add::<WHOLE, LAST>(first, SQUARES_AHEAD.min(self.squares - first));
            }
            let mut sums = [0.0f32; GROUPS * SQUARE];
            store::<WHOLE, LAST>(&mut sums);
            for group in 0..WHOLE + usize::from(LAST) {
                let mut words = [Avx512::zero(); SIDE];
                for (i, words) in words.iter_mut().enumerate() {
                    *words = Avx512::load(sums.as_ptr().add(group * SQUARE + i * SIDE));
                }
                Avx512::transpose(&mut words);
                let columns = if group < WHOLE { SIDE } else { self.last };
                for (i, words) in words.into_iter().take(columns).enumerate() {
                    let out = out.add((group * SIDE + i) * out_stride);
                    Avx512::store_first(out, self.rows, words);
                }
            }
        }
    }

    /// Prefetches the squares of the weight from square `first` on, which may be in the next rows.
    ///
    /// # Safety
    /// The processor must support AVX-512.
    #[inline(always)]
    unsafe fn prefetch(self, first: usize) {
        let (w, first) = match first < self.squares {
            true => (self.w, first),
            false if self.next > 0 => (self.w.wrapping_add(self.next), 0),
            false => return,
        };
        let count = SQUARES_AHEAD.min(self.squares - first);
        for row in 0..self.rows {
            let line = w.wrapping_add(row * self.stride + first * 4 * SIDE);
            for square in 0..count {
                // SAFETY: a prefetch needs no valid address.
                unsafe { Avx512Bf16::prefetch_far(line.wrapping_add(square * 4 * SIDE)) };
            }
        }
    }

    /// Adds the products of `count` squares, from square `first` on, to the sums in the registers.
    ///
    /// # Safety
    /// The requirements of [`run`](Self::run) apply, and these squares must exist.
    #[inline(always)]
    unsafe fn add<const WHOLE: usize, const LAST: bool>(self, first: usize, count: usize) {
        // SAFETY: the caller guarantees that the squares exist. The assembler omits all instructions for
        // absent groups.
        unsafe {
            let inp = self.inp.add(first * SQUARE);
            let last = self.inp.add(WHOLE * self.group + first * SIDE * self.last);
            asm!(
                "2:",
                "tileloadd tmm4, [{w} + {stride}*1]",
                ".if {whole} > 0; tileloadd tmm5, [{inp} + {side}*1]; tdpbf16ps tmm0, tmm4, tmm5; .endif",
                "lea {at}, [{inp} + {group}]",
                ".if {whole} > 1; tileloadd tmm7, [{at} + {side}*1]; tdpbf16ps tmm1, tmm4, tmm7; .endif",
                "add {at}, {group}",
                ".if {whole} > 2; tileloadd tmm5, [{at} + {side}*1]; tdpbf16ps tmm2, tmm4, tmm5; .endif",
                ".if {has_last}; tileloadd tmm6, [{last} + {last_row}*1]; tdpbf16ps tmm{whole}, tmm4, tmm6; .endif",
                "add {w}, 64",
                "add {inp}, 1024",
                "add {last}, {last_square}",
                "dec {count}",
                "jnz 2b",
                w = inout(reg) self.w.add(first * 4 * SIDE) => _,
                stride = in(reg) self.stride,
                inp = inout(reg) inp => _,
                side = in(reg) 4 * SIDE,
                group = in(reg) 4 * self.group,
                at = out(reg) _,
                last = inout(reg) last => _,
                last_row = in(reg) 4 * self.last,
                last_square = in(reg) 4 * SIDE * self.last,
                count = inout(reg) count => _,
                whole = const WHOLE,
                has_last = const LAST as usize,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly),
            );
        }
    }
}

/// Stores the sums of each group in a square: row `i` contains the results of row `i` of the weight.
///
/// # Safety
/// The registers must contain sums with at most 16 rows and columns.
#[inline(always)]
unsafe fn store<const WHOLE: usize, const LAST: bool>(sums: &mut [f32; GROUPS * SQUARE]) {
    // SAFETY: each register has a square of its own.
    unsafe {
        asm!(
            "tilestored [{sums} + {side}*1], tmm0",
            ".if {groups} > 1; tilestored [{sums} + {side}*1 + 1024], tmm1; .endif",
            ".if {groups} > 2; tilestored [{sums} + {side}*1 + 2048], tmm2; .endif",
            ".if {groups} > 3; tilestored [{sums} + {side}*1 + 3072], tmm3; .endif",
            sums = in(reg) sums.as_mut_ptr(),
            side = in(reg) 4 * SIDE,
            groups = const WHOLE + LAST as usize,
            options(nostack),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;
    use crate::{Isa, f32_to_bf16};

    #[test]
    fn packed_groups_have_every_pair_of_a_row_in_its_column() {
        if !Isa::Avx512Bf16.is_supported() {
            return;
        }
        let (mut stream, k) = (Stream::new(42), 96);
        for rows in [1, 2, 7, 15, 16] {
            let inp: Vec<f32> = (0..rows * k).map(|_| stream.next_uniform() - 0.5).collect();
            let mut packed = vec![f32::NAN; rows * k / 2 + 1];
            // The blocks are packed in two pieces, the last one first.
            for blocks in [(1, 2), (0, 1)] {
                let job = ColumnPackJob { dst: packed.as_mut_ptr(), inp: &inp, k, blocks };
                // SAFETY: the instruction set was checked, and the buffer has room for all words.
                unsafe { pack(&job) };
            }
            for (p, row) in (0..rows * k / 2).map(|at| (at / rows, at % rows)) {
                let [lower, upper] = [0, 1].map(|i| f32_to_bf16(inp[row * k + 2 * p + i]) as u32);
                assert_eq!(packed[p * rows + row].to_bits(), lower | upper << 16, "{rows} rows, word {p}");
            }
            assert!(packed[rows * k / 2].is_nan(), "no word past the last one is written");
        }
    }
}
