//! One pass over packed rows: positions, adapters, and the rows that reach the head.

use danlu_kernels::{Backend, Indices, Segment, Segments};

use crate::Batch;
use crate::lora::LoraRows;

/// Indices that the operations of a pass read. They are uploaded once.
#[derive(Debug, Default)]
pub(crate) struct PassIndices {
    pub ids: Indices,
    pub positions: Indices,
    pub segments: Segments,
    /// See [`ForwardPass::keys`].
    pub keys: Indices,
    /// See [`HeadRows::index`].
    pub head: Indices,
    /// Target of each row that reaches the head, in training and evaluation.
    pub targets: Indices,
    /// Cache rows for the new keys and values of the pass.
    pub cache_rows: Indices,
}

/// One pass over packed rows.
pub(crate) struct ForwardPass<'a> {
    pub rows: PassRows<'a>,
    pub positions: &'a [u32],
    pub segments: &'a [Segment],
    /// Row of each key of the segments. `None` if key `i` has row `i`.
    pub keys: Option<&'a [u32]>,
    /// Rows computed after the last attention. `None` for all rows.
    pub head: Option<HeadRows<'a>>,
    /// Whether each segment has one generated token as its only query.
    pub is_generated: bool,
    /// The indices in the back end's memory. [`ForwardPass::upload`] fills them.
    pub indices: PassIndices,
}

/// Rows of one matrix multiplication, and their adapters.
pub(crate) struct PassRows<'a> {
    /// Number of rows.
    pub n: usize,
    /// Number of rows that a matrix multiplication computes. Rows from `n` on are unused.
    pub computed: usize,
    pub lora: Vec<LoraRows<'a>>,
}

/// The rows that reach the head.
pub(crate) struct HeadRows<'a> {
    /// Their rows in the pass, ascending, `(M)`.
    pub index: &'a [u32],
    /// The rows after they are gathered.
    pub rows: PassRows<'a>,
}

impl<'a> ForwardPass<'a> {
    /// Returns a pass in which every row reaches the head.
    pub fn new(positions: &'a [u32], segments: &'a [Segment], lora: Vec<LoraRows<'a>>) -> Self {
        let n = positions.len();
        Self {
            rows: PassRows { n, computed: n, lora },
            positions,
            segments,
            keys: None,
            head: None,
            is_generated: false,
            indices: PassIndices::default(),
        }
    }

    /// Returns a pass over `batch` in which every row reaches the head.
    pub fn over(batch: &'a Batch, lora: Vec<LoraRows<'a>>) -> Self {
        Self { keys: batch.shared_keys(), ..Self::new(&batch.positions, &batch.segments, lora) }
    }

    /// Selects the rows `index`, ascending, for the head.
    pub fn with_head(mut self, index: &'a [u32]) -> Self {
        self.head = Some(HeadRows { index, rows: self.rows.gathered(index) });
        self
    }

    /// Pads every matrix multiplication to at least `row_invariant_from` rows. A small micro-batch then gives
    /// the same bits alone and fused with others.
    pub fn with_many_rows(mut self, row_invariant_from: usize) -> Self {
        if let Some(head) = &mut self.head {
            head.rows.computed = head.rows.n.max(row_invariant_from);
        }
        self.with_min_rows(row_invariant_from)
    }

    /// Pads matrix multiplications before the attention output to at least `min` rows.
    pub fn with_min_rows(mut self, min: usize) -> Self {
        self.rows.computed = self.rows.n.max(min);
        self
    }

    /// Marks the rows as generated tokens, one in each segment.
    pub fn of_generated_tokens(self) -> Self {
        Self { is_generated: true, ..self }
    }

    /// Uploads the indices of the pass, its `ids` and its `targets` into the memory of `indices`.
    pub fn upload(&mut self, backend: &dyn Backend, mut indices: PassIndices, ids: &[u32], targets: &[u32]) {
        backend.upload(&mut indices.ids, ids);
        backend.upload(&mut indices.positions, self.positions);
        backend.upload_segments(&mut indices.segments, self.segments);
        backend.upload(&mut indices.targets, targets);
        if let Some(keys) = self.keys {
            backend.upload(&mut indices.keys, keys);
        }
        if let Some(head) = &self.head {
            backend.upload(&mut indices.head, head.index);
        }
        self.indices = indices;
    }
}

impl<'a> PassRows<'a> {
    /// Returns the adapters of the rows `index`, ascending, after these rows are gathered.
    fn gathered(&self, index: &[u32]) -> Self {
        let place = |row: usize| index.partition_point(|&i| (i as usize) < row);
        let gathered = |lora: &LoraRows<'a>| {
            let rows = place(lora.rows.start)..place(lora.rows.end);
            (!rows.is_empty()).then(|| LoraRows { rows, ..lora.clone() })
        };
        let lora = self.lora.iter().filter_map(gathered).collect();
        Self { n: index.len(), computed: index.len(), lora }
    }
}

#[cfg(test)]
mod tests {
    use danlu_kernels::LoraRef;

    use super::*;
    use crate::{LoraSource, Projection};

    struct Nothing;

    impl LoraSource for Nothing {
        fn pair(&self, _layer: usize, _projection: Projection) -> Option<LoraRef<'_>> {
            None
        }
    }

    #[test]
    fn every_adapter_keeps_those_of_its_rows_that_go_on() {
        let lora = [0..4, 4..5, 5..9].map(|rows| LoraRows { rows, ..LoraRows::all(&Nothing, 0) });
        let positions = [0; 9];
        let pass =
            ForwardPass::new(&positions, &[], lora.to_vec()).with_head(&[1, 3, 5, 6, 8]).with_many_rows(9);
        let head = pass.head.unwrap();
        assert_eq!((pass.rows.n, pass.rows.computed), (9, 9));
        assert_eq!((head.rows.n, head.rows.computed), (5, 9));
        let ranges: Vec<_> = head.rows.lora.into_iter().map(|lora| lora.rows).collect();
        assert_eq!(ranges, [0..2, 2..5], "the second has no row that goes on");
    }
}
