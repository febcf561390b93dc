//! Attention in tiles: keys in panels of [`KEYS`], queries in blocks of [`QUERIES`], never a square of scores.
//!
//! One task is one kv head of one segment. It copies its keys and values once, as words of the products that read them: along
//! the head or across keys, pairs of bf16 where the back end computes so and the instruction set multiplies them, f32
//! otherwise. Softmax, sums and results are f32 either way; weights and gradients of scores are rounded only as operands.
//! Sources of the blocks: Dao et al., 2022, <https://arxiv.org/abs/2205.14135>.

mod backward;
mod forward;
mod gather;
mod operand_format;
mod scratch;
mod task;

pub(crate) use backward::{backward_len, backward_task};
pub(crate) use forward::{forward_len, forward_task};
pub(crate) use operand_format::OperandFormat;
#[cfg(test)]
pub(crate) use scratch::scratch_bytes;
pub(crate) use task::{backward_tasks, forward_tasks};

/// Keys of a panel.
const KEYS: usize = 64;
/// Query rows of a block: their scores of a panel, with both operands, stay in the second cache.
const QUERIES: usize = 48;
