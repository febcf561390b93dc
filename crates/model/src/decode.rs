//! Prefill and decode. Prefill reads prompts, and decode appends generated tokens one by one. Both write to a
//! [`KvCache`].
//!
//! The values of a row do not depend on the other rows of the pass. However, the order of summation in a
//! matrix multiplication may depend on the number of rows (see [`Backend::row_invariant_from`]). The order is
//! therefore chosen by the kind of row and not by the number of rows:
//!
//! | rows | order of summation |
//! |---|---|
//! | prompt tokens ([`Decoder::prefill`]) | the order for many rows, even if the pass has few rows |
//! | generated tokens ([`Decoder::decode`]) | the order for few rows, with [`Backend::attention_decode`] |
//! | rows whose logits are returned, after the last attention | the order for few rows |
//!
//! If many sequences generate tokens, they run in passes of at most [`Backend::max_generated_rows`] rows.
//!
//! Therefore a reply has the same bits if it is generated alone, in a batch, or after any interruption. On
//! CUDA, [`Backend::row_invariant_from`] is approximate, so replies may differ by rounding.

use std::mem;

#[cfg(doc)]
use danlu_kernels::Backend;
use danlu_kernels::Segment;

use crate::forward_pass::ForwardPass;
use crate::{Decoder, KvCache, LoraRows, LoraSource, ModelError, SlotId, Workspace};

/// Maximum number of rows in one pass that recomputes a slot.
const RECOMPUTED_ROWS: usize = 512;

/// The kind of the rows of a pass, which determines the order of summation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RowKind {
    Prompt,
    Generated,
}

/// The tokens that a pass appends to one slot.
#[derive(Clone, Copy)]
pub struct SlotInput<'a> {
    /// The slot. Each slot occurs once in a pass.
    pub slot: SlotId,
    /// Tokens to append, at least one.
    pub ids: &'a [u32],
    /// The adapter for this slot.
    pub lora: Option<&'a dyn LoraSource>,
    /// Whether to compute the logits of the last token.
    pub wants_logits: bool,
}

impl<'a> SlotInput<'a> {
    /// Returns an input that appends `ids` to `slot` and requests the logits of the last token.
    pub fn new(slot: SlotId, ids: &'a [u32], lora: Option<&'a dyn LoraSource>) -> Self {
        Self { slot, ids, lora, wants_logits: true }
    }
}

impl Decoder {
    /// Returns an empty cache for sequences of this model.
    pub fn new_cache(&self) -> KvCache {
        KvCache::new(&self.config, self.backend.clone())
    }

