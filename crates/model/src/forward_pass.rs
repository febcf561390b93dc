//! One pass over packed rows: the positions of the rows, their adapters, and the rows whose losses or logits
//! are computed (the head rows).

use danlu_kernels::{Backend, Buffer, Element, Indices, Segment, Segments};

use crate::lora::LoraRows;
use crate::{Batch, ModelConfig};

/// Indices that the operations of a pass read, uploaded to the device once per pass.
#[derive(Debug, Default)]
pub(crate) struct PassIndices {
    pub ids: Indices,
    pub positions: Indices,
    pub segments: Segments,
    /// See [`ForwardPass::keys`].
    pub keys: Indices,
    /// See [`HeadRows::index`].
    pub head: Indices,
    /// The target of each head row. Used in training and evaluation.
    pub targets: Indices,
    /// Cache rows to which the pass writes its new keys and values.
    pub cache_rows: Indices,
    /// Indices of q, k and v in the output of a fused projection.
    pub qkv: SplitIndices,
    /// Indices of gate and up in the output of a fused projection.
    pub gate_up: SplitIndices,
    /// The indices of `gate_up` for the head rows.
    pub head_gate_up: SplitIndices,
    pub rope: RopeIndices,
}

/// Indices that divide the output of a fused projection into its parts, such as q, k and v.
///
/// Every row consists of pieces of equal width. With four query heads and one key and value head, the pieces
/// of a row are `q q q q k v`. The three parts of two such rows are the pieces 0 to 3 and 6 to 9 (q), 4 and
/// 10 (k), and 5 and 11 (v).
#[derive(Debug, Default)]
pub(crate) struct SplitIndices {
    rows: usize,
    pub parts: Vec<Indices>,
}

impl SplitIndices {
    /// Uploads the indices for `rows` rows. A row contains `pieces[i]` pieces of part `i`: `[4, 1, 1]` for
    /// the pieces `q q q q k v`.
    pub fn upload(&mut self, backend: &dyn Backend, rows: usize, pieces: &[usize]) {
        if self.parts.len() == pieces.len() && self.rows == rows {
            return;
        }
        let (total, mut start) = (pieces.iter().sum::<usize>(), 0);
        self.rows = rows;
        self.parts.resize_with(pieces.len(), Indices::default);
        for (part, &count) in self.parts.iter_mut().zip(pieces) {
            let of_row = |row: usize| (start..start + count).map(move |piece| (row * total + piece) as u32);
            let index: Vec<u32> = (0..rows).flat_map(of_row).collect();
            backend.upload(part, &index);
            start += count;
        }
    }
}

/// Rotary frequencies of a pass, for a model whose frequencies depend on the length of a sequence.
#[derive(Debug, Default)]
pub(crate) struct RopeIndices {
    /// Lengths whose frequencies are in `inv_freq`.
    lengths: Vec<usize>,
    /// Frequencies of each length, `(T, D / 2)`.
    pub inv_freq: Option<Buffer>,
    /// Index of the length of each row. `None` if all rows have the same length.
    pub tables: Option<Indices>,
}

impl RopeIndices {
    /// Uploads the frequencies for rows of these lengths.
    pub fn upload(&mut self, backend: &dyn Backend, config: &ModelConfig, of_rows: &[usize]) {
        let mut lengths = of_rows.to_vec();
        lengths.sort_unstable();
        lengths.dedup();
        if lengths != self.lengths {
            let dim = config.rotary_dim();
            let values: Vec<f32> =
                lengths.iter().flat_map(|&length| config.rope.inv_freq_at(dim, length)).collect();
            let mut buffer = backend.alloc(values.len(), Element::Exact);
            backend.write(&mut buffer, 0, &values);
            self.inv_freq = Some(buffer);
        }
        self.tables = (lengths.len() > 1).then(|| {
            let table = |length: &usize| lengths.partition_point(|other| other < length) as u32;
            let mut tables = self.tables.take().unwrap_or_default();
            backend.upload(&mut tables, &of_rows.iter().map(table).collect::<Vec<_>>());
            tables
        });
        self.lengths = lengths;
    }
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
    /// The length that determines the rotary frequencies of each segment. With `None`, the number of tokens
    /// of the segment is used.
    pub rope_lengths: Option<Vec<usize>>,
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
    /// Whether products are summed in the order that decoding uses. See [`Backend::linear_decode`].
    pub is_generated: bool,
}

/// The head rows: the rows whose losses or logits are computed.
pub(crate) struct HeadRows<'a> {
    /// Index of each of these rows in the pass, ascending, `(M)`.
    pub index: &'a [u32],
    /// The same rows after they are copied to a separate buffer.
    pub rows: PassRows<'a>,
}

impl<'a> ForwardPass<'a> {
    /// Returns a pass that computes the loss or the logits of every row.
    pub fn new(positions: &'a [u32], segments: &'a [Segment], lora: Vec<LoraRows<'a>>) -> Self {
        let n = positions.len();
        Self {
            rows: PassRows { n, computed: n, lora, is_generated: false },
            positions,
            segments,
            keys: None,
            head: None,
            is_generated: false,
            rope_lengths: None,
            indices: PassIndices::default(),
        }
    }

    /// Returns a pass over `batch` that computes the loss or the logits of every row.
    pub fn over(batch: &'a Batch, lora: Vec<LoraRows<'a>>) -> Self {
        Self { keys: batch.shared_keys(), ..Self::new(&batch.positions, &batch.segments, lora) }
    }

    /// Selects the rows whose losses or logits are computed. Their indices `index` must ascend.
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
    pub fn of_generated_tokens(mut self) -> Self {
        self.is_generated = true;
        self.rows.is_generated = true;
        self
    }

    /// Selects the rows whose logits are computed. Their products are summed in the order that decoding uses.
    pub fn with_generated_head(self, index: &'a [u32]) -> Self {
        let mut pass = self.with_head(index);
        if let Some(head) = &mut pass.head {
            head.rows.is_generated = true;
        }
        pass
    }

    /// Uploads the indices of the pass, the `ids` and the `targets`. Reuses the memory of `indices`.
    pub fn upload(
        &mut self,
        (backend, config): (&dyn Backend, &ModelConfig),
        mut indices: PassIndices,
        ids: &[u32],
        targets: &[u32],
    ) {
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
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        if config.architecture.fused_qkv {
            indices.qkv.upload(backend, self.rows.n, &[heads, kv_heads, kv_heads]);
        }
        if config.architecture.fused_gate_up {
            indices.gate_up.upload(backend, self.rows.n, &[1, 1]);
            let of_head = self.head.as_ref().map_or(0, |head| head.rows.n);
            indices.head_gate_up.upload(backend, of_head, &[1, 1]);
        }
        if config.rope.depends_on_length() {
            indices.rope.upload(backend, config, &self.row_lengths(config));
        }
        self.indices = indices;
    }

    /// Returns the length that determines the rotary frequencies of each row.
    fn row_lengths(&self, config: &ModelConfig) -> Vec<usize> {
        let mut lengths = vec![1; self.rows.n];
        for (i, segment) in self.segments.iter().enumerate() {
            let own = || config.rope.effective_length(segment.kv_len);
            let length = self.rope_lengths.as_ref().map_or_else(own, |lengths| lengths[i]);
            lengths[segment.q_start..segment.q_start + segment.q_len].fill(length);
        }
        lengths
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
        Self { n: index.len(), computed: index.len(), lora, is_generated: self.is_generated }
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
