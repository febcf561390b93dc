//! One prompt, one continuation: prefill, then a token at a time until something says stop.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use danlu_model::{Decoder, LoraSource, ModelError, Workspace};

use crate::{Context, GenerateError, Sampler, Sampling};

/// When to stop and how to choose.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// At most this many new tokens.
    pub max_new_tokens: usize,
    /// Ending tokens; the one that ends a reply is not part of it. Empty: only the limit ends it.
    pub stop_ids: BTreeSet<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
}

/// Why a continuation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The model wrote this ending token.
    EndToken(u32),
    /// `max_new_tokens` were written.
    MaxNewTokens,
    /// The context has no room for another token.
    ContextFull,
    /// The caller's callback asked for it.
    Caller,
}

/// A continuation and what it took.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// The new tokens, without the ending one.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub stop: StopReason,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// How many of them were still in the cache from before.
    pub reused_tokens: usize,
    /// From the call to the first token.
    pub prefill: Duration,
    /// From the first token to the last.
    pub decode: Duration,
}

impl Generated {
    /// New tokens a second after the first one; 0 where there was no second one.
    pub fn tokens_per_second(&self) -> f64 {
        let steps = self.ids.len().saturating_sub(1) as f64;
        if steps > 0.0 { steps / self.decode.as_secs_f64().max(1e-9) } else { 0.0 }
    }
}

/// Continues `prompt` in a fresh cache of just the size needed. `on_token` sees each new token as it comes.
///
/// # Errors
/// If a sampling setting is out of range, the prompt is empty or fills the model's context, a token is
/// outside the vocabulary, or the logits hold no number.
pub fn generate(
    decoder: &Decoder,
    work: &mut Workspace,
    lora: Option<&dyn LoraSource>,
    prompt: &[u32],
    options: &GenerateOptions,
    on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
) -> Result<Generated, GenerateError> {
    let capacity =
        decoder.config().max_position_embeddings.min(prompt.len().saturating_add(options.max_new_tokens));
    let mut context = Context::with_workspace(decoder, lora, capacity, std::mem::take(work));
    let generated = generate_in(&mut context, prompt, options, on_token);
    *work = context.into_workspace();
    generated
}

/// As [`generate`], in a context that keeps what it has read for the next call.
///
/// # Errors
/// As [`generate`]; the limit is the context's capacity.
pub fn generate_in(
    context: &mut Context<'_>,
    prompt: &[u32],
    options: &GenerateOptions,
    on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
) -> Result<Generated, GenerateError> {
    let capacity = context.capacity();
    let reused_tokens = context.shared_prefix(prompt);
    let generated = run(&mut |ids| context.logits_after(ids), capacity, prompt, options, on_token)?;
    Ok(Generated { reused_tokens, ..generated })
}

/// Gives the logits of the token after some ids.
type LogitsAfter<'a> = dyn FnMut(&[u32]) -> Result<Vec<f32>, ModelError> + 'a;

/// The loop itself, over any source of next-token logits.
fn run(
    logits_after: &mut LogitsAfter<'_>,
    capacity: usize,
    prompt: &[u32],
    options: &GenerateOptions,
    on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
) -> Result<Generated, GenerateError> {
    let mut sampler = Sampler::new(options.sampling.clone())?;
    if prompt.is_empty() {
        return Err(GenerateError::EmptyPrompt);
    }
    if prompt.len() > capacity {
        return Err(GenerateError::PromptTooLong { prompt: prompt.len(), context: capacity });
    }
    let start = Instant::now();
    let mut first = None;
    let mut text = prompt.to_vec();
    let stop = loop {
        if text.len() - prompt.len() == options.max_new_tokens {
            break StopReason::MaxNewTokens;
        }
        if text.len() > capacity {
            break StopReason::ContextFull;
        }
        let logits = logits_after(&text)?;
        let id = sampler.next(&logits, &text).ok_or(GenerateError::NoLogit { position: text.len() })?;
        first.get_or_insert_with(|| start.elapsed());
        if options.stop_ids.contains(&id) {
            break StopReason::EndToken(id);
        }
        text.push(id);
        if on_token(id).is_break() {
            break StopReason::Caller;
        }
    };
    let prefill = first.unwrap_or_default();
    Ok(Generated {
        ids: text.split_off(prompt.len()),
        stop,
        prompt_tokens: prompt.len(),
        reused_tokens: 0,
        prefill,
        decode: start.elapsed().saturating_sub(prefill),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(max_new_tokens: usize, stop_ids: &[u32]) -> GenerateOptions {
        let stop_ids = stop_ids.iter().copied().collect();
        GenerateOptions { max_new_tokens, stop_ids, sampling: Sampling::greedy() }
    }

    /// A model of eight tokens that always counts on: after `n` comes `n + 1`.
    fn count(prompt: &[u32], capacity: usize, options: &GenerateOptions) -> Result<Generated, GenerateError> {
        let mut next = |ids: &[u32]| {
            let mut logits = vec![0.0; 8];
            logits[(ids[ids.len() - 1] as usize + 1) % 8] = 1.0;
            Ok(logits)
        };
        run(&mut next, capacity, prompt, options, &mut |_| ControlFlow::Continue(()))
    }

    #[test]
    fn any_stop_token_ends_the_reply_and_stays_out_of_it() {
        let generated = count(&[0, 1], 100, &options(50, &[6, 4])).unwrap();
        assert_eq!(generated.ids, [2, 3]);
        assert_eq!(generated.stop, StopReason::EndToken(4));
        assert_eq!(generated.prompt_tokens, 2);
    }

    #[test]
    fn limits_end_the_reply_and_say_which() {
        let generated = count(&[0], 100, &options(3, &[])).unwrap();
        assert_eq!((generated.ids, generated.stop), (vec![1, 2, 3], StopReason::MaxNewTokens));
        // Three tokens are read, and the fourth is written after them without being read.
        let generated = count(&[0], 3, &options(50, &[])).unwrap();
        assert_eq!((generated.ids, generated.stop), (vec![1, 2, 3], StopReason::ContextFull));
        let generated = count(&[0], 3, &options(0, &[])).unwrap();
        assert_eq!((generated.ids, generated.stop), (vec![], StopReason::MaxNewTokens));
    }

    #[test]
    fn prompts_that_cannot_be_continued_are_refused() {
        assert!(matches!(count(&[], 9, &options(1, &[])), Err(GenerateError::EmptyPrompt)));
        let error = count(&[0; 10], 9, &options(1, &[])).unwrap_err();
        assert_eq!(error.to_string(), "the prompt is 10 tokens, and the context holds 9");
    }

    #[test]
    fn the_callback_sees_every_token_and_may_stop() {
        let mut seen = Vec::new();
        let mut next = |_: &[u32]| Ok(vec![0.0, 1.0]);
        let mut on_token = |id| {
            seen.push(id);
            if seen.len() == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let generated = run(&mut next, 100, &[0], &options(50, &[]), &mut on_token).unwrap();
        assert_eq!((generated.ids.len(), generated.stop), (3, StopReason::Caller));
        assert_eq!(seen, [1, 1, 1]);
    }

    #[test]
    fn logits_without_a_number_are_an_error_not_a_token() {
        let mut next = |_: &[u32]| Ok(vec![f32::NAN; 4]);
        let result = run(&mut next, 9, &[0, 1], &options(5, &[]), &mut |_| ControlFlow::Continue(()));
        assert_eq!(result.unwrap_err().to_string(), "the model gave no usable logit after 2 tokens");
    }
}
