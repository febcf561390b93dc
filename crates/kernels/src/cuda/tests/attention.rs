use super::*;
use crate::attention::{self, AttentionInputs};
use crate::cuda::ops::attention::{
    self as device_attention, Grads, Operands, Saved, SegmentsOnDevice, Tiles,
};
use crate::{AttentionDims, AttentionScores, Segment};

fn segment(q_start: usize, q_len: usize, kv_start: usize, kv_len: usize) -> Segment {
    Segment { q_start, q_len, kv_start, kv_len }
}

/// Llama's scores, then a cap with a window that is smaller than a tile, then a window that covers several
/// tiles.
const SCORES: [AttentionScores; 3] = [
    AttentionScores { scale: 0.3, window: None, softcap: None },
    AttentionScores { scale: 0.7, window: Some(5), softcap: Some(1.5) },
    AttentionScores { scale: 0.2, window: Some(90), softcap: None },
];

fn check(
    device: &Arc<Device>,
    dtype: DType,
    segments: &[Segment],
    (dims, scores): (AttentionDims, AttentionScores),
    stream: &mut Stream,
) {
    let AttentionDims { heads, kv_heads, head_dim } = dims;
    let n = segments.iter().map(|s| s.q_start + s.q_len).max().unwrap();
    let m = segments.iter().map(|s| s.kv_start + s.kv_len).max().unwrap();
    let (wide, narrow) = (heads * head_dim, kv_heads * head_dim);
    let [q, dout] = [0; 2].map(|_| rounded(stream, dtype, n * wide));
    let [k, v] = [0; 2].map(|_| rounded(stream, dtype, m * narrow));
    let (mut out, mut lse) = (vec![0.0; n * wide], vec![0.0; n * heads]);
    let inputs = AttentionInputs { q: &q, k: &k, v: &v, segments, dims, scores };
    attention::forward(&mut out, &mut lse, inputs);
    let numbers: Vec<u32> =
        segments.iter().flat_map(|s| [s.q_start, s.q_len, s.kv_start, s.kv_len]).map(|x| x as u32).collect();
    let tiles = Tiles::of(segments);
    let (table, list) = (words(device, &numbers), words(device, &tiles.words));
    let [dq_, dk_, dv_] =
        [(n, wide), (m, narrow), (m, narrow)].map(|(n, w)| Values::poisoned(device, dtype, n * w));
    let [q_, dout_] = [&q, &dout].map(|values| Values::new(device, dtype, values));
    let [k_, v_] = [&k, &v].map(|values| Values::new(device, dtype, values));
    let (out_, lse_) =
        (Values::poisoned(device, dtype, n * wide), Values::poisoned(device, DType::F32, n * heads));
    let (wide_rows, narrow_rows) =
        (|x: &Values| Rows::dense(x.ptr(), wide), |x: &Values| Rows::dense(x.ptr(), narrow));
    let on_device = SegmentsOnDevice { segments: table.address(), words: list.address(), tiles: &tiles };
    let (q_rows, k_rows, v_rows) = (wide_rows(&q_), narrow_rows(&k_), narrow_rows(&v_));
    let operands = Operands { q: q_rows, k: k_rows, v: v_rows, segments: on_device, dims, scores };
    device_attention::forward(device, dtype, wide_rows(&out_), lse_.ptr(), operands);
    assert_near(&out_.read(), &out, dtype, &format!("out {dims:?} {scores:?} {segments:?}"));
    assert_near(&lse_.read(), &lse, DType::F32, &format!("lse {dims:?} {scores:?} {segments:?}"));

    let (mut dq, mut dk, mut dv) = (vec![0.0; n * wide], vec![0.0; m * narrow], vec![0.0; m * narrow]);
    let (found, lse) = (out_.read(), lse_.read());
    attention::backward([&mut dq, &mut dk, &mut dv], &dout, &found, &lse, inputs);
    let grads = Grads { dq: wide_rows(&dq_), dk: narrow_rows(&dk_), dv: narrow_rows(&dv_) };
    let saved = Saved { dout: wide_rows(&dout_), out: wide_rows(&out_), lse: lse_.ptr(), n };
    let run = || {
        device_attention::backward(device, dtype, grads, saved, operands);
        [&dq_, &dk_, &dv_].map(Values::read)
    };
    let found = run();
    for (found, (expected, what)) in found.iter().zip([(dq, "dq"), (dk, "dk"), (dv, "dv")]) {
        assert_near(found, &expected, dtype, &format!("{what} {dims:?} {scores:?} {segments:?}"));
    }
    assert!(run() == found, "{dims:?} {scores:?} {segments:?} in {dtype:?} gives other bits a second time");
}

#[test]
fn attention_matches_the_reference_for_every_head_size() {
    let Some(device) = device() else { return };
    let mut stream = Stream::new(59);
    let packed = [segment(0, 1, 0, 1), segment(1, 66, 1, 66), segment(67, 130, 67, 130)];
    let cached = [segment(0, 5, 0, 77), segment(5, 70, 77, 200)];
    for (dtype, head_dim) in dtypes(&device).flat_map(|d| [6, 32, 64, 96, 128, 256].map(|h| (d, h))) {
        for (segments, scores) in
            SCORES.into_iter().flat_map(|scores| [(&packed[..], scores), (&cached, scores)])
        {
            let dims = AttentionDims { heads: 4, kv_heads: 2, head_dim };
            check(&device, dtype, segments, (dims, scores), &mut stream);
        }
    }
}

#[test]
fn one_query_a_segment_reads_its_cache() {
    let Some(device) = device() else { return };
    let mut stream = Stream::new(60);
    let segments = [segment(0, 1, 0, 1), segment(1, 1, 1, 255), segment(2, 1, 256, 700)];
    let alone = [segment(0, 1, 0, 50)];
    let long = [segment(0, 1, 0, 9000)];
    for (dtype, head_dim) in dtypes(&device).flat_map(|d| [6, 64, 80, 128, 256].map(|h| (d, h))) {
        for ((heads, kv_heads), scores) in
            SCORES.into_iter().flat_map(|scores| [((2, 2), scores), ((10, 2), scores)])
        {
            let dims = AttentionDims { heads, kv_heads, head_dim };
            check(&device, dtype, &segments, (dims, scores), &mut stream);
            check(&device, dtype, &alone, (dims, scores), &mut stream);
        }
    }
    // `long` has 9000 / 64 = 141 partial results, and `attention_decode_join` merges 128 at a time.
    let dims = AttentionDims { heads: 1, kv_heads: 1, head_dim: 64 };
    for dtype in dtypes(&device) {
        check(&device, dtype, &long, (dims, SCORES[0]), &mut stream);
    }
}
