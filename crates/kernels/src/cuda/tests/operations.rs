//! Compares every operation of [`Backend`] with the reference, for random shapes that are not multiples of a
//! tile.

use std::ops::Range;

use super::*;
use crate::cuda::weight::{self, Weight};
use crate::cuda::{Cuda, ops};
use crate::{
    AdamW, AttentionDims, AttentionGrads, AttentionOperands, AttentionSaved, AttentionScores, Backend,
    Buffer, Bytes, ColumnProducts, Dropout, Element, FourBit, GateActivation, GatedGrads, GatedOperands,
    HeadGrads, HeadOperands, Indices, LoraPair, LoraRef, LoraSegment, Matrix, NESTED_BLOCK, NF4,
    ProjectGrads, ProjectGroup, ProjectSaved, Reference, RmsnormSaved, RopeOperands, RopePairs, RopeRotation,
    Scales, Segment, Segments, Store, dynamic_u8,
};

/// The device back end and the reference, with equal inputs.
pub(super) struct Both {
    pub cuda: Cuda,
    reference: Reference,
    dtype: DType,
    pub stream: Stream,
}

/// A buffer on each of the two back ends.
pub(super) struct Twin {
    pub device: Buffer,
    host: Buffer,
}

impl Both {
    pub fn open(dtype: DType, seed: u64) -> Option<Self> {
        let cuda = Cuda::on_device(device()?, dtype).unwrap();
        Some(Self { cuda, reference: Reference::new(), dtype, stream: Stream::new(seed) })
    }

    /// Returns random values.
    pub fn values(&mut self, len: usize, element: Element) -> Twin {
        let dtype = if element == Element::Exact { DType::F32 } else { self.dtype };
        let values = rounded(&mut self.stream, dtype, len);
        self.twin(&values, element)
    }

    /// Returns an output that no operation has written yet. Its elements are NaN on the device and zero on
    /// the host.
    fn poisoned(&mut self, len: usize, element: Element) -> Twin {
        let mut twin = self.twin(&vec![0.0; len], element);
        self.cuda.write(&mut twin.device, 0, &vec![f32::NAN; len]);
        twin
    }

    fn twin(&mut self, values: &[f32], element: Element) -> Twin {
        let mut device = self.cuda.alloc(values.len(), element);
        self.cuda.write(&mut device, 0, values);
        Twin { device, host: Buffer::from_vec(values.to_vec()) }
    }

    fn indices(&self, values: &[u32]) -> [Indices; 2] {
        let mut device = Indices::default();
        self.cuda.upload(&mut device, values);
        [device, Indices::host(values.to_vec())]
    }

    fn segments(&self, values: &[Segment]) -> [Segments; 2] {
        let mut device = Segments::host(Vec::new());
        self.cuda.upload_segments(&mut device, values);
        [device, Segments::host(values.to_vec())]
    }

    fn below(&mut self, bound: usize) -> usize {
        self.stream.next_below(bound as u64) as usize
    }

    pub fn read(&self, buffer: &Buffer, len: usize) -> Vec<f32> {
        let mut values = vec![0.0; len];
        self.cuda.read(&mut values, buffer, 0).unwrap();
        values
    }

    /// Compares the first `len` elements on both back ends.
    fn check(&self, twin: &Twin, len: usize, what: &str) {
        let dtype = if self.dtype == DType::F32 { DType::F32 } else { self.dtype };
        assert_near(&self.read(&twin.device, len), &twin.host.host_slice()[..len], dtype, what);
    }
}

fn each(seed: u64, test: impl Fn(&mut Both)) {
    let Some(device) = device() else { return };
    for dtype in dtypes(&device) {
        let Some(mut both) = Both::open(dtype, seed) else { return };
        for _ in 0..3 {
            test(&mut both);
        }
    }
}

const ACTIVATION: Element = Element::Activation;
const EXACT: Element = Element::Exact;

