//! The settings of a run. The names are the same as in TRL and PEFT.

use std::fmt;
use std::str::FromStr;

use danlu_adapter::{InitLoraWeights, LoraConfig, TargetModules};
use danlu_kernels::{DType, FourBitCode};
use danlu_model::Quantization;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Difference;
use crate::{LrSchedulerType, Schedule, TrainError};

/// The settings of a run. The defaults are those of the tutorial job in `docs/reference/benchmarks.md`.
/// Settings that this job leaves open have the defaults of transformers.
///
/// The names of the fields are also the names of the flags (`--lora-r`) and of the keys in the config file
/// (`lora_r`). An unknown key is an error.
///
/// On one back end, two runs with equal settings, data, base and division of steps into passes train equal
/// adapters. On a GPU, a memory limit may change this division. The output folder and the number of threads
/// do not affect the adapter, so they are not settings.
///
/// ```
/// use danlu_train::TrainSettings;
///
/// let settings: TrainSettings = serde_json::from_str(r#"{ "lora_r": 16, "max_steps": 100 }"#)?;
/// settings.validate()?;
/// assert_eq!((settings.lora_r, settings.lora_alpha, settings.total_steps(933)), (16, 32.0, 100));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainSettings {
    /// Rank of the adapter.
    pub lora_r: u32,
    /// Alpha. The adapter's output is multiplied by alpha / rank, or by alpha / sqrt(rank) with `use_rslora`.
    pub lora_alpha: f64,
    /// Dropout probability for an element of the adapter's input.
    pub lora_dropout: f64,
    /// The projections that get an adapter: `"all-linear"`, a list of names, or a regular expression.
    #[serde(with = "target_modules")]
    pub target_modules: TargetModules,
    /// Whether alpha is divided by the square root of the rank instead of the rank.
    pub use_rslora: bool,
    /// Whether each output of a projection has a trained magnitude (DoRA). DoRA requires a dropout of 0.
    pub use_dora: bool,
    /// Projections that get no adapter, although `target_modules` selects them.
    #[serde(with = "exclude_modules")]
    pub exclude_modules: Option<TargetModules>,
    /// Numbers of the layers that get an adapter. With `None`, all layers get an adapter.
    pub layers_to_transform: Option<Vec<i64>>,
    /// Ranks of some modules. A key is the end of a module's path, as a regular expression.
    #[serde(with = "patterns")]
    pub rank_pattern: Vec<(String, u32)>,
    /// Alphas of some modules, by the rule of `rank_pattern`.
    #[serde(with = "patterns")]
    pub alpha_pattern: Vec<(String, f64)>,
    /// Method that sets the matrices before training. `olora` requires a dropout and a weight decay of 0.
    pub init_lora_weights: InitLoraWeights,

    /// Peak learning rate.
    pub learning_rate: f64,
    /// Ratio of the learning rate of `B` to that of `A` (LoRA+). With `None`, both are equal.
    pub loraplus_lr_ratio: Option<f64>,
    /// Size of the noise of the embeddings (NEFTune). With `None`, there is no noise.
    pub neftune_noise_alpha: Option<f64>,
    /// Type of the learning rate schedule.
    pub lr_scheduler_type: LrSchedulerType,
    /// Warmup steps as a share of all steps.
    pub warmup_ratio: f64,
    /// Number of epochs, which may be a fraction. Ignored if `max_steps` is set.
    pub num_train_epochs: f64,
    /// Number of optimizer steps. Replaces `num_train_epochs` if set.
    pub max_steps: Option<u64>,
    /// Number of records per micro-batch. With `packing`, the number of packs per micro-batch, each of at
    /// most `max_length` tokens.
    pub per_device_train_batch_size: usize,
    /// Number of micro-batches per optimizer step.
    pub gradient_accumulation_steps: usize,
    /// Decoupled weight decay of AdamW.
    pub weight_decay: f64,
    /// Maximum norm of the gradient. With 0, the gradient is not clipped.
    pub max_grad_norm: f64,
    /// Decay rate of AdamW's first moment.
    pub adam_beta1: f64,
    /// Decay rate of AdamW's second moment.
    pub adam_beta2: f64,
    /// Number that is added to the square root of AdamW's second moment.
    pub adam_epsilon: f64,

    /// Maximum record length in tokens.
    pub max_length: usize,
    /// Whether to pack several records into one sequence. Attention never crosses the border between two
    /// records.
    pub packing: bool,
    /// Whether to shuffle the records in every epoch. If false, the records are used in file order.
    pub shuffle_dataset: bool,
    /// Whether system and user messages have a loss too.
    pub train_on_prompt: bool,
    /// Whether an EOS token is added to each document, and to each answer after which the template writes no
    /// end token.
    pub add_eos_token: bool,
    /// System message for conversations without a system message.
    pub default_system: Option<String>,
    /// Date that the chat template receives as the current date, in the format `YYYY-MM-DD`.
    ///
    /// The date is a setting so that a run that is resumed on another day has the same tokens.
    pub template_date: Option<String>,
    /// Size of the held-out part. A number below 1 is a share, and any other number is a number of records.
    pub val_size: f64,
    /// Seed for initialization, data order and dropout.
    pub seed: u64,
    /// Precision of the operations that [`Precision`] lists.
    pub dtype: Precision,
    /// Quantization that is applied to the base's projections while loading.
    pub quant: Quant,
    /// Whether the scales of 4-bit weights are stored in f32. If false, the scales are quantized too.
    pub no_double_quant: bool,
    /// Number of 4-bit weights per scale.
    pub quant_block_size: usize,

    /// Number of steps between two entries of the log.
    pub logging_steps: u64,
    /// Number of steps between two checkpoints. With 0, only the last step has a checkpoint.
    pub save_steps: u64,
    /// Maximum number of checkpoints that are retained. With `None`, there is no limit.
    pub save_total_limit: Option<usize>,
    /// Number of steps between two evaluations. With `None`, only the state before the first step and the
    /// state after the last step are evaluated.
    pub eval_steps: Option<u64>,
}

