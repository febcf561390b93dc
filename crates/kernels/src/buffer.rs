//! Memory that a back end owns: host bytes here, an opaque handle elsewhere.

use std::any::Any;
use std::fmt;

/// `len` f32 elements owned by one back end, zeroed when made.
///
/// Made by [`Backend::alloc`](crate::Backend::alloc). A back end that computes on the host keeps the
/// elements in [`Storage::Host`]; any other keeps its own handle in [`Storage::Opaque`].
pub struct Buffer {
    storage: Storage,
    len: usize,
}

/// Where the elements of a [`Buffer`] live.
pub enum Storage {
    /// Ordinary memory, readable by every host back end.
    Host(Vec<f32>),
    /// Something only its own back end understands: device memory, a trace record.
    Opaque(Box<dyn Any + Send + Sync>),
}

impl Buffer {
    /// A zeroed host buffer of `len` elements.
    pub fn host(len: usize) -> Self {
        Self { storage: Storage::Host(vec![0.0; len]), len }
    }

    /// A host buffer that takes over `data`.
    pub fn from_vec(data: Vec<f32>) -> Self {
        let len = data.len();
        Self { storage: Storage::Host(data), len }
    }

    /// A buffer of `len` elements behind a back end's own handle.
    pub fn opaque(handle: Box<dyn Any + Send + Sync>, len: usize) -> Self {
        Self { storage: Storage::Opaque(handle), len }
    }

    /// Number of f32 elements.
    pub fn len(&self) -> usize {
        self.len
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
            Storage::Host(data) => data,
            Storage::Opaque(_) => panic!("a host back end was handed another back end's buffer"),
        }
    }

    /// As [`Buffer::host_slice`], to write through.
    pub fn host_slice_mut(&mut self) -> &mut [f32] {
        match &mut self.storage {
            Storage::Host(data) => data,
            Storage::Opaque(_) => panic!("a host back end was handed another back end's buffer"),
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match self.storage {
            Storage::Host(_) => "host",
            Storage::Opaque(_) => "opaque",
        };
        write!(f, "Buffer({place}, {} x f32)", self.len)
    }
}
