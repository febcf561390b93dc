//! Changes to logits: biases, penalties, and a minimum length of the reply.

use std::collections::{BTreeSet, HashMap};

use danlu_generate::LogitsProcessor;

use crate::grammar::TokenMask;
use crate::sampling_fields::SamplingFields;

/// Applies `logit_bias`, both penalties, `min_tokens` and a grammar to one choice.
pub(crate) struct LogitsRules {
    biases: Vec<(u32, f32)>,
    frequency_penalty: f32,
    presence_penalty: f32,
    min_tokens: usize,
    stop_ids: BTreeSet<u32>,
    /// Number of occurrences of each token in the reply.
    counts: HashMap<u32, u32>,
    counted: usize,
    mask: Option<TokenMask>,
}

impl LogitsRules {
    /// Returns the rules in `sampling` and the grammar's mask, or `None` if nothing changes logits.
    pub fn new(sampling: &SamplingFields, stop_ids: &BTreeSet<u32>, mask: Option<TokenMask>) -> Option<Self> {
        let rules = Self {
            biases: sampling.logit_bias.clone(),
            frequency_penalty: sampling.frequency_penalty,
            presence_penalty: sampling.presence_penalty,
            min_tokens: sampling.min_tokens,
            stop_ids: stop_ids.clone(),
            counts: HashMap::new(),
            counted: 0,
            mask,
        };
        let has_penalty = rules.frequency_penalty != 0.0 || rules.presence_penalty != 0.0;
        let is_set = has_penalty || !rules.biases.is_empty() || rules.min_tokens > 0;
        (is_set || rules.mask.is_some()).then_some(rules)
    }

    fn add(logits: &mut [f32], id: u32, value: f32) {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit += value;
        }
    }
}

impl LogitsProcessor for LogitsRules {
    fn apply(&mut self, new_ids: &[u32], logits: &mut [f32]) -> Result<(), String> {
        for &id in &new_ids[self.counted.min(new_ids.len())..] {
            *self.counts.entry(id).or_default() += 1;
        }
        self.counted = new_ids.len();
        for &(id, bias) in &self.biases {
            Self::add(logits, id, bias);
        }
        // OpenAI counts only the tokens of the reply. The frequency penalty is subtracted once per
        // occurrence, and the presence penalty once per distinct token.
        if self.frequency_penalty != 0.0 || self.presence_penalty != 0.0 {
            for (&id, &count) in &self.counts {
                Self::add(logits, id, -(self.frequency_penalty * count as f32 + self.presence_penalty));
            }
        }
        if new_ids.len() < self.min_tokens {
            for &id in &self.stop_ids {
                Self::add(logits, id, f32::NEG_INFINITY);
            }
        }
        self.mask.as_mut().map_or(Ok(()), |mask| mask.apply(logits))
    }

    fn advance(&mut self, id: u32) {
        if let Some(mask) = &mut self.mask {
            mask.advance(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn penalties_count_the_tokens_of_the_reply() {
        let body = json!({
            "frequency_penalty": 0.5, "presence_penalty": 1.0, "logit_bias": {"3": -100}, "min_tokens": 4
        });
        let sampling = SamplingFields::read(body.as_object().unwrap(), 5).unwrap();
        let mut rules = LogitsRules::new(&sampling, &BTreeSet::from([4]), None).unwrap();
        let mut logits = [0.0; 5];
        rules.apply(&[1, 1, 2], &mut logits).unwrap();
        assert_eq!(logits, [0.0, -2.0, -1.5, -100.0, f32::NEG_INFINITY]);
        let mut logits = [0.0; 5];
        rules.apply(&[1, 1, 2, 1], &mut logits).unwrap();
        assert_eq!(logits, [0.0, -2.5, -1.5, -100.0, 0.0]);
    }
}
