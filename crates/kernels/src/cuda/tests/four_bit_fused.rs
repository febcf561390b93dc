use super::*;
use crate::cuda::blas::Direction;
use crate::cuda::ops::four_bit::FourBitParts;
use crate::cuda::ops::four_bit_fused::{self, FusedShape};
use crate::four_bit::NF4;
use crate::{Bytes, FourBit, Matrix, Scales, Store, linear};

/// Returns a random 4-bit weight, and its values rounded to bf16.
fn weight(
    device: &Arc<Device>,
    outputs: usize,
    cols: usize,
    stream: &mut Stream,
) -> (Vec<Allocation>, FourBitParts, Matrix) {
    let codes: Vec<u8> = (0..outputs * cols / 2).map(|_| stream.next_bits() as u8).collect();
    let scales = rounded(stream, DType::F32, outputs * cols / 64);
    let floats = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let memory = [&codes, &floats(&NF4), &floats(&scales)].map(|bytes| {
        let memory = device.allocate(bytes.len() as u64).unwrap();
        device.upload(memory.address(), bytes);
        memory
    });
    let [at, table, absmax] = [0, 1, 2].map(|i: usize| memory[i].address());
    let parts = FourBitParts {
        codes: at,
        table,
        scale_codes: DevicePtr::NULL,
        scale_table: DevicePtr::NULL,
        absmax,
        offset: 0.0,
        block_shift: 6,
        scale_shift: 0,
        unused: 0,
    };
    let scales = Scales::Plain(Bytes::from_f32(&scales));
    let host = FourBit::new(Bytes::from_vec(codes), scales, NF4, 64, DType::Bf16, outputs * cols);
    let mut values = vec![0.0; outputs * cols];
    host.decode(0..values.len(), &mut values);
    let values = Values::new(device, DType::Bf16, &values).read();
    (memory.into(), parts, Matrix::from_f32(&values, outputs, cols))
}

#[test]
fn fused_products_of_4_bits_equal_those_of_decoded_weights() {
    let Some(device) = device() else { return };
    if !device.has("four_bit_fused_forward", DType::Bf16) {
        eprintln!("skipped: no fused product for this architecture");
        return;
    }
    let mut stream = Stream::new(64);
    for (n, outputs, cols) in [(1, 128, 64), (37, 200, 192), (128, 264, 576)] {
        let (_memory, parts, matrix) = weight(&device, outputs, cols, &mut stream);
        for direction in [Direction::Forward, Direction::Backward] {
            let (width, depth) = match direction {
                Direction::Forward => (outputs, cols),
                Direction::Backward => (cols, outputs),
            };
            let inp = rounded(&mut stream, DType::Bf16, n * depth);
            let start = rounded(&mut stream, DType::Bf16, n * width);
            let mut expected = vec![0.0; n * width];
            match direction {
                Direction::Forward => linear::forward(&mut expected, &inp, &matrix, n),
                Direction::Backward => linear::backward(&mut expected, Store::Overwrite, &inp, &matrix, n),
            }
            let (x, base) =
                (Values::new(&device, DType::Bf16, &inp), Values::new(&device, DType::Bf16, &start));
            let shape = FusedShape { direction, n, outputs, cols };
            for adds in [false, true] {
                let out = Values::poisoned(&device, DType::Bf16, n * width);
                let add = adds.then_some(Rows::dense(base.ptr(), width));
                let to = (Rows::dense(out.ptr(), width), add);
                let from = Rows::dense(x.ptr(), depth);
                assert!(four_bit_fused::launch(&device, DType::Bf16, to, from, &parts, shape));
                let plus = if adds { start.clone() } else { vec![0.0; n * width] };
                let expected: Vec<f32> = expected.iter().zip(plus).map(|(e, s)| e + s).collect();
                assert_near(&out.read(), &expected, DType::Bf16, &format!("{shape:?}"));
            }
        }
    }
}
