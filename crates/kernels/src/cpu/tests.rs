//! Compares the CPU back end with the reference on every instruction set, in f32 and bf16. Results with one,
//! two and three threads must have the same bits.

use super::*;
use crate::finite_difference::random;
use crate::rng::Stream;
use crate::{AttentionDims, AttentionScores};
use crate::{
    Bytes, Dropout, GateActivation, LoraRef, LoraSegment, PackedLora, Reference, RopePairs, RopeRotation,
    Segments, from_f32,
};

const THREADS: [usize; 3] = [1, 2, 3];

/// Runs `op` on `Reference` and on every variant of `Cpu`, and compares the outputs that `op` returns.
fn compare(dtype: DType, tolerance: f32, op: impl Fn(&dyn Backend) -> Vec<Vec<f32>>) {
    let expected = op(&Reference::new());
    for isa in Isa::supported() {
        let results = THREADS
            .map(|threads| op(&Cpu::new(CpuOptions { threads: Some(threads), isa: Some(isa), dtype })));
        for result in &results[1..] {
            for (one, more) in results[0].iter().zip(result) {
                let equal = one.iter().zip(more).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(equal, "{isa}: the number of threads shows in the result");
            }
        }
        for (which, (found, expected)) in results[0].iter().zip(&expected).enumerate() {
            assert_eq!(found.len(), expected.len());
            // The error is divided by the typical size of the output, because an element near zero has the
            // same absolute error as a large element.
            let size = (expected.iter().map(|e| e * e).sum::<f32>() / expected.len() as f32).sqrt();
            for (i, (f, e)) in found.iter().zip(expected).enumerate() {
                let bound = tolerance * (size + e.abs());
                assert!((f - e).abs() <= bound, "{isa} {dtype:?} output {which}[{i}]: {f}, expected {e}");
            }
        }
    }
}

/// Tolerance for a different order of f32 additions.
const F32: f32 = 2e-5;
/// Tolerance for two operands that are rounded to 8 significant bits. The relative error of one operand is at
/// most 2^-8, and the errors average out in a sum.
const BF16: f32 = 2e-2;
/// The gradient of a score is a difference of two dot products with rounded operands, so its tolerance is
/// twice as large.
const BF16_ATTENTION: f32 = 4e-2;

fn buffer(stream: &mut Stream, len: usize) -> Buffer {
    Buffer::from_vec(random(stream, len))
}

fn zeros(backend: &dyn Backend, len: usize) -> Buffer {
    backend.alloc(len, Element::Activation)
}

fn copy(buffer: &Buffer) -> Buffer {
    Buffer::from_vec(buffer.host_slice().to_vec())
}

fn vec(buffer: Buffer) -> Vec<f32> {
    buffer.host_slice().to_vec()
}

/// Returns a weight whose bytes begin at an odd address, as they can in a memory-mapped file.
fn weight(stream: &mut Stream, dtype: DType, rows: usize, cols: usize) -> Matrix {
    let data = random(stream, rows * cols);
    let mut bytes = vec![0u8; 1 + data.len() * dtype.size()];
    from_f32(dtype, &data, &mut bytes[1..]);
    let len = bytes.len();
    Matrix::dense(dtype, Bytes::new(std::sync::Arc::new(bytes), 1..len), rows, cols)
}

#[test]
fn linear_matches_reference() {
    let mut stream = Stream::new(1);
    for (n, d_in, d_out) in [
        (1, 40, 24),
        (1, 33, 5),
        (2, 33, 7),
        (2, 70, 70),
        (3, 33, 70),
        (5, 33, 70),
        (8, 64, 64),
        (9, 33, 70),
        (9, 31, 65),
        (70, 96, 130),
    ] {
        for stored in [DType::F32, DType::Bf16, DType::F16] {
            let w = weight(&mut stream, stored, d_out, d_in);
            let (inp, dout) = (buffer(&mut stream, n * d_in), buffer(&mut stream, n * d_out));
            let dinp = buffer(&mut stream, n * d_in);
            for (dtype, tolerance) in [(DType::F32, F32), (DType::Bf16, BF16)] {
                compare(dtype, tolerance, |b| {
                    let (mut out, mut dinp, mut sum) = (zeros(b, n * d_out), copy(&dinp), copy(&dinp));
                    b.linear_forward(&mut out, &inp, &w, n);
                    b.linear_backward(&mut dinp, Store::Overwrite, &dout, &w, n);
                    b.linear_backward(&mut sum, Store::Accumulate, &dout, &w, n);
                    vec![vec(out), vec(dinp), vec(sum)]
                });
            }
        }
    }
}

