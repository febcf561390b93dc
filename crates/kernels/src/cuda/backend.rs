//! The [`Backend`] of a device. It checks shapes and launches kernels.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock};

use super::blas::{Direction, ProductOperands, ProductShape};
use super::device::{Allocation, Device, DeviceInfo, DevicePtr};
use super::driver::Driver;
use super::error::CudaError;
use super::memory::{self, indices_ptr, ptr, ptr_of, scalars_ptr};
use super::ops::few_rows::{self, FewRowsOut};
use super::ops::gated::GateUp;
use super::ops::rmsnorm::{NormShape, NormTypes};
use super::ops::rope::{Angles, Heads, Turn};
use super::ops::{self, Rows};
use super::product::Products;
use super::weight::{self, Weight};
use crate::cpu::pool::{Pool, lock};
use crate::matrix::HostMatrix;
use crate::{
    AdamW, AttentionDims, AttentionGrads, AttentionOperands, AttentionSaved, Backend, BackendError, Buffer,
    ColumnProducts, DType, DeviceMemory, Element, FamilyOperation, FourBitFormat, GatedGrads, GatedOperands,
    HeadGrads, HeadOperands, Indices, LoraGrads, LoraPair, LoraRef, Matrix, PassSize, ProjectGrads,
    ProjectGroup, ProjectSaved, RmsnormSaved, RopeOperands, Scalars, Segment, Segments, Store,
};

/// Maximum number of rows whose logits the loss head computes at a time.
pub(super) const HEAD_ROWS: usize = 512;
/// Maximum number of bytes of embedding rows that the host gathers at a time.
const EMBEDDING_BYTES: usize = 4 << 20;

/// Lowest major compute capability that supports bf16.
const BF16_CAPABILITY: u32 = 8;

/// Returns the default type of a device: bf16, or f16 if the device does not support bf16.
pub fn default_dtype(capability: (u32, u32)) -> DType {
    if capability.0 < BF16_CAPABILITY { DType::F16 } else { DType::Bf16 }
}

/// Options of a [`Cuda`] back end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CudaOptions {
    /// Index of the device.
    pub device: usize,
    /// Type of activations and dense weights. Sums are f32. If this type is f16, the residual stream is f32.
    pub dtype: DType,
}

/// The back end for one NVIDIA GPU.
pub struct Cuda {
    device: Arc<Device>,
    products: Products,
    dtype: DType,
    /// Buffer for a decoded 4-bit weight. It is large enough for the largest 4-bit weight on the device.
    decoded: Mutex<Option<Allocation>>,
    /// Buffer for the logits of at most [`HEAD_ROWS`] rows.
    logits: Mutex<Option<Allocation>>,
    /// Buffer for rows of the residual stream, rounded to f16.
    rounded: Mutex<Option<Allocation>>,
    rope: Mutex<RopeTable>,
    /// Threads on the host. They start when [`Backend::run_host_tasks`] is first called with more than one
    /// task.
    host_pool: OnceLock<Pool>,
}

impl Cuda {
    /// Opens the device, loads its kernels, and opens cuBLASLt if it is installed.
    ///
    /// # Errors
    /// If the driver or the device is missing, if the device does not support `options.dtype`, if its kernels
    /// or cuBLASLt cannot be loaded, or if its memory is exhausted.
    pub fn open(options: CudaOptions) -> Result<Self, CudaError> {
        Self::on_device(Device::open(Driver::open()?, options.device)?, options.dtype)
    }

    /// Creates a back end on an open device.
    pub(super) fn on_device(device: Arc<Device>, dtype: DType) -> Result<Self, CudaError> {
        let DeviceInfo { name, capability, .. } = &device.info;
        if dtype == DType::Bf16 && capability.0 < BF16_CAPABILITY {
            return Err(CudaError::NoBf16 { name: name.clone(), capability: *capability });
        }
        let products = Products::open(&device)?;
        Ok(Self {
            device,
            products,
            dtype,
            decoded: Mutex::default(),
            logits: Mutex::default(),
            rounded: Mutex::default(),
            rope: Mutex::default(),
            host_pool: OnceLock::new(),
        })
    }

    /// Returns the properties of the device.
    pub fn info(&self) -> &DeviceInfo {
        &self.device.info
    }

    /// Returns the bytes that are allocated now, and their peak. The driver's context is not counted.
    pub fn allocated(&self) -> (u64, u64) {
        self.device.allocated()
    }

    /// Returns the number of launches since the device was opened.
    pub fn launches(&self) -> u64 {
        self.device.launches()
    }

    /// Returns the number of sequences of operations that a CUDA graph replayed.
    pub fn replays(&self) -> u64 {
        self.device.replays()
    }

