//! Working memory and tile sizes for dot products of more rows than one tile has. Each row of a 4-bit weight
//! is decoded once for all rows of `inp`.

use std::mem::MaybeUninit;

use crate::gemm::micro_kernel::MicroKernel;

/// Number of 32-bit words of a row that are decoded at a time.
pub(super) const BLOCK: usize = 1024;
/// Distance between two decoded rows, in 32-bit words. Rows at a distance of a power of two would compete for
/// the same lines of L1.
pub(super) const STRIDE: usize = BLOCK + 16;
/// Maximum number of rows of `inp` that share one decoding of a row of the weight.
pub(super) const MAX_ROWS: usize = 64;

/// Two decoded rows of a weight, aligned for whole vectors.
#[repr(align(64))]
pub(super) struct Words(MaybeUninit<[f32; 2 * STRIDE]>);

impl Words {
    pub fn new() -> Self {
        Self(MaybeUninit::uninit())
    }

    pub fn start(&mut self) -> *mut f32 {
        self.0.as_mut_ptr().cast()
    }
}

/// Returns the maximum number of rows in a tile. A row needs four accumulators. With 32 registers, 6 rows
/// leave 8 registers for the operands. With 16 registers, 3 rows leave 4.
#[inline(always)]
pub(super) const fn rows_of_tile<T: MicroKernel>() -> usize {
    if T::MR >= 8 { 6 } else { 3 }
}

/// Runs `tile` with the number of rows as a const generic parameter.
macro_rules! with_rows {
    ($rows:expr, $t:ty, $($tile:tt)*) => {
        match $rows {
            1 => with_rows!(@ 1, $($tile)*),
            2 => with_rows!(@ 2, $($tile)*),
            3 => with_rows!(@ 3, $($tile)*),
            4 if rows_of_tile::<$t>() > 3 => with_rows!(@ 4, $($tile)*),
            5 if rows_of_tile::<$t>() > 3 => with_rows!(@ 5, $($tile)*),
            6 if rows_of_tile::<$t>() > 3 => with_rows!(@ 6, $($tile)*),
            rows => unreachable!("a tile of {rows} rows"),
        }
    };
    (@ $n:literal, |$rows:ident| $call:expr) => {{
        const $rows: usize = $n;
        $call
    }};
}
pub(super) use with_rows;
