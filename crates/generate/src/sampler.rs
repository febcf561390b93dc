//! From logits to one token: penalty, temperature, filters, draw.
//!
//! Filters are transformers' logits processors, in transformers' order: repetition penalty, temperature,
//! top-k, top-p, min-p. Each keeps at least one token.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use danlu_kernels::rng::{self, Stream};

use crate::GenerateError;

/// How tokens are chosen. The default samples from the model's own distribution.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by this; 0 always takes the largest.
    pub temperature: f32,
    /// Keeps the `top_k` largest logits, ties with the last included; 0 keeps all.
    pub top_k: usize,
    /// Keeps the fewest tokens whose probabilities reach `top_p`; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least `min_p` times as probable as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Lowers logits of tokens already in the context, dividing positive ones and multiplying negative
    /// ones; 1 leaves them. Source: Keskar et al., 2019, section 4.1.
    pub repetition_penalty: f32,
    /// Names the stream of random numbers.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 0 }
    }
}

impl Sampling {
    /// Always the largest logit.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Checks every setting against its range.
    ///
    /// # Errors
    /// [`GenerateError::Setting`] names the first that is out of range.
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

/// A candidate token and its logit.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    id: u32,
    logit: f32,
}

/// Largest logit first; equal logits by id, so that an order never depends on a sort's whims.
fn by_logit(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

/// Chooses tokens, one call after another, from one seeded stream.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    stream: Stream,
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// A sampler at the start of its stream.
    ///
    /// # Errors
    /// [`GenerateError::Setting`] if a setting is out of range.
    pub fn new(sampling: Sampling) -> Result<Self, GenerateError> {
        sampling.check()?;
        let stream = Stream::new(rng::key(&[sampling.seed]));
        Ok(Self { sampling, stream, candidates: Vec::new() })
    }

    /// The next token after `context`, or `None` if no logit is above minus infinity. NaN counts as
    /// minus infinity.
    pub fn next(&mut self, logits: &[f32], context: &[u32]) -> Option<u32> {
        let sampling = &self.sampling;
        let candidates = &mut self.candidates;
        candidates.clear();
        candidates.extend(logits.iter().zip(0..).map(|(&logit, id)| Candidate { id, logit }));
        penalize(candidates, context, sampling.repetition_penalty);
        candidates.retain(|c| c.logit > f32::NEG_INFINITY);

        let best = *candidates.iter().min_by(|a, b| by_logit(a, b))?;
        // Infinity would turn the softmax into NaN; it wins outright, as it would in the limit.
        if sampling.temperature == 0.0 || best.logit == f32::INFINITY {
            return Some(best.id);
        }
        for c in candidates.iter_mut() {
            // The best moves to 0, so a tiny temperature underflows to greedy instead of overflowing.
            c.logit = (c.logit - best.logit) / sampling.temperature;
        }
        keep_top_k(candidates, sampling.top_k);
        if sampling.top_p < 1.0 {
            keep_top_p(candidates, sampling.top_p);
        }
        if sampling.min_p > 0.0 {
            keep_min_p(candidates, sampling.min_p);
        }
        Some(draw(candidates, self.stream.next_uniform()))
    }
}

/// Applies the repetition penalty once to every token that occurs in `context`.
fn penalize(candidates: &mut [Candidate], context: &[u32], penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    for id in context.iter().collect::<BTreeSet<_>>() {
        if let Some(c) = candidates.get_mut(*id as usize) {
            c.logit = if c.logit < 0.0 { c.logit * penalty } else { c.logit / penalty };
        }
    }
}

/// Keeps the `k` largest and whatever equals the last of them; 0 keeps all.
fn keep_top_k(candidates: &mut Vec<Candidate>, k: usize) {
    if k == 0 || k >= candidates.len() {
        return;
    }
    let (_, last, _) = candidates.select_nth_unstable_by(k - 1, by_logit);
    let least = last.logit;
    candidates.retain(|c| c.logit >= least);
}

/// Keeps a token while those above it hold less than `p` of the probability.
fn keep_top_p(candidates: &mut Vec<Candidate>, p: f32) {
    candidates.sort_unstable_by(by_logit);
    let total: f64 = weights(candidates).sum();
    let mut above = 0.0;
    let kept = weights(candidates)
        .take_while(|weight| {
            let keep = above < p as f64 * total;
            above += weight;
            keep
        })
        .count();
    candidates.truncate(kept.max(1));
}

