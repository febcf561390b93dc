//! The interface through which the decoder reads an adapter.

use std::ops::Range;

use danlu_kernels::{Buffer, Dropout, LoraRef, PackedLora, rng};

use crate::Projection;

/// DoRA factors of the outputs of one projection. A factor is the magnitude of an output divided by the norm
/// of its row in `W + scaling · B A`. The backward pass treats this norm as a constant.
#[derive(Clone, Copy, Debug)]
pub struct OutputFactors<'a> {
    /// The factors of all modules.
    pub values: &'a Buffer,
    /// The inverse norms of all modules.
    pub inverse_norms: &'a Buffer,
    /// Index of this module's first output in `values` and in `inverse_norms`.
    pub offset: usize,
    /// Index of this module's first magnitude in the adapter's parameters.
    pub magnitude: usize,
}

/// A source of low-rank matrices for projections, such as an adapter.
pub trait LoraSource: Send + Sync {
    /// Returns the matrices `A` and `B` for `projection` of `layer`. Returns `None` if the adapter does not
    /// change this projection.
    fn pair(&self, layer: usize, projection: Projection) -> Option<LoraRef<'_>>;

    /// Returns the factors of the outputs of `projection` of `layer`, if the adapter uses DoRA. A factor
    /// multiplies the sum of the base output without bias and the low-rank update.
    fn output_factors(&self, _layer: usize, _projection: Projection) -> Option<OutputFactors<'_>> {
        None
    }

    /// Returns whether [`LoraSource::output_factors`] returns factors for some projections.
    fn scales_outputs(&self) -> bool {
        false
    }

    /// Returns the matrices of [`LoraSource::pair`] packed for decoding, if the source has packed them. See
    /// [`PackedAdapter`](crate::PackedAdapter).
    fn packed(&self, _layer: usize, _projection: Projection) -> Option<&PackedLora> {
        None
    }
}

impl<T: LoraSource + ?Sized> LoraSource for &T {
    fn pair(&self, layer: usize, projection: Projection) -> Option<LoraRef<'_>> {
        (**self).pair(layer, projection)
    }

    fn output_factors(&self, layer: usize, projection: Projection) -> Option<OutputFactors<'_>> {
        (**self).output_factors(layer, projection)
    }

    fn scales_outputs(&self) -> bool {
        (**self).scales_outputs()
    }

    fn packed(&self, layer: usize, projection: Projection) -> Option<&PackedLora> {
        (**self).packed(layer, projection)
    }
}

/// Rows of a batch and their adapter. In training, each micro-batch has one entry. In serving, neighbouring
/// sequences with the same adapter share one entry.
#[derive(Clone)]
pub struct LoraRows<'a> {
    /// Rows in the packed batch.
    pub rows: Range<usize>,
    /// The adapter.
    pub source: &'a dyn LoraSource,
    /// Dropout of the adapter's input. Used only in training.
    pub dropout: Option<DropoutPlan>,
    /// Noise of the embeddings. Used only in training.
    pub noise: Option<EmbeddingNoise>,
}

impl<'a> LoraRows<'a> {
    /// Selects all `n` rows of a batch, without dropout.
    pub fn all(source: &'a dyn LoraSource, n: usize) -> Self {
        Self { rows: 0..n, source, dropout: None, noise: None }
    }
}

/// Noise that is added to the embeddings of one micro-batch. The noise of an element is uniform in
/// `±alpha / sqrt(L · C)`, for a sequence of `L` tokens and the hidden size `C`. Source: Jain et al., 2023,
/// <https://arxiv.org/abs/2310.05914> (NEFTune).
///
/// transformers uses the length of the padded batch for `L`. danlu pads nothing and uses the length of each
/// sequence. Both lengths are equal in a batch of one sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EmbeddingNoise {
    /// Size of the noise.
    pub alpha: f32,
    /// Key of the random stream for one seed, step and micro-batch. The counter of an element is
    /// `(row - rows.start) · C + column`.
    pub key: u64,
}

impl EmbeddingNoise {
    /// Writes the noise of some elements of a sequence with `length` tokens. `first` is the counter of the
    /// first element. `scale` multiplies the noise.
    pub(crate) fn write(
        &self,
        out: &mut [f32],
        first: usize,
        (length, hidden_size): (usize, usize),
        scale: f32,
    ) {
        let bound = scale * self.alpha / ((length * hidden_size) as f32).sqrt();
        for (value, counter) in out.iter_mut().zip(first as u64..) {
            *value = (2.0 * rng::uniform(self.key, counter) - 1.0) * bound;
        }
    }
}

/// LoRA dropout for one micro-batch. Each module has a different mask, as in PEFT.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DropoutPlan {
    /// Probability that an element of a module's input is set to zero, in `[0, 1)`.
    pub probability: f32,
    /// Key of the random stream for one seed, step and micro-batch. See [`rng::key`].
    pub key: u64,
}

impl DropoutPlan {
    /// Returns the mask of one module.
    pub fn module(&self, layer: usize, projection: Projection) -> Dropout {
        Dropout { probability: self.probability, key: rng::key(&[self.key, layer as u64, projection as u64]) }
    }
}
