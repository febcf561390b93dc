//! Measured limits of this machine: the rate of multiply-adds in registers, and the rate of reads from
//! memory.
//!
//! A matrix multiplication can be compared with the hardware limit from [`flops`]. Decoding reads every
//! weight once per token, so its limit is [`read_bandwidth`]. Each function returns the fastest of several
//! short runs, because other programs may slow some of the runs.

use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::{DType, Isa};

/// Number of bytes that [`read_bandwidth`] reads. Most last-level caches are far smaller, so nearly every
/// line is read from memory.
const READ_BYTES: usize = 512 << 20;

/// Numbers of contiguous ranges ("streams") from which one thread reads in turn. All are measured, because
/// the fastest number depends on the machine and on the number of threads.
const STREAMS: [usize; 3] = [1, 4, 8];

/// Number of `u64` words in a page. Every stream begins at a multiple of it.
const BLOCK: usize = 4096 / size_of::<u64>();

/// Minimum number of runs. The result is the time of the fastest run.
const LEAST_RUNS: usize = 5;
const LONG_ENOUGH: Duration = Duration::from_millis(300);

/// Number of loop rounds in one run of [`flops`]. A run takes some milliseconds.
const ROUNDS: usize = 2_000_000;
/// Number of runs of [`quick_flops`].
const QUICK_RUNS: usize = 20;
/// Number of loop rounds in one run of [`quick_flops`]. A run takes a tenth of a millisecond.
const QUICK_ROUNDS: usize = 32_000;

/// Minimum ratio of bf16's peak to f32's peak for which bf16 is chosen. On known processors, the ratio is 1/2
/// or at least 2, so noise of the measurement does not change the choice.
const MIN_ADVANTAGE: f64 = 1.2;

/// Measures the FLOP/s of `threads` threads that only multiply and add in registers of `isa`. The operands
/// have type `dtype`, and the sums are f32. A multiply-add counts as two operations.
///
/// For [`DType::Bf16`], the bf16 dot product is measured if `isa` has one. Without one, bf16 must be
/// converted to f32, so the peak of f32 is measured. Returns `None` for [`Isa::Scalar`], and for instruction
/// sets that this machine does not support.
pub fn flops(isa: Isa, dtype: DType, threads: usize) -> Option<f64> {
    let (run, flops) = kernel(isa, dtype)?;
    // SAFETY: `kernel` returns only functions for instruction sets of this machine.
    let seconds = fastest(threads, LONG_ENOUGH, |_| unsafe { run(ROUNDS) });
    Some((threads.max(1) * ROUNDS) as f64 * flops / seconds)
}

/// Returns bf16 or f32, whichever type has the higher peak of matrix multiplications on one thread of `isa`.
///
/// Both types are measured, because some processors with a bf16 dot product execute it at half the rate of
/// f32 multiply-adds. The measurement takes a few milliseconds. Instruction sets that convert bf16 to f32
/// always get f32.
pub fn fastest_dtype(isa: Isa) -> DType {
    if !isa.multiplies_bf16() {
        return DType::F32;
    }
    let [bf16, f32] = quick_flops(isa, [DType::Bf16, DType::F32]);
    match (bf16, f32) {
        (Some(bf16), Some(f32)) if bf16 > MIN_ADVANTAGE * f32 => DType::Bf16,
        _ => DType::F32,
    }
}

/// Measures the FLOP/s of one thread for several types within a few milliseconds. See [`flops`].
///
/// The runs of the types alternate, so that other programs slow all types equally.
pub fn quick_flops<const N: usize>(isa: Isa, dtypes: [DType; N]) -> [Option<f64>; N] {
    let kernels = dtypes.map(|dtype| kernel(isa, dtype));
    let mut best = [f64::INFINITY; N];
    for _ in 0..QUICK_RUNS {
        for (best, kernel) in best.iter_mut().zip(kernels) {
            let Some((run, _)) = kernel else { continue };
            let begin = Instant::now();
            // SAFETY: `kernel` returns only functions for instruction sets of this machine.
            unsafe { run(QUICK_ROUNDS) };
            *best = best.min(begin.elapsed().as_secs_f64());
        }
    }
    std::array::from_fn(|i| kernels[i].map(|(_, flops)| QUICK_ROUNDS as f64 * flops / best[i]))
}

/// Measures the number of bytes per second that `threads` threads read from memory with the widest loads.
/// Each thread reads its own range of one large buffer. The buffer needs half a GiB of memory.
pub fn read_bandwidth(threads: usize) -> f64 {
    let threads = threads.max(1);
    // The buffer is filled with ones. Pages of zeros that were never written would share one physical page,
    // and that page would stay in cache.
    let words = vec![1u64; READ_BYTES / size_of::<u64>()];
    let most = STREAMS[STREAMS.len() - 1] * BLOCK;
    let part = words.len() / threads / most * most;
    let isa = Isa::detect();
    let of =
        |streams| fastest(threads, LONG_ENOUGH, |thread| read(isa, streams, &words[thread * part..][..part]));
    let seconds = STREAMS.into_iter().map(of).fold(f64::INFINITY, f64::min);
    (threads * part * size_of::<u64>()) as f64 / seconds
}