#[test]
fn rows_move_as_in_the_reference() {
    each(41, |both| {
        let (n, m, cols) = (1 + both.below(40), 1 + both.below(30), 1 + both.below(600));
        let inp = both.values(n * cols, ACTIVATION);
        let rows: Vec<u32> = (0..m).map(|_| both.below(n) as u32).collect();
        let [on_device, on_host] = both.indices(&rows);
        let mut out = both.poisoned(m * cols, ACTIVATION);
        both.cuda.gather_rows(&mut out.device, &inp.device, &on_device, cols);
        both.reference.gather_rows(&mut out.host, &inp.host, &on_host, cols);
        both.check(&out, m * cols, "gather_rows");
        let mut back = both.poisoned(n * cols, ACTIVATION);
        both.cuda.gather_rows_backward(&mut back.device, n, &out.device, &on_device, cols);
        both.reference.gather_rows_backward(&mut back.host, n, &out.host, &on_host, cols);
        both.check(&back, n * cols, "gather_rows_backward");

        let mut distinct: Vec<u32> = (0..n as u32).collect();
        both.stream.shuffle(&mut distinct);
        let [on_device, on_host] = both.indices(&distinct);
        let (mut out, mut other) = (both.poisoned(n * cols, ACTIVATION), both.poisoned(n * cols, ACTIVATION));
        let second = both.values(n * cols, ACTIVATION);
        let to = [&mut out.device, &mut other.device];
        both.cuda.scatter_rows(to, [&inp.device, &second.device], &on_device, cols);
        let to = [&mut out.host, &mut other.host];
        both.reference.scatter_rows(to, [&inp.host, &second.host], &on_host, cols);
        both.check(&out, n * cols, "scatter_rows");
        both.check(&other, n * cols, "scatter_rows");
        both.cuda.add(&mut out.device, &inp.device, n * cols);
        both.reference.add(&mut out.host, &inp.host, n * cols);
        both.check(&out, n * cols, "add");
        let mut stream = both.values(n * cols, Element::Residual);
        both.cuda.add(&mut stream.device, &out.device, n * cols);
        both.reference.add(&mut stream.host, &out.host, n * cols);
        both.check(&stream, n * cols, "add to the residual stream");
        let factors = both.values(cols + 3, EXACT);
        both.cuda.scale_columns(&mut out.device, &factors.device, 3, n / 2..n, cols);
        both.reference.scale_columns(&mut out.host, &factors.host, 3, n / 2..n, cols);
        both.check(&out, n * cols, "scale_columns");
        both.cuda.copy_rows(&mut out.device, n - 1, &inp.device, 0, 1, cols);
        both.reference.copy_rows(&mut out.host, n - 1, &inp.host, 0, 1, cols);
        both.check(&out, n * cols, "copy_rows");
        both.cuda.zero(&mut out.device, cols);
        both.reference.zero(&mut out.host, cols);
        both.check(&out, n * cols, "zero");
    });
}

#[test]
fn embeddings_equal_the_reference() {
    each(42, |both| {
        let (n, v, c) = (1 + both.below(90), 2 + both.below(50), 1 + both.below(300));
        let table = rounded(&mut both.stream, both.dtype, v * c);
        let ids: Vec<u32> = (0..n).map(|_| both.below(v) as u32).collect();
        let [on_device, on_host] = both.indices(&ids);
        for dtype in DTYPES {
            let mut bytes = vec![0; v * c * dtype.size()];
            from_f32(dtype, &table, &mut bytes);
            let table = Matrix::dense(dtype, Bytes::from_vec(bytes), v, c);
            let mut out = both.poisoned(n * c, Element::Residual);
            both.cuda.embedding_forward(&mut out.device, &table, &on_device, 1.0);
            both.reference.embedding_forward(&mut out.host, &table, &on_host, 1.0);
            both.check(&out, n * c, "embedding_forward");
        }
    });
}

