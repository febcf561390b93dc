//! One vector of f32 lanes: an operation is written once and compiled for every [`Isa`].
//!
//! [`simd_fn!`] turns a body generic over [`Lanes`] into a function that takes an `Isa` and runs the body
//! under the matching `#[target_feature]`. Every function in between is `#[inline(always)]`, so the
//! intrinsics are inlined where the feature is enabled.
//!
//! [`Isa`]: crate::Isa

mod array;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

pub use array::Array8;
#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;

/// Lanes of the widest vector. Rows padded to this length have no tails on any [`Isa`](crate::Isa).
pub const WIDEST: usize = 16;

/// A vector register of f32.
///
/// Comparisons follow the x86 instructions for NaN: `a.max(b)` is `b` unless `a > b`. Values exist only
/// inside bodies run by [`simd_fn!`], which has checked the machine.
pub trait Lanes: Copy {
    /// Lanes in a register.
    const COUNT: usize;

    fn splat(v: f32) -> Self;
    /// # Safety
    /// `from` is valid for reading `COUNT` elements.
    unsafe fn load(from: *const f32) -> Self;
    /// # Safety
    /// `to` is valid for writing `COUNT` elements.
    unsafe fn store(self, to: *mut f32);
    fn add(self, b: Self) -> Self;
    fn sub(self, b: Self) -> Self;
    fn mul(self, b: Self) -> Self;
    fn div(self, b: Self) -> Self;
    /// Returns `self` if `self > b`, else `b`.
    fn max(self, b: Self) -> Self;
    /// Returns `self` if `self < b`, else `b`.
    fn min(self, b: Self) -> Self;
    /// Returns `self * b + c`, rounded once on machines with a fused instruction.
    fn mul_add(self, b: Self, c: Self) -> Self;
    fn sqrt(self) -> Self;
    /// Rounds to the nearest integer, ties to even.
    fn round(self) -> Self;
    /// Returns `2^self` for integers from -126 to 127.
    fn pow2(self) -> Self;
    /// Returns `then` in lanes with `self < bound`, else `otherwise`.
    fn if_less(self, bound: Self, then: Self, otherwise: Self) -> Self;
    /// Returns the sum of the lanes, added in a fixed order.
    fn sum(self) -> f32;
    fn largest(self) -> f32;

    /// Reads `slice[at ..]`, with zero beyond its end.
    #[inline(always)]
    fn read(slice: &[f32], at: usize) -> Self {
        let rest = &slice[at..];
        if rest.len() >= Self::COUNT {
            // SAFETY: `rest` has COUNT elements.
            return unsafe { Self::load(rest.as_ptr()) };
        }
        let mut padded = [0.0; WIDEST];
        padded[..rest.len()].copy_from_slice(rest);
        // SAFETY: COUNT is at most WIDEST.
        unsafe { Self::load(padded.as_ptr()) }
    }

    /// Writes the lanes that fit to `slice[at ..]`.
    #[inline(always)]
    fn write(self, slice: &mut [f32], at: usize) {
        let rest = &mut slice[at..];
        if rest.len() >= Self::COUNT {
            // SAFETY: `rest` has COUNT elements.
            return unsafe { self.store(rest.as_mut_ptr()) };
        }
        let mut padded = [0.0; WIDEST];
        // SAFETY: COUNT is at most WIDEST.
        unsafe { self.store(padded.as_mut_ptr()) };
        rest.copy_from_slice(&padded[..rest.len()]);
    }
}

/// Declares `pub fn name(isa: Isa, ...)` that runs `body::<L>(...)` with the lanes of `isa`.
///
/// The function is safe for any `isa`: if the machine lacks it, the portable body runs.
macro_rules! simd_fn {
    ($(#[$attr:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident) => {
        $(#[$attr])*
        #[allow(clippy::too_many_arguments, reason = "the instruction set comes before the body's own arguments")]
        $vis fn $name(isa: crate::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    $body::<crate::simd::Avx512>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    $body::<crate::simd::Avx2>($($arg),*)
                }
                match isa {
                    crate::Isa::Amx | crate::Isa::Avx512Bf16 | crate::Isa::Avx512 if isa.is_supported() => {
                        // SAFETY: the machine has these features.
                        return unsafe { avx512($($arg),*) };
                    }
                    crate::Isa::Avx2 if isa.is_supported() => {
                        // SAFETY: the machine has these features.
                        return unsafe { avx2($($arg),*) };
                    }
                    _ => {}
                }
            }
            let _ = isa;
            $body::<crate::simd::Array8>($($arg),*)
        }
    };
}
pub(crate) use simd_fn;
