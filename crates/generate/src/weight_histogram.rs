//! Sums of token weights, grouped by logit. With these sums, the sampler finds a token without sorting the
//! vocabulary.
//!
//! Logits are at most 0, and a logit `x` has the weight `e^x`. Group `g` contains the logits that are nearest
//! to `-g / 64`:
//!
//! ```text
//! e^x = e^(-g / 64) · e^r      r = x + g / 64, so |r| <= 1 / 128
//! sum of a group = e^(-g / 64) · Σ e^r
//! ```
//!
//! A polynomial with a relative error of 3e-16 replaces the function `exp`, so the compiler can vectorise the
//! loop over the logits.

use crate::candidates::Candidate;

/// Number of groups per unit of logits.
const GROUPS_PER_UNIT: f32 = 64.0;
/// Number of groups. Logits below -64 have no group, because each of their weights is below 2e-28. Even a
/// million such weights change no bit of a sum that is at least 1.
const GROUPS: usize = 4096;
/// Group index of logits that are too small for a group.
const NO_GROUP: u32 = GROUPS as u32;
/// Number of logits that are grouped in one step.
const BLOCK: usize = 16;

/// The sum of the weights in each group.
#[derive(Clone, Debug, Default)]
pub(crate) struct WeightHistogram {
    /// `Σ e^r` of each group, and one more element for logits without a group.
    sums: Vec<f64>,
    total: f64,
}

/// Returns the group of a logit. A larger logit never has a larger group.
#[inline(always)]
fn group(logit: f32) -> u32 {
    let scaled = logit * -GROUPS_PER_UNIT;
    let scaled = if scaled < GROUPS as f32 { scaled } else { GROUPS as f32 };
    // At 2^23, two adjacent f32 differ by 1. The addition therefore rounds to an integer, and the integer is
    // in the low bits of the sum.
    (scaled + TWO_TO_23).to_bits() & 0x007f_ffff
}

const TWO_TO_23: f32 = 8_388_608.0;

/// Returns `e^(-g / 64)` for group `g`.
fn scale(group: usize) -> f64 {
    (-(group as f64) / GROUPS_PER_UNIT as f64).exp()
}

impl WeightHistogram {
    /// Computes the sums for `logits`, which are at most 0. Minus infinity has the weight 0.
    pub fn fill(&mut self, logits: &[f32]) {
        self.sums.clear();
        self.sums.resize(GROUPS + 1, 0.0);
        let (blocks, tail) = logits.as_chunks::<BLOCK>();
        blocks.iter().for_each(|block| add(&mut self.sums, block));
        let mut padded = [f32::NEG_INFINITY; BLOCK];
        padded[..tail.len()].copy_from_slice(tail);
        add(&mut self.sums, &padded);
        self.total = self.groups().map(|(_, sum)| sum).sum();
    }

    pub fn total(&self) -> f64 {
        self.total
    }

    /// Adds the sums of the groups, beginning with the largest logits, until `is_reached` accepts the sum.
    /// Returns the last added group, and the sum of the groups before it.
    pub fn find(&self, is_reached: impl Fn(f64) -> bool) -> Option<(u32, f64)> {
        let mut above = 0.0;
        for (group, sum) in self.groups() {
            if is_reached(above + sum) {
                return Some((group as u32, above));
            }
            above += sum;
        }
        None
    }

    /// Returns the group of `logit`, and the sum of the groups with larger logits. Returns `None` if `logit`
    /// is too small for a group.
    pub fn above(&self, logit: f32) -> Option<(u32, f64)> {
        let group = group(logit);
        let above = self.groups().take_while(|&(g, _)| (g as u32) < group).map(|(_, sum)| sum).sum();
        (group < NO_GROUP).then_some((group, above))
    }

    /// Returns the sum of each group that is not empty.
    fn groups(&self) -> impl Iterator<Item = (usize, f64)> + '_ {
        let sums = self.sums.iter().take(GROUPS).enumerate();
        sums.filter(|&(_, &sum)| sum > 0.0).map(|(group, &sum)| (group, scale(group) * sum))
    }
}

