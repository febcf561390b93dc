//! The AdamW update and the gradient norm.

use crate::AdamW;
use crate::simd::{Lanes, simd_fn};

/// Computes one AdamW step, as `torch.optim.AdamW` does: first the decoupled decay, then the bias-corrected
/// update.
///
/// With `g = grad_scale · grads` and `t = step`: `p *= 1 - lr · weight_decay`, `m = β₁ m + (1 - β₁) g`,
/// `v = β₂ v + (1 - β₂) g²`, `p -= lr / (1 - β₁ᵗ) · m / (sqrt(v / (1 - β₂ᵗ)) + eps)`.
///
/// Source: Loshchilov and Hutter, 2019, algorithm 2, <https://arxiv.org/abs/1711.05101>.
///
/// # Panics
/// If the lengths differ.
pub fn step(params: &mut [f32], grads: &[f32], m: &mut [f32], v: &mut [f32], step: AdamW) {
    let len = params.len();
    assert_eq!((grads.len(), m.len(), v.len()), (len, len, len));
    let (learning_rate, eps) = (step.learning_rate as f64, step.eps as f64);
    let (beta1, beta2) = (step.beta1 as f64, step.beta2 as f64);
    let correction1 = 1.0 - beta1.powi(step.step as i32);
    let correction2 = 1.0 - beta2.powi(step.step as i32);
    for i in 0..len {
        let g = step.grad_scale as f64 * grads[i] as f64;
        m[i] = (beta1 * m[i] as f64 + (1.0 - beta1) * g) as f32;
        v[i] = (beta2 * v[i] as f64 + (1.0 - beta2) * g * g) as f32;
        let root = (v[i] as f64 / correction2).sqrt() + eps;
        let decayed = params[i] as f64 * (1.0 - learning_rate * step.weight_decay as f64);
        params[i] = (decayed - learning_rate / correction1 * m[i] as f64 / root) as f32;
    }
}

/// Returns the sum of the squares, computed in f64.
pub fn sum_of_squares(x: &[f32]) -> f64 {
    x.iter().map(|&x| x as f64 * x as f64).sum()
}

simd_fn! {
    /// Computes [`step`] in f32, for any range of the parameters.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn step_range(params: &mut [f32], grads: &[f32], m: &mut [f32], v: &mut [f32], step: AdamW) = step_lanes
}

#[inline(always)]
fn step_lanes<L: Lanes>(params: &mut [f32], grads: &[f32], m: &mut [f32], v: &mut [f32], step: AdamW) {
    let len = params.len();
    assert_eq!((grads.len(), m.len(), v.len()), (len, len, len));
    // These factors are computed in f64, because rounding `β₂ᵗ` to f32 would give `1 - β₂ᵗ` a relative error
    // of 1e-5.
    let wide = |x: f32| x as f64;
    let factor = |x: f64| L::splat(x as f32);
    let (beta1, beta2) = (wide(step.beta1), wide(step.beta2));
    let correction1 = 1.0 - beta1.powi(step.step as i32);
    let correction2 = 1.0 - beta2.powi(step.step as i32);
    let decay = factor(1.0 - wide(step.learning_rate) * wide(step.weight_decay));
    let rate = factor(-wide(step.learning_rate) / correction1);
    let (keep1, take1) = (L::splat(step.beta1), factor(1.0 - beta1));
    let (keep2, take2) = (L::splat(step.beta2), factor(1.0 - beta2));
    let (root_scale, eps) = (factor(1.0 / correction2.sqrt()), L::splat(step.eps));
    let (scale, mut at) = (L::splat(step.grad_scale), 0);
    while at < len {
        let g = L::read(grads, at).mul(scale);
        let first = keep1.mul_add(L::read(m, at), take1.mul(g));
        let second = keep2.mul_add(L::read(v, at), take2.mul(g).mul(g));
        first.write(m, at);
        second.write(v, at);
        let root = second.sqrt().mul_add(root_scale, eps);
        let update = first.div(root);
        L::read(params, at).mul(decay).add(update.mul(rate)).write(params, at);
        at += L::COUNT;
    }
}

simd_fn! {
    /// Computes [`sum_of_squares`] of one chunk, in f64. The order of additions depends only on the length.
    pub fn sum_of_squares_chunk(x: &[f32]) -> f64 = sum_of_squares_lanes
}

