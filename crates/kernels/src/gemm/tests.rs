//! Compares products with sums in f64, for every instruction set, type, orientation and tail.

use super::*;
use crate::rng::Stream;
use crate::{Bytes, DType, Matrix, bf16_to_f32, f32_to_bf16, from_f32};

fn random(stream: &mut Stream, len: usize) -> Vec<f32> {
    (0..len).map(|_| stream.next_uniform() * 2.0 - 1.0).collect()
}

/// Returns a matrix whose data begin at an odd address.
fn unaligned(dtype: DType, data: &[f32], rows: usize, cols: usize) -> Matrix {
    let mut bytes = vec![0u8; 1 + data.len() * dtype.size()];
    from_f32(dtype, data, &mut bytes[1..]);
    let len = bytes.len();
    Matrix::dense(dtype, Bytes::new(std::sync::Arc::new(bytes), 1..len), rows, cols)
}

/// Returns element `(i, j)` of `A B` in f64, and the sum of the magnitudes of all terms.
/// `A (m, k)` and `B (n, k)` are row-major.
fn expected(a: &[f32], b: &[f32], k: usize, i: usize, j: usize, bf16: bool) -> (f64, f64) {
    let round = |v: f32| if bf16 { bf16_to_f32(f32_to_bf16(v)) } else { v } as f64;
    (0..k).fold((0.0, 0.0), |(sum, size), p| {
        let term = round(a[i * k + p]) * round(b[j * k + p]);
        (sum + term, size + term.abs())
    })
}

fn transposed(data: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..rows * cols).map(|i| data[i % rows * cols + i / rows]).collect()
}

