//! Frozen weights, stored once in row-major order, usually in a memory-mapped file.

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::{DType, FourBit, to_f32};

/// A range of bytes with shared ownership. The owner is a memory map, a `Vec` or a static.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl Bytes {
    /// Refers to the bytes `range` of `owner`.
    ///
    /// # Panics
    /// If `range` extends past the end of `owner`.
    pub fn new(owner: Arc<dyn AsRef<[u8]> + Send + Sync>, range: Range<usize>) -> Self {
        let len = (*owner).as_ref().len();
        assert!(range.start <= range.end && range.end <= len, "bytes {range:?} of an owner of {len}");
        Self { owner, range }
    }

    /// Refers to all bytes of `data`.
    pub fn from_vec(data: Vec<u8>) -> Self {
        let range = 0..data.len();
        Self { owner: Arc::new(data), range }
    }

    /// Returns the little-endian bytes of `values`.
    pub fn from_f32(values: &[f32]) -> Self {
        Self::from_vec(values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// Returns the bytes.
    pub fn as_slice(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.range.clone()]
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({})", self.range.len())
    }
}

/// A frozen weight of shape `(rows, cols)`, row-major.
///
/// For a projection, `rows` is `OUT` and `cols` is `IN`, as in `nn.Linear`. A matrix is immutable, so threads
/// and models can share it.
#[derive(Clone)]
pub struct Matrix {
    storage: MatrixStorage,
    rows: usize,
    cols: usize,
}

/// The elements of a [`Matrix`].
#[derive(Clone)]
pub enum MatrixStorage {
    /// Little-endian elements of one type.
    Dense(DType, Bytes),
    /// 4-bit codes, with one scale for each block of elements.
    FourBit(Arc<FourBit>),
    /// A back end's own handle, for example to device memory.
    Opaque(Arc<dyn Any + Send + Sync>),
}

/// A [`Matrix`] in host memory.
#[derive(Clone, Copy)]
pub(crate) enum HostMatrix<'a> {
    /// Little-endian elements of one type.
    Dense(DType, &'a [u8]),
    /// 4-bit codes, with one scale for each block of elements.
    FourBit(&'a FourBit),
}

impl HostMatrix<'_> {
    /// Returns the number of bytes of all elements.
    pub fn bytes(self) -> usize {
        match self {
            Self::Dense(_, bytes) => bytes.len(),
            Self::FourBit(weight) => weight.bytes(),
        }
    }
}

impl Matrix {
    /// Creates a dense matrix over `data`.
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

    /// Copies `data` into a dense f32 matrix.
    pub fn from_f32(data: &[f32], rows: usize, cols: usize) -> Self {
        Self::dense(DType::F32, Bytes::from_f32(data), rows, cols)
    }

    /// Creates a 4-bit matrix.
    ///
    /// # Panics
    /// If `data` is not exactly `rows * cols` elements.
    pub fn four_bit(data: Arc<FourBit>, rows: usize, cols: usize) -> Self {
        assert_eq!(Some(data.len()), rows.checked_mul(cols));
        Self { storage: MatrixStorage::FourBit(data), rows, cols }
    }

    /// Wraps the handle of a back end.
    pub fn opaque(handle: Arc<dyn Any + Send + Sync>, rows: usize, cols: usize) -> Self {
        Self { storage: MatrixStorage::Opaque(handle), rows, cols }
    }

    /// Returns the number of rows. This is `OUT` of a projection, and `V` of an embedding table.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the number of columns. This is `IN` of a projection, and `C` of an embedding table.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Returns the elements.
    pub fn storage(&self) -> &MatrixStorage {
        &self.storage
    }

    /// Returns the elements, for host back ends.
    ///
    /// # Panics
    /// If the matrix is not in host memory.
    pub(crate) fn host(&self) -> HostMatrix<'_> {
        match &self.storage {
            MatrixStorage::Dense(dtype, bytes) => HostMatrix::Dense(*dtype, bytes.as_slice()),
            MatrixStorage::FourBit(weight) => HostMatrix::FourBit(weight),
            MatrixStorage::Opaque(_) => panic!("a host back end was handed another back end's matrix"),
        }
    }

    /// Converts the rows `rows` to f32.
    ///
    /// # Panics
    /// If the rows do not exist, if `out` is too short, or if the matrix is not in host memory.
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

    /// Converts row `row` to f32.
    ///
    /// # Panics
    /// In the same cases as [`Matrix::rows_to_f32`].
    pub fn row_to_f32(&self, row: usize, out: &mut [f32]) {
        self.rows_to_f32(row..row + 1, out);
    }

    /// Converts the whole matrix to row-major f32, for references and tests.
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
