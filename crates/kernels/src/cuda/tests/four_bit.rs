use super::*;
use crate::cuda::ops::few_rows::FewRowsOut;
use crate::cuda::ops::four_bit::{self as device_four_bit, FourBitParts};
use crate::cuda::weight::{Weight, encode, place};
use crate::four_bit::{FourBitCode, dynamic_u8, encode_blocks, nest};
use crate::{Bytes, FourBit, FourBitFormat, Isa, NESTED_BLOCK, Scales};

/// Columns, rows and block size of each weight.
const SHAPES: [(usize, usize, usize); 4] = [(64, 37, 64), (4096, 9, 64), (130, 7, 64), (24, 5, 128)];

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Values, codes and scales of a random weight that was encoded on the host.
#[derive(Clone)]
struct Encoding {
    code: FourBitCode,
    block: usize,
    values: Vec<f32>,
    codes: Vec<u8>,
    absmax: Vec<f32>,
}

/// Returns an encoding for every 4-bit type and shape, with the number of columns of the weight.
fn encodings(stream: &mut Stream) -> Vec<(Encoding, usize)> {
    let mut all = Vec::new();
    for (code, (cols, rows, block)) in
        [FourBitCode::Nf4, FourBitCode::Fp4].into_iter().flat_map(|code| SHAPES.map(|shape| (code, shape)))
    {
        let len = rows * cols;
        let values = rounded(stream, DType::Bf16, len);
        let (mut codes, mut absmax) = (vec![0; len.div_ceil(2)], vec![0.0; len.div_ceil(block)]);
        encode_blocks(Isa::detect(), code, block, &values, &mut codes, &mut absmax);
        all.push((Encoding { code, block, values, codes, absmax }, cols));
    }
    all
}

/// Returns the scales of `absmax`. If `nested` is true, they are encoded in 8 bits.
fn scales(absmax: &[f32], nested: bool) -> Scales {
    if !nested {
        return Scales::Plain(Bytes::from_f32(absmax));
    }
    let nested = nest(absmax);
    Scales::Nested {
        codes: Bytes::from_vec(nested.codes),
        table: Arc::new(dynamic_u8()),
        absmax: Bytes::from_f32(&nested.absmax),
        block_size: NESTED_BLOCK,
        offset: nested.offset,
    }
}

fn decoded(device: &Arc<Device>, weight: &Weight, dtype: DType, shape: (usize, usize)) -> Vec<f32> {
    let Weight::FourBit(weight) = weight else { panic!("a dense weight") };
    let out = Values::poisoned(device, dtype, shape.0 * shape.1);
    device_four_bit::decode(device, dtype, out.ptr(), &weight.parts, shape);
    out.read()
}

#[test]
fn four_bits_are_encoded_and_decoded_to_the_bit() {
    let Some(device) = device() else { return };
    let cases = encodings(&mut Stream::new(61)).into_iter();
    for ((Encoding { code, block, values, codes, absmax }, cols), nested) in
        cases.flat_map(|case| [(case.clone(), false), (case, true)])
    {
        let (len, shape) = (values.len(), (values.len() / cols, cols));
        let codes = Bytes::from_vec(codes);
        let host = FourBit::new(codes, scales(&absmax, nested), *code.table(), block, DType::Bf16, len);
        let mut expected = vec![0.0; len];
        host.decode(0..len, &mut expected);
        let matrix = crate::Matrix::four_bit(Arc::new(host), shape.0, cols);
        let format = FourBitFormat { code, block_size: block, nested };
        let mut bytes = vec![0; 2 * len];
        from_f32(DType::Bf16, &values, &mut bytes);
        let scratch = Values::poisoned(&device, DType::Bf16, len);
        let encoded = encode(&device, (DType::Bf16, &bytes), scratch.ptr(), format).unwrap();
        let encoded = Weight::FourBit(encoded.expect("every value is finite"));
        for dtype in dtypes(&device) {
            let placed = place(&device, &matrix, dtype).unwrap();
            let expected = Values::new(&device, dtype, &expected).read();
            for weight in [&placed, &encoded] {
                assert_eq!(decoded(&device, weight, dtype, shape), expected, "{format:?} in {dtype:?}");
            }
        }
        for odd in [f32::NAN, f32::INFINITY] {
            from_f32(DType::Bf16, &[odd], &mut bytes[2 * (len / 2)..][..2]);
            let encoded = encode(&device, (DType::Bf16, &bytes), scratch.ptr(), format).unwrap();
            assert!(encoded.is_none(), "{odd} has no code");
        }
    }
}

