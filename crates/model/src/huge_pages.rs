//! Memory for what every token reads all of.

#[cfg(target_os = "linux")]
use memmap2::Advice;
use memmap2::MmapMut;

/// Zeros in pages as large as the system has them: of small pages each one's address would be looked up again for every token.
pub(crate) fn zeros(len: usize) -> MmapMut {
    let pages = MmapMut::map_anon(len).expect("memory, which a `Vec` takes for granted too");
    // Without them everything works as well, if slower.
    #[cfg(target_os = "linux")]
    let _ = pages.advise(Advice::HugePage);
    pages
}