#[inline(always)]
fn add(sums: &mut [f64], logits: &[f32; BLOCK]) {
    let groups = logits.map(group);
    let mut weights = [0.0; BLOCK];
    for ((weight, &logit), group) in weights.iter_mut().zip(logits).zip(groups) {
        // The computed weight of a logit without a group is wrong, and is added to the last element of
        // `sums`, which is never read.
        let r = logit as f64 + group as i32 as f64 * (1.0 / GROUPS_PER_UNIT as f64);
        *weight = 1.0 + r * (1.0 + r * (0.5 + r * (1.0 / 6.0 + r * (1.0 / 24.0 + r * (1.0 / 120.0)))));
    }
    for (weight, group) in weights.iter().zip(groups) {
        sums[group as usize] += weight;
    }
}

/// Replaces `candidates` by the tokens of the group `wanted`.
pub(crate) fn gather_group(candidates: &mut Vec<Candidate>, logits: &[f32], wanted: u32) {
    candidates.clear();
    for (block, start) in logits.chunks(BLOCK).zip((0..).step_by(BLOCK)) {
        if block.iter().fold(false, |found, &logit| found | (group(logit) == wanted)) {
            let found = block.iter().zip(start..).filter(|&(&logit, _)| group(logit) == wanted);
            candidates.extend(found.map(|(&logit, id)| Candidate { id, logit }));
        }
    }
}

#[cfg(test)]
mod tests {
    use danlu_kernels::rng::Stream;

    use super::*;

    #[test]
    fn sums_are_those_of_the_exponential_function() {
        let mut stream = Stream::new(21);
        for (len, span) in [(1, 1.0), (15, 3.0), (1000, 20.0), (4096, 70.0), (777, 1e-3)] {
            let mut logits: Vec<f32> = (0..len).map(|_| -span * stream.next_uniform()).collect();
            logits[0] = 0.0;
            let mut histogram = WeightHistogram::default();
            histogram.fill(&logits);
            let exact: f64 = logits.iter().map(|&x| (x as f64).exp()).sum();
            // The polynomial contributes 3e-16. The rounding errors of about 4096 additions are random, and
            // contribute about sqrt(4096) · 1.1e-16 = 7e-15.
            assert!((histogram.total() / exact - 1.0).abs() < 1e-13, "{len} {span}");
            let limit = -span / 3.0;
            let (group, above) = histogram.above(limit).unwrap();
            let exact: f64 =
                logits.iter().filter(|&&x| super::group(x) < group).map(|&x| (x as f64).exp()).sum();
            assert!((above - exact).abs() <= 1e-13 * exact, "{len} {span}");
        }
    }

    #[test]
    fn groups_are_in_the_order_of_logits() {
        let mut stream = Stream::new(22);
        let mut logits: Vec<f32> = (0..2000).map(|_| -70.0 * stream.next_uniform()).collect();
        logits.extend([0.0, -0.0, -1.0 / 128.0, -3.0 / 128.0, f32::MIN, f32::NEG_INFINITY]);
        logits.sort_by(f32::total_cmp);
        assert!(logits.windows(2).all(|pair| group(pair[0]) >= group(pair[1])));
        assert_eq!((group(0.0), group(-64.0), group(f32::NEG_INFINITY)), (0, NO_GROUP, NO_GROUP));
    }

    #[test]
    fn a_group_is_gathered_whole() {
        let mut stream = Stream::new(23);
        let logits: Vec<f32> = (0..333).map(|_| -0.1 * stream.next_uniform()).collect();
        let mut found = Vec::new();
        for wanted in 0..8 {
            gather_group(&mut found, &logits, wanted);
            let ids: Vec<u32> = found.iter().map(|c| c.id).collect();
            let expected: Vec<u32> = (0..333).filter(|&id| group(logits[id as usize]) == wanted).collect();
            assert_eq!(ids, expected);
        }
    }
}
