//! Fused linear layer and cross-entropy. The vocabulary is processed in blocks with an online softmax. This
//! is like tiled attention in which the keys and the values are both the rows of `W`.
//!
//! ```text
//! pack the rows of inp
//! in parallel, for spans of the vocabulary and groups of rows:
//!   for blocks of BLOCK tokens in the span:
//!     logits = inp W[block]ᵀ                      only this block exists, in L2
//!     max' = max(max, logits)                     the target's logit is stored separately
//!     sums *= e^(max - max')
//!     sum, sums += Σ e^(logits - max'), e^(logits - max') W[block]
//! in parallel, for rows:
//!   combine the spans in order: the loss, and the share of each span's sums
//!   dinp = dloss · (Σ share · sums - (1 - p[target]) W[target])
//! ```
//!
//! - A block is a range of `BLOCK` tokens of the vocabulary, and a span is a range of blocks. The number of
//!   spans depends only on the size of the vocabulary, so the number of threads does not change the order of
//!   any sum.
//! - The sums do not include the target. In the gradient `Σ p W - W[target]`, the target contributes
//!   `-(1 - p[target]) W[target]`. The factor `1 - p[target]` is computed from the sums, without a
//!   subtraction. If `p[target]` is almost 1, a subtraction would leave no correct digit.

mod partition;
mod vocab_span;

use std::sync::Mutex;

use self::partition::{Partition, SPANS};
use self::vocab_span::SpanPass;
use super::disjoint_slice::DisjointSlice;
use super::pool::{Pool, Scratch, SendPtr, lock};
use crate::gemm::{Kernels, PackJob, View, part};
use crate::math::axpy;
use crate::softmax::{Running, Softmax};
use crate::{Isa, Matrix};

/// Maximum number of rows of one pass over the vocabulary, if all rows are one group.
const MAX_ROWS: usize = 512;
/// Maximum number of bytes for the gradients of all spans in a pass. If rows are wider, a pass has fewer
/// rows, but at least 32.
const MAX_GRADIENT_BYTES: usize = 32 << 20;

/// The loss head with its working memory.
pub(crate) struct HeadLoss {
    isa: Isa,
    kernels: &'static Kernels,
    round: bool,
    /// Packed rows, and the gradient of each span of the vocabulary.
    shared: Mutex<Scratch>,
    /// Working memory of each thread: packed rows of `W`, a block of logits, and the packed exponentials of
    /// these logits.
    own: Vec<Mutex<Scratch>>,
}

/// Returns the maximum number of rows of `c` elements in one pass over a vocabulary of `v`. With several
/// groups of rows, a pass has up to twice as many rows, because only the logits of one group must stay in L2.
fn max_rows(threads: usize, (v, c): (usize, usize)) -> usize {
    let groups = partition::groups(threads, partition::spans(v)).min(2);
    (MAX_GRADIENT_BYTES / (SPANS * c * size_of::<f32>())).clamp(32, groups * MAX_ROWS)
}

impl HeadLoss {
    /// Creates a loss head for `isa`. If `bf16` is true, matrix multiplications round both operands to bf16
    /// and add in f32.
    pub fn new(isa: Isa, bf16: bool, threads: usize) -> Self {
        let own = (0..threads).map(|_| Mutex::default()).collect();
        Self { isa, kernels: Kernels::select(isa, bf16), round: bf16, shared: Mutex::default(), own }
    }

    /// Returns the length of the memory that all threads share for `n` rows, and the length of the memory of
    /// each thread. Lengths are in 32-bit words and grow with `n`.
    pub fn scratch(&self, threads: usize, n: usize, (v, c): (usize, usize), gradient: bool) -> [usize; 2] {
        if n == 0 {
            return [0; 2];
        }
        Partition::new(self.kernels, threads, n.min(max_rows(threads, (v, c))), v, c).words(gradient)
    }

    #[cfg(test)]
    pub fn allocated_bytes(&self) -> u64 {
        lock(&self.shared).allocated_bytes()
            + self.own.iter().map(|own| lock(own).allocated_bytes()).sum::<u64>()
    }

    /// Computes [`crate::head_loss::head_loss`] in f32 or bf16.
    pub fn loss(
        &self,
        pool: &Pool,
        losses: &mut [f32],
        mut grads: Option<(&mut [f32], &[f32])>,
        inp: &[f32],
        (head, softcap): (&Matrix, Option<f32>),
        targets: &[u32],
    ) {
        let (n, v, c) = (targets.len(), head.rows(), head.cols());
        assert!(losses.len() >= n && inp.len() >= n * c);
        assert!(targets.iter().all(|&t| (t as usize) < v), "a target outside the vocabulary of {v}");
        View::rows_of(head).check(v, c);
        let held = self.scratch(pool.threads(), n, (v, c), grads.is_some());
        let passes = n.div_ceil(max_rows(pool.threads(), (v, c)));
        for pass in 0..passes {
            let (first, m) = part(n, passes, pass);
            let rows = first * c..(first + m) * c;
            let grads = grads.as_mut().map(|(dinp, dloss)| (&mut dinp[rows.clone()], &dloss[first..][..m]));
            let targets = &targets[first..][..m];
            let scratch = &mut lock(&self.shared);
            let scratch = (scratch.at_least(held[0]), held[1]);
            self.pass(pool, scratch, &mut losses[first..][..m], grads, &inp[rows], (head, softcap, targets));
        }
    }

