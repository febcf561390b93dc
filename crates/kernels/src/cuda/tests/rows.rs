use super::*;
use crate::cuda::ops::rows::{self, GatherShape};
use crate::row_ops;

#[test]
fn rows_are_gathered_summed_back_and_scattered() {
    let Some(device) = device() else { return };
    let mut stream = Stream::new(51);
    for (dtype, cols) in dtypes(&device).flat_map(|dtype| [24, 257, 4096].map(|cols| (dtype, cols))) {
        let (n, count) = (9, 300);
        let inp = rounded(&mut stream, dtype, n * cols);
        let list: Vec<u32> = (0..count).map(|_| stream.next_below(n as u64 - 1) as u32).collect();
        let (on_device, indices) = (Values::new(&device, dtype, &inp), words(&device, &list));
        let dense = |values: &Values| Rows::dense(values.ptr(), cols);
        let out = Values::poisoned(&device, dtype, count * cols);
        rows::gather_rows(&device, dtype, dense(&out), dense(&on_device), indices.address(), (count, cols));
        let mut gathered = vec![0.0; count * cols];
        row_ops::gather_rows(&mut gathered, &inp, &list, cols);
        assert_eq!(out.read(), gathered, "gather {dtype:?} {cols}");

        let dinp = Values::poisoned(&device, dtype, n * cols);
        let shape = GatherShape { n, count, cols };
        rows::gather_rows_backward(&device, dtype, dense(&dinp), dense(&out), indices.address(), shape);
        let mut expected = vec![0.0; n * cols];
        row_ops::add_rows(&mut expected, &gathered, &list, cols);
        assert_near(&dinp.read(), &expected, dtype, "gather backward");

        let distinct = words(&device, &[7, 0, 3]);
        let (spread, zeros) = (Values::new(&device, dtype, &inp), vec![0.0; n * cols]);
        let other = Values::new(&device, dtype, &zeros);
        let (to, from) = ([dense(&other), dense(&spread)], [dense(&on_device), dense(&out)]);
        rows::scatter_rows(&device, dtype, to, from, distinct.address(), (3, cols));
        let mut expected = inp.clone();
        for (i, row) in [7, 0, 3].into_iter().enumerate() {
            expected[row * cols..][..cols].copy_from_slice(&gathered[i * cols..][..cols]);
        }
        assert_eq!(spread.read(), expected, "scatter {dtype:?} {cols}");
        assert_eq!(other.read()[3 * cols..4 * cols], inp[2 * cols..3 * cols], "scatter {dtype:?} {cols}");

        rows::add(&device, dtype, spread.ptr(), on_device.ptr(), n * cols);
        row_ops::add(&mut expected, &inp);
        assert_near(&spread.read(), &expected, dtype, "add");
    }
}

#[test]
fn a_bias_is_added_to_each_row() {
    let Some(device) = device() else { return };
    let mut stream = Stream::new(52);
    for (dtype, cols) in dtypes(&device).flat_map(|dtype| [24, 257, 4096].map(|cols| (dtype, cols))) {
        let (n, bias) = (7, rounded(&mut stream, DType::F32, cols));
        let mut expected = rounded(&mut stream, dtype, n * cols);
        let out = Values::new(&device, dtype, &expected);
        let on_device = Values::new(&device, DType::F32, &bias);
        rows::add_bias(&device, dtype, Rows::dense(out.ptr(), cols), on_device.ptr(), (n, cols));
        row_ops::add_bias(&mut expected, &bias);
        assert_near(&out.read(), &expected, dtype, "bias");
    }
}
