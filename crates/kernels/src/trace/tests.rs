use super::*;
use crate::{Cpu, DType};

fn options(threads: usize) -> CpuOptions {
    CpuOptions { threads: Some(threads), ..CpuOptions::default() }
}

#[test]
fn a_dropped_buffer_gives_its_bytes_back_and_the_peak_remembers_it() {
    let trace = Trace::new(options(1));
    let first = trace.alloc(100);
    drop(trace.alloc(50));
    assert_eq!((trace.footprint().live, trace.footprint().peak), (400, 600));
    drop(first);
    assert_eq!((trace.footprint().live, trace.footprint().peak), (0, 600));
    trace.restart();
    assert_eq!(trace.footprint(), Footprint::default());
}

#[test]
fn what_is_read_is_zero() {
    let trace = Trace::new(options(1));
    let mut buffer = trace.alloc(2);
    trace.write(&mut buffer, 0, &[1.0, 2.0]);
    let mut found = [7.0; 2];
    trace.read(&mut found, &buffer, 0);
    assert_eq!(found, [0.0; 2]);
}

/// Every operation with working memory, over shapes with tails. The largest comes again at the end, because the
/// angles of the rotary embedding are those of the last batch.
fn exercise(backend: &dyn Backend, matrix: &dyn Fn(usize, usize) -> Matrix) {
    let dims = AttentionDims { heads: 6, kv_heads: 2, head_dim: 20 };
    for (n, rank) in [(3, 2), (300, 8), (70, 3), (37, 5), (300, 8)] {
        let (d_in, d_out, vocabulary) = (120, 200, 1003);
        let inp = backend.alloc(n * d_in);
        let mut out = backend.alloc(n * d_out);
        let mut dinp = backend.alloc(n * d_in);
        let w = matrix(d_out, d_in);
        backend.linear_forward(&mut out, &inp, &w, n);
        backend.linear_backward(&mut dinp, &out, &w, n);
        let params = backend.alloc(rank * (d_in + d_out));
        let mut grads = backend.alloc(rank * (d_in + d_out));
        let lora = LoraRef { params: &params, a: 0, b: rank * d_in, rank, d_in, d_out, scaling: 1.0 };
        let mut mid = backend.alloc(n * rank);
        for dropout in [None, Some(Dropout { probability: 0.5, key: 1 })] {
            backend.lora_forward(&mut out, &mut mid, &inp, lora, 0..n, dropout);
            let dinp = Some(&mut dinp);
            backend.lora_backward(dinp, &mut grads, &out, &inp, &mid, lora, 0..n, dropout);
        }
        let segments = [Segment { q_start: 0, q_len: n, kv_start: 0, kv_len: n }];
        let (mut o, mut lse) = (backend.alloc(n * 120), backend.alloc(n * 6));
        let (k, v) = (backend.alloc(n * 40), backend.alloc(n * 40));
        backend.attention_forward(&mut o, &mut lse, &inp, &k, &v, &segments, dims);
        let (mut dq, mut dk, mut dv) = (backend.alloc(n * 120), backend.alloc(n * 40), backend.alloc(n * 40));
        backend.attention_backward(&mut dq, &mut dk, &mut dv, &inp, &o, &lse, &inp, &k, &v, &segments, dims);
        let positions: Vec<u32> = (0..n as u32).collect();
        backend.rope_forward(&mut dq, &[1.0; 10], &positions, 6, 20);
        let (mut losses, targets) = (vec![0.0; n], vec![1; n]);
        let head = matrix(vocabulary, d_in);
        backend.head_loss(&mut losses, Some(&mut dinp), &inp, &head, &targets, 1.0);
    }
    // More rows than pass over the vocabulary together, without a gradient and with one.
    let (n, c) = (700, 24);
    let (inp, mut dinp, head) = (backend.alloc(n * c), backend.alloc(n * c), matrix(300, c));
    let (mut losses, targets) = (vec![0.0; n], vec![1; n]);
    backend.head_loss(&mut losses, None, &inp, &head, &targets, 0.0);
    backend.head_loss(&mut losses, Some(&mut dinp), &inp, &head, &targets, 1.0);
}

#[test]
fn working_memory_is_what_the_cpu_holds() {
    for isa in Isa::supported() {
        for dtype in [DType::F32, DType::Bf16] {
            let options = CpuOptions { threads: Some(1), isa: Some(isa), dtype };
            let (cpu, trace) = (Cpu::new(options), Trace::new(options));
            // A thread of its own: tiles of attention belong to the thread, and tests share theirs.
            let attention = std::thread::scope(|scope| {
                let run = || {
                    exercise(&cpu, &|rows, cols| Matrix::from_f32(&vec![0.5; rows * cols], rows, cols));
                    attention::scratch_bytes()
                };
                scope.spawn(run).join().unwrap()
            });
            exercise(&trace, &Trace::matrix);
            let expected = ScratchBytes { attention, ..cpu.scratch_bytes() };
            assert_eq!(trace.footprint().scratch, expected, "{isa} {dtype:?}");
        }
    }
}

#[test]
fn work_is_two_flops_for_each_weight_and_row() {
    let trace = Trace::new(options(2));
    let (inp, mut out) = (trace.alloc(30 * 8), trace.alloc(30 * 16));
    trace.linear_forward(&mut out, &inp, &Trace::matrix(16, 8), 30);
    assert_eq!(trace.footprint().flops, 2 * 30 * 8 * 16);
}

#[test]
#[should_panic(expected = "a buffer of 5 elements where 6 are needed")]
fn a_buffer_too_short_is_found() {
    let trace = Trace::new(options(1));
    let mut buffer = trace.alloc(5);
    trace.zero(&mut buffer, 6);
}
