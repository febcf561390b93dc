//! Chooses one token from logits: repetition penalty, temperature, filters, random draw.
//!
//! The filters are transformers' logits processors in the same order: repetition penalty, temperature, top-k,
//! top-p, min-p. Each filter retains at least one token.
//!
//! Sorting a vocabulary of more than 100,000 tokens for each new token would be slow. A [`WeightHistogram`]
//! therefore divides the tokens into groups with similar logits, and adds up the weights `e^logit` of each
//! group. The sums determine the group of the chosen token, and only this group is searched. The result is
//! the token that sorting would give.
//!
//! After the first token, the sampler allocates no memory.

use danlu_kernels::rng::{self, Stream};

use crate::candidates::{Candidate, find_candidate, gather_largest};
use crate::weight_histogram::{WeightHistogram, gather_group};
use crate::{GenerateError, SamplingOptions};

/// Chooses one token per call. All random numbers are from one seeded stream.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: SamplingOptions,
    stream: Stream,
    penalty: Penalty,
    /// The logits of the current token, scaled in place: differences from the largest logit, divided by the
    /// temperature.
    logits: Vec<f32>,
    histogram: WeightHistogram,
    /// With top-k, the candidates that top-k retains. Without top-k, the candidates of one group of
    /// `histogram`.
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// Returns a sampler whose random stream is at its start.
    ///
    /// # Errors
    /// [`GenerateError::Setting`] if a setting is out of range.
    pub fn new(sampling: SamplingOptions) -> Result<Self, GenerateError> {
        Self::for_choice(sampling, 0)
    }

    /// Returns a sampler for one of several continuations of a prompt. Each choice has its own random stream.
    /// Choice 0 has the same stream as [`Sampler::new`].
    ///
    /// # Errors
    /// [`GenerateError::Setting`] if a setting is out of range.
    pub fn for_choice(sampling: SamplingOptions, choice: usize) -> Result<Self, GenerateError> {
        sampling.check()?;
        let key = match choice {
            0 => rng::key(&[sampling.seed]),
            choice => rng::key(&[sampling.seed, choice as u64]),
        };
        let stream = Stream::new(key);
        let (penalty, logits, histogram, candidates) = Default::default();
        Ok(Self { sampling, stream, penalty, logits, histogram, candidates })
    }

    /// Returns the token that follows `context`, or `None` if every logit is minus infinity. NaN counts as
    /// minus infinity.
    pub fn next(&mut self, logits: &[f32], context: &[u32]) -> Option<u32> {
        let &SamplingOptions { temperature, top_p, min_p, repetition_penalty, .. } = &self.sampling;
        if temperature == 0.0 && repetition_penalty == 1.0 {
            return largest(logits).map(|best| best.id);
        }
        self.logits.clear();
        self.logits.extend_from_slice(logits);
        if repetition_penalty != 1.0 {
            self.penalty.apply(&mut self.logits, context, repetition_penalty);
        }
        let best = largest(&self.logits)?;
        // For an infinite logit, the softmax would be NaN. In the limit, the probability of this token is 1.
        if temperature == 0.0 || best.logit == f32::INFINITY {
            return Some(best.id);
        }
        for logit in &mut self.logits {
            // The largest logit becomes 0, so no weight overflows even at a tiny temperature.
            let scaled = (*logit - best.logit) / temperature;
            *logit = if scaled.is_nan() { f32::NEG_INFINITY } else { scaled };
        }
        // The capacity is enough for every list of candidates, so later tokens allocate nothing. The
        // operating system provides memory only for elements that are written.
        self.candidates.clear();
        self.candidates.reserve_exact(self.logits.len());
        if self.keeps_all() {
            self.histogram.fill(&self.logits);
        } else {
            gather_largest(&mut self.candidates, &self.logits, self.sampling.top_k);
        }
        let mut kept = self.total_weight();
        if top_p < 1.0 {
            let target = top_p as f64 * kept;
            // Top-p retains all tokens up to the one at which the sum reaches the target.
            kept = self.find(|sum| sum >= target).map_or(kept, |(_, sum)| sum);
        }
        if min_p > 0.0 {
            kept = kept.min(self.weight_from(smallest_logit(min_p)));
        }
        let target = self.stream.next_uniform() as f64 * kept;
        // If rounding leaves every sum below the target, the most likely token is chosen.
        Some(self.find(|sum| sum > target).map_or(best.id, |(id, _)| id))
    }

    fn keeps_all(&self) -> bool {
        !(1..self.logits.len()).contains(&self.sampling.top_k)
    }

    /// Returns the sum of the weights of all tokens that top-k retains.
    fn total_weight(&self) -> f64 {
        match self.keeps_all() {
            true => self.histogram.total(),
            false => self.candidates.iter().map(Candidate::weight).sum(),
        }
    }

    /// Adds the weights of the tokens in descending order. Returns the token at which `is_reached` accepts
    /// the sum, and this sum.
    fn find(&mut self, is_reached: impl Fn(f64) -> bool) -> Option<(u32, f64)> {
        let mut above = 0.0;
        if self.keeps_all() {
            let group;
            (group, above) = self.histogram.find(&is_reached)?;
            gather_group(&mut self.candidates, &self.logits, group);
        }
        find_candidate(&mut self.candidates, above, is_reached).map(|(found, sum)| (found.id, sum))
    }

    /// Returns the sum of the weights of all logits that are `least` or larger.
    fn weight_from(&mut self, least: f32) -> f64 {
        let mut above = 0.0;
        if self.keeps_all() {
            let Some(group) = self.histogram.above(least) else { return self.histogram.total() };
            above = group.1;
            gather_group(&mut self.candidates, &self.logits, group.0);
        }
        let kept = self.candidates.iter().filter(|c| c.logit >= least);
        above + kept.map(Candidate::weight).sum::<f64>()
    }
}

