//! Keys and values of the tokens a decoder has already seen.

use danlu_kernels::{Backend, Buffer};

use crate::ModelConfig;

/// Keys (rotated) and values of one or several sequences, per layer `(slots · capacity, KH · HS)`: slot `s` has the
/// rows from `s · capacity` on.
#[derive(Debug)]
pub struct KvCache {
    pub(crate) keys: Vec<Buffer>,
    pub(crate) values: Vec<Buffer>,
    capacity: usize,
    /// Tokens held, by slot.
    lens: Vec<usize>,
}

impl KvCache {
    /// An empty cache for `slots` sequences of at most `capacity` tokens each.
    ///
    /// # Panics
    /// If there is no slot.
    pub fn new(config: &ModelConfig, backend: &dyn Backend, slots: usize, capacity: usize) -> Self {
        assert!(slots > 0, "a cache for no sequence");
        let width = config.num_key_value_heads * config.head_dim;
        let buffers =
            || (0..config.num_hidden_layers).map(|_| backend.alloc(slots * capacity * width)).collect();
        Self { keys: buffers(), values: buffers(), capacity, lens: vec![0; slots] }
    }

    /// Sequences that fit.
    pub fn slots(&self) -> usize {
        self.lens.len()
    }

    /// Tokens held, of the first sequence.
    pub fn len(&self) -> usize {
        self.slot_len(0)
    }

    /// Tokens held of the sequence in `slot`.
    ///
    /// # Panics
    /// If there is no such slot.
    pub fn slot_len(&self, slot: usize) -> usize {
        self.lens[slot]
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.lens.iter().all(|&len| len == 0)
    }

    /// Tokens of a sequence that fit.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets every sequence's tokens from `len` on, to reuse a common prefix; a longer `len` changes nothing.
    pub fn truncate(&mut self, len: usize) {
        for held in &mut self.lens {
            *held = len.min(*held);
        }
    }

    pub(crate) fn advance(&mut self, slot: usize, tokens: usize) {
        self.lens[slot] += tokens;
    }
}
