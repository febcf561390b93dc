//! AVX2 with FMA and F16C: vectors of 8 lanes, and tiles of 6 x 16 elements. The 12 accumulators of a tile
//! stay in registers.

use std::arch::x86_64::*;

use super::kernel_table;
use super::micro_kernel::{BF16, F32, MicroKernel};

/// Kernels for f32 on AVX2.
pub(super) struct Avx2;

/// Returns a mask of the first `n` of 8 lanes.
///
/// # Safety
/// The processor must support AVX2.
#[inline(always)]
unsafe fn first(n: usize) -> __m256i {
    // SAFETY: the caller guarantees that the processor supports AVX2.
    unsafe {
        _mm256_cmpgt_epi32(_mm256_set1_epi32(n.min(8) as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
    }
}

/// Rounds 8 f32 values to bf16 precision, to the nearest value with ties to even. A NaN is returned
/// unchanged, as in the AVX-512 version.
///
/// # Safety
/// The processor must support AVX2.
#[inline(always)]
unsafe fn round_bf16(v: __m256) -> __m256 {
    // SAFETY: the caller guarantees that the processor supports AVX2.
    unsafe {
        let bits = _mm256_castps_si256(v);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        let rounded = _mm256_and_si256(up, _mm256_set1_epi32(0xffff_0000u32 as i32));
        let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(v, v);
        _mm256_blendv_ps(_mm256_castsi256_ps(rounded), v, nan)
    }
}

/// Looks up eight 4-bit codes in a table of 16 values. Each code is in the lowest four bits of a lane.
///
/// # Safety
/// The processor must support AVX2.
#[inline(always)]
unsafe fn of_table([lower, upper]: [__m256; 2], codes: __m256i) -> __m256 {
    // SAFETY: the caller guarantees that the processor supports AVX2.
    unsafe {
        let lower = _mm256_permutevar8x32_ps(lower, codes);
        let upper = _mm256_permutevar8x32_ps(upper, codes);
        // The highest bit of a 4-bit code selects the half of the table. The blend reads the sign bit of a
        // lane, so the code is shifted to the top of the lane.
        _mm256_blendv_ps(lower, upper, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(codes)))
    }
}

impl MicroKernel for Avx2 {
    type V = __m256;
    const LANES: usize = 8;
    const MR: usize = 6;
    const PAIR: usize = 1;

    #[inline(always)]
    unsafe fn zero() -> __m256 {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn splat(v: f32) -> __m256 {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { _mm256_set1_ps(v) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m256 {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { _mm256_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> __m256 {
        // SAFETY: the caller meets the trait's requirements. The mask excludes all lanes from `n` on.
        unsafe { _mm256_maskload_ps(p, first(n)) }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m256) {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { _mm256_storeu_ps(p, v) }
    }

    #[inline(always)]
    unsafe fn store_first(p: *mut f32, n: usize, v: __m256) {
        // SAFETY: the caller meets the trait's requirements. The mask excludes all lanes from `n` on.
        unsafe { _mm256_maskstore_ps(p, first(n), v) }
    }

    #[inline(always)]
    unsafe fn step(acc: __m256, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { _mm256_fmadd_ps(a, b, acc) }
    }

    #[inline(always)]
    unsafe fn mul_add(acc: __m256, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { _mm256_fmadd_ps(a, b, acc) }
    }

    type Mask = __m256;

    #[inline(always)]
    unsafe fn mask(row: *const u32, vector: usize) -> __m256 {
        // SAFETY: the caller meets the trait's requirements. The mask of a vector is one byte, and x86 is
        // little-endian.
        unsafe {
            let bits = _mm256_set1_epi32(i32::from(*row.cast::<u8>().add(vector)));
            let lanes = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
            _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(bits, lanes), lanes))
        }
    }

    #[inline(always)]
    unsafe fn apply_mask(v: __m256, mask: __m256) -> __m256 {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { _mm256_and_ps(v, mask) }
    }

    #[inline(always)]
    unsafe fn words_by_rows<const D: u8>(p: *const u8, round: bool) -> __m256 {
        // SAFETY: the caller meets the trait's requirements, and the loads are unaligned.
        unsafe {
            let v = match D {
                F32 => _mm256_loadu_ps(p.cast()),
                BF16 => {
                    let half = _mm_loadu_si128(p.cast());
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(half)))
                }
                _ => _mm256_cvtph_ps(_mm_loadu_si128(p.cast())),
            };
            if round && D != BF16 { round_bf16(v) } else { v }
        }
    }

    #[inline(always)]
    unsafe fn words_by_columns<const D: u8>(p0: *const u8, _: *const u8, round: bool) -> __m256 {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { Self::words_by_rows::<D>(p0, round) }
    }

    const PIECES: usize = 1;
    /// The lower eight values, and the upper eight values.
    type Table = [__m256; 2];

    #[inline(always)]
    unsafe fn table(code: &[f32; 16], [scale, _]: [f32; 2], round: bool) -> [__m256; 2] {
        // SAFETY: the caller meets the trait's requirements, and each half of the table has eight values.
        [0, 8].map(|half| unsafe {
            let values = _mm256_mul_ps(_mm256_loadu_ps(code.as_ptr().add(half)), _mm256_set1_ps(scale));
            if round { round_bf16(values) } else { values }
        })
    }

    #[inline(always)]
    unsafe fn values(table: [__m256; 2]) -> [f32; 16] {
        // SAFETY: both types have 64 bytes, and every bit pattern is valid.
        unsafe { std::mem::transmute::<[__m256; 2], [f32; 16]>(table) }
    }

    #[inline(always)]
    unsafe fn lookup(table: [__m256; 2], p: *const u8) -> __m256 {
        // SAFETY: the caller meets the trait's requirements. The load reads four bytes, which contain eight
        // codes.
        unsafe {
            let codes = _mm256_set1_epi32(p.cast::<i32>().read_unaligned());
            of_table(table, _mm256_srlv_epi32(codes, _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24)))
        }
    }

    #[inline(always)]
    unsafe fn lookup_by_columns(table: [__m256; 2], p0: *const u8, _: *const u8) -> __m256 {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { Self::lookup(table, p0) }
    }

    #[inline(always)]
    unsafe fn lookup_interleaved(table: [__m256; 2], p: *const u8, v: usize) -> __m256 {
        // SAFETY: the caller meets the trait's requirements. The load reads 32 bytes, which contain 64 codes.
        unsafe {
            // Each lane contains four bytes with eight codes. Every lane reads the code in bits `4v .. 4v +
            // 4`.
            let codes = _mm256_loadu_si256(p.cast());
            of_table(table, _mm256_srlv_epi32(codes, _mm256_set1_epi32(4 * v as i32)))
        }
    }

    #[inline(always)]
    fn interleaved(place: usize) -> usize {
        8 * (place % 8) + ((place / 8) ^ 1)
    }

    #[inline(always)]
    unsafe fn transpose(rows: &mut [__m256; 16]) {
        // SAFETY: the caller meets the trait's requirements.
        unsafe {
            let mut t = *rows;
            for i in 0..4 {
                t[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
                t[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
            }
            // `u[4q + c]` will contain rows `4q .. 4q + 4` of the columns `c` and `c + 4`, with one column in
            // each 128-bit lane.
            let mut u = t;
            for q in 0..2 {
                u[4 * q] = _mm256_shuffle_ps::<0x44>(t[4 * q], t[4 * q + 2]);
                u[4 * q + 1] = _mm256_shuffle_ps::<0xee>(t[4 * q], t[4 * q + 2]);
                u[4 * q + 2] = _mm256_shuffle_ps::<0x44>(t[4 * q + 1], t[4 * q + 3]);
                u[4 * q + 3] = _mm256_shuffle_ps::<0xee>(t[4 * q + 1], t[4 * q + 3]);
            }
            for c in 0..4 {
                rows[c] = _mm256_permute2f128_ps::<0x20>(u[c], u[4 + c]);
                rows[4 + c] = _mm256_permute2f128_ps::<0x31>(u[c], u[4 + c]);
            }
        }
    }

    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: a prefetch cannot fault.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }

    #[inline(always)]
    unsafe fn prefetch_far(p: *const u8) {
        // SAFETY: a prefetch cannot fault.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }

    #[inline(always)]
    unsafe fn sums([a, b, c, d]: [__m256; 4]) -> [f32; 4] {
        // SAFETY: the caller meets the trait's requirements. The store writes 16 bytes to a local variable.
        unsafe {
            let ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
            let abcd = _mm256_add_ps(_mm256_shuffle_ps::<0x44>(ab, cd), _mm256_shuffle_ps::<0xee>(ab, cd));
            let quarter = _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps::<1>(abcd));
            let mut out = [0.0; 4];
            _mm_storeu_ps(out.as_mut_ptr(), quarter);
            out
        }
    }
}

kernel_table!("avx2,fma,f16c", Avx2);
