//! One prompt and its continuation: ids, sampler and stop rules.

use std::collections::BTreeSet;

use crate::logits::ModelDistribution;
use crate::{GenerateError, LogitsProcessor, Sampler, TokenLogprobs};

/// Rules that end a continuation.
#[derive(Clone, Debug)]
pub struct StopRules {
    /// Maximum number of new tokens.
    pub max_new_tokens: usize,
    /// Size of the context: the maximum number of tokens that the model reads, including the prompt.
    pub max_context_tokens: usize,
    /// Tokens that end the continuation. The continuation does not include the end token.
    pub stop_ids: BTreeSet<u32>,
}

/// Reason why a continuation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The model generated this end token.
    EndToken(u32),
    /// The continuation has `max_new_tokens` tokens.
    MaxNewTokens,
    /// The context is full.
    ContextFull,
    /// A callback stopped the continuation.
    Caller,
}

/// Result of [`Sequence::push`].
#[derive(Clone, Debug, PartialEq)]
pub struct TokenStep {
    /// The appended token, or `None` for an end token.
    pub token: Option<u32>,
    /// Log probabilities of the appended token, if the sequence records them.
    pub logprobs: Option<TokenLogprobs>,
    /// Reason why the sequence ended, or `None` if it has not ended.
    pub stop: Option<StopReason>,
}

/// A prompt and its continuation. Each [`Sequence::push`] chooses one more token.
///
/// A sequence does not run the model: [`Engine`](crate::Engine) does. A scheduler may move a sequence from
/// one slot to another.
pub struct Sequence {
    ids: Vec<u32>,
    prompt_len: usize,
    sampler: Sampler,
    processor: Option<Box<dyn LogitsProcessor>>,
    /// Number of most likely tokens that are recorded with each new token.
    top_logprobs: Option<usize>,
    rules: StopRules,
    stop: Option<StopReason>,
}

impl Sequence {
    /// Returns a sequence with the prompt `prompt` and no continuation.
    ///
    /// # Errors
    /// If the prompt is empty, or longer than the context.
    pub fn new(prompt: Vec<u32>, sampler: Sampler, rules: StopRules) -> Result<Self, GenerateError> {
        let (prompt_len, context) = (prompt.len(), rules.max_context_tokens);
        if prompt_len == 0 {
            return Err(GenerateError::EmptyPrompt);
        }
        if prompt_len > context {
            return Err(GenerateError::PromptTooLong { prompt: prompt_len, context });
        }
        let stop = (rules.max_new_tokens == 0).then_some(StopReason::MaxNewTokens);
        Ok(Self { ids: prompt, prompt_len, sampler, processor: None, top_logprobs: None, rules, stop })
    }

    /// Sets the processor that changes logits before a token is chosen.
    pub fn with_processor(mut self, processor: Option<Box<dyn LogitsProcessor>>) -> Self {
        self.processor = processor;
        self
    }

    /// Records the log probability of each new token, and those of the `top` most likely tokens. `None`
    /// records nothing.
    pub fn with_logprobs(mut self, top: Option<usize>) -> Self {
        self.top_logprobs = top;
        self
    }

    /// Returns the ids of the prompt and of the continuation.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Returns the number of prompt tokens.
    pub fn prompt_len(&self) -> usize {
        self.prompt_len
    }

    /// Returns the new tokens without the end token.
    pub fn new_ids(&self) -> &[u32] {
        &self.ids[self.prompt_len..]
    }

    /// Returns the reason why the sequence ended, or `None` if it has not ended.
    pub fn stop(&self) -> Option<StopReason> {
        self.stop
    }

    /// Returns the stop rules.
    pub fn rules(&self) -> &StopRules {
        &self.rules
    }

