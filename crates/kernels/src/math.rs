//! Scalar and slice arithmetic that several operations share.

use crate::simd::{Lanes, simd_fn};

/// Returns `sum(a · b)` in f64. Eight independent accumulators let the processor overlap additions.
///
/// # Panics
/// If the lengths differ.
pub fn dot_f64(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let mut sums = [0.0f64; 8];
    let (a_chunks, a_tail) = a.as_chunks::<8>();
    let (b_chunks, b_tail) = b.as_chunks::<8>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for i in 0..8 {
            sums[i] += a[i] as f64 * b[i] as f64;
        }
    }
    let tail: f64 = a_tail.iter().zip(b_tail).map(|(&a, &b)| a as f64 * b as f64).sum();
    sums.iter().sum::<f64>() + tail
}

/// Returns the logistic function `1 / (1 + e^-x)`, in f64.
pub fn sigmoid_f64(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Returns `e^x` with a relative error of at most 1e-6 for `x` from -87.3 to 88.3. A smaller `x` gives 0, a
/// larger `x` gives infinity, and NaN gives NaN.
///
/// The computation splits `x = n ln 2 + r` with `|r| <= ln 2 / 2`. `n ln 2` is subtracted in two parts (Cody
/// and Waite), so that `r` keeps its low bits. `e^r` is a Taylor polynomial of degree 7, whose remainder is
/// at most 5e-9.
#[inline(always)]
pub fn exp<L: Lanes>(x: L) -> L {
    let (low, high) = (L::splat(-87.3), L::splat(88.3));
    // `min` and `max` return their second operand if either is NaN, so NaN stays NaN.
    let clamped = low.max(high.min(x));
    let n = clamped.mul(L::splat(std::f32::consts::LOG2_E)).round();
    let r = n.mul_add(L::splat(-355.0 / 512.0), clamped);
    let r = n.mul_add(L::splat(2.121_944_4e-4), r);
    let mut p = L::splat(1.0 / 5040.0);
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p.mul_add(r, L::splat(coefficient));
    }
    let e = p.mul(n.pow2());
    let e = x.if_less(low, L::splat(0.0), e);
    high.if_less(x, L::splat(f32::INFINITY), e)
}

/// Returns the logistic function of every lane.
#[inline(always)]
pub fn sigmoid<L: Lanes>(x: L) -> L {
    let one = L::splat(1.0);
    one.div(one.add(exp(L::splat(0.0).sub(x))))
}

/// Returns the hyperbolic tangent of every lane, with an absolute error of up to 3e-7.
#[inline(always)]
pub fn tanh<L: Lanes>(x: L) -> L {
    let one = L::splat(1.0);
    one.sub(L::splat(2.0).div(exp(x.add(x)).add(one)))
}

/// Returns `sum(a · b)` of two slices of the same length. Four independent accumulators let the processor
/// overlap multiply-adds.
#[inline(always)]
pub fn dot_lanes<L: Lanes>(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let zero = L::splat(0.0);
    let (mut sums, mut at) = ([zero; 4], 0);
    while at + 4 * L::COUNT <= a.len() {
        for (u, sum) in sums.iter_mut().enumerate() {
            let at = at + u * L::COUNT;
            *sum = L::read(a, at).mul_add(L::read(b, at), *sum);
        }
        at += 4 * L::COUNT;
    }
    while at < a.len() {
        sums[0] = L::read(a, at).mul_add(L::read(b, at), sums[0]);
        at += L::COUNT;
    }
    sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum()
}

simd_fn! {
    /// Returns `sum(a · b)` in f32. The order of additions depends only on `isa` and the length.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn dot(a: &[f32], b: &[f32]) -> f32 = dot_lanes
}

simd_fn! {
    /// Computes `out += factor · inp`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn axpy(out: &mut [f32], factor: f32, inp: &[f32]) = axpy_lanes
}

#[inline(always)]
fn axpy_lanes<L: Lanes>(out: &mut [f32], factor: f32, inp: &[f32]) {
    assert_eq!(out.len(), inp.len());
    let (factor, mut at) = (L::splat(factor), 0);
    while at < out.len() {
        L::read(inp, at).mul_add(factor, L::read(out, at)).write(out, at);
        at += L::COUNT;
    }
}

simd_fn! {
    /// Computes `out = e^out` with a relative error of 1e-6. The result is 0 below -87.3, and infinity above
    /// 88.3.
    pub fn exp_slice(out: &mut [f32]) = exp_slice_lanes
}

#[inline(always)]
fn exp_slice_lanes<L: Lanes>(out: &mut [f32]) {
    let mut at = 0;
    while at < out.len() {
        exp(L::read(out, at)).write(out, at);
        at += L::COUNT;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::finite_difference::{assert_close, random};
    use crate::rng::Stream;

    #[test]
    fn wide_dot_covers_its_tail() {
        for len in 0..40 {
            let a: Vec<f32> = (0..len).map(|i| i as f32).collect();
            let expected: f64 = (0..len).map(|i| (i * i) as f64).sum();
            assert_eq!(dot_f64(&a, &a), expected);
        }
    }

    #[test]
    fn dot_and_axpy_match_f64_for_every_tail() {
        let mut stream = Stream::new(20);
        for isa in Isa::supported() {
            for len in (0..150).chain([1000]) {
                let (a, b) = (random(&mut stream, len), random(&mut stream, len));
                assert_close(&[dot(isa, &a, &b)], &[dot_f64(&a, &b) as f32], 1e-5);
                let mut out = a.clone();
                axpy(isa, &mut out, 0.3, &b);
                let expected: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + 0.3 * b).collect();
                assert_close(&out, &expected, 1e-6);
            }
        }
    }

    #[test]
    fn exp_is_within_1e_6_over_its_range() {
        for isa in Isa::supported() {
            let inp: Vec<f32> = (0..=1_000_000).map(|i| -87.3 + 175.6 * (i as f32 / 1e6)).collect();
            let mut out = inp.clone();
            exp_slice(isa, &mut out);
            for (&x, &e) in inp.iter().zip(&out) {
                let expected = (x as f64).exp();
                assert!((e as f64 / expected - 1.0).abs() <= 1e-6, "{isa}: exp({x}) = {e}");
            }
        }
    }

    #[test]
    fn exp_ends_in_zero_infinity_and_nan() {
        for isa in Isa::supported() {
            let mut out = [f32::NEG_INFINITY, -1e30, -88.0, 0.0, -0.0, 89.0, f32::INFINITY, f32::NAN];
            exp_slice(isa, &mut out);
            assert_eq!(out[..7], [0.0, 0.0, 0.0, 1.0, 1.0, f32::INFINITY, f32::INFINITY], "{isa}");
            assert!(out[7].is_nan(), "{isa}");
        }
    }
}
