//! NEON: vectors of 8 lanes in two registers, and tiles of 6 x 16 elements. The 24 accumulators of a tile stay
//! in registers.

use std::arch::{aarch64::*, asm};

use super::kernel_table;
use super::micro_kernel::{BF16, F32, MicroKernel};

/// Kernels for f32 on NEON.
pub(super) struct Neon;

/// Eight lanes of f32. The first register has lanes 0 to 3.
#[derive(Clone, Copy)]
pub(super) struct Vector(pub float32x4_t, pub float32x4_t);

/// Rounds f32 values to bf16 precision, to the nearest value with ties to even. A NaN is returned unchanged,
/// as in the AVX-512 version.
///
/// # Safety
/// The processor must support NEON.
#[inline(always)]
unsafe fn round_bf16(v: float32x4_t) -> float32x4_t {
    // SAFETY: the caller guarantees that the processor supports NEON.
    unsafe {
        let bits = vreinterpretq_u32_f32(v);
        let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
        let up = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
        let rounded = vandq_u32(up, vdupq_n_u32(0xffff_0000));
        // A NaN is not equal to itself.
        vbslq_f32(vceqq_f32(v, v), vreinterpretq_f32_u32(rounded), v)
    }
}

/// Loads 8 consecutive elements, and converts the elements to f32. The conversion is exact.
///
/// # Safety
/// The processor must support NEON, and 8 elements must be readable at `p`.
#[inline(always)]
pub(super) unsafe fn widen<const D: u8>(p: *const u8) -> Vector {
    // SAFETY: the caller guarantees that the processor supports NEON and that the elements exist. The loads
    // need no alignment.
    unsafe {
        if D == F32 {
            return Neon::load(p.cast());
        }
        let halves = vld1q_u16(p.cast());
        if D == BF16 {
            let lower = vshll_n_u16::<16>(vget_low_u16(halves));
            return Vector(
                vreinterpretq_f32_u32(lower),
                vreinterpretq_f32_u32(vshll_high_n_u16::<16>(halves)),
            );
        }
        let (lower, upper);
        asm!(
            "fcvtl {lower:v}.4s, {halves:v}.4h",
            "fcvtl2 {upper:v}.4s, {halves:v}.8h",
            halves = in(vreg) halves,
            lower = out(vreg) lower,
            upper = lateout(vreg) upper,
            options(pure, nomem, nostack, preserves_flags),
        );
        Vector(lower, upper)
    }
}

/// Transposes 4 x 4 lanes.
///
/// # Safety
/// The processor must support NEON.
#[inline(always)]
unsafe fn transpose_four([a, b, c, d]: [float32x4_t; 4]) -> [float32x4_t; 4] {
    // SAFETY: the caller guarantees that the processor supports NEON.
    unsafe {
        let [ab0, ab1, cd0, cd1] = [vtrn1q_f32(a, b), vtrn2q_f32(a, b), vtrn1q_f32(c, d), vtrn2q_f32(c, d)]
            .map(|v| vreinterpretq_f64_f32(v));
        [vtrn1q_f64(ab0, cd0), vtrn1q_f64(ab1, cd1), vtrn2q_f64(ab0, cd0), vtrn2q_f64(ab1, cd1)]
            .map(|v| vreinterpretq_f32_f64(v))
    }
}

/// Returns the eight codes of the four bytes at `p`. The first code of a byte is in the upper half.
///
/// # Safety
/// The processor must support NEON, and four bytes must be readable at `p`.
#[inline(always)]
unsafe fn codes(p: *const u8) -> uint8x8_t {
    // SAFETY: the caller guarantees that the processor supports NEON and that the bytes exist.
    unsafe {
        let bytes = vreinterpret_u8_u32(vdup_n_u32(p.cast::<u32>().read_unaligned()));
        vzip1_u8(vshr_n_u8::<4>(bytes), vand_u8(bytes, vdup_n_u8(15)))
    }
}

