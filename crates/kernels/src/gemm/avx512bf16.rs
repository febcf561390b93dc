//! AVX512-BF16: `vdpbf16ps` computes 32 products of bf16 numbers, and adds them to 16 f32 sums. An f32
//! multiply-add computes half as many products.

use std::arch::x86_64::*;

use super::kernel_table;
use super::micro_kernel::{BF16, F32, MicroKernel};
use super::{avx512, avx512::Avx512};

/// Kernels for pairs of bf16 on AVX512-BF16.
pub(super) struct Avx512Bf16;

/// Loads 32 consecutive elements, and converts the elements to bf16.
///
/// # Safety
/// The processor must support AVX512-BF16, and 32 elements must be readable at `p`.
#[inline(always)]
unsafe fn pairs_by_rows<const D: u8>(p: *const u8) -> __m512 {
    // SAFETY: the caller guarantees that the processor supports AVX512-BF16 and that the elements exist.
    unsafe {
        if D == BF16 {
            return _mm512_loadu_ps(p.cast());
        }
        let bytes = if D == F32 { 64 } else { 32 };
        let (lower, upper) = (avx512::widen::<D>(p), avx512::widen::<D>(p.add(bytes)));
        std::mem::transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(upper, lower))
    }
}

/// Loads 16 consecutive elements, and converts the elements to bf16.
///
/// # Safety
/// The processor must support AVX512-BF16, and 16 elements must be readable at `p`.
#[inline(always)]
unsafe fn halves<const D: u8>(p: *const u8) -> __m256i {
    // SAFETY: the caller guarantees that the processor supports AVX512-BF16 and that the elements exist.
    unsafe {
        if D == BF16 {
            return _mm256_loadu_si256(p.cast());
        }
        std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(avx512::widen::<D>(p)))
    }
}

/// Returns eight 64-bit numbers. The first number is `first`, and each later number is larger by `step`.
///
/// # Safety
/// The processor must support AVX-512F.
#[inline(always)]
unsafe fn ramp(first: i64, step: i64) -> __m512i {
    // SAFETY: the caller guarantees that the processor supports AVX-512F.
    unsafe {
        let [a, b, c, d, e, f, g, h] = [0, 1, 2, 3, 4, 5, 6, 7].map(|i| first + step * i);
        _mm512_setr_epi64(a, b, c, d, e, f, g, h)
    }
}

/// Returns the permutation that interleaves the two halves of a vector of 32 16-bit lanes: lanes 0, 16, 1,
/// 17, 2, 18, and so on.
///
/// # Safety
/// The processor must support AVX-512F.
#[inline(always)]
unsafe fn interleaved() -> __m512i {
    // SAFETY: the caller guarantees that the processor supports AVX-512F.
    unsafe { ramp(0x0011_0001_0010_0000, 0x0002_0002_0002_0002) }
}

/// Returns the byte shuffle for `lookup`. Four consecutive 16-bit lanes receive the same two bytes: `b0 b1`
/// four times, then `b2 b3` four times, and so on.
///
/// # Safety
/// The processor must support AVX-512F.
#[inline(always)]
unsafe fn copies() -> __m512i {
    // SAFETY: the caller guarantees that the processor supports AVX-512F.
    unsafe { ramp(0x0100_0100_0100_0100, 0x0202_0202_0202_0202) }
}

/// Returns the byte shuffle for `lookup_by_columns`. The lower bytes of the 16-bit lanes receive
/// `b0 b1 b0 b1`, then `b2 b3 b2 b3`, and so on. The upper bytes are not used.
///
/// # Safety
/// The processor must support AVX-512F.
#[inline(always)]
unsafe fn twice() -> __m512i {
    // SAFETY: the caller guarantees that the processor supports AVX-512F.
    unsafe { ramp(0x0001_0000_0001_0000, 0x0002_0002_0002_0002) }
}