    /// Returns the names and versions of the components that determine the bits of a result.
    fn versions(&self) -> String {
        let DeviceInfo { index, name, driver, .. } = self.info();
        let driver = format!("driver {}.{}", driver / 1000, driver % 1000 / 10);
        let products = self.products.library().map_or("own products".to_owned(), |blas| {
            let version = blas.version();
            format!("cublaslt {}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
        });
        format!("cuda:{index} {name}, {driver}, {:?}, {products}", self.dtype).to_lowercase()
    }

    fn error(&self, operation: &str, error: CudaError) -> BackendError {
        let hint = error.hint().to_owned();
        BackendError {
            operation: operation.to_owned(),
            reason: format!("{}: {error}", self.device.info.name),
            hint,
        }
    }

    /// Returns the address of the weight in the activation type. A 4-bit weight is decoded into scratch
    /// memory that all calls share.
    fn dense_weight(&self, w: &Matrix) -> DevicePtr {
        match weight::placed(w) {
            Weight::Dense(memory) => memory.address(),
            Weight::FourBit(weight) => {
                let scratch = lock(&self.decoded);
                let to = scratch.as_ref().map_or(DevicePtr::NULL, Allocation::address);
                ops::four_bit::decode(&self.device, self.dtype, to, &weight.parts, (w.rows(), w.cols()));
                to
            }
        }
    }

    /// Returns rows in the activation type. Rows of an f32 residual stream are rounded into scratch memory,
    /// which the next call overwrites.
    fn activations(&self, buffer: &Buffer, n: usize, width: usize) -> Rows {
        let from = ptr_of(buffer, n * width);
        if buffer.dtype() == self.dtype {
            return Rows::dense(from, width);
        }
        let len = n * width;
        let to = self.grow(&self.rounded, len * self.dtype.size()).unwrap_or_else(|error| {
            self.device.record(Err(error));
            DevicePtr::NULL
        });
        ops::rows::round(&self.device, to, from, len);
        Rows::dense(to, width)
    }

    /// Runs a matrix multiplication. The input rows must have the activation type.
    fn product(&self, to: &mut Buffer, from: Rows, w: &Matrix, product: Product<'_>) {
        let Product { direction, add, rows } = product;
        let shape = ProductShape {
            direction,
            dtype: self.dtype,
            rows,
            outputs: w.rows(),
            inputs: w.cols(),
            adds: !matches!(add, Add::Nothing),
            exact: to.dtype() != self.dtype,
        };
        let (width, _) = shape.width_and_depth();
        let (to, from) = (ptr_of(to, rows * width), from.at);
        let add = match add {
            Add::Buffer(buffer) => ptr_of(buffer, rows * width),
            Add::Nothing | Add::Itself => to,
        };
        if rows > 0 && !self.fused_product(shape, [to, from, add], w) {
            let operands = ProductOperands { to, from, weight: self.dense_weight(w), add };
            self.products.run(&self.device, shape, operands);
        }
    }

    /// Multiplies by a 4-bit weight without writing the decoded weight to memory.
    ///
    /// Returns false, and computes nothing, if the weight is not 4-bit, if the result must be f32, if no
    /// kernel supports the shape, or if it is faster to decode the whole weight to memory first.
    fn fused_product(&self, shape: ProductShape, [to, from, add]: [DevicePtr; 3], w: &Matrix) -> bool {
        let Weight::FourBit(weight) = weight::placed(w) else { return false };
        let ProductShape { direction, rows: n, outputs, inputs: cols, .. } = shape;
        if shape.exact || n > ops::four_bit_fused::MAX_ROWS {
            return false;
        }
        let (width, depth) = shape.width_and_depth();
        let out = (Rows::dense(to, width), shape.adds.then_some(Rows::dense(add, width)));
        let shape = ops::four_bit_fused::FusedShape { direction, n, outputs, cols };
        let from = Rows::dense(from, depth);
        ops::four_bit_fused::product(&self.device, self.dtype, out, from, &weight.parts, shape)
    }

    /// Multiplies a few rows by the weights of a group, and adds the residual. One launch reads each weight
    /// once. Returns false, and computes nothing, if no kernel supports the shapes, or if only some of the
    /// weights are 4-bit.
    fn multiply_few_rows(
        &self,
        out: &mut [&mut Buffer],
        inp: Rows,
        weights: &[&Matrix],
        residual: Option<&Buffer>,
        n: usize,
    ) -> bool {
        if n > few_rows::MAX_ROWS {
            return false;
        }
        let (out_type, shape) = (out[0].dtype(), (n, weights[0].cols()));
        let outs: Vec<FewRowsOut> = out
            .iter()
            .zip(weights)
            .map(|(out, w)| {
                let add = residual.map(|residual| rows_of(residual, n, w.rows()));
                FewRowsOut { out: rows_of(out, n, w.rows()), add, outputs: w.rows() }
            })
            .collect();
        let (mut dense, mut four_bit) = (Vec::new(), Vec::new());
        for w in weights {
            match weight::placed(w) {
                Weight::Dense(memory) => dense.push(memory.address()),
                Weight::FourBit(weight) => four_bit.push(&weight.parts),
            }
        }
        let outs = (&outs[..], out_type);
        match (dense.len(), four_bit.len()) {
            (_, 0) => ops::gemv::forward(&self.device, self.dtype, outs, inp, &dense, shape),
            (0, _) => ops::four_bit::rows(&self.device, self.dtype, outs, inp, &four_bit, shape),
            _ => false,
        }
    }

    /// Computes `out = inp Wᵀ (+ residual)` for one weight.
    fn project_one(&self, out: &mut Buffer, inp: Rows, w: &Matrix, residual: Option<&Buffer>, n: usize) {
        if !self.multiply_few_rows(&mut [&mut *out], inp, &[w], residual, n) {
            let add = residual.map_or(Add::Nothing, Add::Buffer);
            self.product(out, inp, w, Product { direction: Direction::Forward, add, rows: n });
        }
    }

    /// Computes `dinp = dout W` or `dinp += dout W`.
    fn backward_product(&self, dinp: &mut Buffer, store: Store, dout: Rows, w: &Matrix, n: usize) {
        let add = if store.accumulates() { Add::Itself } else { Add::Nothing };
        self.product(dinp, dout, w, Product { direction: Direction::Backward, add, rows: n });
    }

    /// Grows the scratch memory to at least `bytes` bytes.
    fn grow(&self, scratch: &Mutex<Option<Allocation>>, bytes: usize) -> Result<DevicePtr, CudaError> {
        let mut scratch = lock(scratch);
        if scratch.as_ref().is_none_or(|memory| memory.bytes() < bytes as u64) {
            *scratch = None;
            *scratch = Some(self.device.allocate(bytes as u64)?);
        }
        Ok(scratch.as_ref().map_or(DevicePtr::NULL, Allocation::address))
    }

    fn place_all(&self, group: &[Matrix]) -> Result<Vec<Matrix>, CudaError> {
        let mut placed = Vec::with_capacity(group.len());
        for matrix in group {
            let weight = weight::place(&self.device, matrix, self.dtype)?;
            if let Weight::FourBit(_) = weight {
                self.grow(&self.decoded, matrix.rows() * matrix.cols() * self.dtype.size())?;
            }
            placed.push(Matrix::opaque(Arc::new(weight), matrix.rows(), matrix.cols()));
        }
        Ok(placed)
    }

    fn encode_all(&self, group: &[Matrix], format: FourBitFormat) -> Result<Option<Vec<Matrix>>, CudaError> {
        let mut encoded = Vec::with_capacity(group.len());
        for matrix in group {
            let HostMatrix::Dense(stored, bytes) = matrix.host() else { return Ok(None) };
            let len = matrix.rows() * matrix.cols();
            if stored.size() > self.dtype.size() || !weight::can_encode(len, format) {
                return Ok(None);
            }
            // During the encoding, the buffer for decoded weights holds the source weight.
            let scratch = self.grow(&self.decoded, len * self.dtype.size())?;
            let Some(weight) = weight::encode(&self.device, (stored, bytes), scratch, format)? else {
                return Ok(None);
            };
            let weight = Arc::new(Weight::FourBit(weight));
            encoded.push(Matrix::opaque(weight, matrix.rows(), matrix.cols()));
        }
        Ok(Some(encoded))
    }

    /// Grows the table of angles to `n` rows of `half` angles, and returns the address of the table.
    fn reserve_rope(&self, table: &mut RopeTable, n: usize, half: usize) -> DevicePtr {
        let bytes = (8 * n * half) as u64;
        if table.memory.as_ref().is_none_or(|memory| memory.bytes() < bytes) {
            *table = RopeTable::default();
            let memory = self.device.allocate(bytes);
            table.memory = memory.map_err(|error| self.device.record(Err(error))).ok();
        }
        table.memory.as_ref().map_or(DevicePtr::NULL, Allocation::address)
    }

    /// Rotates the heads of `q` and `k`. The table of angles is recomputed only if its [key](RopeKey) has
    /// changed.
    fn rope(&self, q: &Buffer, k: &Buffer, operands: RopeOperands<'_>, turn: Turn) {
        let RopeOperands { inv_freq, positions, tables, dims, rotation } = operands;
        let (n, half) = (positions.len(), rotation.dim / 2);
        assert!(rotation.dim <= dims.head_dim, "{rotation:?} of {dims:?}");
        let mut table = lock(&self.rope);
        let angles = Angles {
            inv_freq: ptr(inv_freq),
            positions: indices_ptr(positions),
            tables: tables.map_or(DevicePtr::NULL, indices_ptr),
            scale: rotation.scale,
        };
        let key = RopeKey { angles, uploads: self.device.uploads(), n, half };
        let base = self.reserve_rope(&mut table, n, half);
        let filled = ops::rope::Table { cosines: base, sines: base.plus(4 * n * half), n, half };
        if table.key != Some(key) {
            ops::rope::fill_table(&self.device, filled, angles);
            table.key = Some(key);
        }
        let AttentionDims { heads, kv_heads, head_dim } = dims;
        let rows = [rows_of(q, n, heads * head_dim), rows_of(k, n, kv_heads * head_dim)];
        let heads = Heads { counts: [heads, kv_heads], head_dim, pairs: rotation.pairs };
        ops::rope::rope(&self.device, self.dtype, rows, filled, heads, turn);
    }

    /// Computes the losses of at most [`HEAD_ROWS`] rows, and optionally the gradients.
    fn head_rows(
        &self,
        losses: DevicePtr,
        rows: Range<usize>,
        operands: HeadOperands<'_>,
        grads: Option<&mut HeadGrads<'_>>,
    ) {
        let HeadOperands { inp, head, targets, softcap } = operands;
        let (v, c, n, size) = (head.rows(), head.cols(), rows.len(), self.dtype.size());
        let logits = match self.grow(&self.logits, n * v * size) {
            Ok(logits) => logits,
            Err(error) => return self.device.record(Err(error)),
        };
        let weight = self.dense_weight(head);
        let shape = ProductShape {
            direction: Direction::Forward,
            dtype: self.dtype,
            rows: n,
            outputs: v,
            inputs: c,
            adds: false,
            exact: false,
        };
        let from = ptr(inp).plus(rows.start * c * size);
        self.products.run(&self.device, shape, ProductOperands { to: logits, from, weight, add: logits });
        let dloss = grads.as_ref().map_or(DevicePtr::NULL, |grads| ptr(grads.dloss).plus(4 * rows.start));
        let operands = ops::head_loss::Operands {
            logits,
            losses: losses.plus(4 * rows.start),
            targets: indices_ptr(targets).plus(4 * rows.start),
            dloss,
            softcap,
        };
        ops::head_loss::head_loss(&self.device, self.dtype, operands, n, v);
        if let Some(grads) = grads {
            let to = ptr(grads.dinp).plus(rows.start * c * size);
            let shape = ProductShape { direction: Direction::Backward, ..shape };
            self.products.run(&self.device, shape, ProductOperands { to, from: logits, weight, add: to });
        }
    }
}

/// Returns the type that a back end uses for `element` if its activations have type `dtype`. The residual
/// stream and its gradient can exceed the range of f16. If `dtype` is f16, they are therefore f32.
pub(super) fn stored_dtype(dtype: DType, element: Element) -> DType {
    match element {
        Element::Residual if dtype == DType::F16 => DType::F32,
        Element::Activation | Element::Residual => dtype,
        Element::Exact => DType::F32,
    }
}

/// Cosines and sines for the positions of one pass.
#[derive(Default)]
struct RopeTable {
    memory: Option<Allocation>,
    /// Inputs from which the table was computed.
    key: Option<RopeKey>,
}

/// Addresses of the inputs, and the number of uploads. The number is needed because a later upload can write
/// different positions to the same address.
#[derive(Clone, Copy, PartialEq)]
struct RopeKey {
    angles: Angles,
    uploads: u64,
    n: usize,
    half: usize,
}

/// The operand that is added to a matrix product.
#[derive(Clone, Copy, Debug)]
enum Add<'a> {
    Nothing,
    /// The values that the output has before the product.
    Itself,
    Buffer(&'a Buffer),
}

/// Direction and number of rows of a matrix product, and the operand that is added to the product.
#[derive(Clone, Copy, Debug)]
struct Product<'a> {
    direction: Direction,
    add: Add<'a>,
    rows: usize,
}

