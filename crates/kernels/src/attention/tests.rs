use super::*;
use crate::finite_difference::{assert_close, check, inner, random};
use crate::rng::Stream;
use crate::{
    AttentionGrads, AttentionSaved, Backend, Buffer, Cpu, CpuOptions, DType, Isa, Segments, bf16_to_f32,
    f32_to_bf16,
};

const DIMS: AttentionDims = AttentionDims { heads: 4, kv_heads: 2, head_dim: 4 };

const SHAPES: [(usize, usize, usize); 8] =
    [(1, 1, 8), (4, 2, 16), (6, 2, 20), (3, 1, 64), (2, 2, 80), (2, 1, 128), (50, 1, 3), (3, 3, 5)];
/// Scores without a window, with a window inside a panel of 64 keys, and with a window over several panels.
const SCORES: [AttentionScores; 3] = [
    AttentionScores { scale: 0.5, window: None, softcap: None },
    AttentionScores { scale: 0.7, window: Some(2), softcap: Some(1.5) },
    AttentionScores { scale: 0.3, window: Some(70), softcap: Some(4.0) },
];
const SEGMENTS: [Segment; 6] = [
    Segment { q_start: 0, q_len: 1, kv_start: 0, kv_len: 1 },
    Segment { q_start: 1, q_len: 7, kv_start: 1, kv_len: 7 },
    Segment { q_start: 8, q_len: 64, kv_start: 8, kv_len: 64 },
    Segment { q_start: 72, q_len: 1, kv_start: 72, kv_len: 100 },
    Segment { q_start: 73, q_len: 61, kv_start: 172, kv_len: 130 },
    Segment { q_start: 134, q_len: 203, kv_start: 302, kv_len: 203 },
];

#[test]
fn the_first_query_copies_its_value_and_equal_scores_average() {
    let dims = AttentionDims { heads: 1, kv_heads: 1, head_dim: 2 };
    let segment = Segment { q_start: 0, q_len: 2, kv_start: 0, kv_len: 2 };
    let (mut out, mut lse) = ([0.0; 4], [0.0; 2]);
    let (q, k, v) = (&[0.0; 4], &[1.0; 4], &[1.0, 2.0, 3.0, 4.0]);
    forward(
        &mut out,
        &mut lse,
        AttentionInputs {
            q,
            k,
            v,
            segments: &[segment],
            dims,
            scores: AttentionScores::of_head_dim(dims.head_dim),
        },
    );
    assert_close(&out, &[1.0, 2.0, 2.0, 3.0], 1e-7);
    assert_close(&lse, &[0.0, 2f32.ln()], 1e-7);
}

#[test]
fn a_cached_prefix_gives_the_rows_of_the_whole_sequence() {
    let (mut stream, n) = (Stream::new(9), 7);
    let q = random(&mut stream, n * 16);
    let (k, v) = (random(&mut stream, n * 8), random(&mut stream, n * 8));
    let (mut out, mut lse) = (vec![0.0; n * 16], vec![0.0; n * 4]);
    let whole = Segment { q_start: 0, q_len: n, kv_start: 0, kv_len: n };
    let inputs = AttentionInputs {
        q: &q,
        k: &k,
        v: &v,
        segments: &[whole],
        dims: DIMS,
        scores: AttentionScores::of_head_dim(4),
    };
    forward(&mut out, &mut lse, inputs);
    let (mut tail, mut tail_lse) = (vec![0.0; 2 * 16], vec![0.0; 2 * 4]);
    let last = Segment { q_start: 0, q_len: 2, kv_start: 0, kv_len: n };
    forward(&mut tail, &mut tail_lse, AttentionInputs { q: &q[5 * 16..], segments: &[last], ..inputs });
    assert_eq!((&out[5 * 16..], &lse[5 * 4..]), (&tail[..], &tail_lse[..]));
}

#[test]
fn backward_matches_finite_differences() {
    SCORES.into_iter().for_each(check_backward);
}

