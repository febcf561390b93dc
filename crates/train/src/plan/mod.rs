//! The memory plan: the predicted peak of a run, and the memory strategy that fits a limit.

mod dry_run;
mod planner;
mod recompute_ladder;
mod weights;
mod worst_steps;

pub use self::dry_run::ReplySize;
pub use self::planner::{BaselineMemory, MemoryPlan, PlanInput, PlannedScratch, SuggestedLimits};
pub use self::recompute_ladder::LayerPolicies;
pub use self::weights::{
    WeightBytes, device_weight_bytes, device_weight_bytes_of, weight_bytes, weight_bytes_of,
};
pub use self::worst_steps::RecordSize;