/// Length of the rows into which the flat operands of a gated activation are split.
const GATED_COLUMNS: usize = 1 << 20;

/// Splits `len` elements into rows and a tail. Returns `(rows, columns)`, and the length of the tail.
fn gated_shape(len: usize) -> ((usize, usize), usize) {
    match len / GATED_COLUMNS {
        0 => ((1, len), 0),
        rows => ((rows, GATED_COLUMNS), len % GATED_COLUMNS),
    }
}

/// Returns the first `n` rows of `width` elements. Panics if the buffer is shorter.
fn rows_of(buffer: &Buffer, n: usize, width: usize) -> Rows {
    Rows::dense(ptr_of(buffer, n * width), width)
}

/// Returns the range `range` of `rows`. The elements have type `dtype`.
fn range_of(rows: Rows, range: &Range<usize>, dtype: DType) -> Rows {
    Rows { at: rows.at.plus(range.start * rows.stride * dtype.size()), ..rows }
}

/// Returns the range `rows` of a buffer whose rows have `width` elements. Panics if the buffer is shorter.
fn row_range(buffer: &Buffer, rows: &Range<usize>, width: usize) -> Rows {
    let at = ptr_of(buffer, rows.end * width).plus(rows.start * width * buffer.dtype().size());
    Rows::dense(at, width)
}

