//! Runs many sequences on one model. Each sequence has its own slot, and optionally its own adapter.
//!
//! To read a token means to compute its keys and values. A slot holds the keys and values of its tokens.
//!
//! ```text
//! open ──► start ──► step, step, … ──► take ──► start (another sequence; a common prefix is not read again)
//!                                       └─────► close
//! ```
//!
//! Slots are opened and closed between steps. One [`Engine::step`] decodes one token for each sequence whose
//! prompt has been read. For the other sequences, the step reads the next tokens of their prompts.

use std::borrow::Borrow;
use std::sync::{Arc, Mutex, PoisonError};

use danlu_kernels::Backend;
use danlu_model::{Decoder, KvCache, LoraSource, SlotId, SlotInput, Workspace};

use crate::{GenerateError, Sequence, TokenStep};

/// Maximum number of prompt tokens per step, in all slots together. The limit keeps the activations small
/// enough for the processor's cache. The limit also keeps a long prompt from delaying other sequences.
const MAX_PREFILL_TOKENS: usize = 512;

/// Minimum number of logits in a task for another thread. Starting a thread takes about as long as choosing a
/// token from this many logits.
const MIN_TASK_LOGITS: usize = 1 << 15;

/// Runs sequences on one decoder. `D` is a reference to the decoder, or an `Arc`.
pub struct Engine<'a, D: Borrow<Decoder> = &'a Decoder> {
    decoder: D,
    work: Workspace,
    cache: KvCache,
    /// The open slots, in the order in which they were opened.
    slots: Vec<Slot<'a>>,
}

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
    /// The new token or the end of the sequence, or an error if no token could be chosen.
    pub step: Result<TokenStep, GenerateError>,
}

impl<'a, D: Borrow<Decoder>> Engine<'a, D> {
    /// Returns an engine without slots.
    pub fn new(decoder: D) -> Self {
        Self::with_workspace(decoder, Workspace::new())
    }

    /// Returns an engine without slots that uses the buffers of `work`.
    pub fn with_workspace(decoder: D, work: Workspace) -> Self {
        let cache = decoder.borrow().new_cache();
        Self { decoder, work, cache, slots: Vec::new() }
    }

    pub(crate) fn decoder(&self) -> &Decoder {
        self.decoder.borrow()
    }

    pub(crate) fn cache(&self) -> &KvCache {
        &self.cache
    }

    pub(crate) fn cache_mut(&mut self) -> &mut KvCache {
        &mut self.cache
    }

    /// Returns the engine's buffers for another use.
    pub fn into_workspace(self) -> Workspace {
        self.work
    }

    /// Reserves memory for `tokens` tokens in all slots together, so that slots opened later need no new
    /// buffers.
    pub fn reserve(&mut self, tokens: usize) {
        self.cache.reserve(tokens);
    }

    /// Opens a slot with room for `capacity` tokens. The slot grows if a sequence needs more.
    pub fn open(&mut self, capacity: usize, lora: Option<Arc<dyn LoraSource + 'a>>) -> SlotId {
        let id = self.cache.add(capacity);
        self.slots.push(Slot { id, lora, read: Vec::new(), sequence: None });
        id
    }

    /// Closes a slot and frees its keys and values. Returns its sequence, which may be unfinished.
    ///
    /// # Panics
    /// If the slot is not open.
    pub fn close(&mut self, slot: SlotId) -> Option<Sequence> {
        let index = self.index(slot);
        self.cache.remove(slot);
        self.slots.remove(index).sequence
    }

