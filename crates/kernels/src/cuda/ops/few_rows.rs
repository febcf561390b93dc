//! Operands of the kernels for a few rows in `gemv.cu` and `four_bit_rows.cu`. One launch multiplies one
//! input by several weights.

use super::Rows;
use crate::cuda::device::DevicePtr;

/// Maximum number of rows per launch.
pub const MAX_ROWS: usize = 8;
/// Maximum number of weights per launch.
pub const MAX_PARTS: usize = 3;

/// Output for the result of one weight.
#[derive(Clone, Copy, Debug)]
pub struct FewRowsOut {
    pub out: Rows,
    /// Operand that is added to the result. It may equal `out`.
    pub add: Option<Rows>,
    pub outputs: usize,
}

/// Returns whether a launch supports `n` rows and these outputs.
pub fn fits(n: usize, outs: &[FewRowsOut]) -> bool {
    n <= MAX_ROWS && (1..=MAX_PARTS).contains(&outs.len())
}

/// Layout of `struct Part` in `gemv.cu` and `four_bit_rows.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Part<W> {
    weight: W,
    out: DevicePtr,
    add: DevicePtr,
    out_stride: i64,
    add_stride: i64,
    outputs: i32,
    first_tile: i32,
}

/// Layout of `struct Group` in `gemv.cu` and `four_bit_rows.cu`. `W` contains the addresses of a weight.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Group<W> {
    parts: [Part<W>; MAX_PARTS],
    count: i32,
    tiles: i32,
}

impl<W: Copy + Default> Group<W> {
    /// Groups weights with their outputs. A tile has `tile` outputs.
    pub fn new(outs: &[FewRowsOut], weights: impl Iterator<Item = W>, tile: usize) -> Self {
        let mut group = Self { parts: [Part::default(); MAX_PARTS], count: 0, tiles: 0 };
        for ((part, out), weight) in group.parts.iter_mut().zip(outs).zip(weights) {
            let add = out.add.unwrap_or(Rows::dense(DevicePtr::NULL, 0));
            *part = Part {
                weight,
                out: out.out.at,
                add: add.at,
                out_stride: out.out.stride as i64,
                add_stride: add.stride as i64,
                outputs: out.outputs as i32,
                first_tile: group.tiles,
            };
            group.count += 1;
            group.tiles += out.outputs.div_ceil(tile) as i32;
        }
        group
    }

    /// Returns the number of tiles of all weights.
    pub fn tiles(&self) -> usize {
        self.tiles as usize
    }
}
