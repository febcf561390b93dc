//! Fuses small micro-batches of a step into one batch.
//!
//! Each pass reads and packs every base weight once, so one large batch is faster than several small batches.
//! Each micro-batch has separate dropout masks, and gradients are summed in the order of the micro-batches.
//! On the CPU, the results are therefore bit-identical to the results of separate micro-batches. On a GPU,
//! they may differ by rounding.

use std::ops::Range;

use danlu_model::{Batch, LabeledSequence, ModelConfig};

/// Determines how the micro-batches of a step are divided into passes. A pass runs forward and backward over
/// one batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassGrouping {
    /// Whether small micro-batches are fused, which is faster. On a GPU, this may change rounding.
    pub fuse: bool,
    /// Maximum number of tokens in a pass. A larger micro-batch is split between records, unless its records
    /// share a prefix.
    ///
    /// Each part of a split micro-batch has its own dropout masks, and its gradients are summed separately. A
    /// split therefore changes the dropout masks and the rounding.
    pub max_rows: Option<usize>,
    /// Whether records share no prefix, because each record has its own noise.
    pub unshared: bool,
}

/// Maximum number of token rows in a fused batch. A larger batch would hardly be faster.
const MAX_FUSED_ROWS: usize = 512;

/// One batch that contains consecutive micro-batches of a step.
#[derive(Debug)]
pub(crate) struct FusedBatch {
    pub batch: Batch,
    /// Indices of the micro-batches in the step.
    pub micros: Range<usize>,
    /// Index of this part if a micro-batch is split, otherwise 0.
    pub part: usize,
    /// The token rows of each micro-batch in `batch`.
    pub rows: Vec<Range<usize>>,
}

impl FusedBatch {
    pub fn of_step(
        config: &ModelConfig,
        micros: &[Vec<&LabeledSequence>],
        grouping: PassGrouping,
    ) -> Vec<Self> {
        let batches: Vec<Batch> = micros
            .iter()
            .map(|micro| Batch::for_model(config, grouping.unshared, micro.iter().copied()))
            .collect();
        let rows: Vec<usize> = batches.iter().map(Batch::rows).collect();
        let pass = |micros: Range<usize>| {
            let (mut batch, mut rows) = (Batch::default(), Vec::new());
            for micro in &batches[micros.clone()] {
                let start = batch.rows();
                batch.append(micro);
                rows.push(start..batch.rows());
            }
            Self { batch, micros, part: 0, rows }
        };
        let split = |group: Range<usize>| {
            let batch = &batches[group.start];
            match parts(group.len(), batch.rows(), batch.tokens(), grouping) {
                None => vec![pass(group)],
                Some(max_rows) => Self::parts_of(&micros[group.start], group, max_rows),
            }
        };
        groups(&rows, grouping.fuse).into_iter().flat_map(split).collect()
    }

    /// Splits one micro-batch into parts. A part has at most `max_rows` rows, or only one record.
    fn parts_of(micro: &[&LabeledSequence], micros: Range<usize>, max_rows: usize) -> Vec<Self> {
        let lengths: Vec<usize> = micro.iter().map(|sequence| sequence.ids.len()).collect();
        let part = |(part, records): (usize, Range<usize>)| {
            let mut batch = Batch::default();
            // Each record is a batch of its own, so the records share no prefix.
            micro[records].iter().for_each(|sequence| batch.append(&Batch::new([*sequence])));
            let rows = Vec::from_iter(std::iter::once(0..batch.rows()));
            Self { rows, micros: micros.clone(), part, batch }
        };
        cut(&lengths, max_rows).into_iter().enumerate().map(part).collect()
    }
}

/// Returns the maximum number of rows per part if a group of micro-batches must be split, or `None` if the
/// group runs in one pass.
///
/// `micros` is the number of micro-batches in the group. `rows` and `tokens` are the sizes of the first
/// micro-batch. A group is split only if it has one micro-batch whose records share no prefix (`rows ==
/// tokens`).
pub(crate) fn parts(micros: usize, rows: usize, tokens: usize, grouping: PassGrouping) -> Option<usize> {
    grouping.max_rows.filter(|&most| micros == 1 && rows > most && rows == tokens)
}

/// Divides records of these lengths into consecutive parts. A part has at most `max_rows` rows, or only one
/// record.
pub(crate) fn cut(lengths: &[usize], max_rows: usize) -> Vec<Range<usize>> {
    let (mut parts, mut start, mut sum): (Vec<Range<usize>>, _, _) = (Vec::new(), 0, 0);
    for (i, &n) in lengths.iter().enumerate() {
        if i > start && sum + n > max_rows {
            parts.push(start..i);
            (start, sum) = (i, 0);
        }
        sum += n;
    }
    if start < lengths.len() {
        parts.push(start..lengths.len());
    }
    parts
}

/// Divides micro-batches with these numbers of rows into groups. Each group becomes one batch, unless
/// [`parts`] splits it.
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
    use danlu_model::Preset;

    use super::*;

    const FUSED: PassGrouping = PassGrouping { fuse: true, max_rows: None, unshared: false };

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
        let passes = FusedBatch::of_step(&Preset::Base8m.config(), &[vec![&a, &b], vec![&c]], FUSED);
        assert_eq!(passes.len(), 1);
        assert_eq!((passes[0].batch.tokens(), passes[0].micros.clone()), (90, 0..2));
        assert_eq!(passes[0].rows, [0..50, 50..90]);
    }

    #[test]
    fn what_begins_alike_is_shared_within_a_micro_batch_and_not_beyond() {
        let sequence = LabeledSequence { ids: vec![3; 10], trained: (0..10).map(|i| i > 7).collect() };
        let micro = vec![&sequence, &sequence];
        let passes = FusedBatch::of_step(&Preset::Base8m.config(), &[micro.clone(), micro], FUSED);
        assert_eq!((passes[0].rows.clone(), passes[0].batch.tokens()), (vec![0..13, 13..26], 40));
    }

    #[test]
    fn a_large_micro_batch_is_split_between_its_records() {
        let sequence = |n: usize, id| LabeledSequence { ids: vec![id; n], trained: vec![true; n] };
        let [a, b, c, d] = [sequence(20, 1), sequence(30, 2), sequence(40, 3), sequence(60, 4)];
        let grouping = PassGrouping { fuse: false, max_rows: Some(50), unshared: false };
        let passes =
            FusedBatch::of_step(&Preset::Base8m.config(), &[vec![&a, &b, &c, &d], vec![&a]], grouping);
        let shapes: Vec<_> = passes.iter().map(|p| (p.batch.rows(), p.micros.clone(), p.part)).collect();
        assert_eq!(shapes, [(50, 0..1, 0), (40, 0..1, 1), (60, 0..1, 2), (20, 1..2, 0)]);
        assert_eq!((passes[0].rows.len(), passes[0].rows[0].clone()), (1, 0..50));
        let labels: usize = passes.iter().map(|pass| pass.batch.trained_tokens()).sum();
        assert_eq!(labels, 19 + 29 + 39 + 59 + 19);
    }
}