impl Default for TrainSettings {
    fn default() -> Self {
        Self {
            lora_r: 8,
            lora_alpha: 32.0,
            lora_dropout: 0.1,
            target_modules: TargetModules::AllLinear,
            use_rslora: false,
            use_dora: false,
            exclude_modules: None,
            layers_to_transform: None,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            init_lora_weights: InitLoraWeights::Default,
            learning_rate: 1e-4,
            loraplus_lr_ratio: None,
            neftune_noise_alpha: None,
            lr_scheduler_type: LrSchedulerType::Linear,
            warmup_ratio: 0.0,
            num_train_epochs: 1.0,
            max_steps: None,
            per_device_train_batch_size: 2,
            gradient_accumulation_steps: 2,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            max_length: 384,
            packing: false,
            shuffle_dataset: true,
            train_on_prompt: false,
            add_eos_token: true,
            default_system: None,
            template_date: None,
            val_size: 0.0,
            seed: 42,
            // With f32, the results equal PEFT's results on every processor.
            dtype: Precision::F32,
            quant: Quant::None,
            no_double_quant: false,
            quant_block_size: Quantization::BLOCK_SIZE,
            logging_steps: 10,
            save_steps: 100,
            save_total_limit: None,
            eval_steps: None,
        }
    }
}

/// Precision of matrix multiplications with the base's weights.
///
/// On a processor with bf16 instructions and on a GPU, the precision also applies to attention. A GPU also
/// stores activations in this precision. All other operations are computed in f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Operands are not rounded.
    #[default]
    F32,
    /// Operands are rounded to bf16. Sums are in f32.
    Bf16,
    /// Operands are rounded to f16. Sums and the residual stream are in f32, and the loss is scaled. f16 is
    /// only available on a GPU.
    F16,
}

impl From<Precision> for DType {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::Bf16 => Self::Bf16,
            Precision::F16 => Self::F16,
        }
    }
}