#[test]
fn norms_equal_the_reference() {
    each(43, |both| {
        let (n, c) = (1 + both.below(70), 1 + both.below(2000));
        let (inp, weight) = (both.values(n * c, Element::Residual), both.values(c, EXACT));
        let (mut out, mut rstd) = (both.poisoned(n * c, ACTIVATION), both.poisoned(n, EXACT));
        both.cuda.rmsnorm_forward(&mut out.device, &mut rstd.device, &inp.device, &weight.device, 1e-5, n);
        both.reference.rmsnorm_forward(&mut out.host, &mut rstd.host, &inp.host, &weight.host, 1e-5, n);
        both.check(&out, n * c, "rmsnorm_forward");
        both.check(&rstd, n, "rmsnorm_forward rstd");
        let dout = both.values(n * c, ACTIVATION);
        for store in [Store::Overwrite, Store::Accumulate] {
            let mut dinp = match store {
                Store::Overwrite => both.poisoned(n * c, Element::Residual),
                Store::Accumulate => both.values(n * c, Element::Residual),
            };
            let saved = RmsnormSaved { inp: &inp.device, rstd: &rstd.device, weight: &weight.device };
            both.cuda.rmsnorm_backward(&mut dinp.device, store, &dout.device, saved, n);
            let saved = RmsnormSaved { inp: &inp.host, rstd: &rstd.host, weight: &weight.host };
            both.reference.rmsnorm_backward(&mut dinp.host, store, &dout.host, saved, n);
            both.check(&dinp, n * c, "rmsnorm_backward");
        }
    });
}

#[test]
fn gated_activations_and_rope_equal_the_reference() {
    each(44, |both| {
        let len = 1 + both.below(20_000);
        let (gate, up, dout) =
            (both.values(len, ACTIVATION), both.values(len, ACTIVATION), both.values(len, ACTIVATION));
        let mut out = both.poisoned(len, ACTIVATION);
        for activation in [GateActivation::Silu, GateActivation::GeluTanh] {
            let on_device = GatedOperands { gate: &gate.device, up: &up.device, activation };
            let on_host = GatedOperands { gate: &gate.host, up: &up.host, activation };
            both.cuda.gated_forward(&mut out.device, on_device, len);
            both.reference.gated_forward(&mut out.host, on_host, len);
            both.check(&out, len, "gated_forward");
            let (mut dgate, mut dup) = (both.poisoned(len, ACTIVATION), both.poisoned(len, ACTIVATION));
            let grads = GatedGrads { dgate: &mut dgate.device, dup: &mut dup.device };
            both.cuda.gated_backward(grads, &dout.device, on_device, len);
            let grads = GatedGrads { dgate: &mut dgate.host, dup: &mut dup.host };
            both.reference.gated_backward(grads, &dout.host, on_host, len);
            both.check(&dgate, len, "gated_backward gate");
            both.check(&dup, len, "gated_backward up");
        }

        let (n, head_dim) = (1 + both.below(50), [8, 64, 96, 128][both.below(4)]);
        let dims = AttentionDims { heads: 6, kv_heads: 2, head_dim };
        let (mut q, mut k) =
            (both.values(n * 6 * head_dim, ACTIVATION), both.values(n * 2 * head_dim, ACTIVATION));
        let inv_freq: Vec<f32> =
            (0..head_dim).map(|i| 1e4f32.powf(-2.0 * i as f32 / head_dim as f32)).collect();
        let inv_freq = both.twin(&inv_freq, EXACT);
        let lists = [4000, 2].map(|bound| (0..n).map(|_| both.below(bound) as u32).collect::<Vec<u32>>());
        let [positions, tables] = lists.map(|list| both.indices(&list));
        let part = RopeRotation { dim: head_dim / 2, pairs: RopePairs::Halves, scale: 1.25 };
        let rotations = [
            (RopeRotation::whole(head_dim), false),
            (part, true),
            (RopeRotation { pairs: RopePairs::Neighbours, scale: 1.0, ..part }, false),
        ];
        for (rotation, uses_tables) in rotations {
            let rope = |inv_freq, positions, tables| {
                let tables = if uses_tables { Some(tables) } else { None };
                RopeOperands { inv_freq, positions, tables, dims, rotation }
            };
            let device = rope(&inv_freq.device, &positions[0], &tables[0]);
            let host = rope(&inv_freq.host, &positions[1], &tables[1]);
            both.cuda.rope_forward(&mut q.device, &mut k.device, device);
            both.reference.rope_forward(&mut q.host, &mut k.host, host);
            both.check(&q, n * 6 * head_dim, &format!("rope_forward q, {rotation:?}"));
            both.check(&k, n * 2 * head_dim, &format!("rope_forward k, {rotation:?}"));
            both.cuda.rope_backward(&mut q.device, &mut k.device, device);
            both.reference.rope_backward(&mut q.host, &mut k.host, host);
            both.check(&q, n * 6 * head_dim, &format!("rope_backward q, {rotation:?}"));
        }
    });
}

