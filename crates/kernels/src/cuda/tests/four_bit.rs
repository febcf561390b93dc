use super::*;
use crate::cuda::ops::four_bit::{self as device_four_bit, Encoded, FourBitParts, Ladder, Nested};
use crate::cuda::weight::{Weight, place};
use crate::four_bit::{FourBitCode, dynamic_u8, encode_blocks, nest};
use crate::{Bytes, FourBit, Isa, Scales};

/// Columns, rows and block size.
const SHAPES: [(usize, usize, usize); 4] = [(64, 37, 64), (4096, 9, 64), (130, 7, 64), (24, 5, 128)];

fn download(device: &Device, memory: &Allocation) -> Vec<u8> {
    let mut bytes = vec![0; memory.bytes() as usize];
    device.download(&mut bytes, memory.address()).unwrap();
    bytes
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// A random weight encoded on the host: its values, codes and scales.
struct Encoding {
    code: FourBitCode,
    block: usize,
    values: Vec<f32>,
    codes: Vec<u8>,
    absmax: Vec<f32>,
}

/// An encoding for every code and shape, with the columns of the weight.
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

#[test]
fn four_bits_are_encoded_and_nested_to_the_bit() {
    let Some(device) = device() else { return };
    for (Encoding { code, block, values, codes, absmax }, _) in encodings(&mut Stream::new(61)) {
        let blocks = absmax.len();
        let (table, mut order) = (code.table(), (0..16).collect::<Vec<u8>>());
        order.sort_by(|&a, &b| table[a as usize].total_cmp(&table[b as usize]));
        let bounds: Vec<f32> =
            order.windows(2).map(|pair| (table[pair[0] as usize] + table[pair[1] as usize]) / 2.0).collect();
        let (bounds, order) = (upload(&device, &floats(&bounds)), upload(&device, &order));
        let poison = |len: usize| upload(&device, &vec![0xff; len]);
        let (found, scales) = (poison(codes.len()), poison(4 * blocks));
        let weight = Values::new(&device, DType::Bf16, &values);
        let out = Encoded { codes: found.address(), absmax: scales.address() };
        let ladder = Ladder { bounds: bounds.address(), order: order.address() };
        let shape = (values.len(), block.ilog2());
        device_four_bit::encode(&device, DType::Bf16, out, weight.ptr(), ladder, shape);
        assert_eq!(download(&device, &found), codes, "codes of {code} in blocks of {block}");
        assert_eq!(download(&device, &scales), floats(&absmax), "scales of {code} in blocks of {block}");

        let nested = nest(&absmax);
        let (codes, absmax, offset) = (poison(blocks), poison(4 * nested.absmax.len()), poison(4));
        let table = upload(&device, &floats(&dynamic_u8()));
        let to = Nested { codes: codes.address(), absmax: absmax.address(), offset: offset.address() };
        device_four_bit::nest(&device, to, scales.address(), table.address(), blocks);
        assert_eq!(download(&device, &codes), nested.codes, "nested scales of {code}");
        assert_eq!(download(&device, &absmax), floats(&nested.absmax));
        assert_eq!(download(&device, &offset), nested.offset.to_le_bytes());
    }
}

#[test]
fn four_bits_are_decoded_to_the_bit() {
    let Some(device) = device() else { return };
    for (Encoding { code, block, values, codes, absmax }, cols) in encodings(&mut Stream::new(61)) {
        let (len, nested) = (values.len(), nest(&absmax));
        let nested = Scales::Nested {
            codes: Bytes::from_vec(nested.codes),
            table: Arc::new(dynamic_u8()),
            absmax: Bytes::from_f32(&nested.absmax),
            block_size: 256,
            offset: nested.offset,
        };
        for scales in [Scales::Plain(Bytes::from_f32(&absmax)), nested] {
            let codes = Bytes::from_vec(codes.clone());
            let host = FourBit::new(codes, scales, *code.table(), block, DType::Bf16, len);
            let mut expected = vec![0.0; len];
            host.decode(0..len, &mut expected);
            let matrix = crate::Matrix::four_bit(Arc::new(host), len / cols, cols);
            for dtype in DTYPES {
                let Weight::FourBit(weight) = place(&device, &matrix, dtype).unwrap() else { panic!() };
                let out = Values::poisoned(&device, dtype, len);
                device_four_bit::decode(&device, dtype, out.ptr(), &weight.parts, (len / cols, cols));
                let expected = Values::new(&device, dtype, &expected).read();
                assert_eq!(out.read(), expected, "values of {code} in blocks of {block} in {dtype:?}");
            }
        }
    }
}

#[test]
fn few_rows_are_multiplied_with_four_bits() {
    let Some(device) = device() else { return };
    let mut stream = Stream::new(62);
    for (n, outputs, cols) in [(1, 40, 64), (3, 64, 576), (8, 136, 1024)] {
        let blocks = outputs * cols / 64;
        let codes: Vec<u8> = (0..outputs * cols / 2).map(|_| stream.next_bits() as u8).collect();
        let scales = rounded(&mut stream, DType::F32, blocks);
        let inp = rounded(&mut stream, DType::F32, n * cols);
        let table = FourBitCode::Nf4.table();
        let [codes_, table_, absmax] =
            [&codes, &floats(table), &floats(&scales)].map(|bytes| upload(&device, bytes));
        let parts = FourBitParts {
            codes: codes_.address(),
            table: table_.address(),
            scale_codes: DevicePtr::NULL,
            scale_table: DevicePtr::NULL,
            absmax: absmax.address(),
            offset: 0.0,
            block_shift: 6,
            scale_shift: 0,
            unused: 0,
        };
        let scales = Scales::Plain(Bytes::from_f32(&scales));
        let host = FourBit::new(Bytes::from_vec(codes), scales, *table, 64, DType::Bf16, outputs * cols);
        let weight = crate::Matrix::four_bit(Arc::new(host), outputs, cols);
        for dtype in [DType::Bf16, DType::F16] {
            let x = Values::new(&device, dtype, &inp);
            let mut expected = vec![0.0; n * outputs];
            crate::linear::forward(&mut expected, &x.read(), &weight, n);
            let out = Values::poisoned(&device, dtype, n * outputs);
            let (to, from) = (Rows::dense(out.ptr(), outputs), Rows::dense(x.ptr(), cols));
            assert!(device_four_bit::rows(&device, dtype, to, from, &parts, (n, outputs, cols)));
            assert_near(&out.read(), &expected, dtype, &format!("{n} rows of {outputs}x{cols}"));
        }
    }
}
