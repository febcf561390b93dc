//! The bf16 extension of NEON: `bfdot` computes 8 products of bf16 numbers, and adds them to 4 f32 sums. An
//! f32 multiply-add computes half as many products.

use std::arch::{aarch64::*, asm};

use super::kernel_table;
use super::micro_kernel::{BF16, F32, MicroKernel};
use super::neon::{Neon, Vector, widen};

// `.arch_extension` lets the assembler accept the instruction even in a closure, which does not inherit the
// target features of the function around it.

/// Kernels for pairs of bf16 on NEON.
pub(super) struct NeonBf16;

/// Returns `acc + a.0 · b.0 + a.1 · b.1` for each pair of bf16.
///
/// # Safety
/// The processor must support NEON with the bf16 extension.
#[inline(always)]
unsafe fn dot(acc: float32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t {
    let mut sum = acc;
    // SAFETY: the caller guarantees that the processor supports the instruction, which accesses no memory.
    unsafe {
        asm!(
            ".arch_extension bf16",
            "bfdot {sum:v}.4s, {a:v}.8h, {b:v}.8h",
            sum = inout(vreg) sum,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// Rounds eight f32 values to bf16, to the nearest value with ties to even.
///
/// # Safety
/// The processor must support NEON with the bf16 extension.
#[inline(always)]
unsafe fn narrow(v: Vector) -> uint16x8_t {
    let mut out: uint16x8_t;
    // SAFETY: the caller guarantees that the processor supports the instructions, which access no memory.
    unsafe {
        asm!(
            ".arch_extension bf16",
            "bfcvtn {out:v}.4h, {lower:v}.4s",
            "bfcvtn2 {out:v}.8h, {upper:v}.4s",
            out = out(vreg) out,
            lower = in(vreg) v.0,
            upper = in(vreg) v.1,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    out
}

/// Loads 8 consecutive elements, and converts the elements to bf16.
///
/// # Safety
/// The processor must support NEON with the bf16 extension, and 8 elements must be readable at `p`.
#[inline(always)]
unsafe fn halves<const D: u8>(p: *const u8) -> uint16x8_t {
    // SAFETY: the caller guarantees that the processor supports the instructions and that the elements exist.
    unsafe { if D == BF16 { vld1q_u16(p.cast()) } else { narrow(widen::<D>(p)) } }
}

/// Returns pairs: the first numbers come from `first`, and the second numbers from `second`.
///
/// # Safety
/// The processor must support NEON.
#[inline(always)]
unsafe fn pairs(first: uint16x8_t, second: uint16x8_t) -> Vector {
    // SAFETY: the caller guarantees that the processor supports NEON.
    unsafe {
        Vector(
            vreinterpretq_f32_u16(vzip1q_u16(first, second)),
            vreinterpretq_f32_u16(vzip2q_u16(first, second)),
        )
    }
}

/// Returns the upper codes and the lower codes of bytes. The first code of a byte is in the upper half.
///
/// # Safety
/// The processor must support NEON.
#[inline(always)]
unsafe fn codes(bytes: uint8x8_t) -> [uint8x8_t; 2] {
    // SAFETY: the caller guarantees that the processor supports NEON.
    unsafe { [vshr_n_u8::<4>(bytes), vand_u8(bytes, vdup_n_u8(15))] }
}

/// The 16 values of a piece as bf16: the lower bytes, and the upper bytes.
type Bytes = [uint8x16_t; 2];

/// Looks up 16 codes in order.
///
/// # Safety
/// The processor must support NEON.
#[inline(always)]
unsafe fn of_table([lower, upper]: Bytes, codes: uint8x16_t) -> Vector {
    // SAFETY: the caller guarantees that the processor supports NEON.
    unsafe {
        let (lower, upper) = (vqtbl1q_u8(lower, codes), vqtbl1q_u8(upper, codes));
        Vector(vreinterpretq_f32_u8(vzip1q_u8(lower, upper)), vreinterpretq_f32_u8(vzip2q_u8(lower, upper)))
    }
}

impl MicroKernel for NeonBf16 {
    type V = Vector;
    const LANES: usize = 8;
    const MR: usize = 6;
    const PAIR: usize = 2;

    #[inline(always)]
    unsafe fn zero() -> Vector {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { Neon::zero() }
    }

    #[inline(always)]
    unsafe fn splat(v: f32) -> Vector {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { Neon::splat(v) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Vector {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { Neon::load(p) }
    }

    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Vector {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { Neon::load_first(p, n) }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Vector) {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { Neon::store(p, v) }
    }

    #[inline(always)]
    unsafe fn store_first(p: *mut f32, n: usize, v: Vector) {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { Neon::store_first(p, n, v) }
    }

    #[inline(always)]
    unsafe fn step(acc: Vector, a: Vector, b: Vector) -> Vector {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { Vector(dot(acc.0, a.0, b.0), dot(acc.1, a.1, b.1)) }
    }

    #[inline(always)]
    unsafe fn mul_add(acc: Vector, a: Vector, b: Vector) -> Vector {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { Neon::mul_add(acc, a, b) }
    }

    type Mask = [uint32x4_t; 2];

    #[inline(always)]
    unsafe fn mask(row: *const u32, vector: usize) -> [uint32x4_t; 2] {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { Neon::mask(row, vector) }
    }

    #[inline(always)]
    unsafe fn apply_mask(v: Vector, mask: [uint32x4_t; 2]) -> Vector {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { Neon::apply_mask(v, mask) }
    }

    #[inline(always)]
    unsafe fn words_by_rows<const D: u8>(p: *const u8, _: bool) -> Vector {
        // SAFETY: the caller meets the trait's requirements. A vector has 16 elements.
        unsafe {
            let bytes = if D == F32 { 32 } else { 16 };
            Vector(vreinterpretq_f32_u16(halves::<D>(p)), vreinterpretq_f32_u16(halves::<D>(p.add(bytes))))
        }
    }

    #[inline(always)]
    unsafe fn words_by_columns<const D: u8>(p0: *const u8, p1: *const u8, _: bool) -> Vector {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { pairs(halves::<D>(p0), halves::<D>(p1)) }
    }

    const PIECES: usize = 2;
    /// The 16 values of two pieces.
    type Table = [Bytes; 2];

    #[inline(always)]
    unsafe fn table(code: &[f32; 16], scales: [f32; 2], _: bool) -> [Bytes; 2] {
        // SAFETY: the caller meets the trait's requirements, and `code` has 16 values.
        scales.map(|scale| unsafe {
            let scaled = |at| {
                let v = Neon::load(code.as_ptr().add(at));
                vreinterpretq_u8_u16(narrow(Vector(vmulq_n_f32(v.0, scale), vmulq_n_f32(v.1, scale))))
            };
            let (first, second) = (scaled(0), scaled(8));
            [vuzp1q_u8(first, second), vuzp2q_u8(first, second)]
        })
    }

    #[inline(always)]
    unsafe fn values([[lower, upper], _]: [Bytes; 2]) -> [f32; 16] {
        let mut values = [0.0; 16];
        // SAFETY: the caller meets the trait's requirements. The four stores fill `values`.
        unsafe {
            let halves =
                [vzip1q_u8(lower, upper), vzip2q_u8(lower, upper)].map(|bytes| vreinterpretq_u16_u8(bytes));
            for (i, halves) in halves.into_iter().enumerate() {
                let (first, second) =
                    (vshll_n_u16::<16>(vget_low_u16(halves)), vshll_high_n_u16::<16>(halves));
                let v = Vector(vreinterpretq_f32_u32(first), vreinterpretq_f32_u32(second));
                Neon::store(values.as_mut_ptr().add(8 * i), v);
            }
        }
        values
    }

    #[inline(always)]
    unsafe fn lookup(table: [Bytes; 2], p: *const u8) -> Vector {
        // SAFETY: the caller meets the trait's requirements. Eight bytes contain 16 codes.
        unsafe {
            let [upper, lower] = codes(vld1_u8(p));
            of_table(table[0], vcombine_u8(vzip1_u8(upper, lower), vzip2_u8(upper, lower)))
        }
    }

    #[inline(always)]
    unsafe fn lookup_by_columns(table: [Bytes; 2], p0: *const u8, p1: *const u8) -> Vector {
        // SAFETY: the caller meets the trait's requirements. Four bytes of each row contain eight codes.
        unsafe {
            let row = |bytes: Bytes, p: *const u8| {
                let four = vreinterpret_u8_u32(vdup_n_u32(p.cast::<u32>().read_unaligned()));
                let [upper, lower] = codes(four);
                let codes = vzip1_u8(upper, lower);
                let [lower, upper] = bytes.map(|bytes| vqtbl1_u8(bytes, codes));
                vreinterpretq_u16_u8(vcombine_u8(vzip1_u8(lower, upper), vzip2_u8(lower, upper)))
            };
            pairs(row(table[0], p0), row(table[1], p1))
        }
    }

    #[inline(always)]
    unsafe fn lookup_interleaved(table: [Bytes; 2], p: *const u8, v: usize) -> Vector {
        // SAFETY: the caller meets the trait's requirements. The chunk has 64 bytes, and `v` is below 8.
        unsafe {
            // Vectors 0 and 1 share 16 bytes. Vector 0 takes the upper codes, and vector 1 the lower codes. The
            // second piece begins at vector 4.
            let bytes = vld1q_u8(p.add(16 * (v / 2)));
            let upper = v.is_multiple_of(2);
            let codes = if upper { vshrq_n_u8::<4>(bytes) } else { vandq_u8(bytes, vdupq_n_u8(15)) };
            of_table(table[v / 4], codes)
        }
    }

    #[inline(always)]
    fn interleaved(place: usize) -> usize {
        let (vector, element) = (place / 16, place % 16);
        2 * (16 * (vector / 2) + element) + vector % 2
    }

    #[inline(always)]
    unsafe fn transpose(rows: &mut [Vector; 16]) {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { Neon::transpose(rows) }
    }

    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: a prefetch cannot fault.
        unsafe { Neon::prefetch(p) }
    }

    #[inline(always)]
    unsafe fn prefetch_far(p: *const u8) {
        // SAFETY: a prefetch cannot fault.
        unsafe { Neon::prefetch_far(p) }
    }

    #[inline(always)]
    unsafe fn sums(v: [Vector; 4]) -> [f32; 4] {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { Neon::sums(v) }
    }
}

kernel_table!("neon,bf16", NeonBf16);
