//! One span of the vocabulary, which is a range of consecutive blocks. The logits of a block are computed and
//! used before the next block.

use super::partition::{BLOCK, COLS, Partition};
use crate::cpu::pool::SendPtr;
use crate::gemm::{Kernels, PackJob, Prefetch, TileJob, TileMask, View, part};
use crate::softmax::{Running, cap_logits, online_softmax, weigh_by_slope};
use crate::{Isa, Matrix};

/// Inputs that all spans of a pass share.
pub(super) struct SpanPass<'a> {
    pub isa: Isa,
    pub kernels: &'static Kernels,
    pub round: bool,
    pub partition: &'a Partition,
    pub head: &'a Matrix,
    pub softcap: Option<f32>,
    pub targets: &'a [u32],
    /// All rows of the pass, packed: [`Partition::packed`] 32-bit words in total.
    pub packed: SendPtr,
    /// For each span, a matrix `(m, c)` of the sums `Σ e^(logit - max) W` over the tokens of the span,
    /// without the target. `None` if no gradient is computed.
    pub sums: Option<SendPtr>,
}

impl SpanPass<'_> {
    /// Processes one group of rows in one span of the vocabulary: fills `running`, and the span's `sums` for
    /// these rows. `own` is working memory with the lengths of [`Partition::own`].
    pub fn task(&self, task: usize, own: &mut [f32], running: &mut [Running]) {
        let partition = self.partition;
        let (span, group) = (task / partition.groups, task % partition.groups);
        let (row, m) = partition.rows_of(group);
        let targets = &self.targets[row..][..m];
        let [weight_words, logits_words, _] = partition.own();
        let (weight, rest) = own.split_at_mut(weight_words);
        let (logits, exponentials) = rest.split_at_mut(logits_words);
        let sums = self.sums.map(|sums| SendPtr(sums.at((span * partition.m + row) * partition.c)));
        let (first_block, blocks) = part(partition.blocks, partition.spans, span);
        for block in first_block..first_block + blocks {
            let (first, n) = self.block(block);
            let is_last = block + 1 == first_block + blocks;
            let next = if is_last { Prefetch::NONE } else { self.prefetch(block + 1, 0) };
            self.logits(group, weight, logits, block, if sums.is_none() { next } else { Prefetch::NONE });
            if let Some(cap) = self.softcap {
                cap_logits(self.isa, logits, BLOCK, n, cap);
            }
            let is_first = block == first_block;
            let scaled = match sums {
                // SAFETY: only this task accesses these rows.
                Some(sums) if !is_first => unsafe {
                    std::slice::from_raw_parts_mut(sums.at(0), m * partition.c)
                },
                _ => &mut [],
            };
            online_softmax(self.isa, running, scaled, logits, BLOCK, targets, first, n);
            if let Some(sums) = sums {
                if let Some(cap) = self.softcap {
                    weigh_by_slope(running, logits, BLOCK, n, cap);
                }
                self.accumulate(sums, (m, weight, exponentials), logits, (first, n), is_first, next);
            }
        }
    }

    /// Returns the vocabulary rows of a block, as `(first, count)`.
    fn block(&self, block: usize) -> (usize, usize) {
        (block * BLOCK, BLOCK.min(self.partition.v - block * BLOCK))
    }

    /// Returns a prefetch of the weights of one block of the vocabulary and one block of `c`.
    fn prefetch(&self, block: usize, k_block: usize) -> Prefetch {
        let ((first, n), (k, k_len)) = (self.block(block), self.partition.k_of(k_block));
        View::rows_of(self.head).prefetch(first, n, k, k_len)
    }

    /// Computes `logits = inp Wᵀ` for a group of rows and a block of the vocabulary.
    fn logits(&self, group: usize, weight: &mut [f32], logits: &mut [f32], block: usize, next: Prefetch) {
        let Kernels { nr, pair, pack_b, tiles, .. } = *self.kernels;
        let (partition, width, (first, n)) = (self.partition, nr, self.block(block));
        let (panel, _) = partition.panels_of(group);
        let (b, c) = (weight.as_mut_ptr(), logits.as_mut_ptr());
        for k_block in 0..partition.k_blocks {
            let (k, k_len) = self.partition.k_of(k_block);
            let src = View::rows_of(self.head);
            let job = PackJob {
                panel: partition.steps * width,
                ..PackJob::new(b, width, src, (first, n), (k, k_len), self.round)
            };
            let multiply = TileJob {
                m: partition.rows_of(group).1,
                n,
                steps: k_len.div_ceil(pair),
                a: self.packed.at((k_block * partition.panels + panel) * partition.panel),
                a_panel: partition.panel,
                b,
                b_panel: partition.steps * width,
                b_step: width,
                c,
                ldc: BLOCK,
                alpha: 1.0,
                accumulate: k_block > 0,
                mask: TileMask::Nothing,
                prefetch: if k_block + 1 < partition.k_blocks {
                    self.prefetch(block, k_block + 1)
                } else {
                    next
                },
            };
            // SAFETY: `select` checked the instruction set, and `loss` checked the weight. `weight` has
            // `steps` words for each row of the block. `logits` has one row for each row of the group. All
            // panels are packed.
            unsafe {
                pack_b(&job);
                tiles(&multiply);
            }
        }
    }

    /// Adds `exponentials W` to `sums`, or overwrites `sums` for the first block of a span. `packed` receives
    /// the exponentials as a packed operand of shape `(m, n)`.
    fn accumulate(
        &self,
        sums: SendPtr,
        (m, weight, packed): (usize, &mut [f32], &mut [f32]),
        exponentials: &[f32],
        (first, n): (usize, usize),
        is_first: bool,
        next: Prefetch,
    ) {
        let Kernels { nr, pair, pack_b, tiles, .. } = *self.kernels;
        let (partition, width) = (self.partition, nr);
        let (a, b) = (packed.as_mut_ptr(), weight.as_mut_ptr());
        let src = View::f32(exponentials, BLOCK, 1);
        // SAFETY: `packed` has panels of `exp_panel` words for all rows of the group.
        unsafe { self.kernels.pack_panels(a, partition.exp_panel, src, (m, n), self.round) };
        let pieces = partition.c.div_ceil(COLS);
        for piece in 0..pieces {
            let (col, cols) = (piece * COLS, COLS.min(partition.c - piece * COLS));
            let src = View::cols_of(self.head);
            let job = PackJob {
                panel: partition.exp_steps * width,
                ..PackJob::new(b, width, src, (col, cols), (first, n), self.round)
            };
            let multiply = TileJob {
                m,
                n: cols,
                steps: n.div_ceil(pair),
                a,
                a_panel: partition.exp_panel,
                b,
                b_panel: partition.exp_steps * width,
                b_step: width,
                c: sums.at(col),
                ldc: partition.c,
                alpha: 1.0,
                accumulate: !is_first,
                mask: TileMask::Nothing,
                prefetch: next.part(piece, pieces),
            };
            // SAFETY: `select` checked the instruction set, and `loss` checked the weight. `weight` has
            // `exp_steps` words for each of `COLS` columns, and only this task accesses these rows of `sums`.
            unsafe {
                pack_b(&job);
                tiles(&multiply);
            }
        }
    }
}
