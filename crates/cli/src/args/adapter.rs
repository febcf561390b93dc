//! Flags that define an adapter, and the limit on memory.

use std::str::FromStr;

use clap::Args;
use danlu_adapter::{InitLoraWeights, TargetModules, parse_byte_size};
use danlu_train::TrainSettings;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The flags that shape the adapter.
#[derive(Args, Clone, Debug, Default)]
pub struct AdapterArgs {
    /// Rank of the adapter: more rank, more capacity and more memory [default: 8]
    #[arg(long, value_name = "R", help_heading = "Adapter")]
    pub lora_r: Option<u32>,
    /// Alpha: the adapter is scaled by alpha / rank [default: 32]
    #[arg(long, value_name = "ALPHA", help_heading = "Adapter")]
    pub lora_alpha: Option<f64>,
    /// Dropout probability of the adapter [default: 0.1]
    #[arg(long, value_name = "P", help_heading = "Adapter")]
    pub lora_dropout: Option<f64>,
    /// Projections with an adapter: all-linear, names separated by commas, or a regular expression [default:
    /// all-linear]
    #[arg(long, value_name = "NAMES", value_parser = TargetModules::from_str, help_heading = "Adapter")]
    pub target_modules: Option<TargetModules>,
    /// Scale by alpha / sqrt(rank) instead of alpha / rank (rsLoRA)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, help_heading = "Adapter")]
    pub use_rslora: Option<bool>,
    /// Train a magnitude for each output as well (DoRA); the dropout is then 0
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, help_heading = "Adapter")]
    pub use_dora: Option<bool>,
    /// Projections without an adapter: names separated by commas, or a regular expression
    #[arg(long, value_name = "NAMES", value_parser = excluded_modules, help_heading = "Adapter")]
    pub exclude_modules: Option<TargetModules>,
    /// Layers with an adapter, such as 0,1 or 8-15 [default: all]
    #[arg(long, value_name = "LAYERS", value_parser = LayerNumbers::from_str, help_heading = "Adapter")]
    pub layers_to_transform: Option<LayerNumbers>,
    /// Ranks of some modules by the end of their path, such as q_proj=16,mlp.up_proj=4; JSON for other patterns
    #[arg(long, value_name = "NAME=R,...", value_parser = ModuleValues::<u32>::from_str, help_heading = "Adapter")]
    pub rank_pattern: Option<ModuleValues<u32>>,
    /// Alphas of some modules, written like --rank-pattern
    #[arg(long, value_name = "NAME=ALPHA,...", value_parser = ModuleValues::<f64>::from_str, help_heading = "Adapter")]
    pub alpha_pattern: Option<ModuleValues<f64>>,
    /// Start values: default, gaussian, orthogonal, or olora, which starts from the base's weights and has
    /// twice the rank in the file [default: default]
    #[arg(long, value_name = "METHOD", value_parser = InitLoraWeights::from_str, help_heading = "Adapter")]
    pub init_lora_weights: Option<InitLoraWeights>,
}

/// Layer numbers, written as `0,1` or `8-15`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerNumbers(pub Vec<i64>);

/// Largest accepted layer number. Published models have fewer than 200 layers.
const MAX_LAYER: i64 = 9999;

impl FromStr for LayerNumbers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "write layer numbers from 0, such as `0,1` or `8-15`".to_owned();
        let number = |text: &str| text.trim().parse().ok().filter(|layer| (0..=MAX_LAYER).contains(layer));
        let mut layers = Vec::new();
        for part in text.trim_matches(['[', ']']).split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first).ok_or_else(wrong)?, number(last).ok_or_else(wrong)?);
            if first > last {
                return Err(wrong());
            }
            layers.extend(first..=last);
        }
        Ok(Self(layers))
    }
}

/// Values of modules, written as `q_proj=16,v_proj=4` or as a JSON object.
#[derive(Clone, Debug, PartialEq)]
pub struct ModuleValues<T>(pub Vec<(String, T)>);

impl<T: FromStr + DeserializeOwned> FromStr for ModuleValues<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "write names with numbers, such as `q_proj=16,v_proj=4`, or a JSON object".to_owned();
        if text.trim_start().starts_with('{') {
            let object: Map<String, Value> = serde_json::from_str(text).map_err(|_| wrong())?;
            let entry = |(key, value)| Some((key, serde_json::from_value(value).ok()?));
            return object.into_iter().map(entry).collect::<Option<_>>().map(Self).ok_or_else(wrong);
        }
        let entry = |part: &str| {
            let (key, value) = part.rsplit_once('=')?;
            let key = key.trim();
            Some((key.to_owned(), value.trim().parse().ok()?)).filter(|_| !key.is_empty())
        };
        text.split(',').map(entry).collect::<Option<_>>().map(Self).ok_or_else(wrong)
    }
}