impl From<DType> for Precision {
    fn from(dtype: DType) -> Self {
        match dtype {
            DType::F32 => Self::F32,
            DType::Bf16 => Self::Bf16,
            DType::F16 => Self::F16,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        })
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "f16" => Ok(Self::F16),
            _ => Err(format!("`{name}` is no precision; there are f32, bf16, f16")),
        }
    }
}

/// Quantization that is applied to an unquantized base while loading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quant {
    /// No quantization.
    #[default]
    None,
    /// 4-bit NormalFloat. Its 16 values are quantiles of a normal distribution.
    Nf4,
    /// 4-bit floating point.
    Fp4,
}

impl FromStr for Quant {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match (name, name.parse()) {
            ("none", _) => Ok(Self::None),
            (_, Ok(FourBitCode::Nf4)) => Ok(Self::Nf4),
            (_, Ok(FourBitCode::Fp4)) => Ok(Self::Fp4),
            (_, Err(_)) => Err(format!("`{name}` is no quantisation; there are nf4, fp4, none")),
        }
    }
}

/// Maximum batch size, and maximum number of micro-batches in a step. A larger value is a typing error.
const MAX_BATCH: usize = 1 << 24;

/// Settings that do not affect any computed number.
const BOOKKEEPING: [&str; 4] = ["logging_steps", "save_steps", "save_total_limit", "eval_steps"];

impl TrainSettings {
    /// Checks that every value is in range.
    ///
    /// # Errors
    /// Returns the first setting that is out of range, with its value.
    pub fn validate(&self) -> Result<(), TrainError> {
        let at_least_one = |name, value: usize| check(value >= 1, name, value, "at least 1");
        let share = |name, value: f64| {
            check((0.0..1.0).contains(&(value as f32)), name, value, "at least 0 and below 1")
        };
        // Kernels compute in f32, so the value must also be in range as an f32.
        let positive = |name, value: f64| {
            check(value as f32 > 0.0 && (value as f32).is_finite(), name, value, "more than 0")
        };
        let not_negative =
            |name, value: f64| check(value >= 0.0 && (value as f32).is_finite(), name, value, "at least 0");
        check(self.lora_r >= 1, "lora_r", self.lora_r, "at least 1")?;
        positive("lora_alpha", self.lora_alpha)?;
        share("lora_dropout", self.lora_dropout)?;
        let is_dropless = !self.use_dora || self.lora_dropout == 0.0;
        check(is_dropless, "lora_dropout", self.lora_dropout, "0 with `use_dora`")?;
        self.check_frozen_start()?;
        positive("learning_rate", self.learning_rate)?;
        positive("loraplus_lr_ratio", self.loraplus_lr_ratio.unwrap_or(1.0))?;
        not_negative("neftune_noise_alpha", self.neftune_noise_alpha.unwrap_or(0.0))?;
        let ratio = (0.0..=1.0).contains(&self.warmup_ratio);
        check(ratio, "warmup_ratio", self.warmup_ratio, "between 0 and 1")?;
        let warms = self.lr_scheduler_type != LrSchedulerType::Constant || self.warmup_ratio == 0.0;
        check(
            warms,
            "warmup_ratio",
            self.warmup_ratio,
            "0 for `constant`; `constant_with_warmup` has a warmup",
        )?;
        positive("num_train_epochs", self.num_train_epochs)?;
        // AdamW counts steps in a 32-bit integer.
        let steps = self.max_steps.is_none_or(|steps| (1..=u64::from(u32::MAX)).contains(&steps));
        check(steps, "max_steps", self.max_steps.unwrap_or(0), "between 1 and 4294967295")?;
        at_least_one("per_device_train_batch_size", self.per_device_train_batch_size)?;
        at_least_one("gradient_accumulation_steps", self.gradient_accumulation_steps)?;
        let at_most = |name, value: usize| check(value <= MAX_BATCH, name, value, "at most 16777216");
        at_most("per_device_train_batch_size", self.per_device_train_batch_size)?;
        at_most("gradient_accumulation_steps", self.gradient_accumulation_steps)?;
        not_negative("weight_decay", self.weight_decay)?;
        not_negative("max_grad_norm", self.max_grad_norm)?;
        share("adam_beta1", self.adam_beta1)?;
        share("adam_beta2", self.adam_beta2)?;
        // An epsilon that is subnormal in f32 could be flushed to zero.
        let epsilon = self.adam_epsilon as f32;
        let holds = epsilon.is_finite() && epsilon >= f32::MIN_POSITIVE;
        check(holds, "adam_epsilon", self.adam_epsilon, "at least 1.2e-38")?;
        let block = self.quant_block_size;
        let holds = Quantization::check_block_size(block).is_ok();
        check(holds, "quant_block_size", block, Quantization::BLOCK_SIZES)?;
        // `no_double_quant` and `quant_block_size` have no effect without `quant`.
        let quantises = self.quant != Quant::None;
        const BESIDE: &str = "`quant` nf4 or fp4 beside it";
        check(quantises || !self.no_double_quant, "no_double_quant", self.no_double_quant, BESIDE)?;
        check(quantises || block == Quantization::BLOCK_SIZE, "quant_block_size", block, BESIDE)?;
        check(self.max_length >= 2, "max_length", self.max_length, "at least 2")?;
        not_negative("val_size", self.val_size)?;
        self.check_toml_range()?;
        if let Some(date) = &self.template_date {
            check(seconds_of_date(date).is_some(), "template_date", date, "a day such as 2026-01-31")?;
        }
        check(self.logging_steps >= 1, "logging_steps", self.logging_steps, "at least 1")?;
        check(self.save_total_limit != Some(0), "save_total_limit", 0, "at least 1, or absent")?;
        check(self.eval_steps != Some(0), "eval_steps", 0, "at least 1, or absent")?;
        let measures = self.eval_steps.is_none() || self.val_size > 0.0;
        check(
            measures,
            "eval_steps",
            self.eval_steps.unwrap_or(0),
            "`val_size` above 0 beside it, to measure on",
        )
    }

