//! Rotary position embedding, in Llama's layout.

use crate::simd::{Lanes, simd_fn};

/// Rotates `x` in place. In every head of row `n`, the elements `i` and `i + HS/2` turn by the angle
/// `positions[n] · inv_freq[i]`.
///
/// | operand     | shape            | note                               |
/// |-------------|------------------|------------------------------------|
/// | `x`         | `(N, heads, HS)` | `N` is the length of `positions`   |
/// | `inv_freq`  | `(HS/2)`         | radians per token                  |
/// | `positions` | `(N)`            | index of the token in its sequence |
///
/// Source: Su et al., 2021, section 3.2.2, <https://arxiv.org/abs/2104.09864>. The paper pairs neighbouring
/// elements. Llama pairs elements of the two halves of a head (`rotate_half`).
///
/// # Panics
/// If `inv_freq` is not `head_dim / 2` long, or `x` is too short.
pub fn forward(x: &mut [f32], inv_freq: &[f32], positions: &[u32], heads: usize, head_dim: usize) {
    rotate(x, inv_freq, positions, heads, head_dim, 1.0);
}

/// Computes the backward of [`forward`]: rotates the gradient in place, in the opposite direction.
///
/// # Panics
/// In the same cases as [`forward`].
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

/// Returns the angle. It is rounded to f32 as in PyTorch, because models are trained with this rounding. At
/// position 4000 the rounding error is 1e-4 radians.
fn angle(position: u32, frequency: f32) -> f64 {
    (position as f32 * frequency) as f64
}

/// Cosine and sine of every rotation of a batch, `(N, HS/2)` each. The table is computed once for all heads
/// and layers.
#[derive(Clone, Debug, Default)]
pub struct RopeTable {
    inv_freq: Vec<f32>,
    positions: Vec<u32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// Computes the table for these frequencies and positions.
    pub fn new(inv_freq: &[f32], positions: &[u32]) -> Self {
        let len = inv_freq.len() * positions.len();
        let (mut cos, mut sin) = (Vec::with_capacity(len), Vec::with_capacity(len));
        for &position in positions {
            for &frequency in inv_freq {
                let (s, c) = angle(position, frequency).sin_cos();
                cos.push(c as f32);
                sin.push(s as f32);
            }
        }
        Self { inv_freq: inv_freq.to_vec(), positions: positions.to_vec(), cos, sin }
    }

    /// Returns the bytes of a table of `frequencies` frequencies for `positions` tokens.
    pub fn bytes(frequencies: usize, positions: usize) -> u64 {
        4 * (frequencies + positions + 2 * frequencies * positions) as u64
    }

    /// Returns the number of allocated bytes.
    #[cfg(test)]
    pub(crate) fn allocated_bytes(&self) -> u64 {
        let floats = self.inv_freq.capacity() + self.cos.capacity() + self.sin.capacity();
        4 * (floats + self.positions.capacity()) as u64
    }

    /// Returns whether the table was computed for exactly these frequencies and positions.
    pub fn is_for(&self, inv_freq: &[f32], positions: &[u32]) -> bool {
        self.inv_freq == inv_freq && self.positions == positions
    }
}

simd_fn! {
    /// Computes [`forward`] or [`backward`] in f32 on the rows in `x`. The first of these rows is row
    /// `first_row` of the batch.
    ///
    /// # Panics
    /// If `x` does not contain whole rows of `heads` heads, or if the table has too few rows.
    pub fn rotate_rows(x: &mut [f32], table: &RopeTable, first_row: usize, heads: usize, backward: bool) = rotate_lanes
}

#[inline(always)]
fn rotate_lanes<L: Lanes>(x: &mut [f32], table: &RopeTable, first_row: usize, heads: usize, backward: bool) {
    let half = table.inv_freq.len();
    let width = heads * 2 * half;
    assert!(width > 0 && x.len().is_multiple_of(width), "{} elements in rows of {width}", x.len());
    let sign = L::splat(if backward { -1.0 } else { 1.0 });
    for (n, row) in x.chunks_exact_mut(width).enumerate() {
        let cos = &table.cos[(first_row + n) * half..][..half];
        let sin = &table.sin[(first_row + n) * half..][..half];
        for head in row.chunks_exact_mut(2 * half) {
            let (first, second) = head.split_at_mut(half);
            let mut at = 0;
            while at < half {
                let (cos, sin) = (L::read(cos, at), L::read(sin, at).mul(sign));
                let (a, b) = (L::read(first, at), L::read(second, at));
                a.mul(cos).sub(b.mul(sin)).write(first, at);
                b.mul(cos).add(a.mul(sin)).write(second, at);
                at += L::COUNT;
            }
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

    #[test]
    fn every_isa_matches_the_reference_for_every_tail_and_split() {
        let mut stream = Stream::new(24);
        for (isa, half) in Isa::supported().flat_map(|isa| (1..40).map(move |half| (isa, half))) {
            let (heads, head_dim) = (3, 2 * half);
            let positions = [0, 1, 7, 4000, 2];
            let inv_freq: Vec<f32> = random(&mut stream, half);
            let table = RopeTable::new(&inv_freq, &positions);
            assert!(table.is_for(&inv_freq, &positions) && !table.is_for(&inv_freq, &positions[1..]));
            let inp = random(&mut stream, 5 * heads * head_dim);
            let (mut out, mut expected) = (inp.clone(), inp.clone());
            let (head, tail) = out.split_at_mut(2 * heads * head_dim);
            rotate_rows(isa, head, &table, 0, heads, false);
            rotate_rows(isa, tail, &table, 2, heads, false);
            forward(&mut expected, &inv_freq, &positions, heads, head_dim);
            assert_close(&out, &expected, 1e-6);
            rotate_rows(isa, &mut out, &table, 0, heads, true);
            assert_close(&out, &inp, 1e-6);
        }
    }
}
