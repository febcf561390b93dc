//! The low-rank update of a projection by one adapter.

use std::ops::Range;

use crate::math::dot_f64;
use crate::{Dropout, LoraPair, LoraRef, rng};

/// Shapes and scaling of one module's `A` and `B`, without their elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoraDims {
    /// Rank, `R`.
    pub rank: usize,
    /// Input width, `IN`.
    pub d_in: usize,
    /// Output width, `OUT`.
    pub d_out: usize,
    /// `alpha / rank`, or `alpha / sqrt(rank)` for rsLoRA.
    pub scaling: f32,
}

impl LoraDims {
    /// Returns the dimensions of `lora`.
    pub fn of(lora: &LoraRef<'_>) -> Self {
        Self { rank: lora.rank, d_in: lora.d_in, d_out: lora.d_out, scaling: lora.scaling }
    }
}

/// One module's `A` and `B`, with their shapes and the dropout of the input.
#[derive(Clone, Copy, Debug)]
pub struct LoraParams<'a> {
    /// Matrix `A`, `(R, IN)`.
    pub a: &'a [f32],
    /// Matrix `B`, `(OUT, R)`.
    pub b: &'a [f32],
    /// Shapes and scaling.
    pub dims: LoraDims,
    /// Dropout of the input.
    pub dropout: Option<Dropout>,
}

impl<'a> LoraParams<'a> {
    /// Borrows a pair in host memory.
    ///
    /// # Panics
    /// If the pair extends past the end of its buffer, or if the buffer is not in host memory.
    pub fn of(pair: &LoraPair<'a>) -> Self {
        let (lora, params) = (&pair.lora, pair.lora.params.host_slice());
        let [a, b] = lora.ranges().map(|range| &params[range]);
        Self { a, b, dims: LoraDims::of(lora), dropout: pair.dropout }
    }

    /// Panics unless `A` and `B` have the shapes in `dims`.
    pub(crate) fn check(&self) {
        let LoraDims { rank, d_in, d_out, .. } = self.dims;
        assert_eq!((self.a.len(), self.b.len()), (rank * d_in, d_out * rank));
    }
}

impl LoraRef<'_> {
    /// Returns the ranges of `A` and `B` in the flat parameters.
    pub(crate) fn ranges(&self) -> [Range<usize>; 2] {
        [self.a..self.a + self.rank * self.d_in, self.b..self.b + self.d_out * self.rank]
    }

    /// Returns the gradients of `A` and `B` in `dparams`. `dparams` has the layout of the parameters.
    pub(crate) fn grads<'b>(&self, dparams: &'b mut [f32]) -> [&'b mut [f32]; 2] {
        dparams
            .get_disjoint_mut(self.ranges())
            .expect("a pair's A and B lie apart, inside the gradient buffer")
    }
}

/// Applies LoRA dropout to row `row` of a module. Elements that are not zeroed are multiplied by
/// `1 / (1 - p)`.
///
/// # Panics
/// If the lengths differ.
pub fn drop_row(out: &mut [f32], inp: &[f32], row: usize, dropout: Option<Dropout>) {
    assert_eq!(out.len(), inp.len());
    let Some(Dropout { probability, key }) = dropout else { return out.copy_from_slice(inp) };
    let (scale, first) = (1.0 / (1.0 - probability), row as u64 * inp.len() as u64);
    for (j, (o, x)) in out.iter_mut().zip(inp).enumerate() {
        *o = if rng::keep(key, first + j as u64, probability) { x * scale } else { 0.0 };
    }
}

/// Adds one adapter's update to the rows `rows` of a base projection: `out += scaling · (drop(inp) Aᵀ) Bᵀ`.
///
/// | operand | shape       | note                                          |
/// |---------|-------------|-----------------------------------------------|
/// | `out`   | `(N, OUT)`  | already contains the base product             |
/// | `mid`   | `(N, R)`    | receives `drop(inp) Aᵀ` for backward          |
/// | `inp`   | `(N, IN)`   |                                               |
/// | `a`     | `(R, IN)`   |                                               |
/// | `b`     | `(OUT, R)`  |                                               |
///
/// Source: Hu et al., 2021, section 4.1, <https://arxiv.org/abs/2106.09685>.
///
/// # Panics
/// If `a` or `b` does not have its shape, or another slice is too short for `rows`.
pub fn forward(out: &mut [f32], mid: &mut [f32], inp: &[f32], params: LoraParams<'_>, rows: Range<usize>) {
    let LoraParams { a, b, dims: LoraDims { rank, d_in, d_out, scaling }, dropout } = params;
    params.check();
    let (mut x, first) = (vec![0.0; d_in], rows.start);
    for i in rows {
        drop_row(&mut x, &inp[i * d_in..][..d_in], i - first, dropout);
        let m = &mut mid[i * rank..][..rank];
        for (r, m) in m.iter_mut().enumerate() {
            *m = dot_f64(&x, &a[r * d_in..][..d_in]) as f32;
        }
        let y = &mut out[i * d_out..][..d_out];
        for (o, y) in y.iter_mut().enumerate() {
            *y += (scaling as f64 * dot_f64(m, &b[o * rank..][..rank])) as f32;
        }
    }
}

