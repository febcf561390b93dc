//! The memory plan: the predicted peak memory of a run, and a memory strategy that fits a limit.

mod choose_strategy;
mod dry_run;
mod inference;
mod memory_strategy;
mod weights;
mod worst_steps;

pub use self::choose_strategy::{BaselineMemory, MemoryPlan, PlanInput, PlannedScratch, SuggestedLimits};
pub use self::dry_run::ReplySize;
pub use self::inference::{InferenceMemory, InferencePass};
pub use self::memory_strategy::LayerPolicies;
pub use self::weights::{
    WeightBytes, check_weights, device_weight_bytes, device_weight_bytes_of, open_weights, weight_bytes,
    weight_bytes_of,
};
pub use self::worst_steps::RecordSize;