fn norm_types(stream: &Buffer, activation: &Buffer) -> NormTypes {
    NormTypes { stream: stream.dtype(), activation: activation.dtype() }
}

fn lora_pair(pair: &LoraPair<'_>) -> ops::lora::Pair {
    ops::lora::Pair::at(ptr(pair.lora.params), &pair.lora, pair.dropout)
}

fn forward_pair(
    pair: &LoraPair<'_>,
    mid: &Buffer,
    out: &Buffer,
    rows: &Range<usize>,
) -> ops::lora::ForwardPair {
    let LoraRef { rank, d_out, .. } = pair.lora;
    let (mid, out) = (row_range(mid, rows, rank), row_range(out, rows, d_out));
    ops::lora::ForwardPair { pair: lora_pair(pair), mid, out }
}

fn backward_pair(
    pair: &LoraPair<'_>,
    mid: &Buffer,
    dout: Rows,
    rows: &Range<usize>,
) -> ops::lora::BackwardPair {
    let mid_rows = row_range(mid, rows, pair.lora.rank);
    let dout = range_of(dout, rows, mid.dtype());
    ops::lora::BackwardPair { pair: lora_pair(pair), mid: mid_rows, dout }
}

fn attention_operands<'a>(operands: AttentionOperands<'a>) -> ops::attention::Operands<'a> {
    let AttentionOperands { q, k, v, segments, dims, scores } = operands;
    let (width, kv_width) = (dims.heads * dims.head_dim, dims.kv_heads * dims.head_dim);
    ops::attention::Operands {
        q: Rows::dense(ptr(q), width),
        k: Rows::dense(ptr(k), kv_width),
        v: Rows::dense(ptr(v), kv_width),
        segments: memory::segments_on_device(segments),
        dims,
        scores,
    }
}

impl fmt::Debug for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

