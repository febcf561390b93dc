//! The vocabulary projection and its cross-entropy, without ever holding all the logits.

use crate::Matrix;
use crate::math::{dot_f64, exp};
use crate::simd::{Lanes, simd_fn};

/// Rows whose logits exist at the same time in the reference.
const CHUNK: usize = 16;

/// `losses[i] = -log softmax(inp[i] Wᵀ)[targets[i]]`, in nats, and where asked
/// `dinp[i] = dloss · (softmax(inp[i] Wᵀ) - onehot(targets[i])) W`, overwritten.
///
/// | operand   | shape    | note                              |
/// |-----------|----------|-----------------------------------|
/// | `losses`  | `(N)`    |                                   |
/// | `dinp`    | `(N, C)` |                                   |
/// | `inp`     | `(N, C)` | only rows that carry a label      |
/// | `head`    | `(V, C)` |                                   |
/// | `targets` | `(N)`    | below `V`; their number is `N`    |
///
/// # Panics
/// If a target is not below `V`, or a slice is too short.
pub fn head_loss(
    losses: &mut [f32],
    mut dinp: Option<&mut [f32]>,
    inp: &[f32],
    head: &Matrix,
    targets: &[u32],
    dloss: f32,
) {
    let (v, c) = (head.rows(), head.cols());
    assert!(losses.len() >= targets.len() && inp.len() >= targets.len() * c);
    let mut row = vec![0.0; c];
    for (chunk, targets) in targets.chunks(CHUNK).enumerate() {
        let first = chunk * CHUNK;
        let mut logits = vec![0.0f64; targets.len() * v];
        for o in 0..v {
            head.row_to_f32(o, &mut row);
            for i in 0..targets.len() {
                logits[i * v + o] = dot_f64(&inp[(first + i) * c..][..c], &row);
            }
        }
        for (i, &target) in targets.iter().enumerate() {
            losses[first + i] = softmax_loss(&mut logits[i * v..][..v], target, dloss);
        }
        let Some(dinp) = dinp.as_deref_mut() else { continue };
        let mut sums = vec![0.0f64; targets.len() * c];
        for o in 0..v {
            head.row_to_f32(o, &mut row);
            for i in 0..targets.len() {
                let dlogit = logits[i * v + o];
                for (s, &w) in sums[i * c..][..c].iter_mut().zip(&row) {
                    *s += dlogit * w as f64;
                }
            }
        }
        for (d, s) in dinp[first * c..][..targets.len() * c].iter_mut().zip(sums) {
            *d = s as f32;
        }
    }
}

/// The loss of one row; `logits` becomes `dloss · (softmax - onehot)`.
fn softmax_loss(logits: &mut [f64], target: u32, dloss: f32) -> f32 {
    let target = target as usize;
    assert!(target < logits.len(), "target {target} in a vocabulary of {}", logits.len());
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|l| (l - max).exp()).sum();
    let loss = max + sum.ln() - logits[target];
    for l in logits.iter_mut() {
        *l = dloss as f64 * (*l - max).exp() / sum;
    }
    logits[target] -= dloss as f64;
    loss as f32
}

simd_fn! {
    /// The loss of every row of `logits (targets.len(), V)`, in f32 with its denominator summed in f64; with
    /// `dloss`, `logits` becomes `dloss · (softmax - onehot)`, and is unspecified otherwise.
    ///
    /// # Panics
    /// If the lengths do not fit each other, or a target is not below `V`.
    pub fn softmax_rows(losses: &mut [f32], logits: &mut [f32], targets: &[u32], dloss: Option<f32>) = softmax_lanes
}

#[inline(always)]
fn softmax_lanes<L: Lanes>(losses: &mut [f32], logits: &mut [f32], targets: &[u32], dloss: Option<f32>) {
    assert!(
        losses.len() == targets.len() && (targets.is_empty() || logits.len().is_multiple_of(targets.len()))
    );
    let v = logits.len() / targets.len().max(1);
    for (i, (loss, &target)) in losses.iter_mut().zip(targets).enumerate() {
        let (row, target) = (&mut logits[i * v..][..v], target as usize);
        assert!(target < v, "target {target} in a vocabulary of {v}");
        let wanted = row[target];
        let max = largest::<L>(row);
        let mut sum = 0.0;
        for piece in row.chunks_mut(SUM_CHUNK) {
            sum += exponentials::<L>(piece, max) as f64;
        }
        *loss = (sum.ln() + (max - wanted) as f64) as f32;
        if let Some(dloss) = dloss {
            scale::<L>(row, (dloss as f64 / sum) as f32);
            row[target] -= dloss;
        }
    }
}

