//! Keys and values of several sequences, with one slot per sequence.
//!
//! All slots of a layer are in one buffer, so that one attention call can read every sequence of a pass. A
//! slot is a range of rows of that buffer:
//!
//! ```text
//! rows    0        9      14            30      40
//!         | slot 0 | free | slot 2      | slot 1 |
//! ```
//!
//! Slots can be added, grown and removed independently. A slot that cannot grow in place moves to a free
//! range. If no free range is long enough, new buffers replace the old buffers, and all slots are copied to
//! them without gaps. The new buffers are larger if the old buffers had too few free rows in total.

use std::sync::Arc;

use danlu_kernels::{Backend, Buffer, Element};

use crate::ModelConfig;

/// Id of a slot of a [`KvCache`]. After a slot is removed, a new slot may get the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(usize);

/// The rows of one slot, and the number of rows that contain a token.
#[derive(Clone, Copy, Debug)]
struct Extent {
    start: usize,
    capacity: usize,
    len: usize,
}

/// Rotated keys, and values, of several sequences. The buffers of a layer have the shape `(rows, KH · HS)`.
#[derive(Debug)]
pub struct KvCache {
    backend: Arc<dyn Backend>,
    pub(crate) keys: Vec<Buffer>,
    pub(crate) values: Vec<Buffer>,
    /// `KH · HS`.
    width: usize,
    /// Number of rows of every buffer.
    rows: usize,
    /// Indexed by [`SlotId`].
    slots: Vec<Option<Extent>>,
    /// Indexed by [`SlotId`]. `None` unless the rotary frequencies depend on the length of a sequence.
    rotations: Option<Vec<SlotRotation>>,
}

/// The length that determined the rotary frequencies of a slot, and the tokens to recompute if the length
/// changes.
#[derive(Clone, Debug, Default)]
struct SlotRotation {
    length: usize,
    ids: Vec<u32>,
}

impl KvCache {
    /// Returns a cache without slots.
    pub fn new(config: &ModelConfig, backend: Arc<dyn Backend>) -> Self {
        let buffers =
            || (0..config.num_hidden_layers).map(|_| backend.alloc(0, Element::Activation)).collect();
        let (keys, values) = (buffers(), buffers());
        let width = config.num_key_value_heads * config.head_dim;
        let rotations = config.rope.depends_on_length().then(Vec::new);
        Self { backend, keys, values, width, rows: 0, slots: Vec::new(), rotations }
    }

    /// Reserves memory for `tokens` tokens in total. The buffers then do not grow until the sum of all
    /// capacities exceeds this number.
    pub fn reserve(&mut self, tokens: usize) {
        if tokens > self.rows {
            self.relayout(tokens);
        }
    }

    /// Adds an empty slot for `capacity` tokens. The capacity is at least one.
    pub fn add(&mut self, capacity: usize) -> SlotId {
        // If a slot had no rows, a second slot could start at the same row. `next_start` would then overlook
        // the second slot.
        let capacity = capacity.max(1);
        let start = match self.find_gap(capacity) {
            Some(start) => start,
            None => {
                self.relayout(self.rows_for(self.capacities() + capacity));
                self.find_gap(capacity).expect("the new buffers have room behind the last slot")
            }
        };
        let extent = Some(Extent { start, capacity, len: 0 });
        let slot = match self.slots.iter().position(Option::is_none) {
            Some(free) => {
                self.slots[free] = extent;
                SlotId(free)
            }
            None => {
                self.slots.push(extent);
                SlotId(self.slots.len() - 1)
            }
        };
        if let Some(rotations) = &mut self.rotations {
            rotations.resize(self.slots.len(), SlotRotation::default());
            rotations[slot.0] = SlotRotation::default();
        }
        slot
    }