impl Backend for Cuda {
    fn name(&self) -> String {
        self.versions()
    }

    fn run_host_tasks(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        if tasks <= 1 {
            return (0..tasks).for_each(task);
        }
        let cores = || std::thread::available_parallelism().map_or(1, |n| n.get());
        self.host_pool.get_or_init(|| Pool::new(cores())).run(tasks, |index, _| task(index));
    }

    fn needs_loss_scale(&self) -> bool {
        self.dtype == DType::F16
    }

    fn supports(&self, _operation: FamilyOperation) -> bool {
        true
    }

    fn row_invariant_from(&self) -> usize {
        // This value is approximate. For some shapes with few rows, cuBLASLt splits the inner dimension, so
        // the same row in two batches may differ by rounding. Padding to more rows would prevent such
        // differences, but would cost more than a training step of a few tokens.
        1
    }

    fn alloc(&self, len: usize, element: Element) -> Buffer {
        memory::alloc(&self.device, len, stored_dtype(self.dtype, element))
    }

    fn alloc_scalars(&self, len: usize) -> Scalars {
        memory::alloc_scalars(&self.device, len)
    }

    fn write(&self, dst: &mut Buffer, offset: usize, src: &[f32]) {
        memory::write(&self.device, dst, offset, src);
    }

    fn read(&self, dst: &mut [f32], src: &Buffer, offset: usize) -> Result<(), BackendError> {
        memory::read(&self.device, dst, src, offset).map_err(|error| self.error("read", error))
    }

    fn read_scalars(&self, dst: &mut [f64], src: &Scalars) -> Result<(), BackendError> {
        let mut bytes = vec![0; 8 * dst.len()];
        let result = self.device.download(&mut bytes, scalars_ptr(src));
        result.map_err(|error| self.error("read_scalars", error))?;
        for (value, bytes) in dst.iter_mut().zip(bytes.as_chunks().0) {
            *value = f64::from_le_bytes(*bytes);
        }
        Ok(())
    }

    fn place(&self, group: &[Matrix]) -> Result<Vec<Matrix>, BackendError> {
        self.place_all(group).map_err(|error| self.error("place", error))
    }

    fn place_encoded(
        &self,
        group: &[Matrix],
        format: FourBitFormat,
    ) -> Result<Option<Vec<Matrix>>, BackendError> {
        self.encode_all(group, format).map_err(|error| self.error("place_encoded", error))
    }

    fn device_memory(&self) -> Option<DeviceMemory> {
        let (allocated, peak) = self.device.allocated();
        let (free, total) = self.device.memory().ok()?;
        Some(DeviceMemory { allocated, peak, free, total })
    }

    fn upload(&self, dst: &mut Indices, values: &[u32]) {
        memory::upload_indices(&self.device, dst, values);
    }

    fn upload_segments(&self, dst: &mut Segments, values: &[Segment]) {
        memory::upload_segments(&self.device, dst, values);
    }

    fn reserve(&self, largest: PassSize) {
        let PassSize { rows, labels, hidden_size, head_dim, vocab_size } = largest;
        let size = self.dtype.size();
        let mut sizes = vec![(&self.logits, labels.min(HEAD_ROWS) * vocab_size * size)];
        if stored_dtype(self.dtype, Element::Residual) != self.dtype {
            sizes.push((&self.rounded, rows * hidden_size * size));
        }
        for (scratch, bytes) in sizes {
            self.device.record(self.grow(scratch, bytes).map(|_| ()));
        }
        self.reserve_rope(&mut lock(&self.rope), rows, head_dim / 2);
    }

    fn run_sequence(&self, operations: &mut dyn FnMut()) {
        self.device.run_sequence(operations);
    }

    fn zero(&self, dst: &mut Buffer, len: usize) {
        self.device.fill(ptr_of(dst, len), 0, len * dst.dtype().size());
    }

    fn embedding_forward(&self, out: &mut Buffer, table: &Matrix, ids: &Indices, scale: f32) {
        let (c, to, dtype) = (table.cols(), ptr_of(out, ids.len() * table.cols()), out.dtype());
        let rows_at_once = (EMBEDDING_BYTES / (c * dtype.size())).max(1);
        let (mut bytes, mut values) = (Vec::new(), vec![0.0; c]);
        for (i, ids) in ids.values().chunks(rows_at_once).enumerate() {
            bytes.clear();
            for &id in ids {
                let (id, row) = (id as usize, c * dtype.size());
                match table.host() {
                    HostMatrix::Dense(stored, all) if stored == dtype && scale == 1.0 => {
                        bytes.extend_from_slice(&all[id * row..][..row])
                    }
                    _ => {
                        table.row_to_f32(id, &mut values);
                        values.iter_mut().for_each(|value| *value *= scale);
                        let start = bytes.len();
                        bytes.resize(start + row, 0);
                        crate::from_f32(dtype, &values, &mut bytes[start..]);
                    }
                }
            }
            self.device.upload(to.plus(i * rows_at_once * c * dtype.size()), &bytes);
        }
    }

    fn linear_forward(&self, out: &mut Buffer, inp: &Buffer, w: &Matrix, n: usize) {
        let inp = self.activations(inp, n, w.cols());
        self.project_one(out, inp, w, None, n);
    }

