use super::*;
use crate::cuda::ops::gated::{self as device_gated, GateUp};
use crate::cuda::ops::rmsnorm::{self as device_norm, NormShape, NormTypes, Saved};
use crate::cuda::ops::rope::{self as device_rope, Turn};
use crate::rope::{self, RopeAngles, RopeHeads};
use crate::{GateActivation, RopePairs, RopeRotation, geglu, rmsnorm, swiglu};

#[test]
fn rmsnorm_matches_the_reference() {
    let Some(device) = device() else { return };
    let mut stream = Stream::new(53);
    let pairs = dtypes(&device).map(|dtype| (dtype, dtype)).chain([(DType::F32, DType::F16)]);
    for ((stream_type, dtype), c) in pairs.flat_map(|pair| [24, 257, 4096, 14_336].map(|c| (pair, c))) {
        let (n, types) = (3, NormTypes { stream: stream_type, activation: dtype });
        let shape = NormShape { n, c };
        let inp = rounded(&mut stream, stream_type, n * c);
        let (weight, dout) = (rounded(&mut stream, DType::F32, c), rounded(&mut stream, dtype, n * c));
        let start = rounded(&mut stream, stream_type, n * c);
        let (mut out, mut rstd) = (vec![0.0; n * c], vec![0.0; n]);
        rmsnorm::forward(&mut out, &mut rstd, &inp, &weight, 1e-5, n);
        let (x, w) = (Values::new(&device, stream_type, &inp), Values::new(&device, DType::F32, &weight));
        let y = Values::poisoned(&device, dtype, n * c);
        let scale = Values::poisoned(&device, DType::F32, n);
        let rows = |values: &Values| Rows::dense(values.ptr(), c);
        device_norm::forward(&device, types, (rows(&y), scale.ptr()), rows(&x), w.ptr(), 1e-5, shape);
        assert_near(&y.read(), &out, dtype, "rmsnorm");
        assert_near(&scale.read(), &rstd, DType::F32, "rstd");

        let dy = Values::new(&device, dtype, &dout);
        for accumulates in [true, false] {
            let mut expected = if accumulates { start.clone() } else { vec![0.0; n * c] };
            rmsnorm::backward(&mut expected, &dout, &inp, &scale.read(), &weight, n);
            let dx = match accumulates {
                true => Values::new(&device, stream_type, &start),
                false => Values::poisoned(&device, stream_type, n * c),
            };
            let saved = Saved { inp: rows(&x), rstd: scale.ptr(), weight: w.ptr() };
            device_norm::backward(&device, types, (rows(&dx), accumulates), rows(&dy), saved, shape);
            assert_near(&dx.read(), &expected, stream_type, "rmsnorm backward");
        }
    }
}

#[test]
fn gated_activations_match_the_reference_in_place() {
    let Some(device) = device() else { return };
    let mut stream = Stream::new(54);
    for (dtype, cols) in dtypes(&device).flat_map(|dtype| [13, 176, 4104].map(|cols| (dtype, cols))) {
        for activation in [GateActivation::Silu, GateActivation::GeluTanh] {
            let n = 3;
            let mut draw = |factor: f32| {
                let values = rounded(&mut stream, dtype, n * cols);
                values.into_iter().map(|x| x * factor).collect::<Vec<_>>()
            };
            let (gate, up, dout) = (draw(8.0), draw(1.0), draw(1.0));
            let (mut out, mut dgate, mut dup) =
                (vec![0.0; n * cols], vec![0.0; n * cols], vec![0.0; n * cols]);
            match activation {
                GateActivation::Silu => {
                    swiglu::forward(&mut out, &gate, &up);
                    swiglu::backward(&mut dgate, &mut dup, &dout, &gate, &up);
                }
                GateActivation::GeluTanh => {
                    geglu::forward(&mut out, &gate, &up);
                    geglu::backward(&mut dgate, &mut dup, &dout, &gate, &up);
                }
            }
            let [g, u, dy] = [&gate, &up, &dout].map(|values| Values::new(&device, dtype, values));
            let y = Values::poisoned(&device, dtype, n * cols);
            let inp = GateUp { gate: g.ptr(), up: u.ptr(), stride: cols };
            let (out_rows, dy) = (Rows::dense(y.ptr(), cols), (Rows::dense(dy.ptr(), cols), inp));
            device_gated::forward(&device, dtype, activation, out_rows, inp, (n, cols));
            assert_near(&y.read(), &out, dtype, &format!("{activation:?}"));
            device_gated::backward(&device, dtype, activation, inp, dy, (n, cols));
            assert_near(&g.read(), &dgate, dtype, &format!("{activation:?} dgate"));
            assert_near(&u.read(), &dup, dtype, &format!("{activation:?} dup"));
        }
    }
}