    /// Increases the capacity of a slot. If `capacity` is not larger than before, nothing changes.
    ///
    /// # Panics
    /// If the slot was removed.
    pub fn grow(&mut self, slot: SlotId, capacity: usize) {
        let extent = self.extent(slot);
        if capacity <= extent.capacity {
            return;
        }
        let grown = Extent { capacity, ..extent };
        if self.next_start(extent) - extent.start >= capacity {
            self.slots[slot.0] = Some(grown);
        } else if let Some(start) = self.find_gap(capacity) {
            self.copy_tokens(extent.start, start, extent.len);
            self.slots[slot.0] = Some(Extent { start, ..grown });
        } else {
            let rows = self.rows_for(self.capacities() - extent.capacity + capacity);
            self.slots[slot.0] = Some(grown);
            self.relayout(rows);
        }
    }

    /// Removes the tokens of a slot from position `len` on, so that a common prefix can be reused. If `len`
    /// is larger than the number of tokens, nothing changes.
    ///
    /// # Panics
    /// If the slot was removed.
    pub fn truncate(&mut self, slot: SlotId, len: usize) {
        let extent = self.extent_mut(slot);
        extent.len = extent.len.min(len);
        if let Some(rotations) = &mut self.rotations {
            rotations[slot.0].ids.truncate(len);
        }
    }

    /// Reduces the capacity of a slot, but not below its number of tokens. If `capacity` is larger than
    /// before, nothing changes.
    ///
    /// # Panics
    /// If the slot was removed.
    pub fn shrink(&mut self, slot: SlotId, capacity: usize) {
        let extent = self.extent_mut(slot);
        extent.capacity = extent.capacity.min(capacity.max(extent.len).max(1));
    }

    /// Replaces the tokens of slot `to` by the first `tokens` tokens of slot `from`.
    ///
    /// # Panics
    /// If a slot was removed, if `from` has fewer tokens, or if `to` has too little room.
    pub fn copy_prefix(&mut self, from: SlotId, to: SlotId, tokens: usize) {
        let (source, target) = (self.extent(from), self.extent(to));
        assert!(tokens <= source.len && tokens <= target.capacity, "a prefix longer than its slot");
        self.copy_tokens(source.start, target.start, tokens);
        self.extent_mut(to).len = tokens;
        if let Some(rotations) = &mut self.rotations {
            let SlotRotation { length, ids } = &rotations[from.0];
            rotations[to.0] = SlotRotation { length: *length, ids: ids[..tokens].to_vec() };
        }
    }

    /// Removes a slot and frees its rows.
    ///
    /// # Panics
    /// If the slot was already removed.
    pub fn remove(&mut self, slot: SlotId) {
        self.extent(slot);
        self.slots[slot.0] = None;
    }

    /// Returns the number of tokens in a slot.
    ///
    /// # Panics
    /// If the slot was removed.
    pub fn len(&self, slot: SlotId) -> usize {
        self.extent(slot).len
    }

    /// Returns whether the cache contains no tokens.
    pub fn is_empty(&self) -> bool {
        self.slots.iter().flatten().all(|extent| extent.len == 0)
    }

    /// Returns the capacity of a slot in tokens.
    ///
    /// # Panics
    /// If the slot was removed.
    pub fn capacity(&self, slot: SlotId) -> usize {
        self.extent(slot).capacity
    }

    /// Returns the sum of all capacities in tokens.
    pub fn capacities(&self) -> usize {
        self.slots.iter().flatten().map(|extent| extent.capacity).sum()
    }

    pub(crate) fn start(&self, slot: SlotId) -> usize {
        self.extent(slot).start
    }

    /// Adds the tokens `ids` to a slot. Their keys and values must already be written.
    pub(crate) fn advance(&mut self, slot: SlotId, ids: &[u32]) {
        self.extent_mut(slot).len += ids.len();
        if let Some(rotations) = &mut self.rotations {
            rotations[slot.0].ids.extend_from_slice(ids);
        }
    }

    /// Returns the length that determines the rotary frequencies of a slot.
    ///
    /// # Panics
    /// If the frequencies of the model do not depend on the length.
    pub(crate) fn rope_length(&self, slot: SlotId) -> usize {
        self.rotations.as_ref().expect("frequencies that depend on the length")[slot.0].length
    }

