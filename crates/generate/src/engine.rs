//! Runs many sequences on one model. Each sequence has its own slot, and optionally its own adapter.
//!
//! ```text
//! open ──► start ──► step, step, … ──► take ──► start (another sequence; a common prefix is not read again)
//!                                       └─────► close
//! ```
//!
//! Slots join and leave between steps. One [`Engine::step`] decodes a token for every sequence whose prompt
//! is read, and reads a piece of the other prompts.

use std::sync::Arc;

use danlu_model::{Decoder, KvCache, LoraSource, SlotId, SlotInput, Workspace};

use crate::{GenerateError, Sequence, TokenStep};

/// Most prompt tokens per step, over all slots. Small pieces keep activations in cache, and other sequences
/// wait for one piece only.
const MAX_PREFILL_TOKENS: usize = 512;

/// Runs sequences over one decoder.
pub struct Engine<'a> {
    decoder: &'a Decoder,
    work: Workspace,
    cache: KvCache,
    /// In the order of opening.
    slots: Vec<Slot<'a>>,
}

/// A slot, and the sequence in it.
struct Slot<'a> {
    id: SlotId,
    lora: Option<Arc<dyn LoraSource + 'a>>,
    /// Tokens whose keys and values are in the cache.
    read: Vec<u32>,
    sequence: Option<Sequence>,
}

/// Result of a step for one sequence.
#[derive(Debug)]
pub struct StepOutput {
    /// Slot of the sequence.
    pub slot: SlotId,
    /// The new token, or the reason why none could be chosen.
    pub step: Result<TokenStep, GenerateError>,
}

impl<'a> Engine<'a> {
    /// Returns an engine without slots.
    pub fn new(decoder: &'a Decoder) -> Self {
        Self::with_workspace(decoder, Workspace::new())
    }

    /// As [`Engine::new`], with existing buffers.
    pub fn with_workspace(decoder: &'a Decoder, work: Workspace) -> Self {
        Self { decoder, work, cache: decoder.new_cache(), slots: Vec::new() }
    }

    /// Returns the buffers.
    pub fn into_workspace(self) -> Workspace {
        self.work
    }

    /// Reserves `tokens` over all slots, so that slots opened later need no new buffers.
    pub fn reserve(&mut self, tokens: usize) {
        self.cache.reserve(tokens);
    }

    /// Opens a slot of `capacity` tokens. The slot grows if a sequence needs more.
    pub fn open(&mut self, capacity: usize, lora: Option<Arc<dyn LoraSource + 'a>>) -> SlotId {
        let id = self.cache.add(capacity);
        self.slots.push(Slot { id, lora, read: Vec::new(), sequence: None });
        id
    }

    /// Closes a slot and frees its keys and values. Returns its sequence, finished or not.
    ///
    /// # Panics
    /// If the slot is not open.
    pub fn close(&mut self, slot: SlotId) -> Option<Sequence> {
        let index = self.index(slot);
        self.cache.remove(slot);
        self.slots.remove(index).sequence
    }

    /// Puts `sequence` into a slot and replaces the sequence there. Keys and values of their common prefix
    /// stay. Returns the length of that prefix in tokens.
    ///
    /// # Errors
    /// If an id is outside the vocabulary.
    ///
    /// # Panics
    /// If the slot is not open.
    pub fn start(&mut self, slot: SlotId, sequence: Sequence) -> Result<usize, GenerateError> {
        self.decoder.check_ids(sequence.ids())?;
        let index = self.index(slot);
        let running = &mut self.slots[index];
        let shared = running.shared_prefix(sequence.ids());
        running.read.truncate(shared);
        running.sequence = Some(sequence);
        self.cache.truncate(slot, shared);
        Ok(shared)
    }

    /// Returns the sequence in a slot.
    ///
    /// # Panics
    /// If the slot is not open.
    pub fn sequence(&self, slot: SlotId) -> Option<&Sequence> {
        self.slots[self.index(slot)].sequence.as_ref()
    }

    /// Takes the sequence out of a slot, finished or not. The slot stays open with its keys and values.
    ///
    /// # Panics
    /// If the slot is not open.
    pub fn take(&mut self, slot: SlotId) -> Option<Sequence> {
        let index = self.index(slot);
        self.slots[index].sequence.take()
    }

    /// Returns whether no sequence has tokens to read.
    pub fn is_idle(&self) -> bool {
        self.slots.iter().all(|slot| slot.next_ids().is_none())
    }