fn check_backward(scores: AttentionScores) {
    // Two packed sequences. The first three keys of the second sequence belong to a prefix without queries.
    let segments = [
        Segment { q_start: 0, q_len: 3, kv_start: 0, kv_len: 3 },
        Segment { q_start: 3, q_len: 2, kv_start: 3, kv_len: 5 },
    ];
    let (mut stream, n, m) = (Stream::new(10), 5, 8);
    let (q, dout) = (random(&mut stream, n * 16), random(&mut stream, n * 16));
    let (k, v) = (random(&mut stream, m * 8), random(&mut stream, m * 8));
    let (mut out, mut lse) = (vec![0.0; n * 16], vec![0.0; n * 4]);
    let inputs = AttentionInputs { q: &q, k: &k, v: &v, segments: &segments, dims: DIMS, scores };
    forward(&mut out, &mut lse, inputs);
    let (mut dq, mut dk, mut dv) = (vec![9.0; n * 16], vec![9.0; m * 8], vec![9.0; m * 8]);
    backward([&mut dq, &mut dk, &mut dv], &dout, &out, &lse, inputs);
    let loss = |q: &[f32], k: &[f32], v: &[f32]| {
        let (mut out, mut lse) = (vec![0.0; n * 16], vec![0.0; n * 4]);
        forward(&mut out, &mut lse, AttentionInputs { q, k, v, ..inputs });
        inner(&out, &dout)
    };
    check(&q, &dq, |q| loss(q, &k, &v));
    check(&k, &dk, |k| loss(&q, k, &v));
    check(&v, &dv, |v| loss(&q, &k, v));
}

/// Returns `out`, `lse`, `dq`, `dk` and `dv` of `backend`. The backward pass reads `out` and `lse` from
/// `expected`.
fn attend(
    backend: &dyn Backend,
    operands: &[Vec<f32>; 4],
    expected: [&[f32]; 2],
    (dims, scores): (AttentionDims, AttentionScores),
) -> [Vec<f32>; 5] {
    let [q, k, v, dout] = &operands.each_ref().map(|data| Buffer::from_vec(data.clone()));
    let [expected_out, expected_lse] = &expected.map(|data| Buffer::from_vec(data.to_vec()));
    let mut found = [expected_out, expected_lse, q, k, v].map(|like| Buffer::from_vec(vec![7.0; like.len()]));
    let [out, lse, dq, dk, dv] = &mut found;
    let segments = Segments::host(SEGMENTS.to_vec());
    let operands = AttentionOperands { q, k, v, segments: &segments, dims, scores };
    backend.attention_forward(out, lse, operands);
    let saved = AttentionSaved { out: expected_out, lse: expected_lse };
    backend.attention_backward(AttentionGrads { dq, dk, dv }, dout, saved, operands);
    found.map(|buffer| buffer.host_slice().to_vec())
}

/// Returns the same results as `attend`, computed in f64.
fn reference(
    [q, k, v, dout]: &[Vec<f32>; 4],
    (dims, scores): (AttentionDims, AttentionScores),
) -> [Vec<f32>; 5] {
    let mut expected =
        [q.len(), q.len() / dims.head_dim, q.len(), k.len(), k.len()].map(|len| vec![7.0; len]);
    let [out, lse, dq, dk, dv] = &mut expected;
    let inputs = AttentionInputs { q, k, v, segments: &SEGMENTS, dims, scores };
    forward(out, lse, inputs);
    backward([dq, dk, dv], dout, out, lse, inputs);
    expected
}

/// Returns random operands for all of `SEGMENTS`. The numbers of queries and keys are not multiples of the
/// vector length.
fn operands(stream: &mut Stream, (heads, kv_heads, head_dim): (usize, usize, usize)) -> [Vec<f32>; 4] {
    let (n, m) = (337 * heads * head_dim, 505 * kv_heads * head_dim);
    let q = random(stream, n).iter().map(|q| 3.0 * q).collect();
    [q, random(stream, m), random(stream, m), random(stream, n)]
}

