//! Memory that a back end owns: host bytes here, an opaque handle elsewhere.

use std::any::Any;
use std::fmt;

use crate::DType;

/// Elements of a cache line.
const LINE: usize = 16;

/// The use of a buffer's elements, from which a back end chooses their type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// Activations and their gradients: the type a back end computes in.
    Activation,
    /// The residual stream and its gradient: f32 where activations are f16, whose range the stream leaves.
    Residual,
    /// Always f32: statistics of norms and softmax, losses, logits, parameters, their gradients and moments.
    Exact,
}

/// `len` elements owned by one back end, zeroed when made.
///
/// Made by [`Backend::alloc`](crate::Backend::alloc). A back end that computes on the host keeps f32 in
/// [`Storage::Host`]; any other keeps its own handle in [`Storage::Opaque`].
pub struct Buffer {
    storage: Storage,
    len: usize,
    dtype: DType,
}

/// Where the elements of a [`Buffer`] live.
pub enum Storage {
    /// Ordinary memory, readable by every host back end.
    Host(HostMemory),
    /// Something only its own back end understands: device memory, a trace record.
    Opaque(Box<dyn Any + Send + Sync>),
}

/// Elements that begin with a cache line: a vector that straddles two costs both.
pub struct HostMemory {
    data: Vec<f32>,
    start: usize,
}

impl HostMemory {
    /// `len` zeros, whose pages the system hands out as they are written.
    fn zeroed(len: usize) -> Self {
        let data = vec![0.0f32; len + LINE - 1];
        let start = data.as_ptr().align_offset(4 * LINE).min(LINE - 1);
        Self { data, start }
    }
}

impl Buffer {
    /// A zeroed host buffer of `len` elements.
    pub fn host(len: usize) -> Self {
        Self { storage: Storage::Host(HostMemory::zeroed(len)), len, dtype: DType::F32 }
    }

    /// A host buffer with the elements of `data`.
    pub fn from_vec(data: Vec<f32>) -> Self {
        let mut buffer = Self::host(data.len());
        buffer.host_slice_mut().copy_from_slice(&data);
        buffer
    }

    /// A buffer of `len` elements behind a back end's own handle.
    pub fn opaque(handle: Box<dyn Any + Send + Sync>, len: usize, dtype: DType) -> Self {
        Self { storage: Storage::Opaque(handle), len, dtype }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The type of the elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The handle or host memory behind this buffer, for the back end that made it.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// As [`Buffer::storage`], to write through.
    pub fn storage_mut(&mut self) -> &mut Storage {
        &mut self.storage
    }

    /// The elements, for host back ends.
    ///
    /// # Panics
    /// If the buffer belongs to a back end whose memory is not the host's.
    pub fn host_slice(&self) -> &[f32] {
        match &self.storage {
            Storage::Host(memory) => &memory.data[memory.start..][..self.len],
            Storage::Opaque(_) => panic!("a host back end was handed another back end's buffer"),
        }
    }

    /// As [`Buffer::host_slice`], to write through.
    pub fn host_slice_mut(&mut self) -> &mut [f32] {
        match &mut self.storage {
            Storage::Host(memory) => &mut memory.data[memory.start..][..self.len],
            Storage::Opaque(_) => panic!("a host back end was handed another back end's buffer"),
        }
    }
}

/// A few f64 results, left in the back end's memory until [`Backend::read_scalars`](crate::Backend::read_scalars).
pub struct Scalars {
    values: Vec<f64>,
    handle: Option<Box<dyn Any + Send + Sync>>,
}

impl Scalars {
    /// `len` zeros in the host's memory.
    pub fn host(len: usize) -> Self {
        Self { values: vec![0.0; len], handle: None }
    }

    /// `len` results behind a back end's own handle.
    pub fn opaque(handle: Box<dyn Any + Send + Sync>, len: usize) -> Self {
        Self { handle: Some(handle), ..Self::host(len) }
    }

    /// The host's values, for host back ends.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// As [`Scalars::values`], to write through.
    pub fn values_mut(&mut self) -> &mut [f64] {
        &mut self.values
    }

    /// The handle of the back end that made them.
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
