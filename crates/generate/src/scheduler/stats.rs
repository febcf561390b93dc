//! Counts of a scheduler, for metrics.

use super::GenerationId;

/// Load of one adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterLoad {
    /// The adapter, or `None` for the base alone.
    pub generation: Option<GenerationId>,
    /// Running sequences.
    pub running: usize,
    /// Waiting sequences.
    pub waiting: usize,
}

/// Load and totals of a [`Scheduler`](super::Scheduler).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SchedulerStats {
    /// Running sequences.
    pub running: usize,
    /// Waiting sequences.
    pub waiting: usize,
    /// Tokens reserved for keys and values of sequences.
    pub kv_tokens: usize,
    /// Tokens of prompts kept for later requests. They give way to sequences.
    pub prefix_tokens: usize,
    /// Most tokens of keys and values.
    pub max_kv_tokens: usize,
    /// Prompt tokens that were looked up in the prefix cache, in total.
    pub prefix_queries: u64,
    /// Prompt tokens that were found there, in total.
    pub prefix_hits: u64,
    /// Sequences whose keys and values were dropped before they ended, in total.
    pub preemptions: u64,
    /// Prompt tokens read, in total.
    pub prompt_tokens: u64,
    /// Tokens generated, in total.
    pub generated_tokens: u64,
    /// Adapters with running or waiting sequences.
    pub adapters: Vec<AdapterLoad>,
}
