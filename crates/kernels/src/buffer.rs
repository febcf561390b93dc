//! Buffers in host memory, or behind an opaque handle of a back end.

use std::any::Any;
use std::fmt;

use crate::DType;

/// Number of f32 elements in a cache line.
const LINE: usize = 16;

/// Use of a buffer's elements, from which a back end chooses their data type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// Activations and their gradients. Host back ends store them as f32, and CUDA as the type in
    /// [`CudaOptions`](crate::cuda::CudaOptions).
    Activation,
    /// The residual stream and its gradient. They are f32 if activations are f16, because their values can
    /// exceed the range of f16.
    Residual,
    /// Norm and softmax statistics, losses, logits, parameters, gradients and moments. They are always f32.
    Exact,
}

/// A buffer of `len` elements that belongs to one back end. It is zeroed on allocation.
///
/// [`Backend::alloc`](crate::Backend::alloc) allocates it. A back end that computes on the host stores f32 in
/// [`Storage::Host`]. Any other back end stores its own handle in [`Storage::Opaque`].
pub struct Buffer {
    storage: Storage,
    len: usize,
    dtype: DType,
}

/// The memory of a [`Buffer`].
pub enum Storage {
    /// Host memory, which every host back end can read.
    Host(HostMemory),
    /// A back end's own handle, for example to device memory.
    Opaque(Box<dyn Any + Send + Sync>),
}

/// Elements that are aligned to cache lines. A vector load that crosses two lines would cost two accesses.
pub struct HostMemory {
    data: Vec<f32>,
    start: usize,
}

impl HostMemory {
    fn zeroed(len: usize) -> Self {
        let data = vec![0.0f32; len + LINE - 1];
        let start = data.as_ptr().align_offset(4 * LINE).min(LINE - 1);
        Self { data, start }
    }
}

impl Buffer {
    /// Allocates a zeroed host buffer of `len` elements.
    pub fn host(len: usize) -> Self {
        Self { storage: Storage::Host(HostMemory::zeroed(len)), len, dtype: DType::F32 }
    }

    /// Copies `data` into a host buffer.
    pub fn from_vec(data: Vec<f32>) -> Self {
        let mut buffer = Self::host(data.len());
        buffer.host_slice_mut().copy_from_slice(&data);
        buffer
    }

    /// Wraps a back end's own handle for `len` elements.
    pub fn opaque(handle: Box<dyn Any + Send + Sync>, len: usize, dtype: DType) -> Self {
        Self { storage: Storage::Opaque(handle), len, dtype }
    }

    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns the type of the elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Returns whether the number of elements is 0.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the memory of this buffer, for the back end that allocated it.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// Returns the mutable memory of this buffer, for the back end that allocated it.
    pub fn storage_mut(&mut self) -> &mut Storage {
        &mut self.storage
    }

    /// Returns the elements, for host back ends.
    ///
    /// # Panics
    /// If the buffer is not in host memory.
    pub fn host_slice(&self) -> &[f32] {
        match &self.storage {
            Storage::Host(memory) => &memory.data[memory.start..][..self.len],
            Storage::Opaque(_) => panic!("a host back end was handed another back end's buffer"),
        }
    }

    /// Returns the mutable elements, for host back ends.
    ///
    /// # Panics
    /// If the buffer is not in host memory.
    pub fn host_slice_mut(&mut self) -> &mut [f32] {
        match &mut self.storage {
            Storage::Host(memory) => &mut memory.data[memory.start..][..self.len],
            Storage::Opaque(_) => panic!("a host back end was handed another back end's buffer"),
        }
    }
}

/// f64 results in the back end's memory. [`Backend::read_scalars`](crate::Backend::read_scalars) copies them
/// to the host.
pub struct Scalars {
    values: Vec<f64>,
    handle: Option<Box<dyn Any + Send + Sync>>,
}

impl Scalars {
    /// Allocates `len` zeros in host memory.
    pub fn host(len: usize) -> Self {
        Self { values: vec![0.0; len], handle: None }
    }

    /// Wraps a back end's own handle for `len` scalars.
    pub fn opaque(handle: Box<dyn Any + Send + Sync>, len: usize) -> Self {
        Self { handle: Some(handle), ..Self::host(len) }
    }

    /// Returns the values, for host back ends.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// Returns the mutable values, for host back ends.
    pub fn values_mut(&mut self) -> &mut [f64] {
        &mut self.values
    }

    /// Returns the handle of a device back end.
    pub fn handle(&self) -> Option<&(dyn Any + Send + Sync)> {
        self.handle.as_deref()
    }
}

impl fmt::Debug for Scalars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scalars({})", self.values.len())
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match self.storage {
            Storage::Host(_) => "host",
            Storage::Opaque(_) => "opaque",
        };
        write!(f, "Buffer({place}, {} x {:?})", self.len, self.dtype)
    }
}

/// Memory of a device, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Bytes that this process has allocated, without the driver's context.
    pub allocated: u64,
    /// Largest value of `allocated` so far.
    pub peak: u64,
    /// Free bytes on the device.
    pub free: u64,
    /// Total bytes of the device.
    pub total: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_elements_begin_with_a_cache_line() {
        for len in [0, 1, 15, 16, 1000, 1 << 20] {
            let mut buffer = Buffer::from_vec((0..len).map(|i| i as f32).collect());
            assert_eq!(buffer.host_slice().as_ptr().addr() % 64, 0, "{len}");
            assert_eq!(buffer.host_slice_mut().len(), len);
            assert!(buffer.host_slice().iter().enumerate().all(|(i, &v)| v == i as f32), "{len}");
        }
    }
}
