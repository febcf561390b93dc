//! Memory strategies, in the order in which the planner tries them.

use danlu_model::ActivationPolicy;
use serde::{Deserialize, Serialize};

use crate::fused_batch::PassGrouping;

/// Most rows of a pass of a split micro-batch.
const SPLIT_ROWS: usize = 2048;

/// The number of layers with each activation policy. The lowest layers store the least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerPolicies {
    /// Layers that store only their input.
    pub recompute: usize,
    /// Layers that recompute only the cheap activations.
    pub keep_some: usize,
}

impl LayerPolicies {
    /// The policy of each layer, lowest first.
    pub fn policies(&self) -> Vec<ActivationPolicy> {
        let Self { recompute, keep_some } = *self;
        let of = |policy, count| std::iter::repeat_n(policy, count);
        of(ActivationPolicy::Recompute, recompute).chain(of(ActivationPolicy::KeepSome, keep_some)).collect()
    }

    /// Returns every useful combination for `count` layers. Each needs less memory and more work than the
    /// previous one.
    ///
    /// Layers that store everything are not included, because they were not faster. Neither is a single
    /// recomputing layer: its activations move to the shared buffers, which saves nothing.
    fn fastest_first(count: usize) -> impl Iterator<Item = Self> {
        let recomputing = (2..=count).map(move |n| Self { recompute: n, keep_some: count - n });
        std::iter::once(Self { recompute: 0, keep_some: count }).chain(recomputing)
    }
}

/// A way to run a step. All strategies without a split give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryStrategy {
    pub layers: LayerPolicies,
    pub grouping: PassGrouping,
}

impl MemoryStrategy {
    /// Returns every useful strategy for `count` layers, fastest first. Each needs less memory than the
    /// previous one.
    ///
    /// Micro-batches are separated before any layer recomputes. With `split`, large ones are split before that too:
    /// on a device a pass of [`SPLIT_ROWS`] rows is as fast per row as a larger one.
    pub fn fastest_first(count: usize, split: bool) -> Vec<Self> {
        let strategy = |fuse, max_rows| {
            let grouping = PassGrouping { fuse, max_rows };
            move |layers| Self { layers, grouping }
        };
        let first = || LayerPolicies::fastest_first(count).take(1);
        let fused = first().map(strategy(true, None));
        match split {
            false => fused.chain(LayerPolicies::fastest_first(count).map(strategy(false, None))).collect(),
            true => fused
                .chain(first().map(strategy(false, None)))
                .chain(LayerPolicies::fastest_first(count).map(strategy(false, Some(SPLIT_ROWS))))
                .collect(),
        }
    }
}
