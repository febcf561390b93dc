//! Rotary position embedding.

use crate::simd::{Lanes, simd_fn};
use crate::{RopePairs, RopeRotation};

/// The angles of a rotation. Row `n` turns pair `i` by `positions[n] · inv_freq[tables[n], i]`. `D` is the
/// number of rotated elements of a head.
///
/// | operand     | shape      | note                                                 |
/// |-------------|------------|------------------------------------------------------|
/// | `inv_freq`  | `(T, D/2)` | `T` tables of frequencies in radians per token       |
/// | `positions` | `(N)`      | index of the token in its sequence                   |
/// | `tables`    | `(N)`      | table of each token; empty if all tokens use table 0 |
#[derive(Clone, Copy, Debug)]
pub struct RopeAngles<'a> {
    /// Frequencies, `(T, D/2)`.
    pub inv_freq: &'a [f32],
    /// Position of each row.
    pub positions: &'a [u32],
    /// Table of each row. May be empty.
    pub tables: &'a [u32],
}

impl RopeAngles<'_> {
    /// Returns the frequencies of row `n`.
    fn frequencies(&self, n: usize, half: usize) -> &[f32] {
        let table = self.tables.get(n).map_or(0, |&table| table as usize);
        &self.inv_freq[table * half..][..half]
    }
}

/// Number and size of the heads in one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RopeHeads {
    /// Number of heads.
    pub heads: usize,
    /// Head size, `HS`.
    pub head_dim: usize,
}

/// Rotates `x (N, heads, HS)` in place, and multiplies the rotated elements by `rotation.scale`.
///
/// Source: Su et al., 2021, section 3.2.2, <https://arxiv.org/abs/2104.09864>. The paper pairs neighbouring
/// elements. Llama pairs elements of the two halves of a head (`rotate_half`).
///
/// # Panics
/// If `x` or `inv_freq` is too short, or if `rotation.dim` is odd or larger than a head.
pub fn forward(x: &mut [f32], angles: RopeAngles<'_>, heads: RopeHeads, rotation: RopeRotation) {
    rotate(x, angles, heads, rotation, 1.0);
}

/// Computes the backward of [`forward`]: rotates the gradient in place, in the opposite direction.
///
/// # Panics
/// In the same cases as [`forward`].
pub fn backward(dx: &mut [f32], angles: RopeAngles<'_>, heads: RopeHeads, rotation: RopeRotation) {
    rotate(dx, angles, heads, rotation, -1.0);
}

fn rotate(x: &mut [f32], angles: RopeAngles<'_>, heads: RopeHeads, rotation: RopeRotation, sign: f64) {
    let (RopeHeads { heads, head_dim }, half) = (heads, rotation.dim / 2);
    assert!(rotation.dim <= head_dim && rotation.dim.is_multiple_of(2), "{rotation:?} of {head_dim}");
    assert!(x.len() >= angles.positions.len() * heads * head_dim);
    for (n, &position) in angles.positions.iter().enumerate() {
        for (i, &frequency) in angles.frequencies(n, half).iter().enumerate() {
            let (sin, cos) = angle(position, frequency).sin_cos();
            let (sin, cos) = (sign * sin * f64::from(rotation.scale), cos * f64::from(rotation.scale));
            let (first, second) = match rotation.pairs {
                RopePairs::Halves => (i, i + half),
                RopePairs::Neighbours => (2 * i, 2 * i + 1),
            };
            for head in 0..heads {
                let pair = &mut x[(n * heads + head) * head_dim..][..head_dim];
                let (a, b) = (pair[first] as f64, pair[second] as f64);
                pair[first] = (a * cos - b * sin) as f32;
                pair[second] = (b * cos + a * sin) as f32;
            }
        }
    }
}

/// Returns the angle. The angle is rounded to f32 as in PyTorch, because models are trained with this
/// rounding. At position 4000 the rounding error is 1e-4 radians.
fn angle(position: u32, frequency: f32) -> f64 {
    (position as f32 * frequency) as f64
}

