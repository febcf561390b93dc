//! Root mean square normalisation.

use crate::math::dot_f64;

/// Scales every row to unit root mean square, then by `weight`: `out = weight · inp · rstd`,
/// `rstd = 1 / sqrt(mean(inp²) + eps)`.
///
/// | operand  | shape    | note              |
/// |----------|----------|-------------------|
/// | `out`    | `(N, C)` |                   |
/// | `rstd`   | `(N)`    | kept for backward |
/// | `inp`    | `(N, C)` |                   |
/// | `weight` | `(C)`    |                   |
///
/// `C` is the length of `weight`. Source: Zhang and Sennrich, 2019, equation 4,
/// <https://arxiv.org/abs/1910.07467>.
///
/// # Panics
/// If a slice is too short for `n` rows.
pub fn forward(out: &mut [f32], rstd: &mut [f32], inp: &[f32], weight: &[f32], eps: f32, n: usize) {
    let c = weight.len();
    assert!(out.len() >= n * c && inp.len() >= n * c && rstd.len() >= n);
    for i in 0..n {
        let x = &inp[i * c..][..c];
        let scale = 1.0 / (dot_f64(x, x) / c as f64 + eps as f64).sqrt();
        rstd[i] = scale as f32;
        for ((o, x), w) in out[i * c..][..c].iter_mut().zip(x).zip(weight) {
            *o = (*w as f64 * *x as f64 * scale) as f32;
        }
    }
}

/// Backward of [`forward`]: `dinp += rstd · (weight · dout - x̂ · mean(weight · dout · x̂))`, `x̂ = inp · rstd`.
///
/// # Panics
/// If a slice is too short for `n` rows.
pub fn backward(dinp: &mut [f32], dout: &[f32], inp: &[f32], rstd: &[f32], weight: &[f32], n: usize) {
    let c = weight.len();
    assert!(dinp.len() >= n * c && dout.len() >= n * c && inp.len() >= n * c && rstd.len() >= n);
    for i in 0..n {
        let (x, dy) = (&inp[i * c..][..c], &dout[i * c..][..c]);
        let scale = rstd[i] as f64;
        let sum: f64 = (0..c).map(|j| weight[j] as f64 * dy[j] as f64 * x[j] as f64 * scale).sum();
        let mean = sum / c as f64;
        for (j, d) in dinp[i * c..][..c].iter_mut().enumerate() {
            *d += (scale * (weight[j] as f64 * dy[j] as f64 - x[j] as f64 * scale * mean)) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finite_difference::{check, inner, random};
    use crate::rng::Stream;

    #[test]
    fn a_constant_row_becomes_its_weight() {
        let weight = [0.5, -1.0, 2.0];
        let (mut out, mut rstd) = ([0.0; 3], [0.0; 1]);
        forward(&mut out, &mut rstd, &[4.0; 3], &weight, 0.0, 1);
        assert_eq!((out, rstd), (weight, [0.25]));
    }

    #[test]
    fn backward_matches_finite_differences() {
        let (mut stream, n, c, eps) = (Stream::new(2), 3, 7, 1e-5);
        let (inp, weight) = (random(&mut stream, n * c), random(&mut stream, c));
        let dout = random(&mut stream, n * c);
        let (mut out, mut rstd) = (vec![0.0; n * c], vec![0.0; n]);
        forward(&mut out, &mut rstd, &inp, &weight, eps, n);
        let mut dinp = vec![1.0; n * c];
        backward(&mut dinp, &dout, &inp, &rstd, &weight, n);
        // It accumulates onto what was there.
        dinp.iter_mut().for_each(|d| *d -= 1.0);
        check(&inp, &dinp, |inp| {
            forward(&mut out, &mut rstd, inp, &weight, eps, n);
            inner(&out, &dout)
        });
    }
}