#[test]
fn fused_outputs_are_divided_and_joined_as_in_the_reference() {
    each(39, |both| {
        let (n, width, pieces) = (1 + both.below(60), 8 * (1 + both.below(40)), 2 + both.below(5));
        let fused = both.values(n * pieces * width, ACTIVATION);
        // A fused row consists of `pieces` parts of `width` elements. The test gathers the second part of
        // each row.
        let places: Vec<u32> = (0..n).map(|row| (row * pieces + 1) as u32).collect();
        let [on_device, on_host] = both.indices(&places);
        let mut piece = both.poisoned(n * width, ACTIVATION);
        both.cuda.gather_rows(&mut piece.device, &fused.device, &on_device, width);
        both.reference.gather_rows(&mut piece.host, &fused.host, &on_host, width);
        both.check(&piece, n * width, "gather_rows of a piece");
        let (mut joined, part) = (fused, both.values(n * width, ACTIVATION));
        both.cuda.join_rows(&mut joined.device, &part.device, &on_device, width);
        both.reference.join_rows(&mut joined.host, &part.host, &on_host, width);
        both.check(&joined, n * pieces * width, "join_rows");
    });
}

#[test]
fn operations_of_dora_equal_the_reference() {
    each(38, |both| {
        let (n, d_out, d_in, rank) =
            (2 + both.below(200), 1 + both.below(90), 64 * (1 + both.below(9)), 1 + both.below(300));
        let params = both.values(rank * (d_in + d_out), EXACT);
        let lora = |params| LoraRef { params, a: 0, b: rank * d_in, rank, d_in, d_out, scaling: 0.1 };
        let (dense, nests) = (rounded(&mut both.stream, both.dtype, d_out * d_in), both.below(2) == 0);
        let four_bit = four_bit(&mut both.stream, (d_out, d_in), nests);
        for weight in [Matrix::from_f32(&dense, d_out, d_in), four_bit] {
            let placed = both.cuda.place(std::slice::from_ref(&weight)).unwrap();
            let mut norms = both.poisoned(d_out + 3, EXACT);
            assert!(both.cuda.row_norms(&mut norms.device, 3, &placed[0], lora(&params.device)));
            let found = &both.read(&norms.device, d_out + 3)[3..];
            let (params, weight) = (params.host.host_slice(), weight.to_vec());
            let (a, b) = params.split_at(rank * d_in);
            let element = |o: usize, i: usize| {
                let update = |r: usize| f64::from(b[o * rank + r]) * f64::from(a[r * d_in + i]);
                f64::from(weight[o * d_in + i]) + 0.1 * (0..rank).map(update).sum::<f64>()
            };
            let norm = |o| (0..d_in).map(|i| element(o, i).powi(2)).sum::<f64>().sqrt() as f32;
            let expected: Vec<f32> = (0..d_out).map(norm).collect();
            assert_near(found, &expected, both.dtype, "row_norms");
        }
        let (out, dout) = (both.values(n * d_out, ACTIVATION), both.values(n * d_out, Element::Residual));
        // The gradient of the residual stream becomes that of an activation.
        let mut copy = both.poisoned(n * d_out, ACTIVATION);
        both.cuda.copy_rows(&mut copy.device, 0, &dout.device, 0, n, d_out);
        both.reference.copy_rows(&mut copy.host, 0, &dout.host, 0, n, d_out);
        both.check(&copy, n * d_out, "copy_rows of the residual stream");
        let (scale, mut sums) = (both.values(d_out + 5, EXACT), both.values(d_out + 2, EXACT));
        let products = |dout, out, scale| ColumnProducts { dout, out, scale, offset: 5, cols: d_out };
        let device = products(&copy.device, &out.device, &scale.device);
        both.cuda.column_products(&mut sums.device, 2, device, 1..n);
        let host = products(&copy.host, &out.host, &scale.host);
        both.reference.column_products(&mut sums.host, 2, host, 1..n);
        both.check(&sums, d_out + 2, "column_products");
    });
}

