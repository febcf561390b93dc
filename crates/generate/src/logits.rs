//! Reads and changes the logits of a sequence before a token is chosen.

use crate::candidates::largest_logits;

/// Changes the logits of one sequence before each token is chosen. Examples are a grammar and a bias.
///
/// The processor is called once for each new token, in order. If an interrupted sequence is read again, the
/// processor is not called again for the same tokens.
pub trait LogitsProcessor: Send {
    /// Changes the logits of the next token. `new_ids` contains the tokens generated so far. A logit of minus
    /// infinity excludes a token.
    ///
    /// # Errors
    /// If no next token is allowed. The sequence then fails with the returned reason.
    fn apply(&mut self, new_ids: &[u32], logits: &mut [f32]) -> Result<(), String>;

    /// Receives the chosen token. The processor can prepare its next call while the model computes the next
    /// logits.
    fn advance(&mut self, _id: u32) {}
}

/// The log probabilities of the chosen token and of the most likely tokens, before penalties, temperature and
/// filters.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// Natural logarithm of the chosen token's probability.
    pub logprob: f32,
    /// The most likely tokens and the natural logarithms of their probabilities, in descending order.
    pub top: Vec<(u32, f32)>,
}

/// The model's own distribution for the next token, stored until the token is chosen.
pub(crate) struct ModelDistribution {
    logits: Vec<f32>,
    /// Logarithm of the softmax's denominator.
    log_sum: f64,
    top: Vec<(u32, f32)>,
}

impl ModelDistribution {
    /// Returns the distribution of `logits` with its `top` most likely tokens.
    pub fn of(logits: &[f32], top: usize) -> Self {
        let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
        let weights = logits.iter().filter(|logit| !logit.is_nan()).map(|&logit| (logit as f64 - most).exp());
        let log_sum = most + weights.sum::<f64>().ln();
        let mut top = largest_logits(logits, top);
        top.iter_mut().for_each(|(_, logit)| *logit = (*logit as f64 - log_sum) as f32);
        Self { logits: logits.to_vec(), log_sum, top }
    }

    /// Returns the log probabilities of a token.
    pub fn logprobs(self, id: u32) -> TokenLogprobs {
        let logprob = (self.logits[id as usize] as f64 - self.log_sum) as f32;
        TokenLogprobs { logprob, top: self.top }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probabilities_are_those_of_the_softmax() {
        let logits = [1.0f32, 3.0, f32::NAN, 2.0, f32::NEG_INFINITY];
        let sum = [1.0f64, 3.0, 2.0].map(f64::exp).iter().sum::<f64>().ln();
        let found = ModelDistribution::of(&logits, 2).logprobs(0);
        assert!((found.logprob as f64 - (1.0 - sum)).abs() < 1e-6);
        assert_eq!(found.top.iter().map(|&(id, _)| id).collect::<Vec<_>>(), [1, 3]);
        assert!((found.top[1].1 as f64 - (2.0 - sum)).abs() < 1e-6);
        assert_eq!(ModelDistribution::of(&logits, 0).logprobs(1).top, []);
        assert_eq!(ModelDistribution::of(&logits, 9).logprobs(1).top.len(), 3);
    }
}