#[test]
fn every_isa_matches_the_reference_whatever_the_shape() {
    let mut stream = Stream::new(28);
    for (shape @ (heads, kv_heads, head_dim), scores) in
        SHAPES.into_iter().flat_map(|shape| SCORES.map(|scores| (shape, scores)))
    {
        let dims = (AttentionDims { heads, kv_heads, head_dim }, scores);
        let operands = operands(&mut stream, shape);
        let expected = reference(&operands, dims);
        for isa in Isa::supported() {
            let run = |dtype| {
                let options = CpuOptions { threads: Some(1), isa: Some(isa), dtype };
                attend(&Cpu::new(options), &operands, [&expected[0], &expected[1]], dims)
            };
            let found = run(DType::F32);
            for (which, (found, expected)) in found.iter().zip(&expected).enumerate() {
                assert_close(found, expected, if which < 2 { 5e-6 } else { 2e-5 });
            }
            if !isa.multiplies_bf16() {
                assert!(found == run(DType::Bf16), "{isa} has no products of bf16");
            }
        }
    }
}

/// If the operands are exact in bf16, only the attention weights and the gradients of the scores are rounded.
#[test]
fn bf16_rounds_operands_and_nothing_else() {
    let mut stream = Stream::new(29);
    for shape @ (heads, kv_heads, head_dim) in SHAPES {
        let scores = AttentionScores::of_head_dim(head_dim);
        let dims = (AttentionDims { heads, kv_heads, head_dim }, scores);
        let mut operands = operands(&mut stream, shape);
        let scale = scores.scale;
        // The back end multiplies queries by the scale before it rounds the queries.
        for (factor, operand) in [scale, 1.0, 1.0, 1.0].into_iter().zip(&mut operands) {
            operand.iter_mut().for_each(|x| *x = bf16_to_f32(f32_to_bf16(*x * factor)) / factor);
        }
        let expected = reference(&operands, dims);
        for isa in Isa::supported().filter(|isa| isa.multiplies_bf16()) {
            let options = CpuOptions { threads: Some(1), isa: Some(isa), dtype: DType::Bf16 };
            let found = attend(&Cpu::new(options), &operands, [&expected[0], &expected[1]], dims);
            // Each weight has a relative error of at most 2^-8. The weights of a row sum to 1, values are at
            // most 1, and the errors average out.
            assert_close(&found[0], &expected[0], 0.5f32.powi(9) + 5e-6);
            assert_close(&found[1], &expected[1], 5e-6);
            // Each term of a gradient has a relative error of at most 2^-8, with either sign, so the errors
            // average out.
            for (found, expected) in found[2..].iter().zip(&expected[2..]) {
                let wrong: Vec<f32> = found.iter().zip(expected).map(|(f, e)| f - e).collect();
                let share = (inner(&wrong, &wrong) / inner(expected, expected)).sqrt();
                assert!(share < 0.5f64.powi(8), "{isa} {shape:?}: {share:e}");
            }
        }
    }
}