/// Cosine and sine of every rotation of a batch. The table is computed once per batch, for all heads and
/// layers.
#[derive(Clone, Debug, Default)]
pub struct RopeTable {
    inv_freq: Vec<f32>,
    positions: Vec<u32>,
    tables: Vec<u32>,
    rotation: Option<RopeRotation>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// Computes the table. Each cosine and sine is multiplied by `rotation.scale`.
    ///
    /// # Panics
    /// If a row of `angles` has fewer frequencies than `rotation` needs.
    pub fn new(angles: RopeAngles<'_>, rotation: RopeRotation) -> Self {
        let half = rotation.dim / 2;
        let len = half * angles.positions.len();
        let (mut cos, mut sin) = (Vec::with_capacity(len), Vec::with_capacity(len));
        for (n, &position) in angles.positions.iter().enumerate() {
            for &frequency in angles.frequencies(n, half) {
                let (s, c) = angle(position, frequency).sin_cos();
                cos.push(c as f32 * rotation.scale);
                sin.push(s as f32 * rotation.scale);
            }
        }
        let RopeAngles { inv_freq, positions, tables } = angles;
        let (inv_freq, positions, tables) = (inv_freq.to_vec(), positions.to_vec(), tables.to_vec());
        Self { inv_freq, positions, tables, rotation: Some(rotation), cos, sin }
    }

    /// Returns the bytes of a table for `rows` rows of `half` pairs. `frequencies` is the number of stored
    /// frequencies, and `tables` is the length of [`RopeAngles::tables`].
    pub fn bytes(rows: usize, half: usize, frequencies: usize, tables: usize) -> u64 {
        4 * (frequencies + rows + tables + 2 * half * rows) as u64
    }

    #[cfg(test)]
    pub(crate) fn allocated_bytes(&self) -> u64 {
        let floats = self.inv_freq.capacity() + self.cos.capacity() + self.sin.capacity();
        4 * (floats + self.positions.capacity() + self.tables.capacity()) as u64
    }

    /// Returns whether the table was computed for exactly these angles and this rotation.
    pub fn is_for(&self, angles: RopeAngles<'_>, rotation: RopeRotation) -> bool {
        self.inv_freq == angles.inv_freq
            && self.positions == angles.positions
            && self.tables == angles.tables
            && self.rotation == Some(rotation)
    }
}

simd_fn! {
    /// Computes [`forward`] or [`backward`] in f32 on the rows in `x`. The first of these rows is row
    /// `first_row` of the batch.
    ///
    /// # Panics
    /// If `x` does not contain whole rows, or if the table has too few rows.
    pub fn rotate_rows(x: &mut [f32], table: &RopeTable, first_row: usize, heads: RopeHeads, backward: bool) = rotate_lanes
}

#[inline(always)]
fn rotate_lanes<L: Lanes>(
    x: &mut [f32],
    table: &RopeTable,
    first_row: usize,
    heads: RopeHeads,
    backward: bool,
) {
    let rotation = table.rotation.expect("a table was computed before a rotation");
    let (half, width) = (rotation.dim / 2, heads.heads * heads.head_dim);
    assert!(width > 0 && x.len().is_multiple_of(width), "{} elements in rows of {width}", x.len());
    for (n, row) in x.chunks_exact_mut(width).enumerate() {
        let cos = &table.cos[(first_row + n) * half..][..half];
        let sin = &table.sin[(first_row + n) * half..][..half];
        for head in row.chunks_exact_mut(heads.head_dim) {
            match rotation.pairs {
                RopePairs::Halves => rotate_halves::<L>(&mut head[..2 * half], cos, sin, backward),
                RopePairs::Neighbours => rotate_neighbours(&mut head[..2 * half], cos, sin, backward),
            }
        }
    }
}

#[inline(always)]
fn rotate_halves<L: Lanes>(x: &mut [f32], cos: &[f32], sin: &[f32], backward: bool) {
    let half = cos.len();
    let sign = L::splat(if backward { -1.0 } else { 1.0 });
    let (first, second) = x.split_at_mut(half);
    let mut at = 0;
    while at < half {
        let (cos, sin) = (L::read(cos, at), L::read(sin, at).mul(sign));
        let (a, b) = (L::read(first, at), L::read(second, at));
        a.mul(cos).sub(b.mul(sin)).write(first, at);
        b.mul(cos).add(a.mul(sin)).write(second, at);
        at += L::COUNT;
    }
}

