//! The gated activation of Gemma's feed-forward block.

use crate::math::tanh;
use crate::simd::{Lanes, simd_fn};

/// `sqrt(2 / π)`.
const FACTOR: f64 = 0.797_884_560_802_865_4;
/// Coefficient of the cube.
const CUBIC: f64 = 0.044715;

/// `out = gelu(gate) · up`, `gelu(x) = x/2 · (1 + tanh(sqrt(2/π) · (x + 0.044715 x³)))`, element by element.
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

/// Backward of [`forward`], overwriting: `dup = dout · gelu(gate)`, `dgate = dout · up · gelu'(gate)`.
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
    /// [`forward`] in f32, for any range of elements.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn forward_rows(out: &mut [f32], gate: &[f32], up: &[f32]) = forward_lanes
}

/// `tanh` of the inner polynomial.
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
    /// [`backward`] in f32, for any range of elements.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::finite_difference::{assert_close, check, inner, random};
    use crate::rng::Stream;

    #[test]
    fn a_closed_gate_gives_nothing_and_an_open_one_its_input() {
        let mut out = [1.0; 3];
        forward(&mut out, &[-1000.0, 0.0, 1000.0], &[3.0, 3.0, 0.5]);
        assert_eq!(out, [0.0, 0.0, 500.0]);
    }

    #[test]
    fn backward_matches_finite_differences() {
        let (mut stream, len) = (Stream::new(4), 11);
        let gate: Vec<f32> = random(&mut stream, len).iter().map(|g| g * 4.0).collect();
        let (up, dout) = (random(&mut stream, len), random(&mut stream, len));
        let (mut dgate, mut dup, mut out) = (vec![0.0; len], vec![0.0; len], vec![0.0; len]);
        backward(&mut dgate, &mut dup, &dout, &gate, &up);
        check(&gate, &dgate, |gate| {
            forward(&mut out, gate, &up);
            inner(&out, &dout)
        });
        check(&up, &dup, |up| {
            forward(&mut out, &gate, up);
            inner(&out, &dout)
        });
    }

    #[test]
    fn every_isa_matches_the_reference_for_every_tail() {
        let mut stream = Stream::new(22);
        for (isa, len) in Isa::supported().flat_map(|isa| (0..70).map(move |len| (isa, len))) {
            let gate: Vec<f32> = random(&mut stream, len).iter().map(|g| g * 10.0).collect();
            let (up, dout) = (random(&mut stream, len), random(&mut stream, len));
            let (mut out, mut expected) = (vec![0.0; len], vec![0.0; len]);
            forward_rows(isa, &mut out, &gate, &up);
            forward(&mut expected, &gate, &up);
            assert_close(&out, &expected, 3e-6);
            let (mut dgate, mut dup) = (vec![0.0; len], vec![0.0; len]);
            backward_rows(isa, &mut dgate, &mut dup, &dout, &gate, &up);
            let (mut expected_gate, mut expected_up) = (vec![0.0; len], vec![0.0; len]);
            backward(&mut expected_gate, &mut expected_up, &dout, &gate, &up);
            // 1 - tanh² loses its low bits where tanh is close to 1, times a polynomial of the gate.
            assert_close(&dgate, &expected_gate, 3e-5);
            assert_close(&dup, &expected_up, 3e-6);
        }
    }
}
