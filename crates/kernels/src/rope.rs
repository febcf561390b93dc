//! Rotary position embedding, in Llama's layout.

/// Rotates `x` in place: the pair `(i, i + HS/2)` of every head of row `n` turns by
/// `positions[n] · inv_freq[i]` radians.
///
/// | operand     | shape           | note                              |
/// |-------------|-----------------|-----------------------------------|
/// | `x`         | `(N, heads, HS)`| `N` is the length of `positions`  |
/// | `inv_freq`  | `(HS/2)`        | radians a token                   |
/// | `positions` | `(N)`           | place of the token in its sequence|
///
/// Source: Su et al., 2021, section 3.2.2, <https://arxiv.org/abs/2104.09864>, with the halves of a head
/// paired instead of neighbours (`rotate_half`).
///
/// # Panics
/// If `inv_freq` is not `head_dim / 2` long, or `x` is too short.
pub fn forward(x: &mut [f32], inv_freq: &[f32], positions: &[u32], heads: usize, head_dim: usize) {
    rotate(x, inv_freq, positions, heads, head_dim, 1.0);
}

/// Backward of [`forward`]: a rotation's transpose turns the gradient back, in place.
///
/// # Panics
/// As [`forward`].
pub fn backward(dx: &mut [f32], inv_freq: &[f32], positions: &[u32], heads: usize, head_dim: usize) {
    rotate(dx, inv_freq, positions, heads, head_dim, -1.0);
}

fn rotate(x: &mut [f32], inv_freq: &[f32], positions: &[u32], heads: usize, head_dim: usize, sign: f64) {
    let half = head_dim / 2;
    assert_eq!((inv_freq.len(), head_dim % 2), (half, 0), "inv_freq for a head of {head_dim}");
    assert!(x.len() >= positions.len() * heads * head_dim);
    for (n, &position) in positions.iter().enumerate() {
        for (i, &frequency) in inv_freq.iter().enumerate() {
            let (sin, cos) = angle(position, frequency).sin_cos();
            let sin = sign * sin;
            for head in 0..heads {
                let pair = &mut x[(n * heads + head) * head_dim..][..head_dim];
                let (a, b) = (pair[i] as f64, pair[i + half] as f64);
                pair[i] = (a * cos - b * sin) as f32;
                pair[i + half] = (b * cos + a * sin) as f32;
            }
        }
    }
}

/// The product is rounded to f32 as PyTorch rounds it: at position 4000 that is worth 1e-4 radians, and the
/// models were trained with it.
fn angle(position: u32, frequency: f32) -> f64 {
    (position as f32 * frequency) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finite_difference::{assert_close, check, inner, random};
    use crate::rng::Stream;

    #[test]
    fn position_zero_stands_still_and_a_quarter_turn_swaps_halves() {
        let quarter = std::f32::consts::FRAC_PI_2;
        let mut x = [1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0];
        forward(&mut x, &[quarter, quarter], &[0, 1], 1, 4);
        assert_close(&x, &[1.0, 2.0, 3.0, 4.0, -3.0, -4.0, 1.0, 2.0], 1e-6);
    }

    #[test]
    fn backward_matches_finite_differences() {
        let (mut stream, heads, head_dim) = (Stream::new(3), 2, 6);
        let (positions, inv_freq) = ([0, 5, 1000], [1.0, 0.3, 0.01]);
        let len = positions.len() * heads * head_dim;
        let (inp, dout) = (random(&mut stream, len), random(&mut stream, len));
        let mut dinp = dout.clone();
        backward(&mut dinp, &inv_freq, &positions, heads, head_dim);
        check(&inp, &dinp, |inp| {
            let mut out = inp.to_vec();
            forward(&mut out, &inv_freq, &positions, heads, head_dim);
            inner(&out, &dout)
        });
    }
}
