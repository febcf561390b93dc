//! Benchmarks the matrix multiplications of a LoRA step. The output contains the time, GFLOP/s, and the share
//! of the measured peak of this machine. Decoding is measured in GB/s of weights, and compared with the
//! measured read bandwidth.
//!
//! `cargo bench -p danlu-kernels --bench gemm [-- THREADS] [ISA] [products] [head] [decode] [low-rank]`

use std::time::{Duration, Instant};

use danlu_kernels::{
    Backend, Buffer, Bytes, Cpu, CpuOptions, DType, Dropout, HeadGrads, HeadOperands, Indices, Isa,
    LoraGrads, LoraPair, LoraRef, Matrix, Store, from_f32, peak, rng::Stream,
};

/// Returns the duration of the fastest run in seconds. Slower runs may be disturbed by other processes.
fn best(mut run: impl FnMut()) -> f64 {
    run();
    let (start, mut best) = (Instant::now(), Duration::MAX);
    let mut runs = 0;
    while runs < 5 || start.elapsed() < Duration::from_millis(150) {
        let begin = Instant::now();
        run();
        best = best.min(begin.elapsed());
        runs += 1;
    }
    best.as_secs_f64()
}

fn gflops(isa: Isa, dtype: DType, threads: usize) -> Option<f64> {
    peak::flops(isa, dtype, threads).map(|flops| flops / 1e9)
}

fn random(stream: &mut Stream, len: usize) -> Vec<f32> {
    (0..len).map(|_| stream.next_uniform() - 0.5).collect()
}

fn weight(stream: &mut Stream, rows: usize, cols: usize) -> Matrix {
    let mut bytes = vec![0; rows * cols * 2];
    from_f32(DType::Bf16, &random(stream, rows * cols), &mut bytes);
    Matrix::dense(DType::Bf16, Bytes::from_vec(bytes), rows, cols)
}

fn report(name: &str, seconds: f64, flops: f64, peak: Option<f64>) {
    let rate = flops / seconds / 1e9;
    let share = peak.map_or(String::new(), |peak| format!("{:5.1}% of peak", 100.0 * rate / peak));
    println!("  {name:<44} {:9.1} us {rate:8.1} GFLOP/s {share}", seconds * 1e6);
}

/// Shapes `(N, IN, OUT)` of a projection, for the forward and the backward pass.
const LINEAR: [(usize, usize, usize); 12] = [
    (32, 512, 1408),
    (64, 256, 704),
    (64, 512, 1408),
    (256, 256, 256),
    (256, 512, 512),
    (512, 512, 512),
    (512, 512, 1408),
    (512, 1408, 512),
    (1024, 256, 704),
    (256, 512, 8192),
    (512, 2048, 2048),
    (512, 2048, 8192),
];

fn products(threads: usize, isa: Isa, dtype: DType) {
    let cpu = Cpu::new(CpuOptions { threads: Some(threads), isa: Some(isa), dtype });
    let (peak, mut stream) = (gflops(isa, dtype, threads), Stream::new(1));
    println!("{}: peak {:.1} GFLOP/s", cpu.name(), peak.unwrap_or(f64::NAN));
    for (n, d_in, d_out) in LINEAR {
        let w = weight(&mut stream, d_out, d_in);
        let mut inp = Buffer::from_vec(random(&mut stream, n * d_in));
        let mut out = Buffer::from_vec(random(&mut stream, n * d_out));
        let flops = 2.0 * (n * d_in * d_out) as f64;
        let seconds = best(|| cpu.linear_forward(&mut out, &inp, &w, n));
        report(&format!("out = inp W^T       {n} x {d_in} x {d_out}"), seconds, flops, peak);
        let seconds = best(|| cpu.linear_backward(&mut inp, Store::Overwrite, &out, &w, n));
        report(&format!("dinp = dout W       {n} x {d_in} x {d_out}"), seconds, flops, peak);
    }
}

fn head(threads: usize, isa: Isa, dtype: DType) {
    let cpu = Cpu::new(CpuOptions { threads: Some(threads), isa: Some(isa), dtype });
    let (peak, mut stream) = (gflops(isa, dtype, threads), Stream::new(2));
    println!("{}: the head and its loss", cpu.name());
    for (n, c, v) in [(64, 256, 8192), (256, 256, 8192), (512, 512, 8192), (107, 768, 128_256)] {
        let head = weight(&mut stream, v, c);
        let inp = Buffer::from_vec(random(&mut stream, n * c));
        let (mut dinp, mut losses) = (Buffer::host(n * c), Buffer::host(n));
        let dloss = Buffer::from_vec(vec![1.0; n]);
        let operands = HeadOperands {
            inp: &inp,
            head: &head,
            targets: &Indices::host((0..n as u32).collect()),
            softcap: None,
        };
        let seconds = best(|| {
            cpu.head_loss(&mut losses, 0, operands, Some(HeadGrads { dinp: &mut dinp, dloss: &dloss }));
        });
        report(&format!("head_loss           {n} x {c} x {v}"), seconds, 4.0 * (n * c * v) as f64, peak);
    }
}

