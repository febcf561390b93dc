//! Frozen weights in device memory.

use std::sync::Arc;

use super::arena::allocated_bytes;
use super::device::{Allocation, Device, DevicePtr, WORKSPACE_BYTES};
use super::error::CudaError;
use super::ops::four_bit::{self, Encoded, FourBitParts, Ladder, Nested};
use crate::matrix::HostMatrix;
use crate::{
    DType, FourBit, FourBitCode, FourBitFormat, Matrix, MatrixStorage, NESTED_BLOCK, Scales, dynamic_u8,
};

/// Number of elements that the host converts at a time.
const PART: usize = 1 << 20;

/// A weight in device memory.
pub(super) enum Weight {
    /// Row-major elements. They have the activation type.
    Dense(Allocation),
    /// 4-bit codes and their scales.
    FourBit(FourBitWeight),
}

/// A 4-bit weight. One allocation contains its codes, tables and scales.
pub(super) struct FourBitWeight {
    _memory: Allocation,
    /// The addresses that kernels receive as a parameter.
    pub parts: FourBitParts,
}

/// Copies a weight to device memory. Dense weights are converted to `dtype`.
pub(super) fn place(device: &Arc<Device>, matrix: &Matrix, dtype: DType) -> Result<Weight, CudaError> {
    match matrix.host() {
        HostMatrix::Dense(stored, bytes) => place_dense(device, stored, bytes, dtype).map(Weight::Dense),
        HostMatrix::FourBit(weight) => place_four_bit(device, weight).map(Weight::FourBit),
    }
}

