//! Properties of the decoder, on a small random model.

mod common;

use std::sync::Arc;

use common::{FlatAdapter, relative_to_max, write_random_model};
use danlu_kernels::{Element, Reference};
use danlu_model::{Batch, Decoder, DropoutPlan, LabeledSequence, LoraRows, ModelError, Workspace};

fn random_decoder() -> (tempfile::TempDir, Decoder) {
    let folder = tempfile::tempdir().unwrap();
    write_random_model(folder.path());
    let decoder = Decoder::load(folder.path(), Arc::new(Reference::new())).unwrap();
    (folder, decoder)
}

fn sequences() -> [LabeledSequence; 3] {
    let make = |ids: &[u32], from: usize| LabeledSequence {
        ids: ids.to_vec(),
        trained: (0..ids.len()).map(|i| i >= from).collect(),
    };
    [make(&[0, 7, 9, 3, 21, 1], 3), make(&[0, 4, 1], 2), make(&[0, 30, 31, 32, 33, 1, 8], 1)]
}

#[test]
fn packed_sequences_do_not_see_each_other() {
    let (_folder, decoder) = random_decoder();
    let mut work = Workspace::new();
    let together = decoder.losses(&mut work, &Batch::new(&sequences()), None).unwrap();
    let alone: Vec<f32> =
        sequences().iter().flat_map(|s| decoder.losses(&mut work, &Batch::new([s]), None).unwrap()).collect();
    assert_eq!(together, alone);
}

#[test]
fn logits_in_parts_equal_those_of_all_rows() {
    let folder = tempfile::tempdir().unwrap();
    common::write_random_model(folder.path());
    for backend in common::backends() {
        let decoder = Decoder::load(folder.path(), backend).unwrap();
        let adapter = FlatAdapter::random(decoder.config(), &**decoder.backend(), 2);
        let sequence =
            LabeledSequence { ids: (0..11).map(|i| i * 4 % 50).collect(), trained: vec![false; 11] };
        let (batch, mut work) = (Batch::new([&sequence]), Workspace::new());
        let all = decoder.logits(&mut work, &batch, Some(&adapter)).unwrap();
        let states = decoder.hidden_states(&mut work, &batch, Some(&adapter)).unwrap();
        let parts = [0..4, 4..5, 5..11].map(|rows| decoder.logits_of(&mut work, &states, rows).unwrap());
        // A matrix multiplication of fewer rows may sum in a different order, so the results may differ by
        // rounding.
        assert!(common::relative_to_max(&parts.concat(), &all) < 1e-6, "{}", decoder.backend().name());
    }
}

#[test]
fn losses_agree_with_logits() {
    let (_folder, decoder) = random_decoder();
    let mut work = Workspace::new();
    let batch = Batch::new(&sequences());
    let losses = decoder.losses(&mut work, &batch, None).unwrap();
    let logits = decoder.logits(&mut work, &batch, None).unwrap();
    for ((&row, &target), loss) in batch.label_rows.iter().zip(&batch.targets).zip(losses) {
        let row = &logits[row as usize * 50..][..50];
        let log_sum: f64 = row.iter().map(|&l| (l as f64).exp()).sum::<f64>().ln();
        assert!((loss as f64 - (log_sum - row[target as usize] as f64)).abs() < 1e-5);
    }
}

#[test]
fn gradients_match_finite_differences() {
    let (_folder, decoder) = random_decoder();
    let backend = decoder.backend().clone();
    let mut adapter = FlatAdapter::random(decoder.config(), &*backend, 3);
    let (mut work, batch) = (Workspace::new(), Batch::new(&sequences()));
    for dropout in [None, Some(DropoutPlan { probability: 0.3, key: 5 })] {
        let count = adapter.params.len();
        let gradients_of = |adapter: &FlatAdapter, work: &mut Workspace| {
            let mut grads = backend.alloc(count, Element::Exact);
            let rows = LoraRows { dropout, ..LoraRows::all(adapter, batch.rows()) };
            let losses = decoder.losses_and_gradients(work, &batch, &[rows], 0.5, &mut grads).unwrap();
            (losses.iter().map(|&l| l as f64).sum::<f64>(), grads)
        };
        let (_, grads) = gradients_of(&adapter, &mut work);
        let mut analytic = vec![0.0; count];
        backend.read(&mut analytic, &grads, 0).unwrap();
        let scale = analytic.iter().fold(0f32, |m, g| m.max(g.abs()));
        for i in (0..count).step_by(37) {
            let mut value = [0.0];
            backend.read(&mut value, &adapter.params, i).unwrap();
            let step = 1e-2;
            let mut sides = [0.0; 2];
            for (side, shift) in sides.iter_mut().zip([step, -step]) {
                backend.write(&mut adapter.params, i, &[value[0] + shift]);
                *side = gradients_of(&adapter, &mut work).0;
            }
            backend.write(&mut adapter.params, i, &value);
            let numeric = (0.5 * (sides[0] - sides[1]) / (2.0 * step as f64)) as f32;
            // The error is about 1e-4 of the largest gradient. Its sources are the third-order term of the
            // step and the rounding of f32 losses.
            assert!((numeric - analytic[i]).abs() < 2e-3 * scale, "{i}: {numeric} against {}", analytic[i]);
        }
    }
}

