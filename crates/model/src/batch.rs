//! Packed sequences without padding. A token attends only to tokens of its own sequence. The rows of a shared
//! prefix are stored once.

use danlu_kernels::Segment;

use crate::ModelConfig;
use crate::prefix_sharing::{SharedPrefix, find_shared_prefixes};

/// A training or evaluation example: token ids, and a flag for each token that carries a loss.
///
/// If `trained[i]` is true, token `i` is a target that the model predicts from the tokens before it.
/// `trained[0]` has no effect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabeledSequence {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Whether each token carries a loss. This list is as long as `ids`.
    pub trained: Vec<bool>,
}

impl LabeledSequence {
    /// Returns the number of tokens that carry a loss.
    pub fn trained_tokens(&self) -> usize {
        self.trained.iter().skip(1).filter(|&&t| t).count()
    }

    /// Returns the tokens at the start that other sequences may share. They end before the first row that
    /// predicts a trained token, and never include the last token.
    pub fn beginning(&self) -> &[u32] {
        let last = self.ids.len().saturating_sub(1);
        let first_label = self.trained.iter().skip(1).position(|&trained| trained);
        &self.ids[..first_label.map_or(last, |row| row.min(last))]
    }
}

/// Packed sequences with their boundaries and labels.
///
/// If a sequence shares a prefix with an earlier sequence, only the earlier sequence has rows for the prefix.
/// Token `t` of sequence `s` has row `keys[segments[s].kv_start + t]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Token id of each row, `(N)`.
    pub ids: Vec<u32>,
    /// Position of each row within its own sequence, `(N)`.
    pub positions: Vec<u32>,
    /// One segment per sequence, with the sequence's range of rows and its range of keys.
    pub segments: Vec<Segment>,
    /// The row of each token of each sequence, `(M)`.
    pub keys: Vec<u32>,
    /// Rows whose next token is a target, in ascending order.
    pub label_rows: Vec<u32>,
    /// The target token of each row in `label_rows`.
    pub targets: Vec<u32>,
}