#[test]
fn a_gated_f16_product_stays_finite() {
    let Some(device) = device() else { return };
    let [g, u, y] = [300.0, 400.0, f32::NAN].map(|x| Values::new(&device, DType::F16, &[x, -x]));
    let inp = GateUp { gate: g.ptr(), up: u.ptr(), stride: 2 };
    device_gated::forward(&device, DType::F16, GateActivation::Silu, Rows::dense(y.ptr(), 2), inp, (1, 2));
    assert_eq!(y.read(), [65_504.0, 0.0]);
}

/// Returns three rotations: all elements of a head in halves, a part of the head in halves, and the same part
/// in neighbouring pairs.
fn rotations(head_dim: usize) -> [RopeRotation; 3] {
    let dim = head_dim / 4 * 2;
    [
        RopeRotation::whole(head_dim),
        RopeRotation { dim, pairs: RopePairs::Halves, scale: 1.25 },
        RopeRotation { dim, pairs: RopePairs::Neighbours, scale: 1.0 },
    ]
}

#[test]
fn rope_turns_and_turns_back() {
    let Some(device) = device() else { return };
    for (dtype, head) in dtypes(&device).flat_map(|dtype| [6, 32, 96, 128].map(|head| (dtype, head))) {
        for rotation in rotations(head) {
            check_rope(&device, dtype, head, rotation);
        }
    }
}

fn check_rope(device: &Arc<Device>, dtype: DType, head: usize, rotation: RopeRotation) {
    let (mut stream, RopeRotation { dim, pairs, scale }) = (Stream::new(55), rotation);
    let (n, heads, half) = (5, 3, dim / 2);
    let x = rounded(&mut stream, dtype, n * heads * head);
    // The second table has other frequencies.
    let frequency = |i: usize| 10_000f32.powf(-(i as f32) / half as f32);
    let inv_freq: Vec<f32> = (0..2 * half).map(|i| frequency(i % half) / (1 + i / half) as f32).collect();
    let (positions, tables) = ([0, 1, 7, 4000, 31_999], [0, 1, 0, 0, 1]);
    let mut expected = x.clone();
    let angles = RopeAngles { inv_freq: &inv_freq, positions: &positions, tables: &tables };
    rope::forward(&mut expected, angles, RopeHeads { heads, head_dim: head }, rotation);
    let frequencies = Values::new(device, DType::F32, &inv_freq);
    let [cosines, sines] = [0; 2].map(|_| Values::poisoned(device, DType::F32, n * half));
    let table = device_rope::Table { cosines: cosines.ptr(), sines: sines.ptr(), n, half };
    let (positions, tables) = (words(device, &positions), words(device, &tables));
    let (positions, tables) = (positions.address(), tables.address());
    let angles = device_rope::Angles { inv_freq: frequencies.ptr(), positions, tables, scale };
    device_rope::fill_table(device, table, angles);
    let found = Values::new(device, dtype, &x);
    let rows = Rows::dense(found.ptr(), heads * head);
    // The keys are a copy of the same rows. Only the first two heads of the keys are rotated.
    let keys = Values::new(device, dtype, &x);
    let (both, counts) = ([rows, Rows::dense(keys.ptr(), heads * head)], [heads, 2]);
    let shape = device_rope::Heads { counts, head_dim: head, pairs };
    device_rope::rope(device, dtype, both, table, shape, Turn::Forward);
    assert_near(&found.read(), &expected, dtype, &format!("{rotation:?}"));
    for ((found, turned), start) in
        keys.read().chunks(heads * head).zip(expected.chunks(heads * head)).zip(x.chunks(heads * head))
    {
        assert_near(&found[..2 * head], &turned[..2 * head], dtype, "rope of keys");
        assert_eq!(found[2 * head..], start[2 * head..]);
    }
    device_rope::rope(device, dtype, both, table, shape, Turn::Backward);
    let (squared, mut start) = (scale * scale, x);
    for head in start.chunks_exact_mut(head) {
        head[..dim].iter_mut().for_each(|value| *value *= squared);
    }
    assert_near(&found.read(), &start, dtype, "rope back");
}