/// Decoding one or several rows at a time from a cache gives the same bits as the full pass.
#[test]
fn rows_alone_have_the_bits_of_rows_together() {
    let mut stream = Stream::new(30);
    for (heads, kv_heads, head_dim) in [(4, 2, 16), (6, 2, 20), (2, 1, 256)] {
        let dims = AttentionDims { heads, kv_heads, head_dim };
        let (n, width) = (131, heads * head_dim);
        let q = random(&mut stream, n * width);
        let [k, v] = [0; 2].map(|_| Buffer::from_vec(random(&mut stream, n * kv_heads * head_dim)));
        for (isa, dtype) in Isa::supported().flat_map(|isa| [(isa, DType::F32), (isa, DType::Bf16)]) {
            let cpu = Cpu::new(CpuOptions { threads: Some(1), isa: Some(isa), dtype });
            // Runs `q_len` queries from query `first` on.
            let run = |first: usize, q_len: usize| {
                let q = Buffer::from_vec(q[first * width..][..q_len * width].to_vec());
                let (mut out, mut lse) = (Buffer::host(q_len * width), Buffer::host(q_len * heads));
                let segment = Segment { q_start: 0, q_len, kv_start: 0, kv_len: first + q_len };
                let segments = &Segments::host(vec![segment]);
                cpu.attention_forward(
                    &mut out,
                    &mut lse,
                    AttentionOperands {
                        q: &q,
                        k: &k,
                        v: &v,
                        segments,
                        dims,
                        scores: AttentionScores::of_head_dim(dims.head_dim),
                    },
                );
                (out.host_slice().to_vec(), lse.host_slice().to_vec())
            };
            let (out, lse) = run(0, n);
            for (first, q_len) in [(0, 1), (1, 1), (63, 2), (64, 65), (n - 1, 1)] {
                let found = run(first, q_len);
                let expected =
                    (&out[first * width..][..q_len * width], &lse[first * heads..][..q_len * heads]);
                assert_eq!((&found.0[..], &found.1[..]), expected, "{isa} {dtype:?} {dims:?} {first}");
            }
        }
    }
}

/// A constant that is added to all values must not change the gradients of the scores, even after rounding.
#[test]
fn what_all_values_share_leaves_the_gradients_of_queries_alone() {
    let mut stream = Stream::new(31);
    for shape @ (heads, kv_heads, head_dim) in SHAPES {
        let dims = AttentionDims { heads, kv_heads, head_dim };
        let mut operands = operands(&mut stream, shape);
        operands[2].iter_mut().for_each(|v| *v = bf16_to_f32(f32_to_bf16(*v + 10.0)));
        let dims = (dims, AttentionScores::of_head_dim(head_dim));
        let expected = reference(&operands, dims);
        for isa in Isa::supported().filter(|isa| isa.multiplies_bf16()) {
            let options = CpuOptions { threads: Some(1), isa: Some(isa), dtype: DType::Bf16 };
            let cpu = Cpu::new(options);
            let forward = attend(&cpu, &operands, [&expected[0], &expected[1]], dims);
            let found = attend(&cpu, &operands, [&forward[0], &forward[1]], dims);
            let wrong: Vec<f32> = found[2].iter().zip(&expected[2]).map(|(f, e)| f - e).collect();
            let share = (inner(&wrong, &wrong) / inner(&expected[2], &expected[2])).sqrt();
            // The measured error is 3e-3 to 4.2e-3, the same as for values around zero. If `out` were
            // normalized by the sum of the unrounded weights, the error would be 3e-2.
            assert!(share < 6e-3, "{isa} {shape:?}: {share:e}");
        }
    }
}

/// Sequences with one query each. The lengths include 255, 256 and 257, because a task has at most 256 keys.
/// There are gaps between the keys of the sequences. Keys and queries are in different orders.
const GENERATED: [Segment; 6] = [
    Segment { q_start: 0, q_len: 1, kv_start: 1411, kv_len: 1 },
    Segment { q_start: 1, q_len: 1, kv_start: 0, kv_len: 255 },
    Segment { q_start: 3, q_len: 1, kv_start: 300, kv_len: 256 },
    Segment { q_start: 4, q_len: 1, kv_start: 560, kv_len: 257 },
    Segment { q_start: 5, q_len: 1, kv_start: 820, kv_len: 590 },
    Segment { q_start: 6, q_len: 1, kv_start: 256, kv_len: 17 },
];