#[test]
fn gradients_accumulate_over_micro_batches() {
    let (_folder, decoder) = random_decoder();
    let backend = decoder.backend().clone();
    let adapter = FlatAdapter::random(decoder.config(), &*backend, 3);
    let mut work = Workspace::new();
    let run = |batches: &[Batch], work: &mut Workspace| {
        let mut grads = backend.alloc(adapter.params.len(), Element::Exact);
        for batch in batches {
            let rows = LoraRows::all(&adapter, batch.rows());
            decoder.losses_and_gradients(work, batch, &[rows], 1.0, &mut grads).unwrap();
        }
        let mut values = vec![0.0; grads.len()];
        backend.read(&mut values, &grads, 0).unwrap();
        values
    };
    let [a, b, c] = sequences();
    let together = run(&[Batch::new([&a, &b, &c])], &mut work);
    let apart = run(&[Batch::new([&a]), Batch::new([&b, &c])], &mut work);
    assert!(relative_to_max(&apart, &together) < 1e-5);
}

#[test]
fn adapters_on_the_top_layer_alone_get_the_same_gradients() {
    let (_folder, decoder) = random_decoder();
    let backend = decoder.backend().clone();
    let everywhere = FlatAdapter::random(decoder.config(), &*backend, 3);
    let mut values = vec![0.0; everywhere.params.len()];
    backend.read(&mut values, &everywhere.params, 0).unwrap();
    let split = everywhere.modules.iter().find(|m| m.0 == 1).unwrap().2;
    // With zero A and B, the adapter does not change the output of layer 0. But the backward pass has to run
    // through both layers.
    let zeroed = FlatAdapter::new(decoder.config(), &*backend, 3, 2.0, |layer, p, side, len| {
        let m = everywhere.modules.iter().find(|m| (m.0, m.1) == (layer, p)).unwrap();
        let start = if side == "A" { m.2 } else { m.3 };
        Some(if layer == 0 { vec![0.0; len] } else { values[start..start + len].to_vec() })
    });
    let top = FlatAdapter::new(decoder.config(), &*backend, 3, 2.0, |layer, p, side, len| {
        let m = everywhere.modules.iter().find(|m| (m.0, m.1) == (layer, p)).unwrap();
        let start = if side == "A" { m.2 } else { m.3 };
        (layer == 1).then(|| values[start..start + len].to_vec())
    });
    let (mut work, batch) = (Workspace::new(), Batch::new(&sequences()));
    let mut run = |adapter: &FlatAdapter| {
        let mut grads = backend.alloc(adapter.params.len(), Element::Exact);
        let rows = LoraRows::all(adapter, batch.rows());
        decoder.losses_and_gradients(&mut work, &batch, &[rows], 1.0, &mut grads).unwrap();
        let mut out = vec![0.0; grads.len()];
        backend.read(&mut out, &grads, 0).unwrap();
        out
    };
    let (whole, partial) = (run(&zeroed), run(&top));
    assert!(relative_to_max(&partial, &whole[split..]) < 1e-6);
}

#[test]
fn ids_outside_the_vocabulary_are_refused() {
    let (_folder, decoder) = random_decoder();
    let sequence = LabeledSequence { ids: vec![0, 50], trained: vec![false, true] };
    let error = decoder.losses(&mut Workspace::new(), &Batch::new([&sequence]), None).unwrap_err();
    assert!(matches!(error, ModelError::TokenOutOfRange { id: 50, vocab_size: 50 }));
}
