//! An adapter in memory, with its matrices packed for decoding.

use std::fmt;
use std::sync::Arc;

use danlu_kernels::{Backend, LoraRef, PackedLora};

use crate::{LoraSource, ModelConfig, OutputFactors, Projection};

/// An adapter with a packed copy of its matrices. Replies do not change by a bit. A step with many adapters
/// takes less time, see [`PackedLora`].
///
/// Packing reads the whole adapter once, so a server does it outside the thread that runs the model.
pub struct PackedAdapter {
    source: Arc<dyn LoraSource>,
    /// Indexed by layer, then [`Projection`]. Empty if the back end does not read packed pairs.
    packed: Vec<Option<PackedLora>>,
}

impl PackedAdapter {
    /// Packs the matrices of `source`. A device keeps them as they are.
    pub fn new(source: Arc<dyn LoraSource>, config: &ModelConfig, backend: &dyn Backend) -> Self {
        let layers = if backend.device_memory().is_some() { 0 } else { config.num_hidden_layers };
        let places = (0..layers)
            .flat_map(|layer| Projection::ALL.into_iter().map(move |projection| (layer, projection)));
        let packed = places
            .map(|(layer, projection)| source.pair(layer, projection).map(|pair| PackedLora::pack(&pair)))
            .collect();
        Self { source, packed }
    }

    /// Returns the bytes of the packed matrices, in addition to those of the source.
    pub fn packed_bytes(&self) -> u64 {
        self.packed.iter().flatten().map(PackedLora::bytes).sum()
    }
}

impl LoraSource for PackedAdapter {
    fn pair(&self, layer: usize, projection: Projection) -> Option<LoraRef<'_>> {
        self.source.pair(layer, projection)
    }

    fn output_factors(&self, layer: usize, projection: Projection) -> Option<OutputFactors<'_>> {
        self.source.output_factors(layer, projection)
    }

    fn packed(&self, layer: usize, projection: Projection) -> Option<&PackedLora> {
        self.packed.get(layer * Projection::ALL.len() + projection.index())?.as_ref()
    }
}

impl fmt::Debug for PackedAdapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackedAdapter({} matrices)", self.packed.iter().flatten().count())
    }
}
