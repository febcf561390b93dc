//! Tests that 4-bit models are written and read correctly, and that damaged 4-bit models are rejected.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use danlu_kernels::{Cpu, CpuOptions, FourBitCode};
use danlu_model::{
    Batch, Decoder, LabeledSequence, ModelConfig, ModelError, Quantization, QuantizeProgress, Weights,
    Workspace, projections, write_quantized,
};
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize};

fn base() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/assets/base-8m")
}

fn all() -> impl Iterator<Item = Quantization> {
    [FourBitCode::Nf4, FourBitCode::Fp4].into_iter().flat_map(|quant_type| {
        [(true, 64), (false, 128)].map(|(double_quant, block_size)| Quantization {
            quant_type,
            double_quant,
            block_size,
        })
    })
}

fn write(folder: &Path, quantization: Quantization) {
    write_quantized(&base(), folder, quantization, 2, &mut |_| ControlFlow::Continue(())).unwrap();
}

#[test]
fn a_quantized_folder_reads_back_as_the_weights_in_memory() {
    let config = ModelConfig::read(&base()).unwrap();
    let original = Weights::open(&base()).unwrap();
    for quantization in all() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("quantized");
        write(&folder, quantization);
        let read_config = ModelConfig::read(&folder).unwrap();
        assert_eq!(
            read_config.quantization.map(|q| (q.quant_type, q.double_quant)),
            Some((quantization.quant_type, quantization.double_quant))
        );
        let stored = Weights::open(&folder).unwrap();
        assert_eq!(stored.stored_quantization().unwrap(), Some(quantization));
        assert_eq!(original.stored_quantization().unwrap(), None);
        stored.check_complete(&read_config).unwrap();
        let mut go_on = |_| ControlFlow::Continue(());
        let held = Weights::open(&base()).unwrap().quantize(&config, quantization, 3, &mut go_on).unwrap();
        for (name, rows, cols) in projections(&config) {
            let [stored, held, original] =
                [&stored, &held, &original].map(|w| w.matrix(&name, rows, cols).unwrap().to_vec());
            assert_eq!(stored, held, "{name}");
            let largest = original.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let error = original.iter().zip(&held).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(error > 0.0 && error < 0.2 * largest, "{name}: {error} of {largest}");
        }
        let elements: usize = projections(&config).map(|(_, rows, cols)| rows * cols).sum();
        let rest = original.total_bytes() - 2 * elements as u64;
        let projected: u64 =
            projections(&config).map(|(_, rows, cols)| quantization.bytes(rows * cols)).sum();
        assert_eq!(held.total_bytes(), rest + projected);
        // Python programs expect that the offset of every tensor is a multiple of its element size.
        for info in stored.tensors() {
            let size = match info.dtype_name.as_str() {
                "F32" => 4,
                "U8" => 1,
                _ => 2,
            };
            assert!(info.range.start.is_multiple_of(size), "{info:?}");
        }
        assert!(folder.join("tokenizer.json").is_file());
        let error = write_quantized(&folder, &parent.path().join("again"), quantization, 1, &mut go_on_of())
            .unwrap_err();
        assert!(error.to_string().contains("is in 4 bits already"), "{error}");
    }
}

fn go_on_of() -> impl FnMut(danlu_model::QuantizeProgress) -> ControlFlow<()> {
    |_| ControlFlow::Continue(())
}

#[test]
fn a_stop_leaves_the_folder_as_it_was() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("quantized");
    let mut left = 5;
    let error = write_quantized(&base(), &folder, Quantization::new(FourBitCode::Nf4), 1, &mut |_| {
        left -= 1;
        if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(error, Err(danlu_model::ModelError::Stopped)));
    assert!(!folder.exists());
}

type Tensor = (Dtype, Vec<usize>, Vec<u8>);
type Tensors = BTreeMap<String, Tensor>;

/// The weight that the test cases damage.
const WEIGHT: &str = "model.layers.2.mlp.up_proj.weight";

/// A valid 4-bit model.
struct Sound {
    config: ModelConfig,
    tensors: Tensors,
}

