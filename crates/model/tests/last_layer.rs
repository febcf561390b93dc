//! After the last attention, only the rows whose losses or logits are needed are computed. The results do not
//! change.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{FlatAdapter, backends, relative_to_max, write_random_model};
use danlu_kernels::{Backend, Cpu, CpuOptions, DType, Element, Isa, Reference};
use danlu_model::{Batch, Decoder, DropoutPlan, LabeledSequence, LoraRows, SlotInput, Workspace};

/// Returns a sequence of `tokens` tokens. The last `labels` tokens are trained.
fn sequence(tokens: usize, labels: usize) -> LabeledSequence {
    let ids = (0..tokens as u32).map(|i| (i * 7 + tokens as u32) % 50).collect();
    LabeledSequence { ids, trained: (0..tokens).map(|i| i + labels >= tokens).collect() }
}

fn load(folder: &Path, backend: Arc<dyn Backend>) -> (Decoder, FlatAdapter) {
    let decoder = Decoder::load(folder, backend).unwrap();
    let adapter = FlatAdapter::random(decoder.config(), &**decoder.backend(), 3);
    (decoder, adapter)
}

/// Returns the losses of several passes, and the sum of their gradients. Each sequence of a pass is one
/// micro-batch.
fn trained(
    (decoder, adapter): &(Decoder, FlatAdapter),
    dropout: bool,
    passes: &[&[LabeledSequence]],
) -> (Vec<f32>, Vec<f32>) {
    let (be, mut work, mut losses, mut micro) = (decoder.backend(), Workspace::new(), Vec::new(), 0);
    let mut grads = be.alloc(adapter.params.len(), Element::Exact);
    for sequences in passes {
        let (mut batch, mut lora) = (Batch::default(), Vec::new());
        for sequence in *sequences {
            let start = batch.rows();
            batch.append(&Batch::new([sequence]));
            micro += 1;
            let dropout = dropout.then_some(DropoutPlan { probability: 0.3, key: micro });
            lora.push(LoraRows { rows: start..batch.rows(), source: adapter, dropout, noise: None });
        }
        losses.extend(decoder.losses_and_gradients(&mut work, &batch, &lora, 0.5, &mut grads).unwrap());
    }
    let mut values = vec![0.0; grads.len()];
    be.read(&mut values, &grads, 0).unwrap();
    (losses, values)
}

#[test]
fn few_labels_have_the_losses_and_gradients_of_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    write_random_model(folder.path());
    let reference = load(folder.path(), Arc::new(Reference::new()));
    for labels in [[0, 0, 0, 0], [0, 1, 0, 0], [5, 0, 3, 0], [2, 2, 5, 0], [5, 2, 19, 4]] {
        let sequences: Vec<_> =
            [6, 3, 20, 5].into_iter().zip(labels).map(|(tokens, labels)| sequence(tokens, labels)).collect();
        let batch = Batch::new(&sequences);
        let logits = reference.0.logits(&mut Workspace::new(), &batch, Some(&reference.1)).unwrap();
        let expected: Vec<f32> = batch
            .label_rows
            .iter()
            .zip(&batch.targets)
            .map(|(&row, &target)| {
                let row = &logits[row as usize * 50..][..50];
                let sum: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
                (sum.ln() - f64::from(row[target as usize])) as f32
            })
            .collect();
        let (_, expected_gradients) = trained(&reference, false, &[&sequences]);
        for backend in backends() {
            let name = backend.name();
            let found = load(folder.path(), backend);
            let evaluated = found.0.losses(&mut Workspace::new(), &batch, Some(&found.1)).unwrap();
            let (losses, gradients) = trained(&found, false, &[&sequences]);
            if expected.is_empty() {
                assert!(losses.is_empty() && evaluated.is_empty(), "{name}");
                assert!(gradients.iter().all(|&gradient| gradient == 0.0), "{name}");
                continue;
            }
            for (found, expected) in
                [(&losses, &expected), (&evaluated, &expected), (&gradients, &expected_gradients)]
            {
                let difference = relative_to_max(found, expected);
                // The f32 sums are added in a different order.
                assert!(difference < 1e-5, "{name}, {labels:?}: {difference}");
            }
        }
    }
}

#[test]
fn small_micro_batches_give_the_same_bits_alone_and_together() {
    let folder = tempfile::tempdir().unwrap();
    write_random_model(folder.path());
    let sizes = [(6, 0), (3, 1), (1, 0), (20, 8), (2, 1), (40, 17), (12, 9)];
    let micros = sizes.map(|(tokens, labels)| sequence(tokens, labels));
    let cpu = |isa, dtype| Cpu::new(CpuOptions { threads: Some(2), isa: Some(isa), dtype });
    for isa in Isa::supported() {
        for dtype in [DType::F32, DType::Bf16] {
            let model = load(folder.path(), Arc::new(cpu(isa, dtype)));
            let apart: Vec<&[LabeledSequence]> = micros.chunks(1).collect();
            let apart = trained(&model, true, &apart);
            for cut in 1..=micros.len() {
                let (first, rest) = micros.split_at(cut);
                let together = trained(&model, true, &[first, rest]);
                assert_eq!(together, apart, "{isa} {dtype:?}, {cut}");
            }
        }
    }
}

#[test]
fn a_prompts_logits_are_those_of_its_last_row() {
    let folder = tempfile::tempdir().unwrap();
    write_random_model(folder.path());
    for backend in backends() {
        // The order of summation for a single row may differ from the order for many rows. The reference
        // always uses the same order.
        let tolerance = if backend.name() == Reference::new().name() { 0.0 } else { 1e-5 };
        let (decoder, adapter) = load(folder.path(), backend);
        let mut work = Workspace::new();
        for lengths in [[1, 1], [9, 4], [30, 11]] {
            let prompts = lengths.map(|tokens| sequence(tokens, 0));
            let mut cache = decoder.new_cache();
            let input = |prompt| SlotInput::new(cache.add(30), prompt, Some(&adapter));
            let inputs = prompts.each_ref().map(|prompt| &prompt.ids[..]).map(input);
            let found = decoder.prefill(&mut work, &mut cache, &inputs).unwrap();
            for (prompt, found) in prompts.iter().zip(found.chunks(50)) {
                let all = decoder.logits(&mut work, &Batch::new([prompt]), Some(&adapter)).unwrap();
                let difference = relative_to_max(found, &all[all.len() - 50..]);
                assert!(difference <= tolerance, "{}, {lengths:?}: {difference}", decoder.backend().name());
            }
        }
    }
}