/// Keeps what is at least `p` times as probable as the likeliest.
fn keep_min_p(candidates: &mut Vec<Candidate>, p: f32) {
    let best = candidates.iter().map(|c| c.logit).fold(f32::NEG_INFINITY, f32::max);
    candidates.retain(|c| (c.logit as f64 - best as f64).exp() >= p as f64);
}

/// Unnormalised probabilities; the largest logit is at most 0, so none overflows.
fn weights(candidates: &[Candidate]) -> impl Iterator<Item = f64> + '_ {
    candidates.iter().map(|c| (c.logit as f64).exp())
}

/// The token at `at` (in `[0, 1)`) of the cumulative distribution, largest probability first.
fn draw(candidates: &mut [Candidate], at: f32) -> u32 {
    candidates.sort_unstable_by(by_logit);
    let mut left = at as f64 * weights(candidates).sum::<f64>();
    for (c, weight) in candidates.iter().zip(weights(candidates)) {
        left -= weight;
        if left < 0.0 {
            return c.id;
        }
    }
    // Rounding can leave a crumb of `left`; the likeliest token is the safest home for it.
    candidates[0].id
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(sampling: Sampling) -> Sampler {
        Sampler::new(sampling).unwrap()
    }

    /// The set of tokens that ever appear in 2,000 draws.
    fn support(sampling: Sampling, logits: &[f32]) -> Vec<u32> {
        let mut sampler = sampler(sampling);
        let drawn: BTreeSet<u32> = (0..2_000).map(|_| sampler.next(logits, &[]).unwrap()).collect();
        drawn.into_iter().collect()
    }

    /// Logits of the given probabilities.
    fn logits(probabilities: &[f32]) -> Vec<f32> {
        probabilities.iter().map(|p| p.ln()).collect()
    }

    #[test]
    fn temperature_zero_takes_the_largest_and_the_first_of_equals() {
        let mut greedy = sampler(Sampling::greedy());
        assert_eq!(greedy.next(&[0.1, 3.0, 3.0, -1.0], &[]), Some(1));
        assert_eq!(greedy.next(&[-5.0, -4.0], &[]), Some(1));
    }

    #[test]
    fn draws_follow_the_distribution() {
        let logits = logits(&[0.5, 0.3, 0.2]);
        let mut sampler = sampler(Sampling { seed: 3, ..Sampling::default() });
        let mut counts = [0i32; 3];
        for _ in 0..20_000 {
            counts[sampler.next(&logits, &[]).unwrap() as usize] += 1;
        }
        // Four standard deviations of a binomial over 20,000 draws are at most 283.
        for (count, expected) in counts.into_iter().zip([10_000, 6_000, 4_000]) {
            assert!((count - expected).abs() < 283, "{counts:?}");
        }
    }

    #[test]
    fn a_low_temperature_sharpens_and_a_tiny_one_is_greedy() {
        let cold = Sampling { temperature: 1e-30, ..Sampling::default() };
        assert_eq!(support(cold, &[1.0, 1.5, 1.4]), [1]);
        let hot = Sampling { temperature: 50.0, ..Sampling::default() };
        assert_eq!(support(hot, &[1.0, 9.0, 1.0]), [0, 1, 2]);
    }

    #[test]
    fn top_k_keeps_k_and_ties_with_the_last() {
        let keep = |k| support(Sampling { top_k: k, ..Sampling::default() }, &[2.0, 1.0, 1.0, 0.0]);
        assert_eq!(keep(1), [0]);
        assert_eq!(keep(2), [0, 1, 2]);
        assert_eq!(keep(9), [0, 1, 2, 3]);
        assert_eq!(keep(0), [0, 1, 2, 3]);
    }

    #[test]
    fn top_p_keeps_the_fewest_tokens_that_reach_it() {
        let logits = logits(&[0.5, 0.3, 0.15, 0.05]);
        let keep = |p| support(Sampling { top_p: p, ..Sampling::default() }, &logits);
        assert_eq!(keep(1e-6), [0]);
        assert_eq!(keep(0.49), [0]);
        assert_eq!(keep(0.51), [0, 1]);
        assert_eq!(keep(0.79), [0, 1]);
        assert_eq!(keep(0.81), [0, 1, 2]);
        assert_eq!(keep(1.0), [0, 1, 2, 3]);
    }

    #[test]
    fn min_p_is_relative_to_the_likeliest() {
        let logits = logits(&[0.5, 0.3, 0.15, 0.05]);
        let keep = |p| support(Sampling { min_p: p, ..Sampling::default() }, &logits);
        assert_eq!(keep(0.05), [0, 1, 2, 3]);
        assert_eq!(keep(0.2), [0, 1, 2]);
        assert_eq!(keep(0.59), [0, 1]);
        assert_eq!(keep(1.0), [0]);
    }

    #[test]
    fn filters_apply_after_temperature() {
        // At temperature 2 the probabilities are their square roots, renormalised: 0.42 0.32 0.26.
        let logits = logits(&[0.5, 0.3, 0.2]);
        let sampling = Sampling { temperature: 2.0, top_p: 0.5, ..Sampling::default() };
        assert_eq!(support(sampling, &logits), [0, 1]);
    }

    #[test]
    fn top_p_sees_only_what_top_k_left() {
        // After top-k 2 the likeliest holds 4/7 of the mass, above 0.55; over all four it holds 0.4.
        let logits = logits(&[0.4, 0.3, 0.2, 0.1]);
        let sampling = Sampling { top_k: 2, top_p: 0.55, ..Sampling::default() };
        assert_eq!(support(sampling, &logits), [0]);
    }

    #[test]
    fn repetition_penalty_lowers_positive_and_negative_logits() {
        let mut candidates: Vec<Candidate> =
            [2.0, -2.0, 2.0, -2.0].into_iter().zip(0..).map(|(logit, id)| Candidate { id, logit }).collect();
        // A token that occurs twice is penalised once, and an id outside the vocabulary is no one.
        penalize(&mut candidates, &[0, 1, 1, 0, 77], 2.0);
        assert_eq!(candidates.iter().map(|c| c.logit).collect::<Vec<_>>(), [1.0, -4.0, 2.0, -2.0]);
        let mut greedy = sampler(Sampling { repetition_penalty: 1.5, ..Sampling::greedy() });
        assert_eq!(greedy.next(&[1.2, 1.0], &[0]), Some(1));
        assert_eq!(greedy.next(&[-1.0, -1.2], &[0]), Some(1));
    }

    #[test]
    fn one_seed_gives_one_sequence_and_another_gives_another() {
        let draws = |seed| {
            let mut sampler = sampler(Sampling { seed, ..Sampling::default() });
            (0..64).map(|_| sampler.next(&[0.0; 50], &[]).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draws(7), draws(7));
        assert_ne!(draws(7), draws(8));
    }

    #[test]
    fn nan_is_never_chosen_and_infinity_wins() {
        let all = Sampling::default;
        assert_eq!(support(all(), &[f32::NAN, 0.0, f32::NEG_INFINITY]), [1]);
        assert_eq!(support(all(), &[0.0, f32::INFINITY, 1.0]), [1]);
        assert_eq!(sampler(Sampling::greedy()).next(&[f32::NAN, -3.0], &[]), Some(1));
        assert_eq!(sampler(all()).next(&[f32::NAN, f32::NEG_INFINITY], &[]), None);
        assert_eq!(sampler(all()).next(&[], &[]), None);
    }

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        let refuse = |sampling: Sampling| sampling.check().unwrap_err().to_string();
        assert_eq!(
            refuse(Sampling { temperature: -1.0, ..Sampling::default() }),
            "`temperature` is -1, expected 0 or more"
        );
        assert_eq!(
            refuse(Sampling { top_p: 0.0, ..Sampling::default() }),
            "`top-p` is 0, expected above 0 and at most 1"
        );
        assert_eq!(
            refuse(Sampling { min_p: f32::NAN, ..Sampling::default() }),
            "`min-p` is NaN, expected between 0 and 1"
        );
        assert!(
            refuse(Sampling { repetition_penalty: 0.0, ..Sampling::default() })
                .contains("`repetition-penalty`")
        );
    }
}