impl Sound {
    fn of(quantization: Quantization) -> Self {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("quantized");
        write(&folder, quantization);
        let bytes = fs::read(folder.join("model.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let own = |view: &TensorView<'_>| (view.dtype(), view.shape().to_vec(), view.data().to_vec());
        let tensors = tensors.iter().map(|(name, view)| (name.to_owned(), own(&view))).collect();
        Self { config: ModelConfig::read(&folder).unwrap(), tensors }
    }

    /// Returns the error message after `change`.
    fn error(&self, change: &dyn Fn(&mut Tensors)) -> String {
        let mut tensors = self.tensors.clone();
        change(&mut tensors);
        let views = tensors.iter().map(|(name, (dtype, shape, data))| {
            (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        let weights =
            Weights::from_bytes(Path::new("m.safetensors"), serialize(views, None).unwrap()).unwrap();
        let (rows, cols) = (self.config.intermediate_size, self.config.hidden_size);
        match weights.check_complete(&self.config) {
            Err(error) => error.to_string(),
            Ok(()) => weights.matrix(WEIGHT, rows, cols).unwrap_err().to_string(),
        }
    }
}

#[test]
fn invalid_plain_scales_are_reported_with_name_and_value() {
    let quantization = Quantization { double_quant: false, ..Quantization::new(FourBitCode::Fp4) };
    let sound = Sound::of(quantization);
    let with_absmax = |change: &dyn Fn(&mut Tensor)| {
        sound.error(&|tensors| change(tensors.get_mut(&format!("{WEIGHT}.absmax")).unwrap()))
    };
    let resized = |len: usize| {
        with_absmax(&|(_, shape, data)| {
            data.resize(len * 4, 0);
            *shape = vec![len];
        })
    };
    let filled = |value: f32| with_absmax(&|(_, _, data)| data[4..8].copy_from_slice(&value.to_le_bytes()));
    let of_bytes = with_absmax(&|(dtype, shape, data)| {
        data.truncate(2816);
        (*dtype, *shape) = (Dtype::U8, vec![2816]);
    });
    for (message, words) in [
        (resized(2815), "absmax` holds 11260 bytes of F32, expected 11264 of F32"),
        (resized(2817), "absmax` holds 11268 bytes of F32, expected 11264 of F32"),
        (of_bytes, "absmax` holds 2816 bytes of U8, expected 11264 of F32"),
        (filled(f32::NAN), "absmax` holds NaN at element 1"),
        (filled(f32::INFINITY), "absmax` holds inf at element 1"),
    ] {
        assert!(message.contains(words) && message.contains(WEIGHT), "{message}\nlacks {words}");
    }
}

#[test]
fn invalid_parts_are_reported_with_name_and_value() {
    let sound = Sound::of(Quantization::new(FourBitCode::Nf4));
    let error = |change: &dyn Fn(&mut Tensors)| sound.error(change);
    let state = format!("{WEIGHT}.quant_state.bitsandbytes__nf4");
    let with_state = |from: &str, to: &str| {
        error(&|tensors: &mut Tensors| {
            let (_, shape, data) = tensors.get_mut(&state).unwrap();
            *data = String::from_utf8(data.clone()).unwrap().replace(from, to).into_bytes();
            *shape = vec![data.len()];
        })
    };
    let resized = |part: &str, by: isize| {
        error(&|tensors: &mut Tensors| {
            let (dtype, shape, data) = tensors.get_mut(&format!("{WEIGHT}{part}")).unwrap();
            let size = if *dtype == Dtype::F32 { 4 } else { 1 };
            let len = (data.len() / size).saturating_add_signed(by);
            data.resize(len * size, 0);
            *shape = vec![len];
        })
    };
    let filled = |part: &str| {
        error(&|tensors: &mut Tensors| {
            let (_, _, data) = tensors.get_mut(&format!("{WEIGHT}{part}")).unwrap();
            data[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
        })
    };
    let gone = |part: &str| {
        error(&|tensors: &mut Tensors| {
            tensors.remove(&format!("{WEIGHT}{part}"));
        })
    };
    for (message, parts) in [
        (with_state("\"blocksize\":64", "\"blocksize\":0"), ["`blocksize` is 0", "power of two"]),
        (with_state("\"blocksize\":64", "\"blocksize\":48"), ["`blocksize` is 48", "power of two"]),
        (with_state("\"blocksize\":64", "\"blocksize\":128"), [".absmax` holds 2816 bytes", "expected 1408"]),
        (with_state("\"blocksize\":64", "\"blocksize\":1e99"), ["quant_state", "expected u64"]),
        (with_state("[704,256]", "[704,255]"), ["`shape` is [704, 255]", "expected [704, 256]"]),
        (with_state("[704,256]", "[18446744073709551615,2]"), ["`shape` is", "expected [704, 256]"]),
        (with_state("\"nf4\"", "\"fp4\""), ["`quant_type` is `fp4`", "nf4"]),
        (with_state("bfloat16", "int8"), ["`dtype` is `int8`", "expected float32"]),
        (with_state("\"nested_blocksize\":256,", ""), ["only one of", "nested_offset"]),
        (
            with_state("\"nested_offset\":", "\"nested_offset\":1e300,\"x\":"),
            ["`nested_offset` is inf", "finite"],
        ),
        (with_state("{", ""), ["quant_state", "line 1"]),
        (resized(".absmax", -1), ["holds 2815 bytes", "expected 2816"]),
        (resized("", 1), ["90113 bytes of codes", "expected 90112"]),
        (resized("", -7), ["90105 bytes of codes", "expected 90112"]),
        (resized(".nested_absmax", 1), ["holds 48 bytes", "expected 44"]),
        (resized(".quant_map", -1), ["holds 60 bytes", "expected 64"]),
        (filled(".quant_map"), ["quant_map` holds NaN", "element 1"]),
        (filled(".nested_absmax"), ["nested_absmax` holds NaN", "element 1"]),
        (gone(".nested_quant_map"), ["nested_quant_map` is missing", WEIGHT]),
        (gone(".quant_map"), ["quant_map` is missing", WEIGHT]),
        (gone(""), ["up_proj.weight", "is missing"]),
    ] {
        for part in parts {
            assert!(message.contains(part), "{message}\nlacks {part}");
        }
        assert!(message.contains(WEIGHT), "{message}");
    }
    // Without its quantization state, the weight is read as a tensor of bytes, which is an unsupported type.
    assert!(gone(".quant_state.bitsandbytes__nf4").contains(" is U8, expected F32, BF16 or F16"));
    let message = with_state("\"nested_dtype\":\"float32\"", "\"nested_dtype\":\"float64\"");
    assert!(message.contains("`nested_dtype` is `float64`"), "{message}");
}

#[test]
fn a_weight_that_is_no_number_is_named() {
    let config = ModelConfig::read(&base()).unwrap();
    let bytes = fs::read(base().join("model.safetensors")).unwrap();
    let place = |at: usize| {
        let mut tensors: Tensors = SafeTensors::deserialize(&bytes)
            .unwrap()
            .iter()
            .map(|(name, view)| {
                (name.to_owned(), (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
            })
            .collect();
        let (dtype, _, data) = tensors.get_mut("model.layers.3.mlp.gate_proj.weight").unwrap();
        assert_eq!(*dtype, Dtype::BF16);
        data[2 * at..2 * at + 2].copy_from_slice(&[0xc0, 0x7f]);
        let views = tensors.iter().map(|(name, (dtype, shape, data))| {
            (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        let weights =
            Weights::from_bytes(Path::new("m.safetensors"), serialize(views, None).unwrap()).unwrap();
        let quantization = Quantization::new(FourBitCode::Nf4);
        weights
            .quantize(&config, quantization, 2, &mut |_| ControlFlow::Continue(()))
            .unwrap_err()
            .to_string()
    };
    for at in [0, 70_001, 180_223] {
        let expected = format!(
            "cannot quantize `m.safetensors`: element {at} of tensor `model.layers.3.mlp.gate_proj.weight` is NaN"
        );
        assert_eq!(place(at), expected);
    }
}

#[test]
fn a_copied_tensor_that_is_no_number_is_named() {
    let parent = tempfile::tempdir().unwrap();
    let (damaged, folder) = (parent.path().join("base"), parent.path().join("quantized"));
    fs::create_dir(&damaged).unwrap();
    for entry in fs::read_dir(base()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, damaged.join(path.file_name().unwrap())).unwrap();
    }
    let path = damaged.join("model.safetensors");
    let sound = fs::read(&path).unwrap();
    for tensor in ["model.norm.weight", "model.embed_tokens.weight"] {
        let weights = Weights::open(&base()).unwrap();
        let at = weights.info(tensor).unwrap().range.start + 2 * 70;
        let mut bytes = sound.clone();
        bytes[at..at + 2].copy_from_slice(&[0xc0, 0x7f]);
        fs::write(&path, bytes).unwrap();
        let quantization = Quantization::new(FourBitCode::Nf4);
        let error = write_quantized(&damaged, &folder, quantization, 1, &mut go_on_of()).unwrap_err();
        let expected = format!("element 70 of tensor `{tensor}` is NaN");
        assert!(error.to_string().ends_with(&expected), "{error}");
        assert!(!folder.exists());
    }
}

#[test]
fn a_decoder_that_quantizes_while_loading_computes_the_same_bits() {
    let config = ModelConfig::read(&base()).unwrap();
    let backend = || Arc::new(Cpu::new(CpuOptions { threads: Some(2), ..CpuOptions::default() }));
    let batch = Batch::new(&[LabeledSequence { ids: vec![5, 9, 700, 3], trained: vec![true; 4] }]);
    for quantization in all() {
        let (mut bytes, weights) = (Vec::new(), Weights::open(&base()).unwrap());
        let mut progress = |progress: QuantizeProgress| {
            bytes.push(progress.bytes);
            ControlFlow::Continue(())
        };
        let loaded =
            Decoder::quantized(config.clone(), &weights, backend(), (quantization, 2), &mut progress);
        let held = weights.quantize(&config, quantization, 1, &mut |_| ControlFlow::Continue(())).unwrap();
        let held = Decoder::new(config.clone(), &held, backend()).unwrap();
        let logits = |decoder: &Decoder| decoder.logits(&mut Workspace::new(), &batch, None).unwrap();
        assert_eq!(logits(&loaded.unwrap()), logits(&held), "{quantization:?}");
        assert!(bytes.is_sorted() && bytes.last() > Some(&0), "{bytes:?}");
    }
    let weights = Weights::open(&base()).unwrap();
    let mut stop = |_| ControlFlow::Break(());
    let stopped = Decoder::quantized(config, &weights, backend(), (all().next().unwrap(), 2), &mut stop);
    assert!(matches!(stopped.unwrap_err(), ModelError::Stopped));
}
