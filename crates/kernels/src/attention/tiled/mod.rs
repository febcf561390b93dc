//! Attention in tiles: keys in panels of [`KEYS`], queries in blocks of [`QUERIES`]. No square of scores exists.
//!
//! One task is one kv head of one segment, forward also a range of its queries:
//!
//! ```text
//! forward                                  backward
//! pack keys as columns, values as rows     pack keys and values as columns, keys as rows
//! for blocks of queries:                   for blocks of queries:
//!   for panels of keys:                      delta = rows of dout · out
//!     scores = q kᵀ                          for panels of keys:
//!   softmax of each row                        p = e^(q kᵀ - lse),  ds = p · (dout vᵀ - delta)
//!   for panels of keys:                        dv += pᵀ dout,  dk += dsᵀ q,  dq += ds k
//!     out += weights v                     write dk, dv
//! ```
//!
//! - Keys and values are packed once for all query heads that read them.
//! - Packed operands are pairs of bf16 where the back end computes in bf16 and the instruction set multiplies pairs, f32
//!   otherwise. Softmax, sums and results are f32 either way.
//! - Every kv head is one backward task: no other task adds to its `dk` and `dv`, and sums have one order.
//!
//! Source of the blocks: Dao et al., 2022, <https://arxiv.org/abs/2205.14135>.

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