    /// Chooses the next token. `logits` are the logits after the last token. If the sequence has ended,
    /// nothing changes.
    ///
    /// # Errors
    /// If every logit is NaN or minus infinity, or the processor fails.
    pub fn push(&mut self, logits: &mut [f32]) -> Result<TokenStep, GenerateError> {
        if self.stop.is_some() {
            return Ok(TokenStep { token: None, logprobs: None, stop: self.stop });
        }
        let position = self.ids.len();
        let distribution = self.top_logprobs.map(|top| ModelDistribution::of(logits, top));
        if let Some(processor) = &mut self.processor {
            processor
                .apply(&self.ids[self.prompt_len..], logits)
                .map_err(|reason| GenerateError::Processor { position, reason })?;
        }
        let id = self.sampler.next(logits, &self.ids).ok_or(GenerateError::NoLogit { position })?;
        if let Some(processor) = &mut self.processor {
            processor.advance(id);
        }
        if self.rules.stop_ids.contains(&id) {
            self.stop = Some(StopReason::EndToken(id));
            return Ok(TokenStep { token: None, logprobs: None, stop: self.stop });
        }
        self.ids.push(id);
        if self.new_ids().len() == self.rules.max_new_tokens {
            self.stop = Some(StopReason::MaxNewTokens);
        } else if self.ids.len() > self.rules.max_context_tokens {
            self.stop = Some(StopReason::ContextFull);
        }
        let logprobs = distribution.map(|distribution| distribution.logprobs(id));
        Ok(TokenStep { token: Some(id), logprobs, stop: self.stop })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SamplingOptions;

    fn sequence(
        prompt: &[u32],
        context: usize,
        max_new: usize,
        stop_ids: &[u32],
    ) -> Result<Sequence, GenerateError> {
        let stop_ids = stop_ids.iter().copied().collect();
        let rules = StopRules { max_new_tokens: max_new, max_context_tokens: context, stop_ids };
        Sequence::new(prompt.to_vec(), Sampler::new(SamplingOptions::greedy()).unwrap(), rules)
    }

    /// Continues the sequence with a test model of eight tokens that predicts `n + 1` after `n`.
    fn count(mut sequence: Sequence) -> (Vec<u32>, StopReason) {
        loop {
            if let Some(stop) = sequence.stop() {
                return (sequence.new_ids().to_vec(), stop);
            }
            let mut logits = vec![0.0; 8];
            logits[(sequence.ids()[sequence.ids().len() - 1] as usize + 1) % 8] = 1.0;
            let (before, step) = (sequence.new_ids().len(), sequence.push(&mut logits).unwrap());
            assert_eq!(step.token.is_some(), sequence.new_ids().len() > before);
            assert_eq!(step.stop, sequence.stop());
        }
    }

    #[test]
    fn any_stop_token_ends_the_continuation_and_stays_out_of_it() {
        let found = count(sequence(&[0, 1], 100, 50, &[6, 4]).unwrap());
        assert_eq!(found, (vec![2, 3], StopReason::EndToken(4)));
    }

    #[test]
    fn the_limit_that_is_reached_first_is_the_reason() {
        let found = |context, max_new| count(sequence(&[0], context, max_new, &[]).unwrap());
        assert_eq!(found(100, 3), (vec![1, 2, 3], StopReason::MaxNewTokens));
        // The context has room for three tokens. The fourth token is chosen from the logits of the third, and
        // is never read.
        assert_eq!(found(3, 50), (vec![1, 2, 3], StopReason::ContextFull));
        assert_eq!(found(3, 0), (vec![], StopReason::MaxNewTokens));
    }

    #[test]
    fn prompts_without_tokens_or_room_are_rejected() {
        assert!(matches!(sequence(&[], 9, 1, &[]), Err(GenerateError::EmptyPrompt)));
        let error = sequence(&[0; 10], 9, 1, &[]).err().unwrap();
        assert_eq!(
            error.to_string(),
            "cannot read the prompt: it has 10 tokens, and the context has room for 9"
        );
    }

    /// A processor that excludes every token except one.
    struct Only(u32);

    impl LogitsProcessor for Only {
        fn apply(&mut self, new_ids: &[u32], logits: &mut [f32]) -> Result<(), String> {
            if new_ids.len() == 2 {
                return Err("no token may follow".to_owned());
            }
            let excluded = logits.iter_mut().enumerate().filter(|&(id, _)| id as u32 != self.0);
            excluded.for_each(|(_, logit)| *logit = f32::NEG_INFINITY);
            Ok(())
        }
    }

    #[test]
    fn a_processor_changes_the_choice_but_not_the_log_probabilities() {
        let sequence = sequence(&[0], 9, 5, &[]).unwrap().with_logprobs(Some(1));
        let mut sequence = sequence.with_processor(Some(Box::new(Only(2))));
        let step = sequence.push(&mut [0.0; 4]).unwrap();
        let logprobs = step.logprobs.unwrap();
        assert_eq!((step.token, logprobs.logprob), (Some(2), -(4.0f32).ln()));
        assert_eq!(logprobs.top, [(0, -(4.0f32).ln())]);
        sequence.push(&mut [0.0; 4]).unwrap();
        let error = sequence.push(&mut [0.0; 4]).unwrap_err();
        assert_eq!(error.to_string(), "cannot choose a token after 3 tokens: no token may follow");
    }

    #[test]
    fn logits_without_a_number_are_an_error() {
        let mut sequence = sequence(&[0, 1], 9, 5, &[]).unwrap();
        let error = sequence.push(&mut [f32::NAN; 4]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot choose a token after 2 tokens: every logit is NaN or minus infinity"
        );
        assert_eq!((sequence.ids().len(), sequence.stop()), (2, None));
    }
}
