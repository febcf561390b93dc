//! Settings of a [`Sampler`](crate::Sampler).

use crate::GenerateError;

/// Settings for the choice of tokens. By default, tokens are sampled from the model's own distribution.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingOptions {
    /// Divisor of the logits. With 0, the largest logit is always chosen.
    pub temperature: f32,
    /// Retains the `top_k` largest logits, and all logits that equal the smallest of these. 0 retains all.
    pub top_k: usize,
    /// Retains the fewest most likely tokens whose probabilities add up to `top_p`. 1 retains all.
    pub top_p: f32,
    /// Retains tokens whose probability is at least `min_p` times the largest probability. 0 retains all.
    pub min_p: f32,
    /// Lowers the logits of tokens in the context. Positive logits are divided by this value, and negative
    /// logits are multiplied by this value. 1 has no effect. Source: Keskar et al., 2019, section 4.1.
    pub repetition_penalty: f32,
    /// Seed of the random stream.
    pub seed: u64,
}

impl Default for SamplingOptions {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 0 }
    }
}

impl SamplingOptions {
    /// Returns settings that always choose the largest logit.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Checks that every setting is in its range.
    ///
    /// # Errors
    /// [`GenerateError::Setting`] with the first setting that is out of range.
    pub fn check(&self) -> Result<(), GenerateError> {
        let rule = |name, value: f32, ok: bool, expected| {
            let found = value.to_string();
            if ok { Ok(()) } else { Err(GenerateError::Setting { name, found, expected }) }
        };
        let unit = 0.0..=1.0;
        rule(
            "temperature",
            self.temperature,
            self.temperature >= 0.0 && self.temperature.is_finite(),
            "0 or more",
        )?;
        rule("top-p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0 and at most 1")?;
        rule("min-p", self.min_p, unit.contains(&self.min_p), "between 0 and 1")?;
        let penalty = self.repetition_penalty;
        rule("repetition-penalty", penalty, penalty > 0.0 && penalty.is_finite(), "above 0")
    }
}
