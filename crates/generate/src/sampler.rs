//! Chooses one token from logits: repetition penalty, temperature, filters, random draw.
//!
//! The filters are transformers' logits processors in the same order: repetition penalty, temperature, top-k,
//! top-p, min-p. Each filter retains at least one token.
//!
//! A vocabulary may have more than 100,000 tokens, but a random draw needs only a few of them. The sampler
//! therefore gathers and sorts only the largest logits: as many as top-k or the draw requires. The sampler's
//! buffers are reused, so no memory is allocated per token.

use std::cmp::Ordering;

use danlu_kernels::rng::{self, Stream};

use crate::{GenerateError, SamplingOptions};

/// Number of candidates that are sorted first. If the draw needs more candidates, this number is multiplied
/// by 8.
const FIRST_CANDIDATES: usize = 256;

/// A candidate token and its logit.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    id: u32,
    logit: f32,
}

/// Orders candidates by descending logit. Equal logits are ordered by id, so the order does not depend on the
/// sort algorithm.
fn by_logit(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

/// Chooses one token per call. All random numbers are from one seeded stream.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: SamplingOptions,
    stream: Stream,
    penalty: Penalty,
    /// First the logits. Later, their differences from the largest logit, divided by the temperature.
    logits: Vec<f32>,
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
        let (penalty, logits, candidates) = Default::default();
        Ok(Self { sampling, stream, penalty, logits, candidates })
    }

    /// Returns the token that follows `context`, or `None` if every logit is minus infinity. NaN counts as
    /// minus infinity.
    pub fn next(&mut self, logits: &[f32], context: &[u32]) -> Option<u32> {
        let &SamplingOptions { temperature, top_p, min_p, repetition_penalty, .. } = &self.sampling;
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
            // The largest logit becomes 0. With a tiny temperature, the other weights then underflow to 0,
            // and no weight overflows.
            let scaled = (*logit - best.logit) / temperature;
            *logit = if scaled.is_nan() { f32::NEG_INFINITY } else { scaled };
        }
        if top_p == 1.0 && min_p == 0.0 && self.keeps_all() {
            let target = self.stream.next_uniform() as f64 * total_weight(&self.logits);
            self.sort_until(target);
            return Some(at(&self.candidates, target));
        }
        self.filter();
        self.candidates.sort_unstable_by(by_logit);
        let target = self.stream.next_uniform() as f64 * weights(&self.candidates).sum::<f64>();
        Some(at(&self.candidates, target))
    }

    /// Returns whether top-k removes no token.
    fn keeps_all(&self) -> bool {
        !(1..self.logits.len()).contains(&self.sampling.top_k)
    }

    /// Gathers the candidates that pass top-k, top-p and min-p.
    fn filter(&mut self) {
        let &SamplingOptions { top_k, top_p, min_p, .. } = &self.sampling;
        match (self.keeps_all(), top_p < 1.0) {
            (false, is_filtered) => {
                gather_largest(&mut self.candidates, &self.logits, top_k);
                if is_filtered {
                    self.candidates.sort_unstable_by(by_logit);
                    let total = weights(&self.candidates).sum::<f64>();
                    keep_until(&mut self.candidates, top_p as f64 * total);
                }
            }
            (true, true) => {
                let target = top_p as f64 * total_weight(&self.logits);
                self.sort_until(target);
                keep_until(&mut self.candidates, target);
            }
            (true, false) => {
                // This limit is slightly too low, so no candidate is lost by rounding. The exact limit is
                // applied below, in f64.
                let least = min_p.ln() - 1e-3;
                self.candidates.clear();
                let logits = self.logits.iter().zip(0..).filter(|&(&logit, _)| logit >= least);
                self.candidates.extend(logits.map(|(&logit, id)| Candidate { id, logit }));
            }
        }
        if min_p > 0.0 {
            self.candidates.retain(|c| (c.logit as f64).exp() >= min_p as f64);
        }
    }

    /// Gathers and sorts the largest logits until the sum of their weights exceeds `target`.
    fn sort_until(&mut self, target: f64) {
        let mut count = FIRST_CANDIDATES;
        loop {
            gather_largest(&mut self.candidates, &self.logits, count);
            self.candidates.sort_unstable_by(by_logit);
            if weights(&self.candidates).sum::<f64>() > target || count >= self.logits.len() {
                return;
            }
            count = count.saturating_mul(8);
        }
    }
}

