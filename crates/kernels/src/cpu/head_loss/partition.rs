//! How the loss head is shared out: the vocabulary in blocks and spans, rows in panels and groups.

use crate::gemm::{Kernels, part};

/// Rows of the vocabulary whose logits exist at the same time: few, so that their weights stay in the second cache from
/// one product to the other.
pub(super) const BLOCK: usize = 256;
/// Spans of the vocabulary, each with a gradient of its own; not a matter of threads, for that would show in the sums.
pub(super) const SPANS: usize = 8;
/// Most columns of a block of `W` packed at a time.
pub(super) const COLS: usize = 256;

/// One pass of `m` rows of `c` over a vocabulary of `v`.
pub(super) struct Partition {
    pub m: usize,
    pub v: usize,
    pub c: usize,
    /// Blocks of the vocabulary, and the spans that they are dealt to.
    pub blocks: usize,
    pub spans: usize,
    /// Panels of packed rows, and the groups that they are dealt to where spans are too few for the threads.
    pub panels: usize,
    pub groups: usize,
    /// Most rows of a panel.
    pub panel_rows: usize,
    /// Blocks of `c`, and the words of each.
    pub k_blocks: usize,
    pub steps: usize,
    /// Columns of a word.
    pub pair: usize,
    /// Words of a panel of packed rows within a block of `c`.
    pub panel: usize,
    /// Words of a block of the vocabulary, and of a panel of its packed exponentials.
    pub exp_steps: usize,
    pub exp_panel: usize,
}

impl Partition {
    /// A pass on `threads`.
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

    /// Tasks that may run at the same time: groups of rows within spans.
    pub fn tasks(&self) -> usize {
        self.spans * self.groups
    }

    /// The panels of a group, as `(first, count)`.
    pub fn panels_of(&self, group: usize) -> (usize, usize) {
        part(self.panels, self.groups, group)
    }

    /// The rows of a group.
    pub fn rows_of(&self, group: usize) -> (usize, usize) {
        let (panel, panels) = self.panels_of(group);
        let (first, _) = part(self.m, self.panels, panel);
        let (last, rows) = part(self.m, self.panels, panel + panels - 1);
        (first, last + rows - first)
    }

    /// The columns of a block of `c`, as `(first, count)`.
    pub fn k_of(&self, k_block: usize) -> (usize, usize) {
        let k = k_block * self.steps * self.pair;
        (k, (self.steps * self.pair).min(self.c - k))
    }

    /// Words of packed rows, in lines.
    pub fn packed(&self) -> usize {
        (self.k_blocks * self.panels * self.panel).next_multiple_of(16)
    }

    /// Words that hold rows and gradients for all threads, and each thread's own.
    pub fn words(&self, gradient: bool) -> [usize; 2] {
        let [weight, logits, exponentials] = self.own();
        if gradient {
            [self.packed() + self.spans * self.m * self.c, weight + logits + exponentials]
        } else {
            [self.packed(), weight + logits]
        }
    }

    /// Words of a thread's packed rows of `W`, of its logits and of its packed exponentials, in lines.
    pub fn own(&self) -> [usize; 3] {
        // The first group is the largest.
        let panels = self.panels_of(0).1;
        let logits = panels * self.panel_rows * BLOCK;
        [(BLOCK * self.steps).max(COLS * self.exp_steps), logits, panels * self.exp_panel]
    }
}