/// Looks up eight codes. Register `b` of the table has byte `b` of each of the 16 values.
///
/// # Safety
/// The processor must support NEON.
#[inline(always)]
unsafe fn of_table(table: [uint8x16_t; 4], codes: uint8x8_t) -> Vector {
    // SAFETY: the caller guarantees that the processor supports NEON.
    unsafe {
        let [b0, b1, b2, b3] = table.map(|bytes| vqtbl1_u8(bytes, codes));
        let lower = vcombine_u8(vzip1_u8(b0, b1), vzip2_u8(b0, b1));
        let upper = vcombine_u8(vzip1_u8(b2, b3), vzip2_u8(b2, b3));
        let (lower, upper) = (vreinterpretq_u16_u8(lower), vreinterpretq_u16_u8(upper));
        Vector(
            vreinterpretq_f32_u16(vzip1q_u16(lower, upper)),
            vreinterpretq_f32_u16(vzip2q_u16(lower, upper)),
        )
    }
}

impl MicroKernel for Neon {
    type V = Vector;
    const LANES: usize = 8;
    const MR: usize = 6;
    const PAIR: usize = 1;

    #[inline(always)]
    unsafe fn zero() -> Vector {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { Self::splat(0.0) }
    }

    #[inline(always)]
    unsafe fn splat(v: f32) -> Vector {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { Vector(vdupq_n_f32(v), vdupq_n_f32(v)) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Vector {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { Vector(vld1q_f32(p), vld1q_f32(p.add(4))) }
    }

    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Vector {
        let mut lanes = [0.0; Self::LANES];
        // SAFETY: the caller meets the trait's requirements. At most `LANES` elements are copied.
        unsafe {
            p.copy_to_nonoverlapping(lanes.as_mut_ptr(), n.min(Self::LANES));
            Self::load(lanes.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Vector) {
        // SAFETY: the caller meets the trait's requirements.
        unsafe {
            vst1q_f32(p, v.0);
            vst1q_f32(p.add(4), v.1);
        }
    }

    #[inline(always)]
    unsafe fn store_first(p: *mut f32, n: usize, v: Vector) {
        let mut lanes = [0.0; Self::LANES];
        // SAFETY: the caller meets the trait's requirements. At most `LANES` elements are copied.
        unsafe {
            Self::store(lanes.as_mut_ptr(), v);
            p.copy_from_nonoverlapping(lanes.as_ptr(), n.min(Self::LANES));
        }
    }

    #[inline(always)]
    unsafe fn step(acc: Vector, a: Vector, b: Vector) -> Vector {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { Self::mul_add(acc, a, b) }
    }

    #[inline(always)]
    unsafe fn mul_add(acc: Vector, a: Vector, b: Vector) -> Vector {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { Vector(vfmaq_f32(acc.0, a.0, b.0), vfmaq_f32(acc.1, a.1, b.1)) }
    }

    type Mask = [uint32x4_t; 2];

    #[inline(always)]
    unsafe fn mask(row: *const u32, vector: usize) -> [uint32x4_t; 2] {
        // SAFETY: the caller meets the trait's requirements. The mask of a vector is one byte, and danlu runs
        // on little-endian processors only.
        unsafe {
            let bits = vdupq_n_u32(u32::from(*row.cast::<u8>().add(vector)));
            [[1, 2, 4, 8], [16, 32, 64, 128]]
                .map(|lanes: [u32; 4]| vtstq_u32(bits, vld1q_u32(lanes.as_ptr())))
        }
    }

    #[inline(always)]
    unsafe fn apply_mask(v: Vector, mask: [uint32x4_t; 2]) -> Vector {
        // SAFETY: the caller meets the trait's requirements.
        unsafe {
            Vector(
                vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v.0), mask[0])),
                vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v.1), mask[1])),
            )
        }
    }

    #[inline(always)]
    unsafe fn words_by_rows<const D: u8>(p: *const u8, round: bool) -> Vector {
        // SAFETY: the caller meets the trait's requirements.
        unsafe {
            let v = widen::<D>(p);
            if round && D != BF16 { Vector(round_bf16(v.0), round_bf16(v.1)) } else { v }
        }
    }

    #[inline(always)]
    unsafe fn words_by_columns<const D: u8>(p0: *const u8, _: *const u8, round: bool) -> Vector {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { Self::words_by_rows::<D>(p0, round) }
    }

    const PIECES: usize = 1;
    /// The 16 values. Register `b` has byte `b` of each value.
    type Table = [uint8x16_t; 4];

    #[inline(always)]
    unsafe fn table(code: &[f32; 16], [scale, _]: [f32; 2], round: bool) -> [uint8x16_t; 4] {
        // SAFETY: the caller meets the trait's requirements, and `values` has 64 bytes.
        unsafe {
            let mut values = [0.0f32; 16];
            for at in (0..16).step_by(4) {
                let scaled = vmulq_n_f32(vld1q_f32(code.as_ptr().add(at)), scale);
                vst1q_f32(values.as_mut_ptr().add(at), if round { round_bf16(scaled) } else { scaled });
            }
            let uint8x16x4_t(b0, b1, b2, b3) = vld4q_u8(values.as_ptr().cast());
            [b0, b1, b2, b3]
        }
    }

    #[inline(always)]
    unsafe fn values([b0, b1, b2, b3]: [uint8x16_t; 4]) -> [f32; 16] {
        let mut values = [0.0f32; 16];
        // SAFETY: the caller meets the trait's requirements, and `values` has 64 bytes.
        unsafe { vst4q_u8(values.as_mut_ptr().cast(), uint8x16x4_t(b0, b1, b2, b3)) };
        values
    }

    #[inline(always)]
    unsafe fn lookup(table: [uint8x16_t; 4], p: *const u8) -> Vector {
        // SAFETY: the caller meets the trait's requirements. Four bytes contain eight codes.
        unsafe { of_table(table, codes(p)) }
    }

    #[inline(always)]
    unsafe fn lookup_by_columns(table: [uint8x16_t; 4], p0: *const u8, _: *const u8) -> Vector {
        // SAFETY: the caller meets the trait's requirements.
        unsafe { Self::lookup(table, p0) }
    }

    #[inline(always)]
    unsafe fn lookup_interleaved(table: [uint8x16_t; 4], p: *const u8, v: usize) -> Vector {
        // SAFETY: the caller meets the trait's requirements. The chunk has 32 bytes, and `v` is below 8.
        unsafe {
            // Vectors 0 and 1 share eight bytes. Vector 0 takes the upper codes, and vector 1 the lower codes.
            let bytes = vld1_u8(p.add(8 * (v / 2)));
            let upper = v.is_multiple_of(2);
            of_table(table, if upper { vshr_n_u8::<4>(bytes) } else { vand_u8(bytes, vdup_n_u8(15)) })
        }
    }

    #[inline(always)]
    fn interleaved(place: usize) -> usize {
        let (vector, lane) = (place / 8, place % 8);
        2 * (8 * (vector / 2) + lane) + vector % 2
    }

    #[inline(always)]
    unsafe fn transpose(rows: &mut [Vector; 16]) {
        // SAFETY: the caller meets the trait's requirements.
        unsafe {
            let square = *rows;
            let of = |first: usize, upper: bool| {
                let row = |i: usize| if upper { square[first + i].1 } else { square[first + i].0 };
                transpose_four([row(0), row(1), row(2), row(3)])
            };
            let [[a, b], [c, d]] = [[of(0, false), of(0, true)], [of(4, false), of(4, true)]];
            for i in 0..4 {
                rows[i] = Vector(a[i], c[i]);
                rows[4 + i] = Vector(b[i], d[i]);
            }
        }
    }

    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: a prefetch cannot fault.
        unsafe { asm!("prfm pldl1keep, [{p}]", p = in(reg) p, options(nostack, readonly, preserves_flags)) }
    }

    #[inline(always)]
    unsafe fn prefetch_far(p: *const u8) {
        // SAFETY: a prefetch cannot fault.
        unsafe { asm!("prfm pldl2keep, [{p}]", p = in(reg) p, options(nostack, readonly, preserves_flags)) }
    }

    #[inline(always)]
    unsafe fn sums(v: [Vector; 4]) -> [f32; 4] {
        let mut out = [0.0; 4];
        // SAFETY: the caller meets the trait's requirements. The store writes 16 bytes to a local variable.
        unsafe {
            let [a, b, c, d] = v.map(|v| vaddq_f32(v.0, v.1));
            vst1q_f32(out.as_mut_ptr(), vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
        }
        out
    }
}

kernel_table!("neon", Neon);
