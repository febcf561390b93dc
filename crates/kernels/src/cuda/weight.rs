//! Frozen weights in device memory.

use std::sync::Arc;

use super::device::{Allocation, Device, DevicePtr};
use super::error::CudaError;
use super::ops::four_bit::FourBitParts;
use crate::matrix::HostMatrix;
use crate::{DType, FourBit, Matrix, MatrixStorage, Scales};

/// Elements converted on the host at a time.
const PART: usize = 1 << 20;

/// A weight in device memory.
pub(super) enum Weight {
    /// Row-major elements of the activation type.
    Dense(Allocation),
    /// 4-bit codes and their scales.
    FourBit(FourBitWeight),
}

/// A 4-bit weight. One allocation holds all its parts.
pub(super) struct FourBitWeight {
    _memory: Allocation,
    /// Kernel parameters.
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

fn place_four_bit(device: &Arc<Device>, weight: &FourBit) -> Result<FourBitWeight, CudaError> {
    let floats = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let table = floats(weight.table());
    let (scale_codes, scale_table, absmax, offset, scale_block) = match weight.scales() {
        Scales::Plain(absmax) => (&[][..], Vec::new(), absmax.as_slice(), 0.0, 1),
        Scales::Nested { codes, table, absmax, block_size, offset } => {
            (codes.as_slice(), floats(&table[..]), absmax.as_slice(), *offset, *block_size)
        }
    };
    let parts = [weight.codes(), &table, scale_codes, &scale_table, absmax];
    let room = |part: &[u8]| part.len().next_multiple_of(256);
    let memory = device.allocate(parts.iter().map(|part| room(part)).sum::<usize>() as u64)?;
    let mut at = memory.address();
    let [codes, table, scale_codes, scale_table, absmax] = parts.map(|part| {
        device.upload(at, part);
        let address = if part.is_empty() { DevicePtr::NULL } else { at };
        at = at.plus(room(part));
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

/// Returns the device weight of a matrix.
///
/// # Panics
/// If [`place`] did not create the matrix.
pub(super) fn placed(matrix: &Matrix) -> &Weight {
    let MatrixStorage::Opaque(handle) = matrix.storage() else {
        panic!("a weight is placed before a product")
    };
    handle.downcast_ref().expect("the device was handed another back end's matrix")
}