    /// Puts `sequence` into a slot, in place of the previous sequence. If the two sequences have a common
    /// prefix, its keys and values are reused. Returns the length of this prefix in tokens.
    ///
    /// # Errors
    /// If an id is outside the vocabulary.
    ///
    /// # Panics
    /// If the slot is not open.
    pub fn start(&mut self, slot: SlotId, sequence: Sequence) -> Result<usize, GenerateError> {
        self.decoder().check_ids(sequence.ids())?;
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

    /// Removes the sequence from a slot and returns it, even if it is unfinished. The slot stays open and
    /// retains its keys and values.
    ///
    /// # Panics
    /// If the slot is not open.
    pub fn take(&mut self, slot: SlotId) -> Option<Sequence> {
        let index = self.index(slot);
        self.slots[index].sequence.take()
    }

    /// Replaces the adapter of a slot, but not the keys and values. If `lora` has different matrices than the
    /// previous adapter, the caller must remove the slot's tokens before the next sequence runs.
    pub(crate) fn set_adapter(&mut self, slot: SlotId, lora: Option<Arc<dyn LoraSource + 'a>>) {
        let index = self.index(slot);
        self.slots[index].lora = lora;
    }

    /// Returns the tokens of a slot that prefill has read. Tokens that were read one by one while decoding
    /// are left out.
    pub(crate) fn prompt_read(&self, slot: SlotId) -> &[u32] {
        let slot = &self.slots[self.index(slot)];
        let prompt = slot.sequence.as_ref().map_or(usize::MAX, Sequence::prompt_len);
        &slot.read[..slot.read.len().min(prompt)]
    }

    /// Removes all tokens of a slot from index `len` on.
    pub(crate) fn truncate(&mut self, slot: SlotId, len: usize) {
        let index = self.index(slot);
        self.slots[index].read.truncate(len);
        self.cache.truncate(slot, len);
    }

    /// Replaces the tokens of slot `to` by the first `tokens` tokens of slot `from`. The adapters of both
    /// slots must have the same matrices.
    pub(crate) fn copy_prefix(&mut self, from: SlotId, to: SlotId, tokens: usize) {
        let (source, target) = (self.index(from), self.index(to));
        self.slots[target].read = self.slots[source].read[..tokens].to_vec();
        self.cache.copy_prefix(from, to, tokens);
    }

    /// Returns the number of tokens that the slot can read next: the rest of its prompt, or one generated
    /// token.
    pub(crate) fn next_tokens(&self, slot: SlotId) -> usize {
        self.slots[self.index(slot)].next_ids().map_or(0, <[u32]>::len)
    }

    pub(crate) fn is_in_prompt(&self, slot: SlotId) -> bool {
        self.slots[self.index(slot)].is_in_prompt()
    }

    /// Returns whether no sequence has more tokens to read.
    pub fn is_idle(&self) -> bool {
        self.slots.iter().all(|slot| slot.next_ids().is_none())
    }

    /// Runs one step for the unfinished sequences. A prompt that exceeds the limit of prompt tokens is
    /// continued in later steps. Returns an output for each sequence that got a token or ended.
    ///
    /// # Errors
    /// If the model cannot run. The error of a single sequence is in its [`StepOutput`].
    pub fn step(&mut self) -> Result<Vec<StepOutput>, GenerateError> {
        let mut left = MAX_PREFILL_TOKENS;
        let mut work = Vec::new();
        for slot in &self.slots {
            let tokens = slot.next_ids().map_or(0, <[u32]>::len);
            let taken = if slot.is_in_prompt() { tokens.min(left) } else { tokens };
            left -= if slot.is_in_prompt() { taken } else { 0 };
            if taken > 0 {
                slot.make_room(&mut self.cache, taken);
                work.push((slot.id, taken));
            }
        }
        self.step_slots(&work)
    }

    /// Reads the next tokens of some slots. Each element of `work` is a slot and its number of tokens. The
    /// slots must have room for these tokens.
    ///
    /// # Errors
    /// As for [`Engine::step`].
    pub(crate) fn step_slots(&mut self, work: &[(SlotId, usize)]) -> Result<Vec<StepOutput>, GenerateError> {
        let mut outputs = Vec::new();
        // Both lists are built before the model runs. A sequence whose prompt ends in this step therefore
        // decodes only from the next step on.
        let pieces = work.iter().map(|&(slot, tokens)| (self.index(slot), tokens));
        let (prompts, generated): (Vec<_>, Vec<_>) = pieces.partition(|&(i, _)| self.slots[i].is_in_prompt());
        self.run(generated, &mut outputs)?;
        self.run(prompts, &mut outputs)?;
        Ok(outputs)
    }

    /// Reads the next tokens of slots. Each element of `pieces` contains the index of a slot and a number of
    /// tokens. Either all of these slots still read their prompts, or none does.
    fn run(
        &mut self,
        mut pieces: Vec<(usize, usize)>,
        outputs: &mut Vec<StepOutput>,
    ) -> Result<(), GenerateError> {
        if pieces.is_empty() {
            return Ok(());
        }
        // Slots are sorted by adapter, because adjacent slots with the same adapter share one matrix
        // multiplication.
        pieces.sort_by_key(|&(i, _)| self.slots[i].lora.as_ref().map(|lora| Arc::as_ptr(lora).cast::<()>()));
        let inputs: Vec<SlotInput<'_>> =
            pieces.iter().map(|&(i, tokens)| self.slots[i].input(tokens)).collect();
        let (work, cache, decoder) = (&mut self.work, &mut self.cache, self.decoder.borrow());
        let mut logits = match self.slots[pieces[0].0].is_in_prompt() {
            true => decoder.prefill(work, cache, &inputs)?,
            false => decoder.decode(work, cache, &inputs)?,
        };
        let mut rows = logits.chunks_mut(decoder.config().vocab_size);
        let mut choices = Vec::new();
        for (i, tokens) in pieces {
            if self.slots[i].advance(tokens) {
                let row = rows.next().expect("a row of logits for every input that wants them");
                let sequence = self.slots[i].sequence.take().expect("a slot that was read has a sequence");
                choices.push(TokenChoice { index: i, sequence, row, step: None });
            }
        }
        choose_tokens(&mut choices, &**self.decoder.borrow().backend());
        for TokenChoice { index, sequence, step, .. } in choices {
            let slot = &mut self.slots[index];
            slot.sequence = Some(sequence);
            outputs.push(StepOutput { slot: slot.id, step: step.expect("each choice was made") });
        }
        self.work.recycle_logits(logits);
        Ok(())
    }

    fn index(&self, slot: SlotId) -> usize {
        self.slots.iter().position(|open| open.id == slot).expect("an open slot")
    }
}

/// A sequence whose next token is chosen from `row`, a row of logits.
struct TokenChoice<'r> {
    /// Index of the sequence's slot.
    index: usize,
    sequence: Sequence,
    row: &'r mut [f32],
    step: Option<Result<TokenStep, GenerateError>>,
}

