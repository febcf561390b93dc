//! Compares a merged model with the base plus its adapter on the same held-out text.
//!
//! **Origin of the limits.** Rounding to bf16 changes a weight by a random amount of at most 2⁻⁹ of its size.
//! The output of a projection with merged weights therefore has a relative error of about 0.1%. Over `n`
//! consecutive projections, this error grows like `sqrt(n)`. At the last layer of a deep model, the error is
//! one or two percent of a logit. The divergence of two softmax distributions is about half the variance of
//! the logit differences. For these errors the divergence is at most 10⁻³ nats, and usually far smaller. The
//! limit for bf16 is 10⁻². f16 has three more bits than bf16, which divides the divergence by 64. In f32,
//! results differ only because sums are added in a different order.
//!
//! A fixed limit alone would accept a merge in which a small adapter has no effect at all. The second limit
//! is therefore relative to the divergence between the base with the adapter and the base without it. This
//! divergence is called the adapter's own divergence. The second limit is a quarter of the adapter's own
//! divergence. A divergence grows with the square of the logit differences. Within the limit, the merge
//! therefore loses at most about half of the adapter's effect on the logits. A merge with a wrong scale or a
//! wrong base exceeds the limit.
//!
//! In tests, rounding to bf16 removed a sixth of the effect of an adapter that was trained for one step. For
//! adapters that were trained longer, rounding removed a far smaller share. The smaller of the two limits
//! applies. The second limit is at least a thousandth of the fixed limit, because a smaller divergence is
//! noise.
//!
//! Both decoders should compute in f32, so that the measurement does not include rounding errors of bf16
//! multiplications.

use std::ops::ControlFlow;

use danlu_kernels::DType;
use danlu_model::{Batch, Decoder, LabeledSequence, LoraSource, ModelError, Workspace};
use serde::{Deserialize, Serialize};

#[cfg(doc)]
use crate::Adapter;
use crate::AdapterError;

/// Maximum number of logits of one model in memory at a time: 16 MB, for any length and vocabulary.
const MAX_LOGITS: usize = 1 << 22;

/// Returns the number of rows of logits that [`measure`] holds at a time for each model.
pub fn logit_rows(vocabulary: usize) -> usize {
    (MAX_LOGITS / vocabulary.max(1)).max(1)
}

/// Largest differences that pass.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FidelityLimits {
    /// Limit for the mean divergence of the next-token distributions, in nats, for any adapter.
    pub kl: f64,
    /// Limit for the mean divergence as a fraction of the adapter's own divergence. With `None`, only `kl`
    /// applies.
    pub share_of_adapter: Option<f64>,
    /// Limit for the relative change of the perplexity.
    pub perplexity: f64,
}

impl FidelityLimits {
    /// Returns the limits for rounding to `dtype`. `kl` and `perplexity` are about ten times the expected
    /// difference.
    pub fn of(dtype: DType) -> Self {
        let (kl, perplexity) = match dtype {
            DType::F32 => (1e-6, 1e-3),
            DType::F16 => (2e-4, 0.01),
            DType::Bf16 => (1e-2, 0.03),
        };
        Self { kl, share_of_adapter: Some(0.25), perplexity }
    }

    /// Returns the limits for a merged model in 4 bits. The limit relative to the adapter's own divergence is
    /// the same as for other merges. The perplexity may change by a quarter, because quantization changes the
    /// base too. The fixed divergence limit is one nat.
    pub fn four_bit() -> Self {
        Self { kl: 1.0, share_of_adapter: Some(0.25), perplexity: 0.25 }
    }

    /// Replaces both divergence limits by `kl`, which then applies to any adapter.
    pub fn with_kl(self, kl: f64) -> Self {
        Self { kl, share_of_adapter: None, ..self }
    }

    /// Returns the divergence limit. `kl_of_adapter` is the divergence of the base without the adapter from
    /// the base with the adapter.
    pub fn kl_beside(&self, kl_of_adapter: f64) -> f64 {
        match self.share_of_adapter {
            Some(share) => self.kl.min((share * kl_of_adapter).max(self.kl / 1000.0)),
            None => self.kl,
        }
    }
}

