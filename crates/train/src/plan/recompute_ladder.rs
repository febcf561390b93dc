//! What layers keep, and in which order a planner tries it.

use danlu_model::ActivationPolicy;
use serde::{Deserialize, Serialize};

/// How many layers keep what, the lowest ones least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerPolicies {
    /// Layers that keep their input alone.
    pub recompute: usize,
    /// Layers that drop what is cheap to make again.
    pub keep_some: usize,
}

impl LayerPolicies {
    /// The policy of each layer, from the lowest.
    pub fn policies(&self) -> Vec<ActivationPolicy> {
        let Self { recompute, keep_some } = *self;
        let of = |policy, count| std::iter::repeat_n(policy, count);
        of(ActivationPolicy::Recompute, recompute).chain(of(ActivationPolicy::KeepSome, keep_some)).collect()
    }

    /// Every mix worth trying on `count` layers, the cheapest in work first and each smaller than the one before. None
    /// keeps everything: that holds more and was no faster.
    ///
    /// One layer alone that recomputes gains nothing: what it drops is held by the shared buffers instead.
    fn ladder(count: usize) -> impl Iterator<Item = Self> {
        let recomputing = (2..=count).map(move |n| Self { recompute: n, keep_some: count - n });
        std::iter::once(Self { recompute: 0, keep_some: count }).chain(recomputing)
    }
}

/// One way to run a step: none changes a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryStrategy {
    pub layers: LayerPolicies,
    /// Whether small micro-batches go through the model together.
    pub fuse_micro_batches: bool,
}

impl MemoryStrategy {
    /// Every way worth trying on `count` layers, the fastest first and each smaller than the one before. Micro-batches
    /// go apart before anything is computed twice.
    pub fn ladder(count: usize) -> Vec<Self> {
        let strategy = |fuse_micro_batches| move |layers| Self { layers, fuse_micro_batches };
        LayerPolicies::ladder(count)
            .take(1)
            .map(strategy(true))
            .chain(LayerPolicies::ladder(count).map(strategy(false)))
            .collect()
    }
}
