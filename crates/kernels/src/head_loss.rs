//! The projection to the vocabulary and its cross-entropy. The full matrix of logits never exists.

use crate::Matrix;
use crate::math::dot_f64;

/// Number of rows of logits that the reference computes at once.
const CHUNK: usize = 16;

/// Computes `losses[i] = -log softmax(inp[i] Wᵀ)[targets[i]]` in nats, where `W` is `head`. `grads` is an
/// optional pair `(dinp, dloss)`. With `grads`, also computes
/// `dinp[i] = dloss[i] · (softmax(inp[i] Wᵀ) - onehot(targets[i])) W`. With `softcap`, the logits are first
/// capped as in [`HeadOperands::softcap`](crate::HeadOperands::softcap).
///
/// | operand   | shape    | note                              |
/// |-----------|----------|-----------------------------------|
/// | `losses`  | `(N)`    |                                   |
/// | `dinp`    | `(N, C)` | overwritten                       |
/// | `dloss`   | `(N)`    |                                   |
/// | `inp`     | `(N, C)` | only rows that have a label       |
/// | `head`    | `(V, C)` |                                   |
/// | `targets` | `(N)`    | below `V`                         |
///
/// # Panics
/// If a target is not below `V`, or a slice is too short.
pub fn head_loss(
    losses: &mut [f32],
    mut grads: Option<(&mut [f32], &[f32])>,
    inp: &[f32],
    (head, softcap): (&Matrix, Option<f32>),
    targets: &[u32],
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
        let slopes: Vec<f64> = match softcap.map(f64::from) {
            Some(cap) => logits.iter_mut().map(|logit| capped(logit, cap)).collect(),
            None => vec![1.0; logits.len()],
        };
        for (i, &target) in targets.iter().enumerate() {
            let dloss = grads.as_ref().map_or(0.0, |(_, dloss)| dloss[first + i]);
            losses[first + i] = softmax_loss(&mut logits[i * v..][..v], target, dloss);
        }
        let Some((dinp, _)) = &mut grads else { continue };
        let mut sums = vec![0.0f64; targets.len() * c];
        for o in 0..v {
            head.row_to_f32(o, &mut row);
            for i in 0..targets.len() {
                let dlogit = logits[i * v + o] * slopes[i * v + o];
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

/// Replaces a logit by `cap · tanh(logit / cap)`, and returns the derivative of this function.
fn capped(logit: &mut f64, cap: f64) -> f64 {
    let t = (*logit / cap).tanh();
    *logit = cap * t;
    1.0 - t * t
}

/// Returns the loss of one row. Overwrites `logits` with `dloss · (softmax - onehot)`.
pub(crate) fn softmax_loss(logits: &mut [f64], target: u32, dloss: f32) -> f32 {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finite_difference::{assert_close, check, random};
    use crate::rng::Stream;

    #[test]
    fn equal_logits_cost_the_log_of_the_vocabulary() {
        let head = Matrix::from_f32(&[0.5; 8 * 3], 8, 3);
        let mut losses = [0.0; 2];
        head_loss(&mut losses, None, &[1.0; 6], (&head, None), &[0, 7]);
        assert_close(&losses, &[8f32.ln(); 2], 1e-6);
    }

    #[test]
    fn gradient_matches_finite_differences_across_chunks() {
        let (mut stream, n, c, v) = (Stream::new(8), CHUNK + 3, 4, 9);
        let head = Matrix::from_f32(&random(&mut stream, v * c), v, c);
        let inp = random(&mut stream, n * c);
        let targets: Vec<u32> = (0..n).map(|_| stream.next_below(v as u64) as u32).collect();
        let (mut losses, mut dinp) = (vec![0.0; n], vec![9.0; n * c]);
        let dloss = random(&mut stream, n);
        for softcap in [None, Some(0.8)] {
            head_loss(&mut losses, Some((&mut dinp, &dloss)), &inp, (&head, softcap), &targets);
            check(&inp, &dinp, |inp| {
                head_loss(&mut losses, None, inp, (&head, softcap), &targets);
                losses.iter().zip(&dloss).map(|(&l, &d)| d as f64 * l as f64).sum()
            });
        }
    }
}
