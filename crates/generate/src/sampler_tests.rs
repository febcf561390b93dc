//! Compares the sampler with its definition and with exact distributions.

use std::collections::BTreeSet;

use super::*;
use crate::candidates::by_logit;

fn sampler(sampling: SamplingOptions) -> Sampler {
    Sampler::new(sampling).unwrap()
}

/// Returns the set of tokens that occur in 2,000 draws.
fn support(sampling: SamplingOptions, logits: &[f32]) -> Vec<u32> {
    let mut sampler = sampler(sampling);
    let drawn: BTreeSet<u32> = (0..2_000).map(|_| sampler.next(logits, &[]).unwrap()).collect();
    drawn.into_iter().collect()
}

/// Returns logits with the given probabilities.
fn logits(probabilities: &[f32]) -> Vec<f32> {
    probabilities.iter().map(|p| p.ln()).collect()
}

#[test]
fn temperature_zero_takes_the_largest_and_the_first_of_equals() {
    let mut greedy = sampler(SamplingOptions::greedy());
    assert_eq!(greedy.next(&[0.1, 3.0, 3.0, -1.0], &[]), Some(1));
    assert_eq!(greedy.next(&[-5.0, -4.0], &[]), Some(1));
}

#[test]
fn draws_follow_the_distribution() {
    let logits = logits(&[0.5, 0.3, 0.2]);
    let mut sampler = sampler(SamplingOptions { seed: 3, ..SamplingOptions::default() });
    let mut counts = [0i32; 3];
    for _ in 0..20_000 {
        counts[sampler.next(&logits, &[]).unwrap() as usize] += 1;
    }
    // Four standard deviations of a binomial distribution over 20,000 draws are at most 283.
    for (count, expected) in counts.into_iter().zip([10_000, 6_000, 4_000]) {
        assert!((count - expected).abs() < 283, "{counts:?}");
    }
}

#[test]
fn a_low_temperature_sharpens_and_a_tiny_one_is_greedy() {
    let cold = SamplingOptions { temperature: 1e-30, ..SamplingOptions::default() };
    assert_eq!(support(cold, &[1.0, 1.5, 1.4]), [1]);
    let hot = SamplingOptions { temperature: 50.0, ..SamplingOptions::default() };
    assert_eq!(support(hot, &[1.0, 9.0, 1.0]), [0, 1, 2]);
}

#[test]
fn top_k_keeps_k_and_ties_with_the_last() {
    let keep = |k| support(SamplingOptions { top_k: k, ..SamplingOptions::default() }, &[2.0, 1.0, 1.0, 0.0]);
    assert_eq!(keep(1), [0]);
    assert_eq!(keep(2), [0, 1, 2]);
    assert_eq!(keep(9), [0, 1, 2, 3]);
    assert_eq!(keep(0), [0, 1, 2, 3]);
}

#[test]
fn top_p_keeps_the_fewest_tokens_that_reach_it() {
    let logits = logits(&[0.5, 0.3, 0.15, 0.05]);
    let keep = |p| support(SamplingOptions { top_p: p, ..SamplingOptions::default() }, &logits);
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
    let keep = |p| support(SamplingOptions { min_p: p, ..SamplingOptions::default() }, &logits);
    assert_eq!(keep(0.05), [0, 1, 2, 3]);
    assert_eq!(keep(0.2), [0, 1, 2]);
    assert_eq!(keep(0.59), [0, 1]);
    assert_eq!(keep(1.0), [0]);
}

#[test]
fn filters_apply_after_temperature() {
    // At temperature 2, the probabilities are the normalised square roots: 0.42, 0.32 and 0.26.
    let logits = logits(&[0.5, 0.3, 0.2]);
    let sampling = SamplingOptions { temperature: 2.0, top_p: 0.5, ..SamplingOptions::default() };
    assert_eq!(support(sampling, &logits), [0, 1]);
}

