//! Buffers, lists and scalars in device memory.

use std::any::Any;
use std::sync::Arc;

use super::device::{Allocation, Device, DevicePtr};
use super::error::CudaError;
use super::ops::attention::{SegmentsOnDevice, Tiles};
use crate::{Buffer, DType, Indices, Scalars, Segment, Segments, Storage, from_f32, to_f32};

/// Number of elements that the host converts at a time.
const PART: usize = 1 << 18;

/// Memory of a buffer. It is `None` if the allocation failed, and the device then launches no kernels.
pub(super) struct DeviceBuffer {
    memory: Option<Allocation>,
}

/// Allocates `len` zeros.
pub(super) fn alloc(device: &Arc<Device>, len: usize, dtype: DType) -> Buffer {
    let bytes = len * dtype.size();
    let memory = device.allocate(bytes as u64);
    if let Ok(memory) = &memory {
        device.fill(memory.address(), 0, bytes);
    }
    let memory = match memory {
        Ok(memory) => Some(memory),
        Err(error) => {
            device.record(Err(error));
            None
        }
    };
    Buffer::opaque(Box::new(DeviceBuffer { memory }), len, dtype)
}

/// Returns the address of a buffer's first element.
///
/// # Panics
/// If the buffer belongs to another back end.
pub(super) fn ptr(buffer: &Buffer) -> DevicePtr {
    let Storage::Opaque(handle) = buffer.storage() else { panic!("the device was handed a host buffer") };
    let buffer: &DeviceBuffer =
        handle.downcast_ref().expect("the device was handed another back end's buffer");
    buffer.memory.as_ref().map_or(DevicePtr::NULL, Allocation::address)
}

/// Returns the address of a buffer of at least `len` elements.
///
/// # Panics
/// If the buffer is shorter.
pub(super) fn ptr_of(buffer: &Buffer, len: usize) -> DevicePtr {
    assert!(buffer.len() >= len, "a buffer of {} elements where {len} are needed", buffer.len());
    ptr(buffer)
}

/// Rounds `src` to the buffer's type and copies it to `dst[offset ..]`.
pub(super) fn write(device: &Device, dst: &Buffer, offset: usize, src: &[f32]) {
    let (base, dtype) = (ptr_of(dst, offset + src.len()), dst.dtype());
    let mut bytes = Vec::new();
    for (i, part) in src.chunks(PART).enumerate() {
        bytes.resize(part.len() * dtype.size(), 0);
        from_f32(dtype, part, &mut bytes);
        device.upload(base.plus((offset + i * PART) * dtype.size()), &bytes);
    }
}

/// Copies `src[offset ..][.. dst.len()]` to `dst` as f32.
pub(super) fn read(device: &Device, dst: &mut [f32], src: &Buffer, offset: usize) -> Result<(), CudaError> {
    let (base, dtype) = (ptr_of(src, offset + dst.len()), src.dtype());
    if dtype == DType::F32 {
        // SAFETY: every bit pattern is a valid f32, and the slices have the same bytes.
        let bytes = unsafe { std::slice::from_raw_parts_mut(dst.as_mut_ptr().cast(), size_of_val(dst)) };
        return device.download(bytes, base.plus(4 * offset));
    }
    let mut bytes = Vec::new();
    for (i, part) in dst.chunks_mut(PART).enumerate() {
        bytes.resize(part.len() * dtype.size(), 0);
        device.download(&mut bytes, base.plus((offset + i * PART) * dtype.size()))?;
        to_f32(dtype, &bytes, part);
    }
    device.check()
}

/// A list in device memory.
struct DeviceList {
    memory: Option<Allocation>,
    bytes: usize,
}

