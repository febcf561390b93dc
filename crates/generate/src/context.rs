//! A decoder with a memory: tokens already read are not read again.

use danlu_model::{Decoder, KvCache, LoraSource, ModelError, Workspace};

/// Prompts are read in pieces of this many tokens: activations of a piece stay small and in cache.
const MAX_PREFILL_TOKENS: usize = 512;

/// One sequence being read and continued, with or without an adapter.
pub struct Context<'a> {
    decoder: &'a Decoder,
    lora: Option<&'a dyn LoraSource>,
    work: Workspace,
    cache: KvCache,
    /// The tokens whose keys and values are in `cache`.
    held: Vec<u32>,
}

impl<'a> Context<'a> {
    /// An empty context of at most `capacity` tokens.
    pub fn new(decoder: &'a Decoder, lora: Option<&'a dyn LoraSource>, capacity: usize) -> Self {
        Self::with_workspace(decoder, lora, capacity, Workspace::new())
    }

    /// As [`Context::new`], over buffers that exist already.
    pub fn with_workspace(
        decoder: &'a Decoder,
        lora: Option<&'a dyn LoraSource>,
        capacity: usize,
        work: Workspace,
    ) -> Self {
        Self { decoder, lora, work, cache: decoder.new_cache(capacity), held: Vec::new() }
    }

    /// Hands the buffers back.
    pub fn into_workspace(self) -> Workspace {
        self.work
    }

    /// Tokens that fit.
    pub fn capacity(&self) -> usize {
        self.cache.capacity()
    }

    /// How many leading tokens of `ids` would not have to be read again. The last is always read: its
    /// logits are wanted.
    pub fn shared_prefix(&self, ids: &[u32]) -> usize {
        let shared = self.held.iter().zip(ids).take_while(|(held, id)| held == id).count();
        shared.min(ids.len().saturating_sub(1))
    }

    /// The logits of the token after `ids`, reading only what differs from what was read before.
    ///
    /// # Errors
    /// If `ids` is empty, does not fit, or holds an id outside the vocabulary.
    pub fn logits_after(&mut self, ids: &[u32]) -> Result<Vec<f32>, ModelError> {
        let shared = self.shared_prefix(ids);
        self.cache.truncate(shared);
        self.held.truncate(shared);
        let mut pieces = ids[shared..].chunks(MAX_PREFILL_TOKENS).peekable();
        loop {
            // An empty `ids` reaches the decoder too: the error is its to word.
            let piece = pieces.next().unwrap_or_default();
            let logits = self.decoder.decode(&mut self.work, &mut self.cache, piece, self.lora)?;
            self.held.extend_from_slice(piece);
            if pieces.peek().is_none() {
                return Ok(logits);
            }
        }
    }
}
