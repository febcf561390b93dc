//! Checks an adapter folder without its base and without reading weights.

use std::collections::BTreeMap;
use std::path::Path;

use danlu_model::{Projection, TensorInfo, Weights};

use crate::adapter::{MAGNITUDE, PREFIX};
use crate::base_changes::missing_modules;
use crate::base_tensor_name::BaseTensorName;
use crate::files::no_weights;
use crate::{Adapter, AdapterError, LoraConfig, WEIGHTS_FILE, targets};

/// The tensors `A`, `B` and magnitudes of one module, if the file contains them.
type Pair<'a> = [Option<&'a TensorInfo>; 3];

/// Names of a module's tensors.
const PARTS: [&str; 3] = ["lora_A", "lora_B", MAGNITUDE];

impl Adapter {
    /// Checks that the tensors of an adapter folder match its configuration: every target needs `A` and `B`
    /// of the configured rank. Only the headers of the files are read. The shapes are compared with the base
    /// when the adapter is loaded.
    ///
    /// # Errors
    /// If a file is missing or damaged, if the configuration has an unsupported setting, or if tensors and
    /// configuration do not match.
    pub fn check(folder: &Path) -> Result<LoraConfig, AdapterError> {
        let config = LoraConfig::read(folder)?;
        let path = folder.join(WEIGHTS_FILE);
        if !path.exists() {
            return Err(no_weights(folder));
        }
        let found = Weights::open_file(&path)?;
        check_tensors(&config, &found).map_err(|error| error.in_file(&path))?;
        Ok(config)
    }
}

fn check_tensors(config: &LoraConfig, found: &Weights) -> Result<(), AdapterError> {
    if found.tensors().is_empty() {
        return Err(AdapterError::NoTensors);
    }
    let (mut pairs, mut unbound) = (BTreeMap::<&str, Pair<'_>>::new(), Vec::new());
    let mut changed = Vec::new();
    for info in found.tensors() {
        let of_pair = pair_of(&info.name).and_then(|(path, half)| {
            let slot = &mut pairs.entry(path).or_default()[half];
            // A second tensor for the same matrix is reported as unexpected.
            slot.replace(info).is_none().then_some(())
        });
        if of_pair.is_some() {
            continue;
        }
        match BaseTensorName::parse(&info.name) {
            // The shape is compared with the base when the adapter is loaded.
            Some(name) if info.dtype().is_some() && name.changes_base() => changed.push(name.tensor),
            _ => unbound.push(info.name.clone()),
        }
    }
    let paths: Vec<String> = pairs.keys().map(|&path| path.to_owned()).collect();
    let (ranks, unused) = targets::ranks(config, &paths)?;
    // As in PEFT, a target may match nothing if another target matches. Only the name of a known projection,
    // such as `q_proj`, must always match.
    let is_unused = ranks.iter().all(Option::is_none);
    let is_projection = |target: &&str| {
        is_unused || target.rsplit('.').next().is_some_and(|name| Projection::from_name(name).is_some())
    };
    let unused = unused.into_iter().filter(is_projection);
    let mut missing: Vec<String> = unused.map(str::to_owned).collect();
    let mut shaped = Vec::new();
    for ((path, pair), rank) in pairs.iter().zip(ranks) {
        for (half, info) in pair.iter().enumerate() {
            match (info, rank) {
                (None, _) if half == 2 && !config.use_dora => {}
                (None, _) if half == 2 => missing.push(format!("{PREFIX}{path}.{MAGNITUDE}")),
                (None, _) => missing.push(format!("{PREFIX}{path}.{}.weight", PARTS[half])),
                (Some(info), Some(_)) if half == 2 && !config.use_dora => unbound.push(info.name.clone()),
                (Some(info), None) => unbound.push(info.name.clone()),
                (Some(info), Some(rank)) => shaped.push((*info, half, rank)),
            }
        }
    }
    // The base is unknown here, so any other name is assumed to be no module of the base.
    let is_usual = |module: &str| {
        let last = module.rsplit('.').next().unwrap_or(module);
        matches!(last, "embed_tokens" | "lm_head" | "norm") || Projection::from_name(last).is_some()
    };
    missing.extend(missing_modules(config, changed.iter().map(String::as_str), &is_usual));
    if pairs.is_empty() && missing.is_empty() && changed.is_empty() {
        missing.push(format!("{PREFIX}*.lora_A.weight"));
    }
    if !unbound.is_empty() || !missing.is_empty() {
        unbound.sort();
        return Err(AdapterError::Binding { unbound, missing });
    }
    shaped.into_iter().try_for_each(|(info, half, rank)| check_tensor(info, half, rank))
}

fn check_tensor(info: &TensorInfo, half: usize, rank: usize) -> Result<(), AdapterError> {
    let name = info.name.clone();
    if info.dtype().is_none() {
        return Err(AdapterError::DType { name, found: info.dtype_name.clone() });
    }
    // The shape is (rank, inputs) for `A`, (outputs, rank) for `B`, and (outputs) for the magnitudes. Only
    // the base determines the number of inputs and outputs.
    let mut expected = info.shape.clone();
    expected.resize(if half == 2 { 1 } else { 2 }, 1);
    if half < 2 {
        expected[half] = rank;
    }
    if info.shape == expected {
        return Ok(());
    }
    Err(AdapterError::Shape { name, expected, found: info.shape.clone() })
}

/// Returns the module of a tensor, and the index of the tensor in [`PARTS`].
fn pair_of(name: &str) -> Option<(&str, usize)> {
    let name = name.strip_prefix(PREFIX)?;
    // PEFT writes `lora_A.weight`. Some programs add the adapter's name: `lora_A.default.weight`.
    if let Some(path) = name.strip_suffix(MAGNITUDE) {
        return Some((path.strip_suffix('.')?, 2));
    }
    let name = name.strip_suffix(".default.weight").or_else(|| name.strip_suffix(".weight"))?;
    let (path, half) = name.rsplit_once('.')?;
    Some((path, PARTS.iter().position(|known| *known == half)?))
}
