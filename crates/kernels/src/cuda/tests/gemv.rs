use super::*;
use crate::cuda::ops::gemv;
use crate::{Matrix, linear};

#[test]
fn few_rows_are_multiplied_with_a_dense_weight() {
    let Some(device) = device() else { return };
    let mut stream = Stream::new(63);
    for (n, outputs, cols) in [(1, 40, 64), (3, 65, 584), (8, 136, 1024)] {
        for (dtype, out_type) in DTYPES.into_iter().flat_map(|dtype| [(dtype, dtype), (dtype, DType::F32)]) {
            let (weight, inp) =
                (rounded(&mut stream, dtype, outputs * cols), rounded(&mut stream, dtype, n * cols));
            let mut expected = vec![0.0; n * outputs];
            linear::forward(&mut expected, &inp, &Matrix::from_f32(&weight, outputs, cols), n);
            let (w, x) = (Values::new(&device, dtype, &weight), Values::new(&device, dtype, &inp));
            let out = Values::poisoned(&device, out_type, n * outputs);
            let (to, from) = ((Rows::dense(out.ptr(), outputs), out_type), Rows::dense(x.ptr(), cols));
            assert!(gemv::forward(&device, dtype, to, from, w.ptr(), (n, outputs, cols)));
            assert_near(
                &out.read(),
                &expected,
                out_type,
                &format!("{n} rows of {outputs}x{cols} in {dtype:?}"),
            );
        }
    }
}
