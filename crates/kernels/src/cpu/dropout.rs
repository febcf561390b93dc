//! Dropout factors, drawn many at a time: 0 where an element is dropped, `1 / (1 - p)` where it is kept.

use crate::simd::{Lanes, simd_fn};
use crate::{Dropout, Isa, rng};

/// `out[i]` = the factor of element `first + i`, the same decision as [`rng::keep`].
pub(crate) fn factors(isa: Isa, out: &mut [f32], dropout: Dropout, first: u64) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the back end checked that this machine runs `isa`.
        Isa::Avx512Bf16 | Isa::Avx512 => unsafe { factors_avx512(out, dropout, first) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { factors_avx2(out, dropout, first) },
        _ => factors_any(out, dropout, first),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq")]
fn factors_avx512(out: &mut [f32], dropout: Dropout, first: u64) {
    factors_any(out, dropout, first);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn factors_avx2(out: &mut [f32], dropout: Dropout, first: u64) {
    factors_any(out, dropout, first);
}

#[inline(always)]
fn factors_any(out: &mut [f32], Dropout { probability, key }: Dropout, first: u64) {
    let scale = 1.0 / (1.0 - probability);
    // `uniform(..) >= p` on 24 bits is `bits >= ceil(p · 2^24) · 2^40`: no conversion for each element.
    let threshold = ((probability as f64 * (1u64 << 24) as f64).ceil() as u64) << 40;
    for (i, out) in out.iter_mut().enumerate() {
        *out = if rng::bits(key, first.wrapping_add(i as u64)) >= threshold { scale } else { 0.0 };
    }
}

simd_fn! {
    /// `x *= factors`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn scale_by(x: &mut [f32], factors: &[f32]) = scale_lanes
}

#[inline(always)]
fn scale_lanes<L: Lanes>(x: &mut [f32], factors: &[f32]) {
    assert_eq!(x.len(), factors.len());
    for at in (0..x.len()).step_by(L::COUNT) {
        L::read(x, at).mul(L::read(factors, at)).write(x, at);
    }
}

simd_fn! {
    /// `out = x · factors`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn scaled(out: &mut [f32], x: &[f32], factors: &[f32]) = scaled_lanes
}

#[inline(always)]
fn scaled_lanes<L: Lanes>(out: &mut [f32], x: &[f32], factors: &[f32]) {
    assert!(out.len() == x.len() && x.len() == factors.len());
    for at in (0..x.len()).step_by(L::COUNT) {
        L::read(x, at).mul(L::read(factors, at)).write(out, at);
    }
}

simd_fn! {
    /// `out += x · factors`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn add_scaled(out: &mut [f32], x: &[f32], factors: &[f32]) = add_scaled_lanes
}

#[inline(always)]
fn add_scaled_lanes<L: Lanes>(out: &mut [f32], x: &[f32], factors: &[f32]) {
    assert!(out.len() == x.len() && x.len() == factors.len());
    for at in (0..x.len()).step_by(L::COUNT) {
        L::read(out, at).add(L::read(x, at).mul(L::read(factors, at))).write(out, at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_with_factors_have_tails() {
        let numbers = |n: usize, by: f32| (0..n).map(|i| (i as f32 - 7.0) * by).collect::<Vec<_>>();
        for isa in Isa::supported() {
            for n in [0, 1, 15, 16, 17, 100] {
                let (x, f, old) = (numbers(n, 0.5), numbers(n, 2.0), numbers(n, 3.0));
                let product: Vec<f32> = x.iter().zip(&f).map(|(x, f)| x * f).collect();
                let (mut out, mut sum, mut place) = (vec![1.0; n], old.clone(), x.clone());
                scaled(isa, &mut out, &x, &f);
                scale_by(isa, &mut place, &f);
                add_scaled(isa, &mut sum, &x, &f);
                assert_eq!((&out, &place), (&product, &product), "{isa} {n}");
                assert_eq!(
                    sum,
                    old.iter().zip(&product).map(|(o, p)| o + p).collect::<Vec<_>>(),
                    "{isa} {n}"
                );
            }
        }
    }

    #[test]
    fn factors_decide_as_keep_does() {
        for isa in Isa::supported() {
            for probability in [0.0, 0.05, 0.1, 0.5, 0.999, f32::MIN_POSITIVE] {
                let dropout = Dropout { probability, key: 99 };
                let mut out = vec![0.0; 1003];
                factors(isa, &mut out, dropout, 12_345);
                for (i, &factor) in out.iter().enumerate() {
                    let keep = rng::keep(99, 12_345 + i as u64, probability);
                    assert_eq!(factor, if keep { 1.0 / (1.0 - probability) } else { 0.0 }, "{isa} {i}");
                }
            }
        }
    }
}
