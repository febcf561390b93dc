//! Online softmax: the softmax of a row whose elements are processed in blocks.

use crate::math::{exp, tanh};
use crate::simd::{Lanes, simd_fn};

/// Maximum and denominator of one row's softmax over a range of the vocabulary. Neither includes the target.
#[derive(Clone, Copy, Debug)]
pub struct Running {
    /// The largest logit so far.
    max: f32,
    /// `Σ e^(logit - max)`. The terms of a block are added in f32. The sums of the blocks are added in f64,
    /// because an f32 sum of 128,000 terms would lose its low bits.
    sum: f64,
    /// Logit of the target, if the target is in this range of the vocabulary.
    wanted: Option<f32>,
}

impl Running {
    /// State before the first logit. The maximum is finite, because the difference of two infinities would be
    /// NaN.
    pub const START: Self = Self { max: f32::MIN, sum: 0.0, wanted: None };
}

simd_fn! {
    /// Adds the logits of the tokens `first .. first + n` to the running softmax of each row.
    ///
    /// The rows of `logits (N, n)` are `stride` elements apart. Each logit becomes `e^(logit - max)`, and the
    /// target's logit becomes 0. `weighted (N, C)` contains sums whose terms have factors `e^(logit - max)`
    /// of earlier logits. These sums are rescaled if the maximum of their row grows. `weighted` may be empty.
    ///
    /// # Panics
    /// If the lengths do not match.
    pub fn online_softmax(
        running: &mut [Running],
        weighted: &mut [f32],
        logits: &mut [f32],
        stride: usize,
        targets: &[u32],
        first: usize,
        n: usize,
    ) = online_softmax_lanes
}

#[inline(always)]
fn online_softmax_lanes<L: Lanes>(
    running: &mut [Running],
    weighted: &mut [f32],
    logits: &mut [f32],
    stride: usize,
    targets: &[u32],
    first: usize,
    n: usize,
) {
    assert_eq!(running.len(), targets.len());
    let cols = weighted.len() / targets.len().max(1);
    for (i, (running, &target)) in running.iter_mut().zip(targets).enumerate() {
        let row = &mut logits[i * stride..][..n];
        let target = (target as usize).wrapping_sub(first);
        if target < n {
            running.wanted = Some(std::mem::replace(&mut row[target], f32::NEG_INFINITY));
        }
        let max = largest::<L>(row);
        if max > running.max {
            let factor = (running.max as f64 - max as f64).exp();
            running.sum *= factor;
            scale::<L>(&mut weighted[i * cols..][..cols], factor as f32);
            running.max = max;
        }
        running.sum += exponentials::<L>(row, running.max) as f64;
    }
}

/// The softmax of one row, combined from several ranges of the vocabulary.
#[derive(Clone, Copy, Debug)]
pub struct Softmax {
    max: f64,
    wanted: f64,
    /// `Σ e^(logit - max)` over all tokens except the target.
    others: f64,
    /// `Σ e^(logit - max)` over all tokens.
    all: f64,
}

impl Softmax {
    /// Combines the ranges in order. Every result is NaN if no range contains the target.
    pub fn of(parts: impl Iterator<Item = Running> + Clone) -> Self {
        let wanted = parts.clone().find_map(|part| part.wanted).map_or(f64::NAN, f64::from);
        let max = parts.clone().fold(wanted, |max, part| max.max(part.max as f64));
        let others: f64 = parts.map(|part| part.sum * (part.max as f64 - max).exp()).sum();
        Self { max, wanted, others, all: others + (wanted - max).exp() }
    }

    /// Returns the negative logarithm of the target's probability, in nats.
    pub fn loss(&self) -> f32 {
        (self.all.ln() + (self.max - self.wanted)) as f32
    }

    /// Returns the factor that turns the exponentials of `part` into probabilities.
    pub fn share(&self, part: &Running) -> f64 {
        (part.max as f64 - self.max).exp() / self.all
    }

    /// Returns 1 minus the target's probability. It is computed without a subtraction, which would lose all
    /// digits for a probability near 1.
    pub fn missed(&self) -> f64 {
        self.others / self.all
    }

    /// Returns the derivative of `cap · tanh(x / cap)` for the target's logit, or 1 without a cap.
    pub fn target_slope(&self, cap: Option<f32>) -> f64 {
        cap.map_or(1.0, |cap| 1.0 - (self.wanted / cap as f64).powi(2))
    }
}

/// Returns the largest element of `row`. The result may ignore a NaN in `row`. This is harmless, because the
/// sum of exponentials is then NaN.
#[inline(always)]
pub fn largest<L: Lanes>(row: &[f32]) -> f32 {
    let (mut max, mut at) = (L::splat(f32::NEG_INFINITY), 0);
    while at + L::COUNT <= row.len() {
        max = max.max(L::read(row, at));
        at += L::COUNT;
    }
    row[at..].iter().copied().fold(max.largest(), f32::max)
}

