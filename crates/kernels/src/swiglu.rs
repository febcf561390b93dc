//! The gated activation of Llama's feed-forward block.

use crate::math::{sigmoid, sigmoid_f64};
use crate::simd::{Lanes, simd_fn};

/// `out = silu(gate) · up`, `silu(x) = x / (1 + e^-x)`, element by element.
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

/// Backward of [`forward`], overwriting: `dup = dout · silu(gate)`, `dgate = dout · up · silu'(gate)`,
/// `silu'(x) = σ(x) · (1 + x · (1 - σ(x)))`.
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
    /// [`forward`] in f32, for any range of elements.
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
            let gate: Vec<f32> = random(&mut stream, len).iter().map(|g| g * 30.0).collect();
            let (up, dout) = (random(&mut stream, len), random(&mut stream, len));
            let (mut out, mut expected) = (vec![0.0; len], vec![0.0; len]);
            forward_rows(isa, &mut out, &gate, &up);
            forward(&mut expected, &gate, &up);
            assert_close(&out, &expected, 1e-6);
            let (mut dgate, mut dup) = (vec![0.0; len], vec![0.0; len]);
            backward_rows(isa, &mut dgate, &mut dup, &dout, &gate, &up);
            let (mut expected_gate, mut expected_up) = (vec![0.0; len], vec![0.0; len]);
            backward(&mut expected_gate, &mut expected_up, &dout, &gate, &up);
            // 1 - σ loses its low bits if σ is close to 1, and is multiplied by a gate of 30.
            assert_close(&dgate, &expected_gate, 5e-6);
            assert_close(&dup, &expected_up, 1e-6);
        }
    }

    #[test]
    fn splitting_a_range_changes_no_bit() {
        let mut stream = Stream::new(23);
        let (gate, up) = (random(&mut stream, 100), random(&mut stream, 100));
        for isa in Isa::supported() {
            let (mut whole, mut parts) = (vec![0.0; 100], vec![0.0; 100]);
            forward_rows(isa, &mut whole, &gate, &up);
            forward_rows(isa, &mut parts[..37], &gate[..37], &up[..37]);
            forward_rows(isa, &mut parts[37..], &gate[37..], &up[37..]);
            assert_eq!(whole, parts, "{isa}");
        }
    }
}
