//! Token sequences packed end to end: no padding, each attending only to itself.

use danlu_kernels::Segment;

/// One training or evaluation example: ids, and which of them carry a loss.
///
/// `trained[i]` says that token `i` is a target, predicted from the tokens before it. `trained[0]` has
/// no effect: nothing comes before the first token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sequence {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Per token, whether it is trained on; as long as `ids`.
    pub trained: Vec<bool>,
}

impl Sequence {
    /// Number of tokens that carry a loss.
    pub fn trained_tokens(&self) -> usize {
        self.trained.iter().skip(1).filter(|&&t| t).count()
    }
}

/// Sequences laid end to end, with their boundaries and labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Token ids, `(N)`.
    pub ids: Vec<u32>,
    /// Position of each token in its own sequence, `(N)`.
    pub positions: Vec<u32>,
    /// One segment per sequence.
    pub segments: Vec<Segment>,
    /// Rows whose next token is trained, ascending.
    pub label_rows: Vec<u32>,
    /// The token each of `label_rows` is to predict.
    pub targets: Vec<u32>,
}

impl Batch {
    /// Packs `sequences` in order.
    ///
    /// # Panics
    /// If a sequence's `trained` is not as long as its `ids`.
    pub fn new<'a>(sequences: impl IntoIterator<Item = &'a Sequence>) -> Self {
        let mut batch = Self::default();
        for sequence in sequences {
            assert_eq!(sequence.ids.len(), sequence.trained.len());
            let (start, len) = (batch.ids.len(), sequence.ids.len());
            if len == 0 {
                continue;
            }
            batch.ids.extend_from_slice(&sequence.ids);
            batch.positions.extend(0..len as u32);
            batch.segments.push(Segment { q_start: start, q_len: len, kv_start: start, kv_len: len });
            for i in (1..len).filter(|&i| sequence.trained[i]) {
                batch.label_rows.push((start + i - 1) as u32);
                batch.targets.push(sequence.ids[i]);
            }
        }
        batch
    }

    /// Number of tokens, `N`.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Number of tokens that carry a loss.
    pub fn trained_tokens(&self) -> usize {
        self.targets.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_never_cross_a_boundary() {
        let first = Sequence { ids: vec![1, 2, 3], trained: vec![true, false, true] };
        let second = Sequence { ids: vec![4, 5], trained: vec![true, true] };
        let batch = Batch::new([&first, &Sequence::default(), &second]);
        assert_eq!(batch.ids, [1, 2, 3, 4, 5]);
        assert_eq!(batch.positions, [0, 1, 2, 0, 1]);
        assert_eq!(batch.label_rows, [1, 3]);
        assert_eq!(batch.targets, [3, 5]);
        assert_eq!(batch.segments.len(), 2);
        assert_eq!(batch.trained_tokens(), first.trained_tokens() + second.trained_tokens());
    }
}
