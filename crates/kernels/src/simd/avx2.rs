//! Eight lanes of AVX2 with FMA.

use std::arch::x86_64::*;

use super::Lanes;

/// One `ymm` register of f32.
#[derive(Clone, Copy)]
pub struct Avx2(__m256);

macro_rules! lanewise {
    ($($name:ident($($arg:ident),*) = $intrinsic:ident;)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: Self),*) -> Self {
            // SAFETY: values of this type exist only if `simd_fn!` detected the feature.
            Self(unsafe { $intrinsic(self.0, $($arg.0),*) })
        }
    )*};
}

impl Lanes for Avx2 {
    const COUNT: usize = 8;

    lanewise! {
        add(b) = _mm256_add_ps;
        sub(b) = _mm256_sub_ps;
        mul(b) = _mm256_mul_ps;
        div(b) = _mm256_div_ps;
        max(b) = _mm256_max_ps;
        min(b) = _mm256_min_ps;
        mul_add(b, c) = _mm256_fmadd_ps;
        sqrt() = _mm256_sqrt_ps;
    }

    #[inline(always)]
    fn splat(v: f32) -> Self {
        // SAFETY: the function is called only if `simd_fn!` detected the feature.
        Self(unsafe { _mm256_set1_ps(v) })
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller guarantees that eight elements are readable. The load needs no alignment.
        Self(unsafe { _mm256_loadu_ps(from) })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller guarantees that eight elements are writable. The store needs no alignment.
        unsafe { _mm256_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    fn round(self) -> Self {
        // SAFETY: values of this type exist only if `simd_fn!` detected the feature.
        Self(unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0) })
    }
    #[inline(always)]
    fn pow2(self) -> Self {
        // SAFETY: values of this type exist only if `simd_fn!` detected the feature.
        Self(unsafe {
            let biased = _mm256_add_epi32(_mm256_cvtps_epi32(self.0), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
        })
    }
    #[inline(always)]
    fn if_less(self, bound: Self, then: Self, otherwise: Self) -> Self {
        // SAFETY: values of this type exist only if `simd_fn!` detected the feature.
        Self(unsafe {
            let less = _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, bound.0);
            _mm256_blendv_ps(otherwise.0, then.0, less)
        })
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: values of this type exist only if `simd_fn!` detected the feature.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    fn largest(self) -> f32 {
        // SAFETY: values of this type exist only if `simd_fn!` detected the feature.
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }
}