/// Computes the backward of [`forward`], with the same dropout mask. With `dmid = scaling · dout B`, the
/// gradients are `db += scaling · doutᵀ mid`, `da += dmidᵀ drop(inp)`, and the optional
/// `dinp += drop(dmid A)`. All gradients accumulate, as micro-batches require.
///
/// # Panics
/// In the same cases as [`forward`].
pub fn backward(
    mut dinp: Option<&mut [f32]>,
    [da, db]: [&mut [f32]; 2],
    dout: &[f32],
    inp: &[f32],
    mid: &[f32],
    params: LoraParams<'_>,
    rows: Range<usize>,
) {
    let LoraParams { a, b, dims: LoraDims { rank, d_in, d_out, scaling }, dropout } = params;
    params.check();
    assert_eq!((da.len(), db.len()), (a.len(), b.len()));
    // Sums over rows are f64, so each gradient is rounded to f32 once.
    let (mut sum_a, mut sum_b) = (vec![0.0f64; a.len()], vec![0.0f64; b.len()]);
    let (mut x, mut dx, mut dropped) = (vec![0.0; d_in], vec![0.0; d_in], vec![0.0; d_in]);
    let first = rows.start;
    for i in rows {
        let (m, dy) = (&mid[i * rank..][..rank], &dout[i * d_out..][..d_out]);
        drop_row(&mut x, &inp[i * d_in..][..d_in], i - first, dropout);
        let mut dm = vec![0.0f64; rank];
        for o in 0..d_out {
            let dy = scaling as f64 * dy[o] as f64;
            for r in 0..rank {
                dm[r] += dy * b[o * rank + r] as f64;
                sum_b[o * rank + r] += dy * m[r] as f64;
            }
        }
        for (r, dm) in dm.iter().enumerate() {
            for (s, &x) in sum_a[r * d_in..][..d_in].iter_mut().zip(&x) {
                *s += dm * x as f64;
            }
        }
        if let Some(dinp) = dinp.as_deref_mut() {
            for (j, d) in dx.iter_mut().enumerate() {
                *d = (0..rank).map(|r| dm[r] * a[r * d_in + j] as f64).sum::<f64>() as f32;
            }
            // Dropout multiplies by a diagonal matrix, so its backward is the same function.
            drop_row(&mut dropped, &dx, i - first, dropout);
            for (d, g) in dinp[i * d_in..][..d_in].iter_mut().zip(&dropped) {
                *d += g;
            }
        }
    }
    for (d, s) in da.iter_mut().zip(sum_a).chain(db.iter_mut().zip(sum_b)) {
        *d += s as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finite_difference::{check, inner, random};
    use crate::rng::Stream;

    const DIMS: LoraDims = LoraDims { rank: 3, d_in: 6, d_out: 5, scaling: 2.0 };

    #[test]
    fn rank_one_is_an_outer_product() {
        let dims = LoraDims { rank: 1, d_in: 2, d_out: 2, scaling: 0.5 };
        let (mut out, mut mid) = ([1.0, 1.0], [0.0]);
        let params = LoraParams { a: &[1.0, 1.0], b: &[4.0, -2.0], dims, dropout: None };
        forward(&mut out, &mut mid, &[2.0, 3.0], params, 0..1);
        assert_eq!((out, mid), ([11.0, -4.0], [5.0]));
    }

    #[test]
    fn rows_outside_the_range_stay_as_they_were() {
        let mut stream = Stream::new(6);
        let (a, b) = (random(&mut stream, 18), random(&mut stream, 15));
        let (inp, mut out, mut mid) = (random(&mut stream, 24), vec![0.0; 20], vec![0.0; 12]);
        let params = LoraParams { a: &a, b: &b, dims: DIMS, dropout: None };
        forward(&mut out, &mut mid, &inp, params, 1..3);
        assert!(out[..5].iter().chain(&out[15..]).all(|&v| v == 0.0));
        assert!(out[5..15].iter().all(|&v| v != 0.0));
    }

    #[test]
    fn backward_matches_finite_differences_with_and_without_dropout() {
        for dropout in [None, Some(Dropout { probability: 0.3, key: 9 })] {
            let (mut stream, n, rows) = (Stream::new(7), 4, 1..4);
            let (a, b) = (random(&mut stream, 18), random(&mut stream, 15));
            let (inp, dout) = (random(&mut stream, n * 6), random(&mut stream, n * 5));
            let loss = |inp: &[f32], a: &[f32], b: &[f32]| {
                let (mut out, mut mid) = (vec![0.0; n * 5], vec![0.0; n * 3]);
                let params = LoraParams { a, b, dims: DIMS, dropout };
                forward(&mut out, &mut mid, inp, params, rows.clone());
                (inner(&out, &dout), mid)
            };
            let (_, mid) = loss(&inp, &a, &b);
            let (mut dinp, mut da, mut db) = (vec![0.0; n * 6], vec![0.0; 18], vec![0.0; 15]);
            let params = LoraParams { a: &a, b: &b, dims: DIMS, dropout };
            backward(Some(&mut dinp), [&mut da, &mut db], &dout, &inp, &mid, params, rows.clone());
            check(&inp, &dinp, |inp| loss(inp, &a, &b).0);
            check(&a, &da, |a| loss(&inp, a, &b).0);
            check(&b, &db, |b| loss(&inp, &a, b).0);
        }
    }
}
