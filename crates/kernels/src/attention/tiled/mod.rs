//! Attention in tiles: keys in panels of [`KEYS`], queries in blocks of [`QUERIES`], never a square of scores.
//!
//! One task is one kv head of one segment. It copies its keys and values once, keys transposed so that a
//! tile of scores is a plain product, and every row is padded with zeros to whole vectors.

mod backward;
mod forward;
mod operands;
mod product;
mod scratch;
mod task;

pub use backward::{backward_sizes, backward_task, backward_tiled};
pub use forward::{forward_sizes, forward_task, forward_tiled};
pub use scratch::Scratch;
#[cfg(test)]
pub(crate) use scratch::scratch_bytes;
pub use task::{Task, backward_tasks, forward_tasks};

/// Keys of a panel.
const KEYS: usize = 64;
/// Query rows of a block: their scores of a panel, with both operands, stay in the second cache.
const QUERIES: usize = 48;