/// Differences between the base with adapter and the merged model, over held-out text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fidelity {
    /// Number of measured sequences.
    pub sequences: usize,
    /// Number of tokens. A next-token distribution is compared at each token.
    pub tokens: usize,
    /// Number of tokens that are included in the perplexities.
    pub trained_tokens: usize,
    /// Largest absolute difference of a logit.
    pub max_logit_difference: f64,
    /// Mean absolute difference over all logits.
    pub mean_logit_difference: f64,
    /// Mean divergence KL(adapter on base ‖ merged), in nats per token.
    pub kl: f64,
    /// Mean divergence KL(adapter on base ‖ base), which measures the effect of the adapter.
    pub kl_of_adapter: f64,
    /// The divergence limit that was applied: see [`FidelityLimits::kl_beside`].
    pub kl_limit: f64,
    /// Fraction of tokens at which both models predict the same most likely next token.
    pub same_choice: f64,
    /// Perplexity of the base without the adapter.
    pub perplexity_base: f64,
    /// Perplexity of the base with the adapter.
    pub perplexity_adapter: f64,
    /// Perplexity of the merged model.
    pub perplexity_merged: f64,
    /// The limits that were applied.
    pub limits: FidelityLimits,
    /// Whether all values are within the limits: see [`Fidelity::faults`].
    pub passed: bool,
}

impl Fidelity {
    /// Returns the share of the adapter's effect that remains, measured by divergence. At 1, the merged model
    /// equals the adapter on its base. At 0, the merged model differs from the adapter on its base at least
    /// as much as the base without the adapter. Returns `None` if the adapter has no effect.
    pub fn adapter_kept(&self) -> Option<f64> {
        let is_something = self.kl_of_adapter > 0.0;
        is_something.then(|| (1.0 - self.kl / self.kl_of_adapter).clamp(0.0, 1.0))
    }

    /// Returns the reasons why the merge fails, one sentence each. The list is empty if the merge passes.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let perplexity = self.limits.perplexity;
        // With this comparison, a NaN fails.
        let is_near = self.kl <= self.kl_limit;
        if !is_near {
            faults.push(format!(
                "the divergence is {:.2e} nats a token, and {:.2e} is allowed; the whole adapter makes {:.2e}",
                self.kl, self.kl_limit, self.kl_of_adapter
            ));
        }
        let change = (self.perplexity_merged / self.perplexity_adapter - 1.0).abs();
        let is_as_good = change <= perplexity;
        if self.trained_tokens > 0 && !is_as_good {
            faults.push(format!(
                "the perplexity goes from {:.4} to {:.4}, and a change of {:.1}% is allowed",
                self.perplexity_adapter,
                self.perplexity_merged,
                100.0 * perplexity
            ));
        }
        faults
    }
}

/// An adapter, its base, and the base with the tensors that the adapter replaces.
#[derive(Clone, Copy)]
pub struct AdapterOnBase<'a> {
    /// The base without the adapter.
    pub base: &'a Decoder,
    /// The base with the tensors that the adapter replaces: see [`Adapter::changed_base`]. If the adapter
    /// replaces none, this is the same decoder as `base`.
    pub changed: &'a Decoder,
    /// The low-rank matrices of the adapter.
    pub adapter: &'a dyn LoraSource,
}

