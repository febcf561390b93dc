//! Activation policies change memory and time, but no result.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{FlatAdapter, write_random_model};
use danlu_kernels::{Backend, Cpu, CpuOptions, DType, Element, Footprint, Reference, Trace};
use danlu_model::{
    ActivationPolicy, Batch, Decoder, DropoutPlan, LabeledSequence, LoraRows, ModelConfig, Workspace,
};

use ActivationPolicy::{KeepAll, KeepSome, Recompute};

const POLICIES: [ActivationPolicy; 3] = [KeepAll, KeepSome, Recompute];

/// Returns a batch of sequences with these lengths. The sequences have a common prefix up to the first label.
fn batch(lengths: &[usize]) -> Batch {
    let sequence = |&len: &usize| LabeledSequence {
        ids: (0..len as u32).map(|i| i * 7 % 50).collect(),
        trained: (0..len).map(|i| i % 3 > 0 && (i > 4 || i + 1 == len)).collect(),
    };
    Batch::new(&lengths.iter().map(sequence).collect::<Vec<_>>())
}

/// Returns the losses and gradients of batches that grow and shrink. Evaluations run between these batches.
fn numbers(
    decoder: &Decoder,
    adapter: &FlatAdapter,
    policies: &[ActivationPolicy],
    dropout: Option<DropoutPlan>,
) -> Vec<Vec<f32>> {
    let backend = decoder.backend();
    let (mut work, mut found) = (Workspace::with_policies(policies.to_vec()), Vec::new());
    assert!(batch(&[20, 3, 11]).rows() < 34, "rows are shared too");
    for lengths in [&[5, 9][..], &[20, 3, 11], &[6]] {
        let mut grads = backend.alloc(adapter.params.len(), Element::Exact);
        found.push(decoder.losses(&mut work, &batch(&[30, 7]), Some(adapter)).unwrap());
        let batch = batch(lengths);
        let rows = LoraRows { dropout, ..LoraRows::all(adapter, batch.rows()) };
        let losses = decoder.losses_and_gradients(&mut work, &batch, &[rows], 0.5, &mut grads);
        found.push(losses.unwrap());
        let mut values = vec![0.0; grads.len()];
        backend.read(&mut values, &grads, 0).unwrap();
        found.push(values);
    }
    found
}

#[test]
fn no_mix_of_policies_changes_a_bit_of_losses_or_gradients() {
    let folder = tempfile::tempdir().unwrap();
    write_random_model(folder.path());
    let cpu = |dtype| Cpu::new(CpuOptions { threads: Some(2), isa: None, dtype });
    let backends: [Arc<dyn Backend>; 3] =
        [Arc::new(Reference::new()), Arc::new(cpu(DType::F32)), Arc::new(cpu(DType::Bf16))];
    for backend in backends {
        let decoder = Decoder::load(folder.path(), backend.clone()).unwrap();
        let adapter = FlatAdapter::random(decoder.config(), &*backend, 3);
        for dropout in [None, Some(DropoutPlan { probability: 0.3, key: 5 })] {
            let expected = numbers(&decoder, &adapter, &[KeepAll; 2], dropout);
            for mix in POLICIES.iter().flat_map(|&first| POLICIES.map(|second| [first, second])) {
                let found = numbers(&decoder, &adapter, &mix, dropout);
                assert_eq!(found, expected, "{} {mix:?} {dropout:?}", backend.name());
            }
        }
    }
}

#[test]
fn policies_do_not_change_results_without_adapters_in_lower_layers() {
    let folder = tempfile::tempdir().unwrap();
    write_random_model(folder.path());
    let decoder = Decoder::load(folder.path(), Arc::new(Reference::new())).unwrap();
    let config = decoder.config().clone();
    let upper = FlatAdapter::new(&config, &Reference::new(), 2, 1.0, |layer, _, _, len| {
        (layer == 1).then(|| (0..len).map(|i| (i % 5) as f32 * 0.1 - 0.2).collect())
    });
    let expected = numbers(&decoder, &upper, &[KeepAll; 2], None);
    assert_eq!(numbers(&decoder, &upper, &[Recompute, KeepSome], None), expected);
}

/// Returns the memory and the work of a training step over one batch with these policies.
fn footprint(config: &ModelConfig, policies: &[ActivationPolicy]) -> Footprint {
    let trace = Arc::new(Trace::new(CpuOptions::default()));
    let decoder = Decoder::trace(config.clone(), trace.clone());
    let adapter = FlatAdapter::random(config, &*trace, 3);
    let mut grads = trace.alloc(adapter.params.len(), Element::Exact);
    let mut work = Workspace::with_policies(policies.to_vec());
    let batch = batch(&[20, 30]);
    let rows = LoraRows::all(&adapter, batch.rows());
    let losses = decoder.losses_and_gradients(&mut work, &batch, &[rows], 1.0, &mut grads).unwrap();
    assert_eq!(losses, vec![0.0; batch.trained_tokens()]);
    trace.footprint()
}

fn deep(folder: &Path) -> ModelConfig {
    write_random_model(folder);
    let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let path = folder.join("config.json");
    ModelConfig::parse(&path, text.replace(r#""num_hidden_layers":2"#, r#""num_hidden_layers":8"#).as_bytes())
        .unwrap()
}

#[test]
fn storing_less_saves_memory_and_counts_the_recomputation() {
    let folder = tempfile::tempdir().unwrap();
    let config = deep(folder.path());
    assert_eq!(config.num_hidden_layers, 8);
    let mix = |some: usize, recompute: usize| {
        let policy = |layer| match layer {
            _ if layer < recompute => Recompute,
            _ if layer < some => KeepSome,
            _ => KeepAll,
        };
        footprint(&config, &(0..8).map(policy).collect::<Vec<_>>())
    };
    let all = mix(0, 0);
    // A single layer with this policy moves its buffers to the shared set. This saves no memory until a
    // second layer shares the set.
    assert_eq!(mix(1, 0).peak, all.peak);
    let mut before = all;
    for next in (2..=8).map(|some| mix(some, 0)).chain((2..=8).map(|recompute| mix(8, recompute))) {
        assert!(next.peak < before.peak && next.flops >= before.flops);
        before = next;
    }
    // The work grows by at most a third, because the head and the last matrix multiplication of every block
    // are not repeated.
    assert!(before.flops > all.flops && before.flops < all.flops * 4 / 3, "{} {}", before.flops, all.flops);
}
