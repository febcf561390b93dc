//! Reads adapters of mlx-lm: `adapters.safetensors`, and mlx-lm's own `adapter_config.json`.

use std::path::Path;

use danlu_model::Weights;
use danlu_model::torch_file::RawTensor;
use serde_json::{Map, Value};

use crate::adapter::MAGNITUDE;
use crate::source::copy_of;
use crate::{AdapterError, LoraConfig, TargetModules};

/// Name of the weight file of mlx-lm.
pub const MLX_WEIGHTS_FILE: &str = "adapters.safetensors";

pub(crate) fn is_config(config: &Map<String, Value>) -> bool {
    !config.contains_key("peft_type") && config.get("lora_parameters").is_some_and(Value::is_object)
}

/// Returns the configuration of an mlx-lm adapter. The adapted modules are taken from the tensor names. The
/// configuration contains only the number of adapted layers, counted from the end of a model whose size is
/// unknown here.
///
/// # Errors
/// If the adapter is not a LoRA or DoRA adapter, if a setting is missing, or if the tensors cannot be read.
pub(crate) fn config(config: &Map<String, Value>, folder: &Path) -> Result<LoraConfig, AdapterError> {
    let kind = config.get("fine_tune_type").and_then(Value::as_str).unwrap_or("lora");
    if !matches!(kind, "lora" | "dora") {
        return Err(AdapterError::Unsupported {
            key: "fine_tune_type".to_owned(),
            found: format!("\"{kind}\""),
            advice: "fuse the adapter with mlx-lm, or train with `--fine-tune-type lora`".to_owned(),
        });
    }
    let parameters = config.get("lora_parameters").and_then(Value::as_object);
    let number = |name: &str| parameters.and_then(|parameters| parameters.get(name)?.as_f64());
    let missing = |name: &str| AdapterError::Value {
        key: format!("lora_parameters.{name}"),
        found: "missing".to_owned(),
        expected: "a number, as mlx-lm writes it".to_owned(),
    };
    let rank = number("rank").filter(|rank| rank.fract() == 0.0 && (1.0..65536.0).contains(rank));
    let rank = rank.ok_or_else(|| missing("rank"))?;
    let scale = number("scale").ok_or_else(|| missing("scale"))?;
    let weights = Weights::open_file(&folder.join(MLX_WEIGHTS_FILE))?;
    let modules: Vec<String> =
        weights.names().filter_map(|name| name.strip_suffix(".lora_a").map(str::to_owned)).collect();
    Ok(LoraConfig {
        lora_dropout: number("dropout").unwrap_or(0.0),
        use_dora: kind == "dora",
        target_modules: TargetModules::List(modules),
        base_model_name_or_path: config.get("model").and_then(Value::as_str).map(str::to_owned),
        ..LoraConfig::new(rank as u32, scale * rank)
    })
}

/// Returns the tensors with PEFT's names. `lora_a (IN, R)` and `lora_b (R, OUT)` are transposed.
pub(crate) fn tensors(weights: &Weights) -> Vec<RawTensor> {
    let tensor = |info: &danlu_model::TensorInfo| {
        let (path, half) = match info.name.rsplit_once('.') {
            Some((path, "lora_a")) => (path, "lora_A"),
            Some((path, "lora_b")) => (path, "lora_B"),
            Some((path, "m")) => {
                let name = format!("{path}.{MAGNITUDE}");
                return RawTensor { name, ..copy_of(weights, info) };
            }
            _ => return copy_of(weights, info),
        };
        let mut tensor = copy_of(weights, info);
        tensor.name = format!("{path}.{half}.weight");
        let ([rows, cols], Some(dtype)) = (&tensor.shape[..], info.dtype()) else { return tensor };
        let (rows, cols, size) = (*rows, *cols, dtype.size());
        let mut bytes = Vec::with_capacity(tensor.bytes.len());
        for col in 0..cols {
            for row in 0..rows {
                let at = (row * cols + col) * size;
                bytes.extend_from_slice(&tensor.bytes[at..at + size]);
            }
        }
        tensor.shape = vec![cols, rows];
        tensor.bytes = bytes;
        tensor
    };
    weights.tensors().iter().map(tensor).collect()
}
