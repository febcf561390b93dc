//! Fingerprint of the training data. A resumed run compares this fingerprint with that in the checkpoint.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Example;

/// The fingerprint of token ids and loss masks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExamplesFingerprint {
    /// Number of records.
    pub records: u64,
    /// Total number of tokens in all records.
    pub tokens: u64,
    /// SHA-256 of the token ids and masks of all records, in order.
    pub sha256: String,
}

impl ExamplesFingerprint {
    /// Returns the fingerprint of `examples`.
    pub fn of(examples: &[Example]) -> Self {
        let mut hash = Sha256::new();
        let mut tokens = 0;
        for example in examples {
            let sequence = &example.sequence;
            tokens += sequence.ids.len() as u64;
            hash.update((sequence.ids.len() as u64).to_le_bytes());
            for (id, &trained) in sequence.ids.iter().zip(&sequence.trained) {
                hash.update((u64::from(*id) << 1 | u64::from(trained)).to_le_bytes());
            }
        }
        Self { records: examples.len() as u64, tokens, sha256: hex::encode(hash.finalize()) }
    }

    pub(crate) fn describe(&self) -> String {
        let Self { records, tokens, sha256 } = self;
        format!("{records} records of {tokens} tokens (sha256 {}…)", sha256.get(..12).unwrap_or(sha256))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use danlu_model::LabeledSequence;

    #[test]
    fn every_id_mark_and_boundary_counts() {
        let data = |records: &[(&[u32], &[bool])]| {
            let example = |(ids, trained): &(&[u32], &[bool])| Example {
                sequence: LabeledSequence { ids: ids.to_vec(), trained: trained.to_vec() },
                origin: String::new(),
            };
            ExamplesFingerprint::of(&records.iter().map(example).collect::<Vec<_>>()).sha256
        };
        let all = [
            data(&[(&[1, 2, 3], &[false, true, true])]),
            data(&[(&[1, 2, 3], &[false, true, false])]),
            data(&[(&[1, 2, 4], &[false, true, true])]),
            data(&[(&[1, 2], &[false, true]), (&[3], &[true])]),
        ];
        for (i, a) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|b| a != b));
        }
    }
}
