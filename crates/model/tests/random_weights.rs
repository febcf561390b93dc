//! The bytes of random weights are the same in memory and on the disk, in one file or in several files.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use danlu_kernels::{FourBitCode, Reference};
use danlu_model::{
    Batch, Decoder, FolderState, LabeledSequence, ModelConfig, ModelError, Preset, Quantization,
    RandomWeights, Weights, Workspace, projections,
};

fn weights(config: &ModelConfig, threads: usize) -> RandomWeights<'_> {
    RandomWeights { config, seed: 3, threads }
}

/// Returns the smallest shape with only two layers. The kinds of tensors are the same, but there are fewer
/// bytes.
fn small() -> ModelConfig {
    let mut config = Preset::Base8m.config();
    config.num_hidden_layers = 2;
    config
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn streamed_weights_equal_those_in_memory_byte_for_byte() {
    let parent = tempfile::tempdir().unwrap();
    let mut config = small();
    config.tie_word_embeddings = false;
    let memory = weights(&config, 1).in_memory(None, &mut |_| ControlFlow::Continue(())).unwrap();
    memory.check_complete(&config).unwrap();
    for (name, threads, max_shard_size, files) in [("one", 2, u64::MAX, 1), ("many", 3, 3_000_000, 3)] {
        let folder = parent.path().join(name);
        let mut last = None;
        let mut progress = |p| {
            last = Some(p);
            ControlFlow::Continue(())
        };
        weights(&config, threads).write(&folder, max_shard_size, &mut progress).unwrap();
        let written = Weights::open(&folder).unwrap();
        written.check_complete(&config).unwrap();
        assert_eq!(written.files().len(), files);
        assert_eq!(written.tensors().len(), memory.tensors().len());
        for info in memory.tensors() {
            assert!(written.bytes(written.info(&info.name).unwrap()) == memory.bytes(info), "{}", info.name);
        }
        let total = memory.tensors().iter().map(|t| t.range.len() as u64).sum::<u64>();
        assert_eq!(last.map(|p| (p.bytes, p.total)), Some((total, total)));
    }
}

#[test]
fn a_streamed_folder_loads_and_computes_as_the_weights_in_memory() {
    let parent = tempfile::tempdir().unwrap();
    let (folder, config) = (parent.path().join("model"), small());
    let memory = weights(&config, 2).in_memory(None, &mut |_| ControlFlow::Continue(())).unwrap();
    weights(&config, 2).write(&folder, u64::MAX, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(names(&folder), ["config.json", "generation_config.json", "model.safetensors"]);
    let batch = Batch::new([&LabeledSequence { ids: vec![5, 9, 2, 7], trained: vec![true; 4] }]);
    let backend = || Arc::new(Reference::new());
    let losses = [Decoder::new(config, &memory, backend()), Decoder::load(&folder, backend())]
        .map(|decoder| decoder.unwrap().losses(&mut Workspace::new(), &batch, None).unwrap());
    // An untrained model predicts about the same probability for every token.
    assert!(losses[0].iter().all(|loss| (loss - 8192f32.ln()).abs() < 1.0), "{losses:?}");
    assert_eq!(losses[0], losses[1]);
}

#[test]
fn weights_generated_in_4_bits_equal_quantized_ones() {
    let config = small();
    let quantization = Quantization::new(FourBitCode::Nf4);
    let go_on = &mut |_| ControlFlow::Continue(());
    let made = weights(&config, 2).in_memory(Some(quantization), go_on).unwrap();
    let wide = weights(&config, 2).in_memory(None, go_on).unwrap();
    let expected = wide.quantize(&config, quantization, 1, &mut |_| ControlFlow::Continue(())).unwrap();
    made.check_complete(&config).unwrap();
    for (name, rows, cols) in projections(&config) {
        let [made, expected] = [&made, &expected].map(|weights| {
            let matrix = weights.matrix(&name, rows, cols).unwrap();
            let (mut all, mut row) = (Vec::new(), vec![0.0; cols]);
            for r in 0..rows {
                matrix.row_to_f32(r, &mut row);
                all.extend_from_slice(&row);
            }
            all
        });
        assert!(made == expected, "{name}");
    }
    assert_eq!(made.total_bytes(), expected.total_bytes());
    let held: usize = made.tensors().iter().map(|info| made.bytes(info).len()).sum();
    assert_eq!(held, 2 * (8192 + 2 * 2 + 1) * 256, "the table and the norms");
}

#[test]
fn seeds_and_tensors_have_weights_of_their_own() {
    let config = small();
    let make = |seed| {
        let weights = RandomWeights { config: &config, seed, threads: 1 };
        weights.in_memory(None, &mut |_| ControlFlow::Continue(())).unwrap()
    };
    let (one, two) = (make(1), make(2));
    let bytes = |weights: &Weights, name: &str| weights.bytes(weights.info(name).unwrap())[..64].to_vec();
    let [q0, q1] = [0, 1].map(|layer| format!("model.layers.{layer}.self_attn.q_proj.weight"));
    assert_ne!(bytes(&one, &q0), bytes(&two, &q0));
    assert_ne!(bytes(&one, &q0), bytes(&one, &q1));
}

#[test]
fn a_writing_that_is_stopped_leaves_no_folder() {
    let parent = tempfile::tempdir().unwrap();
    let (folder, config) = (parent.path().join("model"), small());
    let error = weights(&config, 1).write(&folder, 3_000_000, &mut |p| {
        if p.bytes > 4_000_000 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(error.unwrap_err(), ModelError::Stopped));
    assert!(!folder.exists());
    let error = weights(&config, 1).in_memory(None, &mut |_| ControlFlow::Break(()));
    assert!(matches!(error.unwrap_err(), ModelError::Stopped));
}

#[test]
fn a_folder_is_recognised_by_its_configuration() {
    let parent = tempfile::tempdir().unwrap();
    let (folder, config) = (parent.path().join("model"), small());
    let state = |config: &ModelConfig| FolderState::of(&folder, config);
    assert_eq!(state(&config).unwrap(), FolderState::None);
    weights(&config, 1).write(&folder, u64::MAX, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(state(&config).unwrap(), FolderState::Same);
    assert_eq!(state(&Preset::Base8m.config()).unwrap(), FolderState::Other);
    // An existing model is not overwritten.
    let error = weights(&config, 1).write(&folder, u64::MAX, &mut |_| ControlFlow::Continue(()));
    assert!(error.unwrap_err().to_string().contains("already holds other things"));
    fs::remove_file(folder.join("model.safetensors")).unwrap();
    assert!(state(&config).is_err());
}
