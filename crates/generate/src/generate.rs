//! Continues one prompt: prefill, then one token at a time until a stop rule applies.

use std::collections::BTreeSet;
use std::mem;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use danlu_model::{Decoder, LoraSource, SlotId, Workspace};

use crate::{Engine, GenerateError, Sampler, SamplingOptions, Sequence, StopReason, StopRules};

/// Options of [`generate()`].
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// Maximum number of new tokens.
    pub max_new_tokens: usize,
    /// End tokens. A reply ends before the first end token. If the set is empty, no token ends the reply.
    pub stop_ids: BTreeSet<u32>,
    /// Settings of the sampler.
    pub sampling: SamplingOptions,
}

/// A continuation, with token counts and durations.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// The new tokens, without the end token.
    pub ids: Vec<u32>,
    /// Reason why the continuation ended.
    pub stop: StopReason,
    /// Number of tokens of the prompt.
    pub prompt_tokens: usize,
    /// Number of prompt tokens that were already in the cache.
    pub reused_tokens: usize,
    /// Time from the call to the first new token.
    pub prefill: Duration,
    /// Time from the first new token to the last.
    pub decode: Duration,
}

impl Generated {
    /// Returns the number of tokens per second, counted after the first new token. Returns 0 if there is no
    /// second token.
    pub fn tokens_per_second(&self) -> f64 {
        let steps = self.ids.len().saturating_sub(1) as f64;
        if steps > 0.0 { steps / self.decode.as_secs_f64().max(1e-9) } else { 0.0 }
    }
}

/// Continues `prompt` in a new slot of the required size. `on_token` receives each new token and can stop the
/// continuation.
///
/// # Errors
/// If a sampling setting is out of range, the prompt is empty or longer than the model's context, or a token
/// is outside the vocabulary. Also if every logit is NaN or minus infinity.
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
    let mut engine = Engine::with_workspace(decoder, mem::take(work));
    let slot = engine.open(capacity, lora.map(|lora| Arc::new(lora) as _));
    let generated = generate_in(&mut engine, slot, capacity, prompt, options, on_token);
    *work = engine.into_workspace();
    generated
}

/// Does the same as [`generate`], but in an existing slot of an engine that runs no other sequence. The slot
/// retains its keys and values for the next call.
pub(crate) fn generate_in(
    engine: &mut Engine<'_>,
    slot: SlotId,
    context: usize,
    prompt: &[u32],
    options: &GenerateOptions,
    on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
) -> Result<Generated, GenerateError> {
    let GenerateOptions { max_new_tokens, stop_ids, sampling } = options.clone();
    let rules = StopRules { max_new_tokens, max_context_tokens: context, stop_ids };
    let sequence = Sequence::new(prompt.to_vec(), Sampler::new(sampling)?, rules)?;
    let start = Instant::now();
    let mut prefill = None;
    let reused_tokens = engine.start(slot, sequence)?;
    let mut stopped_by_caller = false;
    while !stopped_by_caller && !engine.is_idle() {
        for output in engine.step()? {
            let step = output.step?;
            prefill.get_or_insert_with(|| start.elapsed());
            stopped_by_caller = step.token.is_some_and(|id| on_token(id).is_break());
        }
    }
    let sequence = engine.take(slot).expect("the sequence that was started here");
    let prefill = prefill.unwrap_or_default();
    Ok(Generated {
        ids: sequence.new_ids().to_vec(),
        stop: sequence.stop().filter(|_| !stopped_by_caller).unwrap_or(StopReason::Caller),
        prompt_tokens: prompt.len(),
        reused_tokens,
        prefill,
        decode: start.elapsed().saturating_sub(prefill),
    })
}
