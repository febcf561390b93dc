use super::*;
use crate::cuda::ops::adamw::{self as device_adamw, Buffers};
use crate::cuda::ops::head_loss::{self as device_head, Operands};
use crate::cuda::ops::lora::{self as device_lora, BackwardPair, ForwardPair, Grads, Pair};
use crate::lora::{LoraDims, LoraParams};
use crate::{AdamW, Buffer, Dropout, LoraRef, adamw, head_loss, lora};

#[test]
fn head_loss_matches_the_reference() {
    let Some(device) = device() else { return };
    let mut stream = Stream::new(56);
    let shapes = [(50, None), (4097, Some(0.7)), (8192, None), (4096, Some(2.0))];
    for (dtype, (v, softcap)) in dtypes(&device).flat_map(|dtype| shapes.map(|shape| (dtype, shape))) {
        let n = 5;
        let logits = rounded(&mut stream, dtype, n * v);
        let targets: Vec<u32> = (0..n).map(|_| stream.next_below(v as u64) as u32).collect();
        let dloss = rounded(&mut stream, DType::F32, n);
        let (mut losses, mut gradient) = (Vec::new(), Vec::new());
        for (i, row) in logits.chunks(v).enumerate() {
            let cap = softcap.map_or(f64::INFINITY, f64::from);
            let tanh = |&x: &f32| (x as f64 / cap).tanh();
            let mut capped: Vec<f64> =
                row.iter().map(|x| if softcap.is_some() { cap * tanh(x) } else { *x as f64 }).collect();
            losses.push(head_loss::softmax_loss(&mut capped, targets[i], dloss[i]));
            gradient.extend(row.iter().zip(&capped).map(|(x, d)| (d * (1.0 - tanh(x) * tanh(x))) as f32));
        }
        let (x, slopes) = (Values::new(&device, dtype, &logits), Values::new(&device, DType::F32, &dloss));
        let targets = words(&device, &targets);
        for dloss in [DevicePtr::NULL, slopes.ptr()] {
            let found = Values::poisoned(&device, DType::F32, n);
            let targets = targets.address();
            let operands = Operands { logits: x.ptr(), losses: found.ptr(), targets, dloss, softcap };
            device_head::head_loss(&device, dtype, operands, n, v);
            // In 16-bit types, the cap uses the fast exponential, so losses with a cap have the tolerance of
            // `dtype`.
            let exact = if softcap.is_some() { dtype } else { DType::F32 };
            assert_near(&found.read(), &losses, exact, "losses");
            let expected = if dloss == DevicePtr::NULL { &logits } else { &gradient };
            assert_near(&x.read(), expected, dtype, "logits");
        }
    }
}

#[test]
fn adamw_and_sums_of_squares_match_the_reference() {
    let Some(device) = device() else { return };
    let (mut stream, len) = (Stream::new(57), 40_001);
    let mut draw = || rounded(&mut stream, DType::F32, len);
    let (mut params, grads, mut m) = (draw(), draw(), draw());
    let mut v: Vec<f32> = draw().iter().map(|v| v * v).collect();
    let step = AdamW {
        learning_rate: 1e-2,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.1,
        step: 3,
        grad_scale: 0.5,
    };
    let [p, g, first, second] =
        [&params, &grads, &m, &v].map(|values| Values::new(&device, DType::F32, values));
    let buffers = Buffers { params: p.ptr(), grads: g.ptr(), m: first.ptr(), v: second.ptr() };
    device_adamw::adamw(&device, buffers, len, step);
    adamw::step(&mut params, &grads, &mut m, &mut v, step);
    for (found, expected) in [(&p, &params), (&first, &m), (&second, &v)] {
        assert_near(&found.read(), expected, DType::F32, "adamw");
    }
    let out = device.allocate(8).unwrap();
    device_adamw::sum_of_squares(&device, out.address(), g.ptr(), len);
    let mut bytes = [0; 8];
    device.download(&mut bytes, out.address()).unwrap();
    let (found, expected) = (f64::from_le_bytes(bytes), adamw::sum_of_squares(&grads));
    assert!((found - expected).abs() < 1e-10 * expected, "{found}, {expected}");
}

