//! Portable kernels without intrinsics. A vector is an array of four lanes, which the compiler maps to
//! vectors of the target.

use super::kernel_table;
use super::micro_kernel::{MicroKernel, element, word};

/// Kernels for f32 on any machine.
pub(super) struct Scalar;

impl MicroKernel for Scalar {
    type V = [f32; 4];
    const LANES: usize = 4;
    const MR: usize = 4;
    const PAIR: usize = 1;

    #[inline(always)]
    unsafe fn zero() -> [f32; 4] {
        [0.0; 4]
    }

    #[inline(always)]
    unsafe fn splat(v: f32) -> [f32; 4] {
        [v; 4]
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32; 4] {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { p.cast::<[f32; 4]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> [f32; 4] {
        let mut v = [0.0; 4];
        for (i, v) in v.iter_mut().enumerate().take(n) {
            // SAFETY: the caller meets the trait's requirements, and `i < n`.
            *v = unsafe { p.add(i).read_unaligned() };
        }
        v
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: [f32; 4]) {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { p.cast::<[f32; 4]>().write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn store_first(p: *mut f32, n: usize, v: [f32; 4]) {
        for (i, v) in v.iter().enumerate().take(n) {
            // SAFETY: the caller meets the trait's requirements, and `i < n`.
            unsafe { p.add(i).write_unaligned(*v) };
        }
    }

    #[inline(always)]
    unsafe fn step(acc: [f32; 4], a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| acc[i] + a[i] * b[i])
    }

    #[inline(always)]
    unsafe fn mul_add(acc: [f32; 4], a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| acc[i] + a[i] * b[i])
    }

    type Mask = u32;

    #[inline(always)]
    unsafe fn mask(row: *const u32, vector: usize) -> u32 {
        // SAFETY: the caller meets the trait's requirements. One word contains the masks of eight vectors.
        unsafe { *row.add(vector / 8) >> (4 * (vector % 8)) }
    }

    #[inline(always)]
    unsafe fn apply_mask(v: [f32; 4], mask: u32) -> [f32; 4] {
        std::array::from_fn(|i| if mask >> i & 1 == 1 { v[i] } else { 0.0 })
    }

    #[inline(always)]
    unsafe fn words_by_rows<const D: u8>(p: *const u8, round: bool) -> [f32; 4] {
        // SAFETY: the caller meets the trait's requirements.
        std::array::from_fn(|i| word(1, unsafe { element::<D>(p, i) }, 0.0, round))
    }

    #[inline(always)]
    unsafe fn words_by_columns<const D: u8>(p0: *const u8, _: *const u8, round: bool) -> [f32; 4] {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { Self::words_by_rows::<D>(p0, round) }
    }

    const PIECES: usize = 1;
    type Table = [f32; 16];

    #[inline(always)]
    unsafe fn table(code: &[f32; 16], [scale, _]: [f32; 2], round: bool) -> [f32; 16] {
        code.map(|code| word(1, code * scale, 0.0, round))
    }

    #[inline(always)]
    unsafe fn values(table: [f32; 16]) -> [f32; 16] {
        table
    }

    #[inline(always)]
    unsafe fn lookup(table: [f32; 16], p: *const u8) -> [f32; 4] {
        // SAFETY: the caller meets the trait's requirements, so two bytes are readable.
        let [a, b] = unsafe { p.cast::<[u8; 2]>().read() };
        [a >> 4, a & 15, b >> 4, b & 15].map(|code| table[code as usize])
    }

    #[inline(always)]
    unsafe fn lookup_by_columns(table: [f32; 16], p0: *const u8, _: *const u8) -> [f32; 4] {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { Self::lookup(table, p0) }
    }

    #[inline(always)]
    unsafe fn lookup_interleaved(table: [f32; 16], p: *const u8, v: usize) -> [f32; 4] {
        // SAFETY: the caller meets the trait's requirements. The four codes of a vector have two bytes.
        unsafe { Self::lookup(table, p.add(2 * v)) }
    }

    #[inline(always)]
    fn interleaved(place: usize) -> usize {
        place
    }

    #[inline(always)]
    unsafe fn transpose(rows: &mut [[f32; 4]; 16]) {
        let t = *rows;
        for i in 0..4 {
            for j in 0..4 {
                rows[i][j] = t[j][i];
            }
        }
    }

    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}

    #[inline(always)]
    unsafe fn prefetch_far(_: *const u8) {}

    #[inline(always)]
    unsafe fn sums(v: [[f32; 4]; 4]) -> [f32; 4] {
        v.map(|v| (v[0] + v[1]) + (v[2] + v[3]))
    }
}

kernel_table!(Scalar);
