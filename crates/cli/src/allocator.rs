//! Settings of the allocator. A memory plan holds only if freed memory goes back to the system.

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
            // SAFETY: `mallopt` is glibc's, of this signature; no other thread runs yet, and a refusal
            // changes nothing.
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
        // SAFETY: `malloc_trim` is glibc's, of this signature, and touches free memory only.
        unsafe { malloc_trim(0) };
    }
}