#[test]
fn attention_equals_the_reference() {
    for head_dim in [64, 96, 128, 256, 24] {
        each(45, |both| {
            let dims = AttentionDims { heads: 4, kv_heads: 2, head_dim };
            let lens = [1 + both.below(150), 1 + both.below(70), 1 + both.below(20)];
            let (mut segments, mut n, mut m) = (Vec::new(), 0, 0);
            for (i, q_len) in lens.into_iter().enumerate() {
                let kv_len = if i == 1 { q_len + both.below(90) } else { q_len };
                segments.push(Segment { q_start: n, q_len, kv_start: m, kv_len });
                (n, m) = (n + q_len, m + kv_len);
            }
            let [on_device, on_host] = both.segments(&segments);
            let (q_len, kv_len) = (n * 4 * head_dim, m * 2 * head_dim);
            let (q, k, v, dout) = (
                both.values(q_len, ACTIVATION),
                both.values(kv_len, ACTIVATION),
                both.values(kv_len, ACTIVATION),
                both.values(q_len, ACTIVATION),
            );
            let (mut out, mut lse) = (both.poisoned(q_len, ACTIVATION), both.poisoned(n * 4, EXACT));
            let scores = AttentionScores {
                // A query that attends to only one key has zero gradients, whose relative error is undefined.
                // Every window therefore has at least two keys.
                window: (both.below(3) > 0).then_some(2 + both.below(100)),
                softcap: (both.below(2) == 0).then_some(0.8),
                ..AttentionScores::of_head_dim(dims.head_dim)
            };
            let operands =
                [(&q.device, &k.device, &v.device, &on_device), (&q.host, &k.host, &v.host, &on_host)];
            let [device, host] =
                operands.map(|(q, k, v, segments)| AttentionOperands { q, k, v, segments, dims, scores });
            both.cuda.attention_forward(&mut out.device, &mut lse.device, device);
            both.reference.attention_forward(&mut out.host, &mut lse.host, host);
            both.check(&out, q_len, &format!("attention_forward of {head_dim}"));
            both.check(&lse, n * 4, "attention_forward lse");

            let (mut dq, mut dk, mut dv) = (
                both.poisoned(q_len, ACTIVATION),
                both.poisoned(kv_len, ACTIVATION),
                both.poisoned(kv_len, ACTIVATION),
            );
            let grads = AttentionGrads { dq: &mut dq.device, dk: &mut dk.device, dv: &mut dv.device };
            let saved = AttentionSaved { out: &out.device, lse: &lse.device };
            both.cuda.attention_backward(grads, &dout.device, saved, device);
            let grads = AttentionGrads { dq: &mut dq.host, dk: &mut dk.host, dv: &mut dv.host };
            let saved = AttentionSaved { out: &out.host, lse: &lse.host };
            both.reference.attention_backward(grads, &dout.host, saved, host);
            for (twin, len, name) in [(&dq, q_len, "dq"), (&dk, kv_len, "dk"), (&dv, kv_len, "dv")] {
                both.check(twin, len, &format!("attention_backward {name} of {head_dim}"));
            }
        });
    }
}

/// A group of weights, and two adapters on disjoint rows. The second adapter has dropout.
struct Group {
    n: usize,
    d_in: usize,
    outs: Vec<usize>,
    rank: usize,
    rows: [Range<usize>; 2],
    dropout: Option<Dropout>,
}

impl Group {
    fn random(both: &mut Both) -> Self {
        let most = [7, 150][both.below(2)];
        let n = 2 + both.below(most);
        let cut = 1 + both.below(n - 1);
        Self {
            n,
            d_in: 8 * (1 + both.below(40)),
            outs: (0..1 + both.below(3)).map(|_| 8 * (1 + both.below(40))).collect(),
            rank: 1 + both.below(20),
            rows: [0..cut, cut..n],
            dropout: (both.below(2) == 0).then_some(Dropout { probability: 0.3, key: 9 }),
        }
    }