fn place_dense(
    device: &Arc<Device>,
    stored: DType,
    bytes: &[u8],
    dtype: DType,
) -> Result<Allocation, CudaError> {
    let len = bytes.len() / stored.size();
    let memory = device.allocate((len * dtype.size()) as u64)?;
    if stored == dtype {
        device.upload(memory.address(), bytes);
        return device.check().map(|()| memory);
    }
    let (mut values, mut converted) = (Vec::new(), Vec::new());
    for (i, part) in bytes.chunks(PART * stored.size()).enumerate() {
        let count = part.len() / stored.size();
        values.resize(count, 0.0);
        converted.resize(count * dtype.size(), 0);
        crate::to_f32(stored, part, &mut values);
        crate::from_f32(dtype, &values, &mut converted);
        device.upload(memory.address().plus(i * PART * dtype.size()), &converted);
    }
    device.check().map(|()| memory)
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Rounds the size of one array of a 4-bit weight up to its alignment.
fn room(bytes: usize) -> usize {
    bytes.next_multiple_of(256)
}

fn place_four_bit(device: &Arc<Device>, weight: &FourBit) -> Result<FourBitWeight, CudaError> {
    let table = floats(weight.table());
    let (scale_codes, scale_table, absmax, offset, scale_block) = match weight.scales() {
        Scales::Plain(absmax) => (&[][..], Vec::new(), absmax.as_slice(), 0.0, 1),
        Scales::Nested { codes, table, absmax, block_size, offset } => {
            (codes.as_slice(), floats(&table[..]), absmax.as_slice(), *offset, *block_size)
        }
    };
    let parts = [weight.codes(), &table, scale_codes, &scale_table, absmax];
    let memory = device.allocate(parts.iter().map(|part| room(part.len())).sum::<usize>() as u64)?;
    let mut at = memory.address();
    let [codes, table, scale_codes, scale_table, absmax] = parts.map(|part| {
        device.upload(at, part);
        let address = if part.is_empty() { DevicePtr::NULL } else { at };
        at = at.plus(room(part.len()));
        address
    });
    device.check()?;
    let (block_shift, scale_shift) = (weight.block_size().ilog2() as i32, scale_block.ilog2() as i32);
    let parts = FourBitParts {
        codes,
        table,
        scale_codes,
        scale_table,
        absmax,
        offset,
        block_shift,
        scale_shift,
        unused: 0,
    };
    Ok(FourBitWeight { _memory: memory, parts })
}

/// Returns the bytes of each array of a 4-bit weight of `len` elements. The order is codes, table, scale
/// codes, scale table, scales.
fn part_bytes(len: usize, format: FourBitFormat) -> [usize; 5] {
    let blocks = len.div_ceil(format.block_size);
    let [scale_codes, scale_table, scales] = match format.nested {
        true => [blocks, 4 * 256, 4 * blocks.div_ceil(NESTED_BLOCK)],
        false => [0, 0, 4 * blocks],
    };
    [len.div_ceil(2), 4 * 16, scale_codes, scale_table, scales]
}

/// Returns the bytes of a weight of `len` elements in device memory. The weight has 4 bits if `format` is
/// given, and otherwise it is dense and has type `dtype`.
pub(super) fn placed_bytes(len: usize, format: Option<FourBitFormat>, dtype: DType) -> u64 {
    let bytes = match format {
        Some(format) => part_bytes(len, format).map(room).iter().sum(),
        None => len * dtype.size(),
    };
    allocated_bytes(bytes as u64)
}

/// Uploads a dense weight to `scratch` and encodes it on the device. The result has the same bits as on the
/// host.
///
/// Returns `None` if a value is not finite. `scratch` must have space for the stored elements.
pub(super) fn encode(
    device: &Arc<Device>,
    (stored, bytes): (DType, &[u8]),
    scratch: DevicePtr,
    format: FourBitFormat,
) -> Result<Option<FourBitWeight>, CudaError> {
    let len = bytes.len() / stored.size();
    let (blocks, sizes) = (len.div_ceil(format.block_size), part_bytes(len, format));
    // The workspace contains partial sums, the mean, the encoder's tables, and scales that are then encoded
    // in 8 bits.
    let mean_at = room(four_bit::mean_scale_bytes(blocks));
    let workspace = device.workspace(WORKSPACE_BYTES as usize);
    let [mean, bounds, order, scales] = [0, 256, 512, 768].map(|at| workspace.plus(mean_at + at));
    let (ladder_bounds, ladder_order) = ladder(format.code);
    device.upload(bounds, &floats(&ladder_bounds));
    device.upload(order, &ladder_order);
    let memory = device.allocate(sizes.map(room).iter().sum::<usize>() as u64)?;
    let mut at = memory.address();
    let [codes, table, scale_codes, scale_table, absmax] = sizes.map(|bytes| {
        let address = if bytes == 0 { DevicePtr::NULL } else { at };
        at = at.plus(room(bytes));
        address
    });
    device.upload(table, &floats(format.code.table()));
    device.upload(scratch, bytes);
    let scales = if format.nested { scales } else { absmax };
    let out = Encoded { codes, absmax: scales };
    let shape = (len, format.block_size.ilog2());
    four_bit::encode(device, stored, out, scratch, Ladder { bounds, order }, shape);
    four_bit::mean_scale(device, mean, scales, blocks);
    if format.nested {
        device.upload(scale_table, &floats(&dynamic_u8()));
        let out = Nested { codes: scale_codes, absmax, offset: mean };
        four_bit::nest(device, out, scales, scale_table, blocks);
    }
    let mut offset = [0; 4];
    device.download(&mut offset, mean)?;
    let mean = f32::from_le_bytes(offset);
    let (offset, scale_shift) = if format.nested { (mean, NESTED_BLOCK.ilog2() as i32) } else { (0.0, 0) };
    let block_shift = format.block_size.ilog2() as i32;
    let parts = FourBitParts {
        codes,
        table,
        scale_codes,
        scale_table,
        absmax,
        offset,
        block_shift,
        scale_shift,
        unused: 0,
    };
    Ok(mean.is_finite().then_some(FourBitWeight { _memory: memory, parts }))
}

/// Returns whether [`encode`] accepts a weight of `len` elements.
pub(super) fn can_encode(len: usize, format: FourBitFormat) -> bool {
    let blocks = len.div_ceil(format.block_size);
    let used = room(four_bit::mean_scale_bytes(blocks)) + 768 + 4 * blocks;
    format.block_size.is_power_of_two() && used as u64 <= WORKSPACE_BYTES
}

/// Returns the midpoints between neighbouring values of a 4-bit type, and the codes in the order of their
/// values.
fn ladder(code: FourBitCode) -> (Vec<f32>, Vec<u8>) {
    let (table, mut order) = (code.table(), (0..16).collect::<Vec<u8>>());
    order.sort_by(|&a, &b| table[a as usize].total_cmp(&table[b as usize]));
    let middle = |pair: &[u8]| (table[pair[0] as usize] + table[pair[1] as usize]) / 2.0;
    (order.windows(2).map(middle).collect(), order)
}

/// Returns the device weight of a matrix.
///
/// # Panics
/// If the matrix was not placed on a device.
pub(super) fn placed(matrix: &Matrix) -> &Weight {
    let MatrixStorage::Opaque(handle) = matrix.storage() else {
        panic!("a weight is placed before a product")
    };
    handle.downcast_ref().expect("the device was handed another back end's matrix")
}
