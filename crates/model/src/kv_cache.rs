//! Keys and values of the tokens a decoder has already seen.

use danlu_kernels::{Backend, Buffer};

use crate::ModelConfig;

/// Keys (rotated) and values of one sequence, per layer `(capacity, KH · HS)`.
#[derive(Debug)]
pub struct KvCache {
    pub(crate) keys: Vec<Buffer>,
    pub(crate) values: Vec<Buffer>,
    capacity: usize,
    len: usize,
}

impl KvCache {
    /// An empty cache for at most `capacity` tokens.
    pub fn new(config: &ModelConfig, backend: &dyn Backend, capacity: usize) -> Self {
        let width = config.num_key_value_heads * config.head_dim;
        let buffers = || (0..config.num_hidden_layers).map(|_| backend.alloc(capacity * width)).collect();
        Self { keys: buffers(), values: buffers(), capacity, len: 0 }
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens that fit.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets every token from `len` on, to reuse a common prefix; a longer `len` changes nothing.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }
}
