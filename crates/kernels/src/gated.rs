//! Gated activations of feed-forward blocks: `out = activation(gate) · up`.

use crate::{Isa, geglu, swiglu};

/// Activation function of the gate in a feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateActivation {
    /// `x / (1 + e^-x)`. See [`swiglu`].
    Silu,
    /// GELU with the tanh approximation. See [`geglu`].
    GeluTanh,
}

impl GateActivation {
    /// Computes `out = activation(gate) · up` in f64, element by element.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn forward(self, out: &mut [f32], gate: &[f32], up: &[f32]) {
        match self {
            Self::Silu => swiglu::forward(out, gate, up),
            Self::GeluTanh => geglu::forward(out, gate, up),
        }
    }

    /// Computes the backward of [`forward`](Self::forward). Overwrites `dgate` and `dup`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn backward(self, dgate: &mut [f32], dup: &mut [f32], dout: &[f32], gate: &[f32], up: &[f32]) {
        match self {
            Self::Silu => swiglu::backward(dgate, dup, dout, gate, up),
            Self::GeluTanh => geglu::backward(dgate, dup, dout, gate, up),
        }
    }

    /// Computes [`forward`](Self::forward) in f32, for any range of elements.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn forward_rows(self, isa: Isa, out: &mut [f32], gate: &[f32], up: &[f32]) {
        match self {
            Self::Silu => swiglu::forward_rows(isa, out, gate, up),
            Self::GeluTanh => geglu::forward_rows(isa, out, gate, up),
        }
    }

    /// Computes [`backward`](Self::backward) in f32, for any range of elements.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn backward_rows(
        self,
        isa: Isa,
        dgate: &mut [f32],
        dup: &mut [f32],
        dout: &[f32],
        gate: &[f32],
        up: &[f32],
    ) {
        match self {
            Self::Silu => swiglu::backward_rows(isa, dgate, dup, dout, gate, up),
            Self::GeluTanh => geglu::backward_rows(isa, dgate, dup, dout, gate, up),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finite_difference::{assert_close, check, inner, random};
    use crate::rng::Stream;

    const ALL: [GateActivation; 2] = [GateActivation::Silu, GateActivation::GeluTanh];

    #[test]
    fn a_closed_gate_gives_nothing_and_an_open_one_its_input() {
        for activation in ALL {
            let mut out = [1.0; 3];
            activation.forward(&mut out, &[-1000.0, 0.0, 1000.0], &[3.0, 3.0, 0.5]);
            assert_eq!(out, [0.0, 0.0, 500.0], "{activation:?}");
        }
    }

    #[test]
    fn backward_matches_finite_differences() {
        for activation in ALL {
            let (mut stream, len) = (Stream::new(4), 11);
            let gate: Vec<f32> = random(&mut stream, len).iter().map(|g| g * 4.0).collect();
            let (up, dout) = (random(&mut stream, len), random(&mut stream, len));
            let (mut dgate, mut dup, mut out) = (vec![0.0; len], vec![0.0; len], vec![0.0; len]);
            activation.backward(&mut dgate, &mut dup, &dout, &gate, &up);
            check(&gate, &dgate, |gate| {
                activation.forward(&mut out, gate, &up);
                inner(&out, &dout)
            });
            check(&up, &dup, |up| {
                activation.forward(&mut out, &gate, up);
                inner(&out, &dout)
            });
        }
    }

    /// Compares every instruction set with the reference. The gates are between `-scale` and `scale`. The
    /// tolerance is `close_dgate` for `dgate`, and `close` for the other results.
    fn compare_isas(activation: GateActivation, scale: f32, close: f32, close_dgate: f32) {
        let mut stream = Stream::new(22);
        for (isa, len) in Isa::supported().flat_map(|isa| (0..70).map(move |len| (isa, len))) {
            let gate: Vec<f32> = random(&mut stream, len).iter().map(|g| g * scale).collect();
            let (up, dout) = (random(&mut stream, len), random(&mut stream, len));
            let (mut out, mut expected) = (vec![0.0; len], vec![0.0; len]);
            activation.forward_rows(isa, &mut out, &gate, &up);
            activation.forward(&mut expected, &gate, &up);
            assert_close(&out, &expected, close);
            let (mut dgate, mut dup) = (vec![0.0; len], vec![0.0; len]);
            activation.backward_rows(isa, &mut dgate, &mut dup, &dout, &gate, &up);
            let (mut expected_gate, mut expected_up) = (vec![0.0; len], vec![0.0; len]);
            activation.backward(&mut expected_gate, &mut expected_up, &dout, &gate, &up);
            assert_close(&dgate, &expected_gate, close_dgate);
            assert_close(&dup, &expected_up, close);
        }
    }

    #[test]
    fn every_isa_matches_the_reference_for_every_tail() {
        // If σ is close to 1, the low bits of `1 - σ` are lost. A factor of up to 30, the gate, then
        // magnifies the error.
        compare_isas(GateActivation::Silu, 30.0, 1e-6, 5e-6);
        // If tanh is close to 1, the low bits of `1 - tanh²` are lost. A polynomial of the gate then
        // magnifies the error.
        compare_isas(GateActivation::GeluTanh, 10.0, 3e-6, 3e-5);
    }

    #[test]
    fn splitting_a_range_changes_no_bit() {
        let mut stream = Stream::new(23);
        let (gate, up) = (random(&mut stream, 100), random(&mut stream, 100));
        for (activation, isa) in ALL.into_iter().flat_map(|a| Isa::supported().map(move |isa| (a, isa))) {
            let (mut whole, mut parts) = (vec![0.0; 100], vec![0.0; 100]);
            activation.forward_rows(isa, &mut whole, &gate, &up);
            activation.forward_rows(isa, &mut parts[..37], &gate[..37], &up[..37]);
            activation.forward_rows(isa, &mut parts[37..], &gate[37..], &up[37..]);
            assert_eq!(whole, parts, "{activation:?}, {isa}");
        }
    }
}
