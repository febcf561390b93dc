//! Partition of the loss head: the vocabulary in blocks and spans, rows in panels and groups.

use crate::gemm::{Kernels, part};

/// Vocabulary rows of one block of logits. Their weights stay in L2 from the first multiplication to the
/// second.
pub(super) const BLOCK: usize = 256;
/// Spans of the vocabulary, each with its own gradient sums. The number is fixed, so results do not depend on
/// threads.
pub(super) const SPANS: usize = 8;
/// Most columns of a block of `W` that are packed at once.
pub(super) const COLS: usize = 256;

/// One pass of `m` rows of `c` elements over a vocabulary of `v`.
pub(super) struct Partition {
    pub m: usize,
    pub v: usize,
    pub c: usize,
    /// Blocks of the vocabulary, divided among `spans`.
    pub blocks: usize,
    pub spans: usize,
    /// Panels of packed rows, divided among `groups`. There are several groups if the spans are too few for
    /// the threads.
    pub panels: usize,
    pub groups: usize,
    /// Most rows of a panel.
    pub panel_rows: usize,
    /// Blocks of `c`, and the words of one block.
    pub k_blocks: usize,
    pub steps: usize,
    /// Elements in a word.
    pub pair: usize,
    /// Words of a panel of packed rows within one block of `c`.
    pub panel: usize,
    /// Words of a vocabulary block, and of a panel of its packed exponentials.
    pub exp_steps: usize,
    pub exp_panel: usize,
}

impl Partition {
    pub fn new(kernels: &Kernels, threads: usize, m: usize, v: usize, c: usize) -> Self {
        let &Kernels { lanes, mr: rows, pair, .. } = kernels;
        let (k_blocks, steps) = kernels.blocks(c);
        let exp_steps = BLOCK.div_ceil(pair);
        let (blocks, panels) = (v.div_ceil(BLOCK), m.div_ceil(rows));
        let spans = blocks.min(SPANS);
        Self {
            m,
            v,
            c,
            blocks,
            spans,
            panels,
            groups: (2 * threads).div_ceil(spans).min(panels),
            panel_rows: rows,
            k_blocks,
            steps,
            pair,
            panel: steps * lanes,
            exp_steps,
            exp_panel: exp_steps * lanes,
        }
    }

    /// Number of independent tasks: groups of rows times spans.
    pub fn tasks(&self) -> usize {
        self.spans * self.groups
    }

    /// Returns the panels of a group, as `(first, count)`.
    pub fn panels_of(&self, group: usize) -> (usize, usize) {
        part(self.panels, self.groups, group)
    }

    /// Returns the rows of a group, as `(first, count)`.
    pub fn rows_of(&self, group: usize) -> (usize, usize) {
        let (panel, panels) = self.panels_of(group);
        let (first, _) = part(self.m, self.panels, panel);
        let (last, rows) = part(self.m, self.panels, panel + panels - 1);
        (first, last + rows - first)
    }

    /// Returns the columns of a block of `c`, as `(first, count)`.
    pub fn k_of(&self, k_block: usize) -> (usize, usize) {
        let k = k_block * self.steps * self.pair;
        (k, (self.steps * self.pair).min(self.c - k))
    }

    /// Words of all packed rows, in whole cache lines.
    pub fn packed(&self) -> usize {
        (self.k_blocks * self.panels * self.panel).next_multiple_of(16)
    }

    /// Returns the words that all threads share, and the words of each thread.
    pub fn words(&self, gradient: bool) -> [usize; 2] {
        let [weight, logits, exponentials] = self.own();
        if gradient {
            [self.packed() + self.spans * self.m * self.c, weight + logits + exponentials]
        } else {
            [self.packed(), weight + logits]
        }
    }

    /// Words of a thread's packed rows of `W`, of its logits, and of its packed exponentials.
    pub fn own(&self) -> [usize; 3] {
        // The first group is the largest.
        let panels = self.panels_of(0).1;
        let logits = panels * self.panel_rows * BLOCK;
        [(BLOCK * self.steps).max(COLS * self.exp_steps), logits, panels * self.exp_panel]
    }
}
