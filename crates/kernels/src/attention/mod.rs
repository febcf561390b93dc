//! Causal grouped-query attention over segments: the reference here, tiles of it in `tiled`.

mod product;
mod tiled;

#[cfg(test)]
pub(crate) use tiled::scratch_bytes;
pub use tiled::{
    Scratch, Task, backward_sizes, backward_task, backward_tasks, backward_tiled, forward_sizes,
    forward_task, forward_tasks, forward_tiled,
};

use crate::math::dot_f64;
use crate::{AttentionDims, Segment};

/// Causal softmax attention inside each segment: with `s = q · k / sqrt(HS)` over the keys a query sees,
/// `out = softmax(s) v` and `lse = log(sum(exp(s)))`.
///
/// | operand  | shape         | note                                         |
/// |----------|---------------|----------------------------------------------|
/// | `out`    | `(N, NH, HS)` |                                              |
/// | `lse`    | `(N, NH)`     | kept for backward                            |
/// | `q`      | `(N, NH, HS)` |                                              |
/// | `k`, `v` | `(M, KH, HS)` | query head `h` reads kv head `h / (NH / KH)` |
///
/// Sources: Vaswani et al., 2017, equation 1, <https://arxiv.org/abs/1706.03762>; grouped queries:
/// Ainslie et al., 2023, <https://arxiv.org/abs/2305.13245>.
///
/// # Panics
/// If a segment has more queries than keys or reaches past a slice, or `NH` is no multiple of `KH`.
pub fn forward(
    out: &mut [f32],
    lse: &mut [f32],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    segments: &[Segment],
    dims: AttentionDims,
) {
    let AttentionDims { heads, kv_heads, head_dim } = dims;
    check_dims(segments, dims);
    let scale = reference_scale(dims);
    for segment in segments {
        for (i, head) in queries(segment, heads) {
            let row = (segment.q_start + i) * heads + head;
            let kv = |j: usize| ((segment.kv_start + j) * kv_heads + head / (heads / kv_heads)) * head_dim;
            let visible = segment.kv_len - segment.q_len + i + 1;
            let query = &q[row * head_dim..][..head_dim];
            let scores: Vec<f64> =
                (0..visible).map(|j| scale * dot_f64(query, &k[kv(j)..][..head_dim])).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            lse[row] = (max + sum.ln()) as f32;
            let mut mixed = vec![0.0f64; head_dim];
            for (j, s) in scores.iter().enumerate() {
                let weight = (s - max).exp() / sum;
                for (o, &v) in mixed.iter_mut().zip(&v[kv(j)..][..head_dim]) {
                    *o += weight * v as f64;
                }
            }
            for (o, mixed) in out[row * head_dim..][..head_dim].iter_mut().zip(mixed) {
                *o = mixed as f32;
            }
        }
    }
}

/// Backward of [`forward`]; overwrites the segments' rows. With `p = exp(s - lse)` and
/// `ds = p · (dout · v - dout · out)`: `dq = Σ ds k / sqrt(HS)`, `dk = Σ ds q / sqrt(HS)`, `dv = Σ p dout`,
/// the last two over every query and every head of the group that sees the key.
///
/// # Panics
/// As [`forward`].
pub fn backward(
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
    dout: &[f32],
    out: &[f32],
    lse: &[f32],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    segments: &[Segment],
    dims: AttentionDims,
) {
    let AttentionDims { heads, kv_heads, head_dim } = dims;
    check_dims(segments, dims);
    let scale = reference_scale(dims);
    for segment in segments {
        let kv_width = kv_heads * head_dim;
        let mut sum_k = vec![0.0f64; segment.kv_len * kv_width];
        let mut sum_v = sum_k.clone();
        for (i, head) in queries(segment, heads) {
            let row = (segment.q_start + i) * heads + head;
            let local = |j: usize| j * kv_width + head / (heads / kv_heads) * head_dim;
            let kv = |j: usize| segment.kv_start * kv_width + local(j);
            let query = &q[row * head_dim..][..head_dim];
            let dy = &dout[row * head_dim..][..head_dim];
            let delta = dot_f64(dy, &out[row * head_dim..][..head_dim]);
            let mut sum_q = vec![0.0f64; head_dim];
            for j in 0..segment.kv_len - segment.q_len + i + 1 {
                let (key, value) = (&k[kv(j)..][..head_dim], &v[kv(j)..][..head_dim]);
                let p = (scale * dot_f64(query, key) - lse[row] as f64).exp();
                let ds = scale * p * (dot_f64(dy, value) - delta);
                for d in 0..head_dim {
                    sum_q[d] += ds * key[d] as f64;
                    sum_k[local(j) + d] += ds * query[d] as f64;
                    sum_v[local(j) + d] += p * dy[d] as f64;
                }
            }
            narrow(&mut dq[row * head_dim..][..head_dim], &sum_q);
        }
        narrow(&mut dk[segment.kv_start * kv_width..][..sum_k.len()], &sum_k);
        narrow(&mut dv[segment.kv_start * kv_width..][..sum_v.len()], &sum_v);
    }
}

fn queries(segment: &Segment, heads: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
    (0..segment.q_len).flat_map(move |i| (0..heads).map(move |head| (i, head)))
}

/// What scores are multiplied by.
fn reference_scale(dims: AttentionDims) -> f64 {
    1.0 / (dims.head_dim as f64).sqrt()
}

fn check_dims(segments: &[Segment], dims: AttentionDims) {
    assert!(dims.kv_heads > 0 && dims.heads.is_multiple_of(dims.kv_heads), "{dims:?}");
    for segment in segments {
        assert!(segment.q_len <= segment.kv_len, "{segment:?}");
    }
}

fn narrow(out: &mut [f32], inp: &[f64]) {
    for (o, &x) in out.iter_mut().zip(inp) {
        *o = x as f32;
    }
}

#[cfg(test)]
mod tests {
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
}
