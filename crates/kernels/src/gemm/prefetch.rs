//! Prefetches operands while the processor multiplies. Packing would otherwise wait for every line.

use super::micro_kernel::MicroKernel;
use super::partition::part;

/// Bytes of a cache line.
const LINE: usize = 64;

/// The part of an operand that will be packed next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prefetch {
    start: *const u8,
    stride: usize,
    /// Lines of a row, and the next of them.
    width: usize,
    line: usize,
    rows: usize,
}

impl Prefetch {
    /// Prefetches nothing.
    pub const NONE: Self = Self { start: std::ptr::null(), stride: 0, width: 0, line: 0, rows: 0 };

    /// Prefetches `rows` rows of `bytes` each, `stride` bytes apart.
    pub fn new(start: *const u8, rows: usize, bytes: usize, stride: usize) -> Self {
        let first = start.wrapping_sub(start.addr() % LINE);
        // A row may begin and end inside a line.
        Self { start: first, stride, width: (start.addr() % LINE + bytes).div_ceil(LINE), line: 0, rows }
    }

    /// Returns the rows of one of `parts` nearly equal parts.
    pub fn part(self, index: usize, parts: usize) -> Self {
        let (first, rows) = part(self.rows, parts, index);
        Self { start: self.start.wrapping_add(first * self.stride), rows, ..self }
    }

    /// Returns the number of lines, before any is fetched.
    pub fn lines(&self) -> usize {
        self.width * self.rows
    }

    /// Prefetches the next `n` lines, and removes them from `self`.
    ///
    /// # Safety
    /// The processor must have the instruction set of `T`.
    #[inline(always)]
    pub(super) unsafe fn fetch<T: MicroKernel>(&mut self, n: usize) {
        for _ in 0..n {
            if self.rows == 0 {
                return;
            }
            // SAFETY: the caller has the instruction set; a prefetch needs no valid address.
            unsafe { T::prefetch_far(self.start.wrapping_add(self.line * LINE)) };
            self.line += 1;
            if self.line == self.width {
                (self.line, self.rows) = (0, self.rows - 1);
                self.start = self.start.wrapping_add(self.stride);
            }
        }
    }
}