/// Returns the smallest logit `x` with `e^x >= weight`. `weight` is at most 1.
fn smallest_logit(weight: f32) -> f32 {
    let is_enough = |bits: u32| (-f32::from_bits(bits) as f64).exp() >= weight as f64;
    // The bits of non-negative floats have the same order as the floats, so a binary search over the bits
    // finds `x`.
    let (mut enough, mut too_many) = (0, f32::INFINITY.to_bits());
    while too_many - enough > 1 {
        let middle = enough.midpoint(too_many);
        if is_enough(middle) { enough = middle } else { too_many = middle }
    }
    -f32::from_bits(enough)
}

/// Lowers the logits of tokens that occur in the context.
#[derive(Clone, Debug, Default)]
struct Penalty {
    /// For each token, the last call of [`Penalty::apply`] that changed its logit. A token that occurs twice
    /// in the context is thus penalised once.
    lowered_in: Vec<u32>,
    call: u32,
}

impl Penalty {
    /// Applies the repetition penalty once to every distinct token of `context`.
    fn apply(&mut self, logits: &mut [f32], context: &[u32], penalty: f32) {
        if self.call == u32::MAX {
            *self = Self::default();
        }
        self.call += 1;
        self.lowered_in.resize(logits.len().max(self.lowered_in.len()), 0);
        for &id in context {
            let Some(logit) = logits.get_mut(id as usize) else { continue };
            if self.lowered_in[id as usize] != self.call {
                self.lowered_in[id as usize] = self.call;
                *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
            }
        }
    }
}

/// Returns the largest logit and its token, or `None` if every logit is minus infinity. Among equal logits,
/// the first is returned. Positive zero is larger than negative zero.
fn largest(logits: &[f32]) -> Option<Candidate> {
    /// Number of independent maxima in the loop below, so that the compiler vectorises the loop.
    const LANES: usize = 16;
    let larger = |most: f32, logit: f32| if logit > most { logit } else { most };
    let mut most = [f32::NEG_INFINITY; LANES];
    let (blocks, tail) = logits.as_chunks::<LANES>();
    for block in blocks {
        for (most, &logit) in most.iter_mut().zip(block) {
            *most = larger(*most, logit);
        }
    }
    let most = most.iter().chain(tail).fold(f32::NEG_INFINITY, |most, &logit| larger(most, logit));
    if most == f32::NEG_INFINITY {
        return None;
    }
    let positive_zero = || logits.iter().position(|logit| logit.to_bits() == 0);
    let id = if most == 0.0 { positive_zero() } else { None };
    let has_most = |block: &[f32]| block.iter().fold(false, |found, &logit| found | (logit == most));
    let first = || logits.chunks(LANES).position(has_most).map_or(0, |block| block * LANES);
    let id = id.or_else(|| (first()..logits.len()).find(|&id| logits[id] == most))?;
    Some(Candidate { id: id as u32, logit: logits[id] })
}

#[cfg(test)]
#[path = "sampler_tests.rs"]
mod tests;
