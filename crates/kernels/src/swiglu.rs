//! The gated activation of Llama's feed-forward block.

use crate::math::{sigmoid, sigmoid_f64};
use crate::simd::{Lanes, simd_fn};

/// Computes `out = silu(gate) · up` element by element, with `silu(x) = x / (1 + e^-x)`.
///
/// Source: Shazeer, 2020, equation 6, <https://arxiv.org/abs/2002.05202>.
///
/// # Panics
/// If the lengths differ.
pub fn forward(out: &mut [f32], gate: &[f32], up: &[f32]) {
    assert_eq!((out.len(), out.len()), (gate.len(), up.len()));
    for ((o, &g), &u) in out.iter_mut().zip(gate).zip(up) {
        let g = g as f64;
        *o = (g * sigmoid_f64(g) * u as f64) as f32;
    }
}

/// Computes the backward of [`forward`]: `dup = dout · silu(gate)` and `dgate = dout · up · silu'(gate)`,
/// with `silu'(x) = σ(x) · (1 + x · (1 - σ(x)))`. Overwrites both gradients.
///
/// # Panics
/// If the lengths differ.
pub fn backward(dgate: &mut [f32], dup: &mut [f32], dout: &[f32], gate: &[f32], up: &[f32]) {
    let len = dout.len();
    assert_eq!((dgate.len(), dup.len(), gate.len(), up.len()), (len, len, len, len));
    for i in 0..len {
        let (dy, g, u) = (dout[i] as f64, gate[i] as f64, up[i] as f64);
        let sigmoid = sigmoid_f64(g);
        dup[i] = (dy * g * sigmoid) as f32;
        dgate[i] = (dy * u * sigmoid * (1.0 + g * (1.0 - sigmoid))) as f32;
    }
}

simd_fn! {
    /// Computes [`forward`] in f32, for any range of elements.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn forward_rows(out: &mut [f32], gate: &[f32], up: &[f32]) = forward_lanes
}

#[inline(always)]
fn forward_lanes<L: Lanes>(out: &mut [f32], gate: &[f32], up: &[f32]) {
    assert_eq!((out.len(), out.len()), (gate.len(), up.len()));
    let mut at = 0;
    while at < out.len() {
        let g = L::read(gate, at);
        g.mul(sigmoid(g)).mul(L::read(up, at)).write(out, at);
        at += L::COUNT;
    }
}

simd_fn! {
    /// Computes [`backward`] in f32, for any range of elements.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn backward_rows(dgate: &mut [f32], dup: &mut [f32], dout: &[f32], gate: &[f32], up: &[f32]) = backward_lanes
}

#[inline(always)]
fn backward_lanes<L: Lanes>(dgate: &mut [f32], dup: &mut [f32], dout: &[f32], gate: &[f32], up: &[f32]) {
    let len = dout.len();
    assert_eq!((dgate.len(), dup.len(), gate.len(), up.len()), (len, len, len, len));
    let (one, mut at) = (L::splat(1.0), 0);
    while at < len {
        let (dy, g) = (L::read(dout, at), L::read(gate, at));
        let sigmoid = sigmoid(g);
        dy.mul(g).mul(sigmoid).write(dup, at);
        let slope = sigmoid.mul(g.mul_add(one.sub(sigmoid), one));
        dy.mul(L::read(up, at)).mul(slope).write(dgate, at);
        at += L::COUNT;
    }
}
