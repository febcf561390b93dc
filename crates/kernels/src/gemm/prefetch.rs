//! Prefetches operands while the processor multiplies. Without prefetches, packing would stall on every cache
//! line.

use super::micro_kernel::MicroKernel;
use super::partition::part;

/// Size of a cache line in bytes.
const LINE: usize = 64;

/// Prefetches `bytes` bytes into L2.
#[inline(always)]
pub(crate) fn prefetch_far(start: *const u8, bytes: usize) {
    for at in (0..bytes).step_by(LINE) {
        let line = start.wrapping_add(at);
        // SAFETY: every x86-64 processor has SSE, and a prefetch needs no valid address.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(line.cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = line;
    }
}

/// The part of an operand that will be packed next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prefetch {
    start: *const u8,
    stride: usize,
    /// Number of cache lines in a row.
    width: usize,
    /// Index, in the first remaining row, of the line that is prefetched next.
    line: usize,
    rows: usize,
}

impl Prefetch {
    /// A prefetch of no memory.
    pub const NONE: Self = Self { start: std::ptr::null(), stride: 0, width: 0, line: 0, rows: 0 };

    /// Returns a prefetch of `rows` rows of `bytes` bytes each. The rows begin `stride` bytes apart.
    pub fn new(start: *const u8, rows: usize, bytes: usize, stride: usize) -> Self {
        let first = start.wrapping_sub(start.addr() % LINE);
        // A row may begin and end inside a cache line.
        Self { start: first, stride, width: (start.addr() % LINE + bytes).div_ceil(LINE), line: 0, rows }
    }

    /// Returns a prefetch of part `index` of the rows, if the rows are divided into `parts` nearly equal
    /// parts.
    pub fn part(self, index: usize, parts: usize) -> Self {
        let (first, rows) = part(self.rows, parts, index);
        Self { start: self.start.wrapping_add(first * self.stride), rows, ..self }
    }

    /// Returns the number of cache lines in the remaining rows. In the first of these rows, lines that were
    /// already fetched are counted too.
    pub fn lines(&self) -> usize {
        self.width * self.rows
    }

    /// Prefetches the next `n` cache lines, and removes these lines from `self`.
    ///
    /// # Safety
    /// The processor must support the instruction set of `T`.
    #[inline(always)]
    pub(super) unsafe fn fetch<T: MicroKernel>(&mut self, n: usize) {
        for _ in 0..n {
            if self.rows == 0 {
                return;
            }
            // SAFETY: the caller guarantees that the processor supports the instruction set. A prefetch needs
            // no valid address.
            unsafe { T::prefetch_far(self.start.wrapping_add(self.line * LINE)) };
            self.line += 1;
            if self.line == self.width {
                (self.line, self.rows) = (0, self.rows - 1);
                self.start = self.start.wrapping_add(self.stride);
            }
        }
    }
}