/// Parses the modules that get no adapter.
fn excluded_modules(text: &str) -> Result<TargetModules, String> {
    match text.parse().map_err(|error: danlu_adapter::AdapterError| error.to_string())? {
        TargetModules::AllLinear => Err("`all-linear` would exclude everything; write names".to_owned()),
        modules => Ok(modules),
    }
}

impl AdapterArgs {
    /// Sets the fields for which a flag is given.
    pub fn apply(&self, settings: &mut TrainSettings) {
        set(&mut settings.lora_r, &self.lora_r);
        set(&mut settings.lora_alpha, &self.lora_alpha);
        set(&mut settings.lora_dropout, &self.lora_dropout);
        set(&mut settings.target_modules, &self.target_modules);
        set(&mut settings.use_rslora, &self.use_rslora);
        set(&mut settings.use_dora, &self.use_dora);
        set(&mut settings.init_lora_weights, &self.init_lora_weights);
        settings.exclude_modules = self.exclude_modules.clone().or(settings.exclude_modules.take());
        if let Some(LayerNumbers(layers)) = &self.layers_to_transform {
            settings.layers_to_transform = Some(layers.clone());
        }
        if let Some(ModuleValues(ranks)) = &self.rank_pattern {
            settings.rank_pattern.clone_from(ranks);
        }
        if let Some(ModuleValues(alphas)) = &self.alpha_pattern {
            settings.alpha_pattern.clone_from(alphas);
        }
        let is_dropless = settings.use_dora || settings.init_lora_weights.changes_base();
        if is_dropless && self.lora_dropout.is_none() {
            settings.lora_dropout = 0.0;
        }
    }
}

/// Sets `field` if the flag is given.
pub fn set<T: Clone>(field: &mut T, given: &Option<T>) {
    if let Some(value) = given {
        field.clone_from(value);
    }
}

/// Parses a size with a unit, such as `8GiB`.
pub fn memory_limit(text: &str) -> Result<u64, String> {
    let number = text.trim();
    if number.parse::<f64>().is_err() {
        return parse_byte_size(text).map_err(|error| error.to_string());
    }
    // The hint suggests only values that the flag accepts.
    let sizes = [("GiB", ""), ("B", " for bytes")].map(|(unit, note)| (format!("{number}{unit}"), note));
    let sizes = sizes.iter().filter(|(size, _)| parse_byte_size(size).is_ok());
    let sizes: Vec<_> = sizes.map(|(size, note)| format!("`{size}`{note}")).collect();
    Err(match sizes.is_empty() {
        true => format!("`{number}` is not a size; write a number with a unit, such as 8GiB or 900MB"),
        false => format!("`{number}` has no unit; write {}", sizes.join(", or ")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_numbers_and_ranges() {
        let layers = |text: &str| text.parse::<LayerNumbers>().map(|layers| layers.0);
        assert_eq!(layers("0, 3,8-10"), Ok(vec![0, 3, 8, 9, 10]));
        assert_eq!(layers("[1,2]"), Ok(vec![1, 2]));
        for wrong in ["", "a", "-1", "3-1", "0-99999999", "1,,2", "1.5"] {
            assert!(layers(wrong).unwrap_err().contains("such as `0,1`"), "{wrong}");
        }
    }

    #[test]
    fn values_of_modules_keep_their_order() {
        let ranks = |text: &str| text.parse::<ModuleValues<u32>>().map(|values| values.0);
        let expected = vec![("v_proj".to_owned(), 4), ("layers.0.mlp.up_proj".to_owned(), 16)];
        assert_eq!(ranks("v_proj=4, layers.0.mlp.up_proj=16"), Ok(expected.clone()));
        assert_eq!(ranks(r#"{"v_proj": 4, "layers.0.mlp.up_proj": 16}"#), Ok(expected));
        let pattern = r#"{"layers\\.(1|2),{0}q_proj": 3}"#;
        assert_eq!(ranks(pattern), Ok(vec![(r"layers\.(1|2),{0}q_proj".to_owned(), 3)]));
        for wrong in ["", "v_proj", "=4", "v_proj=x", "v_proj=-1", r#"{"v_proj": "4"}"#, "{"] {
            assert!(ranks(wrong).unwrap_err().contains("`q_proj=16,v_proj=4`"), "{wrong}");
        }
        assert_eq!("q_proj=0.5".parse::<ModuleValues<f64>>().unwrap().0, [("q_proj".to_owned(), 0.5)]);
    }
}
