//! Merges one tensor in blocks of rows. Each block is converted to f32, `scaling · B A` is added, and the
//! result is checked and rounded once.
//!
//! A block has a few hundred KB, so the memory of a merge does not depend on the model. Threads compute
//! blocks while the caller writes finished blocks in order. The products for an element are always added in
//! the same order, so the result does not depend on the number of threads.

use std::ops::Range;
use std::sync::mpsc;
use std::thread;

use danlu_kernels::{DType, Matrix, from_f32};
use danlu_model::TensorSpec;

use crate::{AdapterError, dora};

/// Number of elements in one block: 512 KB of f32.
const BLOCK_ELEMENTS: usize = 1 << 17;
/// Number of columns that are processed at a time, so that these columns of `A` fit into the L1 cache.
const BLOCK_COLUMNS: usize = 256;
/// Number of rows and columns in a tile of sums. A tile fits into the registers.
const TILE: (usize, usize) = (4, 8);

/// A low-rank update of one weight, with `A (R, IN)` and `B (OUT, R)`.
#[derive(Clone, Copy)]
pub struct Delta<'a> {
    pub a: &'a [f32],
    pub b: &'a [f32],
    pub rank: usize,
    pub scaling: f32,
    /// DoRA's magnitudes `(OUT)`. The rows of the sum are scaled to these norms.
    pub magnitude: Option<&'a [f32]>,
}

/// A stored weight, its new element type, and the update to add.
#[derive(Clone, Copy)]
pub struct MergeRows<'a> {
    pub name: &'a str,
    pub weight: &'a Matrix,
    pub to: DType,
    pub delta: Option<Delta<'a>>,
}

impl MergeRows<'_> {
    /// Computes the new weight and passes its bytes to `write`, in order.
    ///
    /// # Errors
    /// If a result is not finite or out of range for its type, or if `write` fails.
    pub fn stream(
        &self,
        threads: usize,
        mut write: impl FnMut(&[u8]) -> Result<(), AdapterError>,
    ) -> Result<(), AdapterError> {
        let (rows, cols) = (self.weight.rows(), self.weight.cols());
        if rows == 0 || cols == 0 {
            return Ok(());
        }
        let step = (BLOCK_ELEMENTS / cols).max(1);
        let blocks = rows.div_ceil(step);
        let block = |i: usize| self.block(i * step..rows.min((i + 1) * step));
        let threads = threads.min(blocks);
        if threads <= 1 {
            return (0..blocks).try_for_each(|i| write(&block(i)?));
        }
        thread::scope(|scope| {
            let mut queues = Vec::with_capacity(threads);
            for first in 0..threads {
                let (sender, receiver) = mpsc::sync_channel(2);
                queues.push(receiver);
                scope.spawn(move || {
                    for i in (first..blocks).step_by(threads) {
                        // The channel is closed if another block failed.
                        if sender.send(block(i)).is_err() {
                            return;
                        }
                    }
                });
            }
            (0..blocks).try_for_each(|i| {
                let bytes = queues[i % threads].recv().expect("each thread sends each of its blocks")?;
                write(&bytes)
            })
        })
    }

    fn block(&self, rows: Range<usize>) -> Result<Vec<u8>, AdapterError> {
        let cols = self.weight.cols();
        let (place, len) = (rows.start * cols, rows.len() * cols);
        let mut values = vec![0.0; len];
        self.weight.rows_to_f32(rows.clone(), &mut values);
        if let Some(delta) = self.delta {
            let b = &delta.b[rows.start * delta.rank..][..rows.len() * delta.rank];
            add_delta(&mut values, Delta { b, ..delta }, cols);
            if let Some(magnitude) = delta.magnitude {
                for (row, magnitude) in values.chunks_exact_mut(cols).zip(&magnitude[rows.clone()]) {
                    let factor = dora::factor(*magnitude, row);
                    row.iter_mut().for_each(|value| *value *= factor);
                }
            }
        }
        self.check(&values, place)?;
        let mut bytes = vec![0; len * self.to.size()];
        from_f32(self.to, &values, &mut bytes);
        Ok(bytes)
    }

    fn check(&self, values: &[f32], place: usize) -> Result<(), AdapterError> {
        // The smallest magnitude that rounds to infinity.
        let limit = match self.to {
            DType::F32 => f32::INFINITY,
            DType::Bf16 => f32::from_bits(0x7f7f_8000),
            DType::F16 => 65_520.0,
        };
        // With this comparison, a NaN is out of range too. The loop has no early exit, so that the compiler
        // can vectorize it.
        let is_within = |v: f32| v.abs() < limit;
        if values.iter().fold(true, |all, &v| all & is_within(v)) {
            return Ok(());
        }
        let at = values.iter().position(|&v| !is_within(v)).expect("one was found above");
        let (name, value, element) = (self.name.to_owned(), values[at], place + at);
        if value.is_finite() {
            return Err(AdapterError::Overflow {
                name,
                value,
                element,
                dtype: TensorSpec::dtype_name(self.to),
            });
        }
        Err(AdapterError::NotFinite { name, value, element })
    }
}

