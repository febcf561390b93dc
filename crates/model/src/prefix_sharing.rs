//! Finds the common prefixes of sequences, such as a system message. A common prefix is computed once.
//!
//! A row depends only on the tokens up to its own position. Two sequences thus have the same rows, keys and
//! values in a common prefix. Rows with a label are never shared.

use std::collections::BTreeMap;

/// Prefixes are shared only if this removes at least 1 token in 32. If fewer tokens are removed, copying
/// keys, values and gradients costs more time than sharing saves.
const MIN_SHARED_FRACTION: f64 = 1.0 / 32.0;

/// A prefix that a sequence has in common with an earlier sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedPrefix {
    /// Index of the earlier sequence.
    pub with: usize,
    /// Tokens of the prefix, at least 1.
    pub tokens: usize,
}

/// Returns, for each sequence, the longest prefix that it shares with an earlier sequence. `beginnings` are
/// the shareable tokens of each sequence: [`LabeledSequence::beginning`](crate::LabeledSequence::beginning).
///
/// `tokens` is the number of tokens of all sequences. If sharing would remove too few tokens, all results are
/// `None`.
pub fn find_shared_prefixes(beginnings: &[&[u32]], tokens: usize) -> Vec<Option<SharedPrefix>> {
    let mut earlier: BTreeMap<&[u32], usize> = BTreeMap::new();
    let mut shared = Vec::with_capacity(beginnings.len());
    for (i, &own) in beginnings.iter().enumerate() {
        // In sorted order, the sequence with the longest common prefix is the previous or the next one.
        let neighbours = [earlier.range(..=own).next_back(), earlier.range(own..).next()];
        let alike = neighbours.into_iter().flatten().map(|(other, &with)| {
            let tokens = own.iter().zip(*other).take_while(|(a, b)| a == b).count();
            SharedPrefix { with, tokens }
        });
        shared.push(alike.max_by_key(|shared| shared.tokens).filter(|shared| shared.tokens > 0));
        earlier.entry(own).or_insert(i);
    }
    let saved: usize = shared.iter().flatten().map(|shared| shared.tokens).sum();
    if (saved as f64) < tokens as f64 * MIN_SHARED_FRACTION {
        shared.fill(None);
    }
    shared
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Finds the prefixes shared within `beginnings`. Returns the index of the earlier sequence and the
    /// length of the prefix. The number of tokens is the sum of the lengths of `beginnings`.
    fn shared(beginnings: &[&[u32]]) -> Vec<Option<(usize, usize)>> {
        let tokens = beginnings.iter().map(|beginning| beginning.len()).sum();
        let shared = find_shared_prefixes(beginnings, tokens);
        shared.into_iter().map(|shared| shared.map(|s| (s.with, s.tokens))).collect()
    }

    #[test]
    fn one_system_message_is_computed_once() {
        let found = shared(&[&[1, 2, 3, 9], &[1, 2, 3, 8, 7], &[1, 2, 3]]);
        assert_eq!(found, [None, Some((0, 3)), Some((1, 3))]);
    }

    #[test]
    fn each_sequence_shares_its_longest_prefix() {
        let (a, b, c): (&[u32], &[u32], &[u32]) = (&[1, 2, 3, 4], &[1, 5, 6, 7], &[1, 8]);
        assert_eq!(
            shared(&[a, b, b, c, a]),
            [None, Some((0, 1)), Some((1, 4)), Some((1, 1)), Some((0, 4))],
            "what all begin with is shared too"
        );
    }

    #[test]
    fn sequences_without_a_common_prefix_share_nothing() {
        assert_eq!(shared(&[]), []);
        assert_eq!(shared(&[&[], &[1], &[2, 1], &[]]), [None; 4]);
    }

    #[test]
    fn few_common_tokens_are_not_shared() {
        let worth = |tokens| find_shared_prefixes(&[&[1, 2, 3], &[1, 2, 4]], tokens)[1].is_some();
        assert!(worth(64) && !worth(65));
    }

    #[test]
    fn shared_prefixes_are_equal_and_as_long_as_possible() {
        let mut stream = danlu_kernels::rng::Stream::new(4);
        for _ in 0..300 {
            let beginnings: Vec<Vec<u32>> = (0..1 + stream.next_below(12))
                .map(|_| (0..stream.next_below(6)).map(|_| stream.next_below(2) as u32).collect())
                .collect();
            let beginnings: Vec<&[u32]> = beginnings.iter().map(Vec::as_slice).collect();
            for (i, shared) in find_shared_prefixes(&beginnings, 0).into_iter().enumerate() {
                let alike = |with: usize| {
                    beginnings[with].iter().zip(beginnings[i]).take_while(|(a, b)| a == b).count()
                };
                let most = (0..i).map(alike).max().unwrap_or(0);
                assert_eq!(shared.map_or(0, |shared| shared.tokens), most, "{beginnings:?}");
                assert!(shared.is_none_or(|s| s.with < i && alike(s.with) == most), "{beginnings:?}");
            }
        }
    }
}
