//! The value of `--batch`.

use std::str::FromStr;

use crate::diagnostic::Result;

/// Number of sequences, and of tokens per sequence, such as `2x512`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchShape {
    pub sequences: usize,
    pub tokens: usize,
}

impl BatchShape {
    /// Upper limit of both numbers, which prevents an overflow of their product.
    pub const MAX: usize = 1 << 20;
}

impl Default for BatchShape {
    fn default() -> Self {
        Self { sequences: 2, tokens: 512 }
    }
}

impl FromStr for BatchShape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is not a batch: write sequences x tokens per sequence (2 or more), such as 2x512"
            )
        };
        let (sequences, tokens) = text.split_once(['x', 'X', '×']).ok_or_else(wrong)?;
        let number = |text: &str, least| {
            text.trim().parse().ok().filter(|n| (least..=Self::MAX).contains(n)).ok_or_else(wrong)
        };
        // A sequence needs two tokens, because its first token has no loss.
        Ok(Self { sequences: number(sequences, 1)?, tokens: number(tokens, 2)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_two_numbers() {
        let batch = |sequences, tokens| Ok(BatchShape { sequences, tokens });
        assert_eq!("2x512".parse(), batch(2, 512));
        assert_eq!("1 × 16".parse(), batch(1, 16));
        for text in ["2x", "x2", "2", "0x5", "2x1", "-1x4", "2x512x3", "2x9999999999999"] {
            assert!(text.parse::<BatchShape>().unwrap_err().contains("such as 2x512"), "{text}");
        }
    }
}
