use super::operations::Both;
use super::*;
use crate::{Backend, Element, Matrix};

#[test]
fn a_repeated_sequence_becomes_a_graph_with_the_same_results() {
    if device().is_none() {
        return;
    }
    for (n, dtype) in [(1, DType::F16), (1, DType::F32), (24, DType::F16)] {
        let mut both = Both::open(dtype, 61).unwrap();
        let (cols, outputs) = (256, 512);
        let weight = rounded(&mut both.stream, DType::F32, outputs * cols);
        let weight = both.cuda.place(&[Matrix::from_f32(&weight, outputs, cols)]).unwrap();
        let norm = both.values(cols, Element::Exact);
        let [mut inp, mut normed] = [(); 2].map(|()| both.values(n * cols, Element::Activation).device);
        let mut rstd = both.values(n, Element::Exact).device;
        let mut out = both.values(n * outputs, Element::Activation).device;
        let cuda = &both.cuda;
        for pass in 0..6 {
            let values: Vec<f32> = (0..n * cols).map(|i| ((i * (pass + 3)) % 17) as f32 - 8.0).collect();
            cuda.write(&mut inp, 0, &values);
            let mut results = Vec::new();
            for is_sequence in [false, true] {
                cuda.zero(&mut out, n * outputs);
                let mut run = || {
                    cuda.rmsnorm_forward(&mut normed, &mut rstd, &inp, &norm.device, 1e-5, n);
                    cuda.linear_forward(&mut out, &normed, &weight[0], n);
                    cuda.add(&mut normed, &inp, n * cols);
                };
                if is_sequence {
                    cuda.run_sequence(&mut run)
                } else {
                    run()
                }
                results.push((both.read(&out, n * outputs), both.read(&normed, n * cols)));
            }
            assert!(results[0] == results[1], "pass {pass}");
        }
        // The first pass only stores the hash of the sequence.
        assert_eq!(cuda.replays(), 5, "{n} rows in {dtype:?}");
    }
}

#[test]
fn a_sequence_with_another_operand_is_not_replayed() {
    let Some(mut both) = (device().is_some()).then(|| Both::open(DType::F16, 62).unwrap()) else { return };
    let len = 512;
    let [mut sum, one, other] = [(); 3].map(|()| both.values(len, Element::Activation).device);
    let [ones, others] = [&one, &other].map(|buffer| both.read(buffer, len));
    for (i, (addend, values)) in [(&one, &ones), (&other, &others)].into_iter().cycle().take(8).enumerate() {
        both.cuda.zero(&mut sum, len);
        both.cuda.run_sequence(&mut || both.cuda.add(&mut sum, addend, len));
        assert_eq!(&both.read(&sum, len), values, "sequence {i}");
    }
    assert_eq!(both.cuda.replays(), 6);
}

#[test]
fn an_upload_inside_a_sequence_keeps_the_order() {
    let Some(mut both) = (device().is_some()).then(|| Both::open(DType::F16, 63).unwrap()) else { return };
    let len = 300;
    let [mut sum, mut addend] = [(); 2].map(|()| both.values(len, Element::Activation).device);
    for _ in 0..3 {
        let Both { cuda, .. } = &both;
        cuda.write(&mut sum, 0, &vec![1.0; len]);
        cuda.write(&mut addend, 0, &vec![2.0; len]);
        cuda.run_sequence(&mut || {
            cuda.add(&mut sum, &addend, len);
            cuda.write(&mut addend, 0, &vec![4.0; len]);
            cuda.add(&mut sum, &addend, len);
        });
        assert_eq!(both.read(&sum, len), vec![7.0; len]);
    }
    assert_eq!(both.cuda.replays(), 0, "an interrupted sequence is no graph");
}
