use super::*;
use crate::cuda::ops::four_bit::{self as device_four_bit, Encoded, FourBitParts, Ladder, Nested};
use crate::four_bit::{FourBitCode, dynamic_u8, encode_blocks, nest};
use crate::{Bytes, FourBit, Isa, Scales};

/// Columns, rows and block size.
const SHAPES: [(usize, usize, usize); 4] = [(64, 37, 64), (4096, 9, 64), (130, 7, 64), (24, 5, 128)];

fn bytes(device: &Arc<Device>, bytes: &[u8]) -> Allocation {
    let memory = device.allocate(bytes.len() as u64).unwrap();
    device.upload(memory.address(), bytes);
    memory
}

fn download(memory: &Allocation) -> Vec<u8> {
    let mut bytes = vec![0; memory.bytes() as usize];
    memory.device().download(&mut bytes, memory.address()).unwrap();
    bytes
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

#[test]
#[expect(clippy::too_many_lines, reason = "one weight goes through every step")]
fn four_bits_are_encoded_nested_and_decoded_to_the_bit() {
    let Some(device) = device() else { return };
    let mut stream = Stream::new(61);
    for (code, (cols, rows, block)) in
        [FourBitCode::Nf4, FourBitCode::Fp4].into_iter().flat_map(|code| SHAPES.map(|shape| (code, shape)))
    {
        let (len, blocks) = (rows * cols, (rows * cols).div_ceil(block));
        let values = rounded(&mut stream, DType::Bf16, len);
        let (mut codes, mut absmax) = (vec![0; len.div_ceil(2)], vec![0.0; blocks]);
        encode_blocks(Isa::detect(), code, block, &values, &mut codes, &mut absmax);
        let table = code.table();
        let mut order: Vec<u8> = (0..16).collect();
        order.sort_by(|&a, &b| table[a as usize].total_cmp(&table[b as usize]));
        let bounds: Vec<f32> =
            order.windows(2).map(|pair| (table[pair[0] as usize] + table[pair[1] as usize]) / 2.0).collect();
        let (bounds, order) = (bytes(&device, &floats(&bounds)), bytes(&device, &order));
        let (found, scales) =
            (bytes(&device, &vec![0xee; codes.len()]), bytes(&device, &vec![0xff; 4 * blocks]));
        let weight = Values::new(&device, DType::Bf16, &values);
        let out = Encoded { codes: found.address(), absmax: scales.address() };
        let ladder = Ladder { bounds: bounds.address(), order: order.address() };
        device_four_bit::encode(&device, DType::Bf16, out, weight.ptr(), ladder, (len, block.ilog2()));
        assert_eq!(download(&found), codes, "codes of {code} {rows}x{cols}");
        assert_eq!(download(&scales), floats(&absmax), "scales of {code} {rows}x{cols}");

        let nested = nest(&absmax);
        let (scale_codes, scale_absmax) =
            (bytes(&device, &vec![0xee; blocks]), bytes(&device, &vec![0xff; 4 * nested.absmax.len()]));
        let (offset, scale_table) = (bytes(&device, &[0xff; 4]), bytes(&device, &floats(&dynamic_u8())));
        let to =
            Nested { codes: scale_codes.address(), absmax: scale_absmax.address(), offset: offset.address() };
        device_four_bit::nest(&device, to, scales.address(), scale_table.address(), blocks);
        assert_eq!(download(&scale_codes), nested.codes, "nested scales of {code} {rows}x{cols}");
        assert_eq!(download(&scale_absmax), floats(&nested.absmax));
        assert_eq!(download(&offset), nested.offset.to_le_bytes());

        let table_ = bytes(&device, &floats(table));
        let plain = FourBitParts {
            codes: found.address(),
            table: table_.address(),
            scale_codes: DevicePtr::NULL,
            scale_table: DevicePtr::NULL,
            absmax: scales.address(),
            offset: 0.0,
            block_shift: block.ilog2() as i32,
            scale_shift: 0,
            unused: 0,
        };
        let double = FourBitParts {
            scale_codes: scale_codes.address(),
            scale_table: scale_table.address(),
            absmax: scale_absmax.address(),
            offset: nested.offset,
            scale_shift: 8,
            ..plain
        };
        let host_scales = Scales::Nested {
            codes: Bytes::from_vec(nested.codes.clone()),
            table: Arc::new(dynamic_u8()),
            absmax: Bytes::from_f32(&nested.absmax),
            block_size: 256,
            offset: nested.offset,
        };
        for (parts, scales) in [(plain, Scales::Plain(Bytes::from_f32(&absmax))), (double, host_scales)] {
            let host = FourBit::new(Bytes::from_vec(codes.clone()), scales, *table, block, DType::Bf16, len);
            let mut expected = vec![0.0; len];
            host.decode(0..len, &mut expected);
            for dtype in DTYPES {
                let out = Values::poisoned(&device, dtype, len);
                device_four_bit::decode(&device, dtype, out.ptr(), &parts, (rows, cols));
                let expected = Values::new(&device, dtype, &expected).read();
                assert_eq!(out.read(), expected, "values of {code} {rows}x{cols} in {dtype:?}");
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
        let [codes_, table_, absmax] = [&codes, &floats(table), &floats(&scales)].map(|b| bytes(&device, b));
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