#[test]
fn products_match_f64_for_every_tail_type_and_orientation() {
    let mut stream = Stream::new(11);
    let pools = [Pool::new(1), Pool::new(2), Pool::new(3)];
    let shapes = [(1, 1, 1), (3, 5, 2), (14, 32, 16), (15, 33, 31), (29, 70, 65), (64, 40, 33), (17, 9, 800)];
    for isa in Isa::supported() {
        for bf16 in [false, true] {
            let gemm = Gemm::new(isa, bf16, 3);
            for (m, n, k) in shapes {
                let a = random(&mut stream, m * k);
                for dtype in [DType::F32, DType::Bf16, DType::F16] {
                    let stored = random(&mut stream, n * k);
                    let nt = unaligned(dtype, &stored, n, k);
                    let stored = nt.to_vec();
                    let nn = unaligned(dtype, &transposed(&stored, n, k), k, n);
                    let at = transposed(&a, m, k);
                    let ldc = n + 3;
                    let start = random(&mut stream, m * ldc);
                    for (case, (va, vb)) in [
                        (View::f32(&a, k, 1), View::rows_of(&nt)),
                        (View::f32(&a, k, 1), View::cols_of(&nn)),
                        (View::f32(&at, 1, m), View::cols_of(&nn)),
                    ]
                    .into_iter()
                    .enumerate()
                    {
                        let accumulate = case != 1;
                        let results = pools.each_ref().map(|pool| {
                            let mut c = start.clone();
                            let (a, b, alpha) = (va, vb, 0.5);
                            gemm.product(pool, Product { c: &mut c, ldc, a, b, m, n, k, alpha, accumulate });
                            c
                        });
                        assert_eq!(results[0], results[1], "{isa} {m} {n} {k}: two threads");
                        assert_eq!(results[0], results[2], "{isa} {m} {n} {k}: three threads");
                        for i in 0..m {
                            for j in 0..ldc {
                                let (found, old) = (results[0][i * ldc + j], start[i * ldc + j]);
                                if j >= n {
                                    assert_eq!(found, old, "{isa}: wrote past column {n}");
                                    continue;
                                }
                                let (sum, size) = expected(&a, &stored, k, i, j, bf16);
                                let sum = 0.5 * sum + if accumulate { old as f64 } else { 0.0 };
                                // Observed errors are far below this tolerance. The worst case grows with
                                // `k`.
                                let tolerance = 1e-6 * (size + 1.0);
                                assert!(
                                    (found as f64 - sum).abs() <= tolerance,
                                    "{isa} bf16 {bf16} {dtype:?} {m}x{n}x{k} case {case} [{i},{j}]: {found} {sum}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn large_shapes_cross_every_block_boundary() {
    let mut stream = Stream::new(12);
    let (pool, one) = (Pool::new(2), Pool::new(1));
    for (m, n, k) in [(1030, 40, 400), (20, 300, 7000)] {
        let (a, b) = (random(&mut stream, m * k), random(&mut stream, n * k));
        let w = Matrix::from_f32(&b, n, k);
        for isa in Isa::supported() {
            let gemm = Gemm::new(isa, true, 2);
            let run = |pool: &Pool| {
                let mut c = vec![0.0; m * n];
                let (a, b) = (View::f32(&a, k, 1), View::rows_of(&w));
                let (ldc, alpha, accumulate) = (n, 1.0, false);
                gemm.product(pool, Product { c: &mut c, ldc, a, b, m, n, k, alpha, accumulate });
                c
            };
            let c = run(&pool);
            assert_eq!(c, run(&one), "{isa}");
            for i in [0, 1, m / 2, m - 1] {
                for j in [0, n / 2, n - 1] {
                    let (sum, size) = expected(&a, &b, k, i, j, true);
                    assert!((c[i * n + j] as f64 - sum).abs() <= 1e-6 * size, "{isa} {m} {n} {k} [{i},{j}]");
                }
            }
        }
    }
}

#[test]
fn few_rows_match_f64_for_every_tail_and_type() {
    let mut stream = Stream::new(13);
    let pools = [Pool::new(1), Pool::new(3)];
    for isa in Isa::supported() {
        for bf16 in [false, true] {
            let few = SkinnyGemm::new(isa, bf16);
            for (n, d_out, d_in) in [
                (1, 1, 1),
                (2, 7, 33),
                (3, 30, 64),
                (5, 9, 47),
                (8, 70, 129),
                (2, 401, 256),
                (66, 10, 1100),
                (70, 50, 768),
            ] {
                for dtype in [DType::F32, DType::Bf16, DType::F16] {
                    let inp = random(&mut stream, n * d_in);
                    let w = unaligned(dtype, &random(&mut stream, d_out * d_in), d_out, d_in);
                    let stored = w.to_vec();
                    let results = pools.each_ref().map(|pool| {
                        let mut out = vec![f32::NAN; n * d_out];
                        few.forward(pool, &mut [&mut out], &inp, (&[&w], n), Before::NOTHING, |_, _, _| {});
                        out
                    });
                    assert_eq!(results[0], results[1], "{isa}");
                    for i in 0..n {
                        for o in 0..d_out {
                            let (sum, size) = expected(&inp, &stored, d_in, i, o, bf16);
                            let found = results[0][i * d_out + o] as f64;
                            assert!(
                                (found - sum).abs() <= 1e-6 * (size + 1.0),
                                "{isa} {bf16} {dtype:?} {n} {d_out} {d_in}: {found} {sum}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_grid_keeps_all_threads_busy_and_covers_all_panels() {
    for threads in [1, 2, 7, 16, 64] {
        for (m, n) in [(1, 1), (9, 40), (100, 2048), (1024, 256), (1024, 768), (1024, 8192)] {
            let Grid { col_tasks, row_tasks } = Grid::new(threads, (m, 16), (n, 32));
            let (rows, cols) = (m.div_ceil(16), n.div_ceil(32));
            assert!((1..=cols).contains(&col_tasks) && (1..=rows).contains(&row_tasks), "{threads} {m} {n}");
            assert!(cols.div_ceil(col_tasks) <= GRID_PANELS, "{threads} {m} {n}");
            assert!(2 * col_tasks * row_tasks > threads.min(rows * cols), "{threads} {m} {n}");
        }
    }
}
