//! Quantization to 4 bits. The codes equal the codes that bitsandbytes computes on a CPU.

use std::fmt;
use std::str::FromStr;

use super::tables::{FP4, NF4, dynamic_u8};
use crate::simd::simd_fn;

/// A 4-bit type, which defines the value of each of the 16 codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FourBitCode {
    /// NF4: the quantiles of a normal distribution, for weights.
    Nf4,
    /// FP4: a small floating-point number.
    Fp4,
}

impl FourBitCode {
    /// Returns the name that bitsandbytes uses and [`FromStr`] accepts, such as `nf4`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Fp4 => "fp4",
        }
    }

    /// Returns the table that contains the value of each code.
    pub fn table(self) -> &'static [f32; 16] {
        match self {
            Self::Nf4 => &NF4,
            Self::Fp4 => &FP4,
        }
    }
}

impl fmt::Display for FourBitCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for FourBitCode {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        [Self::Nf4, Self::Fp4]
            .into_iter()
            .find(|code| code.name() == name)
            .ok_or_else(|| format!("`{name}` is no code of 4 bits; there are nf4, fp4"))
    }
}

/// The 16 codes in ascending order of their values, and the midpoints between neighbouring values.
struct Ladder {
    codes: [u8; 16],
    bounds: [f32; 15],
    /// Whether the ordered codes are 0, 1, ... 15.
    is_ordered: bool,
}

impl Ladder {
    fn of(code: FourBitCode) -> Self {
        let table = code.table();
        let mut codes: [u8; 16] = std::array::from_fn(|i| i as u8);
        // FP4 has two zeros. The stable sort puts the lower code first, which then encodes the values just
        // below 0.
        codes.sort_by(|&a, &b| table[a as usize].total_cmp(&table[b as usize]));
        let value = |i: usize| table[codes[i] as usize];
        let is_ordered = codes.iter().enumerate().all(|(place, &code)| place == code as usize);
        Self { codes, bounds: std::array::from_fn(|i| (value(i) + value(i + 1)) / 2.0), is_ordered }
    }
}

/// Encodes `values`, and writes the largest magnitude of each block to `absmax`. The values must begin at a
/// block boundary. Each byte contains two codes, with the first code in the upper half. A value exactly
/// between two values of the table gets the code of the smaller value.
///
/// The last block may be short. If the number of values is odd, the last byte contains the code of the last
/// value and the code of zero.
///
/// # Panics
/// If `codes` or `absmax` does not have the length that the values need.
pub fn encode_blocks(
    isa: crate::Isa,
    code: FourBitCode,
    block_size: usize,
    values: &[f32],
    codes: &mut [u8],
    absmax: &mut [f32],
) {
    assert_eq!(codes.len(), values.len().div_ceil(2));
    assert_eq!(absmax.len(), values.len().div_ceil(block_size));
    assert!(block_size.is_multiple_of(2));
    encode(isa, &Ladder::of(code), block_size, values, codes, absmax);
}

simd_fn! {
    fn encode(ladder: &Ladder, block_size: usize, values: &[f32], codes: &mut [u8], absmax: &mut [f32]) = encode_body
}

/// Number of values that are compared with the bounds at once.
const TOGETHER: usize = 64;

#[allow(
    clippy::extra_unused_type_parameters,
    reason = "plain loops: only what they are compiled for differs"
)]
#[inline(always)]
fn encode_body<L>(ladder: &Ladder, block_size: usize, values: &[f32], codes: &mut [u8], absmax: &mut [f32]) {
    let blocks = values.chunks(block_size).zip(codes.chunks_mut(block_size / 2)).zip(absmax);
    for ((values, codes), absmax) in blocks {
        let mut largest = [0.0f32; 16];
        let mut sixteens = values.chunks_exact(16);
        for values in sixteens.by_ref() {
            for (largest, v) in largest.iter_mut().zip(values) {
                *largest = largest.max(v.abs());
            }
        }
        let rest = sixteens.remainder().iter().map(|v| v.abs());
        let largest = largest.into_iter().chain(rest).fold(0.0f32, f32::max);
        let is_whole = values.len() == block_size;
        // As in bitsandbytes, a whole block is multiplied by the reciprocal of its scale. A short block is
        // divided by its scale, which is stored as at least 1e-38.
        let divisor = largest.max(1e-38);
        *absmax = if is_whole { largest } else { divisor };
        let inverse = 1.0 / divisor;
        let scaled = |v: f32| (if is_whole { v * inverse } else { v / divisor }).clamp(-1.0, 1.0);
        for (values, codes) in values.chunks(TOGETHER).zip(codes.chunks_mut(TOGETHER / 2)) {
            let mut place = [0.0f32; TOGETHER];
            for (place, &v) in place.iter_mut().zip(values) {
                *place = scaled(v);
            }
            let mut steps = [0u32; TOGETHER];
            for bound in ladder.bounds {
                for (steps, place) in steps.iter_mut().zip(&place) {
                    *steps += u32::from(bound < *place);
                }
            }
            if ladder.is_ordered {
                for (code, steps) in codes.iter_mut().zip(steps.chunks_exact(2)) {
                    *code = (steps[0] << 4 | steps[1]) as u8;
                }
                continue;
            }
            for (code, steps) in codes.iter_mut().zip(steps.chunks_exact(2)) {
                *code = ladder.codes[steps[0] as usize & 15] << 4 | ladder.codes[steps[1] as usize & 15];
            }
        }
    }
}

/// Block scales of a weight as 8-bit codes ("double quantization").
#[derive(Clone, Debug, PartialEq)]
pub struct NestedScales {
    /// One code of [`dynamic_u8`] per scale.
    pub codes: Vec<u8>,
    /// The largest magnitude in each block of [`NESTED_BLOCK`] scales, after the mean is subtracted.
    pub absmax: Vec<f32>,
    /// The mean of the scales.
    pub offset: f32,
}

/// Number of block scales that share one entry of [`NestedScales::absmax`].
pub const NESTED_BLOCK: usize = 256;

/// Encodes the scales of a weight in 8 bits. Each scale gets the nearest code. If two codes are equally near,
/// the scale gets the lower code.
///
/// For about one scale in several hundred, bitsandbytes chooses the other of the two neighbouring codes.
pub fn nest(scales: &[f32]) -> NestedScales {
    let table = dynamic_u8();
    let mean = scales.iter().map(|&v| f64::from(v)).sum::<f64>() / scales.len().max(1) as f64;
    let offset = mean as f32;
    let (mut codes, mut absmax) = (Vec::with_capacity(scales.len()), Vec::new());
    for block in scales.chunks(NESTED_BLOCK) {
        let largest = block.iter().fold(0.0f32, |largest, v| largest.max((v - offset).abs()));
        absmax.push(largest);
        codes.extend(block.iter().map(|v| {
            // If every scale in a block of scales equals the mean, bitsandbytes stores code 0 and an `absmax`
            // of zero.
            if largest == 0.0 { 0 } else { nearest(&table, (v - offset) / largest) }
        }));
    }
    NestedScales { codes, absmax, offset }
}

/// Returns the index of the entry that is nearest to `v` in an ascending table.
fn nearest(table: &[f32; 256], v: f32) -> u8 {
    let above = table.partition_point(|&entry| entry <= v);
    let below = above.saturating_sub(1);
    let above = above.min(table.len() - 1);
    (if (table[above] - v).abs() < (v - table[below]).abs() { above } else { below }) as u8
}
