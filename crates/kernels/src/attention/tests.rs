use super::*;
use crate::Isa;
use crate::finite_difference::{assert_close, check, inner, random};
use crate::rng::Stream;

const DIMS: AttentionDims = AttentionDims { heads: 4, kv_heads: 2, head_dim: 4 };

#[test]
fn the_first_query_copies_its_value_and_equal_scores_average() {
    let dims = AttentionDims { heads: 1, kv_heads: 1, head_dim: 2 };
    let segment = Segment { q_start: 0, q_len: 2, kv_start: 0, kv_len: 2 };
    let (mut out, mut lse) = ([0.0; 4], [0.0; 2]);
    forward(&mut out, &mut lse, &[0.0; 4], &[1.0; 4], &[1.0, 2.0, 3.0, 4.0], &[segment], dims);
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
    forward(&mut out, &mut lse, &q, &k, &v, &[whole], DIMS);
    let (mut tail, mut tail_lse) = (vec![0.0; 2 * 16], vec![0.0; 2 * 4]);
    let last = Segment { q_start: 0, q_len: 2, kv_start: 0, kv_len: n };
    forward(&mut tail, &mut tail_lse, &q[5 * 16..], &k, &v, &[last], DIMS);
    assert_eq!((&out[5 * 16..], &lse[5 * 4..]), (&tail[..], &tail_lse[..]));
}

#[test]
fn backward_matches_finite_differences() {
    // Two packed sequences, one with a prefix of three keys that are not queried.
    let segments = [
        Segment { q_start: 0, q_len: 3, kv_start: 0, kv_len: 3 },
        Segment { q_start: 3, q_len: 2, kv_start: 3, kv_len: 5 },
    ];
    let (mut stream, n, m) = (Stream::new(10), 5, 8);
    let (q, dout) = (random(&mut stream, n * 16), random(&mut stream, n * 16));
    let (k, v) = (random(&mut stream, m * 8), random(&mut stream, m * 8));
    let (mut out, mut lse) = (vec![0.0; n * 16], vec![0.0; n * 4]);
    forward(&mut out, &mut lse, &q, &k, &v, &segments, DIMS);
    let (mut dq, mut dk, mut dv) = (vec![9.0; n * 16], vec![9.0; m * 8], vec![9.0; m * 8]);
    backward(&mut dq, &mut dk, &mut dv, &dout, &out, &lse, &q, &k, &v, &segments, DIMS);
    let loss = |q: &[f32], k: &[f32], v: &[f32]| {
        let (mut out, mut lse) = (vec![0.0; n * 16], vec![0.0; n * 4]);
        forward(&mut out, &mut lse, q, k, v, &segments, DIMS);
        inner(&out, &dout)
    };
    check(&q, &dq, |q| loss(q, &k, &v));
    check(&k, &dk, |k| loss(&q, k, &v));
    check(&v, &dv, |v| loss(&q, &k, v));
}

#[test]
fn every_isa_matches_the_reference_whatever_the_shape() {
    let mut stream = Stream::new(28);
    let shapes = [(1, 1, 8), (4, 2, 16), (6, 2, 20), (3, 1, 64), (2, 2, 80), (2, 1, 128)];
    for (isa, (heads, kv_heads, head_dim)) in
        Isa::supported().flat_map(|isa| shapes.into_iter().map(move |s| (isa, s)))
    {
        let dims = AttentionDims { heads, kv_heads, head_dim };
        let segments = [
            Segment { q_start: 0, q_len: 1, kv_start: 0, kv_len: 1 },
            Segment { q_start: 1, q_len: 7, kv_start: 1, kv_len: 7 },
            Segment { q_start: 8, q_len: 64, kv_start: 8, kv_len: 64 },
            Segment { q_start: 72, q_len: 1, kv_start: 72, kv_len: 100 },
            Segment { q_start: 73, q_len: 61, kv_start: 172, kv_len: 130 },
            Segment { q_start: 134, q_len: 203, kv_start: 302, kv_len: 203 },
        ];
        let (n, m) = (337 * heads, 505 * kv_heads * head_dim);
        let q: Vec<f32> = random(&mut stream, n * head_dim).iter().map(|q| 3.0 * q).collect();
        let dout = random(&mut stream, n * head_dim);
        let (k, v) = (random(&mut stream, m), random(&mut stream, m));
        let (mut out, mut lse) = (vec![7.0; n * head_dim], vec![7.0; n]);
        let (mut found, mut found_lse) = (out.clone(), lse.clone());
        forward(&mut out, &mut lse, &q, &k, &v, &segments, dims);
        forward_tiled(isa, &mut found, &mut found_lse, &q, &k, &v, &segments, dims);
        assert_close(&found, &out, 5e-6);
        assert_close(&found_lse, &lse, 5e-6);
        let zeros = |len: usize| vec![7.0; len];
        let (mut dq, mut dk, mut dv) = (zeros(n * head_dim), zeros(m), zeros(m));
        let (mut found_q, mut found_k, mut found_v) = (dq.clone(), dk.clone(), dv.clone());
        backward(&mut dq, &mut dk, &mut dv, &dout, &out, &lse, &q, &k, &v, &segments, dims);
        let (dq_, dk_, dv_) = (&mut found_q, &mut found_k, &mut found_v);
        backward_tiled(isa, dq_, dk_, dv_, &dout, &out, &lse, &q, &k, &v, &segments, dims);
        assert_close(&found_q, &dq, 2e-5);
        assert_close(&found_k, &dk, 2e-5);
        assert_close(&found_v, &dv, 2e-5);
    }
}
