//! The format of packed attention operands, and multiplication in this format.

use super::KEYS;
use crate::Isa;
use crate::gemm::{DotJob, Kernels, PackJob, Prefetch, SmallProduct, View};

/// The format of packed operands. A word is one f32, or a pair of bf16 that are adjacent along the summed
/// dimension. Sums are f32.
#[derive(Clone, Copy)]
pub(crate) struct OperandFormat {
    pub(super) isa: Isa,
    kernels: &'static Kernels,
}

/// The first operand of a product. 32-bit word `p` of row `i` is at index `i * row + p * step`.
#[derive(Clone, Copy)]
pub(super) struct StridedOperand<'a> {
    pub data: &'a [f32],
    pub row: usize,
    pub step: usize,
}

/// The shape of a multiplication `c (m, n) = a b`.
#[derive(Clone, Copy)]
pub(super) struct TileShape {
    pub m: usize,
    /// Number of columns of `c`. A multiple of the vector length.
    pub n: usize,
    /// Number of 32-bit words along the summed dimension.
    pub steps: usize,
    /// Distance between adjacent rows of `c`, and between adjacent rows of packed `b`, in 32-bit words.
    pub stride: usize,
    /// Whether the product is added to `c`. If false, the product overwrites `c`.
    pub accumulate: bool,
}

/// An f32 matrix inside a slice. Its rows begin `stride` elements apart.
#[derive(Clone, Copy)]
pub(super) struct RowView<'a> {
    pub data: &'a [f32],
    pub stride: usize,
    pub rows: usize,
    pub cols: usize,
}

impl OperandFormat {
    /// Selects bf16 pairs if `bf16` is set and `isa` multiplies bf16 pairs. Selects f32 otherwise.
    ///
    /// # Panics
    /// If this machine does not support `isa`.
    pub fn new(isa: Isa, bf16: bool) -> Self {
        Self { isa, kernels: Kernels::select(isa, bf16) }
    }

    pub(in crate::attention) fn isa(self) -> Isa {
        self.isa
    }

    /// Returns the number of 32-bit words in a packed row of `n` elements, rounded up to whole vectors.
    pub(in crate::attention) fn row_words(self, n: usize) -> usize {
        self.of(n).next_multiple_of(self.kernels.lanes)
    }

    pub(in crate::attention) fn pack_row(self, out: &mut [f32], row: &[f32]) {
        assert!(out.len() >= self.row_words(row.len()));
        // SAFETY: `new` checked the instruction set, and `out` has room for all words.
        unsafe { (self.kernels.pack_row)(out.as_mut_ptr(), row, self.are_pairs()) };
    }

    /// Computes the dot products of packed rows with rows that are read in place.
    ///
    /// # Safety
    /// Every pointer of the job must be valid for its shape.
    pub(in crate::attention) unsafe fn dots(self, job: &DotJob<'_>) {
        // SAFETY: `new` checked the instruction set, and the caller guarantees that the pointers are valid.
        unsafe { (self.kernels.dots)(job) }
    }

    /// Returns whether each 32-bit word is a pair of bf16 elements.
    pub(super) fn are_pairs(self) -> bool {
        self.kernels.pair == 2
    }

    /// Returns the number of 32-bit words that `n` elements need.
    pub(super) fn of(self, n: usize) -> usize {
        n.div_ceil(self.kernels.pair)
    }

    /// Returns the number of 32-bit words in a bf16 copy of `n` elements, or 0 for f32, which needs no copy.
    pub(super) fn pairs(self, n: usize) -> usize {
        if self.are_pairs() { self.of(n) } else { 0 }
    }

    /// Rounds `n` columns up to whole vectors.
    pub(super) fn whole(self, n: usize) -> usize {
        n.next_multiple_of(self.kernels.lanes)
    }

    /// Packs pairs of neighbouring elements of each row into `out` as bf16. For f32, the result is `rows`
    /// itself.
    pub(super) fn by_rows<'a>(self, out: &'a mut [f32], rows: &'a [f32]) -> &'a [f32] {
        if !self.are_pairs() {
            return rows;
        }
        assert!(out.len() >= self.of(rows.len()));
        // SAFETY: `new` checked the instruction set, and `out` has room for all words.
        unsafe { (self.kernels.pack_row)(out.as_mut_ptr(), rows, true) };
        out
    }

    /// Packs pairs of neighbouring elements of each column of `rows` into `out` as bf16. For f32, the result
    /// is `rows` itself. `width` must be a multiple of the vector length.
    pub(super) fn by_columns<'a>(self, out: &'a mut [f32], rows: &'a [f32], width: usize) -> &'a [f32] {
        if !self.are_pairs() {
            return rows;
        }
        assert!(width == self.whole(width) && rows.len().is_multiple_of(width));
        assert!(out.len() >= self.of(rows.len() / width) * width);
        // SAFETY: `new` checked the instruction set, and `out` has room for all words.
        unsafe { (self.kernels.pack_by_columns)(out.as_mut_ptr(), rows, width) };
        out
    }

    /// Packs `inp` by columns: word `p` of column `j` goes to `p * width + j`. A word is one f32, or two bf16
    /// of neighbouring rows. An odd last row is paired with zeros. Columns from `inp.cols` on have undefined
    /// contents.
    pub(super) fn pack_by_columns(self, out: &mut [f32], width: usize, inp: RowView<'_>) {
        assert!(out.len() >= self.of(inp.rows) * width && width >= self.whole(inp.cols));
        let src = View::f32(inp.data, 1, inp.stride);
        src.check(inp.cols, inp.rows);
        let job = PackJob::new(out.as_mut_ptr(), width, src, (0, inp.cols), (0, inp.rows), false);
        // SAFETY: `new` checked the instruction set, `check` checked the view, and `out` has room for all
        // words.
        unsafe { (self.kernels.pack)(&job) };
    }

    /// Packs `inp` into panels of [`KEYS`] columns. Each row of `inp` becomes one column of a panel. Columns
    /// without a row of `inp` have undefined contents.
    pub(super) fn pack_panels(self, out: &mut [f32], inp: RowView<'_>) {
        let panel = self.of(inp.cols) * KEYS;
        assert!(out.len() >= inp.rows.div_ceil(KEYS) * panel);
        let src = View::f32(inp.data, inp.stride, 1);
        src.check(inp.rows, inp.cols);
        let job = PackJob::new(out.as_mut_ptr(), KEYS, src, (0, inp.rows), (0, inp.cols), false);
        // SAFETY: `new` checked the instruction set, `check` checked the view, and `out` has room for all
        // panels.
        unsafe { (self.kernels.pack)(&PackJob { panel, ..job }) };
    }

    /// Computes `c (m, n) = a b`, or `c += a b`. The memory of `prefetch` is prefetched during the
    /// multiplication.
    pub(super) fn product(
        self,
        c: &mut [f32],
        a: StridedOperand<'_>,
        b: &[f32],
        shape: TileShape,
        prefetch: Prefetch,
    ) {
        let TileShape { m, n, steps, stride, accumulate } = shape;
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
        // SAFETY: `new` checked the instruction set, and the assertions above check the shape.
        unsafe { (self.kernels.small_product)(&job) };
    }
}
