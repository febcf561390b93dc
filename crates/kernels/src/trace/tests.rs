use super::*;
use crate::AttentionScores;
use crate::{Cpu, DType, Dropout, Isa, LoraRef, RopeRotation, Segments, attention};

fn options(threads: usize) -> CpuOptions {
    CpuOptions { threads: Some(threads), ..CpuOptions::default() }
}

#[test]
fn a_dropped_buffer_gives_its_bytes_back_and_the_peak_remembers_it() {
    let trace = Trace::new(options(1));
    let first = trace.alloc(100, Element::Exact);
    drop(trace.alloc(50, Element::Exact));
    assert_eq!((trace.footprint().live, trace.footprint().peak), (400, 600));
    drop(first);
    assert_eq!((trace.footprint().live, trace.footprint().peak), (0, 600));
    trace.restart();
    assert_eq!(trace.footprint(), Footprint::default());
}

#[test]
fn what_is_read_is_zero() {
    let trace = Trace::new(options(1));
    let mut buffer = trace.alloc(2, Element::Exact);
    trace.write(&mut buffer, 0, &[1.0, 2.0]);
    let mut found = [7.0; 2];
    trace.read(&mut found, &buffer, 0).unwrap();
    assert_eq!(found, [0.0; 2]);
}

/// Runs every operation that has working memory, with odd shapes. The last shape is the largest one. The test
/// compares the final size of the rotary table, and this table only contains the angles of the last batch.
fn exercise(backend: &dyn Backend, matrix: &dyn Fn(usize, usize) -> Matrix) {
    let alloc = |len| backend.alloc(len, Element::Activation);
    for (n, rank) in [(3, 2), (300, 8), (70, 3), (37, 5), (300, 8)] {
        let (d_in, d_out, vocabulary) = (120, 200, 1003);
        let (inp, mut out, mut dinp) = (alloc(n * d_in), alloc(n * d_out), alloc(n * d_in));
        let w = matrix(d_out, d_in);
        backend.linear_forward(&mut out, &inp, &w, n);
        backend.linear_decode(&mut out, &inp, &w, n.min(64));
        backend.linear_backward(&mut dinp, Store::Accumulate, &out, &w, n);
        let params = alloc(rank * (d_in + d_out));
        let mut dparams = alloc(rank * (d_in + d_out));
        let lora = LoraRef { params: &params, a: 0, b: rank * d_in, rank, d_in, d_out, scaling: 1.0 };
        let mut mid = alloc(n * rank);
        for dropout in [None, Some(Dropout { probability: 0.5, key: 1 })] {
            let pair = LoraPair { lora, dropout };
            backend.lora_forward(&mut out, &mut mid, &inp, pair, 0..n);
            let grads = LoraGrads { dinp: Some(&mut dinp), dparams: &mut dparams };
            backend.lora_backward(grads, &out, &inp, &mid, pair, 0..n);
        }
        attend(backend, &inp, n);
        head_loss(backend, &inp, Some(&mut dinp), &matrix(vocabulary, d_in), n);
    }
    // 700 rows need more than one pass over the vocabulary. The loss head runs without and with a gradient.
    let (n, c) = (700, 24);
    let (inp, mut dinp, head) = (alloc(n * c), alloc(n * c), matrix(300, c));
    head_loss(backend, &inp, None, &head, n);
    head_loss(backend, &inp, Some(&mut dinp), &head, n);
}

fn attend(backend: &dyn Backend, q: &Buffer, n: usize) {
    let alloc = |len| backend.alloc(len, Element::Activation);
    let dims = AttentionDims { heads: 6, kv_heads: 2, head_dim: 20 };
    let segments = &Segments::host(vec![Segment { q_start: 0, q_len: n, kv_start: 0, kv_len: n }]);
    let (mut out, mut lse) = (alloc(n * 120), alloc(n * 6));
    let (k, v) = (alloc(n * 40), alloc(n * 40));
    let operands = AttentionOperands {
        q,
        k: &k,
        v: &v,
        segments,
        dims,
        scores: AttentionScores::of_head_dim(dims.head_dim),
    };
    backend.attention_forward(&mut out, &mut lse, operands);
    let newest = &Segments::host(vec![Segment { q_start: 0, q_len: 1, kv_start: 0, kv_len: n }]);
    let operands = AttentionOperands { segments: newest, ..operands };
    backend.attention_decode(&mut out, &mut lse, operands);
    let operands = AttentionOperands { segments, ..operands };
    let (mut dq, mut dk, mut dv) = (alloc(n * 120), alloc(n * 40), alloc(n * 40));
    let grads = AttentionGrads { dq: &mut dq, dk: &mut dk, dv: &mut dv };
    backend.attention_backward(grads, q, AttentionSaved { out: &out, lse: &lse }, operands);
    let positions = Indices::host((0..n as u32).collect());
    let (inv_freq, tables) = (alloc(20), Indices::host(vec![1; n]));
    let rotation = RopeRotation::whole(dims.head_dim);
    let tables = Some(&tables);
    let operands = RopeOperands { inv_freq: &inv_freq, positions: &positions, tables, dims, rotation };
    backend.rope_forward(&mut dq, &mut dk, operands);
}

fn head_loss(backend: &dyn Backend, inp: &Buffer, dinp: Option<&mut Buffer>, head: &Matrix, n: usize) {
    let (mut losses, dloss) = (backend.alloc(n, Element::Exact), backend.alloc(n, Element::Exact));
    let operands = HeadOperands { inp, head, targets: &Indices::host(vec![1; n]), softcap: None };
    backend.head_loss(&mut losses, 0, operands, dinp.map(|dinp| HeadGrads { dinp, dloss: &dloss }));
}

#[test]
fn working_memory_is_what_the_cpu_holds() {
    for isa in Isa::supported() {
        for dtype in [DType::F32, DType::Bf16] {
            let options = CpuOptions { threads: Some(1), isa: Some(isa), dtype };
            let (cpu, trace) = (Cpu::new(options), Trace::new(options));
            // The operations run on a new thread. Attention buffers belong to a thread, and other tests may
            // have grown the buffers of this thread.
            let attention = std::thread::scope(|scope| {
                let run = || {
                    exercise(&cpu, &|rows, cols| Matrix::from_f32(&vec![0.5; rows * cols], rows, cols));
                    attention::scratch_bytes()
                };
                scope.spawn(run).join().unwrap()
            });
            exercise(&trace, &Trace::matrix);
            let shared = cpu.scratch_bytes();
            let expected = ScratchBytes { attention: attention + shared.attention, ..shared };
            assert_eq!(trace.footprint().scratch, expected, "{isa} {dtype:?}");
        }
    }
}

#[test]
fn work_is_two_flops_for_each_weight_and_row() {
    let trace = Trace::new(options(2));
    let (inp, mut out) =
        (trace.alloc(30 * 8, Element::Activation), trace.alloc(30 * 16, Element::Activation));
    trace.linear_forward(&mut out, &inp, &Trace::matrix(16, 8), 30);
    assert_eq!(trace.footprint().flops, 2 * 30 * 8 * 16);
}

#[test]
#[should_panic(expected = "a buffer of 5 elements where 6 are needed")]
fn a_buffer_too_short_is_found() {
    let trace = Trace::new(options(1));
    let mut buffer = trace.alloc(5, Element::Exact);
    trace.zero(&mut buffer, 6);
}