/// Lowers the logits of tokens that already occurred.
#[derive(Clone, Debug, Default)]
struct Penalty {
    /// For each token, the number of the last call that lowered its logit.
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

/// Returns the `k` largest logits with their tokens, the largest first. NaN and minus infinity are left out.
pub(crate) fn largest_logits(logits: &[f32], k: usize) -> Vec<(u32, f32)> {
    let mut candidates = Vec::new();
    if k > 0 {
        gather_largest(&mut candidates, logits, k);
        candidates.sort_unstable_by(by_logit);
        candidates.truncate(k);
    }
    candidates.into_iter().map(|c| (c.id, c.logit)).collect()
}

/// Returns the largest logit and its token, or `None` if every logit is minus infinity. Among equal logits,
/// the first is returned.
fn largest(logits: &[f32]) -> Option<Candidate> {
    // Maps each logit to an integer in the order of `total_cmp`. The compiler vectorises the maximum of
    // integers.
    let key = |logit: f32| {
        let bits = logit.to_bits() as i32;
        if logit > f32::NEG_INFINITY { bits ^ ((bits >> 31) as u32 >> 1) as i32 } else { i32::MIN }
    };
    let most = logits.iter().fold(i32::MIN, |most, &logit| most.max(key(logit)));
    if most == i32::MIN {
        return None;
    }
    let id = logits.iter().position(|&logit| key(logit) == most)?;
    Some(Candidate { id: id as u32, logit: logits[id] })
}

/// Fills `candidates` with the `k` largest logits, in any order, and with all others that equal the smallest
/// of these. NaN and minus infinity are left out.
fn gather_largest(candidates: &mut Vec<Candidate>, logits: &[f32], k: usize) {
    /// Number of logits in a block. A block is skipped if even its largest logit is too small.
    const BLOCK: usize = 32;
    candidates.clear();
    // Logits below `least` cannot be among the `k` largest.
    let (mut least, mut limit) = (f32::MIN, 2 * k);
    for (block, start) in logits.chunks(BLOCK).zip((0..).step_by(BLOCK)) {
        let most =
            block.iter().fold(f32::NEG_INFINITY, |most, &logit| if logit > most { logit } else { most });
        if most < least {
            continue;
        }
        let large = block.iter().zip(start..).filter(|&(&logit, _)| logit >= least);
        candidates.extend(large.map(|(&logit, id)| Candidate { id, logit }));
        if candidates.len() >= limit {
            least = keep_top_k(candidates, k);
            limit = 2 * candidates.len().max(k);
        }
    }
    keep_top_k(candidates, k);
}

/// Reduces the candidates to the `k` largest and all others that equal the smallest of these. Returns this
/// smallest logit, or `f32::MIN` if there are at most `k` candidates.
fn keep_top_k(candidates: &mut Vec<Candidate>, k: usize) -> f32 {
    if k >= candidates.len() {
        return f32::MIN;
    }
    let (_, last, _) = candidates.select_nth_unstable_by(k - 1, by_logit);
    let least = last.logit;
    candidates.retain(|c| c.logit >= least);
    least
}

/// Shortens the sorted candidates to the fewest whose sum of weights reaches `target`, but to at least one.
fn keep_until(candidates: &mut Vec<Candidate>, target: f64) {
    let mut above = 0.0;
    let is_kept = |weight: f64| {
        let is_kept = above < target;
        above += weight;
        is_kept
    };
    let kept = weights(candidates).map(is_kept).take_while(|&is_kept| is_kept).count();
    candidates.truncate(kept.max(1));
}

/// Returns unnormalised probabilities. They cannot overflow, because every logit is at most 0.
fn weights(candidates: &[Candidate]) -> impl Iterator<Item = f64> + '_ {
    candidates.iter().map(|c| (c.logit as f64).exp())
}

/// Returns the sum of all weights.
fn total_weight(logits: &[f32]) -> f64 {
    logits.iter().map(|&logit| (logit as f64).exp()).sum()
}

/// Returns the first token at which the cumulative weight of the sorted candidates exceeds `target`.
fn at(candidates: &[Candidate], target: f64) -> u32 {
    let mut left = target;
    for (c, weight) in candidates.iter().zip(weights(candidates)) {
        left -= weight;
        if left < 0.0 {
            return c.id;
        }
    }
    // Because of rounding, the total weight may be below `target`. The most likely token is then chosen.
    candidates[0].id
}

#[cfg(test)]
#[path = "sampler_tests.rs"]
mod tests;