    /// Advances every unfinished sequence. Returns the sequences that got a token or ended.
    ///
    /// # Errors
    /// If the model cannot run. The error of a single sequence is in its [`StepOutput`].
    pub fn step(&mut self) -> Result<Vec<StepOutput>, GenerateError> {
        let mut outputs = Vec::new();
        // Both lists are made first: a prompt that is completed in this step is decoded in the next.
        let (prompts, generated): (Vec<usize>, Vec<usize>) = (0..self.slots.len())
            .filter(|&i| self.slots[i].next_ids().is_some())
            .partition(|&i| self.slots[i].is_in_prompt());
        self.run(&generated, usize::MAX, &mut outputs)?;
        self.run(&prompts, MAX_PREFILL_TOKENS, &mut outputs)?;
        Ok(outputs)
    }

    /// Reads up to `max_tokens` tokens of these slots. Either all of them are in their prompts, or none is.
    fn run(
        &mut self,
        chosen: &[usize],
        max_tokens: usize,
        outputs: &mut Vec<StepOutput>,
    ) -> Result<(), GenerateError> {
        let mut left = max_tokens;
        let mut pieces: Vec<(usize, usize)> = Vec::new();
        for &i in chosen {
            let tokens = self.slots[i].next_ids().map_or(0, <[u32]>::len).min(left);
            if tokens > 0 {
                left -= tokens;
                self.slots[i].make_room(&mut self.cache, tokens);
                pieces.push((i, tokens));
            }
        }
        if pieces.is_empty() {
            return Ok(());
        }
        // Adjacent slots with the same adapter share its matrix multiplications.
        pieces.sort_by_key(|&(i, _)| self.slots[i].lora.as_ref().map(|lora| Arc::as_ptr(lora).cast::<()>()));
        let inputs: Vec<SlotInput<'_>> =
            pieces.iter().map(|&(i, tokens)| self.slots[i].input(tokens)).collect();
        let (work, cache) = (&mut self.work, &mut self.cache);
        let logits = match self.slots[pieces[0].0].is_in_prompt() {
            true => self.decoder.prefill(work, cache, &inputs)?,
            false => self.decoder.decode(work, cache, &inputs)?,
        };
        let mut rows = logits.chunks(self.decoder.config().vocab_size);
        for (i, tokens) in pieces {
            if self.slots[i].advance(tokens) {
                let row = rows.next().expect("a row of logits for every input that wants them");
                let Slot { id, sequence, .. } = &mut self.slots[i];
                let step = sequence.as_mut().expect("a slot that was read has a sequence").push(row);
                outputs.push(StepOutput { slot: *id, step });
            }
        }
        Ok(())
    }

    fn index(&self, slot: SlotId) -> usize {
        self.slots.iter().position(|open| open.id == slot).expect("an open slot")
    }
}

impl Slot<'_> {
    /// Returns how many leading tokens of `ids` are in the cache, without the last: its logits must be
    /// computed.
    fn shared_prefix(&self, ids: &[u32]) -> usize {
        let shared = self.read.iter().zip(ids).take_while(|(read, id)| read == id).count();
        shared.min(ids.len().saturating_sub(1))
    }

    /// Returns the tokens to read next: the rest of the prompt, or one generated token.
    fn next_ids(&self) -> Option<&[u32]> {
        let sequence = self.sequence.as_ref().filter(|sequence| sequence.stop().is_none())?;
        let (start, prompt) = (self.read.len(), sequence.prompt_len());
        let end = if start < prompt { prompt } else { sequence.ids().len().min(start + 1) };
        (start < end).then(|| &sequence.ids()[start..end])
    }

    fn is_in_prompt(&self) -> bool {
        self.sequence.as_ref().is_some_and(|sequence| self.read.len() < sequence.prompt_len())
    }

    /// Returns the next `tokens` tokens as input. Logits are requested if they complete the sequence.
    fn input(&self, tokens: usize) -> SlotInput<'_> {
        let ids = &self.next_ids().unwrap_or_default()[..tokens];
        let len = self.sequence.as_ref().map_or(0, |sequence| sequence.ids().len());
        SlotInput {
            slot: self.id,
            ids,
            lora: self.lora.as_deref().map(|lora| lora as _),
            wants_logits: self.read.len() + tokens == len,
        }
    }

    /// Counts tokens as read. Returns whether they complete the sequence.
    fn advance(&mut self, tokens: usize) -> bool {
        let ids = self.sequence.as_ref().map_or(&[][..], Sequence::ids);
        let start = self.read.len();
        self.read.extend_from_slice(&ids[start..start + tokens]);
        self.read.len() == ids.len()
    }

    /// Grows the slot for `tokens` more tokens. At most, its size doubles, so that long sequences seldom
    /// move.
    fn make_room(&self, cache: &mut KvCache, tokens: usize) {
        let (needed, capacity) = (self.read.len() + tokens, cache.capacity(self.id));
        if needed > capacity {
            let most = self.sequence.as_ref().map_or(needed, |sequence| sequence.rules().max_context_tokens);
            cache.grow(self.id, needed.max(most.min(2 * capacity)));
        }
    }
}