    /// Appends prompt tokens to slots of `cache`. Returns the logits `(S, V)` of the last token of each input
    /// that has `wants_logits`, in the order of `inputs`.
    ///
    /// # Errors
    /// If an input has no ids, has more ids than its slot has room for, or has an id outside the vocabulary.
    /// For these errors, no slot is changed. Also returns an error if the device fails.
    ///
    /// # Panics
    /// If a slot was removed, or if two inputs name the same slot.
    pub fn prefill(
        &self,
        work: &mut Workspace,
        cache: &mut KvCache,
        inputs: &[SlotInput<'_>],
    ) -> Result<Vec<f32>, ModelError> {
        self.check_inputs(cache, inputs)?;
        self.follow_length(work, cache, inputs)?;
        self.append_in_passes(work, cache, inputs, RowKind::Prompt)
    }

    /// Appends generated tokens to slots of `cache`. Returns logits as [`Decoder::prefill`] does.
    ///
    /// # Errors
    /// The errors of [`Decoder::prefill`].
    ///
    /// # Panics
    /// The panics of [`Decoder::prefill`]. Also panics if an input has more than one id.
    pub fn decode(
        &self,
        work: &mut Workspace,
        cache: &mut KvCache,
        inputs: &[SlotInput<'_>],
    ) -> Result<Vec<f32>, ModelError> {
        self.check_inputs(cache, inputs)?;
        assert!(inputs.iter().all(|input| input.ids.len() == 1), "one generated token a slot");
        self.follow_length(work, cache, inputs)?;
        self.append_in_passes(work, cache, inputs, RowKind::Generated)
    }

    /// Recomputes each slot whose rotary frequencies change because the new tokens make its sequence longer.
    /// All cached keys of such a slot have the old rotation. The cached values are wrong too, because they
    /// depend on the attention of earlier layers.
    ///
    /// Generated tokens are recomputed in the same way as prompt tokens. The result therefore depends only on
    /// the tokens, and an interrupted reply has the same bits as an uninterrupted reply.
    fn follow_length(
        &self,
        work: &mut Workspace,
        cache: &mut KvCache,
        inputs: &[SlotInput<'_>],
    ) -> Result<(), ModelError> {
        if !self.config.rope.depends_on_length() {
            return Ok(());
        }
        for &SlotInput { slot, ids, lora, .. } in inputs {
            let length = self.config.rope.cached_length(cache.len(slot) + ids.len());
            let Some(cached) = cache.set_rope_length(slot, length) else { continue };
            for ids in cached.chunks(RECOMPUTED_ROWS) {
                let input = SlotInput { slot, ids, lora, wants_logits: false };
                self.append(work, cache, &[input], RowKind::Prompt, &mut Vec::new())?;
            }
        }
        Ok(())
    }

    /// Appends checked inputs in passes of at most [`Backend::max_generated_rows`] slots. Returns the
    /// requested logits.
    fn append_in_passes(
        &self,
        work: &mut Workspace,
        cache: &mut KvCache,
        inputs: &[SlotInput<'_>],
        kind: RowKind,
    ) -> Result<Vec<f32>, ModelError> {
        let vocab_size = self.config.vocab_size;
        let wanted = |inputs: &[SlotInput<'_>]| inputs.iter().filter(|input| input.wants_logits).count();
        // Every logit is overwritten below. A recycled buffer of the same length therefore needs neither
        // allocation nor zeroing.
        let mut logits = mem::take(&mut work.spare_logits);
        logits.resize(wanted(inputs) * vocab_size, 0.0);
        let mut rest = &mut logits[..];
        for inputs in inputs.chunks(self.backend.max_generated_rows()) {
            let (part, after) = rest.split_at_mut(wanted(inputs) * vocab_size);
            self.append(work, cache, inputs, kind, part)?;
            rest = after;
        }
        Ok(logits)
    }

    fn check_inputs(&self, cache: &KvCache, inputs: &[SlotInput<'_>]) -> Result<(), ModelError> {
        for (i, input) in inputs.iter().enumerate() {
            assert!(inputs[..i].iter().all(|other| other.slot != input.slot), "one input a slot");
            self.check_ids(input.ids)?;
            let (held, added, capacity) =
                (cache.len(input.slot), input.ids.len(), cache.capacity(input.slot));
            if added == 0 || held + added > capacity {
                return Err(ModelError::CacheFull { held, added, capacity });
            }
        }
        Ok(())
    }

    fn append(
        &self,
        work: &mut Workspace,
        cache: &mut KvCache,
        inputs: &[SlotInput<'_>],
        kind: RowKind,
        logits: &mut [f32],
    ) -> Result<(), ModelError> {
        let (mut ids, mut positions, mut segments) = (Vec::new(), Vec::new(), Vec::new());
        let mut last = Vec::new();
        for input in inputs {
            let past = cache.len(input.slot);
            let (q_start, q_len, kv_len) = (ids.len(), input.ids.len(), past + input.ids.len());
            ids.extend_from_slice(input.ids);
            positions.extend((past..kv_len).map(|p| p as u32));
            segments.push(Segment { q_start, q_len, kv_start: cache.start(input.slot), kv_len });
            if input.wants_logits {
                last.push(ids.len() as u32 - 1);
            }
        }
        let pass = ForwardPass::new(&positions, &segments, lora_rows(inputs));
        let pass = match kind {
            RowKind::Prompt => pass.with_min_rows(self.backend.row_invariant_from()),
            RowKind::Generated => pass.of_generated_tokens(),
        };
        let mut pass = pass.with_generated_head(&last);
        if self.config.rope.depends_on_length() {
            pass.rope_lengths = Some(inputs.iter().map(|input| cache.rope_length(input.slot)).collect());
        }
        let newest = |s: &Segment| s.kv_start + s.kv_len - s.q_len..s.kv_start + s.kv_len;
        let cache_rows: Vec<u32> = segments.iter().flat_map(newest).map(|row| row as u32).collect();
        work.reserve(&self.config, &*self.backend, pass.rows.computed, 1, last.len());
        pass.upload((&*self.backend, &self.config), mem::take(&mut work.indices), &ids, &[]);
        self.backend.upload(&mut pass.indices.cache_rows, &cache_rows);
        let mut run = || {
            self.blocks(work, &pass, false, Some(cache));
            if !last.is_empty() {
                self.head_product(work, last.len(), true);
            }
        };
        match kind {
            RowKind::Prompt => run(),
            RowKind::Generated => self.backend.run_sequence(&mut run),
        }
        work.indices = pass.indices;
        for input in inputs {
            cache.advance(input.slot, input.ids);
        }
        if !last.is_empty() {
            self.read_logits(logits, work)?;
        }
        Ok(())
    }
}

/// Returns the rows of each adapter. If neighbouring inputs have the same adapter, they share one entry.
fn lora_rows<'a>(inputs: &[SlotInput<'a>]) -> Vec<LoraRows<'a>> {
    let mut found: Vec<LoraRows<'a>> = Vec::new();
    let mut start = 0;
    for input in inputs {
        let rows = start..start + input.ids.len();
        start = rows.end;
        let Some(source) = input.lora else { continue };
        match found.last_mut() {
            Some(last) if last.rows.end == rows.start && std::ptr::addr_eq(last.source, source) => {
                last.rows.end = rows.end;
            }
            _ => found.push(LoraRows { rows, source, dropout: None, noise: None }),
        }
    }
    found
}
