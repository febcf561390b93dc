//! Rows of one head, copied together as a product reads them.

use super::KEYS;
use super::scratch::resize;
use super::task::Shape;

/// Copies `n` rows of a head together, times `factor`.
pub(super) fn gather(
    out: &mut Vec<f32>,
    inp: &[f32],
    row: impl Fn(usize) -> usize,
    n: usize,
    shape: &Shape,
    factor: f32,
) {
    resize(out, n * shape.width);
    for (i, out) in out.chunks_exact_mut(shape.width).enumerate() {
        let (copied, padding) = out.split_at_mut(shape.head_dim);
        for (o, x) in copied.iter_mut().zip(&inp[row(i)..][..shape.head_dim]) {
            *o = factor * x;
        }
        padding.fill(0.0);
    }
}

/// Copies the keys of a head into panels `(width, KEYS)`, one column a key, zero beyond the last.
pub(super) fn transpose(panels: &mut [f32], inp: &[f32], row: impl Fn(usize) -> usize, shape: &Shape) {
    for (p, panel) in panels.chunks_exact_mut(shape.width * KEYS).enumerate() {
        panel[shape.head_dim * KEYS..].fill(0.0);
        for j in 0..KEYS {
            let key = p * KEYS + j;
            for d in 0..shape.head_dim {
                panel[d * KEYS + j] = if key < shape.keys { inp[row(key) + d] } else { 0.0 };
            }
        }
    }
}
