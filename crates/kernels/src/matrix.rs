//! Frozen weights: one row-major copy, usually still inside a memory-mapped file.

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::FourBit;

/// Element type of a stored weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// The upper half of an f32: 8 bits of exponent, 7 of mantissa.
    Bf16,
    /// IEEE 754 binary16.
    F16,
}

impl DType {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }
}

/// A range of bytes kept alive by whoever owns them: a memory map, a `Vec`, a static.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl Bytes {
    /// The bytes `range` of `owner`.
    ///
    /// # Panics
    /// If `range` reaches past the end of `owner`.
    pub fn new(owner: Arc<dyn AsRef<[u8]> + Send + Sync>, range: Range<usize>) -> Self {
        let len = (*owner).as_ref().len();
        assert!(range.start <= range.end && range.end <= len, "bytes {range:?} of an owner of {len}");
        Self { owner, range }
    }

    /// All the bytes of `data`.
    pub fn from_vec(data: Vec<u8>) -> Self {
        let range = 0..data.len();
        Self { owner: Arc::new(data), range }
    }

    /// `values`, little-endian.
    pub fn from_f32(values: &[f32]) -> Self {
        Self::from_vec(values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.range.clone()]
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({})", self.range.len())
    }
}

/// A frozen weight `(rows, cols)`, row-major.
///
/// For a projection `rows` is `OUT` and `cols` is `IN`, as `nn.Linear` stores it. Nothing here is ever
/// trained, so it is shared freely between threads and models.
#[derive(Clone)]
pub struct Matrix {
    storage: MatrixStorage,
    rows: usize,
    cols: usize,
}

/// Where and how the elements of a [`Matrix`] are held.
#[derive(Clone)]
pub enum MatrixStorage {
    /// Little-endian elements of one type, dense.
    Dense(DType, Bytes),
    /// Codes of 4 bits in blocks.
    FourBit(Arc<FourBit>),
    /// Something only its own back end understands, such as device memory.
    Opaque(Arc<dyn Any + Send + Sync>),
}

/// A [`Matrix`] in the host's memory.
#[derive(Clone, Copy)]
pub(crate) enum HostMatrix<'a> {
    /// Little-endian elements of one type, dense.
    Dense(DType, &'a [u8]),
    /// Codes of 4 bits in blocks.
    FourBit(&'a FourBit),
}

impl Matrix {
    /// A dense matrix over `data`.
    ///
    /// # Panics
    /// If `data` is not exactly `rows * cols` elements of `dtype`.
    pub fn dense(dtype: DType, data: Bytes, rows: usize, cols: usize) -> Self {
        assert_eq!(
            Some(data.as_slice().len()),
            rows.checked_mul(cols).and_then(|n| n.checked_mul(dtype.size()))
        );
        Self { storage: MatrixStorage::Dense(dtype, data), rows, cols }
    }

    /// A dense f32 matrix that copies `data`.
    pub fn from_f32(data: &[f32], rows: usize, cols: usize) -> Self {
        Self::dense(DType::F32, Bytes::from_f32(data), rows, cols)
    }

    /// A matrix in 4 bits.
    ///
    /// # Panics
    /// If `data` is not exactly `rows * cols` elements.
    pub fn four_bit(data: Arc<FourBit>, rows: usize, cols: usize) -> Self {
        assert_eq!(Some(data.len()), rows.checked_mul(cols));
        Self { storage: MatrixStorage::FourBit(data), rows, cols }
    }

    /// A matrix behind a back end's own handle.
    pub fn opaque(handle: Arc<dyn Any + Send + Sync>, rows: usize, cols: usize) -> Self {
        Self { storage: MatrixStorage::Opaque(handle), rows, cols }
    }

    /// Rows: `OUT` of a projection, `V` of an embedding table.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: `IN` of a projection, `C` of an embedding table.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// How the elements are held.
    pub fn storage(&self) -> &MatrixStorage {
        &self.storage
    }

    /// The elements, for host back ends.
    ///
    /// # Panics
    /// If the matrix belongs to a back end whose memory is not the host's.
    pub(crate) fn host(&self) -> HostMatrix<'_> {
        match &self.storage {
            MatrixStorage::Dense(dtype, bytes) => HostMatrix::Dense(*dtype, bytes.as_slice()),
            MatrixStorage::FourBit(weight) => HostMatrix::FourBit(weight),
            MatrixStorage::Opaque(_) => panic!("a host back end was handed another back end's matrix"),
        }
    }

    /// Widens `rows` to f32.
    ///
    /// # Panics
    /// If there are no such rows, `out` is shorter than they are, or the matrix belongs to a back end whose memory is
    /// not the host's.
    pub fn rows_to_f32(&self, rows: Range<usize>, out: &mut [f32]) {
        let elements = rows.start * self.cols..rows.end * self.cols;
        let out = &mut out[..elements.len()];
        match self.host() {
            HostMatrix::Dense(dtype, bytes) => {
                to_f32(dtype, &bytes[elements.start * dtype.size()..elements.end * dtype.size()], out);
            }
            HostMatrix::FourBit(weight) => weight.decode(elements, out),
        }
    }

    /// Widens row `row` to f32.
    ///
    /// # Panics
    /// As [`Matrix::rows_to_f32`].
    pub fn row_to_f32(&self, row: usize, out: &mut [f32]) {
        self.rows_to_f32(row..row + 1, out);
    }

    /// The whole matrix in f32, row-major: for references and tests.
    pub fn to_vec(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        self.rows_to_f32(0..self.rows, &mut out);
        out
    }
}

impl fmt::Debug for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match &self.storage {
            MatrixStorage::Dense(dtype, _) => format!("{dtype:?}"),
            MatrixStorage::FourBit(_) => "4 bits".to_owned(),
            MatrixStorage::Opaque(_) => "opaque".to_owned(),
        };
        write!(f, "Matrix({place}, {} x {})", self.rows, self.cols)
    }
}

/// Widens little-endian elements to f32, exactly.
///
/// # Panics
/// If `bytes` does not hold exactly `out.len()` elements of `dtype`.
pub fn to_f32(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len(), out.len() * dtype.size());
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

/// Rounds f32 to `dtype`, to nearest, ties to even, little-endian.
///
/// # Panics
/// If `out` does not hold exactly `inp.len()` elements of `dtype`.
pub fn from_f32(dtype: DType, inp: &[f32], out: &mut [u8]) {
    assert_eq!(out.len(), inp.len() * dtype.size());
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

/// Widens bf16 bits to f32, exactly.
#[inline(always)]
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

/// Rounds f32 to bf16 bits, to nearest, ties to even; a NaN stays a NaN.
#[inline(always)]
pub fn f32_to_bf16(v: f32) -> u16 {
    let bits = v.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
    if v.is_nan() { (bits >> 16) as u16 | 0x40 } else { rounded }
}

/// Widens f16 bits to f32, exactly.
#[inline(always)]
pub fn f16_to_f32(bits: u16) -> f32 {
    let sign = ((bits & 0x8000) as u32) << 16;
    let magnitude = (bits & 0x7fff) as u32;
    if magnitude >= 0x7c00 {
        return f32::from_bits(sign | 0x7f80_0000 | (magnitude & 0x3ff) << 13);
    }
    // Placed 112 binary orders too low, then scaled up: one multiplication is exact for subnormals too.
    f32::from_bits(sign | magnitude << 13) * f32::from_bits(0x7780_0000)
}

/// Rounds f32 to f16 bits, to nearest, ties to even; out of range becomes infinity, a NaN stays a NaN.
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
        // Subnormal: adding 0.5 places the last kept bit at the end of the mantissa, and rounds there.
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
