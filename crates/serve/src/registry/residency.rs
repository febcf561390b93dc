//! Stores adapter versions in memory, and evicts versions when the memory limit is reached.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use danlu_generate::GenerationId;

use super::{Generation, SetError};

/// State of an adapter version, for display.
#[derive(Clone, Debug)]
pub(crate) struct GenerationState {
    pub id: GenerationId,
    pub aliases: Vec<String>,
    pub rank: usize,
    pub bytes: u64,
    /// Whether the version is removed from memory after its last lease is dropped.
    pub retired: bool,
    pub active_leases: usize,
}

struct Resident {
    generation: Arc<Generation>,
    last_use: u64,
}

/// Adapter versions in memory. If memory is full, the least recently used versions are evicted, except those
/// that are pinned or in use.
#[derive(Default)]
pub(crate) struct Residency {
    max_bytes: u64,
    resident: HashMap<GenerationId, Resident>,
    /// Versions that were removed, but that running requests may still use.
    retired: Vec<Weak<Generation>>,
    uses: u64,
    evictions: u64,
}

impl Residency {
    pub fn set_max_bytes(&mut self, max_bytes: u64) {
        self.max_bytes = max_bytes;
    }

    pub fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    pub fn evictions(&self) -> u64 {
        self.evictions
    }

    pub fn is_resident(&self, id: &GenerationId) -> bool {
        self.resident.contains_key(id)
    }

    /// Returns the size of all versions in memory, including retired versions that requests still use.
    pub fn bytes(&self) -> u64 {
        let retired = self.retired.iter().filter_map(Weak::upgrade).map(|generation| generation.bytes);
        self.resident.values().map(|resident| resident.generation.bytes).chain(retired).sum()
    }

    /// Returns a version, and marks it as recently used.
    pub fn get(&mut self, id: &GenerationId) -> Option<Arc<Generation>> {
        self.uses += 1;
        let resident = self.resident.get_mut(id)?;
        resident.last_use = self.uses;
        Some(Arc::clone(&resident.generation))
    }

    /// Stores a version. If a version with the same content is already stored, returns that version. If
    /// memory is full, evicts the least recently used versions, except versions in `pinned` and versions that
    /// a request uses. If the new version still does not fit, returns an error and evicts none.
    pub fn insert(
        &mut self,
        generation: Generation,
        pinned: &[GenerationId],
    ) -> Result<Arc<Generation>, SetError> {
        if let Some(stored) = self.get(&generation.id) {
            return Ok(stored);
        }
        self.retired.retain(|retired| retired.strong_count() > 0);
        let (bytes, max) = (generation.bytes, self.max_bytes);
        let is_evictable = |(id, resident): &(&GenerationId, &Resident)| {
            !pinned.contains(id) && Arc::strong_count(&resident.generation) == 1
        };
        let mut candidates: Vec<(u64, GenerationId, u64)> = self
            .resident
            .iter()
            .filter(is_evictable)
            .map(|(id, resident)| (resident.last_use, *id, resident.generation.bytes))
            .collect();
        candidates.sort_unstable_by_key(|candidate| candidate.0);
        let mut total = self.bytes() + bytes;
        let mut evicted = Vec::new();
        for (_, id, freed) in candidates {
            if total <= max {
                break;
            }
            total -= freed;
            evicted.push(id);
        }
        if total > max {
            return Err(if bytes > max {
                SetError::TooLarge { bytes, max }
            } else {
                SetError::NoRoom { bytes, max }
            });
        }
        for id in evicted {
            self.resident.remove(&id);
            self.evictions += 1;
        }
        let generation = Arc::new(generation);
        self.uses += 1;
        let resident = Resident { generation: Arc::clone(&generation), last_use: self.uses };
        self.resident.insert(generation.id, resident);
        Ok(generation)
    }

    /// Removes a version. Requests that use the version keep it in memory until they end.
    pub fn retire(&mut self, id: &GenerationId) {
        if let Some(resident) = self.resident.remove(id) {
            self.retired.retain(|retired| retired.strong_count() > 0);
            self.retired.push(Arc::downgrade(&resident.generation));
        }
    }

    /// Returns the state of every version in memory. The lists of aliases are empty until the caller fills
    /// them.
    pub fn states(&self) -> Vec<GenerationState> {
        let state = |generation: &Arc<Generation>, retired: bool| GenerationState {
            id: generation.id,
            aliases: Vec::new(),
            rank: generation.rank,
            bytes: generation.bytes,
            retired,
            // One reference is not a lease, because it belongs to the registry or, for a retired version, to
            // this function.
            active_leases: Arc::strong_count(generation) - 1,
        };
        let resident = self.resident.values().map(|resident| state(&resident.generation, false));
        let retired = self.retired.iter().filter_map(Weak::upgrade);
        resident.chain(retired.map(|generation| state(&generation, true))).collect()
    }
}
