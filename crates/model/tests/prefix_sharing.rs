//! Shared prefixes are computed once. The results do not change.

mod common;

use common::{FlatAdapter, backends, relative_to_max, write_random_model};
use danlu_model::{Batch, Decoder, LabeledSequence, LoraRows, Workspace};

/// Returns two groups of sequences, and one more sequence. The sequences of a group have a common prefix.
fn sequences() -> Vec<LabeledSequence> {
    let sequence = |beginning: &[u32], rest: &[u32], trained: usize| {
        let ids = [beginning, rest].concat();
        let trained = (0..ids.len()).map(|i| i + trained >= ids.len()).collect();
        LabeledSequence { ids, trained }
    };
    let (one, other) = ([0, 9, 8, 7, 6, 5, 4, 3, 2, 30, 31], [0, 20, 21, 22, 23]);
    vec![
        sequence(&one, &[11, 12, 13], 2),
        sequence(&other, &[11, 12, 13, 14, 15], 3),
        sequence(&one, &[14, 13], 1),
        sequence(&[40, 41, 42], &[], 2),
        sequence(&one, &[11, 12, 15, 16], 2),
        sequence(&other, &[49], 1),
    ]
}

#[test]
fn losses_and_gradients_are_those_of_each_sequence_alone() {
    let folder = tempfile::tempdir().unwrap();
    write_random_model(folder.path());
    let sequences = sequences();
    let together = [Batch::new(&sequences)];
    let alone: Vec<Batch> = sequences.iter().map(|sequence| Batch::new([sequence])).collect();
    let tokens: usize = sequences.iter().map(|sequence| sequence.ids.len()).sum();
    // In two sequences, sharing saves all 11 rows of the first prefix. In one sequence, sharing saves 4 of
    // the 5 rows of the second prefix, because its last row has a label. The first sequence with the second
    // prefix saves one row, because both prefixes begin with the same token.
    assert_eq!((together[0].tokens(), together[0].rows()), (tokens, tokens - 2 * 11 - 4 - 1));
    for backend in backends() {
        let decoder = Decoder::load(folder.path(), backend.clone()).unwrap();
        let adapter = FlatAdapter::random(decoder.config(), &*backend, 3);
        let numbers = |batches: &[Batch]| {
            let (mut work, mut losses) = (Workspace::new(), Vec::new());
            let mut grads = backend.alloc(adapter.params.len(), danlu_kernels::Element::Exact);
            for batch in batches {
                let rows = LoraRows::all(&adapter, batch.rows());
                losses.extend(
                    decoder.losses_and_gradients(&mut work, batch, &[rows], 0.5, &mut grads).unwrap(),
                );
            }
            let mut values = vec![0.0; grads.len()];
            backend.read(&mut values, &grads, 0).unwrap();
            (losses, values)
        };
        let ((found, found_grads), (losses, grads)) = (numbers(&together), numbers(&alone));
        let name = backend.name();
        // The gradients of shared rows are added in a different order, so they may differ by rounding.
        assert!(relative_to_max(&found, &losses) < 2e-6, "{name}");
        assert!(relative_to_max(&found_grads, &grads) < 1e-5, "{name}");
        let evaluated = decoder.losses(&mut Workspace::new(), &together[0], Some(&adapter)).unwrap();
        assert!(relative_to_max(&evaluated, &losses) < 2e-6, "{name}");
    }
}
