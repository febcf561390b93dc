//! Memory strategies, in the order in which the planner tries them.

use danlu_model::ActivationPolicy;
use serde::{Deserialize, Serialize};

use crate::fused_batch::PassGrouping;

/// Maximum number of token rows in a pass of a split micro-batch.
const SPLIT_ROWS: usize = 2048;

/// The number of layers with each activation policy. The lowest layers store the fewest activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerPolicies {
    /// Number of layers that store only their input.
    pub recompute: usize,
    /// Number of layers that recompute only the activations that are cheap to compute.
    pub keep_some: usize,
}

impl LayerPolicies {
    /// Returns the policy of each layer, lowest layer first.
    pub fn policies(&self) -> Vec<ActivationPolicy> {
        let Self { recompute, keep_some } = *self;
        let of = |policy, count| std::iter::repeat_n(policy, count);
        of(ActivationPolicy::Recompute, recompute).chain(of(ActivationPolicy::KeepSome, keep_some)).collect()
    }

    /// Returns every useful combination for `count` layers. Each combination needs less memory and more
    /// computation than the previous combination.
    ///
    /// No combination has layers that store all activations, because such layers were not faster. No
    /// combination recomputes exactly one layer completely, because this saves no memory: recomputing needs
    /// buffers that are as large as the activations of one layer.
    fn fastest_first(count: usize) -> impl Iterator<Item = Self> {
        let recomputing = (2..=count).map(move |n| Self { recompute: n, keep_some: count - n });
        std::iter::once(Self { recompute: 0, keep_some: count }).chain(recomputing)
    }
}

/// A memory strategy for a step. On the CPU, all strategies without a split have bit-identical results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryStrategy {
    pub layers: LayerPolicies,
    pub grouping: PassGrouping,
}

impl MemoryStrategy {
    /// Returns every useful strategy for `count` layers, fastest first. Each strategy needs less memory than
    /// the previous strategy.
    ///
    /// The first strategy fuses small micro-batches, and the second does not fuse them. With `split`, all
    /// later strategies split large micro-batches, because on a device a pass of [`SPLIT_ROWS`] rows is as
    /// fast per row as a larger pass. The last strategies recompute more and more layers completely.
    pub fn fastest_first(count: usize, split: bool) -> Vec<Self> {
        let strategy = |fuse, max_rows| {
            let grouping = PassGrouping { fuse, max_rows, unshared: false };
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