    fn params(&self) -> usize {
        self.outs.iter().map(|out| 2 * self.rank * (self.d_in + out)).sum()
    }

    fn segments<'a>(&self, params: &'a Buffer) -> Vec<LoraSegment<'a>> {
        let (rank, d_in, mut at) = (self.rank, self.d_in, 0);
        let mut segments = Vec::new();
        for (i, rows) in self.rows.iter().enumerate() {
            let mut pairs = Vec::new();
            for &d_out in &self.outs {
                let (a, b) = (at, at + rank * d_in);
                at = b + rank * d_out;
                let lora = LoraRef { params, a, b, rank, d_in, d_out, scaling: 1.5 };
                pairs.push(Some(LoraPair { lora, dropout: if i == 1 { self.dropout } else { None } }));
            }
            let packed = vec![None; pairs.len()];
            segments.push(LoraSegment { rows: rows.clone(), pairs, packed });
        }
        segments
    }
}

#[test]
fn projections_equal_the_reference() {
    each(46, |both| {
        let group = Group::random(both);
        let Group { n, d_in, rank, .. } = group;
        let weights: Vec<Matrix> = group
            .outs
            .iter()
            .map(|&out| Matrix::from_f32(&rounded(&mut both.stream, both.dtype, out * d_in), out, d_in))
            .collect();
        let placed = both.cuda.place(&weights).unwrap();
        let (params, inp) = (both.values(group.params(), EXACT), both.values(n * d_in, ACTIVATION));
        // A group of one weight writes the residual stream, like the projections `o` and `down`.
        let element = if group.outs.len() == 1 { Element::Residual } else { ACTIVATION };
        let residual = (group.outs.len() == 1).then(|| both.values(n * group.outs[0], element));
        let mut outs: Vec<Twin> = group.outs.iter().map(|out| both.poisoned(n * out, element)).collect();
        let mut mids: Vec<Twin> = group.outs.iter().map(|_| both.poisoned(n * rank, ACTIVATION)).collect();

        let (on_device, on_host): (Vec<&Matrix>, Vec<&Matrix>) =
            (placed.iter().collect(), weights.iter().collect());
        let (device_lora, host_lora) = (group.segments(&params.device), group.segments(&params.host));
        let device = ProjectGroup { weights: &on_device, lora: &device_lora, is_generated: false };
        let host = ProjectGroup { weights: &on_host, lora: &host_lora, is_generated: false };
        let mut out: Vec<&mut Buffer> = outs.iter_mut().map(|twin| &mut twin.device).collect();
        let mut mid: Vec<&mut Buffer> = mids.iter_mut().map(|twin| &mut twin.device).collect();
        both.cuda.project(&mut out, &mut mid, &inp.device, device, residual.as_ref().map(|r| &r.device), n);
        let mut out: Vec<&mut Buffer> = outs.iter_mut().map(|twin| &mut twin.host).collect();
        let mut mid: Vec<&mut Buffer> = mids.iter_mut().map(|twin| &mut twin.host).collect();
        both.reference.project(&mut out, &mut mid, &inp.host, host, residual.as_ref().map(|r| &r.host), n);
        for ((out, mid), d_out) in outs.iter().zip(&mids).zip(&group.outs) {
            both.check(out, n * d_out, "project");
            both.check(mid, n * rank, "project mid");
        }

        let douts: Vec<Twin> = group.outs.iter().map(|out| both.values(n * out, element)).collect();
        let (mut dinp, mut dparams) =
            (both.poisoned(n * d_in, ACTIVATION), both.values(group.params(), EXACT));
        let dout: Vec<&Buffer> = douts.iter().map(|twin| &twin.device).collect();
        let mid: Vec<&Buffer> = mids.iter().map(|twin| &twin.device).collect();
        let grads = ProjectGrads {
            dinp: Some(&mut dinp.device),
            store: Store::Overwrite,
            dparams: &mut dparams.device,
        };
        both.cuda.project_backward(grads, &dout, ProjectSaved { inp: &inp.device, mid: &mid }, device, n);
        let dout: Vec<&Buffer> = douts.iter().map(|twin| &twin.host).collect();
        let mid: Vec<&Buffer> = mids.iter().map(|twin| &twin.host).collect();
        let grads =
            ProjectGrads { dinp: Some(&mut dinp.host), store: Store::Overwrite, dparams: &mut dparams.host };
        both.reference.project_backward(grads, &dout, ProjectSaved { inp: &inp.host, mid: &mid }, host, n);
        both.check(&dinp, n * d_in, "project_backward dinp");
        both.check(&dparams, group.params(), "project_backward dparams");
    });
}

