//! A list of the files that are memory-mapped now, for reporting an access beyond the end of a file.
//!
//! If another process shortens a mapped file, some mapped pages have no data in the file. An access to such a
//! page raises SIGBUS. A signal handler can call [`mapped_file_at`], because the function takes no lock and
//! allocates nothing.

use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// Maximum number of registered mappings. Mappings beyond this number are not registered and not found.
const MAX_MAPPINGS: usize = 1024;

static MAPPINGS: [AtomicPtr<Mapping>; MAX_MAPPINGS] =
    [const { AtomicPtr::new(ptr::null_mut()) }; MAX_MAPPINGS];

struct Mapping {
    start: usize,
    len: usize,
    path: String,
}

/// Registers a mapping until this value is dropped.
#[derive(Debug)]
pub(crate) struct Registration(Option<usize>);

impl Registration {
    pub fn new(bytes: &[u8], path: &Path) -> Self {
        let path = path.display().to_string().replace(char::is_control, "\u{fffd}");
        let mapping =
            Box::into_raw(Box::new(Mapping { start: bytes.as_ptr() as usize, len: bytes.len(), path }));
        let free = MAPPINGS.iter().position(|slot| {
            let free = slot.compare_exchange(ptr::null_mut(), mapping, Ordering::SeqCst, Ordering::SeqCst);
            free.is_ok()
        });
        if free.is_none() {
            // SAFETY: the pointer comes from `Box::into_raw`, and no slot contains it.
            drop(unsafe { Box::from_raw(mapping) });
        }
        Self(free)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // The entry of some hundred bytes is never freed, because a signal handler may be reading the entry.
        if let Some(slot) = self.0 {
            MAPPINGS[slot].store(ptr::null_mut(), Ordering::SeqCst);
        }
    }
}

/// Returns the path of the mapped file that contains `address`. A signal handler may call this function.
pub fn mapped_file_at(address: usize) -> Option<&'static str> {
    MAPPINGS.iter().find_map(|slot| {
        // SAFETY: a slot is null or points to an entry that is never freed.
        let mapping = unsafe { slot.load(Ordering::SeqCst).as_ref() }?;
        // The last page of a mapping extends beyond the end of the file.
        (mapping.start..=mapping.start + mapping.len).contains(&address).then_some(mapping.path.as_str())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_finds_its_file_while_it_is_mapped() {
        let bytes = vec![0u8; 4096];
        let address = bytes.as_ptr() as usize + 100;
        let registration = Registration::new(&bytes, Path::new("dir/a\u{1b}b.safetensors"));
        assert_eq!(mapped_file_at(address), Some("dir/a\u{fffd}b.safetensors"));
        drop(registration);
        assert_eq!(mapped_file_at(address), None);
    }
}