/// `L` only selects the instruction set. The sums are f64, because the square of a gradient can overflow f32.
#[inline(always)]
fn sum_of_squares_lanes<L: Lanes>(x: &[f32]) -> f64 {
    let mut sums = [0.0f64; 32];
    let (chunks, tail) = x.as_chunks::<32>();
    for chunk in chunks {
        for (sum, &x) in sums.iter_mut().zip(chunk) {
            *sum += x as f64 * x as f64;
        }
    }
    sums.iter().sum::<f64>() + sum_of_squares(tail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::finite_difference::{assert_close, random};
    use crate::rng::Stream;

    const STEP: AdamW = AdamW {
        learning_rate: 0.1,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.5,
        step: 1,
        grad_scale: 0.5,
    };

    #[test]
    fn the_first_step_moves_by_the_learning_rate_against_the_sign() {
        let (mut params, mut m, mut v) = ([1.0, -2.0, 3.0], [0.0; 3], [0.0; 3]);
        step(&mut params, &[4.0, -0.02, 0.0], &mut m, &mut v, STEP);
        // Decay removes 5 % of each parameter. At the first step, `m / sqrt(v)` after bias correction is the
        // sign of the gradient.
        assert_close(&params, &[0.95 - 0.1, -1.9 + 0.1, 2.85], 1e-6);
        assert_close(&m, &[0.2, -0.001, 0.0], 1e-6);
        assert_close(&v, &[0.004, 1e-7, 0.0], 1e-6);
    }

    #[test]
    fn a_constant_gradient_keeps_moving_at_the_learning_rate() {
        let (mut params, mut m, mut v) = ([0.0], [0.0], [0.0]);
        for t in 1..=50 {
            let settings = AdamW { step: t, weight_decay: 0.0, ..STEP };
            step(&mut params, &[3.0], &mut m, &mut v, settings);
        }
        assert_close(&params, &[-5.0], 1e-4);
    }

    #[test]
    fn squares_are_summed_wide() {
        assert_eq!(sum_of_squares(&[3.0, 4.0]), 25.0);
        assert_eq!(sum_of_squares(&[4096.0, 1e-3]), 16_777_216.0 + 1e-3f32 as f64 * 1e-3f32 as f64);
    }

    #[test]
    fn every_isa_matches_the_reference_for_every_tail_and_split() {
        let mut stream = Stream::new(25);
        for (isa, len) in Isa::supported().flat_map(|isa| (2..70).map(move |len| (isa, len))) {
            let (params, m) = (random(&mut stream, len), random(&mut stream, len));
            let v: Vec<f32> = random(&mut stream, len).iter().map(|v| v * v).collect();
            let (mut expected, mut found) = ((params.clone(), m.clone(), v.clone()), (params, m, v));
            for t in 1..4 {
                let (grads, settings) = (random(&mut stream, len), AdamW { step: t, ..STEP });
                let (p, m, v) = (&mut expected.0, &mut expected.1, &mut expected.2);
                step(p, &grads, m, v, settings);
                let ((p, m, v), half) = ((&mut found.0, &mut found.1, &mut found.2), len / 2);
                step_range(isa, &mut p[..half], &grads[..half], &mut m[..half], &mut v[..half], settings);
                step_range(isa, &mut p[half..], &grads[half..], &mut m[half..], &mut v[half..], settings);
            }
            // At early steps, the bias correction divides by the small number `1 - β₂ᵗ`, which magnifies
            // rounding errors.
            assert_close(&found.0, &expected.0, 1e-4);
            assert_close(&found.1, &expected.1, 1e-6);
            assert_close(&found.2, &expected.2, 1e-6);
        }
    }

    #[test]
    fn chunked_squares_match_the_reference() {
        let mut stream = Stream::new(26);
        for isa in Isa::supported() {
            for len in [0, 1, 31, 32, 33, 1000, 1 << 14] {
                let x = random(&mut stream, len);
                let (found, expected) = (sum_of_squares_chunk(isa, &x), sum_of_squares(&x));
                assert!((found - expected).abs() <= 1e-12 * expected, "{isa} {len}: {found}, {expected}");
            }
        }
        assert_eq!(sum_of_squares_chunk(Isa::detect(), &[1e30]), 1e30f32 as f64 * 1e30f32 as f64);
    }
}