/// Computes `row = e^(row - max)`, and returns the sum of the new elements.
#[inline(always)]
pub fn exponentials<L: Lanes>(row: &mut [f32], max: f32) -> f32 {
    let (max, mut sum, mut at) = (L::splat(max), L::splat(0.0), 0);
    while at + L::COUNT <= row.len() {
        let e = exp(L::read(row, at).sub(max));
        e.write(row, at);
        sum = sum.add(e);
        at += L::COUNT;
    }
    if at < row.len() {
        exp(L::read(row, at).sub(max)).write(row, at);
    }
    // Lanes past the end were read as 0 instead of -infinity, so the tail is added from the stored values.
    sum.sum() + row[at..].iter().sum::<f32>()
}

/// Computes `row *= factor`.
#[inline(always)]
pub fn scale<L: Lanes>(row: &mut [f32], factor: f32) {
    let (factor, mut at) = (L::splat(factor), 0);
    while at < row.len() {
        L::read(row, at).mul(factor).write(row, at);
        at += L::COUNT;
    }
}

simd_fn! {
    /// Replaces the first `n` logits of every row by `cap · tanh(logit / cap)`. Rows are `stride` elements
    /// apart.
    pub fn cap_logits(logits: &mut [f32], stride: usize, n: usize, cap: f32) = cap_logits_lanes
}

#[inline(always)]
fn cap_logits_lanes<L: Lanes>(logits: &mut [f32], stride: usize, n: usize, cap: f32) {
    for row in logits.chunks_mut(stride) {
        let (row, mut at) = (&mut row[..n], 0);
        while at < n {
            let t = tanh(L::read(row, at).mul(L::splat(1.0 / cap)));
            t.mul(L::splat(cap)).write(row, at);
            at += L::COUNT;
        }
    }
}

/// Multiplies `e^(logit - max)` of every capped logit by the derivative of the cap, `1 - (logit / cap)²`. The
/// logit is recomputed from the exponential, so that no second block of logits is needed.
pub fn weigh_by_slope(running: &[Running], exponentials: &mut [f32], stride: usize, n: usize, cap: f32) {
    for (running, row) in running.iter().zip(exponentials.chunks_mut(stride)) {
        for e in row[..n].iter_mut().filter(|e| **e > 0.0) {
            let t = (running.max + e.ln()) / cap;
            *e *= 1.0 - t * t;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::finite_difference::{assert_close, random};
    use crate::head_loss::softmax_loss;
    use crate::rng::Stream;

    /// Returns the softmax of a row that is processed in blocks, and the probabilities of its tokens, with 0
    /// for the target.
    fn in_blocks(isa: Isa, logits: &[f32], target: u32, block: usize) -> (Softmax, Vec<f32>) {
        let (mut running, mut weights) = ([Running::START], vec![]);
        for (b, piece) in logits.chunks(block).enumerate() {
            let mut piece = piece.to_vec();
            let n = piece.len();
            // The earlier exponentials are passed as `weighted`, so that `online_softmax` rescales them.
            online_softmax(isa, &mut running, &mut weights, &mut piece, n, &[target], b * block, n);
            weights.extend(piece);
        }
        let softmax = Softmax::of(running.into_iter());
        let share = softmax.share(&running[0]) as f32;
        weights.iter_mut().for_each(|w| *w *= share);
        (softmax, weights)
    }

    #[test]
    fn every_isa_turns_blocks_of_logits_into_the_loss_and_gradient_of_the_reference() {
        let mut stream = Stream::new(27);
        for (isa, v) in
            Isa::supported().flat_map(|isa| (1..70).chain([1023, 1025, 5000]).map(move |v| (isa, v)))
        {
            for target in [0, (v - 1) as u32, v as u32 / 2] {
                let logits: Vec<f32> = random(&mut stream, v).iter().map(|l| l * 20.0).collect();
                let mut row: Vec<f64> = logits.iter().map(|&l| l as f64).collect();
                let expected = softmax_loss(&mut row, target, 1.0);
                let gradient: Vec<f32> = row.iter().map(|&g| g as f32).collect();
                for block in [7, 128, v] {
                    let (softmax, mut found) = in_blocks(isa, &logits, target, block);
                    assert_close(&[softmax.loss()], &[expected], 2e-6);
                    assert_eq!(found[target as usize], 0.0);
                    found[target as usize] = -softmax.missed() as f32;
                    assert_close(&found, &gradient, 1e-6);
                }
            }
        }
    }

    #[test]
    fn a_target_all_but_certain_keeps_the_digits_of_its_gradient() {
        for isa in Isa::supported() {
            let mut logits = vec![0.0; 40];
            logits[7] = 30.0;
            let (softmax, _) = in_blocks(isa, &logits, 7, 16);
            let expected = 39.0 * (-30f64).exp();
            assert!((softmax.missed() / expected - 1.0).abs() < 1e-6, "{isa}: {}", softmax.missed());
        }
    }

    #[test]
    fn a_nan_logit_gives_a_nan_loss() {
        for isa in Isa::supported() {
            for at in 0..40 {
                let mut logits = vec![1.0; 40];
                logits[at] = f32::NAN;
                for block in [1, 16, 40] {
                    let loss = in_blocks(isa, &logits, 3, block).0.loss();
                    assert!(loss.is_nan(), "{isa} {at}: {loss}");
                }
            }
        }
    }
}
