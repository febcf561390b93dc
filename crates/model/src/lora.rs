//! The decoder's view of an adapter: a source of low-rank pairs.

use std::ops::Range;

use danlu_kernels::{Dropout, LoraRef, rng};

use crate::Projection;

/// A source of low-rank pairs for projections, such as an adapter.
pub trait LoraSource: Send + Sync {
    /// The pair for `projection` of `layer`, if it has one.
    fn pair(&self, layer: usize, projection: Projection) -> Option<LoraRef<'_>>;
}

impl<T: LoraSource + ?Sized> LoraSource for &T {
    fn pair(&self, layer: usize, projection: Projection) -> Option<LoraRef<'_>> {
        (**self).pair(layer, projection)
    }
}

/// Rows of a batch and the adapter they run with. In training each micro-batch has an entry, in serving each
/// run of sequences with one adapter.
#[derive(Clone)]
pub struct LoraRows<'a> {
    /// Rows of the packed batch.
    pub rows: Range<usize>,
    /// The source of their pairs.
    pub source: &'a dyn LoraSource,
    /// The dropout of their inputs, in training.
    pub dropout: Option<DropoutPlan>,
}

impl<'a> LoraRows<'a> {
    /// All of `n` rows, with nothing dropped.
    pub fn all(source: &'a dyn LoraSource, n: usize) -> Self {
        Self { rows: 0..n, source, dropout: None }
    }
}

/// LoRA dropout for one micro-batch; every module draws its own mask, as in PEFT.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DropoutPlan {
    /// Probability of zeroing an element of a module's input, in `[0, 1)`.
    pub probability: f32,
    /// Names seed, step and micro-batch: see [`rng::key`].
    pub key: u64,
}

impl DropoutPlan {
    /// The mask of one module.
    pub fn module(&self, layer: usize, projection: Projection) -> Dropout {
        Dropout { probability: self.probability, key: rng::key(&[self.key, layer as u64, projection as u64]) }
    }
}
