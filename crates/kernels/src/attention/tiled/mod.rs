//! Tiled attention: keys are divided into panels of [`KEYS`], and queries into blocks of [`QUERIES`]. The
//! full score matrix never exists.
//!
//! One task computes one kv head of one segment. A forward task covers only a range of the queries:
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
//! - Operands are packed as bf16 pairs if the back end computes in bf16 and the instruction set multiplies
//!   bf16 pairs. Otherwise the operands are f32. Softmax, sums and results are always f32.
//! - Every kv head is one backward task. No other task adds to `dk` and `dv` of this head, so the terms of
//!   these sums are always added in the same order.
//!
//! Source of the division into blocks: Dao et al., 2022, <https://arxiv.org/abs/2205.14135>.

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
pub(super) use scratch::{total, with_buffers};
pub(crate) use task::{backward_tasks, forward_tasks};

use crate::math::tanh;
use crate::simd::Lanes;

/// Number of keys in a panel.
const KEYS: usize = 64;
/// Number of query rows in a block. The scores of a block for one panel stay in L2, together with both
/// operands.
const QUERIES: usize = 48;

/// Replaces every score by `cap · tanh(score / cap)`. `scores` must consist of whole vectors.
#[inline(always)]
pub(super) fn cap_lanes<L: Lanes>(scores: &mut [f32], cap: f32) {
    for at in (0..scores.len()).step_by(L::COUNT) {
        let t = tanh(L::read(scores, at).mul(L::splat(1.0 / cap)));
        t.mul(L::splat(cap)).write(scores, at);
    }
}
