//! Small micro-batches that go through the model together.
//!
//! A base weight is read and packed once for all rows of a product, so many rows cost less than the same rows a few
//! at a time. Every micro-batch keeps its own dropout masks and its turn in the sums of the gradient: the results
//! are, bit for bit, those of one micro-batch after the other.

use std::ops::Range;

use danlu_model::{Batch, LabeledSequence};

/// Most rows that micro-batches are put together to: with more, a row hardly gets cheaper.
const MAX_FUSED_ROWS: usize = 512;

/// Some micro-batches of a step, as one batch.
#[derive(Debug)]
pub(crate) struct FusedBatch {
    pub batch: Batch,
    /// The micro-batches of the step that these are.
    pub micros: Range<usize>,
    /// The rows of each in `batch`.
    pub rows: Vec<Range<usize>>,
}

impl FusedBatch {
    /// The passes of a step.
    pub fn of_step(micros: &[Vec<&LabeledSequence>], fuse_micro_batches: bool) -> Vec<Self> {
        let batches: Vec<Batch> = micros.iter().map(|micro| Batch::new(micro.iter().copied())).collect();
        let rows: Vec<usize> = batches.iter().map(Batch::rows).collect();
        let pass = |micros: Range<usize>| {
            let (mut batch, mut rows) = (Batch::default(), Vec::new());
            for micro in &batches[micros.clone()] {
                let start = batch.rows();
                batch.append(micro);
                rows.push(start..batch.rows());
            }
            Self { batch, micros, rows }
        };
        groups(&rows, fuse_micro_batches).into_iter().map(pass).collect()
    }
}

/// Which micro-batches, of these numbers of rows, share a pass.
pub(crate) fn groups(rows: &[usize], fuse_micro_batches: bool) -> Vec<Range<usize>> {
    let (mut groups, mut start, mut sum): (Vec<Range<usize>>, _, _) = (Vec::new(), 0, 0);
    for (i, &n) in rows.iter().enumerate() {
        let joins = fuse_micro_batches && sum + n <= MAX_FUSED_ROWS;
        if i > start && !joins {
            groups.push(start..i);
            (start, sum) = (i, 0);
        }
        sum += n;
    }
    if start < rows.len() {
        groups.push(start..rows.len());
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_share_a_pass_up_to_its_size() {
        let of = |rows: &[usize]| groups(rows, true);
        assert!(of(&[]).is_empty());
        assert_eq!(of(&[100, 200, 212, 1]), [0..3, 3..4]);
        assert_eq!(of(&[900, 100, 413, 600]), [0..1, 1..2, 2..3, 3..4]);
        assert_eq!(of(&[900, 100, 412, 600]), [0..1, 1..3, 3..4]);
        assert_eq!(of(&[8, 1, 500, 4]), [0..3, 3..4]);
        assert_eq!(groups(&[100, 200], false), [0..1, 1..2]);
    }

    #[test]
    fn rows_follow_each_other() {
        let sequence = |n| LabeledSequence { ids: vec![0; n], trained: vec![true; n] };
        let [a, b, c] = [20, 30, 40].map(sequence);
        let passes = FusedBatch::of_step(&[vec![&a, &b], vec![&c]], true);
        assert_eq!(passes.len(), 1);
        assert_eq!((passes[0].batch.tokens(), passes[0].micros.clone()), (90, 0..2));
        assert_eq!(passes[0].rows, [0..50, 50..90]);
    }

    #[test]
    fn what_begins_alike_is_shared_within_a_micro_batch_and_not_beyond() {
        let sequence = LabeledSequence { ids: vec![3; 10], trained: (0..10).map(|i| i > 7).collect() };
        let micro = vec![&sequence, &sequence];
        let passes = FusedBatch::of_step(&[micro.clone(), micro], true);
        assert_eq!((passes[0].rows.clone(), passes[0].batch.tokens()), (vec![0..13, 13..26], 40));
    }
}
