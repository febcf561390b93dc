//! How tiles multiply, and operands as their products read them.

use super::KEYS;
use crate::Isa;
use crate::gemm::{Kernels, PackJob, Prefetch, SmallProduct, View};

/// The words that products read: f32, or pairs of bf16 that neighbour along the sum. Sums are f32 either way.
#[derive(Clone, Copy)]
pub(crate) struct OperandFormat {
    pub(super) isa: Isa,
    kernels: &'static Kernels,
}

/// The first operand of a product: the word of row `i` and step `p` is at `i * row + p * step`.
#[derive(Clone, Copy)]
pub(super) struct StridedOperand<'a> {
    pub data: &'a [f32],
    pub row: usize,
    pub step: usize,
}

/// A matrix of f32 inside a slice: consecutive elements of a row, rows `stride` apart.
#[derive(Clone, Copy)]
pub(super) struct RowView<'a> {
    pub data: &'a [f32],
    pub stride: usize,
    pub rows: usize,
    pub cols: usize,
}

impl OperandFormat {
    /// Pairs of bf16 where they are asked for and `isa` multiplies them, f32 otherwise.
    ///
    /// # Panics
    /// If this machine does not run `isa`.
    pub fn new(isa: Isa, bf16: bool) -> Self {
        Self { isa, kernels: Kernels::select(isa, bf16) }
    }

    /// Whether words are pairs, and elements rounded.
    pub(super) fn are_pairs(self) -> bool {
        self.kernels.pair == 2
    }

    /// OperandFormat of `n` elements.
    pub(super) fn of(self, n: usize) -> usize {
        n.div_ceil(self.kernels.pair)
    }

    /// Pairs of `n` elements, none where words are the elements themselves.
    pub(super) fn pairs(self, n: usize) -> usize {
        if self.are_pairs() { self.of(n) } else { 0 }
    }

    /// `n` columns in whole vectors.
    pub(super) fn whole(self, n: usize) -> usize {
        n.next_multiple_of(self.kernels.lanes)
    }

    /// Rows of whole vectors as words along each: pairs in `out`, or the rows themselves.
    pub(super) fn by_rows<'a>(self, out: &'a mut [f32], rows: &'a [f32]) -> &'a [f32] {
        if !self.are_pairs() {
            return rows;
        }
        assert!(out.len() >= self.of(rows.len()));
        // SAFETY: `new` checked the instruction set, and `out` holds all words.
        unsafe { (self.kernels.pack_row)(out.as_mut_ptr(), rows, true) };
        out
    }

    /// Rows of `width`, whole vectors, as words across them: pairs in `out`, or the rows themselves.
    pub(super) fn by_columns<'a>(self, out: &'a mut [f32], rows: &'a [f32], width: usize) -> &'a [f32] {
        if !self.are_pairs() {
            return rows;
        }
        assert!(width == self.whole(width) && rows.len().is_multiple_of(width));
        assert!(out.len() >= self.of(rows.len() / width) * width);
        // SAFETY: `new` checked the instruction set, and `out` holds all words.
        unsafe { (self.kernels.pack_by_columns)(out.as_mut_ptr(), rows, width) };
        out
    }

    /// Copies words across rows: of step `p` and column `j` at `p * width + j`, an odd last row paired with zero. What lies beyond the
    /// columns up to whole vectors is of no meaning.
    pub(super) fn pack_by_columns(self, out: &mut [f32], width: usize, inp: RowView<'_>) {
        assert!(out.len() >= self.of(inp.rows) * width && width >= self.whole(inp.cols));
        let src = View::f32(inp.data, 1, inp.stride);
        src.check(inp.cols, inp.rows);
        let job = PackJob::new(out.as_mut_ptr(), width, src, (0, inp.cols), (0, inp.rows), false);
        // SAFETY: `new` checked the instruction set, the view was checked, and `out` holds all steps.
        unsafe { (self.kernels.pack)(&job) };
    }

    /// Copies panels `(words along a row, KEYS)`, one column a row. What lies beyond the last row is of no meaning.
    pub(super) fn pack_panels(self, out: &mut [f32], inp: RowView<'_>) {
        let panel = self.of(inp.cols) * KEYS;
        assert!(out.len() >= inp.rows.div_ceil(KEYS) * panel);
        let src = View::f32(inp.data, inp.stride, 1);
        src.check(inp.rows, inp.cols);
        let job = PackJob::new(out.as_mut_ptr(), KEYS, src, (0, inp.rows), (0, inp.cols), false);
        // SAFETY: as for `pack_by_columns`.
        unsafe { (self.kernels.pack)(&PackJob { panel, ..job }) };
    }

    /// `c (m, n) = a b`, or `c += a b`, rows of `c` and steps of `b` being `stride` apart, `n` whole vectors.
    /// Meanwhile `ahead` is fetched from memory.
    #[expect(clippy::too_many_arguments, reason = "the operands of a kernel are plain values")]
    pub(super) fn product(
        self,
        c: &mut [f32],
        a: StridedOperand<'_>,
        b: &[f32],
        stride: usize,
        (m, n, steps): (usize, usize, usize),
        accumulate: bool,
        prefetch: Prefetch,
    ) {
        assert!(n == self.whole(n) && n <= stride && m > 0 && steps > 0);
        assert!(c.len() >= (m - 1) * stride + n && b.len() >= (steps - 1) * stride + n);
        assert!(a.data.len() > (m - 1) * a.row + (steps - 1) * a.step);
        let job = SmallProduct {
            m,
            n,
            steps,
            a: a.data.as_ptr(),
            a_strides: (a.row, a.step),
            b: b.as_ptr(),
            c: c.as_mut_ptr(),
            stride,
            accumulate,
            prefetch,
        };
        // SAFETY: `new` checked the instruction set, and the assertions cover the shape.
        unsafe { (self.kernels.small_product)(&job) };
    }
}