#[test]
fn a_generated_row_has_the_same_bits_among_any_number_of_rows() {
    let mut stream = Stream::new(41);
    // The widths include tails and long rows. No number of rows of `W` is a multiple of four.
    for (d_in, d_out) in [(33, 7), (70, 13), (768, 9), (2100, 6)] {
        let n = 70;
        let inp = random(&mut stream, n * d_in);
        let weights = [DType::F32, DType::Bf16, DType::F16].map(|t| weight(&mut stream, t, d_out, d_in));
        for (w, dtype) in weights.iter().flat_map(|w| [(w, DType::F32), (w, DType::Bf16)]) {
            for isa in Isa::supported() {
                let run = |threads, rows: Range<usize>| {
                    let cpu = Cpu::new(CpuOptions { threads: Some(threads), isa: Some(isa), dtype });
                    let inp = Buffer::from_vec(inp[flat(&rows, d_in)].to_vec());
                    let mut out = zeros(&cpu, rows.len() * d_out);
                    cpu.linear_decode(&mut out, &inp, w, rows.len());
                    vec(out)
                };
                let together = run(3, 0..n);
                for rows in [0..1, 3..5, 1..4, 10..18, 5..14, 0..23, 6..n] {
                    let expected = &together[flat(&rows, d_out)];
                    assert_eq!(run(1, rows.clone()), expected, "{isa} {dtype:?} {w:?} {d_in}, rows {rows:?}");
                }
            }
        }
    }
}

#[test]
fn lora_matches_reference() {
    let mut stream = Stream::new(2);
    for (n, d_in, d_out, rank) in
        [(1, 16, 16, 8), (21, 40, 33, 4), (40, 300, 270, 8), (300, 50, 70, 17), (300, 300, 270, 8)]
    {
        let (a, b) = (3, 3 + rank * d_in + 5);
        let params = buffer(&mut stream, b + rank * d_out + 1);
        let inp = buffer(&mut stream, n * d_in);
        let (out, dout) = (buffer(&mut stream, n * d_out), buffer(&mut stream, n * d_out));
        let (dinp, dparams) = (buffer(&mut stream, n * d_in), buffer(&mut stream, params.len()));
        let lora = LoraRef { params: &params, a, b, rank, d_in, d_out, scaling: 0.7 };
        for rows in [0..n, n / 3..n - n / 4] {
            for dropout in [None, Some(Dropout { probability: 0.3, key: 77 })] {
                for wanted in [true, false] {
                    let pair = LoraPair { lora, dropout };
                    compare(DType::Bf16, F32, |backend| {
                        let (mut out, mut mid) = (copy(&out), zeros(backend, n * rank));
                        let (mut dinp, mut dparams) = (copy(&dinp), copy(&dparams));
                        backend.lora_forward(&mut out, &mut mid, &inp, pair, rows.clone());
                        let grads = LoraGrads { dinp: wanted.then_some(&mut dinp), dparams: &mut dparams };
                        backend.lora_backward(grads, &dout, &inp, &mid, pair, rows.clone());
                        vec![vec(out), vec(mid), vec(dinp), vec(dparams)]
                    });
                }
            }
        }
    }
}

/// An adapter of a test: its rows, and its rank for each weight. The rank is `None` if the adapter does not
/// change that weight.
type TestAdapter<'a> = (std::ops::Range<usize>, &'a [Option<usize>]);