    /// Checks the settings that `olora` restricts. Dropout would also drop inputs of the frozen columns, and
    /// weight decay would change these columns.
    fn check_frozen_start(&self) -> Result<(), TrainError> {
        let is_free = !self.init_lora_weights.changes_base();
        check(
            is_free || self.lora_dropout == 0.0,
            "lora_dropout",
            self.lora_dropout,
            "0 with `init_lora_weights` olora",
        )?;
        check(
            is_free || self.weight_decay == 0.0,
            "weight_decay",
            self.weight_decay,
            "0 with `init_lora_weights` olora",
        )
    }

    /// Returns whether training adds noise to the embeddings.
    pub fn has_noise(&self) -> bool {
        self.neftune_noise_alpha.is_some_and(|alpha| alpha > 0.0)
    }

    /// Checks that integers without a smaller limit fit into an i64. `run.toml` cannot contain larger
    /// integers.
    fn check_toml_range(&self) -> Result<(), TrainError> {
        for (name, value) in [
            ("seed", self.seed),
            ("logging_steps", self.logging_steps),
            ("save_steps", self.save_steps),
            ("eval_steps", self.eval_steps.unwrap_or(0)),
            ("save_total_limit", self.save_total_limit.unwrap_or(0) as u64),
            ("max_length", self.max_length as u64),
        ] {
            check(i64::try_from(value).is_ok(), name, value, "at most 9223372036854775807")?;
        }
        Ok(())
    }

    /// Returns the quantization of the base, or `None` if `quant` is not set.
    pub fn quantization(&self) -> Option<Quantization> {
        let quant_type = match self.quant {
            Quant::None => return None,
            Quant::Nf4 => FourBitCode::Nf4,
            Quant::Fp4 => FourBitCode::Fp4,
        };
        let (block_size, double_quant) = (self.quant_block_size, !self.no_double_quant);
        Some(Quantization { quant_type, block_size, double_quant })
    }

    /// Returns the number of optimizer steps. `micro_batches` is the number of micro-batches per epoch.
    pub fn total_steps(&self, micro_batches: usize) -> u64 {
        let per_epoch = micro_batches.div_ceil(self.gradient_accumulation_steps.max(1)).max(1);
        self.max_steps.unwrap_or_else(|| (self.num_train_epochs * per_epoch as f64).ceil() as u64)
    }

