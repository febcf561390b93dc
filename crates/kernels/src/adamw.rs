//! The optimizer's update and the norm that clips it.

use crate::AdamW;

/// One AdamW step over `params`, its gradients and both moments: decoupled decay first, then the
/// bias-corrected update, as `torch.optim.AdamW`.
///
/// With `g = grad_scale · grads` and `t = step`:
/// `p *= 1 - lr · weight_decay`, `m = β₁ m + (1 - β₁) g`, `v = β₂ v + (1 - β₂) g²`,
/// `p -= lr / (1 - β₁ᵗ) · m / (sqrt(v / (1 - β₂ᵗ)) + eps)`.
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

/// Sum of squares, in f64.
pub fn sum_of_squares(x: &[f32]) -> f64 {
    x.iter().map(|&x| x as f64 * x as f64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finite_difference::assert_close;

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
        // Decay takes 5 %; with zero moments m / sqrt(v) is the gradient's sign once corrected.
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
}
