//! A frozen projection: the multiplication by a base weight, and the gradient of its input.

use crate::math::dot_f64;
use crate::{Matrix, Store};

/// Computes `out = inp Wᵀ`.
///
/// | operand | shape       |
/// |---------|-------------|
/// | `out`   | `(N, OUT)`  |
/// | `inp`   | `(N, IN)`   |
/// | `w`     | `(OUT, IN)` |
///
/// # Panics
/// If a slice is too short for `n` rows.
pub fn forward(out: &mut [f32], inp: &[f32], w: &Matrix, n: usize) {
    let (d_out, d_in) = (w.rows(), w.cols());
    assert!(out.len() >= n * d_out && inp.len() >= n * d_in);
    let mut row = vec![0.0; d_in];
    for o in 0..d_out {
        w.row_to_f32(o, &mut row);
        for i in 0..n {
            out[i * d_out + o] = dot_f64(&inp[i * d_in..][..d_in], &row) as f32;
        }
    }
}

/// Computes the backward of [`forward`] for a frozen `w`: `dinp = dout W` or `dinp += dout W`.
///
/// # Panics
/// If a slice is too short for `n` rows.
pub fn backward(dinp: &mut [f32], store: Store, dout: &[f32], w: &Matrix, n: usize) {
    let (d_out, d_in) = (w.rows(), w.cols());
    assert!(dinp.len() >= n * d_in && dout.len() >= n * d_out);
    let mut row = vec![0.0; d_in];
    let mut sums = vec![0.0f64; n * d_in];
    for o in 0..d_out {
        w.row_to_f32(o, &mut row);
        for i in 0..n {
            let dy = dout[i * d_out + o] as f64;
            for (s, &w) in sums[i * d_in..][..d_in].iter_mut().zip(&row) {
                *s += dy * w as f64;
            }
        }
    }
    for (d, s) in dinp.iter_mut().zip(sums) {
        let before = if store.accumulates() { *d } else { 0.0 };
        *d = before + s as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finite_difference::{check, inner, random};
    use crate::rng::Stream;

    #[test]
    fn the_identity_changes_nothing() {
        let w = Matrix::from_f32(&[1.0, 0.0, 0.0, 1.0], 2, 2);
        let mut out = [0.0; 4];
        forward(&mut out, &[1.0, 2.0, 3.0, 4.0], &w, 2);
        assert_eq!(out, [1.0, 2.0, 3.0, 4.0]);
    }

    #[test]
    fn backward_matches_finite_differences() {
        let (mut stream, n, d_in, d_out) = (Stream::new(5), 3, 9, 4);
        let w = Matrix::from_f32(&random(&mut stream, d_out * d_in), d_out, d_in);
        let (inp, dout) = (random(&mut stream, n * d_in), random(&mut stream, n * d_out));
        let (mut dinp, mut out) = (vec![9.0; n * d_in], vec![0.0; n * d_out]);
        backward(&mut dinp, Store::Overwrite, &dout, &w, n);
        check(&inp, &dinp, |inp| {
            forward(&mut out, inp, &w, n);
            inner(&out, &dout)
        });
    }
}