    fn linear_backward(&self, dinp: &mut Buffer, store: Store, dout: &Buffer, w: &Matrix, n: usize) {
        let dout = self.activations(dout, n, w.rows());
        self.backward_product(dinp, store, dout, w, n);
    }

    fn add(&self, dst: &mut Buffer, src: &Buffer, len: usize) {
        if dst.dtype() != src.dtype() {
            return ops::rows::add_to_f32(&self.device, ptr_of(dst, len), ptr_of(src, len), len);
        }
        ops::rows::add(&self.device, dst.dtype(), ptr_of(dst, len), ptr_of(src, len), len);
    }

    fn copy_rows(
        &self,
        dst: &mut Buffer,
        dst_row: usize,
        src: &Buffer,
        src_row: usize,
        n: usize,
        cols: usize,
    ) {
        let (to, from) = (
            row_range(dst, &(dst_row..dst_row + n), cols).at,
            row_range(src, &(src_row..src_row + n), cols).at,
        );
        match dst.dtype() == src.dtype() {
            true => self.device.copy(to, from, n * cols * dst.dtype().size()),
            // A gradient of the f32 residual stream becomes the gradient of an f16 activation.
            false => ops::rows::round(&self.device, to, from, n * cols),
        }
    }

    fn gather_rows(&self, out: &mut Buffer, inp: &Buffer, rows: &Indices, cols: usize) {
        let (dtype, shape) = (out.dtype(), (rows.len(), cols));
        let (out, inp) = (rows_of(out, rows.len(), cols), Rows::dense(ptr(inp), cols));
        ops::rows::gather_rows(&self.device, dtype, out, inp, indices_ptr(rows), shape);
    }

    fn gather_rows_backward(&self, dinp: &mut Buffer, n: usize, dout: &Buffer, rows: &Indices, cols: usize) {
        let (dtype, shape) = (dinp.dtype(), ops::rows::GatherShape { n, count: rows.len(), cols });
        let (dinp, dout) = (rows_of(dinp, n, cols), rows_of(dout, rows.len(), cols));
        ops::rows::gather_rows_backward(&self.device, dtype, dinp, dout, indices_ptr(rows), shape);
    }

    fn scatter_rows(&self, out: [&mut Buffer; 2], inp: [&Buffer; 2], rows: &Indices, cols: usize) {
        let (dtype, shape) = (out[0].dtype(), (rows.len(), cols));
        let (out, inp) =
            (out.map(|out| Rows::dense(ptr(out), cols)), inp.map(|inp| rows_of(inp, rows.len(), cols)));
        ops::rows::scatter_rows(&self.device, dtype, out, inp, indices_ptr(rows), shape);
    }

    fn join_rows(&self, out: &mut Buffer, inp: &Buffer, rows: &Indices, cols: usize) {
        let (dtype, shape) = (out.dtype(), (rows.len(), cols));
        let (out, inp) = (Rows::dense(ptr(out), cols), rows_of(inp, rows.len(), cols));
        ops::rows::scatter_rows(&self.device, dtype, [out], [inp], indices_ptr(rows), shape);
    }

    fn add_bias(&self, out: &mut Buffer, bias: &Buffer, n: usize) {
        let cols = bias.len();
        let rows = rows_of(out, n, cols);
        ops::rows::add_bias(&self.device, out.dtype(), rows, ptr(bias), (n, cols));
    }

    fn scale_columns(
        &self,
        out: &mut Buffer,
        factors: &Buffer,
        offset: usize,
        rows: Range<usize>,
        cols: usize,
    ) {
        let factors = ptr_of(factors, offset + cols).plus(4 * offset);
        let shape = (rows.len(), cols);
        let dtype = out.dtype();
        ops::rows::scale_columns(&self.device, dtype, row_range(out, &rows, cols), factors, shape);
    }

    fn column_products(
        &self,
        dparams: &mut Buffer,
        at: usize,
        ColumnProducts { dout, out, scale, offset, cols }: ColumnProducts<'_>,
        rows: Range<usize>,
    ) {
        assert_eq!(dout.dtype(), out.dtype(), "the output before scaling, and its gradient");
        let dmagnitudes = ptr_of(dparams, at + cols).plus(4 * at);
        let scale = ptr_of(scale, offset + cols).plus(4 * offset);
        let (dtype, shape) = (out.dtype(), (rows.len(), cols));
        let products = [dout, out].map(|buffer| row_range(buffer, &rows, cols));
        ops::dora::column_products(&self.device, dtype, dmagnitudes, products, scale, shape);
    }

    fn row_norms(&self, norms: &mut Buffer, at: usize, w: &Matrix, lora: LoraRef<'_>) -> bool {
        let shape = (w.rows(), w.cols());
        let LoraRef { params, a, b, rank, scaling, .. } = lora;
        let update = ops::dora::Update {
            a: ptr_of(params, a + rank * w.cols()).plus(4 * a),
            b: ptr_of(params, b + w.rows() * rank).plus(4 * b),
            rank,
            scaling,
        };
        let to = ptr_of(norms, at + w.rows()).plus(4 * at);
        ops::dora::row_norms(&self.device, self.dtype, to, self.dense_weight(w), update, shape);
        true
    }

