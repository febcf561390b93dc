//! AVX-512: vectors of 16 lanes, and tiles of 14 x 32 elements. The 28 accumulators of a tile stay in
//! registers.

use std::arch::x86_64::*;

use super::kernel_table;
use super::micro_kernel::{BF16, F32, MicroKernel};

/// Kernels for f32 on AVX-512.
pub(super) struct Avx512;

/// Returns a mask of the first `n` of 16 lanes.
#[inline(always)]
pub(super) fn first(n: usize) -> __mmask16 {
    if n >= 16 { !0 } else { (1 << n) - 1 }
}

/// Rounds 16 f32 values to bf16 precision, to the nearest value with ties to even. A NaN is returned
/// unchanged. Truncating this NaN to bf16 gives a NaN again, because arithmetic returns quiet NaNs, and bf16
/// keeps the bit that marks a quiet NaN.
///
/// # Safety
/// The processor must support AVX-512F.
#[inline(always)]
unsafe fn round_bf16(v: __m512) -> __m512 {
    // SAFETY: the caller guarantees that the processor supports AVX-512F.
    unsafe {
        let bits = _mm512_castps_si512(v);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        let rounded = _mm512_and_si512(up, _mm512_set1_epi32(0xffff_0000u32 as i32));
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
        _mm512_mask_mov_ps(_mm512_castsi512_ps(rounded), nan, v)
    }
}

/// Returns the 16 values of a 4-bit type, multiplied by the scale of a block.
///
/// # Safety
/// The processor must support AVX-512F.
#[inline(always)]
pub(super) unsafe fn scaled(code: &[f32; 16], scale: f32) -> __m512 {
    // SAFETY: the caller guarantees that the processor supports AVX-512F, and the table has 16 values.
    unsafe { _mm512_mul_ps(_mm512_loadu_ps(code.as_ptr()), _mm512_set1_ps(scale)) }
}

/// Loads 16 elements of the source type, and converts the elements to f32.
///
/// # Safety
/// The processor must support AVX-512F, and 16 elements must be readable at `p`.
#[inline(always)]
pub(super) unsafe fn widen<const D: u8>(p: *const u8) -> __m512 {
    // SAFETY: the caller guarantees that the processor supports AVX-512F and that the elements exist.
    // Unaligned loads are allowed.
    unsafe {
        match D {
            F32 => _mm512_loadu_ps(p.cast()),
            BF16 => {
                let half = _mm256_loadu_si256(p.cast());
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)))
            }
            _ => _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())),
        }
    }
}