impl MicroKernel for Avx512Bf16 {
    type V = __m512;
    const LANES: usize = 16;
    const MR: usize = 14;
    const PAIR: usize = 2;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { Avx512::zero() }
    }

    #[inline(always)]
    unsafe fn splat(v: f32) -> __m512 {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { Avx512::splat(v) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { Avx512::load(p) }
    }

    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> __m512 {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { Avx512::load_first(p, n) }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m512) {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { Avx512::store(p, v) }
    }

    #[inline(always)]
    unsafe fn store_first(p: *mut f32, n: usize, v: __m512) {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { Avx512::store_first(p, n, v) }
    }

    #[inline(always)]
    unsafe fn step(acc: __m512, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller meets the trait's requirements. Both types have 64 bytes, and every bit pattern
        // is valid.
        unsafe {
            let a = std::mem::transmute::<__m512, __m512bh>(a);
            let b = std::mem::transmute::<__m512, __m512bh>(b);
            _mm512_dpbf16_ps(acc, a, b)
        }
    }

    #[inline(always)]
    unsafe fn mul_add(acc: __m512, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { Avx512::mul_add(acc, a, b) }
    }

    type Mask = __mmask16;

    #[inline(always)]
    unsafe fn mask(row: *const u32, vector: usize) -> __mmask16 {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { Avx512::mask(row, vector) }
    }

    #[inline(always)]
    unsafe fn apply_mask(v: __m512, mask: __mmask16) -> __m512 {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { Avx512::apply_mask(v, mask) }
    }

    #[inline(always)]
    unsafe fn words_by_rows<const D: u8>(p: *const u8, _: bool) -> __m512 {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { pairs_by_rows::<D>(p) }
    }

    #[inline(always)]
    unsafe fn words_by_columns<const D: u8>(p0: *const u8, p1: *const u8, _: bool) -> __m512 {
        // SAFETY: the caller meets the trait's requirements.
        unsafe {
            let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(halves::<D>(p0)), halves::<D>(p1));
            _mm512_castsi512_ps(_mm512_permutexvar_epi16(interleaved(), both))
        }
    }

    const PIECES: usize = 2;
    /// The 16 values of a 4-bit type as bf16, multiplied by each of two scales. Each half of the vector
    /// belongs to one scale.
    type Table = __m512i;

    #[inline(always)]
    unsafe fn table(code: &[f32; 16], [lower, upper]: [f32; 2], _: bool) -> __m512i {
        // SAFETY: the caller meets the trait's requirements.
        unsafe {
            let (lower, upper) = (avx512::scaled(code, lower), avx512::scaled(code, upper));
            std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(upper, lower))
        }
    }

    #[inline(always)]
    unsafe fn values(table: __m512i) -> [f32; 16] {
        // SAFETY: the caller meets the trait's requirements. Both types have 64 bytes, and every bit pattern
        // is valid.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(table));
            std::mem::transmute::<__m512i, [f32; 16]>(_mm512_slli_epi32::<16>(bits))
        }
    }

    #[inline(always)]
    unsafe fn lookup(table: __m512i, p: *const u8) -> __m512 {
        // SAFETY: the caller meets the trait's requirements. The load reads 16 bytes, which contain 32 codes.
        unsafe {
            let codes = _mm512_broadcast_i32x4(_mm_loadu_si128(p.cast()));
            // Every two bytes contain four codes. Each of four 16-bit lanes gets a copy of the two bytes. The
            // copy is shifted, so that the code for the lane is in the lowest bits.
            let copies = _mm512_shuffle_epi8(codes, copies());
            let codes = _mm512_srlv_epi16(copies, _mm512_set1_epi64(0x0008_000c_0000_0004));
            _mm512_castsi512_ps(_mm512_permutexvar_epi16(codes, table))
        }
    }

    #[inline(always)]
    unsafe fn lookup_by_columns(table: __m512i, p0: *const u8, p1: *const u8) -> __m512 {
        // SAFETY: the caller meets the trait's requirements. Each load reads 8 bytes, which contain 16 codes.
        unsafe {
            let [lower, upper] = [p0, p1].map(|p| _mm_loadl_epi64(p.cast()));
            let codes = _mm512_broadcast_i32x4(_mm_unpacklo_epi8(lower, upper));
            // Every two bytes contain two codes of the first row and two codes of the second row. Each of
            // four 16-bit lanes gets a copy of one byte. The copy is shifted, so that the code for the lane
            // is in the lowest bits.
            let copies = _mm512_shuffle_epi8(codes, twice());
            let codes = _mm512_srlv_epi16(copies, _mm512_set1_epi64(0x0000_0000_0004_0004));
            let second = _mm512_set1_epi32(16 << 16);
            // Computes `second | (codes & 15)`.
            let places = _mm512_ternarylogic_epi64::<0xf8>(second, codes, _mm512_set1_epi16(15));
            _mm512_castsi512_ps(_mm512_permutexvar_epi16(places, table))
        }
    }

    #[inline(always)]
    unsafe fn lookup_interleaved(table: __m512i, p: *const u8, v: usize) -> __m512 {
        // SAFETY: the caller meets the trait's requirements. The load reads 64 bytes, which contain 128
        // codes.
        unsafe {
            let codes = _mm512_loadu_si512(p.cast());
            // Vector `v` uses one of the four codes in every two bytes. `places` has an index in each byte,
            // and the lookup reads the lowest five bits of each 16-bit lane. The upper half of the vector
            // uses the values with the second scale, which begin at index 16.
            let codes = if v.is_multiple_of(2) { codes } else { _mm512_srli_epi16::<4>(codes) };
            let second = _mm512_inserti64x4::<1>(_mm512_setzero_si512(), _mm256_set1_epi8(16));
            // Computes `second | (codes & 15)`.
            let places = _mm512_ternarylogic_epi64::<0xf8>(second, codes, _mm512_set1_epi8(15));
            let places = if v < 2 { places } else { _mm512_srli_epi16::<8>(places) };
            _mm512_castsi512_ps(_mm512_permutexvar_epi16(places, table))
        }
    }

    #[inline(always)]
    fn interleaved(place: usize) -> usize {
        4 * (place % 32) + ((place / 32) ^ 1)
    }

    #[inline(always)]
    unsafe fn transpose(rows: &mut [__m512; 16]) {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { avx512::transpose(rows) }
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
        unsafe { avx512::sums(v) }
    }
}

kernel_table!("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16", Avx512Bf16);
