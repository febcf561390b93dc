//! Memory for the keys and values of jobs, and of retained prompts.
//!
//! A slot holds the keys and values of one sequence. When a request has ended, the slot with its prompt is
//! retained. A later request with the same adapter version takes over the slot if its prompt continues the
//! retained prompt. If only a prefix is equal, the request copies the prefix. Keys and values from decoding
//! are not retained, because they are rounded differently from prefill and would change later replies.

use std::sync::Arc;

use danlu_model::{Decoder, LoraSource, SlotId};

use super::GenerationId;
use crate::{Engine, Sequence};

/// Number of tokens per page. The capacity of a slot is a multiple of this number.
pub(super) const PAGE_TOKENS: usize = 16;

/// Keys and values of a prompt whose request has ended.
struct Retained {
    slot: SlotId,
    generation: Option<GenerationId>,
    /// Value of [`KvMemory::clock`] at the last use.
    used: u64,
}

/// A slot whose first `tokens` tokens equal the start of a new prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CachedPrefix {
    pub slot: SlotId,
    pub tokens: usize,
    /// Whether a request can take over this slot instead of copying the prefix. This requires that the slot
    /// is retained, and has at most one token after the prefix.
    is_whole: bool,
}

/// The engine with its slots, and the list of retained slots.
pub(super) struct KvMemory {
    pub engine: Engine<'static, Arc<Decoder>>,
    /// Maximum number of tokens of all slots together.
    pub total: usize,
    retained: Vec<Retained>,
    /// Number of uses of retained slots so far.
    clock: u64,
}

pub(super) fn whole_pages(tokens: usize) -> usize {
    tokens.next_multiple_of(PAGE_TOKENS)
}

impl KvMemory {
    pub fn new(decoder: Arc<Decoder>, total: usize) -> Self {
        let mut engine = Engine::new(decoder);
        engine.reserve(total);
        Self { engine, total, retained: Vec::new(), clock: 0 }
    }

    /// Returns the capacity of all slots together, in tokens.
    pub fn used(&self) -> usize {
        self.engine.cache().capacities()
    }

    /// Returns the capacity of the retained slots, in tokens.
    pub fn retained_tokens(&self) -> usize {
        self.retained.iter().map(|kept| self.engine.cache().capacity(kept.slot)).sum()
    }

    /// Returns the number of tokens that are free or in retained slots.
    pub fn available(&self) -> usize {
        self.total - self.used() + self.retained_tokens()
    }

    /// Returns the retained slot that shares the longest prefix with `ids`, if any prefix is shared.
    pub fn find(&self, generation: Option<GenerationId>, ids: &[u32]) -> Option<CachedPrefix> {
        let same = self.retained.iter().filter(|kept| kept.generation == generation);
        let prefixes = same.map(|kept| {
            let cached = self.engine.prompt_read(kept.slot);
            let tokens = common_prefix(cached, ids);
            CachedPrefix { slot: kept.slot, tokens, is_whole: tokens + 1 >= cached.len() }
        });
        prefixes.filter(|prefix| prefix.tokens > 0).max_by_key(|prefix| (prefix.tokens, prefix.is_whole))
    }

    /// Returns the common prefix of `ids` and the prompt tokens in a job's slot.
    pub fn prefix_of_job(&self, slot: SlotId, ids: &[u32]) -> CachedPrefix {
        let tokens = common_prefix(self.engine.prompt_read(slot), ids);
        CachedPrefix { slot, tokens, is_whole: false }
    }

    /// Frees retained slots until `tokens` tokens are free, the least recently used slot first. Never frees
    /// the slot `except`. If there would still be too few free tokens, frees nothing and returns `false`.
    pub fn make_room(&mut self, tokens: usize, except: Option<SlotId>) -> bool {
        let free = self.total.saturating_sub(self.used());
        let kept = |slot: SlotId| self.engine.cache().capacity(slot);
        let evictable = self.retained.iter().filter(|kept| Some(kept.slot) != except);
        if free + evictable.map(|retained| kept(retained.slot)).sum::<usize>() < tokens {
            return false;
        }
        while self.total.saturating_sub(self.used()) < tokens {
            let oldest = (0..self.retained.len())
                .filter(|&i| Some(self.retained[i].slot) != except)
                .min_by_key(|&i| self.retained[i].used);
            let Some(oldest) = oldest else { return false };
            self.engine.close(self.retained.swap_remove(oldest).slot);
        }
        true
    }

