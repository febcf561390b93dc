//! How the allocator treats freed memory: a memory plan holds only where it goes back to the system.

/// Blocks from this size on come straight from the system, and go straight back.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE: i32 = 1 << 20;

/// Fixes the size from which glibc maps blocks of their own, and keeps it to one arena.
///
/// Left alone, it raises that size to the largest block freed so far, up to 32 MiB: after the 17 MB text of a
/// tokenizer, every smaller work buffer would come from the heap, where the holes of freed ones stay. And it
/// reserves 64 MiB of addresses for every thread, which `prlimit --as` counts; kernel threads allocate next to
/// nothing, so they can share the first arena.
pub fn configure() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn mallopt(param: i32, value: i32) -> i32;
        }
        const M_MMAP_THRESHOLD: i32 = -3;
        const M_ARENA_MAX: i32 = -8;
        for (param, value) in [(M_MMAP_THRESHOLD, LARGE), (M_ARENA_MAX, 1)] {
            // SAFETY: `mallopt` is glibc's, of this signature; no other thread runs yet, and a refusal changes
            // nothing.
            unsafe { mallopt(param, value) };
        }
    }
}

/// Gives free pages inside the heap back: reading a tokenizer of 128,256 tokens leaves 60 MB of holes, and what is
/// measured then should be what is in use.
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