    /// Sets the length that determines the rotary frequencies of a slot. If the slot has tokens with other
    /// frequencies, empties the slot and returns these tokens.
    pub(crate) fn set_rope_length(&mut self, slot: SlotId, length: usize) -> Option<Vec<u32>> {
        let rotation = &mut self.rotations.as_mut()?[slot.0];
        if std::mem::replace(&mut rotation.length, length) == length || rotation.ids.is_empty() {
            return None;
        }
        let ids = std::mem::take(&mut rotation.ids);
        self.extent_mut(slot).len = 0;
        Some(ids)
    }

    fn extent(&self, slot: SlotId) -> Extent {
        self.slots[slot.0].expect("a slot that was not removed")
    }

    fn extent_mut(&mut self, slot: SlotId) -> &mut Extent {
        self.slots[slot.0].as_mut().expect("a slot that was not removed")
    }

    /// Returns the number of rows of new buffers for slots with `tokens` tokens in total. Buffers that grow
    /// get at least 1.5 times as many rows as before. Adding slots one by one then rarely copies the buffers.
    /// The first buffers have no spare rows.
    fn rows_for(&self, tokens: usize) -> usize {
        if tokens <= self.rows { self.rows } else { tokens.max(self.rows + self.rows / 2) }
    }

    /// Returns the row up to which `extent` can grow: the start of the next slot, or the number of rows.
    fn next_start(&self, extent: Extent) -> usize {
        let starts = self.slots.iter().flatten().map(|other| other.start);
        starts.filter(|&start| start > extent.start).min().unwrap_or(self.rows)
    }

    /// Returns the start of the first free range with at least `rows` rows.
    fn find_gap(&self, rows: usize) -> Option<usize> {
        let mut used: Vec<Extent> = self.slots.iter().flatten().copied().collect();
        used.sort_by_key(|extent| extent.start);
        let mut start = 0;
        for extent in used {
            if extent.start - start >= rows {
                return Some(start);
            }
            start = extent.start + extent.capacity;
        }
        (self.rows - start >= rows).then_some(start)
    }

    /// Copies `tokens` rows from row `from` to row `to`. The ranges may overlap.
    fn copy_tokens(&mut self, from: usize, to: usize, tokens: usize) {
        let (backend, width) = (&*self.backend, self.width);
        let mut copy = backend.alloc(tokens * width, Element::Activation);
        for buffer in self.keys.iter_mut().chain(&mut self.values) {
            backend.copy_rows(&mut copy, 0, buffer, from, tokens, width);
            backend.copy_rows(buffer, to, &copy, 0, tokens, width);
        }
    }

    /// Replaces every buffer by a buffer with `rows` rows. In the new buffers, there are no free rows between
    /// slots.
    fn relayout(&mut self, rows: usize) {
        let (backend, width) = (&*self.backend, self.width);
        let before: Vec<Extent> = self.slots.iter().flatten().copied().collect();
        let mut next = 0;
        for extent in self.slots.iter_mut().flatten() {
            extent.start = next;
            next += extent.capacity;
        }
        let after: Vec<Extent> = self.slots.iter().flatten().copied().collect();
        for buffer in self.keys.iter_mut().chain(&mut self.values) {
            let mut new = backend.alloc(rows * width, Element::Activation);
            for (from, to) in before.iter().zip(&after) {
                backend.copy_rows(&mut new, to.start, buffer, from.start, from.len, width);
            }
            *buffer = new;
        }
        self.rows = rows;
    }
}

#[cfg(test)]
mod tests {
    use danlu_kernels::Reference;
    use danlu_kernels::rng::Stream;

    use super::*;
    use crate::Preset;

    /// Writes the values `base`, `base + 1`, ... to the rows of a slot's new tokens, in every buffer.
    fn append(cache: &mut KvCache, slot: SlotId, base: usize, tokens: usize) {
        let (backend, width) = (cache.backend.clone(), cache.width);
        let row = cache.start(slot) + cache.len(slot);
        let values: Vec<f32> = (0..tokens * width).map(|i| (base + i / width) as f32).collect();
        for buffer in cache.keys.iter_mut().chain(&mut cache.values) {
            backend.write(buffer, row * width, &values);
        }
        cache.advance(slot, &vec![0; tokens]);
    }

