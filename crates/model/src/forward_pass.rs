//! One pass over packed rows: the positions of the rows, their adapters, and the rows that reach the head.

use danlu_kernels::{Backend, Indices, Segment, Segments};

use crate::Batch;
use crate::lora::LoraRows;

/// Indices that the operations of a pass read. They are uploaded to the device once per pass.
#[derive(Debug, Default)]
pub(crate) struct PassIndices {
    pub ids: Indices,
    pub positions: Indices,
    pub segments: Segments,
    /// See [`ForwardPass::keys`].
    pub keys: Indices,
    /// See [`HeadRows::index`].
    pub head: Indices,
    /// The target of each row that reaches the head. Used in training and evaluation.
    pub targets: Indices,
    /// Cache rows to which the pass writes its new keys and values.
    pub cache_rows: Indices,
}

/// A pass over packed rows.
pub(crate) struct ForwardPass<'a> {
    pub rows: PassRows<'a>,
    pub positions: &'a [u32],
    pub segments: &'a [Segment],
    /// The row of each key of the segments. `None` if every key `i` has row `i`.
    pub keys: Option<&'a [u32]>,
    /// The rows that are computed after the last attention. `None` if all rows are computed.
    pub head: Option<HeadRows<'a>>,
    /// Whether each segment has one generated token as its only query.
    pub is_generated: bool,
    /// The indices in the memory of the back end. [`ForwardPass::upload`] writes them.
    pub indices: PassIndices,
}

/// The rows of one matrix multiplication, and their adapters.
pub(crate) struct PassRows<'a> {
    /// Number of rows.
    pub n: usize,
    /// Number of rows that a matrix multiplication computes. The rows from `n` on are padding.
    pub computed: usize,
    pub lora: Vec<LoraRows<'a>>,
}

/// The rows that reach the head.
pub(crate) struct HeadRows<'a> {
    /// Index of each of these rows in the pass, ascending, `(M)`.
    pub index: &'a [u32],
    /// The same rows after they are copied to a separate buffer.
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

    /// Selects the rows that reach the head. Their indices `index` must ascend.
    pub fn with_head(mut self, index: &'a [u32]) -> Self {
        self.head = Some(HeadRows { index, rows: self.rows.gathered(index) });
        self
    }

    /// Pads every matrix multiplication to at least `row_invariant_from` rows. The results of a small
    /// micro-batch then have the same bits, whether it runs alone or is fused with other micro-batches.
    pub fn with_many_rows(mut self, row_invariant_from: usize) -> Self {
        if let Some(head) = &mut self.head {
            head.rows.computed = head.rows.n.max(row_invariant_from);
        }
        self.with_min_rows(row_invariant_from)
    }

    /// Pads the matrix multiplications before the attention output to at least `min` rows.
    pub fn with_min_rows(mut self, min: usize) -> Self {
        self.rows.computed = self.rows.n.max(min);
        self
    }

    /// Declares the rows as generated tokens. Each segment must have one row.
    pub fn of_generated_tokens(self) -> Self {
        Self { is_generated: true, ..self }
    }

    /// Uploads the indices of the pass, the `ids` and the `targets`. Reuses the memory of `indices`.
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
    /// Returns the adapters of the rows `index`, which must ascend. The ranges of the result count only these
    /// rows.
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