/// Transposes a square of 16 x 16 words.
///
/// # Safety
/// The processor must support AVX-512F.
#[inline(always)]
pub(super) unsafe fn transpose(rows: &mut [__m512; 16]) {
    // SAFETY: the caller guarantees that the processor supports AVX-512F.
    unsafe {
        let mut t = *rows;
        for i in 0..8 {
            t[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
            t[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
        }
        // `u[4q + c]` will contain rows `4q .. 4q + 4` of the columns `c`, `c + 4`, `c + 8` and `c + 12`,
        // with one column in each 128-bit lane.
        let mut u = t;
        for q in 0..4 {
            let (a, b) = (_mm512_castps_pd(t[4 * q]), _mm512_castps_pd(t[4 * q + 1]));
            let (c, d) = (_mm512_castps_pd(t[4 * q + 2]), _mm512_castps_pd(t[4 * q + 3]));
            u[4 * q] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
            u[4 * q + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
            u[4 * q + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
            u[4 * q + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
        }
        for c in 0..4 {
            let lo01 = _mm512_shuffle_f32x4::<0x44>(u[c], u[4 + c]);
            let hi01 = _mm512_shuffle_f32x4::<0xee>(u[c], u[4 + c]);
            let lo23 = _mm512_shuffle_f32x4::<0x44>(u[8 + c], u[12 + c]);
            let hi23 = _mm512_shuffle_f32x4::<0xee>(u[8 + c], u[12 + c]);
            rows[c] = _mm512_shuffle_f32x4::<0x88>(lo01, lo23);
            rows[4 + c] = _mm512_shuffle_f32x4::<0xdd>(lo01, lo23);
            rows[8 + c] = _mm512_shuffle_f32x4::<0x88>(hi01, hi23);
            rows[12 + c] = _mm512_shuffle_f32x4::<0xdd>(hi01, hi23);
        }
    }
}

/// Returns the sum of the lanes of each of four vectors.
///
/// # Safety
/// The processor must support AVX-512F.
#[inline(always)]
pub(super) unsafe fn sums([a, b, c, d]: [__m512; 4]) -> [f32; 4] {
    // SAFETY: the caller guarantees that the processor supports AVX-512F. The store writes 16 bytes to a
    // local variable.
    unsafe {
        let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        let abcd = _mm512_add_ps(_mm512_shuffle_ps::<0x44>(ab, cd), _mm512_shuffle_ps::<0xee>(ab, cd));
        let upper = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(abcd)));
        let half = _mm256_add_ps(_mm512_castps512_ps256(abcd), upper);
        let quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
        let mut out = [0.0; 4];
        _mm_storeu_ps(out.as_mut_ptr(), quarter);
        out
    }
}

impl MicroKernel for Avx512 {
    type V = __m512;
    const LANES: usize = 16;
    const MR: usize = 14;
    const PAIR: usize = 1;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn splat(v: f32) -> __m512 {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { _mm512_set1_ps(v) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { _mm512_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> __m512 {
        // SAFETY: the caller meets the trait's requirements. The mask excludes all lanes from `n` on.
        unsafe { _mm512_maskz_loadu_ps(first(n), p) }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m512) {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { _mm512_storeu_ps(p, v) }
    }

    #[inline(always)]
    unsafe fn store_first(p: *mut f32, n: usize, v: __m512) {
        // SAFETY: the caller meets the trait's requirements. The mask excludes all lanes from `n` on.
        unsafe { _mm512_mask_storeu_ps(p, first(n), v) }
    }

    #[inline(always)]
    unsafe fn step(acc: __m512, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { _mm512_fmadd_ps(a, b, acc) }
    }

    #[inline(always)]
    unsafe fn mul_add(acc: __m512, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { _mm512_fmadd_ps(a, b, acc) }
    }

    type Mask = __mmask16;

    #[inline(always)]
    unsafe fn mask(row: *const u32, vector: usize) -> __mmask16 {
        // SAFETY: the caller meets the trait's requirements. The mask of a vector has 16 bits, and x86 is
        // little-endian.
        unsafe { *row.cast::<u16>().add(vector) }
    }

    #[inline(always)]
    unsafe fn apply_mask(v: __m512, mask: __mmask16) -> __m512 {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { _mm512_maskz_mov_ps(mask, v) }
    }

    #[inline(always)]
    unsafe fn words_by_rows<const D: u8>(p: *const u8, round: bool) -> __m512 {
        // SAFETY: the caller meets the trait's requirements.
        unsafe {
            let v = widen::<D>(p);
            if round && D != BF16 { round_bf16(v) } else { v }
        }
    }

    #[inline(always)]
    unsafe fn words_by_columns<const D: u8>(p0: *const u8, _: *const u8, round: bool) -> __m512 {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { Self::words_by_rows::<D>(p0, round) }
    }

    const PIECES: usize = 1;
    type Table = __m512;

    #[inline(always)]
    unsafe fn table(code: &[f32; 16], [scale, _]: [f32; 2], round: bool) -> __m512 {
        // SAFETY: the caller meets the trait's requirements.
        unsafe {
            let values = scaled(code, scale);
            if round { round_bf16(values) } else { values }
        }
    }

    #[inline(always)]
    unsafe fn values(table: __m512) -> [f32; 16] {
        // SAFETY: both types have 64 bytes, and every bit pattern is valid.
        unsafe { std::mem::transmute::<__m512, [f32; 16]>(table) }
    }

    #[inline(always)]
    unsafe fn lookup(table: __m512, p: *const u8) -> __m512 {
        // SAFETY: the caller meets the trait's requirements. Each load reads four bytes, which contain eight
        // codes.
        unsafe {
            let lower = _mm512_set1_epi32(p.cast::<i32>().read_unaligned());
            let upper = p.add(4).cast::<i32>().read_unaligned();
            let codes = _mm512_mask_set1_epi32(lower, 0xff00, upper);
            let shifts = _mm512_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24, 4, 0, 12, 8, 20, 16, 28, 24);
            _mm512_permutexvar_ps(_mm512_srlv_epi32(codes, shifts), table)
        }
    }

    #[inline(always)]
    unsafe fn lookup_by_columns(table: __m512, p0: *const u8, _: *const u8) -> __m512 {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { Self::lookup(table, p0) }
    }

    #[inline(always)]
    unsafe fn lookup_interleaved(table: __m512, p: *const u8, v: usize) -> __m512 {
        // SAFETY: the caller meets the trait's requirements. The load reads 32 bytes, which contain 64 codes.
        unsafe {
            let codes = _mm512_broadcast_i64x4(_mm256_loadu_si256(p.cast()));
            // Every four bytes contain eight codes. The lower half of the lanes reads one of these codes, and
            // the upper half reads the next.
            let shift = 8 * v as i32;
            let shifts = _mm512_inserti64x4::<1>(_mm512_set1_epi32(shift), _mm256_set1_epi32(shift + 4));
            _mm512_permutexvar_ps(_mm512_srlv_epi32(codes, shifts), table)
        }
    }

    #[inline(always)]
    fn interleaved(place: usize) -> usize {
        8 * (place % 8) + ((place / 8) ^ 1)
    }

    #[inline(always)]
    unsafe fn transpose(rows: &mut [__m512; 16]) {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { transpose(rows) }
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
    unsafe fn sums(v: [__m512; 4]) -> [f32; 4] {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { sums(v) }
    }
}

kernel_table!("avx512f,avx512bw,avx512dq,avx512vl", Avx512);