    /// Returns the date for the template in seconds since 1970.
    pub fn template_seconds(&self) -> Option<u64> {
        seconds_of_date(self.template_date.as_ref()?)
    }

    /// Creates the learning rate schedule of a run with `total_steps` steps.
    pub fn schedule(&self, total_steps: u64) -> Schedule {
        Schedule::new(self.lr_scheduler_type, self.learning_rate, self.warmup_ratio, total_steps)
    }

    /// Creates the configuration of an adapter for the base `base_name`.
    pub fn lora_config(&self, base_name: &str) -> LoraConfig {
        LoraConfig {
            lora_dropout: self.lora_dropout,
            use_rslora: self.use_rslora,
            use_dora: self.use_dora,
            target_modules: self.target_modules.clone(),
            exclude_modules: self.exclude_modules.clone(),
            layers_to_transform: self.layers_to_transform.clone(),
            rank_pattern: self.rank_pattern.clone(),
            alpha_pattern: self.alpha_pattern.clone(),
            init_lora_weights: self.init_lora_weights,
            base_model_name_or_path: Some(base_name.to_owned()),
            ..LoraConfig::new(self.lora_r, self.lora_alpha)
        }
    }

    /// Returns the names and values of all settings, in the order of the fields.
    pub fn entries(&self) -> Vec<(String, Value)> {
        match serde_json::to_value(self) {
            Ok(Value::Object(fields)) => fields.into_iter().collect(),
            _ => unreachable!("a struct of plain fields becomes an object"),
        }
    }

    /// Returns the settings that affect computed numbers and differ from `saved`.
    pub fn differences(&self, saved: &Self) -> Vec<Difference> {
        let pairs = saved.entries().into_iter().zip(self.entries());
        pairs
            .filter(|((name, saved), (_, current))| saved != current && !BOOKKEEPING.contains(&name.as_str()))
            .map(|((field, saved), (_, current))| Difference {
                field,
                saved: saved.to_string(),
                current: current.to_string(),
            })
            .collect()
    }
}

/// Returns midnight UTC of the date `YYYY-MM-DD`, in seconds since 1970. Returns `None` for other formats and
/// for dates before 1970.
fn seconds_of_date(date: &str) -> Option<u64> {
    let parsed = chrono::NaiveDate::parse_from_str(date, "%Y-%m-%d").ok()?;
    // chrono also accepts numbers without leading zeros.
    if parsed.to_string() != date {
        return None;
    }
    u64::try_from(parsed.and_time(chrono::NaiveTime::MIN).and_utc().timestamp()).ok()
}

/// Serializes `target_modules`, which is a list, `"all-linear"`, comma-separated names, or a pattern.
mod target_modules {
    use danlu_adapter::TargetModules;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    #[derive(Deserialize)]
    #[serde(untagged, expecting = "`all-linear`, a list of names, or a regular expression")]
    enum Written {
        Text(String),
        Names(Vec<String>),
    }