/// Uploads `bytes` to the memory of a list. The memory is reallocated only if it is too small.
fn upload_list(device: &Arc<Device>, handle: &mut Option<Box<dyn Any + Send + Sync>>, bytes: &[u8]) {
    let room = handle.as_ref().and_then(|h| h.downcast_ref::<DeviceList>()).map_or(0, |list| list.bytes);
    if handle.is_none() || room < bytes.len() {
        // The allocation has 50 % more bytes than needed, so that longer batches rarely need a new
        // allocation.
        let room = (bytes.len() + bytes.len() / 2).max(256);
        let memory = device.allocate(room as u64).map_err(|error| device.record(Err(error))).ok();
        *handle = Some(Box::new(DeviceList { memory, bytes: room }));
    }
    device.upload(list_ptr(handle.as_deref()), bytes);
}

fn list_ptr(handle: Option<&(dyn Any + Send + Sync)>) -> DevicePtr {
    let list: &DeviceList =
        handle.and_then(|h| h.downcast_ref()).expect("a list is uploaded before an operation reads it");
    list.memory.as_ref().map_or(DevicePtr::NULL, Allocation::address)
}

/// Uploads ids, positions, rows or targets.
pub(super) fn upload_indices(device: &Arc<Device>, dst: &mut Indices, values: &[u32]) {
    dst.set(values);
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    upload_list(device, dst.handle_mut(), &bytes);
}

/// Returns the address of an uploaded list.
///
/// # Panics
/// If the list was not uploaded to a device.
pub(super) fn indices_ptr(list: &Indices) -> DevicePtr {
    list_ptr(list.handle())
}

/// Segments in device memory. Their attention tiles follow in the same allocation.
struct DeviceSegments {
    list: Option<Box<dyn Any + Send + Sync>>,
    tiles: Tiles,
    /// Byte offset at which the tiles begin.
    words: usize,
}

/// Uploads each segment as four `u32`, and then the attention tiles of all segments.
pub(super) fn upload_segments(device: &Arc<Device>, dst: &mut Segments, values: &[Segment]) {
    dst.set(values);
    let tiles = Tiles::of(values);
    let segments = values
        .iter()
        .flat_map(|s| [s.q_start, s.q_len, s.kv_start, s.kv_len])
        .map(|n| u32::try_from(n).expect("a row's number fits in 32 bits"));
    let bytes: Vec<u8> = segments.chain(tiles.words.iter().copied()).flat_map(u32::to_le_bytes).collect();
    let old = dst.handle_mut().take().and_then(|handle| handle.downcast::<DeviceSegments>().ok());
    let mut list = old.and_then(|old| old.list);
    upload_list(device, &mut list, &bytes);
    *dst.handle_mut() = Some(Box::new(DeviceSegments { list, tiles, words: 16 * values.len() }));
}

/// Returns the device memory of uploaded segments, for attention kernels.
///
/// # Panics
/// If the segments were not uploaded to a device.
pub(super) fn segments_on_device(segments: &Segments) -> SegmentsOnDevice<'_> {
    let handle = segments.handle().and_then(|h| h.downcast_ref::<DeviceSegments>());
    let DeviceSegments { list, tiles, words } = handle.expect("segments are uploaded before attention");
    let base = list_ptr(list.as_deref());
    SegmentsOnDevice { segments: base, words: base.plus(*words), tiles }
}

/// f64 scalars in device memory.
pub(super) struct DeviceScalars(Option<Allocation>);

/// Allocates `len` zeros.
pub(super) fn alloc_scalars(device: &Arc<Device>, len: usize) -> Scalars {
    let memory = device.allocate(8 * len as u64).map_err(|error| device.record(Err(error))).ok();
    if let Some(memory) = &memory {
        device.fill(memory.address(), 0, 8 * len);
    }
    Scalars::opaque(Box::new(DeviceScalars(memory)), len)
}

/// Returns the address of the scalars.
///
/// # Panics
/// If the scalars belong to another back end.
pub(super) fn scalars_ptr(scalars: &Scalars) -> DevicePtr {
    let scalars: &DeviceScalars = scalars
        .handle()
        .and_then(|h| h.downcast_ref())
        .expect("the device was handed another back end's results");
    scalars.0.as_ref().map_or(DevicePtr::NULL, Allocation::address)
}