/// Returns a random 4-bit weight. If `nests` is true, its scales are encoded in 8 bits.
fn four_bit(stream: &mut Stream, (d_out, d_in): (usize, usize), nests: bool) -> Matrix {
    let (len, block) = (d_out * d_in, 64);
    let byte = |stream: &mut Stream| stream.next_below(256) as u8;
    let codes = (0..len.div_ceil(2)).map(|_| byte(stream)).collect();
    let blocks = len.div_ceil(block);
    let scales = match nests {
        false => Scales::Plain(Bytes::from_f32(&rounded(stream, DType::F32, blocks))),
        true => Scales::Nested {
            codes: Bytes::from_vec((0..blocks).map(|_| byte(stream)).collect()),
            table: Arc::new(dynamic_u8()),
            absmax: Bytes::from_f32(&rounded(stream, DType::F32, blocks.div_ceil(NESTED_BLOCK))),
            block_size: NESTED_BLOCK,
            offset: 0.03,
        },
    };
    let weight = FourBit::new(Bytes::from_vec(codes), scales, NF4, block, DType::Bf16, len);
    Matrix::four_bit(Arc::new(weight), d_out, d_in)
}

#[test]
fn four_bit_weights_decode_to_the_hosts_bits() {
    let (Some(device), mut stream) = (device(), Stream::new(51)) else { return };
    for dtype in dtypes(&device) {
        for (d_out, d_in) in [(3, 64), (64, 4096), (17, 320), (5, 37), (2, 1000)] {
            for nests in [false, true] {
                let matrix = four_bit(&mut stream, (d_out, d_in), nests);
                let Weight::FourBit(weight) = weight::place(&device, &matrix, dtype).unwrap() else {
                    panic!("a weight in 4 bits stays in 4 bits")
                };
                let out = Values::poisoned(&device, dtype, d_out * d_in);
                ops::four_bit::decode(&device, dtype, out.ptr(), &weight.parts, (d_out, d_in));
                let mut bytes = vec![0; d_out * d_in * dtype.size()];
                from_f32(dtype, &matrix.to_vec(), &mut bytes);
                let mut expected = vec![0.0; d_out * d_in];
                to_f32(dtype, &bytes, &mut expected);
                assert_eq!(out.read(), expected, "{dtype:?} {d_out} x {d_in}, nested: {nests}");
            }
        }
    }
}

#[test]
fn four_bit_weights_multiply_as_their_values() {
    each(47, |both| {
        let (n, d_out, d_in) = (1 + both.below(90), 64 * (1 + both.below(4)), 64 * (1 + both.below(5)));
        let nests = both.below(2) == 0;
        let weight = four_bit(&mut both.stream, (d_out, d_in), nests);
        let placed = both.cuda.place(std::slice::from_ref(&weight)).unwrap();
        let (inp, dout) = (both.values(n * d_in, ACTIVATION), both.values(n * d_out, ACTIVATION));
        let (mut out, mut dinp) = (both.poisoned(n * d_out, ACTIVATION), both.poisoned(n * d_in, ACTIVATION));
        both.cuda.linear_forward(&mut out.device, &inp.device, &placed[0], n);
        both.reference.linear_forward(&mut out.host, &inp.host, &weight, n);
        both.check(&out, n * d_out, "linear_forward in 4 bits");
        both.cuda.linear_backward(&mut dinp.device, Store::Overwrite, &dout.device, &placed[0], n);
        both.reference.linear_backward(&mut dinp.host, Store::Overwrite, &dout.host, &weight, n);
        both.check(&dinp, n * d_in, "linear_backward in 4 bits");
    });
}