    fn rmsnorm_forward(
        &self,
        out: &mut Buffer,
        rstd: &mut Buffer,
        inp: &Buffer,
        weight: &Buffer,
        eps: f32,
        n: usize,
    ) {
        let (c, types) = (weight.len(), norm_types(inp, out));
        let out = (rows_of(out, n, c), ptr_of(rstd, n));
        let (inp, shape) = (rows_of(inp, n, c), NormShape { n, c });
        ops::rmsnorm::forward(&self.device, types, out, inp, ptr(weight), eps, shape);
    }

    fn rmsnorm_backward(
        &self,
        dinp: &mut Buffer,
        store: Store,
        dout: &Buffer,
        saved: RmsnormSaved<'_>,
        n: usize,
    ) {
        let RmsnormSaved { inp, rstd, weight } = saved;
        let (c, types) = (weight.len(), norm_types(inp, dout));
        let dinp = (rows_of(dinp, n, c), store.accumulates());
        let saved =
            ops::rmsnorm::Saved { inp: rows_of(inp, n, c), rstd: ptr_of(rstd, n), weight: ptr(weight) };
        ops::rmsnorm::backward(&self.device, types, dinp, rows_of(dout, n, c), saved, NormShape { n, c });
    }

    fn lora_forward(
        &self,
        out: &mut Buffer,
        mid: &mut Buffer,
        inp: &Buffer,
        pair: LoraPair<'_>,
        rows: Range<usize>,
    ) {
        let types = (self.dtype, out.dtype());
        let inp = self.activations(inp, rows.end, pair.lora.d_in);
        let pairs = [forward_pair(&pair, mid, out, &rows)];
        ops::lora::forward(&self.device, types, range_of(inp, &rows, self.dtype), rows.len(), &pairs);
    }

    fn lora_backward(
        &self,
        grads: LoraGrads<'_>,
        dout: &Buffer,
        inp: &Buffer,
        mid: &Buffer,
        pair: LoraPair<'_>,
        rows: Range<usize>,
    ) {
        let lora = pair.lora;
        assert!([dout, inp].iter().any(|x| x.dtype() == self.dtype), "one scratch for rounded rows");
        let (dout, inp) =
            (self.activations(dout, rows.end, lora.d_out), self.activations(inp, rows.end, lora.d_in));
        let grads = ops::lora::Grads {
            dinp: grads.dinp.map(|dinp| row_range(dinp, &rows, lora.d_in)),
            dparams: ptr_of(grads.dparams, lora.params.len()),
        };
        let pairs = [backward_pair(&pair, mid, dout, &rows)];
        let inp = range_of(inp, &rows, self.dtype);
        ops::lora::backward(&self.device, self.dtype, grads, inp, rows.len(), &pairs);
    }

    fn project(
        &self,
        out: &mut [&mut Buffer],
        mid: &mut [&mut Buffer],
        inp: &Buffer,
        group: ProjectGroup<'_>,
        residual: Option<&Buffer>,
        n: usize,
    ) {
        assert!(residual.is_none() || group.weights.len() == 1, "a residual beside several weights");
        let inp = self.activations(inp, n, group.weights[0].cols());
        if !self.multiply_few_rows(out, inp, group.weights, residual, n) {
            for (out, w) in out.iter_mut().zip(group.weights) {
                self.project_one(out, inp, w, residual, n);
            }
        }
        let types = (self.dtype, out[0].dtype());
        for segment in group.lora {
            let (rows, mut pairs) = (&segment.rows, Vec::new());
            for (i, pair) in segment.pairs.iter().enumerate() {
                let Some(pair) = pair else { continue };
                pairs.push(forward_pair(pair, mid[i], out[i], rows));
            }
            if !pairs.is_empty() && !rows.is_empty() {
                let inp = range_of(inp, rows, self.dtype);
                ops::lora::forward(&self.device, types, inp, rows.len(), &pairs);
            }
        }
    }

    fn project_backward(
        &self,
        grads: ProjectGrads<'_>,
        dout: &[&Buffer],
        saved: ProjectSaved<'_>,
        group: ProjectGroup<'_>,
        n: usize,
    ) {
        let ProjectGrads { mut dinp, mut store, dparams } = grads;
        let cols = group.weights[0].cols();
        let is_rounded = |buffer: &&Buffer| buffer.dtype() != self.dtype;
        let rounded = dout.iter().copied().chain([saved.inp]).filter(is_rounded).count();
        assert!(rounded <= 1, "one scratch for rounded rows");
        let dout: Vec<Rows> =
            dout.iter().zip(group.weights).map(|(dout, w)| self.activations(dout, n, w.rows())).collect();
        if let Some(dinp) = dinp.as_deref_mut() {
            for (&dout, w) in dout.iter().zip(group.weights) {
                self.backward_product(dinp, store, dout, w, n);
                store = Store::Accumulate;
            }
        }
        if group.lora.is_empty() {
            return;
        }
        let inp = self.activations(saved.inp, n, cols);
        for segment in group.lora {
            let (rows, mut pairs) = (&segment.rows, Vec::new());
            for (i, pair) in segment.pairs.iter().enumerate() {
                let Some(pair) = pair else { continue };
                pairs.push(backward_pair(pair, saved.mid[i], dout[i], rows));
            }
            if !pairs.is_empty() && !rows.is_empty() {
                let dinp = dinp.as_deref().map(|dinp| row_range(dinp, rows, cols));
                let grads = ops::lora::Grads { dinp, dparams: ptr(dparams) };
                let inp = range_of(inp, rows, self.dtype);
                ops::lora::backward(&self.device, self.dtype, grads, inp, rows.len(), &pairs);
            }
        }
    }

