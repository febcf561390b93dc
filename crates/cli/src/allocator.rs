//! Configures the allocator, and reports a failed allocation.
//!
//! Freed memory must be returned to the system. Memory that stayed in the process would add to the predicted
//! peak of a run.

use std::alloc::{GlobalAlloc, Layout, System};

use crate::bus_error;

#[global_allocator]
static ALLOCATOR: ReportingAllocator = ReportingAllocator;

/// The system's allocator with an error message. A failed allocation prints the error and exits with code 1.
/// Without this type, a failed allocation would abort the process.
struct ReportingAllocator;

// SAFETY: every method calls the same method of `System` and returns its result.
unsafe impl GlobalAlloc for ReportingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: this method and `System::alloc` have the same contract, and the caller fulfils it.
        checked(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: this method and `System::alloc_zeroed` have the same contract, and the caller fulfils it.
        checked(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: this method and `System::realloc` have the same contract, and the caller fulfils it.
        checked(unsafe { System.realloc(block, layout, size) }, size)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: this method and `System::dealloc` have the same contract, and the caller fulfils it.
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

/// Formats a number without allocating. The result is the used end of `digits`.
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

/// Size in bytes from which glibc maps a block separately from the heap. Such a block is unmapped when it is
/// freed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE: i32 = 1 << 20;

/// Fixes the size from which glibc maps a block separately from the heap, and limits glibc to one arena.
///
/// By default glibc raises this size to the largest block freed so far, up to 32 MiB. After a 17 MB tokenizer
/// file is freed, every smaller work buffer would come from the heap, which does not return freed buffers to
/// the system. By default glibc also reserves an arena of 64 MiB of address space for each thread, and
/// `prlimit --as` counts this space. The threads that run kernels allocate almost nothing, so one arena is
/// enough.
pub fn configure() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn mallopt(param: i32, value: i32) -> i32;
        }
        const M_MMAP_THRESHOLD: i32 = -3;
        const M_ARENA_MAX: i32 = -8;
        for (param, value) in [(M_MMAP_THRESHOLD, LARGE), (M_ARENA_MAX, 1)] {
            // SAFETY: the declaration matches glibc's `mallopt`. No other thread runs yet. A failed call
            // changes nothing.
            unsafe { mallopt(param, value) };
        }
    }
}

/// Returns free heap pages to the system, so that a measurement counts only memory in use. Reading a
/// tokenizer of 128,256 tokens leaves 60 MB of free memory inside the heap.
pub fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> i32;
        }
        // SAFETY: the declaration matches glibc's `malloc_trim`, and the call changes only free memory.
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