/// Adds `scaling · B A` to a range of rows. `out` and `delta.b` contain the same range of rows.
pub fn add_delta(out: &mut [f32], delta: Delta<'_>, cols: usize) {
    for start in (0..cols).step_by(BLOCK_COLUMNS) {
        let columns = start..cols.min(start + BLOCK_COLUMNS);
        let mut rows = out.chunks_exact_mut(TILE.0 * cols);
        let mut b = delta.b.chunks_exact(TILE.0 * delta.rank);
        for (out, b) in rows.by_ref().zip(b.by_ref()) {
            add_tiles::<{ TILE.0 }>(out, Delta { b, ..delta }, cols, columns.clone());
        }
        let rest = rows.into_remainder().chunks_exact_mut(cols);
        for (out, b) in rest.zip(b.remainder().chunks_exact(delta.rank)) {
            add_tiles::<1>(out, Delta { b, ..delta }, cols, columns.clone());
        }
    }
}

#[inline]
fn add_tiles<const ROWS: usize>(out: &mut [f32], delta: Delta<'_>, cols: usize, columns: Range<usize>) {
    const WIDTH: usize = TILE.1;
    let Delta { a, b, rank, scaling, .. } = delta;
    let mut j = columns.start;
    while j + WIDTH <= columns.end {
        let mut sums = [[0.0f32; WIDTH]; ROWS];
        for r in 0..rank {
            let a: &[f32; WIDTH] = a[r * cols + j..][..WIDTH].try_into().expect("a slice of that length");
            for (row, sums) in sums.iter_mut().enumerate() {
                let b = b[row * rank + r];
                for (sum, a) in sums.iter_mut().zip(a) {
                    *sum += b * a;
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            for (out, sum) in out[row * cols + j..][..WIDTH].iter_mut().zip(sums) {
                *out += scaling * sum;
            }
        }
        j += WIDTH;
    }
    for j in j..columns.end {
        for row in 0..ROWS {
            let sum = (0..rank).fold(0.0, |sum, r| sum + b[row * rank + r] * a[r * cols + j]);
            out[row * cols + j] += scaling * sum;
        }
    }
}

#[cfg(test)]
mod tests {
    use danlu_kernels::rng;

    use super::*;

    fn random(key: u64, len: usize) -> Vec<f32> {
        (0..len as u64).map(|i| rng::uniform(key, i) - 0.5).collect()
    }

    fn streamed(rows: &MergeRows<'_>, threads: usize) -> Result<Vec<u8>, AdapterError> {
        let mut bytes = Vec::new();
        rows.stream(threads, |b| {
            bytes.extend_from_slice(b);
            Ok(())
        })?;
        Ok(bytes)
    }

    #[test]
    fn every_tail_adds_the_formula_on_any_number_of_threads() {
        for (rows, cols, rank) in
            [(1, 1, 1), (5, 7, 3), (9, 256, 8), (13, 271, 2), (700, 600, 5), (3, 140_000, 1)]
        {
            let (w, a, b) = (random(1, rows * cols), random(2, rank * cols), random(3, rows * rank));
            let weight = &Matrix::from_f32(&w, rows, cols);
            let delta = Some(Delta { a: &a, b: &b, rank, scaling: 0.5, magnitude: None });
            let tensor = MergeRows { name: "w", weight, to: DType::F32, delta };
            let expected: Vec<u8> = (0..rows * cols)
                .flat_map(|e| {
                    let (o, j) = (e / cols, e % cols);
                    let sum = (0..rank).fold(0.0, |sum, r| sum + b[o * rank + r] * a[r * cols + j]);
                    (w[e] + 0.5 * sum).to_le_bytes()
                })
                .collect();
            for threads in [1, 2, 5] {
                assert!(streamed(&tensor, threads).unwrap() == expected, "{rows} x {cols}, rank {rank}");
            }
        }
    }

    #[test]
    fn a_value_beyond_its_type_is_named_with_its_place() {
        let mut values = vec![1.0f32; 300_000];
        values[200_123] = 65_520.0;
        let weight = Matrix::from_f32(&values, 300, 1000);
        let tensor = |weight, to| MergeRows { name: "w", weight, to, delta: None };
        for threads in [1, 3] {
            let error = streamed(&tensor(&weight, DType::F16), threads).unwrap_err();
            assert_eq!(
                error.to_string(),
                "cannot write tensor `w`: element 200123 is 6.552e4, beyond the range of F16"
            );
        }
        assert!(streamed(&tensor(&weight, DType::Bf16), 2).is_ok());
        values[7] = f32::NAN;
        let weight = Matrix::from_f32(&values, 300, 1000);
        let error = streamed(&tensor(&weight, DType::F32), 2).unwrap_err();
        assert_eq!(error.to_string(), "element 7 of tensor `w` is NaN");
    }
}
