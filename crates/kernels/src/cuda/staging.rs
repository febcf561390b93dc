//! Copies between host and device through a ring of page-locked memory.
//!
//! The device reads page-locked memory asynchronously. An upload therefore returns as soon as its bytes are
//! in the ring.

use std::ptr;

use super::device::DevicePtr;
use super::driver::{Driver, Handle};
use super::error::CudaError;

const SLOTS: usize = 8;
/// Bytes of one slot of the ring. The ring is small, because page-locking takes half a second per GiB.
const SLOT_BYTES: usize = 2 << 20;

/// The ring. A slot can be reused after the event of its last copy has occurred.
pub(super) struct Staging {
    memory: *mut u8,
    events: [Handle; SLOTS],
    next: usize,
}

impl Staging {
    pub fn new(driver: &Driver) -> Result<Self, CudaError> {
        let memory = driver.allocate_host(SLOTS * SLOT_BYTES)?;
        let mut events = [ptr::null_mut(); SLOTS];
        for event in &mut events {
            *event = driver.create_event()?;
        }
        Ok(Self { memory, events, next: 0 })
    }

    /// Blocks until the last copy of the next slot has finished. Returns the slot's memory and its event.
    fn slot(&mut self, driver: &Driver) -> Result<(*mut u8, Handle), CudaError> {
        let slot = self.next;
        self.next = (slot + 1) % SLOTS;
        driver.synchronize_event(self.events[slot])?;
        // SAFETY: the slot is inside the ring.
        Ok((unsafe { self.memory.add(slot * SLOT_BYTES) }, self.events[slot]))
    }

    /// Copies `bytes` to the device, in stream order. The caller may change `bytes` as soon as this function
    /// returns.
    pub fn upload(
        &mut self,
        driver: &Driver,
        stream: Handle,
        to: DevicePtr,
        bytes: &[u8],
    ) -> Result<(), CudaError> {
        let mut at = to;
        for part in bytes.chunks(SLOT_BYTES) {
            let (memory, event) = self.slot(driver)?;
            // SAFETY: the slot is free and long enough. `event` is recorded after the copy, and the slot is
            // not reused before this event occurs.
            unsafe {
                ptr::copy_nonoverlapping(part.as_ptr(), memory, part.len());
                driver.copy_to_device(at.0, memory, part.len(), stream)?;
            }
            driver.record_event(event, stream)?;
            at = at.plus(part.len());
        }
        Ok(())
    }

    /// Copies from the device after all earlier work of the stream has finished.
    pub fn download(
        &mut self,
        driver: &Driver,
        stream: Handle,
        to: &mut [u8],
        from: DevicePtr,
    ) -> Result<(), CudaError> {
        let mut at = from;
        for part in to.chunks_mut(SLOT_BYTES) {
            let (memory, _) = self.slot(driver)?;
            // SAFETY: the slot is free and long enough, and the stream is synchronised before the host reads
            // the slot.
            unsafe {
                driver.copy_to_host(memory, at.0, part.len(), stream)?;
                driver.synchronize(stream)?;
                ptr::copy_nonoverlapping(memory, part.as_mut_ptr(), part.len());
            }
            at = at.plus(part.len());
        }
        Ok(())
    }

    /// Frees the ring. The stream must have run all copies.
    pub fn release(&mut self, driver: &Driver) {
        // SAFETY: the device is being closed, and no copy is pending.
        unsafe {
            for event in self.events {
                driver.destroy_event(event);
            }
            driver.free_host(self.memory);
        }
    }
}
