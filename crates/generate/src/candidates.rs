//! Finds tokens by their logits without sorting the whole vocabulary.

use std::cmp::Ordering;

/// Maximum number of candidates that are sorted. A longer list is first divided into larger and smaller
/// logits, and only one of the two parts is searched.
const MAX_SORTED: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Candidate {
    pub id: u32,
    pub logit: f32,
}

impl Candidate {
    /// Returns the unnormalised probability. The sampler subtracts the largest logit first, so the weight is
    /// at most 1.
    pub fn weight(&self) -> f64 {
        (self.logit as f64).exp()
    }
}

/// Orders candidates by descending logit. Equal logits are ordered by id, so the order does not depend on the
/// sort algorithm.
pub(crate) fn by_logit(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

/// Adds weights to `above` in the order of [`by_logit`], until `is_reached` accepts the sum. Returns the last
/// added candidate and the sum. If rounding leaves the sum too small, returns the smallest candidate.
/// Reorders `candidates`.
pub(crate) fn find_candidate(
    mut candidates: &mut [Candidate],
    mut above: f64,
    is_reached: impl Fn(f64) -> bool,
) -> Option<(Candidate, f64)> {
    // Equal logits are already in order, so even a whole vocabulary of equal logits needs no sorting.
    let is_sorted = candidates.is_sorted_by(|a, b| by_logit(a, b).is_le());
    while !is_sorted && candidates.len() > MAX_SORTED {
        let half = candidates.len() / 2;
        candidates.select_nth_unstable_by(half, by_logit);
        let (larger, smaller) = candidates.split_at_mut(half);
        let sum = above + larger.iter().map(Candidate::weight).sum::<f64>();
        (candidates, above) = if is_reached(sum) { (larger, above) } else { (smaller, sum) };
    }
    if !is_sorted {
        candidates.sort_unstable_by(by_logit);
    }
    for candidate in candidates.iter() {
        above += candidate.weight();
        if is_reached(above) {
            return Some((*candidate, above));
        }
    }
    candidates.last().map(|&last| (last, above))
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

/// Fills `candidates` with the `k` largest logits, in any order, and with all logits that equal the `k`-th
/// largest. NaN and minus infinity are left out.
pub(crate) fn gather_largest(candidates: &mut Vec<Candidate>, logits: &[f32], k: usize) {
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

/// Removes candidates below the `k`-th largest logit, and returns this logit. Returns `f32::MIN` if there are
/// at most `k` candidates.
fn keep_top_k(candidates: &mut Vec<Candidate>, k: usize) -> f32 {
    if k >= candidates.len() {
        return f32::MIN;
    }
    let (_, last, _) = candidates.select_nth_unstable_by(k - 1, by_logit);
    let least = last.logit;
    candidates.retain(|c| c.logit >= least);
    least
}