    /// Computes [`loss`](Self::loss) for the rows of one pass. Uses the working memory whose lengths
    /// [`scratch`](Self::scratch) returns.
    fn pass(
        &self,
        pool: &Pool,
        (shared, own_words): (&mut [f32], usize),
        losses: &mut [f32],
        grads: Option<(&mut [f32], &[f32])>,
        inp: &[f32],
        (head, softcap, targets): (&Matrix, Option<f32>, &[u32]),
    ) {
        let (m, c) = (targets.len(), head.cols());
        let partition = Partition::new(self.kernels, pool.threads(), m, head.rows(), c);
        let (packed, sums) = shared.split_at_mut(partition.packed());
        self.pack(pool, &partition, packed, inp);

        let mut running = vec![Running::START; partition.spans * m];
        let (mut rest, mut of_task) = (&mut running[..], Vec::with_capacity(partition.tasks()));
        for task in 0..partition.tasks() {
            let (rows, after) = rest.split_at_mut(partition.rows_of(task % partition.groups).1);
            of_task.push(Mutex::new(rows));
            rest = after;
        }
        let pass = SpanPass {
            isa: self.isa,
            kernels: self.kernels,
            round: self.round,
            partition: &partition,
            head,
            softcap,
            targets,
            packed: SendPtr(packed.as_mut_ptr()),
            sums: grads.is_some().then_some(SendPtr(sums.as_mut_ptr())),
        };
        pool.run(partition.tasks(), |task, worker| {
            pass.task(task, lock(&self.own[worker]).at_least(own_words), &mut lock(&of_task[task]));
        });

        let losses = DisjointSlice::new(losses);
        let grads = grads.map(|(dinp, dloss)| (DisjointSlice::new(dinp), dloss));
        pool.over_rows(m, partition.spans * c, |rows| {
            for i in rows {
                let spans = running.iter().skip(i).step_by(m);
                let softmax = Softmax::of(spans.clone().copied());
                // SAFETY: the ranges of the tasks are disjoint.
                let loss = unsafe { losses.range(i..i + 1) };
                loss[0] = softmax.loss();
                let Some((dinp, dloss)) = &grads else { continue };
                let dloss = dloss[i] as f64;
                // SAFETY: the ranges of the tasks are disjoint.
                let dinp = unsafe { dinp.range(i * c..(i + 1) * c) };
                head.row_to_f32(targets[i] as usize, dinp);
                let onehot = -(dloss * softmax.missed() * softmax.target_slope(softcap)) as f32;
                dinp.iter_mut().for_each(|d| *d *= onehot);
                for (span, running) in spans.enumerate() {
                    let share = (dloss * softmax.share(running)) as f32;
                    axpy(self.isa, dinp, share, &sums[(span * m + i) * c..][..c]);
                }
            }
        });
    }

    /// Packs the rows of a pass once for all spans.
    fn pack(&self, pool: &Pool, partition: &Partition, packed: &mut [f32], inp: &[f32]) {
        let Kernels { lanes, pack_a, .. } = *self.kernels;
        let src = View::f32(inp, partition.c, 1);
        src.check(partition.m, partition.c);
        let packed = SendPtr(packed.as_mut_ptr());
        pool.run(partition.panels, |panel, _| {
            let rows = part(partition.m, partition.panels, panel);
            for block in 0..partition.k_blocks {
                let dst = packed.at((block * partition.panels + panel) * partition.panel);
                let job = PackJob::new(dst, lanes, src, rows, partition.k_of(block), self.round);
                // SAFETY: `select` checked the instruction set and `check` the rows. Every panel of every
                // block has its own range of `partition.panel` words.
                unsafe { pack_a(&job) };
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_rows_never_hold_less() {
        for (threads, c) in [(1, 24), (2, 2048), (9, 768), (32, 8192)] {
            let head = HeadLoss::new(Isa::Scalar, false, threads);
            for gradient in [false, true] {
                let mut before = [0; 2];
                for n in 1..1100 {
                    let held = head.scratch(threads, n, (5000, c), gradient);
                    assert!(held[0] >= before[0] && held[1] >= before[1], "{n} rows of {c} on {threads}");
                    before = held;
                }
            }
        }
    }
}
