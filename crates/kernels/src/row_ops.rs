//! Operations on rows: embedding, bias, scaling, gather and its backward, scatter, copy and add.

use std::ops::Range;

use crate::Matrix;

/// Computes `out[i] = scale · table[ids[i]]`, converted to f32.
///
/// | operand | shape    |
/// |---------|----------|
/// | `out`   | `(N, C)` |
/// | `table` | `(V, C)` |
/// | `ids`   | `(N)`    |
///
/// # Panics
/// If an id is not below `V`, or `out` is too short.
pub fn embedding_forward(out: &mut [f32], table: &Matrix, ids: &[u32], scale: f32) {
    let cols = table.cols();
    for (i, &id) in ids.iter().enumerate() {
        assert!((id as usize) < table.rows(), "id {id} in a table of {} rows", table.rows());
        let row = &mut out[i * cols..][..cols];
        table.row_to_f32(id as usize, row);
        if scale != 1.0 {
            row.iter_mut().for_each(|value| *value *= scale);
        }
    }
}

/// Computes `out[i] += bias` for every row of `out (N, OUT)`.
///
/// # Panics
/// If `out` does not contain whole rows of the length of `bias`.
pub fn add_bias(out: &mut [f32], bias: &[f32]) {
    assert!(out.len().is_multiple_of(bias.len()), "{} elements in rows of {}", out.len(), bias.len());
    for row in out.chunks_exact_mut(bias.len()) {
        add(row, bias);
    }
}

/// Computes `out[i, o] *= factors[o]` for every row of `out (N, OUT)`.
///
/// # Panics
/// If `out` does not contain whole rows of the length of `factors`.
pub fn scale_columns(out: &mut [f32], factors: &[f32]) {
    assert!(out.len().is_multiple_of(factors.len()), "{} elements in rows of {}", out.len(), factors.len());
    for row in out.chunks_exact_mut(factors.len()) {
        row.iter_mut().zip(factors).for_each(|(value, factor)| *value *= factor);
    }
}

/// Computes `sums[o] += scale[o] · Σ dout[i, o] · out[i, o]` for the columns `columns` of rows of `cols`
/// elements. `sums` and `scale` contain only these columns.
///
/// # Panics
/// If a slice is too short.
pub fn column_products(
    sums: &mut [f32],
    (dout, out): (&[f32], &[f32]),
    scale: &[f32],
    columns: Range<usize>,
    cols: usize,
) {
    let mut totals = vec![0.0f64; columns.len()];
    for (dout, out) in dout.chunks_exact(cols).zip(out.chunks_exact(cols)) {
        for (total, (d, o)) in totals.iter_mut().zip(dout[columns.clone()].iter().zip(&out[columns.clone()]))
        {
            *total += f64::from(*d) * f64::from(*o);
        }
    }
    for (sum, (total, scale)) in sums.iter_mut().zip(totals.iter().zip(scale)) {
        *sum += (f64::from(*scale) * total) as f32;
    }
}

/// Computes `out[i] = inp[rows[i]]`, for rows of `cols` elements.
///
/// # Panics
/// If a row is outside `inp`, or if `out` is too short.
pub fn gather_rows(out: &mut [f32], inp: &[f32], rows: &[u32], cols: usize) {
    for (i, &row) in rows.iter().enumerate() {
        out[i * cols..][..cols].copy_from_slice(&inp[row as usize * cols..][..cols]);
    }
}

/// Computes `dinp[rows[i]] += dout[i]`, in the order of `rows`. If `dinp` is zero before the call, the result
/// is the backward of [`gather_rows`].
///
/// # Panics
/// If a row is outside `dinp`, or if `dout` is too short.
pub fn add_rows(dinp: &mut [f32], dout: &[f32], rows: &[u32], cols: usize) {
    for (i, &row) in rows.iter().enumerate() {
        add(&mut dinp[row as usize * cols..][..cols], &dout[i * cols..][..cols]);
    }
}

/// Computes `out[rows[i]] = inp[i]`, for rows of `cols` elements.
///
/// # Panics
/// If a row is outside `out`, or if `inp` is too short.
pub fn scatter_rows(out: &mut [f32], inp: &[f32], rows: &[u32], cols: usize) {
    for (i, &row) in rows.iter().enumerate() {
        out[row as usize * cols..][..cols].copy_from_slice(&inp[i * cols..][..cols]);
    }
}

/// Copies `n` rows of `cols` elements from row `src_row` of `src` to row `dst_row` of `dst`.
///
/// # Panics
/// If a range of rows extends past the end of its slice.
pub fn copy_rows(dst: &mut [f32], dst_row: usize, src: &[f32], src_row: usize, n: usize, cols: usize) {
    dst[dst_row * cols..][..n * cols].copy_from_slice(&src[src_row * cols..][..n * cols]);
}

/// Computes `dst += src`.
///
/// # Panics
/// If the lengths differ.
pub fn add(dst: &mut [f32], src: &[f32]) {
    assert_eq!(dst.len(), src.len());
    for (d, s) in dst.iter_mut().zip(src) {
        *d += s;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finite_difference::{check, inner, random};
    use crate::rng::Stream;

    #[test]
    fn embedding_widens_the_rows_it_is_asked_for() {
        let table = Matrix::from_f32(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3, 2);
        let mut out = [0.0; 6];
        embedding_forward(&mut out, &table, &[2, 0, 2], 1.0);
        assert_eq!(out, [5.0, 6.0, 1.0, 2.0, 5.0, 6.0]);
        embedding_forward(&mut out, &table, &[1, 1, 0], 2.0);
        assert_eq!(out, [6.0, 8.0, 6.0, 8.0, 2.0, 4.0]);
    }

    #[test]
    fn gather_backward_matches_finite_differences() {
        let (mut stream, rows, cols) = (Stream::new(1), [2, 0, 2, 3], 3);
        let (inp, dout) = (random(&mut stream, 5 * cols), random(&mut stream, rows.len() * cols));
        let mut dinp = vec![0.0; inp.len()];
        add_rows(&mut dinp, &dout, &rows, cols);
        let mut out = vec![0.0; dout.len()];
        check(&inp, &dinp, |inp| {
            gather_rows(&mut out, inp, &rows, cols);
            inner(&out, &dout)
        });
    }

    #[test]
    fn a_bias_is_added_to_every_row() {
        let mut out = [1.0, 2.0, 3.0, 4.0];
        add_bias(&mut out, &[10.0, 20.0]);
        assert_eq!(out, [11.0, 22.0, 13.0, 24.0]);
    }

    #[test]
    fn copy_moves_whole_rows() {
        let mut dst = [0.0; 6];
        copy_rows(&mut dst, 1, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 1, 2, 2);
        assert_eq!(dst, [0.0, 0.0, 3.0, 4.0, 5.0, 6.0]);
    }
}