#[test]
fn top_p_sees_only_what_top_k_left() {
    // After top-k 2, the most likely token has the probability 4/7, which is above 0.55. Without top-k, its
    // probability is 0.4.
    let logits = logits(&[0.4, 0.3, 0.2, 0.1]);
    let sampling = SamplingOptions { top_k: 2, top_p: 0.55, ..SamplingOptions::default() };
    assert_eq!(support(sampling, &logits), [0]);
}

#[test]
fn repetition_penalty_lowers_positive_and_negative_logits() {
    let mut logits = [2.0, -2.0, 2.0, -2.0];
    // A token that occurs twice is penalised once. An id outside the vocabulary is ignored.
    Penalty::default().apply(&mut logits, &[0, 1, 1, 0, 77], 2.0);
    assert_eq!(logits, [1.0, -4.0, 2.0, -2.0]);
    let mut greedy = sampler(SamplingOptions { repetition_penalty: 1.5, ..SamplingOptions::greedy() });
    assert_eq!(greedy.next(&[1.2, 1.0], &[0]), Some(1));
    assert_eq!(greedy.next(&[-1.0, -1.2], &[0]), Some(1));
}

#[test]
fn one_seed_gives_one_sequence_and_another_gives_another() {
    let draws = |seed| {
        let mut sampler = sampler(SamplingOptions { seed, ..SamplingOptions::default() });
        (0..64).map(|_| sampler.next(&[0.0; 50], &[]).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(draws(7), draws(7));
    assert_ne!(draws(7), draws(8));
}

#[test]
fn nan_is_never_chosen_and_infinity_wins() {
    let all = SamplingOptions::default;
    assert_eq!(support(all(), &[f32::NAN, 0.0, f32::NEG_INFINITY]), [1]);
    assert_eq!(support(all(), &[0.0, f32::INFINITY, 1.0]), [1]);
    assert_eq!(sampler(SamplingOptions::greedy()).next(&[f32::NAN, -3.0], &[]), Some(1));
    assert_eq!(sampler(all()).next(&[f32::NAN, f32::NEG_INFINITY], &[]), None);
    assert_eq!(sampler(all()).next(&[], &[]), None);
}

#[test]
fn settings_out_of_range_are_refused_by_name() {
    let refuse = |sampling: SamplingOptions| sampling.check().unwrap_err().to_string();
    assert_eq!(
        refuse(SamplingOptions { temperature: -1.0, ..SamplingOptions::default() }),
        "cannot use `temperature`: it is -1, expected 0 or more"
    );
    assert_eq!(
        refuse(SamplingOptions { top_p: 0.0, ..SamplingOptions::default() }),
        "cannot use `top-p`: it is 0, expected above 0 and at most 1"
    );
    assert_eq!(
        refuse(SamplingOptions { min_p: f32::NAN, ..SamplingOptions::default() }),
        "cannot use `min-p`: it is NaN, expected between 0 and 1"
    );
    assert!(
        refuse(SamplingOptions { repetition_penalty: 0.0, ..SamplingOptions::default() })
            .contains("`repetition-penalty`")
    );
}

/// A reference sampler that follows the definition and sorts every candidate.
mod plain {
    use std::collections::BTreeSet;

    use super::*;

    pub fn next(
        sampling: &SamplingOptions,
        stream: &mut Stream,
        logits: &[f32],
        context: &[u32],
    ) -> Option<u32> {
        let mut candidates: Vec<Candidate> =
            logits.iter().zip(0..).map(|(&logit, id)| Candidate { id, logit }).collect();
        for id in context.iter().collect::<BTreeSet<_>>() {
            if let Some(c) = candidates.get_mut(*id as usize).filter(|_| sampling.repetition_penalty != 1.0) {
                let penalty = sampling.repetition_penalty;
                c.logit = if c.logit < 0.0 { c.logit * penalty } else { c.logit / penalty };
            }
        }
        candidates.retain(|c| c.logit > f32::NEG_INFINITY);
        let best = *candidates.iter().min_by(|a, b| by_logit(a, b))?;
        if sampling.temperature == 0.0 || best.logit == f32::INFINITY {
            return Some(best.id);
        }
        candidates.iter_mut().for_each(|c| c.logit = (c.logit - best.logit) / sampling.temperature);
        candidates.sort_by(by_logit);
        if (1..candidates.len()).contains(&sampling.top_k) {
            let least = candidates[sampling.top_k - 1].logit;
            candidates.retain(|c| c.logit >= least);
        }
        let weight = |c: &Candidate| (c.logit as f64).exp();
        if sampling.top_p < 1.0 {
            let (total, mut above, mut kept) = (candidates.iter().map(weight).sum::<f64>(), 0.0, 0);
            while kept < candidates.len() && above < sampling.top_p as f64 * total {
                above += weight(&candidates[kept]);
                kept += 1;
            }
            candidates.truncate(kept.max(1));
        }
        if sampling.min_p > 0.0 {
            candidates.retain(|c| weight(c) >= sampling.min_p as f64);
        }
        let mut left = stream.next_uniform() as f64 * candidates.iter().map(weight).sum::<f64>();
        for c in &candidates {
            left -= weight(c);
            if left < 0.0 {
                return Some(c.id);
            }
        }
        Some(candidates[0].id)
    }
}

/// Returns logits of one kind: peaked, flat, with equal values, or with NaN and infinity.
fn random_logits(kind: u64, len: usize, stream: &mut Stream) -> Vec<f32> {
    let mut uniform = || stream.next_uniform();
    let one = |_| match kind {
        0 => 30.0 * uniform().powi(3) - 10.0,
        1 => uniform() * 0.1,
        2 => (uniform() * 8.0).floor() - 4.0,
        3 => [f32::NAN, f32::NEG_INFINITY, -0.0, 0.0, -3.0, 1.0][(uniform() * 6.0) as usize],
        _ => uniform() * 2000.0 - 1000.0,
    };
    (0..len).map(one).collect()
}

#[test]
fn every_setting_chooses_what_sorting_all_candidates_chooses() {
    let mut stream = Stream::new(12);
    for case in 0..400 {
        let len = [1, 3, 60, 700, 5_000, 20_011][stream.next_below(6) as usize];
        let mut one_of = |values: &[f32]| values[stream.next_below(values.len() as u64) as usize];
        let sampling = SamplingOptions {
            temperature: one_of(&[0.0, 0.7, 1.0, 2.0, 1e-30, 40.0]),
            top_k: one_of(&[0.0, 0.0, 1.0, 2.0, 50.0, 6_000.0]) as usize,
            top_p: one_of(&[1.0, 1.0, 0.9, 0.3, 1e-6, 0.9999]),
            min_p: one_of(&[0.0, 0.0, 0.05, 1.0]),
            repetition_penalty: one_of(&[1.0, 1.3, 0.5]),
            seed: case,
        };
        let mut fast = sampler(sampling.clone());
        let mut plain_stream = Stream::new(rng::key(&[case]));
        for kind in 0..5 {
            let logits = random_logits(kind, len, &mut stream);
            let context: Vec<u32> = (0..9).map(|_| stream.next_below(len as u64 + 2) as u32).collect();
            for _ in 0..4 {
                let expected = plain::next(&sampling, &mut plain_stream, &logits, &context);
                assert_eq!(fast.next(&logits, &context), expected, "{sampling:?}, kind {kind}, {len} logits");
            }
        }
    }
}

#[test]
fn the_smallest_logit_has_just_enough_weight() {
    for weight in [1.0, 0.999, 0.5, 0.05, 1e-6, 1e-38, f32::MIN_POSITIVE / 8.0] {
        let logit = smallest_logit(weight);
        assert!((logit as f64).exp() >= weight as f64, "{weight}");
        assert!((logit.next_down() as f64).exp() < weight as f64, "{weight}");
    }
}