/// Runs `Backend::project` on a group of weights. If `packs` is true, the adapters are packed for decoding.
/// If `exact` is true, bf16 stores all their values exactly.
fn project(
    backend: &dyn Backend,
    adapters: &[TestAdapter<'_>],
    n: usize,
    packs: bool,
    exact: bool,
) -> Vec<Vec<f32>> {
    let (mut stream, d_in, d_out) = (Stream::new(8), 70, [45, 64, 1]);
    let values = |stream: &mut Stream, len| -> Vec<f32> {
        let round = |v: f32| if exact { crate::bf16_to_f32(crate::f32_to_bf16(v)) } else { v };
        random(stream, len).into_iter().map(round).collect()
    };
    let count = adapters.first().map_or(1, |(_, ranks)| ranks.len());
    let weights = d_out[..count].iter().map(|&d_out| weight(&mut stream, DType::Bf16, d_out, d_in));
    let weights: Vec<Matrix> = weights.collect();
    let params: Vec<Vec<Buffer>> = adapters
        .iter()
        .map(|(_, ranks)| {
            let len = |(&rank, d_out): (&Option<usize>, usize)| rank.unwrap_or(0) * (d_in + d_out);
            let lens: Vec<usize> = ranks.iter().zip(d_out).map(len).collect();
            lens.into_iter().map(|len| Buffer::from_vec(values(&mut stream, len))).collect()
        })
        .collect();
    let segments: Vec<(LoraSegment<'_>, Vec<Option<PackedLora>>)> = adapters
        .iter()
        .zip(&params)
        .map(|((rows, ranks), params)| {
            let pair = |i: usize| {
                let (rank, params) = (ranks[i]?, &params[i]);
                let lora =
                    LoraRef { params, a: 0, b: rank * d_in, rank, d_in, d_out: d_out[i], scaling: 0.7 };
                Some(LoraPair { lora, dropout: None })
            };
            let pairs: Vec<Option<LoraPair<'_>>> = (0..ranks.len()).map(pair).collect();
            let packed =
                pairs.iter().map(|pair| pair.filter(|_| packs).map(|pair| PackedLora::pack(&pair.lora)));
            let packed = packed.collect();
            (LoraSegment { rows: rows.clone(), pairs, packed: Vec::new() }, packed)
        })
        .collect();
    let lora: Vec<LoraSegment<'_>> = segments
        .iter()
        .map(|(segment, packed)| LoraSegment {
            packed: packed.iter().map(Option::as_ref).collect(),
            ..segment.clone()
        })
        .collect();
    let inp = buffer(&mut stream, n * d_in);
    let residual = (count == 1).then(|| buffer(&mut stream, n * d_out[0]));
    let mut out: Vec<Buffer> = (0..count).map(|i| zeros(backend, n * d_out[i])).collect();
    let mut mid: Vec<Buffer> = (0..count).map(|_| zeros(backend, n * 64)).collect();
    let group =
        ProjectGroup { weights: &weights.iter().collect::<Vec<_>>(), lora: &lora, is_generated: n > 12 };
    let (mut outs, mut mids): (Vec<_>, Vec<_>) = (out.iter_mut().collect(), mid.iter_mut().collect());
    backend.project(&mut outs, &mut mids, &inp, group, residual.as_ref(), n);
    out.into_iter().map(vec).collect()
}

#[test]
fn packed_pairs_of_many_adapters_have_the_bits_of_single_operations() {
    let all = [Some(8), Some(3), Some(64)];
    let (some, none) = ([None, Some(17), None], [None; 3]);
    let cases: [(usize, &[TestAdapter<'_>]); 8] = [
        (1, &[(0..1, &all)]),
        (
            8,
            &[
                (0..1, &all),
                (1..4, &some),
                (4..5, &none),
                (5..6, &[Some(1), Some(64), Some(2)]),
                (7..8, &all),
            ],
        ),
        (8, &[(0..8, &all)]),
        (5, &[(2..5, &[Some(16)])]),
        (8, &[(0..4, &[Some(64)]), (4..8, &[Some(5)])]),
        (3, &[]),
        (12, &[(0..6, &all), (6..12, &some)]),
        // `project` treats more than 12 rows as generated tokens.
        (37, &[(0..20, &all), (20..37, &some)]),
    ];
    for (n, adapters) in cases {
        for exact in [true, false] {
            for dtype in [DType::F32, DType::Bf16] {
                let tolerance = if dtype == DType::F32 { 10.0 * F32 } else { BF16 };
                compare(dtype, tolerance, |backend| project(backend, adapters, n, true, exact));
                for isa in Isa::supported() {
                    let cpu = Cpu::new(CpuOptions { threads: Some(2), isa: Some(isa), dtype });
                    let [packed, single] =
                        [true, false].map(|packs| project(&cpu, adapters, n, packs, exact));
                    assert_eq!(packed, single, "{isa} {dtype:?} {n} rows");
                }
            }
        }
    }
}

#[test]
fn head_loss_matches_reference() {
    let mut stream = Stream::new(3);
    // The shapes cover one block of the vocabulary, several spans with a tail, more rows than one pass
    // processes, and several blocks of columns.
    for (n, c, v) in [
        (1, 16, 40),
        (13, 40, 101),
        (300, 24, 70),
        (17, 30, 5001),
        (530, 9, 259),
        (3, 257, 300),
        (29, 900, 600),
    ] {
        let head = weight(&mut stream, DType::Bf16, v, c);
        let targets: Vec<u32> = (0..n).map(|_| stream.next_below(v as u64) as u32).collect();
        // In the first inputs, the probability of each target is far from 1. Each row of the second inputs is
        // twice the weight row of its target, so the target's probability is almost 1.
        let mut certain = vec![0.0; n * c];
        for (row, &target) in certain.chunks_exact_mut(c).zip(&targets) {
            head.row_to_f32(target as usize, row);
            row.iter_mut().for_each(|x| *x *= 2.0);
        }
        let (targets, dloss) = (Indices::host(targets), buffer(&mut stream, n));
        for inp in [buffer(&mut stream, n * c), Buffer::from_vec(certain)] {
            let variants = [(DType::F32, F32, None), (DType::F32, F32, Some(3.0)), (DType::Bf16, BF16, None)];
            for (dtype, tolerance, softcap) in variants {
                compare(dtype, tolerance, |b| {
                    // The first three losses belong to an earlier pass, so this pass must not change them.
                    let [mut losses, mut plain] = [0; 2].map(|_| Buffer::from_vec(vec![7.0; n + 3]));
                    let mut dinp = zeros(b, n * c);
                    let operands = HeadOperands { inp: &inp, head: &head, targets: &targets, softcap };
                    let grads = HeadGrads { dinp: &mut dinp, dloss: &dloss };
                    b.head_loss(&mut losses, 3, operands, Some(grads));
                    b.head_loss(&mut plain, 3, operands, None);
                    assert_eq!(losses.host_slice(), plain.host_slice());
                    assert_eq!(losses.host_slice()[..3], [7.0; 3]);
                    vec![vec(losses), vec(dinp)]
                });
            }
        }
    }
}

#[test]
fn a_row_of_the_head_does_not_see_the_others() {
    let (mut stream, n, c, v) = (Stream::new(6), 40, 33, 2111);
    let head = weight(&mut stream, DType::Bf16, v, c);
    let inp = random(&mut stream, n * c);
    let targets: Vec<u32> = (0..n).map(|_| stream.next_below(v as u64) as u32).collect();
    for (isa, threads) in Isa::supported().flat_map(|isa| [(isa, 1), (isa, 9)]) {
        let cpu = Cpu::new(CpuOptions { threads: Some(threads), isa: Some(isa), dtype: DType::Bf16 });
        let run = |rows: Range<usize>| {
            let (mut losses, mut dinp) = (zeros(&cpu, rows.len()), zeros(&cpu, rows.len() * c));
            let inp = Buffer::from_vec(inp[flat(&rows, c)].to_vec());
            let targets = Indices::host(targets[rows.clone()].to_vec());
            let operands = HeadOperands { inp: &inp, head: &head, targets: &targets, softcap: None };
            let dloss = Buffer::from_vec(vec![0.5; rows.len()]);
            cpu.head_loss(&mut losses, 0, operands, Some(HeadGrads { dinp: &mut dinp, dloss: &dloss }));
            vec(losses).into_iter().chain(vec(dinp)).map(f32::to_bits).collect::<Vec<_>>()
        };
        let together = run(0..n);
        for rows in [0..1, 0..13, 13..n] {
            let (losses, dinp) = together.split_at(n);
            let expected = [&losses[rows.clone()], &dinp[flat(&rows, c)]].concat();
            assert_eq!(run(rows.clone()), expected, "{isa}, {threads} threads, rows {rows:?}");
        }
    }
}

#[test]
fn elementwise_operations_match_reference() {
    let mut stream = Stream::new(4);
    for (n, c) in [(1, 8), (7, 33), (600, 129)] {
        let len = n * c;
        let [x, y, z] = std::array::from_fn(|_| buffer(&mut stream, len));
        let weight = buffer(&mut stream, c);
        let rows = Indices::host((0..n).map(|_| stream.next_below(n as u64) as u32).collect());
        let reversed = Indices::host((0..n as u32).rev().collect());
        let table = self::weight(&mut stream, DType::Bf16, 50, c);
        let ids = Indices::host((0..n).map(|_| stream.next_below(50) as u32).collect());
        compare(DType::F32, F32, |b| {
            let (mut out, mut rstd, mut dinp, mut sum) = (zeros(b, len), zeros(b, n), copy(&z), copy(&z));
            b.rmsnorm_forward(&mut out, &mut rstd, &x, &weight, 1e-5, n);
            let saved = RmsnormSaved { inp: &x, rstd: &rstd, weight: &weight };
            b.rmsnorm_backward(&mut dinp, Store::Overwrite, &y, saved, n);
            b.rmsnorm_backward(&mut sum, Store::Accumulate, &y, saved, n);
            vec![vec(out), vec(rstd), vec(dinp), vec(sum)]
        });
        for activation in [GateActivation::Silu, GateActivation::GeluTanh] {
            let operands = GatedOperands { gate: &x, up: &y, activation };
            compare(DType::F32, F32, |b| {
                let (mut out, mut dgate, mut dup) = (zeros(b, len), zeros(b, len), zeros(b, len));
                b.gated_forward(&mut out, operands, len);
                b.gated_backward(GatedGrads { dgate: &mut dgate, dup: &mut dup }, &z, operands, len);
                vec![vec(out), vec(dgate), vec(dup)]
            });
        }
        compare(DType::F32, F32, |b| {
            let mut biased = copy(&x);
            b.add_bias(&mut biased, &weight, n);
            vec![vec(biased)]
        });
        compare(DType::F32, F32, |b| {
            let (mut sum, mut gathered, mut added) = (copy(&x), zeros(b, len), copy(&z));
            let (mut keys, mut values) = (copy(&z), copy(&x));
            b.add(&mut sum, &y, len);
            b.gather_rows(&mut gathered, &x, &rows, c);
            b.gather_rows_backward(&mut added, n, &y, &rows, c);
            b.scatter_rows([&mut keys, &mut values], [&y, &z], &reversed, c);
            let mut joined = copy(&z);
            b.join_rows(&mut joined, &y, &reversed, c);
            let (mut copied, mut embedded) = (copy(&z), zeros(b, len));
            b.copy_rows(&mut copied, n / 2, &x, 0, n - n / 2, c);
            b.embedding_forward(&mut embedded, &table, &ids, 1.5);
            let (mut squares, mut read) = (b.alloc_scalars(2), [0.0; 2]);
            b.sum_of_squares(&mut squares, 1, &x, len);
            b.read_scalars(&mut read, &squares).unwrap();
            b.zero(&mut sum, len / 2);
            let moved = [sum, gathered, added, keys, values, joined, copied, embedded].map(vec);
            moved.into_iter().chain([read.map(|v| v as f32).to_vec()]).collect()
        });
        compare(DType::F32, F32, |b| {
            let (mut params, mut m, mut v) = (copy(&x), zeros(b, len), zeros(b, len));
            for step in 1..4 {
                let step = AdamW {
                    learning_rate: 1e-2,
                    beta1: 0.9,
                    beta2: 0.999,
                    eps: 1e-8,
                    weight_decay: 0.1,
                    step,
                    grad_scale: 0.5,
                };
                b.adamw(&mut params, &y, &mut m, &mut v, 0..len / 3, step);
                let faster = AdamW { learning_rate: 3e-2, ..step };
                b.adamw(&mut params, &y, &mut m, &mut v, len / 3..len, faster);
            }
            vec![vec(params), vec(m), vec(v)]
        });
    }
}

#[test]
fn rope_and_attention_match_reference() {
    let mut stream = Stream::new(5);
    for (heads, kv_heads, head_dim) in [(4, 2, 8), (6, 2, 34), (4, 4, 64)] {
        let segments = &Segments::host(vec![
            Segment { q_start: 0, q_len: 1, kv_start: 0, kv_len: 1 },
            Segment { q_start: 1, q_len: 70, kv_start: 1, kv_len: 70 },
            Segment { q_start: 71, q_len: 5, kv_start: 71, kv_len: 40 },
        ]);
        let dims = AttentionDims { heads, kv_heads, head_dim };
        let (n, m) = (76, 111);
        let (q_len, kv_len) = (n * heads * head_dim, m * kv_heads * head_dim);
        let (q, dout) = (buffer(&mut stream, q_len), buffer(&mut stream, q_len));
        let (k, v) = (buffer(&mut stream, kv_len), buffer(&mut stream, kv_len));
        let positions = Indices::host((0..n as u32).map(|i| i * 7 % 500).collect());
        let frequency = |i| 1e4f32.powf(-2.0 * i as f32 / head_dim as f32);
        let inv_freq = Buffer::from_vec((0..head_dim / 2).map(frequency).collect());
        let attention = |b: &dyn Backend| {
            let (mut out, mut lse) = (zeros(b, q_len), zeros(b, n * heads));
            let operands = AttentionOperands {
                q: &q,
                k: &k,
                v: &v,
                segments,
                dims,
                scores: AttentionScores::of_head_dim(dims.head_dim),
            };
            b.attention_forward(&mut out, &mut lse, operands);
            let (mut dq, mut dk, mut dv) = (zeros(b, q_len), zeros(b, kv_len), zeros(b, kv_len));
            let grads = AttentionGrads { dq: &mut dq, dk: &mut dk, dv: &mut dv };
            b.attention_backward(grads, &dout, AttentionSaved { out: &out, lse: &lse }, operands);
            vec![vec(out), vec(lse), vec(dq), vec(dk), vec(dv)]
        };
        compare(DType::F32, F32, attention);
        compare(DType::Bf16, BF16_ATTENTION, attention);
        for (dim, pairs) in [(head_dim, RopePairs::Halves), (head_dim / 4 * 2, RopePairs::Neighbours)] {
            let rotation = RopeRotation { dim, pairs, scale: 1.25 };
            let rope =
                RopeOperands { inv_freq: &inv_freq, positions: &positions, tables: None, dims, rotation };
            compare(DType::F32, F32, |b| {
                let (mut q, mut k, mut dq, mut dk) = (copy(&q), copy(&k), copy(&dout), copy(&v));
                b.rope_forward(&mut q, &mut k, rope);
                b.rope_backward(&mut dq, &mut dk, rope);
                vec![vec(q), vec(k), vec(dq), vec(dk)]
            });
        }
    }
}

#[test]
fn the_name_says_what_runs() {
    let options = CpuOptions { threads: Some(2), isa: Some(Isa::Scalar), dtype: DType::Bf16 };
    assert_eq!(Cpu::new(options).name(), "cpu scalar, 2 threads, bf16");
    assert_eq!(CpuOptions::default().dtype, DType::F32);
}