#[test]
fn the_loss_head_equals_the_reference() {
    each(48, |both| {
        let (n, v, c) = (1 + both.below(600), 8 * (1 + both.below(90)), 8 * (1 + both.below(20)));
        let head = Matrix::from_f32(&rounded(&mut both.stream, both.dtype, v * c), v, c);
        let placed = both.cuda.place(std::slice::from_ref(&head)).unwrap();
        let inp = both.values(n * c, ACTIVATION);
        let targets: Vec<u32> = (0..n).map(|_| both.below(v) as u32).collect();
        let [on_device, on_host] = both.indices(&targets);
        let dloss = both.values(n, EXACT);
        let softcap = (both.below(2) == 0).then_some(3.0);
        let (mut losses, mut dinp) = (both.poisoned(n + 3, EXACT), both.poisoned(n * c, ACTIVATION));
        let operands = HeadOperands { inp: &inp.device, head: &placed[0], targets: &on_device, softcap };
        let grads = HeadGrads { dinp: &mut dinp.device, dloss: &dloss.device };
        both.cuda.head_loss(&mut losses.device, 3, operands, Some(grads));
        let operands = HeadOperands { inp: &inp.host, head: &head, targets: &on_host, softcap };
        let grads = HeadGrads { dinp: &mut dinp.host, dloss: &dloss.host };
        both.reference.head_loss(&mut losses.host, 3, operands, Some(grads));
        let found = &both.read(&losses.device, n + 3)[3..];
        assert_near(found, &losses.host.host_slice()[3..], both.dtype, "head_loss");
        both.check(&dinp, n * c, "head_loss dinp");
    });
}

#[test]
fn logits_are_f32() {
    each(49, |both| {
        let (n, v, c) = (1 + both.below(20), 1 + both.below(700), 8 * (1 + both.below(20)));
        let head = Matrix::from_f32(&rounded(&mut both.stream, both.dtype, v * c), v, c);
        let placed = both.cuda.place(std::slice::from_ref(&head)).unwrap();
        let (inp, mut logits) = (both.values(n * c, ACTIVATION), both.poisoned(n * v, EXACT));
        both.cuda.linear_forward(&mut logits.device, &inp.device, &placed[0], n);
        both.reference.linear_forward(&mut logits.host, &inp.host, &head, n);
        assert_near(&both.read(&logits.device, n * v), logits.host.host_slice(), DType::F32, "logits");
    });
}

#[test]
fn the_optimizer_equals_the_reference() {
    each(50, |both| {
        let len = 1 + both.below(40_000);
        let (mut params, mut m, mut v) =
            (both.values(len, EXACT), both.values(len, EXACT), both.values(len, EXACT));
        let squares: Vec<f32> = v.host.host_slice().iter().map(|v| v * v).collect();
        both.cuda.write(&mut v.device, 0, &squares);
        v.host.host_slice_mut().copy_from_slice(&squares);
        let grads = both.values(len, EXACT);
        let step = AdamW {
            learning_rate: 0.1,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.5,
            step: 3,
            grad_scale: 0.5,
        };
        let faster = AdamW { learning_rate: 0.3, ..step };
        for (range, step) in [(0..len / 3, step), (len / 3..len, faster)] {
            let Twin { device, .. } = &mut params;
            both.cuda.adamw(device, &grads.device, &mut m.device, &mut v.device, range.clone(), step);
            both.reference.adamw(&mut params.host, &grads.host, &mut m.host, &mut v.host, range, step);
        }
        for (twin, name) in [(&params, "params"), (&m, "m"), (&v, "v")] {
            assert_near(&both.read(&twin.device, len), twin.host.host_slice(), DType::F32, name);
        }
        let mut sums = both.cuda.alloc_scalars(2);
        both.cuda.sum_of_squares(&mut sums, 1, &params.device, len);
        let mut found = [0.0; 2];
        both.cuda.read_scalars(&mut found, &sums).unwrap();
        let expected: f64 = params.host.host_slice().iter().map(|&x| x as f64 * x as f64).sum();
        assert!((found[1] / expected - 1.0).abs() < 1e-5 && found[0] == 0.0, "{found:?} {expected}");
    });
}
