//! Inputs of a pass other than activations: ids, positions, rows, targets and segments.
//!
//! Each pass uploads each list once. A list is always in host memory. A device keeps its own copy behind a
//! handle.

use std::any::Any;
use std::fmt;

use crate::Segment;

/// A list that many operations of a pass read.
///
/// [`Backend::upload`](crate::Backend::upload) fills [`Indices`], and
/// [`Backend::upload_segments`](crate::Backend::upload_segments) fills [`Segments`].
pub struct Uploaded<T> {
    values: Vec<T>,
    handle: Option<Box<dyn Any + Send + Sync>>,
}

/// Token ids, positions, rows or targets.
pub type Indices = Uploaded<u32>;
/// The segments of a packed batch.
pub type Segments = Uploaded<Segment>;

impl<T: Copy> Uploaded<T> {
    /// Creates a list only in host memory, for host back ends.
    pub fn host(values: Vec<T>) -> Self {
        Self { values, handle: None }
    }

    /// Replaces the copy in host memory, and reuses its allocation.
    pub fn set(&mut self, values: &[T]) {
        self.values.clear();
        self.values.extend_from_slice(values);
    }

    /// Returns the copy in host memory.
    pub fn values(&self) -> &[T] {
        &self.values
    }

    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Returns whether the number of elements is 0.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Returns the handle of the back end that uploaded the list.
    pub fn handle(&self) -> Option<&(dyn Any + Send + Sync)> {
        self.handle.as_deref()
    }

    /// Returns the mutable handle of the back end that uploaded the list.
    pub fn handle_mut(&mut self) -> &mut Option<Box<dyn Any + Send + Sync>> {
        &mut self.handle
    }
}

impl<T> Default for Uploaded<T> {
    fn default() -> Self {
        Self { values: Vec::new(), handle: None }
    }
}

impl<T: fmt::Debug> fmt::Debug for Uploaded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.values).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shorter_list_reuses_the_memory_of_a_longer_one() {
        let mut rows = Indices::host(vec![1, 2, 3]);
        let before = rows.values().as_ptr();
        rows.set(&[7, 8]);
        assert_eq!((rows.values(), rows.values().as_ptr()), (&[7, 8][..], before));
    }
}
