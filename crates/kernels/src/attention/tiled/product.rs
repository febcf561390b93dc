//! The one product that tiled attention is made of, small enough to stay in the first caches.

use crate::simd::{Lanes, WIDEST};

/// A matrix inside a scratch slice: element `(i, j)` is at `i * row + j * col`.
#[derive(Clone, Copy)]
pub struct Strided<'a> {
    pub data: &'a [f32],
    pub row: usize,
    pub col: usize,
}

/// `c = a b`, or `c += a b`: `a (m, k)` of any strides, `b (k, n)` and `c (m, n)` dense, `n` a multiple of
/// [`WIDEST`]. Every element sums over `k` in order, whatever tile it falls in.
#[inline(always)]
pub fn product<L: Lanes>(
    c: &mut [f32],
    a: Strided<'_>,
    b: &[f32],
    (m, n, k): (usize, usize, usize),
    accumulate: bool,
) {
    assert!(n.is_multiple_of(WIDEST) && m > 0 && k > 0);
    assert!(c.len() >= m * n && b.len() >= k * n && a.data.len() > (m - 1) * a.row + (k - 1) * a.col);
    let mut column = 0;
    while column < n {
        // Six rows of four vectors fill 24 of 32 registers, of two vectors 12 of 16.
        let vectors = if L::REGISTERS >= 32 { 4 } else { 2 };
        let vectors = if column + vectors * L::COUNT <= n { vectors } else { 1 };
        let mut row = 0;
        while row < m {
            let rows = (m - row).min(6);
            // SAFETY: the assertion above covers rows below `m`, columns below `n` and terms below `k`.
            unsafe {
                let c = c.as_mut_ptr().add(row * n + column);
                let (a, strides) = (a.data.as_ptr().add(row * a.row), (a.row, a.col));
                let b = b.as_ptr().add(column);
                match (rows, vectors) {
                    (6, 4) => tile::<L, 6, 4>(c, a, strides, b, n, k, accumulate),
                    (6, 2) => tile::<L, 6, 2>(c, a, strides, b, n, k, accumulate),
                    (6, _) => tile::<L, 6, 1>(c, a, strides, b, n, k, accumulate),
                    (rows, vectors) => {
                        for i in 0..rows {
                            let (c, a) = (c.add(i * n), a.add(i * strides.0));
                            match vectors {
                                4 => tile::<L, 1, 4>(c, a, strides, b, n, k, accumulate),
                                2 => tile::<L, 1, 2>(c, a, strides, b, n, k, accumulate),
                                _ => tile::<L, 1, 1>(c, a, strides, b, n, k, accumulate),
                            }
                        }
                    }
                }
            }
            row += rows;
        }
        column += vectors * L::COUNT;
    }
}

/// `M` rows by `V` vectors of `c`, held in registers over all of `k`.
///
/// # Safety
/// The tile lies inside `c`, and its rows, columns and `k` terms inside `a` and `b`.
#[inline(always)]
unsafe fn tile<L: Lanes, const M: usize, const V: usize>(
    c: *mut f32,
    a: *const f32,
    (row, col): (usize, usize),
    b: *const f32,
    n: usize,
    k: usize,
    accumulate: bool,
) {
    let mut sums = [[L::splat(0.0); V]; M];
    // SAFETY: as the caller promises.
    unsafe {
        if accumulate {
            for i in 0..M {
                for j in 0..V {
                    sums[i][j] = L::load(c.add(i * n + j * L::COUNT));
                }
            }
        }
        for p in 0..k {
            let mut bs = [L::splat(0.0); V];
            for j in 0..V {
                bs[j] = L::load(b.add(p * n + j * L::COUNT));
            }
            for i in 0..M {
                let x = L::splat(*a.add(i * row + p * col));
                for j in 0..V {
                    sums[i][j] = x.mul_add(bs[j], sums[i][j]);
                }
            }
        }
        for i in 0..M {
            for j in 0..V {
                sums[i][j].store(c.add(i * n + j * L::COUNT));
            }
        }
    }
}