/// Returns `out` and `lse` of [`Backend::attention_decode`].
fn decode(
    backend: &dyn Backend,
    [q, k, v]: [&Buffer; 3],
    segments: &[Segment],
    (dims, scores): (AttentionDims, AttentionScores),
) -> [Vec<f32>; 2] {
    let (mut out, mut lse) = (Buffer::host(q.len()), Buffer::host(q.len() / dims.head_dim));
    let segments = &Segments::host(segments.to_vec());
    backend.attention_decode(&mut out, &mut lse, AttentionOperands { q, k, v, segments, dims, scores });
    [out, lse].map(|buffer| buffer.host_slice().to_vec())
}

/// Returns random operands for [`decode`] as buffers.
fn generated(stream: &mut Stream, (heads, kv_heads, head_dim): (usize, usize, usize)) -> [Buffer; 3] {
    let q = random(stream, 7 * heads * head_dim).iter().map(|q| 3.0 * q).collect();
    let keys = 1412 * kv_heads * head_dim;
    [q, random(stream, keys), random(stream, keys)].map(Buffer::from_vec)
}

#[test]
fn generated_tokens_match_the_reference() {
    let mut stream = Stream::new(32);
    for (shape @ (heads, kv_heads, head_dim), scores) in
        SHAPES.into_iter().flat_map(|shape| SCORES.map(|scores| (shape, scores)))
    {
        let operands = &generated(&mut stream, shape).each_ref().map(|b| b.host_slice().to_vec());
        let buffers = operands.each_ref().map(|data| Buffer::from_vec(data.clone()));
        let dims = AttentionDims { heads, kv_heads, head_dim };
        let [q, k, v] = operands;
        let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; q.len() / head_dim]);
        forward(&mut out, &mut lse, AttentionInputs { q, k, v, segments: &GENERATED, dims, scores });
        for (isa, dtype) in Isa::supported().flat_map(|isa| [(isa, DType::F32), (isa, DType::Bf16)]) {
            let cpu = Cpu::new(CpuOptions { threads: Some(2), isa: Some(isa), dtype });
            let found = decode(&cpu, buffers.each_ref(), &GENERATED, (dims, scores));
            // With bf16, queries and keys have relative errors of up to 2^-8, which the softmax magnifies.
            let is_rounded = dtype == DType::Bf16 && isa.multiplies_bf16();
            let tolerance = if is_rounded { 0.05 } else { 5e-6 };
            assert_close(&found[0], &out, tolerance);
            assert_close(&found[1], &lse, tolerance);
        }
    }
}

#[test]
fn a_generated_token_sees_neither_its_neighbours_nor_its_place() {
    let mut stream = Stream::new(33);
    for shape @ (heads, kv_heads, head_dim) in SHAPES {
        let dims = (AttentionDims { heads, kv_heads, head_dim }, SCORES[0]);
        let [q, k, v] = &generated(&mut stream, shape);
        for (isa, dtype) in Isa::supported().flat_map(|isa| [(isa, DType::F32), (isa, DType::Bf16)]) {
            let cpu = |threads| Cpu::new(CpuOptions { threads: Some(threads), isa: Some(isa), dtype });
            let [out, lse] = decode(&cpu(3), [q, k, v], &GENERATED, dims);
            for segment in GENERATED {
                // Copies rows of the segment to a buffer that begins with these rows.
                let moved = |buffer: &Buffer, row: usize, start: usize, rows: usize| {
                    Buffer::from_vec(buffer.host_slice()[start * row..][..rows * row].to_vec())
                };
                let q = moved(q, heads * head_dim, segment.q_start, 1);
                let [k, v] =
                    [k, v].map(|kv| moved(kv, kv_heads * head_dim, segment.kv_start, segment.kv_len));
                let alone = Segment { q_start: 0, kv_start: 0, ..segment };
                let found = decode(&cpu(1), [&q, &k, &v], &[alone], dims);
                let row = segment.q_start * heads;
                assert_eq!(found[0], out[row * head_dim..][..heads * head_dim], "{isa} {dtype:?}");
                assert_eq!(found[1], lse[row..][..heads], "{isa} {dtype:?}");
            }
        }
    }
}