/// Chooses the next token of every sequence. For a large vocabulary, several threads of the back end share
/// the work, because a choice takes a considerable part of a step.
fn choose_tokens(choices: &mut [TokenChoice<'_>], backend: &dyn Backend) {
    let Some(first) = choices.first() else { return };
    let per_task = MIN_TASK_LOGITS.div_ceil(first.row.len().max(1));
    let tasks: Vec<Mutex<&mut [TokenChoice<'_>]>> = choices.chunks_mut(per_task).map(Mutex::new).collect();
    backend.run_host_tasks(tasks.len(), &|task| {
        // Only one thread runs a task, so no lock is taken twice.
        for choice in tasks[task].lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
            choice.step = Some(choice.sequence.push(choice.row));
        }
    });
}

impl Slot<'_> {
    /// Returns the number of leading tokens of `ids` that are in the cache. The last token of `ids` is not
    /// counted: it must be read again to get its logits.
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

    /// Returns the next `tokens` tokens as input of the model. Requests logits only if these are the last
    /// tokens of the sequence.
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

    /// Records that the next `tokens` tokens were read. Returns whether the whole sequence has been read.
    fn advance(&mut self, tokens: usize) -> bool {
        let ids = self.sequence.as_ref().map_or(&[][..], Sequence::ids);
        let start = self.read.len();
        self.read.extend_from_slice(&ids[start..start + tokens]);
        self.read.len() == ids.len()
    }

    /// Grows the slot for `tokens` more tokens. The capacity doubles, up to the maximum of the sequence, so
    /// that a long sequence is rarely copied.
    fn make_room(&self, cache: &mut KvCache, tokens: usize) {
        let (needed, capacity) = (self.read.len() + tokens, cache.capacity(self.id));
        if needed > capacity {
            let most = self.sequence.as_ref().map_or(needed, |sequence| sequence.rules().max_context_tokens);
            cache.grow(self.id, needed.max(most.min(2 * capacity)));
        }
    }
}
