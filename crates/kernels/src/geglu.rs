//! The gated activation of Gemma's feed-forward block.

use crate::math::tanh;
use crate::simd::{Lanes, simd_fn};

/// `sqrt(2 / π)`.
const FACTOR: f64 = 0.797_884_560_802_865_4;
/// Coefficient of `x³`.
const CUBIC: f64 = 0.044715;

/// Computes `out = gelu(gate) · up` element by element, with
/// `gelu(x) = x/2 · (1 + tanh(sqrt(2/π) · (x + 0.044715 x³)))`.
///
/// Source: Hendrycks and Gimpel, 2016, section 2, <https://arxiv.org/abs/1606.08415>.
///
/// # Panics
/// If the lengths differ.
pub fn forward(out: &mut [f32], gate: &[f32], up: &[f32]) {
    assert_eq!((out.len(), out.len()), (gate.len(), up.len()));
    for ((o, &g), &u) in out.iter_mut().zip(gate).zip(up) {
        let g = g as f64;
        *o = (0.5 * g * (1.0 + inner(g).tanh()) * u as f64) as f32;
    }
}

/// Computes the backward of [`forward`]: `dup = dout · gelu(gate)` and `dgate = dout · up · gelu'(gate)`.
/// Overwrites both gradients.
///
/// # Panics
/// If the lengths differ.
pub fn backward(dgate: &mut [f32], dup: &mut [f32], dout: &[f32], gate: &[f32], up: &[f32]) {
    let len = dout.len();
    assert_eq!((dgate.len(), dup.len(), gate.len(), up.len()), (len, len, len, len));
    for i in 0..len {
        let (dy, g, u) = (dout[i] as f64, gate[i] as f64, up[i] as f64);
        let t = inner(g).tanh();
        let slope = 0.5 * (1.0 + t) + 0.5 * g * (1.0 - t * t) * FACTOR * (1.0 + 3.0 * CUBIC * g * g);
        dup[i] = (dy * 0.5 * g * (1.0 + t)) as f32;
        dgate[i] = (dy * u * slope) as f32;
    }
}

fn inner(x: f64) -> f64 {
    FACTOR * (x + CUBIC * x * x * x)
}

simd_fn! {
    /// Computes [`forward`] in f32, for any range of elements.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn forward_rows(out: &mut [f32], gate: &[f32], up: &[f32]) = forward_lanes
}

/// Returns `tanh(sqrt(2/π) · (x + 0.044715 x³))`.
#[inline(always)]
fn tanh_inner<L: Lanes>(g: L) -> L {
    let cube = g.mul(g).mul(g);
    tanh(cube.mul_add(L::splat(CUBIC as f32), g).mul(L::splat(FACTOR as f32)))
}

#[inline(always)]
fn forward_lanes<L: Lanes>(out: &mut [f32], gate: &[f32], up: &[f32]) {
    assert_eq!((out.len(), out.len()), (gate.len(), up.len()));
    let (half, one, mut at) = (L::splat(0.5), L::splat(1.0), 0);
    while at < out.len() {
        let g = L::read(gate, at);
        g.mul(half).mul(one.add(tanh_inner(g))).mul(L::read(up, at)).write(out, at);
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
    let (half, one, mut at) = (L::splat(0.5), L::splat(1.0), 0);
    let (factor, cubic) = (L::splat(0.5 * FACTOR as f32), L::splat(3.0 * CUBIC as f32));
    while at < len {
        let (dy, g) = (L::read(dout, at), L::read(gate, at));
        let t = tanh_inner(g);
        let open = half.mul(one.add(t));
        let bend = g.mul(factor).mul(one.sub(t.mul(t))).mul(g.mul(g).mul_add(cubic, one));
        dy.mul(g).mul(open).write(dup, at);
        dy.mul(L::read(up, at)).mul(open.add(bend)).write(dgate, at);
        at += L::COUNT;
    }
}
