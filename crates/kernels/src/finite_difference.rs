//! Compares a gradient with central differences of its function.

use crate::rng::Stream;

/// Returns `len` values, uniform in `[-1, 1)`.
pub fn random(stream: &mut Stream, len: usize) -> Vec<f32> {
    (0..len).map(|_| stream.next_uniform() * 2.0 - 1.0).collect()
}

/// Returns `sum(a · b)` in f64. This is a scalar loss whose gradient with respect to `a` is `b`.
pub fn inner(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| a as f64 * b as f64).sum()
}

/// Asserts that `gradient` is the gradient of `loss` at the point `at`, element by element.
pub fn check(at: &[f32], gradient: &[f32], mut loss: impl FnMut(&[f32]) -> f64) {
    assert_eq!(at.len(), gradient.len());
    let mut x = at.to_vec();
    for i in 0..x.len() {
        let (low, high) = (at[i] - 4e-3, at[i] + 4e-3);
        x[i] = high;
        let above = loss(&x);
        x[i] = low;
        let below = loss(&x);
        x[i] = at[i];
        let expected = (above - below) / (high as f64 - low as f64);
        // The rounding error of the loss, 1e-7, is divided by the step 8e-3. The third derivative of the loss
        // adds an error of about 1e-5.
        let tolerance = 4e-4 * (1.0 + expected.abs());
        assert!(
            (gradient[i] as f64 - expected).abs() <= tolerance,
            "element {i}: gradient {}, differences {expected}",
            gradient[i]
        );
    }
}

/// Asserts that `found` equals `expected` up to `tolerance · (1 + |expected|)`.
pub fn assert_close(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= tolerance * (1.0 + e.abs()), "element {i}: found {f}, expected {e}");
    }
}
