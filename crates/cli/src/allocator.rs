//! Settings of the allocator, and the error for a failed allocation.
//!
//! A memory plan is valid only if freed memory is returned to the system.

use std::alloc::{GlobalAlloc, Layout, System};

use crate::bus_error;

#[global_allocator]
static ALLOCATOR: ReportingAllocator = ReportingAllocator;

/// The system's allocator. A failed allocation prints an error and exits with code 1; by default it aborts.
struct ReportingAllocator;

// SAFETY: every method calls the same method of `System` and returns its result.
unsafe impl GlobalAlloc for ReportingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `alloc`.
        checked(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        checked(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `realloc`.
        checked(unsafe { System.realloc(block, layout, size) }, size)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(block, layout) }
    }
}

fn checked(block: *mut u8, size: usize) -> *mut u8 {
    if block.is_null() {
        exit_out_of_memory(size);
    }
    block
}

/// Prints the error without allocating, and exits.
#[cold]
fn exit_out_of_memory(size: usize) -> ! {
    let mut digits = [0; 20];
    for part in [
        b"\nerror: cannot allocate ".as_slice(),
        decimal(size, &mut digits),
        b" bytes: the memory of this process is used up\n\nhint: raise its limit (`ulimit -v`, the container's), or use \
          a smaller model, batch or context; what was saved before is whole\n",
    ] {
        bus_error::write(part);
    }
    signal_hook::low_level::exit(1)
}

/// Writes a number into `digits` and returns the written part.
fn decimal(mut number: usize, digits: &mut [u8; 20]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &digits[at..];
        }
    }
}

/// glibc maps blocks of at least this size on their own, and unmaps them when they are freed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE: i32 = 1 << 20;

/// Fixes the size from which glibc maps blocks on their own, and limits it to one arena.
///
/// By default glibc raises that size to the largest block freed so far, up to 32 MiB. After the 17 MB text of
/// a tokenizer, every smaller work buffer would come from the heap, and the holes of freed buffers would stay
/// there. glibc also reserves 64 MiB of addresses for every thread, which `prlimit --as` counts. Kernel
/// threads allocate almost nothing, so they share the first arena.
pub fn configure() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn mallopt(param: i32, value: i32) -> i32;
        }
        const M_MMAP_THRESHOLD: i32 = -3;
        const M_ARENA_MAX: i32 = -8;
        for (param, value) in [(M_MMAP_THRESHOLD, LARGE), (M_ARENA_MAX, 1)] {
            // SAFETY: glibc's `mallopt` has this signature. No other thread runs yet. A failed call changes
            // nothing.
            unsafe { mallopt(param, value) };
        }
    }
}

/// Returns free pages inside the heap to the system, so that a measurement counts memory in use only. Reading
/// a tokenizer of 128,256 tokens leaves 60 MB of holes.
pub fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> i32;
        }
        // SAFETY: glibc's `malloc_trim` has this signature, and changes only free memory.
        unsafe { malloc_trim(0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_written_in_decimal() {
        for number in [0, 7, 1_234_567_890, usize::MAX] {
            assert_eq!(decimal(number, &mut [0; 20]), number.to_string().as_bytes());
        }
    }
}
