//! Scalar and slice arithmetic that several operations share.

/// `sum(a · b)` in f64, in eight interleaved sums so that the reference is slow but not painfully so.
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

/// The logistic function `1 / (1 + e^-x)`, in f64.
pub fn sigmoid_f64(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dot_covers_its_tail() {
        for len in 0..40 {
            let a: Vec<f32> = (0..len).map(|i| i as f32).collect();
            let expected: f64 = (0..len).map(|i| (i * i) as f64).sum();
            assert_eq!(dot_f64(&a, &a), expected);
        }
    }
}
