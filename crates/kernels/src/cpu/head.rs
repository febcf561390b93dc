//! The loss head: logits of a few hundred rows at a time, turned into their own gradient in place.

use std::sync::Mutex;

use super::pool::{Pool, Scratch, SendPtr, lock};
use crate::Matrix;
use crate::gemm::{Gemm, Product, View};

/// Most rows of logits at a time.
const CHUNK_ROWS: usize = 256;
/// Most logits at a time, where the vocabulary is large: 32 MiB.
const CHUNK_LOGITS: usize = 8 << 20;

/// The loss head with the memory for one chunk of logits.
#[derive(Default)]
pub(crate) struct Head {
    logits: Mutex<Scratch>,
}

impl Head {
    /// As [`crate::head_loss::head_loss`].
    pub fn loss(
        &self,
        (pool, gemm): (&Pool, &Gemm),
        losses: &mut [f32],
        mut dinp: Option<&mut [f32]>,
        inp: &[f32],
        head: &Matrix,
        targets: &[u32],
        dloss: f32,
    ) {
        let (v, c) = (head.rows(), head.cols());
        assert!(losses.len() >= targets.len() && inp.len() >= targets.len() * c);
        assert!(targets.iter().all(|&t| (t as usize) < v), "a target outside the vocabulary of {v}");
        let chunk_rows = (CHUNK_LOGITS / v.max(1)).clamp(16, CHUNK_ROWS);
        let mut logits = lock(&self.logits);
        for (chunk, targets) in targets.chunks(chunk_rows).enumerate() {
            let (first, m) = (chunk * chunk_rows, targets.len());
            let logits = &mut logits.at_least(m * v)[..m * v];
            let (a, b) = (View::f32(&inp[first * c..], c, 1), View::rows_of(head));
            gemm.product(
                pool,
                Product { c: logits, ldc: v, a, b, m, n: v, k: c, alpha: 1.0, accumulate: false },
            );
            let losses = SendPtr(losses[first..][..m].as_mut_ptr());
            let shared = SendPtr(logits.as_mut_ptr());
            pool.run(m, |i, _| {
                // SAFETY: one task, one row of logits and one loss.
                let (row, loss) =
                    unsafe { (std::slice::from_raw_parts_mut(shared.at(i * v), v), &mut *losses.at(i)) };
                *loss = softmax_loss(row, targets[i] as usize, dloss);
            });
            if let Some(dinp) = dinp.as_deref_mut() {
                let (a, b) = (View::f32(logits, v, 1), View::cols_of(head));
                let c_rows = &mut dinp[first * c..][..m * c];
                gemm.product(
                    pool,
                    Product { c: c_rows, ldc: c, a, b, m, n: c, k: v, alpha: 1.0, accumulate: false },
                );
            }
        }
    }
}

/// The loss of one row; `logits` becomes `dloss · (softmax - onehot)`.
fn softmax_loss(logits: &mut [f32], target: usize, dloss: f32) -> f32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let at_target = logits[target];
    let mut sum = 0.0f64;
    for l in logits.iter_mut() {
        *l = (*l - max).exp();
        sum += *l as f64;
    }
    let factor = (dloss as f64 / sum) as f32;
    for l in logits.iter_mut() {
        *l *= factor;
    }
    logits[target] -= dloss;
    (max as f64 + sum.ln() - at_target as f64) as f32
}