/// Returns the seconds of the fastest run of `work(thread)` on all threads at once. There are at least
/// [`LEAST_RUNS`] runs, and further runs begin until `long_enough` has passed.
fn fastest(threads: usize, long_enough: Duration, work: impl Fn(usize) + Sync) -> f64 {
    let threads = threads.max(1);
    let (gate, work) = (&Barrier::new(threads), &work);
    let over = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 1..threads {
            scope.spawn(move || {
                loop {
                    gate.wait();
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    work(thread);
                    gate.wait();
                }
            });
        }
        let run = || {
            gate.wait();
            let begin = Instant::now();
            work(0);
            gate.wait();
            begin.elapsed()
        };
        run();
        let (start, mut best, mut runs) = (Instant::now(), Duration::MAX, 0);
        while runs < LEAST_RUNS || start.elapsed() < long_enough {
            best = best.min(run());
            runs += 1;
        }
        over.store(true, Ordering::Relaxed);
        gate.wait();
        best.as_secs_f64()
    })
}

/// A function that multiplies and adds for a given number of rounds, and the FLOP of one round.
type Kernel = (unsafe fn(usize), f64);

fn kernel(isa: Isa, dtype: DType) -> Option<Kernel> {
    if !isa.is_supported() {
        return None;
    }
    #[cfg(target_arch = "x86_64")]
    {
        let bf16 = dtype == DType::Bf16;
        match isa {
            Isa::Amx if bf16 => Some((x86::amx, x86::AMX)),
            Isa::Avx512Bf16 if bf16 => Some((x86::avx512bf16, x86::AVX512BF16)),
            Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512 => Some((x86::avx512, x86::AVX512)),
            Isa::Avx2 => Some((x86::avx2, x86::AVX2)),
            Isa::NeonBf16 | Isa::Neon | Isa::Scalar => None,
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        match isa {
            Isa::NeonBf16 if dtype == DType::Bf16 => Some((arm::neon_bf16, arm::NEON_BF16)),
            Isa::NeonBf16 | Isa::Neon => Some((arm::neon, arm::NEON)),
            Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512 | Isa::Avx2 | Isa::Scalar => None,
        }
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        let _ = dtype;
        None
    }
}

/// Reads every word once, from `streams` contiguous ranges in turn.
fn read(isa: Isa, streams: usize, words: &[u64]) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: this machine supports `isa`, because `isa` was detected.
    unsafe {
        match (isa, streams) {
            (Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512, 1) => return x86::read_avx512::<1>(words),
            (Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512, 4) => return x86::read_avx512::<4>(words),
            (Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512, _) => return x86::read_avx512::<8>(words),
            (Isa::Avx2, 1) => return x86::read_avx2::<1>(words),
            (Isa::Avx2, 4) => return x86::read_avx2::<4>(words),
            (Isa::Avx2, _) => return x86::read_avx2::<8>(words),
            (Isa::NeonBf16 | Isa::Neon | Isa::Scalar, _) => {}
        }
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: this machine supports `isa`, because `isa` was detected.
    unsafe {
        match (isa, streams) {
            (Isa::NeonBf16 | Isa::Neon, 1) => return arm::read_neon::<1>(words),
            (Isa::NeonBf16 | Isa::Neon, 4) => return arm::read_neon::<4>(words),
            (Isa::NeonBf16 | Isa::Neon, _) => return arm::read_neon::<8>(words),
            (Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512 | Isa::Avx2 | Isa::Scalar, _) => {}
        }
    }
    let _ = (isa, streams);
    black_box(words.iter().fold(0, |all, word| all | word));
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! multiply_add {
    ($name:ident, $count:ident, $features:literal, $sums:literal x $flops:literal, $zero:expr, $one:expr, $step:expr) => {
        pub const $count: f64 = ($sums * $flops) as f64;

        /// Runs independent multiply-adds in registers, and nothing else.
        #[target_feature(enable = $features)]
        pub fn $name(rounds: usize) {
            let (mut sums, one) = ([$zero; $sums], black_box($one));
            for _ in 0..rounds {
                for sum in &mut sums {
                    *sum = $step(*sum, one);
                }
            }
            black_box(sums);
        }
    };
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! read {
    ($name:ident, $features:literal, $vector:ty, $zero:expr, $load:expr, $or:expr) => {
        /// Reads one vector from each of `STREAMS` contiguous ranges in turn, until the ranges end.
        #[target_feature(enable = $features)]
        pub fn $name<const STREAMS: usize>(words: &[u64]) {
            const STEP: usize = size_of::<$vector>() / size_of::<u64>();
            let stream = words.len() / STREAMS / BLOCK * BLOCK;
            let mut all = [$zero; STREAMS];
            for at in (0..stream).step_by(STEP) {
                for (s, all) in all.iter_mut().enumerate() {
                    // SAFETY: `at + STEP` is at most `stream`, because `stream` is a multiple of `STEP`.
                    let vector = unsafe { $load(words.as_ptr().add(s * stream + at).cast()) };
                    *all = $or(*all, vector);
                }
            }
            black_box(all);
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::{asm, x86_64::*};
    use std::hint::black_box;

    use super::BLOCK;

    // The sums are independent, and numerous enough to hide the latency of an addition. All of them fit in
    // registers.
    multiply_add!(avx2, AVX2, "avx2,fma", 10 x 16, _mm256_setzero_ps(), _mm256_set1_ps(0.5), |s, o| {
        _mm256_fmadd_ps(o, o, s)
    });
    multiply_add!(avx512, AVX512, "avx512f", 16 x 32, _mm512_setzero_ps(), _mm512_set1_ps(0.5), |s, o| {
        _mm512_fmadd_ps(o, o, s)
    });
    multiply_add!(
        avx512bf16,
        AVX512BF16,
        "avx512f,avx512bf16",
        16 x 64,
        _mm512_setzero_ps(),
        // SAFETY: both types have 64 bytes, and every bit pattern is valid for both.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(0x3f00_3f00)) },
        |s, o| _mm512_dpbf16_ps(s, o, o)
    );

    /// Number of rounds for which one iteration of the loop in [`amx`] counts. With this number, a run takes
    /// about as long as a run with vectors.
    const AMX_ROUNDS: usize = 16;

    /// FLOP of one round of [`amx`].
    pub const AMX: f64 = (6 * 16 * 16 * 64 / AMX_ROUNDS) as f64;

    /// Runs independent multiply-adds in tile registers, and nothing else.
    pub fn amx(rounds: usize) {
        let mut shapes = [0u8; 64];
        shapes[0] = 1;
        for i in 0..8 {
            (shapes[16 + 2 * i], shapes[48 + i]) = (64, 16);
        }
        // SAFETY: `kernel` checked the instruction set. The shapes are valid, and the code reads no memory
        // except `shapes`.
        unsafe {
            asm!(
                "ldtilecfg [{shapes}]",
                "2:",
                "tdpbf16ps tmm0, tmm6, tmm7",
                "tdpbf16ps tmm1, tmm6, tmm7",
                "tdpbf16ps tmm2, tmm6, tmm7",
                "tdpbf16ps tmm3, tmm6, tmm7",
                "tdpbf16ps tmm4, tmm6, tmm7",
                "tdpbf16ps tmm5, tmm6, tmm7",
                "dec {rounds}",
                "jnz 2b",
                "tilerelease",
                shapes = in(reg) shapes.as_ptr(),
                rounds = inout(reg) rounds / AMX_ROUNDS => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly),
            );
        }
    }

    read!(read_avx2, "avx2", __m256i, _mm256_setzero_si256(), |p| _mm256_loadu_si256(p), |a, b| {
        _mm256_or_si256(a, b)
    });
    read!(read_avx512, "avx512f", __m512i, _mm512_setzero_si512(), |p| _mm512_loadu_si512(p), |a, b| {
        _mm512_or_si512(a, b)
    });
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::{aarch64::*, asm};
    use std::hint::black_box;

    use super::BLOCK;

    multiply_add!(neon, NEON, "neon", 16 x 8, vdupq_n_f32(0.0), vdupq_n_f32(0.5), |s, o| vfmaq_f32(s, o, o));
    multiply_add!(
        neon_bf16,
        NEON_BF16,
        "neon,bf16",
        16 x 16,
        vdupq_n_f32(0.0),
        vreinterpretq_f32_u32(vdupq_n_u32(0x3f00_3f00)),
        |s, o| dot(s, o)
    );

    /// Adds the products of pairs of bf16 to each sum.
    #[target_feature(enable = "neon,bf16")]
    fn dot(mut sum: float32x4_t, one: float32x4_t) -> float32x4_t {
        // SAFETY: the instruction is enabled here, and accesses no memory.
        unsafe {
            asm!(
                ".arch_extension bf16",
                "bfdot {sum:v}.4s, {one:v}.8h, {one:v}.8h",
                sum = inout(vreg) sum,
                one = in(vreg) one,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        sum
    }

    read!(read_neon, "neon", uint64x2_t, vdupq_n_u64(0), |p| vld1q_u64(p), |a, b| vorrq_u64(a, b));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_supported_vector_unit_has_a_peak_and_scalar_has_none() {
        for isa in Isa::ALL {
            for dtype in [DType::F32, DType::Bf16] {
                let peak = flops(isa, dtype, 1);
                assert_eq!(peak.is_some(), isa != Isa::Scalar && isa.is_supported(), "{isa}");
                assert!(peak.is_none_or(|peak| peak.is_finite() && peak > 0.0), "{isa}: {peak:?}");
            }
        }
    }

    #[test]
    fn only_an_instruction_set_with_bf16_products_chooses_bf16() {
        for isa in Isa::supported() {
            let fastest = fastest_dtype(isa);
            assert!(fastest == DType::F32 || isa.multiplies_bf16(), "{isa}: {fastest:?}");
        }
    }

    #[test]
    fn reading_has_a_rate_on_any_number_of_threads() {
        for threads in [1, 3] {
            let rate = read_bandwidth(threads);
            assert!(rate.is_finite() && rate > 0.0, "{rate}");
        }
    }
}
