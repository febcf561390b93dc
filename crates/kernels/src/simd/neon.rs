//! Eight lanes of NEON, in two registers.

use std::arch::aarch64::*;

use super::Lanes;

/// Two 128-bit registers of f32. The first register has lanes 0 to 3.
#[derive(Clone, Copy)]
pub struct Neon(float32x4_t, float32x4_t);

macro_rules! lanewise {
    ($($name:ident($($arg:ident),*) = $intrinsic:ident;)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: Self),*) -> Self {
            // SAFETY: values of this type exist only if `simd_fn!` detected the feature.
            unsafe { Self($intrinsic(self.0, $($arg.0),*), $intrinsic(self.1, $($arg.1),*)) }
        }
    )*};
}

/// Returns `a` in lanes where `a > b`, and `b` in all other lanes.
///
/// # Safety
/// The processor must support NEON.
#[inline(always)]
unsafe fn larger(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: the caller guarantees that the processor supports NEON.
    unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }
}

/// Returns `a` in lanes where `a < b`, and `b` in all other lanes.
///
/// # Safety
/// The processor must support NEON.
#[inline(always)]
unsafe fn smaller(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: the caller guarantees that the processor supports NEON.
    unsafe { vbslq_f32(vcltq_f32(a, b), a, b) }
}

/// Returns `2^v` for integers from -126 to 127.
///
/// # Safety
/// The processor must support NEON.
#[inline(always)]
unsafe fn power_of_two(v: float32x4_t) -> float32x4_t {
    // SAFETY: the caller guarantees that the processor supports NEON.
    unsafe {
        let biased = vaddq_s32(vcvtq_s32_f32(v), vdupq_n_s32(127));
        vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased))
    }
}

impl Lanes for Neon {
    const COUNT: usize = 8;

    lanewise! {
        add(b) = vaddq_f32;
        sub(b) = vsubq_f32;
        mul(b) = vmulq_f32;
        div(b) = vdivq_f32;
        max(b) = larger;
        min(b) = smaller;
        sqrt() = vsqrtq_f32;
        round() = vrndnq_f32;
        pow2() = power_of_two;
    }

    #[inline(always)]
    fn splat(v: f32) -> Self {
        // SAFETY: the function is called only if `simd_fn!` detected the feature.
        unsafe { Self(vdupq_n_f32(v), vdupq_n_f32(v)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller guarantees that eight elements are readable. The load needs no alignment.
        unsafe { Self(vld1q_f32(from), vld1q_f32(from.add(4))) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller guarantees that eight elements are writable. The store needs no alignment.
        unsafe {
            vst1q_f32(to, self.0);
            vst1q_f32(to.add(4), self.1);
        }
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: values of this type exist only if `simd_fn!` detected the feature.
        unsafe { Self(vfmaq_f32(c.0, self.0, b.0), vfmaq_f32(c.1, self.1, b.1)) }
    }
    #[inline(always)]
    fn if_less(self, bound: Self, then: Self, otherwise: Self) -> Self {
        // SAFETY: values of this type exist only if `simd_fn!` detected the feature.
        unsafe {
            Self(
                vbslq_f32(vcltq_f32(self.0, bound.0), then.0, otherwise.0),
                vbslq_f32(vcltq_f32(self.1, bound.1), then.1, otherwise.1),
            )
        }
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: values of this type exist only if `simd_fn!` detected the feature.
        unsafe { vaddvq_f32(vaddq_f32(self.0, self.1)) }
    }
    #[inline(always)]
    fn largest(self) -> f32 {
        // SAFETY: values of this type exist only if `simd_fn!` detected the feature.
        unsafe { vmaxnmvq_f32(larger(self.0, self.1)) }
    }
}
