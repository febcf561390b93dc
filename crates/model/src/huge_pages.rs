//! Memory in huge pages, for weights that are read completely for every token.

#[cfg(target_os = "linux")]
use memmap2::Advice;
use memmap2::MmapMut;

/// Returns zeroed memory in huge pages. With small pages, decoding would have a TLB miss on each page.
pub(crate) fn zeros(len: usize) -> MmapMut {
    let pages = MmapMut::map_anon(len).unwrap_or_else(|_| {
        // The allocator cannot provide this size either, and reports the failure as for any `Vec`.
        drop(std::hint::black_box(Vec::<u8>::with_capacity(len)));
        panic!("cannot map {len} bytes")
    });
    // If huge pages are not available, decoding is slower but still works.
    #[cfg(target_os = "linux")]
    let _ = pages.advise(Advice::HugePage);
    pages
}