    fn rope_forward(&self, q: &mut Buffer, k: &mut Buffer, operands: RopeOperands<'_>) {
        self.rope(q, k, operands, Turn::Forward);
    }

    fn rope_backward(&self, dq: &mut Buffer, dk: &mut Buffer, operands: RopeOperands<'_>) {
        self.rope(dq, dk, operands, Turn::Backward);
    }

    fn attention_forward(&self, out: &mut Buffer, lse: &mut Buffer, operands: AttentionOperands<'_>) {
        let width = operands.dims.heads * operands.dims.head_dim;
        let (out, lse) = (Rows::dense(ptr(out), width), ptr(lse));
        ops::attention::forward(&self.device, self.dtype, out, lse, attention_operands(operands));
    }

    fn attention_backward(
        &self,
        grads: AttentionGrads<'_>,
        dout: &Buffer,
        saved: AttentionSaved<'_>,
        operands: AttentionOperands<'_>,
    ) {
        let AttentionDims { heads, kv_heads, head_dim } = operands.dims;
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        let AttentionGrads { dq, dk, dv } = grads;
        let grads = ops::attention::Grads {
            dq: Rows::dense(ptr(dq), q),
            dk: Rows::dense(ptr(dk), kv),
            dv: Rows::dense(ptr(dv), kv),
        };
        let n = operands.segments.values().iter().map(|s| s.q_start + s.q_len).max().unwrap_or(0);
        let saved = ops::attention::Saved {
            dout: rows_of(dout, n, q),
            out: rows_of(saved.out, n, q),
            lse: ptr_of(saved.lse, n * heads),
            n,
        };
        ops::attention::backward(&self.device, self.dtype, grads, saved, attention_operands(operands));
    }

    fn gated_forward(&self, out: &mut Buffer, operands: GatedOperands<'_>, len: usize) {
        let GatedOperands { gate, up, activation } = operands;
        let (device, dtype, stride) = (&self.device, self.dtype, len.min(GATED_COLUMNS));
        let inp = GateUp { gate: ptr_of(gate, len), up: ptr_of(up, len), stride };
        let (shape, tail) = gated_shape(len);
        let out = Rows::dense(ptr_of(out, len), stride);
        ops::gated::forward(device, dtype, activation, out, inp, shape);
        if tail > 0 {
            let at = (len - tail) * dtype.size();
            let inp = GateUp { gate: inp.gate.plus(at), up: inp.up.plus(at), stride: tail };
            let out = Rows::dense(out.at.plus(at), tail);
            ops::gated::forward(device, dtype, activation, out, inp, (1, tail));
        }
    }

    fn gated_backward(&self, grads: GatedGrads<'_>, dout: &Buffer, operands: GatedOperands<'_>, len: usize) {
        let GatedOperands { gate, up, activation } = operands;
        let (device, dtype, stride) = (&self.device, self.dtype, len.min(GATED_COLUMNS));
        let inp = GateUp { gate: ptr_of(gate, len), up: ptr_of(up, len), stride };
        let dinp = GateUp { gate: ptr_of(grads.dgate, len), up: ptr_of(grads.dup, len), stride };
        let (dout, (shape, tail)) = (ptr_of(dout, len), gated_shape(len));
        ops::gated::backward(device, dtype, activation, dinp, (Rows::dense(dout, stride), inp), shape);
        if tail > 0 {
            let at = (len - tail) * dtype.size();
            let after =
                |pair: GateUp| GateUp { gate: pair.gate.plus(at), up: pair.up.plus(at), stride: tail };
            let dout = Rows::dense(dout.plus(at), tail);
            ops::gated::backward(device, dtype, activation, after(dinp), (dout, after(inp)), (1, tail));
        }
    }

    fn adamw(
        &self,
        params: &mut Buffer,
        grads: &Buffer,
        m: &mut Buffer,
        v: &mut Buffer,
        range: Range<usize>,
        step: AdamW,
    ) {
        // All four buffers are f32.
        let at = |buffer: &Buffer| ptr_of(buffer, range.end).plus(4 * range.start);
        let buffers = ops::adamw::Buffers { params: at(params), grads: at(grads), m: at(m), v: at(v) };
        ops::adamw::adamw(&self.device, buffers, range.len(), step);
    }

    fn sum_of_squares(&self, out: &mut Scalars, at: usize, x: &Buffer, len: usize) {
        ops::adamw::sum_of_squares(&self.device, scalars_ptr(out).plus(8 * at), ptr_of(x, len), len);
    }

    fn head_loss(
        &self,
        losses: &mut Buffer,
        first: usize,
        operands: HeadOperands<'_>,
        grads: Option<HeadGrads<'_>>,
    ) {
        let (n, c) = (operands.targets.len(), operands.head.cols());
        let losses = ptr_of(losses, first + n).plus(4 * first);
        ptr_of(operands.inp, n * c);
        let mut grads = grads;
        if let Some(grads) = &grads {
            ptr_of(grads.dinp, n * c);
            ptr_of(grads.dloss, n);
        }
        for start in (0..n).step_by(HEAD_ROWS) {
            self.head_rows(losses, start..n.min(start + HEAD_ROWS), operands, grads.as_mut());
        }
    }
}