/// Returns a random 4-bit weight on the device and on the host. Its scales are f32.
fn random_weight(
    device: &Arc<Device>,
    stream: &mut Stream,
    (outputs, cols): (usize, usize),
) -> (Vec<Allocation>, FourBitParts, crate::Matrix) {
    let blocks = outputs * cols / 64;
    let codes: Vec<u8> = (0..outputs * cols / 2).map(|_| stream.next_bits() as u8).collect();
    let scales = rounded(stream, DType::F32, blocks);
    let table = FourBitCode::Nf4.table();
    let memory = [&codes, &floats(table), &floats(&scales)].map(|bytes| upload(device, bytes));
    let [codes_, table_, absmax] = memory.each_ref().map(Allocation::address);
    let parts =
        FourBitParts { codes: codes_, table: table_, absmax, block_shift: 6, ..FourBitParts::default() };
    let scales = Scales::Plain(Bytes::from_f32(&scales));
    let host = FourBit::new(Bytes::from_vec(codes), scales, *table, 64, DType::Bf16, outputs * cols);
    (memory.into(), parts, crate::Matrix::four_bit(Arc::new(host), outputs, cols))
}

#[test]
fn few_rows_are_multiplied_with_four_bits() {
    let Some(device) = device() else { return };
    let mut stream = Stream::new(62);
    let cases = [(1, &[40][..], 64), (3, &[64, 16, 70], 576), (8, &[136, 8], 1024), (2, &[9000, 24], 192)];
    let types = [(DType::Bf16, DType::Bf16), (DType::F16, DType::F16), (DType::F16, DType::F32)];
    for ((n, outputs, cols), (dtype, out_type)) in
        cases.into_iter().flat_map(|case| types.map(|types| (case, types)))
    {
        if !device.has("four_bit_rows", dtype) {
            continue;
        }
        let weights: Vec<_> =
            outputs.iter().map(|&outputs| random_weight(&device, &mut stream, (outputs, cols))).collect();
        let x = Values::new(&device, dtype, &rounded(&mut stream, DType::F32, n * cols));
        let results: Vec<_> = outputs
            .iter()
            .map(|&outputs| {
                let added = rounded(&mut stream, out_type, n * outputs);
                (
                    Values::poisoned(&device, out_type, n * outputs),
                    Values::new(&device, out_type, &added),
                    added,
                )
            })
            .collect();
        let outs: Vec<FewRowsOut> = (results.iter().zip(outputs).enumerate())
            .map(|(i, ((out, added, _), &outputs))| FewRowsOut {
                out: Rows::dense(out.ptr(), outputs),
                add: (i % 2 == 0).then_some(Rows::dense(added.ptr(), outputs)),
                outputs,
            })
            .collect();
        let parts: Vec<&FourBitParts> = weights.iter().map(|(_, parts, _)| parts).collect();
        let from = Rows::dense(x.ptr(), cols);
        assert!(device_four_bit::rows(&device, dtype, (&outs, out_type), from, &parts, (n, cols)));
        for (i, ((_, _, weight), (out, _, added))) in weights.iter().zip(&results).enumerate() {
            let mut expected = vec![0.0; n * outputs[i]];
            crate::linear::forward(&mut expected, &x.read(), weight, n);
            if i % 2 == 0 {
                expected.iter_mut().zip(added).for_each(|(e, a)| *e += a);
            }
            assert_near(&out.read(), &expected, dtype, &format!("{n} rows of {outputs:?} x {cols}"));
        }
    }
}