impl Batch {
    /// Packs `sequences` in order.
    ///
    /// Sequences with a [common prefix](find_shared_prefixes) share the rows of the prefix, so they also
    /// share the adapter and the dropout mask of these rows. For sequences with different adapters,
    /// [append](Batch::append) separate batches.
    ///
    /// # Panics
    /// If the lengths of `trained` and `ids` of a sequence differ.
    pub fn new<'a>(sequences: impl IntoIterator<Item = &'a LabeledSequence>) -> Self {
        let sequences: Vec<&LabeledSequence> = sequences
            .into_iter()
            .inspect(|sequence| assert_eq!(sequence.ids.len(), sequence.trained.len()))
            .filter(|sequence| !sequence.ids.is_empty())
            .collect();
        let beginnings: Vec<&[u32]> = sequences.iter().map(|sequence| sequence.beginning()).collect();
        let tokens = sequences.iter().map(|sequence| sequence.ids.len()).sum();
        let mut batch = Self::default();
        for (sequence, shared) in sequences.into_iter().zip(find_shared_prefixes(&beginnings, tokens)) {
            let LabeledSequence { ids, trained } = sequence;
            let (row, key, len) = (batch.rows(), batch.tokens(), ids.len());
            let begun = shared.map_or(0, |SharedPrefix { with, tokens }| {
                let from = batch.segments[with].kv_start;
                batch.keys.extend_from_within(from..from + tokens);
                tokens
            });
            batch.ids.extend_from_slice(&ids[begun..]);
            batch.positions.extend(begun as u32..len as u32);
            batch.keys.extend(row as u32..batch.rows() as u32);
            batch.segments.push(Segment { q_start: row, q_len: len - begun, kv_start: key, kv_len: len });
            for i in (1..len).filter(|&i| trained[i]) {
                batch.label_rows.push((row + i - 1 - begun) as u32);
                batch.targets.push(ids[i]);
            }
        }
        batch
    }

    /// Packs `sequences` in order for a model with the configuration `config`. The sequences share no prefix
    /// if `unshared` is true, or if the model's rotary frequencies depend on the length of a sequence.
    ///
    /// # Panics
    /// The panics of [`Batch::new`].
    pub fn for_model<'a>(
        config: &ModelConfig,
        unshared: bool,
        sequences: impl IntoIterator<Item = &'a LabeledSequence>,
    ) -> Self {
        if !unshared && !config.rope.depends_on_length() {
            return Self::new(sequences);
        }
        let mut batch = Self::default();
        sequences.into_iter().for_each(|sequence| batch.append(&Self::new([sequence])));
        batch
    }

    /// Appends another batch. Rows are never shared between the two batches.
    pub fn append(&mut self, other: &Self) {
        let (row, key) = (self.rows(), self.tokens());
        let behind = |rows: &[u32]| -> Vec<u32> { rows.iter().map(|r| row as u32 + r).collect() };
        self.keys.extend(behind(&other.keys));
        self.label_rows.extend(behind(&other.label_rows));
        self.segments.extend(other.segments.iter().map(|s| Segment {
            q_start: row + s.q_start,
            kv_start: key + s.kv_start,
            ..*s
        }));
        self.ids.extend_from_slice(&other.ids);
        self.positions.extend_from_slice(&other.positions);
        self.targets.extend_from_slice(&other.targets);
    }

    /// Returns the number of computed rows, `N`.
    pub fn rows(&self) -> usize {
        self.ids.len()
    }

    /// Returns the number of tokens of all sequences, `M`. `M` is larger than `N` if prefixes are shared.
    pub fn tokens(&self) -> usize {
        self.keys.len()
    }

    /// Returns the row of each key. Returns `None` if every key `i` has row `i`.
    pub(crate) fn shared_keys(&self) -> Option<&[u32]> {
        (self.tokens() > self.rows()).then_some(&self.keys)
    }

    /// Returns the number of tokens that carry a loss.
    pub fn trained_tokens(&self) -> usize {
        self.targets.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_never_cross_a_boundary() {
        let first = LabeledSequence { ids: vec![1, 2, 3], trained: vec![true, false, true] };
        let second = LabeledSequence { ids: vec![4, 5], trained: vec![true, true] };
        let batch = Batch::new([&first, &LabeledSequence::default(), &second]);
        assert_eq!(batch.ids, [1, 2, 3, 4, 5]);
        assert_eq!(batch.positions, [0, 1, 2, 0, 1]);
        assert_eq!(batch.label_rows, [1, 3]);
        assert_eq!(batch.targets, [3, 5]);
        assert_eq!(batch.segments.len(), 2);
        assert_eq!(batch.trained_tokens(), first.trained_tokens() + second.trained_tokens());
    }

    #[test]
    fn a_common_prefix_has_rows_once_and_keys_for_each() {
        let sequence = |ids: &[u32], from: usize| LabeledSequence {
            ids: ids.to_vec(),
            trained: (0..ids.len()).map(|i| i >= from).collect(),
        };
        let (a, b) = (sequence(&[1, 2, 3, 4], 3), sequence(&[1, 2, 3, 5, 6], 4));
        let mut batch = Batch::new([&a, &b]);
        // The row of the third token of `a` predicts the first label.
        assert_eq!((batch.rows(), batch.tokens()), (7, 9));
        assert_eq!(batch.ids, [1, 2, 3, 4, 3, 5, 6]);
        assert_eq!(batch.positions, [0, 1, 2, 3, 2, 3, 4]);
        assert_eq!(batch.keys, [0, 1, 2, 3, 0, 1, 4, 5, 6]);
        assert_eq!(batch.segments[1], Segment { q_start: 4, q_len: 3, kv_start: 4, kv_len: 5 });
        assert_eq!((&batch.label_rows[..], &batch.targets[..]), (&[2, 5][..], &[4, 6][..]));
        batch.append(&Batch::new([&b]));
        assert_eq!(
            (batch.rows(), batch.tokens()),
            (12, 14),
            "what is appended shares nothing with what was there"
        );
        assert_eq!(batch.keys[9..], [7, 8, 9, 10, 11]);
    }

    #[test]
    fn a_shareable_prefix_ends_before_the_first_label_and_the_last_token() {
        let beginning = |trained: &[bool]| {
            let sequence =
                LabeledSequence { ids: (0..trained.len() as u32).collect(), trained: trained.to_vec() };
            sequence.beginning().len()
        };
        assert_eq!(beginning(&[]), 0);
        assert_eq!(beginning(&[true]), 0);
        assert_eq!(beginning(&[false, false, false]), 2);
        assert_eq!(beginning(&[true, false, true]), 1);
        assert_eq!(beginning(&[true, true, true]), 0);
    }
}
