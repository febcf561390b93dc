//! The loss head: logits of some hundred rows at a time, turned into their own gradient in place.

use std::sync::Mutex;

use super::parts::Parts;
use super::pool::{Pool, Scratch, lock};
use crate::gemm::{Gemm, Product, View};
use crate::head_loss::softmax_rows;
use crate::{Isa, Matrix};

/// Most rows of logits at a time.
const CHUNK_ROWS: usize = 256;
/// Most logits at a time, where the vocabulary is large: 64 MiB.
const CHUNK_LOGITS: usize = 16 << 20;

/// The loss head with the memory for one chunk of logits.
#[derive(Default)]
pub(crate) struct Head {
    logits: Mutex<Scratch>,
}

impl Head {
    /// Rows of logits over a vocabulary of `v` that exist at the same time.
    pub fn chunk_rows(v: usize) -> usize {
        (CHUNK_LOGITS / v.max(1)).clamp(32, CHUNK_ROWS)
    }

    /// Bytes held at present.
    #[cfg(test)]
    pub fn held(&self) -> u64 {
        lock(&self.logits).held()
    }

    /// As [`crate::head_loss::head_loss`].
    pub fn loss(
        &self,
        (pool, gemm, isa): (&Pool, &Gemm, Isa),
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
        let chunk_rows = Self::chunk_rows(v);
        let mut logits = lock(&self.logits);
        for (chunk, targets) in targets.chunks(chunk_rows).enumerate() {
            let (first, m) = (chunk * chunk_rows, targets.len());
            let logits = &mut logits.at_least(m * v)[..m * v];
            let (a, b) = (View::f32(&inp[first * c..], c, 1), View::rows_of(head));
            gemm.product(
                pool,
                Product { c: logits, ldc: v, a, b, m, n: v, k: c, alpha: 1.0, accumulate: false },
            );
            let dloss = dinp.is_some().then_some(dloss);
            let (losses, shared) = (Parts::new(&mut losses[first..][..m]), Parts::new(logits));
            pool.over_rows(m, v, |rows| {
                // SAFETY: the ranges of one region are disjoint.
                let (losses, logits) =
                    unsafe { (losses.range(rows.clone()), shared.range(rows.start * v..rows.end * v)) };
                softmax_rows(isa, losses, logits, &targets[rows], dloss);
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
