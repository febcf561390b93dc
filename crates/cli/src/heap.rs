//! How the allocator treats large blocks: a memory plan holds only where freed memory goes back.

/// Blocks from this size on come straight from the system, and go straight back.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE: i32 = 1 << 20;

/// Fixes the size from which glibc maps blocks of their own.
///
/// Left alone, it raises that size to the largest block freed so far, up to 32 MiB: after the 17 MB text of a
/// tokenizer, every smaller work buffer would come from the heap, where the holes of freed ones stay.
pub fn settle() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn mallopt(param: i32, value: i32) -> i32;
        }
        const M_MMAP_THRESHOLD: i32 = -3;
        // SAFETY: `mallopt` is glibc's, of this signature; no other thread runs yet, and a refusal changes nothing.
        unsafe { mallopt(M_MMAP_THRESHOLD, LARGE) };
    }
}