fn low_rank(threads: usize, isa: Isa) {
    let cpu = Cpu::new(CpuOptions { threads: Some(threads), isa: Some(isa), dtype: DType::F32 });
    let (peak, mut stream) = (gflops(isa, DType::F32, threads), Stream::new(3));
    println!("{}: low-rank pairs", cpu.name());
    for (n, d_in, d_out, rank) in [
        (64, 256, 704, 8),
        (128, 768, 768, 8),
        (128, 768, 2048, 8),
        (128, 2048, 768, 8),
        (512, 512, 512, 8),
        (512, 512, 1408, 8),
        (512, 512, 1408, 16),
        (512, 512, 1408, 64),
        (512, 2048, 2048, 8),
    ] {
        let params = Buffer::from_vec(random(&mut stream, rank * (d_in + d_out)));
        let lora = LoraRef { params: &params, a: 0, b: rank * d_in, rank, d_in, d_out, scaling: 2.0 };
        let inp = Buffer::from_vec(random(&mut stream, n * d_in));
        let dout = Buffer::from_vec(random(&mut stream, n * d_out));
        let (mut out, mut mid) = (Buffer::host(n * d_out), Buffer::host(n * rank));
        let (mut dinp, mut dparams) = (Buffer::host(n * d_in), Buffer::host(params.len()));
        let flops = 2.0 * (n * rank * (d_in + d_out)) as f64;
        for dropout in [None, Some(Dropout { probability: 0.05, key: 1 })] {
            let drop = if dropout.is_some() { " drop" } else { "" };
            let (shape, pair) =
                (format!("{n} x {d_in} x {d_out} r {rank}{drop}"), LoraPair { lora, dropout });
            let seconds = best(|| cpu.lora_forward(&mut out, &mut mid, &inp, pair, 0..n));
            report(&format!("lora_forward   {shape}"), seconds, flops, peak);
            let seconds = best(|| {
                let grads = LoraGrads { dinp: Some(&mut dinp), dparams: &mut dparams };
                cpu.lora_backward(grads, &dout, &inp, &mid, pair, 0..n);
            });
            report(&format!("lora_backward  {shape}"), seconds, 2.0 * flops, peak);
        }
    }
}

fn decode(threads: usize, isa: Isa, dtype: DType) {
    let cpu = Cpu::new(CpuOptions { threads: Some(threads), isa: Some(isa), dtype });
    let mut stream = Stream::new(4);
    let (bandwidth, peak) = (peak::read_bandwidth(threads) / 1e9, gflops(isa, dtype, threads));
    println!("{}, decoding from bf16 weights: reading peaks at {bandwidth:.1} GB/s", cpu.name());
    // The weights have at least 96 MiB, so that most of them is read from memory and not from a cache, as in
    // decoding.
    let weights = [(64 << 10, 768), (32 << 10, 2048)].map(|(d_out, d_in)| weight(&mut stream, d_out, d_in));
    for (w, n) in weights.iter().flat_map(|w| [1, 2, 4, 8, 16, 32, 64].map(|n| (w, n))) {
        let (d_out, d_in) = (w.rows(), w.cols());
        let inp = Buffer::from_vec(random(&mut stream, n * d_in));
        let mut out = Buffer::host(n * d_out);
        for name in ["linear_decode", "linear_forward"] {
            let seconds = best(|| match name {
                "linear_decode" => cpu.linear_decode(&mut out, &inp, w, n),
                _ => cpu.linear_forward(&mut out, &inp, w, n),
            });
            let elements = (d_out * d_in) as f64;
            let rate = 2e-9 * elements / seconds;
            let read = format!("{rate:6.1} GB/s {:5.1}%", 100.0 * rate / bandwidth);
            report(&format!("{name:<14} {n:2} x {d_in:4} {read}"), seconds, 2.0 * n as f64 * elements, peak);
        }
    }
}

fn main() {
    // `cargo bench` appends `--bench` to the arguments after `--`.
    let words: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let threads = words.iter().find_map(|word| word.parse().ok());
    let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()));
    let only: Option<Isa> = words.iter().find_map(|word| word.parse().ok());
    let is_section = |word: &&String| word.parse::<usize>().is_err() && word.parse::<Isa>().is_err();
    let sections: Vec<&String> = words.iter().filter(is_section).collect();
    let wanted = |section: &str| sections.is_empty() || sections.iter().any(|word| *word == section);
    for isa in Isa::supported().filter(|&isa| isa != Isa::Scalar && only.is_none_or(|only| only == isa)) {
        for dtype in [DType::Bf16, DType::F32] {
            // This combination would only repeat f32 kernels that another combination measures.
            if isa != Isa::Avx2 && isa.multiplies_bf16() != (dtype == DType::Bf16) {
                continue;
            }
            if wanted("products") {
                products(threads, isa, dtype);
            }
            if wanted("head") {
                head(threads, isa, dtype);
            }
            if wanted("decode") {
                decode(threads, isa, dtype);
            }
        }
        if !isa.multiplies_bf16() && wanted("low-rank") {
            low_rank(threads, isa);
        }
    }
}
