//! Vectors of f32 lanes. An operation is written once, and compiled for every [`Isa`].
//!
//! [`simd_fn!`] turns a body that is generic over [`Lanes`] into a function with an `Isa` argument. The
//! function runs the body under the `#[target_feature]` that matches the `Isa`. Every function that the body
//! calls is `#[inline(always)]`, so the intrinsics are inlined where the feature is enabled.
//!
//! [`Isa`]: crate::Isa

mod array;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

pub use array::Array8;
#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub use neon::Neon;

/// Number of lanes in the widest vector. Rows padded to a multiple of this number have no tail on any
/// [`Isa`](crate::Isa).
pub const WIDEST: usize = 16;

/// A vector register of f32.
///
/// Comparisons treat NaN like the x86 instructions: `a.max(b)` is `b` unless `a > b`. Values exist only
/// inside the bodies that [`simd_fn!`] runs, after [`simd_fn!`] has checked the machine.
pub trait Lanes: Copy {
    /// Number of lanes in a register.
    const COUNT: usize;

    fn splat(v: f32) -> Self;
    /// # Safety
    /// `from` must be valid for reading `COUNT` elements.
    unsafe fn load(from: *const f32) -> Self;
    /// # Safety
    /// `to` must be valid for writing `COUNT` elements.
    unsafe fn store(self, to: *mut f32);
    fn add(self, b: Self) -> Self;
    fn sub(self, b: Self) -> Self;
    fn mul(self, b: Self) -> Self;
    fn div(self, b: Self) -> Self;
    /// Returns `self` if `self > b`, and `b` otherwise.
    fn max(self, b: Self) -> Self;
    /// Returns `self` if `self < b`, and `b` otherwise.
    fn min(self, b: Self) -> Self;
    /// Returns `self * b + c`. Machines with a fused instruction round the result only once.
    fn mul_add(self, b: Self, c: Self) -> Self;
    fn sqrt(self) -> Self;
    /// Rounds to the nearest integer, with ties to even.
    fn round(self) -> Self;
    /// Returns `2^self` for integers from -126 to 127.
    fn pow2(self) -> Self;
    /// Returns `then` in lanes where `self < bound`, and `otherwise` in all other lanes.
    fn if_less(self, bound: Self, then: Self, otherwise: Self) -> Self;
    /// Returns the sum of the lanes, added in a fixed order.
    fn sum(self) -> f32;
    fn largest(self) -> f32;

    /// Reads `slice[at ..]`. Lanes past the end of the slice are zero.
    #[inline(always)]
    fn read(slice: &[f32], at: usize) -> Self {
        let rest = &slice[at..];
        if rest.len() >= Self::COUNT {
            // SAFETY: `rest` has at least `COUNT` elements.
            return unsafe { Self::load(rest.as_ptr()) };
        }
        let mut padded = [0.0; WIDEST];
        padded[..rest.len()].copy_from_slice(rest);
        // SAFETY: `padded` has `WIDEST` elements, and `COUNT` is at most `WIDEST`.
        unsafe { Self::load(padded.as_ptr()) }
    }

    /// Writes the lanes to `slice[at ..]`. Lanes past the end of the slice are not written.
    #[inline(always)]
    fn write(self, slice: &mut [f32], at: usize) {
        let rest = &mut slice[at..];
        if rest.len() >= Self::COUNT {
            // SAFETY: `rest` has at least `COUNT` elements.
            return unsafe { self.store(rest.as_mut_ptr()) };
        }
        let mut padded = [0.0; WIDEST];
        // SAFETY: `padded` has `WIDEST` elements, and `COUNT` is at most `WIDEST`.
        unsafe { self.store(padded.as_mut_ptr()) };
        rest.copy_from_slice(&padded[..rest.len()]);
    }
}

/// Declares a function `pub fn name(isa: Isa, ...)` that runs `body::<L>(...)` with the lanes of `isa`.
///
/// The function is safe for any `isa`. If the machine does not support `isa`, the function runs the portable
/// body.
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
                        // SAFETY: `is_supported` checked that the machine has these features.
                        return unsafe { avx512($($arg),*) };
                    }
                    crate::Isa::Avx2 if isa.is_supported() => {
                        // SAFETY: `is_supported` checked that the machine has these features.
                        return unsafe { avx2($($arg),*) };
                    }
                    _ => {}
                }
            }
            #[cfg(target_arch = "aarch64")]
            {
                #[target_feature(enable = "neon")]
                fn neon($($arg: $ty),*) $(-> $ret)? {
                    $body::<crate::simd::Neon>($($arg),*)
                }
                if matches!(isa, crate::Isa::NeonBf16 | crate::Isa::Neon) && isa.is_supported() {
                    // SAFETY: `is_supported` checked that the machine has this feature.
                    return unsafe { neon($($arg),*) };
                }
            }
            let _ = isa;
            $body::<crate::simd::Array8>($($arg),*)
        }
    };
}
pub(crate) use simd_fn;