    /// Returns a slot that begins with `prefix` and has room for `capacity` tokens. Returns `None` if there
    /// is no room.
    pub fn open(
        &mut self,
        capacity: usize,
        prefix: Option<CachedPrefix>,
        lora: Option<Arc<dyn LoraSource>>,
    ) -> Option<SlotId> {
        let Some(prefix) = prefix else {
            return self.make_room(capacity, None).then(|| self.engine.open(capacity, lora));
        };
        if !prefix.is_whole {
            if !self.make_room(capacity, Some(prefix.slot)) {
                return None;
            }
            let slot = self.engine.open(capacity, lora);
            self.engine.copy_prefix(prefix.slot, slot, prefix.tokens);
            self.touch(prefix.slot);
            return Some(slot);
        }
        let held = self.engine.cache().capacity(prefix.slot);
        if !self.make_room(capacity.saturating_sub(held), Some(prefix.slot)) {
            return None;
        }
        self.retained.retain(|kept| kept.slot != prefix.slot);
        self.engine.cache_mut().grow(prefix.slot, capacity);
        self.engine.truncate(prefix.slot, prefix.tokens);
        self.engine.set_adapter(prefix.slot, lora);
        Some(prefix.slot)
    }

    /// Grows a slot by half of its capacity, but to at most `most` tokens. If there is no room for that,
    /// grows the slot only to `needed` tokens. Returns `false` if there is no room for `needed` tokens
    /// either.
    pub fn grow(&mut self, slot: SlotId, needed: usize, most: usize) -> bool {
        let capacity = self.engine.cache().capacity(slot);
        if needed <= capacity {
            return true;
        }
        let ample = whole_pages((capacity + capacity / 2).min(most).max(needed));
        for wanted in [ample, whole_pages(needed)] {
            if self.make_room(wanted - capacity, None) {
                self.engine.cache_mut().grow(slot, wanted);
                return true;
            }
        }
        false
    }

    /// Removes the sequence from a slot and returns it. If `retain` is true, the keys and values of the
    /// prompt are retained, with two exceptions: the prompt is shorter than a page ([`PAGE_TOKENS`]), or
    /// another retained slot contains it.
    pub fn release(&mut self, slot: SlotId, generation: Option<GenerationId>, retain: bool) -> Sequence {
        let len = self.engine.prompt_read(slot).len();
        let tokens = self.engine.prompt_read(slot).to_vec();
        if !retain || len < PAGE_TOKENS || self.is_covered(generation, &tokens) {
            return self.close(slot);
        }
        let is_prefix = |&other: &SlotId| tokens.starts_with(self.engine.prompt_read(other));
        let covered: Vec<SlotId> = self.retained_of(generation).filter(is_prefix).collect();
        for other in covered {
            self.retained.retain(|kept| kept.slot != other);
            self.engine.close(other);
        }
        self.engine.truncate(slot, len);
        self.engine.set_adapter(slot, None);
        self.engine.cache_mut().shrink(slot, whole_pages(len));
        self.clock += 1;
        self.retained.push(Retained { slot, generation, used: self.clock });
        self.engine.take(slot).expect("the slot of a job has its sequence")
    }

    pub fn close(&mut self, slot: SlotId) -> Sequence {
        self.engine.close(slot).expect("the slot of a job has its sequence")
    }

    /// Returns whether a retained slot begins with these tokens, and marks that slot as recently used.
    fn is_covered(&mut self, generation: Option<GenerationId>, tokens: &[u32]) -> bool {
        let covers = |&slot: &SlotId| self.engine.prompt_read(slot).starts_with(tokens);
        let covering = self.retained_of(generation).find(covers);
        covering.inspect(|&slot| self.touch(slot)).is_some()
    }

    fn retained_of(&self, generation: Option<GenerationId>) -> impl Iterator<Item = SlotId> + '_ {
        self.retained.iter().filter(move |kept| kept.generation == generation).map(|kept| kept.slot)
    }

    /// Marks a retained slot as recently used.
    fn touch(&mut self, slot: SlotId) {
        self.clock += 1;
        let clock = self.clock;
        let kept = self.retained.iter_mut().find(|kept| kept.slot == slot);
        kept.into_iter().for_each(|kept| kept.used = clock);
    }
}

/// Returns the number of leading tokens that `cached` and `ids` have in common. The last token of `ids` is
/// not counted: it must be read again to get its logits.
fn common_prefix(cached: &[u32], ids: &[u32]) -> usize {
    let common = cached.iter().zip(ids).take_while(|(cached, id)| cached == id).count();
    common.min(ids.len().saturating_sub(1))
}
