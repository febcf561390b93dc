//! The gated activation of Llama's feed-forward block.

use crate::math::sigmoid_f64;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finite_difference::{check, inner, random};
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
}
