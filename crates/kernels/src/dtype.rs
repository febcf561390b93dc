//! Types of stored elements, and conversions to and from f32.

use crate::Isa;
use crate::simd::simd_fn;

/// Element type of a weight or a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// The upper half of an f32, with 8 bits of exponent and 7 bits of mantissa.
    Bf16,
    /// IEEE 754 binary16.
    F16,
}

impl DType {
    /// Returns the bytes per element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }
}

/// Converts little-endian elements to f32. The conversion is exact.
///
/// # Panics
/// If `bytes` does not contain exactly `out.len()` elements of `dtype`.
pub fn to_f32(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len(), out.len() * dtype.size());
    widen(Isa::detect(), dtype, bytes, out);
}

simd_fn! {
    fn widen(dtype: DType, bytes: &[u8], out: &mut [f32]) = widen_body
}

#[allow(
    clippy::extra_unused_type_parameters,
    reason = "plain loops: only what they are compiled for differs"
)]
#[inline(always)]
fn widen_body<L>(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        DType::F32 => {
            for (o, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                *o = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }
        }
        DType::Bf16 => {
            for (o, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                *o = bf16_to_f32(u16::from_le_bytes([b[0], b[1]]));
            }
        }
        DType::F16 => {
            for (o, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                *o = f16_to_f32(u16::from_le_bytes([b[0], b[1]]));
            }
        }
    }
}

/// Rounds f32 values to `dtype`, to nearest with ties to even. The output is little-endian.
///
/// # Panics
/// If `out` does not have space for exactly `inp.len()` elements of `dtype`.
pub fn from_f32(dtype: DType, inp: &[f32], out: &mut [u8]) {
    assert_eq!(out.len(), inp.len() * dtype.size());
    narrow(Isa::detect(), dtype, inp, out);
}

simd_fn! {
    fn narrow(dtype: DType, inp: &[f32], out: &mut [u8]) = narrow_body
}

#[allow(
    clippy::extra_unused_type_parameters,
    reason = "plain loops: only what they are compiled for differs"
)]
#[inline(always)]
fn narrow_body<L>(dtype: DType, inp: &[f32], out: &mut [u8]) {
    match dtype {
        DType::F32 => {
            for (o, v) in out.chunks_exact_mut(4).zip(inp) {
                o.copy_from_slice(&v.to_le_bytes());
            }
        }
        DType::Bf16 => {
            for (o, &v) in out.chunks_exact_mut(2).zip(inp) {
                o.copy_from_slice(&f32_to_bf16(v).to_le_bytes());
            }
        }
        DType::F16 => {
            for (o, &v) in out.chunks_exact_mut(2).zip(inp) {
                o.copy_from_slice(&f32_to_f16(v).to_le_bytes());
            }
        }
    }
}

/// Converts bf16 bits to f32. The conversion is exact.
#[inline(always)]
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

/// Rounds f32 to bf16 bits, to nearest with ties to even. NaN is converted to NaN.
#[inline(always)]
pub fn f32_to_bf16(v: f32) -> u16 {
    let bits = v.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
    if v.is_nan() { (bits >> 16) as u16 | 0x40 } else { rounded }
}

/// Converts f16 bits to f32. The conversion is exact.
#[inline(always)]
pub fn f16_to_f32(bits: u16) -> f32 {
    let sign = ((bits & 0x8000) as u32) << 16;
    let magnitude = (bits & 0x7fff) as u32;
    if magnitude >= 0x7c00 {
        return f32::from_bits(sign | 0x7f80_0000 | (magnitude & 0x3ff) << 13);
    }
    // The shifted bits represent a number that is 2^112 times too small. One exact multiplication corrects
    // this, even for subnormal numbers.
    f32::from_bits(sign | magnitude << 13) * f32::from_bits(0x7780_0000)
}

/// Rounds f32 to f16 bits, to nearest with ties to even. A value outside the range becomes infinity. NaN is
/// converted to NaN.
#[inline(always)]
pub fn f32_to_f16(v: f32) -> u16 {
    let bits = v.to_bits();
    let sign = (bits >> 16 & 0x8000) as u16;
    let abs = bits & 0x7fff_ffff;
    if abs > 0x7f80_0000 {
        return sign | 0x7e00;
    }
    if abs >= 0x4780_0000 {
        return sign | 0x7c00;
    }
    if abs < 0x3880_0000 {
        // The result is a subnormal f16, with a step of 2^-24. An f32 between 0.5 and 1 has the same step, so
        // adding 0.5 rounds correctly.
        let shifted = f32::from_bits(abs) + 0.5;
        return sign | (shifted.to_bits() - 0.5f32.to_bits()) as u16;
    }
    let rounded = abs + 0xfff + (abs >> 13 & 1);
    sign | ((rounded - 0x3800_0000) >> 13) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let halves: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        for dtype in [DType::Bf16, DType::F16] {
            let run = |isa| {
                let (mut wide, mut back) = (vec![0.0; 1 << 16], vec![0; 2 << 16]);
                widen(isa, dtype, &halves, &mut wide);
                // Flipping two bits gives values between two neighbours of `dtype`, so that rounding matters.
                let shifted: Vec<f32> = wide.iter().map(|v| f32::from_bits(v.to_bits() ^ 0x1800)).collect();
                narrow(isa, dtype, &shifted, &mut back);
                (wide.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), back)
            };
            let plain = run(Isa::Scalar);
            for isa in Isa::supported() {
                assert!(run(isa) == plain, "{isa} {dtype:?}");
            }
        }
    }

    #[test]
    fn every_f16_survives_the_trip_through_f32() {
        for bits in 0..=u16::MAX {
            let v = f16_to_f32(bits);
            if v.is_nan() {
                assert!(f16_to_f32(f32_to_f16(v)).is_nan());
            } else {
                assert_eq!(f32_to_f16(v), bits, "{v}");
            }
        }
    }

    #[test]
    fn rounding_goes_to_nearest_ties_to_even() {
        assert_eq!(f32_to_bf16(f32::from_bits(0x3f80_8000)), 0x3f80);
        assert_eq!(f32_to_bf16(f32::from_bits(0x3f81_8000)), 0x3f82);
        assert_eq!(f32_to_bf16(f32::from_bits(0x3f80_8001)), 0x3f81);
        assert!(bf16_to_f32(f32_to_bf16(f32::NAN)).is_nan());
        assert_eq!(f32_to_f16(1.0 + 1.0 / 2048.0), 0x3c00);
        assert_eq!(f32_to_f16(1.0 + 3.0 / 2048.0), 0x3c02);
        assert_eq!(f32_to_f16(65520.0), 0x7c00);
        assert_eq!(f32_to_f16(65519.0), 0x7bff);
        assert_eq!(f32_to_f16(2.0f32.powi(-25)), 0);
        assert_eq!(f32_to_f16(2.0f32.powi(-25) * 1.5), 1);
    }
}
