//! Partition of the loss head. The vocabulary is divided into blocks and spans, and the rows into panels and
//! groups.

use crate::gemm::{Kernels, part};

/// Number of tokens of the vocabulary in one block of logits. The logits and the gradient sums both read the
/// weights of these tokens, which stay in L2 in between.
pub(super) const BLOCK: usize = 256;
/// Maximum number of spans of the vocabulary. Each span has its own gradient sums. The number of spans does
/// not depend on the number of threads, so results do not either.
pub(super) const SPANS: usize = 8;
/// Time to pack a block of `W`, as a number of rows that are multiplied meanwhile.
const PACK_ROWS: usize = 48;
/// Number of rows in a pass that [`groups`] assumes.
const TYPICAL_ROWS: usize = 512;
/// Maximum number of columns of a block of `W` that are packed at once.
pub(super) const COLS: usize = 256;

/// Returns the number of spans of a vocabulary of `v`.
pub(super) fn spans(v: usize) -> usize {
    v.div_ceil(BLOCK).min(SPANS)
}

/// Returns the number of groups of rows for which `threads` threads need the least time. Every group packs
/// all weights of its span.
pub(super) fn groups(threads: usize, spans: usize) -> usize {
    let time = |&groups: &usize| {
        (spans * groups).div_ceil(threads.max(1)) * (TYPICAL_ROWS.div_ceil(groups) + PACK_ROWS)
    };
    (1..=(2 * threads).div_ceil(spans.max(1)).max(1)).min_by_key(time).unwrap_or(1)
}

/// One pass of `m` rows of `c` elements over a vocabulary of `v`.
pub(super) struct Partition {
    pub m: usize,
    pub v: usize,
    pub c: usize,
    /// Number of blocks of the vocabulary.
    pub blocks: usize,
    /// Number of spans, each a range of consecutive blocks.
    pub spans: usize,
    /// Number of panels of packed rows.
    pub panels: usize,
    /// Number of groups of rows, each a range of consecutive panels. There is more than one group if there
    /// are fewer spans than the threads need.
    pub groups: usize,
    /// Maximum number of rows in a panel.
    pub panel_rows: usize,
    /// Number of blocks into which the `c` elements of a row are divided.
    pub k_blocks: usize,
    /// Number of 32-bit words in one of the `k_blocks` of a row.
    pub steps: usize,
    /// Number of elements in a 32-bit word.
    pub pair: usize,
    /// Number of 32-bit words in one of the `k_blocks` of a panel of packed rows.
    pub panel: usize,
    /// Number of 32-bit words that contain one exponential for each token of a block.
    pub exp_steps: usize,
    /// Number of 32-bit words in a panel of packed exponentials of a block of the vocabulary.
    pub exp_panel: usize,
}

impl Partition {
    pub fn new(kernels: &Kernels, threads: usize, m: usize, v: usize, c: usize) -> Self {
        let &Kernels { lanes, mr: rows, pair, .. } = kernels;
        let (k_blocks, steps) = kernels.blocks(c);
        let exp_steps = BLOCK.div_ceil(pair);
        let (blocks, panels) = (v.div_ceil(BLOCK), m.div_ceil(rows));
        let spans = spans(v);
        Self {
            m,
            v,
            c,
            blocks,
            spans,
            panels,
            groups: groups(threads, spans).min(panels),
            panel_rows: rows,
            k_blocks,
            steps,
            pair,
            panel: steps * lanes,
            exp_steps,
            exp_panel: exp_steps * lanes,
        }
    }

    /// Returns the number of independent tasks: the number of groups of rows times the number of spans.
    pub fn tasks(&self) -> usize {
        self.spans * self.groups
    }

    /// Returns the panels of a group of rows, as `(first, count)`.
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

    /// Returns the elements in one of the `k_blocks` of a row, as `(first, count)`.
    pub fn k_of(&self, k_block: usize) -> (usize, usize) {
        let k = k_block * self.steps * self.pair;
        (k, (self.steps * self.pair).min(self.c - k))
    }

    /// Returns the number of 32-bit words of all packed rows, rounded up to whole cache lines.
    pub fn packed(&self) -> usize {
        (self.k_blocks * self.panels * self.panel).next_multiple_of(16)
    }

    /// Returns the number of 32-bit words that all threads share, and the number for each thread.
    pub fn words(&self, gradient: bool) -> [usize; 2] {
        let [weight, logits, exponentials] = self.own();
        if gradient {
            [self.packed() + self.spans * self.m * self.c, weight + logits + exponentials]
        } else {
            [self.packed(), weight + logits]
        }
    }

    /// Returns the numbers of 32-bit words for a thread's packed rows of `W`, its logits, and its packed
    /// exponentials.
    pub fn own(&self) -> [usize; 3] {
        // No group has more panels than the first group.
        let panels = self.panels_of(0).1;
        let logits = panels * self.panel_rows * BLOCK;
        [(BLOCK * self.steps).max(COLS * self.exp_steps), logits, panels * self.exp_panel]
    }
}
