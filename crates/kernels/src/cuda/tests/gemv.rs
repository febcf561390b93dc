use super::*;
use crate::cuda::ops::few_rows::FewRowsOut;
use crate::cuda::ops::gemv;
use crate::{Matrix, linear};

#[test]
fn few_rows_are_multiplied_with_dense_weights() {
    let Some(device) = device() else { return };
    let mut stream = Stream::new(63);
    for (n, outputs, cols) in [(1, &[40][..], 64), (3, &[65, 16, 33], 584), (8, &[136, 24], 1024)] {
        for (dtype, out_type) in dtypes(&device).flat_map(|dtype| [(dtype, dtype), (dtype, DType::F32)]) {
            let inp = rounded(&mut stream, dtype, n * cols);
            let x = Values::new(&device, dtype, &inp);
            let cases: Vec<_> = outputs
                .iter()
                .enumerate()
                .map(|(i, &outputs)| {
                    let weight = rounded(&mut stream, dtype, outputs * cols);
                    let mut expected = vec![0.0; n * outputs];
                    linear::forward(&mut expected, &inp, &Matrix::from_f32(&weight, outputs, cols), n);
                    let added = rounded(&mut stream, out_type, n * outputs);
                    if i % 2 == 1 {
                        expected.iter_mut().zip(&added).for_each(|(e, a)| *e += a);
                    }
                    let out = Values::poisoned(&device, out_type, n * outputs);
                    (
                        Values::new(&device, dtype, &weight),
                        Values::new(&device, out_type, &added),
                        out,
                        expected,
                    )
                })
                .collect();
            let outs: Vec<FewRowsOut> = (cases.iter().zip(outputs).enumerate())
                .map(|(i, ((_, added, out, _), &outputs))| FewRowsOut {
                    out: Rows::dense(out.ptr(), outputs),
                    add: (i % 2 == 1).then_some(Rows::dense(added.ptr(), outputs)),
                    outputs,
                })
                .collect();
            let weights: Vec<DevicePtr> = cases.iter().map(|(weight, ..)| weight.ptr()).collect();
            let from = Rows::dense(x.ptr(), cols);
            assert!(gemv::forward(&device, dtype, (&outs, out_type), from, &weights, (n, cols)));
            for (_, _, out, expected) in &cases {
                let what = format!("{n} rows of {outputs:?} x {cols} in {dtype:?}");
                assert_near(&out.read(), expected, out_type, &what);
            }
        }
    }
}