/// Compares `merged` with an adapter on its base over `sequences`. If `merged_lora` is given, `merged` is not
/// a merged model but a variant of the base, on which this adapter runs. `progress` receives the number of
/// finished sequences and may stop the measurement.
///
/// # Errors
/// If there is no token to measure, the vocabularies differ, or a token is outside the vocabulary. Returns
/// [`ModelError::Stopped`] if `progress` breaks.
pub fn measure(
    AdapterOnBase { base, changed, adapter }: AdapterOnBase<'_>,
    merged: &Decoder,
    merged_lora: Option<&dyn LoraSource>,
    sequences: &[LabeledSequence],
    limits: FidelityLimits,
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<Fidelity, AdapterError> {
    let vocabulary = changed.config().vocab_size;
    if merged.config().vocab_size != vocabulary {
        return Err(AdapterError::Vocabulary { base: vocabulary, merged: merged.config().vocab_size });
    }
    let part = logit_rows(vocabulary);
    let mut work = Workspace::new();
    let mut sums = Sums::default();
    for (done, sequence) in sequences.iter().enumerate() {
        let len = sequence.ids.len();
        if len == 0 {
            continue;
        }
        let batch = Batch::new([sequence]);
        let models = [(changed, Some(adapter)), (merged, merged_lora), (base, None)];
        let states = models.map(|(decoder, lora)| decoder.hidden_states(&mut work, &batch, lora));
        let [with_adapter, of_merged, of_base] = states;
        let states = [with_adapter?, of_merged?, of_base?];
        for start in (0..len).step_by(part) {
            let rows = start..len.min(start + part);
            let mut logits = |i: usize| models[i].0.logits_of(&mut work, &states[i], rows.clone());
            let logits = [logits(0)?, logits(1)?, logits(2)?];
            let rows_of = |i: usize| logits[i].chunks_exact(models[i].0.config().vocab_size);
            let [x, y, z] = [rows_of(0), rows_of(1), rows_of(2)];
            for (i, ((x, y), z)) in rows.zip(x.zip(y).zip(z)) {
                let next = (i + 1 < len && sequence.trained[i + 1]).then(|| sequence.ids[i + 1] as usize);
                sums.add(x, y, z, next);
            }
        }
        sums.sequences += 1;
        if progress(done + 1).is_break() {
            return Err(ModelError::Stopped.into());
        }
    }
    if sums.tokens == 0 {
        return Err(AdapterError::NothingToMeasure);
    }
    Ok(sums.finish(vocabulary, limits))
}

#[derive(Default)]
struct Sums {
    sequences: usize,
    tokens: usize,
    trained: usize,
    max_difference: f64,
    difference: f64,
    kl: f64,
    kl_of_adapter: f64,
    same: usize,
    /// Sums of negative log-likelihoods for the base with adapter, the merged model and the base.
    losses: [f64; 3],
}

impl Sums {
    /// Adds one token. `adapter`, `merged` and `base` are logits: of the base with the adapter, of the merged
    /// model, and of the base alone.
    fn add(&mut self, adapter: &[f32], merged: &[f32], base: &[f32], next: Option<usize>) {
        let normalisers = [adapter, merged, base].map(log_sum_exp);
        for ((x, y), z) in adapter.iter().zip(merged).zip(base) {
            let [x, y, z] = [*x as f64, *y as f64, *z as f64];
            let difference = (x - y).abs();
            // `f64::max` would ignore a NaN.
            self.max_difference =
                if difference <= self.max_difference { self.max_difference } else { difference };
            self.difference += difference;
            let p = (x - normalisers[0]).exp();
            if p > 0.0 {
                self.kl += p * ((x - normalisers[0]) - (y - normalisers[1]));
                self.kl_of_adapter += p * ((x - normalisers[0]) - (z - normalisers[2]));
            }
        }
        self.tokens += 1;
        self.same += usize::from(largest(adapter) == largest(merged));
        if let Some(next) = next {
            self.trained += 1;
            for (loss, (logits, n)) in
                self.losses.iter_mut().zip([adapter, merged, base].iter().zip(normalisers))
            {
                *loss += n - logits[next] as f64;
            }
        }
    }

    fn finish(self, vocabulary: usize, limits: FidelityLimits) -> Fidelity {
        let tokens = self.tokens as f64;
        let [adapter, merged, base] = self.losses.map(|sum| (sum / self.trained.max(1) as f64).exp());
        let kl_of_adapter = at_least_zero(self.kl_of_adapter / tokens);
        let mut fidelity = Fidelity {
            sequences: self.sequences,
            tokens: self.tokens,
            trained_tokens: self.trained,
            max_logit_difference: self.max_difference,
            mean_logit_difference: self.difference / (tokens * vocabulary as f64),
            // Rounding can make a divergence of zero slightly negative.
            kl: at_least_zero(self.kl / tokens),
            kl_of_adapter,
            kl_limit: limits.kl_beside(kl_of_adapter),
            same_choice: self.same as f64 / tokens,
            perplexity_base: base,
            perplexity_adapter: adapter,
            perplexity_merged: merged,
            limits,
            passed: false,
        };
        fidelity.passed = fidelity.faults().is_empty();
        fidelity
    }
}

/// Returns `v`, or 0 for a negative `v`. Unlike `f64::max`, this function returns NaN for a NaN.
fn at_least_zero(v: f64) -> f64 {
    if v < 0.0 { 0.0 } else { v }
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    max + logits.iter().map(|&v| (v as f64 - max).exp()).sum::<f64>().ln()
}

fn largest(logits: &[f32]) -> usize {
    (1..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best })
}
