//! A sub-allocator for device memory. It is needed because the driver allocates in units of 2 MiB, and
//! because its free function returns only when the device is idle.

use std::collections::{BTreeMap, HashMap};

use super::driver::Driver;
use super::error::CudaError;

/// Alignment of every address, which the widest memory accesses and cuBLASLt require.
const ALIGNMENT: u64 = 256;
/// Size of the units in which the driver allocates.
const PAGE: u64 = 2 << 20;
/// Size of a chunk that several small requests share.
const CHUNK: u64 = 32 << 20;

/// Returns the number of bytes that a request of `bytes` uses.
pub(super) fn allocated_bytes(bytes: u64) -> u64 {
    bytes.max(1).next_multiple_of(ALIGNMENT)
}

/// Chunks allocated from the driver, and the free ranges inside them.
#[derive(Debug, Default)]
pub(super) struct Arena {
    /// Length of each chunk, by its base address.
    chunks: BTreeMap<u64, u64>,
    /// Length of each free range, by its start address. Adjacent free ranges of a chunk are always merged.
    free: BTreeMap<u64, u64>,
    /// Length of each allocated range, by its start address.
    taken: HashMap<u64, u64>,
    in_use: u64,
    peak: u64,
}

impl Arena {
    /// Returns the bytes that are allocated now, and their peak.
    pub fn in_use(&self) -> (u64, u64) {
        (self.in_use, self.peak)
    }

    /// Allocates `bytes` bytes and returns their address.
    pub fn allocate(&mut self, driver: &Driver, bytes: u64) -> Result<u64, CudaError> {
        self.take(bytes, |length| driver.allocate(length))
    }

    fn take(
        &mut self,
        bytes: u64,
        mut get: impl FnMut(u64) -> Result<u64, CudaError>,
    ) -> Result<u64, CudaError> {
        let bytes = allocated_bytes(bytes);
        let fits = |(&address, &length): (&u64, &u64)| (length >= bytes).then_some((length, address));
        let (length, address) = match self.free.iter().filter_map(fits).min() {
            Some(best) => best,
            None => {
                let least = bytes.next_multiple_of(PAGE);
                let mut length = if bytes < CHUNK / 2 { CHUNK } else { least };
                // A nearly full device may have enough memory for the request but not for a whole chunk.
                let address = match get(length) {
                    Err(CudaError::OutOfMemory { .. }) if length > least => {
                        length = least;
                        get(least)?
                    }
                    address => address?,
                };
                self.chunks.insert(address, length);
                (length, address)
            }
        };
        self.free.remove(&address);
        if length > bytes {
            self.free.insert(address + bytes, length - bytes);
        }
        self.taken.insert(address, bytes);
        self.in_use += bytes;
        self.peak = self.peak.max(self.in_use);
        Ok(address)
    }

    /// Frees a range. If the chunk has no other allocated range, the chunk is returned to the driver.
    pub fn free(&mut self, driver: &Driver, address: u64) {
        if let Some(chunk) = self.put_back(address) {
            // SAFETY: the driver allocated the chunk, and no range of it is in use.
            unsafe { driver.free(chunk) };
        }
    }

    /// Merges a range with its free neighbours. Returns the chunk if no range of it is allocated any more.
    fn put_back(&mut self, address: u64) -> Option<u64> {
        let mut length = self.taken.remove(&address).expect("only what was handed out comes back");
        self.in_use -= length;
        let (&chunk, &chunk_length) =
            self.chunks.range(..=address).next_back().expect("a range lies in a chunk");
        let mut start = address;
        if let Some((&before, &len)) = self.free.range(chunk..address).next_back()
            && before + len == address
        {
            self.free.remove(&before);
            (start, length) = (before, length + len);
        }
        if start + length < chunk + chunk_length
            && let Some(len) = self.free.remove(&(start + length))
        {
            length += len;
        }
        if (start, length) == (chunk, chunk_length) {
            self.chunks.remove(&chunk);
            return Some(chunk);
        }
        self.free.insert(start, length);
        None
    }

    /// Returns all chunks to the driver.
    pub fn release(&mut self, driver: &Driver) {
        for &chunk in self.chunks.keys() {
            // SAFETY: the device is being closed, so nothing uses its memory.
            unsafe { driver.free(chunk) };
        }
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    #[test]
    fn ranges_are_disjoint_and_everything_comes_back() {
        let (mut arena, mut stream, mut next) = (Arena::default(), Stream::new(7), 1u64 << 32);
        let mut live: Vec<(u64, u64)> = Vec::new();
        let (mut given, mut returned) = (0, 0);
        for _ in 0..2000 {
            if live.len() > 40 || (!live.is_empty() && stream.next_below(3) == 0) {
                let (address, _) = live.swap_remove(stream.next_below(live.len() as u64) as usize);
                returned += usize::from(arena.put_back(address).is_some());
                continue;
            }
            let log2 = 1 + stream.next_below(27);
            let bytes = 1 + stream.next_below(1 << log2);
            let address = arena.take(bytes, |length| {
                next += length;
                given += 1;
                Ok(next - length)
            });
            let address = address.unwrap();
            assert!(address.is_multiple_of(ALIGNMENT));
            assert!(live.iter().all(|&(a, b)| address + bytes <= a || a + b <= address));
            live.push((address, bytes));
        }
        for (address, _) in live {
            returned += usize::from(arena.put_back(address).is_some());
        }
        assert_eq!((arena.in_use().0, arena.free.len(), given), (0, 0, returned));
    }

    #[test]
    fn a_refused_request_changes_nothing() {
        let mut arena = Arena::default();
        let error = CudaError::OutOfMemory { wanted: 1, free: 0, total: 2 };
        assert_eq!(arena.take(1, |_| Err(error.clone())), Err(error));
        assert_eq!(arena.in_use(), (0, 0));
    }

    #[test]
    fn a_small_request_fits_a_device_without_room_for_a_chunk() {
        let mut arena = Arena::default();
        let full = |length| match length {
            PAGE => Ok(PAGE),
            wanted => Err(CudaError::OutOfMemory { wanted, free: PAGE, total: 2 * PAGE }),
        };
        assert_eq!(arena.take(1, full), Ok(PAGE));
    }
}