/// Terms of a denominator that are added in f32: 128 000 of them would lose their low bits.
const SUM_CHUNK: usize = 1024;

/// The largest of `row`. A NaN may be passed over here, and then reaches the sum of exponentials.
#[inline(always)]
pub(crate) fn largest<L: Lanes>(row: &[f32]) -> f32 {
    let (mut max, mut at) = (L::splat(f32::NEG_INFINITY), 0);
    while at + L::COUNT <= row.len() {
        max = max.max(L::read(row, at));
        at += L::COUNT;
    }
    row[at..].iter().copied().fold(max.largest(), f32::max)
}

/// `row = e^(row - max)`, and their sum.
#[inline(always)]
pub(crate) fn exponentials<L: Lanes>(row: &mut [f32], max: f32) -> f32 {
    let (max, mut sum, mut at) = (L::splat(max), L::splat(0.0), 0);
    while at + L::COUNT <= row.len() {
        let e = exp(L::read(row, at).sub(max));
        e.write(row, at);
        sum = sum.add(e);
        at += L::COUNT;
    }
    // Lanes beyond the end read as 0, not as -infinity, so the tail is summed from what was written.
    exp(L::read(row, at).sub(max)).write(row, at);
    sum.sum() + row[at..].iter().sum::<f32>()
}

/// `row *= factor`.
#[inline(always)]
pub(crate) fn scale<L: Lanes>(row: &mut [f32], factor: f32) {
    let (factor, mut at) = (L::splat(factor), 0);
    while at < row.len() {
        L::read(row, at).mul(factor).write(row, at);
        at += L::COUNT;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::finite_difference::{assert_close, check, random};
    use crate::rng::Stream;

    #[test]
    fn equal_logits_cost_the_log_of_the_vocabulary() {
        let head = Matrix::from_f32(&[0.5; 8 * 3], 8, 3);
        let mut losses = [0.0; 2];
        head_loss(&mut losses, None, &[1.0; 6], &head, &[0, 7], 1.0);
        assert_close(&losses, &[8f32.ln(); 2], 1e-6);
    }

    #[test]
    fn gradient_matches_finite_differences_across_chunks() {
        let (mut stream, n, c, v) = (Stream::new(8), CHUNK + 3, 4, 9);
        let head = Matrix::from_f32(&random(&mut stream, v * c), v, c);
        let inp = random(&mut stream, n * c);
        let targets: Vec<u32> = (0..n).map(|_| stream.next_below(v as u64) as u32).collect();
        let (mut losses, mut dinp) = (vec![0.0; n], vec![9.0; n * c]);
        head_loss(&mut losses, Some(&mut dinp), &inp, &head, &targets, 0.5);
        check(&inp, &dinp, |inp| {
            head_loss(&mut losses, None, inp, &head, &targets, 0.5);
            losses.iter().map(|&l| 0.5 * l as f64).sum()
        });
    }

    #[test]
    fn every_isa_turns_logits_into_the_loss_and_gradient_of_the_reference() {
        let mut stream = Stream::new(27);
        for (isa, v) in
            Isa::supported().flat_map(|isa| (1..70).chain([1023, 1025, 5000]).map(move |v| (isa, v)))
        {
            let targets = [0, (v - 1) as u32, v as u32 / 2];
            let logits: Vec<f32> = random(&mut stream, 3 * v).iter().map(|l| l * 20.0).collect();
            let (mut expected, mut gradient) = (vec![], vec![]);
            for (i, &target) in targets.iter().enumerate() {
                let mut row: Vec<f64> = logits[i * v..][..v].iter().map(|&l| l as f64).collect();
                expected.push(softmax_loss(&mut row, target, 0.25));
                gradient.extend(row.iter().map(|&g| g as f32));
            }
            let (mut losses, mut found) = ([0.0; 3], logits.clone());
            softmax_rows(isa, &mut losses, &mut found, &targets, Some(0.25));
            assert_close(&losses, &expected, 2e-6);
            assert_close(&found, &gradient, 1e-6);
            let mut again = [0.0; 3];
            softmax_rows(isa, &mut again, &mut logits.clone(), &targets, None);
            assert_eq!(losses, again);
        }
    }

    #[test]
    fn a_nan_logit_gives_a_nan_loss() {
        for isa in Isa::supported() {
            for at in 0..40 {
                let mut logits = vec![1.0; 40];
                logits[at] = f32::NAN;
                let mut losses = [0.0];
                softmax_rows(isa, &mut losses, &mut logits, &[3], Some(1.0));
                assert!(losses[0].is_nan(), "{isa} {at}: {losses:?}");
            }
        }
    }
}
