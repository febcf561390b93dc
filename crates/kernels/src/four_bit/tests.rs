//! Compares codes and values with bitsandbytes, and compares the results of every instruction set with the
//! plain decoder.

use std::ops::Range;
use std::path::PathBuf;

use safetensors::{Dtype, SafeTensors};

use super::*;
use crate::finite_difference::random;
use crate::rng::Stream;
use crate::{
    Backend, Buffer, Cpu, CpuOptions, HeadGrads, HeadOperands, Indices, Isa, Matrix, Reference, Store,
    bf16_to_f32, f32_to_bf16, from_f32, to_f32,
};

/// Reads the file that `reference/four_bit.py` wrote with bitsandbytes.
fn expected() -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/expected/four_bit.safetensors");
    std::fs::read(path).unwrap()
}

fn floats(file: &SafeTensors<'_>, name: &str) -> (DType, Vec<f32>) {
    let view = file.tensor(name).unwrap_or_else(|_| panic!("{name}"));
    let dtype = match view.dtype() {
        Dtype::F32 => DType::F32,
        Dtype::BF16 => DType::Bf16,
        Dtype::F16 => DType::F16,
        other => panic!("{name}: {other:?}"),
    };
    let mut out = vec![0.0; view.data().len() / dtype.size()];
    to_f32(dtype, view.data(), &mut out);
    (dtype, out)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn nested(codes: Vec<u8>, absmax: &[f32], offset: f32) -> Scales {
    let table = Arc::new(dynamic_u8());
    Scales::Nested {
        codes: Bytes::from_vec(codes),
        table,
        absmax: Bytes::from_f32(absmax),
        block_size: NESTED_BLOCK,
        offset,
    }
}

#[test]
fn the_tables_are_those_of_bitsandbytes() {
    let bytes = expected();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(bits(&NF4), bits(&floats(&file, "code_nf4").1));
    assert_eq!(bits(&FP4), bits(&floats(&file, "code_fp4").1));
    let (found, expected) = (dynamic_u8(), floats(&file, "code_dynamic_u8").1);
    let odd: Vec<_> = (0..256).filter(|&i| found[i].to_bits() != expected[i].to_bits()).collect();
    assert!(odd.is_empty(), "{odd:?}");
}

/// Returns the prefix, type, values and block size of each matrix in the file.
fn matrices(file: &SafeTensors<'_>) -> Vec<(String, DType, Vec<f32>, usize)> {
    let mut names: Vec<_> = file.names().into_iter().filter_map(|name| name.strip_suffix(".input")).collect();
    names.sort_unstable();
    let read = |prefix: &str| {
        let (dtype, values) = floats(file, &format!("{prefix}.input"));
        let block_size = prefix.rsplit('.').next().unwrap().parse().unwrap();
        (prefix.to_owned(), dtype, values, block_size)
    };
    names.into_iter().map(read).collect()
}

#[test]
fn codes_and_scales_are_those_of_bitsandbytes_on_every_instruction_set() {
    let bytes = expected();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let raw = |name: String| file.tensor(&name).unwrap().data().to_vec();
    let matrices = matrices(&file);
    assert_eq!(matrices.len(), 10);
    for (prefix, _, values, block_size) in matrices {
        for code in [FourBitCode::Nf4, FourBitCode::Fp4] {
            let name = format!("{prefix}.{code}");
            for isa in Isa::supported() {
                let (mut codes, mut absmax) =
                    (vec![0; values.len().div_ceil(2)], vec![0.0; values.len().div_ceil(block_size)]);
                encode_blocks(isa, code, block_size, &values, &mut codes, &mut absmax);
                assert_eq!(codes, raw(format!("{name}.packed")), "{name} {isa}");
                assert_eq!(bits(&absmax), bits(&floats(&file, &format!("{name}.absmax")).1), "{name} {isa}");
            }
            let absmax = floats(&file, &format!("{name}.absmax")).1;
            let nested = nest(&absmax);
            // The means differ, because danlu adds the scales in f64, and PyTorch adds them in f32.
            let close = |a: f32, b: f32| (a - b).abs() <= 1e-6 * a.abs().max(b.abs());
            assert!(close(nested.offset, floats(&file, &format!("{name}.nested.offset")).1[0]), "{name}");
            for (a, b) in nested.absmax.iter().zip(floats(&file, &format!("{name}.nested.absmax")).1) {
                assert!((a - b).abs() <= 1e-6 * nested.offset.abs().max(*a), "{name}: {a} {b}");
            }
            // In a whole base model, bitsandbytes chooses the other of two neighbouring codes for some
            // scales. In this file, all codes agree.
            assert_eq!(nested.codes, raw(format!("{name}.nested.codes")), "{name}");
        }
    }
}

#[test]
fn values_are_those_of_bitsandbytes() {
    let bytes = expected();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let raw = |name: String| Bytes::from_vec(file.tensor(&name).unwrap().data().to_vec());
    for (prefix, dtype, values, block_size) in matrices(&file) {
        for code in [FourBitCode::Nf4, FourBitCode::Fp4] {
            let name = format!("{prefix}.{code}");
            let nested = nested(
                raw(format!("{name}.nested.codes")).as_slice().to_vec(),
                &floats(&file, &format!("{name}.nested.absmax")).1,
                floats(&file, &format!("{name}.nested.offset")).1[0],
            );
            let plain = Scales::Plain(raw(format!("{name}.absmax")));
            for (scales, expected) in [(plain, "values"), (nested, "nested.values")] {
                let codes = raw(format!("{name}.packed"));
                let weight = FourBit::new(codes, scales, *code.table(), block_size, dtype, values.len());
                let mut found = vec![0.0; values.len()];
                weight.decode(0..values.len(), &mut found);
                let mut stored = vec![0; values.len() * dtype.size()];
                from_f32(dtype, &found, &mut stored);
                to_f32(dtype, &stored, &mut found);
                let (_, expected) = floats(&file, &format!("{name}.{expected}"));
                let odd = found.iter().zip(&expected).position(|(a, b)| a != b);
                assert_eq!(odd.map(|at| (at, found[at], expected[at])), None, "{name}");
            }
        }
    }
}

fn weight(stream: &mut Stream, dtype: DType, len: usize, block_size: usize, is_nested: bool) -> FourBit {
    let values: Vec<f32> = random(stream, len).iter().map(|v| 0.05 * v).collect();
    let (mut codes, mut absmax) = (vec![0; len.div_ceil(2)], vec![0.0; len.div_ceil(block_size)]);
    encode_blocks(Isa::Scalar, FourBitCode::Nf4, block_size, &values, &mut codes, &mut absmax);
    let scales = if is_nested {
        let NestedScales { codes, absmax, offset } = nest(&absmax);
        nested(codes, &absmax, offset)
    } else {
        Scales::Plain(Bytes::from_f32(&absmax))
    };
    FourBit::new(Bytes::from_vec(codes), scales, NF4, block_size, dtype, len)
}

/// Shapes `(rows, cols, block_size)` for all relations between rows and blocks:
///
/// - rows of whole chunks of 64 and of 128 elements
/// - a group of 256 scales that ends inside a row
/// - short rows
/// - rows that end inside a block or inside a byte
/// - in the backward pass, more rows than one block of the inner dimension `k`
/// - rows in which a block of `k` ends inside a quantization block (elements that share a scale)
const SHAPES: [(usize, usize, usize); 17] = [
    (701, 256, 64),
    (803, 64, 64),
    (21, 1344, 64),
    (9, 96, 32),
    (3, 1024, 1024),
    (70, 64, 4096),
    (70, 64, 64),
    (33, 192, 64),
    (7, 128, 64),
    (31, 640, 64),
    (18, 1024, 128),
    (9, 768, 256),
    (9, 704, 256),
    (37, 96, 64),
    (40, 50, 32),
    (21, 37, 64),
    (5, 1, 64),
];

#[test]
fn every_instruction_set_decodes_the_same_bits() {
    let mut stream = Stream::new(21);
    for (rows, cols, block_size) in SHAPES {
        for (dtype, is_nested) in [(DType::F32, false), (DType::Bf16, true), (DType::F16, true)] {
            let weight = Arc::new(weight(&mut stream, dtype, rows * cols, block_size, is_nested));
            let w = Matrix::four_bit(weight, rows, cols);
            let stored = w.to_vec();
            // The input is rows of the unit matrix, so each result is a single element of the weight. A few
            // rows use dot products, and many rows use packed tiles.
            for (n, from) in [(1, 3), (5, cols / 2), (8, cols.saturating_sub(70)), (cols.max(9), 0)] {
                let picked: Vec<usize> = (0..n).map(|i| (from + i * 7) % cols).collect();
                let mut unit = vec![0.0; n * cols];
                picked.iter().enumerate().for_each(|(i, &c)| unit[i * cols + c] = 1.0);
                let inp = Buffer::from_vec(unit);
                let expected: Vec<f32> = picked
                    .iter()
                    .flat_map(|&c| (0..rows).map(move |r| (r, c)))
                    .map(|(r, c)| stored[r * cols + c])
                    .collect();
                for isa in Isa::supported() {
                    let cpu = |dtype| Cpu::new(CpuOptions { threads: Some(2), isa: Some(isa), dtype });
                    let mut out = Buffer::from_vec(vec![f32::NAN; n * rows]);
                    cpu(DType::F32).linear_forward(&mut out, &inp, &w, n);
                    assert_eq!(out.host_slice(), expected, "{isa} {rows} x {cols} {dtype:?}, {n} rows");
                    cpu(DType::Bf16).linear_forward(&mut out, &inp, &w, n);
                    let rounded: Vec<f32> = expected.iter().map(|&v| bf16_to_f32(f32_to_bf16(v))).collect();
                    assert_eq!(out.host_slice(), rounded, "{isa} {rows} x {cols} {dtype:?}, {n} rows, bf16");
                }
            }
            // In the backward pass, each row of the unit matrix selects a row of the weight.
            let mut unit = vec![0.0; rows * rows];
            (0..rows).for_each(|i| unit[i * rows + i] = 1.0);
            let dout = Buffer::from_vec(unit);
            let rounded: Vec<f32> = stored.iter().map(|&v| bf16_to_f32(f32_to_bf16(v))).collect();
            for isa in Isa::supported() {
                for (product, expected) in [(DType::F32, &stored), (DType::Bf16, &rounded)] {
                    let cpu = Cpu::new(CpuOptions { threads: Some(2), isa: Some(isa), dtype: product });
                    let mut dinp = Buffer::from_vec(vec![f32::NAN; rows * cols]);
                    cpu.linear_backward(&mut dinp, Store::Overwrite, &dout, &w, rows);
                    assert_eq!(
                        dinp.host_slice(),
                        expected,
                        "{isa} {rows} x {cols} {dtype:?}, backward in {product:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn products_match_the_reference_on_any_number_of_threads() {
    let mut stream = Stream::new(22);
    for (rows, cols, block_size) in SHAPES {
        let weight = Arc::new(weight(&mut stream, DType::Bf16, rows * cols, block_size, true));
        let w = Matrix::four_bit(weight, rows, cols);
        for n in [1, 8, 70] {
            let inp = Buffer::from_vec(random(&mut stream, n * cols));
            let dout = Buffer::from_vec(random(&mut stream, n * rows));
            let run = |backend: &dyn Backend| {
                let [mut out, mut dinp, mut dhead, mut losses] =
                    [n * rows, n * cols, n * cols, n].map(Buffer::host);
                backend.linear_forward(&mut out, &inp, &w, n);
                backend.linear_backward(&mut dinp, Store::Overwrite, &dout, &w, n);
                let targets = &Indices::host((0..n).map(|i| (i * 5 % rows) as u32).collect());
                let grads = HeadGrads { dinp: &mut dhead, dloss: &Buffer::from_vec(vec![1.0; n]) };
                backend.head_loss(
                    &mut losses,
                    0,
                    HeadOperands { inp: &inp, head: &w, targets, softcap: None },
                    Some(grads),
                );
                [out, dinp, dhead, losses].map(|b| b.host_slice().to_vec())
            };
            let expected = run(&Reference::new());
            for isa in Isa::supported() {
                for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::Bf16, 5e-3)] {
                    let [one, three] = [1, 3].map(|threads| {
                        run(&Cpu::new(CpuOptions { threads: Some(threads), isa: Some(isa), dtype }))
                    });
                    assert_eq!(one, three, "{isa}: the number of threads shows");
                    for (found, expected) in one.iter().zip(&expected) {
                        for (f, e) in found.iter().zip(expected) {
                            assert!(
                                (f - e).abs() <= tolerance * (1.0 + e.abs()),
                                "{isa} {dtype:?} {rows} x {cols}: {f} {e}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_generated_row_has_the_same_bits_among_any_number_of_rows() {
    let mut stream = Stream::new(24);
    for (rows, cols, block_size) in SHAPES {
        let weight = Arc::new(weight(&mut stream, DType::Bf16, rows * cols, block_size, true));
        let (w, n) = (Matrix::four_bit(weight, rows, cols), 67);
        let inp = random(&mut stream, n * cols);
        for (isa, dtype) in Isa::supported().flat_map(|isa| [(isa, DType::F32), (isa, DType::Bf16)]) {
            let run = |threads, range: Range<usize>| {
                let cpu = Cpu::new(CpuOptions { threads: Some(threads), isa: Some(isa), dtype });
                let inp = Buffer::from_vec(inp[range.start * cols..range.end * cols].to_vec());
                let mut out = Buffer::host(range.len() * rows);
                cpu.linear_decode(&mut out, &inp, &w, range.len());
                out.host_slice().to_vec()
            };
            let together = run(3, 0..n);
            for range in [0..1, 3..5, 1..4, 10..18, 5..14, 44..n] {
                let expected = &together[range.start * rows..range.end * rows];
                assert_eq!(run(1, range.clone()), expected, "{isa} {dtype:?} {rows} x {cols}, {range:?}");
            }
        }
    }
}

#[test]
fn scales_that_are_all_equal_nest_to_themselves() {
    let NestedScales { codes, absmax, offset } = nest(&[0.25; 300]);
    assert_eq!((codes, absmax, offset), (vec![0; 300], vec![0.0; 2], 0.25));
}
