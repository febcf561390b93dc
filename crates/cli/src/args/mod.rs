//! Flags that several commands share.

pub mod compute;
pub mod sampling;

pub use compute::ComputeArgs;
pub use sampling::SamplingArgs;