    /// Returns the value of each token of a slot. Checks that all buffers have the same values.
    fn tokens(cache: &KvCache, slot: SlotId) -> Vec<usize> {
        let (width, start, len) = (cache.width, cache.start(slot), cache.len(slot));
        let mut all = Vec::new();
        for buffer in cache.keys.iter().chain(&cache.values) {
            let mut values = vec![0.0; len * width];
            cache.backend.read(&mut values, buffer, start * width).unwrap();
            all.push(values.chunks(width).map(|row| row[0] as usize).collect::<Vec<_>>());
        }
        assert!(all.iter().all(|found| *found == all[0]));
        all.swap_remove(0)
    }

    fn cache() -> KvCache {
        let mut config = Preset::Base8m.config();
        (config.num_hidden_layers, config.num_key_value_heads, config.head_dim) = (2, 1, 2);
        KvCache::new(&config, Arc::new(Reference::new()))
    }

    #[test]
    fn the_first_buffers_have_no_row_to_spare() {
        let mut cache = cache();
        cache.add(5);
        assert_eq!((cache.rows, cache.keys[0].len()), (5, 10));
        cache.add(1);
        assert_eq!(cache.rows, 7);
    }

    #[test]
    fn reserved_rows_are_not_replaced() {
        let mut cache = cache();
        cache.reserve(12);
        let [a, b] = [cache.add(4), cache.add(4)];
        cache.remove(a);
        cache.grow(b, 8);
        assert_eq!((cache.rows, cache.start(b), cache.capacity(b)), (12, 4, 8));
    }

    #[test]
    fn a_removed_slots_rows_are_reused() {
        let mut cache = cache();
        let [a, b, c] = [3, 4, 2].map(|capacity| cache.add(capacity));
        let rows = cache.rows;
        append(&mut cache, c, 50, 2);
        cache.remove(b);
        let d = cache.add(4);
        assert_eq!((cache.rows, cache.start(d), cache.len(d)), (rows, 3, 0));
        assert_eq!((cache.len(a), tokens(&cache, c)), (0, vec![50, 51]));
    }

    #[test]
    fn slots_keep_their_tokens_whatever_happens_to_others() {
        let mut stream = Stream::new(5);
        let mut cache = cache();
        let mut expected: Vec<(SlotId, Vec<usize>)> = Vec::new();
        for step in 0..2_000 {
            let chosen = stream.next_below(expected.len().max(1) as u64) as usize;
            match stream.next_below(8) {
                0 if expected.len() < 6 => {
                    expected.push((cache.add(stream.next_below(9) as usize), Vec::new()));
                }
                1 if !expected.is_empty() => cache.remove(expected.swap_remove(chosen).0),
                2 if !expected.is_empty() => {
                    let (slot, tokens) = &mut expected[chosen];
                    let len = stream.next_below(12) as usize;
                    cache.truncate(*slot, len);
                    tokens.truncate(len);
                }
                3 if !expected.is_empty() => {
                    cache.grow(expected[chosen].0, stream.next_below(20) as usize);
                }
                4 if !expected.is_empty() => {
                    cache.shrink(expected[chosen].0, stream.next_below(20) as usize);
                }
                5 if expected.len() > 1 => {
                    let (to, from) = (chosen, (chosen + 1) % expected.len());
                    let copied = expected[from].1.len().min(cache.capacity(expected[to].0));
                    cache.copy_prefix(expected[from].0, expected[to].0, copied);
                    expected[to].1 = expected[from].1[..copied].to_vec();
                }
                _ if !expected.is_empty() => {
                    let (slot, tokens) = &mut expected[chosen];
                    let room = cache.capacity(*slot) - cache.len(*slot);
                    let count = stream.next_below(room as u64 + 1) as usize;
                    append(&mut cache, *slot, 10 * step, count);
                    tokens.extend((0..count).map(|i| 10 * step + i));
                }
                _ => {}
            }
            for (slot, expected) in &expected {
                assert_eq!(tokens(&cache, *slot), *expected, "step {step}");
            }
            assert_eq!(cache.is_empty(), expected.iter().all(|(_, tokens)| tokens.is_empty()));
        }
    }
}
