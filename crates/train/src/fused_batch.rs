//! Fuses small micro-batches of a step into one batch.
//!
//! A matrix product reads and packs each base weight once, so one large batch is faster than several small
//! ones. Each micro-batch has its own dropout masks, and gradients are summed in the order of the
//! micro-batches. The results are bit for bit those of separate micro-batches.

use std::ops::Range;

use danlu_model::{Batch, LabeledSequence};

/// Maximum number of token rows in a fused batch. Larger batches are hardly faster.
const MAX_FUSED_ROWS: usize = 512;

/// One batch that contains consecutive micro-batches of a step.
#[derive(Debug)]
pub(crate) struct FusedBatch {
    pub batch: Batch,
    /// Indices of the micro-batches in the step.
    pub micros: Range<usize>,
    /// The token rows of each micro-batch in `batch`.
    pub rows: Vec<Range<usize>>,
}

impl FusedBatch {
    /// Creates the batches of a step.
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

/// Groups micro-batches with these row counts into batches.
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