/// Shape of a group of low-rank pairs that have the same input.
#[derive(Clone, Copy, Debug)]
struct LoraShape {
    n: usize,
    d_in: usize,
    d_out: [usize; 2],
    rank: usize,
    probability: f32,
}

fn check_lora(device: &Arc<Device>, dtype: DType, shape: LoraShape, stream: &mut Stream) {
    let LoraShape { n, d_in, d_out, rank, probability } = shape;
    let offsets = [0, rank * (d_in + d_out[0])];
    let params = rounded(stream, dtype, rank * (2 * d_in + d_out[0] + d_out[1]));
    let start = rounded(stream, DType::F32, params.len());
    let (inp, dinp) = (rounded(stream, dtype, n * d_in), rounded(stream, dtype, n * d_in));
    let buffer = Buffer::host(0);
    let (on_device, grads) =
        (Values::new(device, DType::F32, &params), Values::new(device, DType::F32, &start));
    let (x, dx) = (Values::new(device, dtype, &inp), Values::new(device, dtype, &dinp));
    let (mut expected_dx, mut expected_grads) = (dinp, start);
    let (mut forward, mut backward, mut held) = (Vec::new(), Vec::new(), Vec::new());
    for (i, d_out) in d_out.into_iter().enumerate() {
        let (a, b) = (offsets[i], offsets[i] + rank * d_in);
        let dropout = (probability > 0.0).then_some(Dropout { probability, key: 99 + i as u64 });
        let reference = LoraRef { params: &buffer, a, b, rank, d_in, d_out, scaling: 0.5 };
        let (a, b) = (a..b, b..b + d_out * rank);
        let (start, dout) = (rounded(stream, dtype, n * d_out), rounded(stream, dtype, n * d_out));
        let (mut out, mut mid) = (start.clone(), vec![0.0; n * rank]);
        let dims = LoraDims::of(&reference);
        let pair = LoraParams { a: &params[a.clone()], b: &params[b.clone()], dims, dropout };
        lora::forward(&mut out, &mut mid, &inp, pair, 0..n);
        let dparams = expected_grads.get_disjoint_mut([a, b]).unwrap();
        lora::backward(Some(&mut expected_dx), dparams, &dout, &inp, &mid, pair, 0..n);
        let y = Values::new(device, dtype, &start);
        let (h, dy) = (Values::poisoned(device, dtype, n * rank), Values::new(device, dtype, &dout));
        let pair = Pair::at(on_device.ptr(), &reference, dropout);
        let rows = |values: &Values, width| Rows::dense(values.ptr(), width);
        forward.push(ForwardPair { pair, mid: rows(&h, rank), out: rows(&y, d_out) });
        backward.push(BackwardPair { pair, mid: rows(&h, rank), dout: rows(&dy, d_out) });
        held.push((y, h, dy, out, mid));
    }
    device_lora::forward(device, (dtype, dtype), Rows::dense(x.ptr(), d_in), n, &forward);
    for (y, h, _, out, mid) in &held {
        assert_near(&h.read(), mid, dtype, &format!("mid {shape:?}"));
        assert_near(&y.read(), out, dtype, &format!("out {shape:?}"));
    }
    let to = Grads { dinp: Some(Rows::dense(dx.ptr(), d_in)), dparams: grads.ptr() };
    device_lora::backward(device, dtype, to, Rows::dense(x.ptr(), d_in), n, &backward);
    assert_near(&dx.read(), &expected_dx, dtype, &format!("dinp {shape:?}"));
    assert_near(&grads.read(), &expected_grads, dtype, &format!("dparams {shape:?}"));
}

#[test]
fn lora_matches_the_reference() {
    let Some(device) = device() else { return };
    let mut stream = Stream::new(58);
    for dtype in dtypes(&device) {
        for (n, d_in, d_out, rank, probability) in [
            (3, 24, [16, 8], 2, 0.3),
            (37, 264, [136, 40], 8, 0.1),
            (130, 64, [24, 16], 20, 0.0),
            (1100, 40, [16, 8], 8, 0.1),
            (9, 37, [13, 11], 3, 0.2),
            (20, 48, [24, 24], 300, 0.0),
        ] {
            let shape = LoraShape { n, d_in, d_out, rank, probability };
            check_lora(&device, dtype, shape, &mut stream);
        }
    }
}
