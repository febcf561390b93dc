//! Predicts the memory of passes without training, by a dry run.

use std::sync::Arc;

use danlu_kernels::BackendOptions;
use danlu_model::{Batch, Decoder, LabeledSequence, ModelConfig, SlotInput, Workspace};

use crate::TrainError;

/// The largest pass of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InferencePass {
    /// A reply in a conversation.
    Reply {
        /// Number of prompt tokens that one pass reads.
        prompt: usize,
        /// Maximum number of tokens in the conversation.
        context: usize,
    },
    /// The losses of a batch.
    Losses {
        /// Number of tokens in the batch.
        tokens: usize,
    },
    /// The hidden states of one sequence in three models, and their logits.
    Comparison {
        /// Number of tokens in the sequence.
        tokens: usize,
        /// Number of rows of logits that are in memory at a time, for each model.
        logit_rows: usize,
    },
}

/// Memory of a model's passes in bytes. Neither the adapters nor the weights are included, except for the
/// norms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InferenceMemory {
    /// Norms, activations and working memory.
    pub working: u64,
    /// Keys and values of a full conversation.
    pub cache: u64,
}

impl InferenceMemory {
    /// Runs `pass` on the [`Trace`](danlu_kernels::Trace) of a back end.
    ///
    /// # Errors
    /// If the back end lacks an operation of the model.
    pub fn of(
        config: &ModelConfig,
        backend: BackendOptions,
        pass: InferencePass,
    ) -> Result<Self, TrainError> {
        let trace = Arc::new(backend.trace(0));
        let decoder = Decoder::trace(config.clone(), trace.clone());
        let (mut work, mut reserved, mut logits) = (Workspace::new(), 0, 0);
        match pass {
            InferencePass::Reply { prompt, context } => {
                let before = trace.footprint().live;
                let mut cache = decoder.new_cache();
                let slot = cache.add(context);
                reserved = trace.footprint().live - before;
                let ids = vec![0; prompt.clamp(1, context.max(1))];
                decoder.prefill(&mut work, &mut cache, &[SlotInput::new(slot, &ids, None)])?;
                if ids.len() < context {
                    decoder.decode(&mut work, &mut cache, &[SlotInput::new(slot, &[0], None)])?;
                }
            }
            InferencePass::Losses { tokens } => {
                decoder.losses(&mut work, &Batch::new([&sequence(tokens)]), None)?;
            }
            InferencePass::Comparison { tokens, logit_rows } => {
                let batch = Batch::new([&sequence(tokens)]);
                let mut states = || decoder.hidden_states(&mut work, &batch, None);
                let [first, _second, _third] = [states()?, states()?, states()?];
                let rows = logit_rows.min(first.len() / config.hidden_size.max(1));
                decoder.logits_of(&mut work, &first, 0..rows)?;
                logits = (3 * rows * config.vocab_size * size_of::<f32>()) as u64;
            }
        }
        Ok(Self { working: trace.footprint().peak - reserved + logits, cache: reserved })
    }
}

/// Returns a sequence of `tokens` tokens, at least two, that all carry a loss.
fn sequence(tokens: usize) -> LabeledSequence {
    let tokens = tokens.max(2);
    LabeledSequence { ids: vec![0; tokens], trained: vec![true; tokens] }
}

#[cfg(test)]
mod tests {
    use danlu_kernels::{CpuOptions, DType};
    use danlu_model::Preset;

    use super::*;

    #[test]
    fn longer_passes_need_more_memory_and_a_cache_grows_with_the_context() {
        let config = Preset::Base8m.config();
        let options = CpuOptions { threads: Some(2), isa: None, dtype: DType::F32 };
        let of = |pass| InferenceMemory::of(&config, options.into(), pass).unwrap();
        let reply = |prompt, context| of(InferencePass::Reply { prompt, context });
        assert!(reply(200, 256).working > reply(1, 256).working);
        let per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4;
        assert!(reply(1, 256).cache >= 256 * per_token as u64);
        assert!(reply(1, 256).cache > reply(1, 128).cache);
        assert!(
            of(InferencePass::Losses { tokens: 512 }).working
                > of(InferencePass::Losses { tokens: 2 }).working
        );
        let comparison = |logit_rows| of(InferencePass::Comparison { tokens: 64, logit_rows });
        assert!(comparison(64).working >= comparison(1).working + (63 * 3 * 4 * config.vocab_size) as u64);
    }
}