#[inline(always)]
fn rotate_neighbours(x: &mut [f32], cos: &[f32], sin: &[f32], backward: bool) {
    let sign = if backward { -1.0 } else { 1.0 };
    for ((pair, &cos), &sin) in x.chunks_exact_mut(2).zip(cos).zip(sin) {
        let (a, b, sin) = (pair[0], pair[1], sin * sign);
        pair[0] = a * cos - b * sin;
        pair[1] = b * cos + a * sin;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::finite_difference::{assert_close, check, inner, random};
    use crate::rng::Stream;

    fn angles<'a>(inv_freq: &'a [f32], positions: &'a [u32]) -> RopeAngles<'a> {
        RopeAngles { inv_freq, positions, tables: &[] }
    }

    /// Rotations of every kind for a head of `head_dim` elements.
    fn rotations(head_dim: usize) -> Vec<RopeRotation> {
        let part = (head_dim / 2).next_multiple_of(2).min(head_dim);
        vec![
            RopeRotation::whole(head_dim),
            RopeRotation { dim: part, pairs: RopePairs::Halves, scale: 1.3 },
            RopeRotation { dim: part, pairs: RopePairs::Neighbours, scale: 1.0 },
        ]
    }

    #[test]
    fn position_zero_stands_still_and_a_quarter_turn_swaps_halves() {
        let quarter = std::f32::consts::FRAC_PI_2;
        let mut x = [1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0];
        let heads = RopeHeads { heads: 1, head_dim: 4 };
        forward(&mut x, angles(&[quarter, quarter], &[0, 1]), heads, RopeRotation::whole(4));
        assert_close(&x, &[1.0, 2.0, 3.0, 4.0, -3.0, -4.0, 1.0, 2.0], 1e-6);
    }

    #[test]
    fn a_quarter_turn_swaps_neighbours_of_the_rotated_part() {
        let quarter = std::f32::consts::FRAC_PI_2;
        let mut x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let rotation = RopeRotation { dim: 4, pairs: RopePairs::Neighbours, scale: 2.0 };
        let heads = RopeHeads { heads: 1, head_dim: 6 };
        let tables = RopeAngles { inv_freq: &[0.0, 0.0, quarter, quarter], positions: &[1], tables: &[1] };
        forward(&mut x, tables, heads, rotation);
        assert_close(&x, &[-4.0, 2.0, -8.0, 6.0, 5.0, 6.0], 1e-6);
    }

    #[test]
    fn backward_matches_finite_differences() {
        let (mut stream, heads) = (Stream::new(3), RopeHeads { heads: 2, head_dim: 6 });
        let (positions, inv_freq) = ([0, 5, 1000], [1.0, 0.3, 0.01]);
        let len = positions.len() * 12;
        for rotation in rotations(6) {
            let (inp, dout) = (random(&mut stream, len), random(&mut stream, len));
            let angles = angles(&inv_freq, &positions);
            let mut dinp = dout.clone();
            backward(&mut dinp, angles, heads, rotation);
            check(&inp, &dinp, |inp| {
                let mut out = inp.to_vec();
                forward(&mut out, angles, heads, rotation);
                inner(&out, &dout)
            });
        }
    }

    #[test]
    fn every_isa_matches_the_reference_for_every_tail_and_split() {
        let mut stream = Stream::new(24);
        for (isa, half) in Isa::supported().flat_map(|isa| (1..40).map(move |half| (isa, half))) {
            let heads = RopeHeads { heads: 3, head_dim: 2 * half };
            let width = 3 * heads.head_dim;
            let positions = [0, 1, 7, 4000, 2];
            let inv_freq: Vec<f32> = random(&mut stream, 2 * half);
            let angles = RopeAngles { inv_freq: &inv_freq, positions: &positions, tables: &[0, 1, 1, 0, 1] };
            for rotation in rotations(heads.head_dim) {
                let table = RopeTable::new(angles, rotation);
                let other = RopeAngles { tables: &[], ..angles };
                assert!(table.is_for(angles, rotation) && !table.is_for(other, rotation));
                let inp = random(&mut stream, 5 * width);
                let (mut out, mut expected) = (inp.clone(), inp.clone());
                let (head, tail) = out.split_at_mut(2 * width);
                rotate_rows(isa, head, &table, 0, heads, false);
                rotate_rows(isa, tail, &table, 2, heads, false);
                forward(&mut expected, angles, heads, rotation);
                assert_close(&out, &expected, 2e-6);
                rotate_rows(isa, &mut out, &table, 0, heads, true);
                backward(&mut expected, angles, heads, rotation);
                assert_close(&out, &expected, 2e-6);
            }
        }
    }
}
