//! An adapter in memory, with its matrices packed for decoding.

use std::fmt;
use std::sync::Arc;

use danlu_kernels::{Backend, LoraRef, PackedLora};

use crate::{LoraSource, ModelConfig, OutputFactors, Projection};

/// An adapter with a packed copy of its matrices. Packing does not change the bits of a reply. A step with
/// many adapters takes less time than without packing, see [`PackedLora`].
///
/// Packing reads the whole adapter once. A server therefore packs adapters on a separate thread and not on
/// the thread that runs the model.
pub struct PackedAdapter {
    source: Arc<dyn LoraSource>,
    /// Packed matrices, indexed by layer and then by [`Projection`]. Empty if the back end does not read
    /// packed matrices.
    packed: Vec<Option<PackedLora>>,
}

impl PackedAdapter {
    /// Packs the matrices of `source`. If the back end is a device, no packed copy is made.
    pub fn new(source: Arc<dyn LoraSource>, config: &ModelConfig, backend: &dyn Backend) -> Self {
        let layers = if backend.device_memory().is_some() { 0 } else { config.num_hidden_layers };
        let places = (0..layers)
            .flat_map(|layer| Projection::ALL.into_iter().map(move |projection| (layer, projection)));
        let packed = places
            .map(|(layer, projection)| source.pair(layer, projection).map(|pair| PackedLora::pack(&pair)))
            .collect();
        Self { source, packed }
    }

    /// Returns the size of the packed matrices in bytes. The size of the source is not included.
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
