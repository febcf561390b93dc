//! Memory in huge pages, for weights that every token reads in full.

#[cfg(target_os = "linux")]
use memmap2::Advice;
use memmap2::MmapMut;

/// Returns zeroed memory in huge pages. With small pages, decoding would miss the TLB on each of them.
pub(crate) fn zeros(len: usize) -> MmapMut {
    let pages = MmapMut::map_anon(len).unwrap_or_else(|_| {
        // The allocator fails for this size too, and reports the failure like any failed `Vec`.
        drop(std::hint::black_box(Vec::<u8>::with_capacity(len)));
        panic!("cannot map {len} bytes")
    });
    // Without huge pages, decoding is only slower.
    #[cfg(target_os = "linux")]
    let _ = pages.advise(Advice::HugePage);
    pages
}
