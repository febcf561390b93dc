//! Eight lanes in plain Rust. The compiler maps the lanes to the vectors of the target.

use super::Lanes;

/// Eight f32 lanes, aligned to their size.
#[derive(Clone, Copy)]
#[repr(align(32))]
pub struct Array8([f32; 8]);

impl Array8 {
    #[inline(always)]
    fn map(self, f: impl Fn(f32) -> f32) -> Self {
        Self(self.0.map(f))
    }

    #[inline(always)]
    fn zip(self, b: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        let mut out = self.0;
        for i in 0..8 {
            out[i] = f(out[i], b.0[i]);
        }
        Self(out)
    }

    #[inline(always)]
    fn fold(self, f: impl Fn(f32, f32) -> f32) -> f32 {
        let [a, b, c, d, e, g, h, i] = self.0;
        f(f(f(a, e), f(c, h)), f(f(b, g), f(d, i)))
    }
}

impl Lanes for Array8 {
    const COUNT: usize = 8;

    #[inline(always)]
    fn splat(v: f32) -> Self {
        Self([v; 8])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller guarantees that eight elements are readable. An array of f32 has the alignment
        // of an f32.
        Self(unsafe { *from.cast() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller guarantees that eight elements are writable. An array of f32 has the alignment
        // of an f32.
        unsafe { *to.cast() = self.0 }
    }
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        self.zip(b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        self.zip(b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        self.zip(b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, b: Self) -> Self {
        self.zip(b, |a, b| a / b)
    }
    #[inline(always)]
    fn max(self, b: Self) -> Self {
        self.zip(b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, b: Self) -> Self {
        self.zip(b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        // `f32::mul_add` is not used here, because `f32::mul_add` is a library call on targets without the
        // instruction.
        self.mul(b).add(c)
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        self.map(f32::sqrt)
    }
    #[inline(always)]
    fn round(self) -> Self {
        // Adding 1.5 · 2^23 removes all bits below one. The result is exact for |x| < 2^22, which covers the
        // arguments of `exp`.
        self.map(|x| (x + 12_582_912.0) - 12_582_912.0)
    }
    #[inline(always)]
    fn pow2(self) -> Self {
        self.map(|x| f32::from_bits((((x + 12_582_912.0).to_bits() as i32).wrapping_add(127) as u32) << 23))
    }
    #[inline(always)]
    fn if_less(self, bound: Self, then: Self, otherwise: Self) -> Self {
        let mut out = otherwise.0;
        for i in 0..8 {
            out[i] = if self.0[i] < bound.0[i] { then.0[i] } else { out[i] };
        }
        Self(out)
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        self.fold(|a, b| a + b)
    }
    #[inline(always)]
    fn largest(self) -> f32 {
        self.fold(f32::max)
    }
}
