//! Counts of a scheduler, for metrics.

use super::GenerationId;

/// Load of one adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterLoad {
    /// The adapter, or `None` for the base without an adapter.
    pub generation: Option<GenerationId>,
    /// Number of running sequences.
    pub running: usize,
    /// Number of waiting sequences.
    pub waiting: usize,
}

/// Current load of a [`Scheduler`](super::Scheduler), and totals since its start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SchedulerStats {
    /// Number of running sequences.
    pub running: usize,
    /// Number of waiting sequences.
    pub waiting: usize,
    /// Capacity, in tokens, of the slots of sequences that have not ended.
    pub kv_tokens: usize,
    /// Capacity, in tokens, of the slots of prompts that are retained for later requests. These slots are
    /// freed when a sequence needs memory.
    pub prefix_tokens: usize,
    /// Maximum number of tokens whose keys and values are in memory.
    pub max_kv_tokens: usize,
    /// Total number of prompt tokens that were looked up in the prefix cache.
    pub prefix_queries: u64,
    /// Total number of prompt tokens that were found in the prefix cache.
    pub prefix_hits: u64,
    /// Total number of preemptions. A preemption drops the keys and values of a sequence that has not ended.
    pub preemptions: u64,
    /// Total number of prompt tokens that were read.
    pub prompt_tokens: u64,
    /// Total number of generated tokens.
    pub generated_tokens: u64,
    /// Load of each adapter that has running or waiting sequences.
    pub adapters: Vec<AdapterLoad>,
}