    pub fn serialize<S: Serializer>(modules: &TargetModules, serializer: S) -> Result<S::Ok, S::Error> {
        match modules {
            TargetModules::AllLinear => "all-linear".serialize(serializer),
            TargetModules::List(names) => names.serialize(serializer),
            TargetModules::Regex(pattern) => pattern.serialize(serializer),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TargetModules, D::Error> {
        match Written::deserialize(deserializer)? {
            Written::Names(names) => Ok(TargetModules::List(names)),
            Written::Text(text) => text.parse().map_err(D::Error::custom),
        }
    }
}

/// Serializes `exclude_modules` as [`target_modules`] does.
mod exclude_modules {
    use danlu_adapter::TargetModules;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Written(#[serde(with = "super::target_modules")] TargetModules);

    pub fn serialize<S: Serializer>(
        modules: &Option<TargetModules>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        modules.clone().map(Written).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<TargetModules>, D::Error> {
        Ok(Option::<Written>::deserialize(deserializer)?.map(|Written(modules)| modules))
    }
}

/// Serializes patterns as an object, in their order. Without patterns, the value is null.
mod patterns {
    use serde::de::{DeserializeOwned, Error};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use serde_json::{Map, Value};

    pub fn serialize<S: Serializer, T: Serialize>(
        patterns: &[(String, T)],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match patterns {
            [] => serializer.serialize_none(),
            patterns => serializer.collect_map(patterns.iter().map(|(key, value)| (key, value))),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>, T: DeserializeOwned>(
        deserializer: D,
    ) -> Result<Vec<(String, T)>, D::Error> {
        let patterns = Option::<Map<String, Value>>::deserialize(deserializer)?.unwrap_or_default();
        let entry = |(key, value)| Ok((key, serde_json::from_value(value).map_err(D::Error::custom)?));
        patterns.into_iter().map(entry).collect()
    }
}

fn check(
    holds: bool,
    name: &'static str,
    value: impl fmt::Display,
    expected: &'static str,
) -> Result<(), TrainError> {
    if holds { Ok(()) } else { Err(TrainError::Setting { name, value: value.to_string(), expected }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_survive_the_trip() {
        let settings = TrainSettings::default();
        settings.validate().unwrap();
        let text = serde_json::to_string(&settings).unwrap();
        assert_eq!(serde_json::from_str::<TrainSettings>(&text).unwrap(), settings);
        assert_eq!(serde_json::from_str::<TrainSettings>("{}").unwrap(), settings);
    }

    #[test]
    fn an_unknown_key_is_refused() {
        let error = serde_json::from_str::<TrainSettings>(r#"{ "lora_rank": 8 }"#).unwrap_err();
        assert!(error.to_string().contains("lora_rank"), "{error}");
    }

    #[test]
    fn target_modules_are_read_in_every_form() {
        let read = |text: &str| {
            let settings: TrainSettings =
                serde_json::from_str(&format!(r#"{{ "target_modules": {text} }}"#)).unwrap();
            let again =
                serde_json::from_value::<TrainSettings>(serde_json::to_value(&settings).unwrap()).unwrap();
            assert_eq!(again, settings);
            settings.target_modules
        };
        let names = TargetModules::List(vec!["q_proj".into(), "v_proj".into()]);
        assert_eq!(read(r#""all-linear""#), TargetModules::AllLinear);
        assert_eq!(read(r#"["q_proj", "v_proj"]"#), names);
        assert_eq!(read(r#""q_proj, v_proj""#), names);
        assert_eq!(read(r#"".*[qv]_proj""#), TargetModules::Regex(".*[qv]_proj".into()));
    }

    #[test]
    fn the_modules_of_an_adapter_survive_the_trip() {
        let text = r#"{ "exclude_modules": ["k_proj"], "layers_to_transform": [0, 3],
            "rank_pattern": { "z_proj": 2, "a_proj": 4 }, "alpha_pattern": { "v_proj": 2.5 },
            "init_lora_weights": "gaussian" }"#;
        let settings: TrainSettings = serde_json::from_str(text).unwrap();
        assert_eq!(settings.rank_pattern, [("z_proj".to_owned(), 2), ("a_proj".to_owned(), 4)]);
        let again = serde_json::from_value::<TrainSettings>(serde_json::to_value(&settings).unwrap());
        assert_eq!(again.unwrap(), settings);
        let lora = settings.lora_config("base");
        assert_eq!(lora.exclude_modules, Some(TargetModules::List(vec!["k_proj".into()])));
        assert_eq!((lora.layers_to_transform, lora.alpha_pattern[0].1), (Some(vec![0, 3]), 2.5));
        assert_eq!(lora.init_lora_weights, InitLoraWeights::Gaussian);
    }

    #[test]
    fn a_bad_value_is_named() {
        type Spoil = fn(&mut TrainSettings);
        let bad: [(&str, Spoil); 26] = [
            ("lora_dropout", |s| s.init_lora_weights = InitLoraWeights::Olora),
            ("weight_decay", |s| {
                (s.init_lora_weights, s.lora_dropout, s.weight_decay) = (InitLoraWeights::Olora, 0.0, 0.1);
            }),
            ("loraplus_lr_ratio", |s| s.loraplus_lr_ratio = Some(0.0)),
            ("neftune_noise_alpha", |s| s.neftune_noise_alpha = Some(-5.0)),
            ("neftune_noise_alpha", |s| s.neftune_noise_alpha = Some(f64::NAN)),
            ("quant_block_size", |s| (s.quant_block_size, s.quant) = (48, Quant::Nf4)),
            ("quant_block_size", |s| s.quant_block_size = 128),
            ("no_double_quant", |s| s.no_double_quant = true),
            ("eval_steps", |s| s.eval_steps = Some(5)),
            ("learning_rate", |s| s.learning_rate = 1e39),
            ("adam_epsilon", |s| s.adam_epsilon = 1e-50),
            ("adam_beta2", |s| s.adam_beta2 = 0.999_999_999),
            ("lora_dropout", |s| s.lora_dropout = 0.999_999_999),
            ("weight_decay", |s| s.weight_decay = 1e39),
            ("seed", |s| s.seed = 1 << 63),
            ("save_steps", |s| s.save_steps = u64::MAX),
            ("max_length", |s| s.max_length = usize::MAX),
            ("template_date", |s| s.template_date = Some("2026-02-29".into())),
            ("lora_r", |s| s.lora_r = 0),
            ("lora_dropout", |s| s.lora_dropout = 1.0),
            ("learning_rate", |s| s.learning_rate = f64::NAN),
            ("max_steps", |s| s.max_steps = Some(0)),
            ("num_train_epochs", |s| s.num_train_epochs = f64::INFINITY),
            ("gradient_accumulation_steps", |s| s.gradient_accumulation_steps = 0),
            ("logging_steps", |s| s.logging_steps = 0),
            ("warmup_ratio", |s| (s.warmup_ratio, s.lr_scheduler_type) = (0.1, LrSchedulerType::Constant)),
        ];
        for (name, spoil) in bad {
            let mut settings = TrainSettings::default();
            spoil(&mut settings);
            let error = settings.validate().unwrap_err().to_string();
            assert!(error.starts_with(&format!("`{name}` is ")), "{error}");
        }
    }

    #[test]
    fn dates_are_seconds_since_1970() {
        // The expected values are the output of `date -u -d DATE +%s`.
        assert_eq!(seconds_of_date("1970-01-01"), Some(0));
        assert_eq!(seconds_of_date("2024-02-29"), Some(1_709_164_800));
        assert_eq!(seconds_of_date("2100-03-01"), Some(4_107_542_400));
        for wrong in ["2023-02-29", "1969-12-31", "2024-13-01", "2024-1-01", "2024-01-00", "today"] {
            assert_eq!(seconds_of_date(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn steps_are_counted_as_transformers_counts_them() {
        let settings = TrainSettings::default();
        // In the tutorial, 3,729 records in batches of two are 1,865 micro-batches. The last step has only
        // one micro-batch.
        assert_eq!(settings.total_steps(1865), 933);
        assert_eq!(TrainSettings { num_train_epochs: 2.5, ..settings.clone() }.total_steps(3), 5);
        assert_eq!(TrainSettings { max_steps: Some(7), ..settings }.total_steps(1865), 7);
    }

    #[test]
    fn only_numbers_keep_a_run_from_resuming() {
        let saved = TrainSettings::default();
        let quiet =
            TrainSettings { save_steps: 5, logging_steps: 1, save_total_limit: Some(2), ..saved.clone() };
        assert!(quiet.differences(&saved).is_empty());
        let other = TrainSettings { learning_rate: 2e-4, dtype: Precision::Bf16, ..saved.clone() };
        let fields: Vec<_> = other.differences(&saved).into_iter().map(|d| d.to_string()).collect();
        assert_eq!(
            fields,
            ["`learning_rate` was 0.0001 and is 0.0002", "`dtype` was \"f32\" and is \"bf16\""]
        );
    }
}
