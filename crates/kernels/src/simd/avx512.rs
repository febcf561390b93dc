//! Sixteen lanes of AVX-512.

use std::arch::x86_64::*;

use super::Lanes;

/// One `zmm` register of f32.
#[derive(Clone, Copy)]
pub struct Avx512(__m512);

macro_rules! lanewise {
    ($($name:ident($($arg:ident),*) = $intrinsic:ident;)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: Self),*) -> Self {
            // SAFETY: values of this type exist only if `simd_fn!` detected the feature.
            Self(unsafe { $intrinsic(self.0, $($arg.0),*) })
        }
    )*};
}

impl Lanes for Avx512 {
    const COUNT: usize = 16;

    lanewise! {
        add(b) = _mm512_add_ps;
        sub(b) = _mm512_sub_ps;
        mul(b) = _mm512_mul_ps;
        div(b) = _mm512_div_ps;
        max(b) = _mm512_max_ps;
        min(b) = _mm512_min_ps;
        mul_add(b, c) = _mm512_fmadd_ps;
        sqrt() = _mm512_sqrt_ps;
    }

    #[inline(always)]
    fn splat(v: f32) -> Self {
        // SAFETY: the function is called only if `simd_fn!` detected the feature.
        Self(unsafe { _mm512_set1_ps(v) })
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller guarantees that sixteen elements are readable. The load needs no alignment.
        Self(unsafe { _mm512_loadu_ps(from) })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller guarantees that sixteen elements are writable. The store needs no alignment.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    fn round(self) -> Self {
        // SAFETY: values of this type exist only if `simd_fn!` detected the feature.
        Self(unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0) })
    }
    #[inline(always)]
    fn pow2(self) -> Self {
        // SAFETY: values of this type exist only if `simd_fn!` detected the feature.
        Self(unsafe {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(self.0), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        })
    }
    #[inline(always)]
    fn if_less(self, bound: Self, then: Self, otherwise: Self) -> Self {
        // SAFETY: values of this type exist only if `simd_fn!` detected the feature.
        Self(unsafe {
            let less = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, bound.0);
            _mm512_mask_blend_ps(less, otherwise.0, then.0)
        })
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: values of this type exist only if `simd_fn!` detected the feature.
        unsafe { _mm512_reduce_add_ps(self.0) }
    }
    #[inline(always)]
    fn largest(self) -> f32 {
        // SAFETY: values of this type exist only if `simd_fn!` detected the feature.
        unsafe { _mm512_reduce_max_ps(self.0) }
    }
}
