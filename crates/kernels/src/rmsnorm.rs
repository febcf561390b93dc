//! Root mean square normalisation.

use crate::math::{dot_f64, dot_lanes};
use crate::simd::{Lanes, simd_fn};

/// Scales every row to a root mean square of 1, then multiplies it by `weight`: `out = weight · inp · rstd`,
/// `rstd = 1 / sqrt(mean(inp²) + eps)`.
///
/// | operand  | shape    | note                |
/// |----------|----------|---------------------|
/// | `out`    | `(N, C)` |                     |
/// | `rstd`   | `(N)`    | stored for backward |
/// | `inp`    | `(N, C)` |                     |
/// | `weight` | `(C)`    |                     |
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

/// Computes the backward of [`forward`]: `dinp += rstd · (weight · dout - x̂ · mean(weight · dout · x̂))`
/// with `x̂ = inp · rstd`.
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

simd_fn! {
    /// Computes [`forward`] in f32, for `rstd.len()` rows.
    ///
    /// # Panics
    /// If `out` or `inp` does not have exactly `rstd.len()` rows.
    pub fn forward_rows(out: &mut [f32], rstd: &mut [f32], inp: &[f32], weight: &[f32], eps: f32) = forward_lanes
}

#[inline(always)]
fn forward_lanes<L: Lanes>(out: &mut [f32], rstd: &mut [f32], inp: &[f32], weight: &[f32], eps: f32) {
    let c = weight.len();
    assert_eq!((out.len(), inp.len()), (rstd.len() * c, rstd.len() * c));
    for (i, rstd) in rstd.iter_mut().enumerate() {
        let (x, y) = (&inp[i * c..][..c], &mut out[i * c..][..c]);
        *rstd = 1.0 / (dot_lanes::<L>(x, x) / c as f32 + eps).sqrt();
        let scale = L::splat(*rstd);
        let mut at = 0;
        while at < c {
            L::read(x, at).mul(scale).mul(L::read(weight, at)).write(y, at);
            at += L::COUNT;
        }
    }
}

simd_fn! {
    /// Computes [`backward`] in f32, for `rstd.len()` rows. `dinp` accumulates.
    ///
    /// # Panics
    /// If `dinp`, `dout` or `inp` does not have exactly `rstd.len()` rows.
    pub fn backward_rows(dinp: &mut [f32], dout: &[f32], inp: &[f32], rstd: &[f32], weight: &[f32]) = backward_lanes
}

#[inline(always)]
fn backward_lanes<L: Lanes>(dinp: &mut [f32], dout: &[f32], inp: &[f32], rstd: &[f32], weight: &[f32]) {
    let (c, len) = (weight.len(), rstd.len() * weight.len());
    assert_eq!((dinp.len(), dout.len(), inp.len()), (len, len, len));
    for (i, &rstd) in rstd.iter().enumerate() {
        let (dx, dy, x) = (&mut dinp[i * c..][..c], &dout[i * c..][..c], &inp[i * c..][..c]);
        let (mut sums, mut at) = ([L::splat(0.0); 2], 0);
        while at < c {
            let weighted = L::read(weight, at).mul(L::read(dy, at));
            // Two independent accumulators let the processor overlap additions.
            let sum = &mut sums[at / L::COUNT % 2];
            *sum = weighted.mul_add(L::read(x, at), *sum);
            at += L::COUNT;
        }
        let sum = sums[0].add(sums[1]).sum();
        let (scale, back) = (L::splat(rstd), L::splat(-rstd * rstd * rstd * sum / c as f32));
        at = 0;
        while at < c {
            let weighted = L::read(weight, at).mul(L::read(dy, at));
            let d = L::read(x, at).mul_add(back, L::read(dx, at));
            weighted.mul_add(scale, d).write(dx, at);
            at += L::COUNT;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::finite_difference::{assert_close, check, inner, random};
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
        // The gradient was added to ones, so the ones are subtracted.
        dinp.iter_mut().for_each(|d| *d -= 1.0);
        check(&inp, &dinp, |inp| {
            forward(&mut out, &mut rstd, inp, &weight, eps, n);
            inner(&out, &dout)
        });
    }

    #[test]
    fn every_isa_matches_the_reference_for_every_tail() {
        let mut stream = Stream::new(21);
        for (isa, c) in Isa::supported().flat_map(|isa| (1..70).chain([576, 2048]).map(move |c| (isa, c))) {
            let n = 3;
            let (inp, weight) = (random(&mut stream, n * c), random(&mut stream, c));
            let (dout, before) = (random(&mut stream, n * c), random(&mut stream, n * c));
            let (mut expected, mut expected_rstd) = (vec![0.0; n * c], vec![0.0; n]);
            forward(&mut expected, &mut expected_rstd, &inp, &weight, 1e-2, n);
            let (mut out, mut rstd) = (vec![0.0; n * c], vec![0.0; n]);
            forward_rows(isa, &mut out, &mut rstd, &inp, &weight, 1e-2);
            assert_close(&out, &expected, 2e-6);
            assert_close(&rstd, &expected_rstd, 2e-6);
            let (mut dinp, mut expected) = (before.clone(), before);
            backward_rows(isa, &mut dinp, &dout, &inp, &rstd, &weight);
            backward(&mut expected, &dout, &inp, &rstd, &weight, n);
            // The rounding error of the sum is multiplied by rstd³, which is up to 1000 here.
            assert_close(&dinp, &expected, 5e-5);
        }
    }
}
