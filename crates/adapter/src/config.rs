//! Reads and writes `adapter_config.json` in the format of PEFT 0.5 to 0.21.
//!
//! A setting that changes results is either applied or rejected with an error that names the setting. A
//! setting that only concerns PEFT's internals is ignored. An unknown setting is rejected unless its value is
//! empty.

use std::path::Path;
use std::str::FromStr;

use danlu_model::{ModelConfig, Projection, files, json_words};
use serde_json::{Map, Value, json};

use crate::{AdapterError, InitLoraWeights, mlx};

/// Name of the configuration file in an adapter folder.
pub const CONFIG_FILE: &str = "adapter_config.json";

/// Maximum size of a configuration file. A list of all modules of a large model has about 100 KB.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Maximum number of keys in `rank_pattern` or `alpha_pattern`. Every key is a regular expression that is
/// tested on every module.
const MAX_PATTERNS: usize = 4096;

/// Largest rank in a configuration. A second check compares the rank with the size of the weight.
const MAX_RANK: u32 = 1 << 16;

/// Largest accepted token id, far above the vocabularies of published models (262,208 tokens in Gemma 3).
const MAX_TOKEN: u32 = (1 << 22) - 1;

/// The configuration of a LoRA adapter. The field names are the same as in PEFT.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rank of every module that has no entry in `rank_pattern`.
    pub r: u32,
    /// Alpha of every module that has no entry in `alpha_pattern`. The update is scaled by `alpha / rank`.
    pub lora_alpha: f64,
    /// Dropout probability for the inputs of `A` during training, in `[0, 1)`.
    pub lora_dropout: f64,
    /// Whether the update is scaled by `alpha / sqrt(rank)` and not by `alpha / rank`. Source: Kalajdzievski,
    /// 2023, <https://arxiv.org/abs/2312.03732>.
    pub use_rslora: bool,
    /// Whether each output has a separate magnitude (DoRA). Source: Liu et al., 2024,
    /// <https://arxiv.org/abs/2402.09353>.
    pub use_dora: bool,
    /// Modules to adapt.
    pub target_modules: TargetModules,
    /// Modules that are not adapted, even if `target_modules` matches them.
    pub exclude_modules: Option<TargetModules>,
    /// Numbers of the adapted layers, or `None` for all layers. The targets must not be a regular expression.
    pub layers_to_transform: Option<Vec<i64>>,
    /// Names of the module list that contains the layers, such as `layers`. If empty, any name is accepted.
    pub layers_pattern: Vec<String>,
    /// Ranks for modules whose path ends with a match of the regular expression. The first match applies.
    pub rank_pattern: Vec<(String, u32)>,
    /// Alphas for modules, by the same rule as in `rank_pattern`.
    pub alpha_pattern: Vec<(String, f64)>,
    /// The base that the adapter was trained on: a folder, or a repository on the Hub.
    pub base_model_name_or_path: Option<String>,
    /// Revision of the base on the Hub.
    pub revision: Option<String>,
    /// Modules that the adapter stores completely. The names have the same syntax as in `target_modules`.
    pub modules_to_save: Vec<String>,
    /// Tokens whose rows the adapter stores, for each table name such as `embed_tokens`.
    pub trainable_token_indices: Vec<(String, Vec<u32>)>,
    /// Whether an embedding table in `modules_to_save` also replaces the output head, if the base uses one
    /// table for both.
    pub ensure_weight_tying: bool,
    /// Method that set the initial values. The results of a loaded adapter do not depend on this method.
    pub init_lora_weights: InitLoraWeights,
}

/// A selection of modules, in one of PEFT's three notations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetModules {
    /// Every projection of every layer (`"all-linear"`).
    AllLinear,
    /// Modules whose path is equal to one of these names, or ends with `.` and one of these names.
    List(Vec<String>),
    /// Modules whose whole path matches this regular expression.
    Regex(String),
}

impl FromStr for TargetModules {
    type Err = AdapterError;

    /// Parses `all-linear`, comma-separated names, or a regular expression. The text is a regular expression
    /// if it contains a character that cannot occur in a module path.
    fn from_str(text: &str) -> Result<Self, AdapterError> {
        let text = text.trim();
        if text.eq_ignore_ascii_case("all-linear") {
            return Ok(Self::AllLinear);
        }
        if text.chars().any(|c| !(c.is_alphanumeric() || "_-.,".contains(c) || c.is_whitespace())) {
            return Ok(Self::Regex(text.to_owned()));
        }
        let names: Vec<String> =
            text.split([',', ' ', '\t', '\n']).filter(|n| !n.is_empty()).map(str::to_owned).collect();
        if names.is_empty() {
            let expected = "`all-linear`, or names such as `q_proj,v_proj`".to_owned();
            return Err(AdapterError::Value {
                key: "target_modules".to_owned(),
                found: json!(text).to_string(),
                expected,
            });
        }
        Ok(Self::List(names))
    }
}

impl LoraConfig {
    /// Returns a configuration that adapts every projection with rank `r` and PEFT's defaults.
    pub fn new(r: u32, lora_alpha: f64) -> Self {
        Self {
            r,
            lora_alpha,
            lora_dropout: 0.0,
            use_rslora: false,
            use_dora: false,
            target_modules: TargetModules::AllLinear,
            exclude_modules: None,
            layers_to_transform: None,
            layers_pattern: Vec::new(),
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            base_model_name_or_path: None,
            revision: None,
            modules_to_save: Vec::new(),
            trainable_token_indices: Vec::new(),
            ensure_weight_tying: false,
            init_lora_weights: InitLoraWeights::Default,
        }
    }

    /// Reads `adapter_config.json` of an adapter folder.
    ///
    /// # Errors
    /// The same errors as [`LoraConfig::parse`], with the path of the file.
    pub fn read(folder: &Path) -> Result<Self, AdapterError> {
        let path = folder.join(CONFIG_FILE);
        let bytes = files::read_bounded(&path, MAX_CONFIG_BYTES)?;
        let config = || {
            let map = parse_object(&bytes)?;
            let config = match mlx::is_config(&map) {
                true => mlx::config(&map, folder)?,
                false => return Self::parse(&bytes),
            };
            config.validate()?;
            Ok(config)
        };
        config().map_err(|e: AdapterError| e.in_file(&path))
    }

    /// Parses the contents of an `adapter_config.json`.
    ///
    /// # Errors
    /// If the text is not JSON, if a value is out of range, or if a setting is not supported.
    pub fn parse(bytes: &[u8]) -> Result<Self, AdapterError> {
        let map = parse_object(bytes)?;
        refuse_unsupported(&map)?;
        let keys = Keys(&map);
        // A missing setting has PEFT's default. A null is rejected, because PEFT fails on a null.
        for key in ["r", "lora_alpha", "lora_dropout"] {
            if map.get(key).is_some_and(Value::is_null) {
                return Err(wrong(key, map.get(key), "a number"));
            }
        }
        let config = Self {
            r: keys.rank("r")?.unwrap_or(8),
            lora_alpha: keys.number("lora_alpha")?.unwrap_or(8.0),
            lora_dropout: keys.number("lora_dropout")?.unwrap_or(0.0),
            use_rslora: keys.flag("use_rslora")?,
            use_dora: keys.flag("use_dora")?,
            target_modules: keys.modules("target_modules")?.ok_or_else(|| {
                wrong("target_modules", map.get("target_modules"), "a list of module names")
            })?,
            exclude_modules: keys.modules("exclude_modules")?,
            layers_to_transform: keys.integers("layers_to_transform")?,
            layers_pattern: keys.strings("layers_pattern")?,
            rank_pattern: keys.pattern("rank_pattern", rank_value)?,
            alpha_pattern: keys.pattern("alpha_pattern", Value::as_f64)?,
            base_model_name_or_path: keys.string("base_model_name_or_path")?,
            revision: keys.string("revision")?,
            modules_to_save: keys.strings("modules_to_save")?,
            trainable_token_indices: keys.tokens("trainable_token_indices")?,
            ensure_weight_tying: keys.flag("ensure_weight_tying")?,
            init_lora_weights: match map.get("init_lora_weights").and_then(Value::as_str) {
                Some("gaussian") => InitLoraWeights::Gaussian,
                Some("orthogonal") => InitLoraWeights::Orthogonal,
                _ => InitLoraWeights::Default,
            },
        };
        config.validate()?;
        Ok(config)
    }

    /// Checks every value without a model. [`targets::resolve`](crate::targets::resolve) compares the values
    /// with a model.
    ///
    /// # Errors
    /// If a rank, an alpha or the dropout is out of range, or if a list of targets is empty. Also returns an
    /// error for `layers_to_transform` beside a regular expression, and for `layers_pattern` without
    /// `layers_to_transform`.
    pub fn validate(&self) -> Result<(), AdapterError> {
        let ranks = self.rank_pattern.iter().map(|(k, r)| (format!("rank_pattern.{k}"), *r));
        for (key, rank) in ranks.chain([("r".to_owned(), self.r)]) {
            if !(1..=MAX_RANK).contains(&rank) {
                return Err(value(key, rank, format!("a rank from 1 to {MAX_RANK}")));
            }
        }
        let alphas = self.alpha_pattern.iter().map(|(k, a)| (format!("alpha_pattern.{k}"), *a));
        for (key, alpha) in alphas.chain([("lora_alpha".to_owned(), self.lora_alpha)]) {
            // The scaling is an f32: alpha divided by the rank. With an alpha outside these limits, the
            // scaling would be infinite or zero.
            if !(1e-30..=1e30).contains(&alpha) {
                return Err(value(key, alpha, "a number from 1e-30 to 1e30".to_owned()));
            }
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return Err(value(
                "lora_dropout".to_owned(),
                self.lora_dropout,
                "a number from 0 to below 1".to_owned(),
            ));
        }
        if let TargetModules::List(names) = &self.target_modules {
            if names.is_empty() {
                return Err(value("target_modules".to_owned(), "[]", "at least one module name".to_owned()));
            }
        } else if self.layers_to_transform.is_some() && self.target_modules != TargetModules::AllLinear {
            let expected = "null beside a regular expression, as in PEFT".to_owned();
            return Err(value("layers_to_transform".to_owned(), "set", expected));
        }
        if !self.layers_pattern.is_empty() && self.layers_to_transform.is_none() {
            return Err(value(
                "layers_to_transform".to_owned(),
                "null",
                "layer numbers for `layers_pattern`".to_owned(),
            ));
        }
        Ok(())
    }

    /// Returns the JSON text with PEFT's key order and layout. The text contains the keys of PEFT 0.3, and
    /// any other key only if its setting is used.
    ///
    /// Other keys are omitted because PEFT before 0.14 rejects unknown keys.
    pub fn to_json(&self) -> String {
        let integral = |a: f64| if a.fract() == 0.0 && a.abs() < 1e15 { json!(a as i64) } else { json!(a) };
        let alphas: Map<_, _> = self.alpha_pattern.iter().map(|(k, a)| (k.clone(), integral(*a))).collect();
        let ranks: Map<_, _> = self.rank_pattern.iter().map(|(k, r)| (k.clone(), json!(r))).collect();
        let layers_pattern = (!self.layers_pattern.is_empty()).then(|| json!(self.layers_pattern));
        let modules_to_save =
            if self.modules_to_save.is_empty() { Value::Null } else { json!(self.modules_to_save) };
        let tokens: Map<_, _> =
            self.trainable_token_indices.iter().map(|(name, ids)| (name.clone(), json!(ids))).collect();
        let init_lora_weights = match self.init_lora_weights {
            InitLoraWeights::Default => json!(true),
            method => json!(method.name()),
        };
        let entries = [
            ("alpha_pattern", (!alphas.is_empty()).then_some(Value::Object(alphas))),
            ("base_model_name_or_path", Some(json!(self.base_model_name_or_path))),
            ("bias", Some(json!("none"))),
            ("ensure_weight_tying", self.ensure_weight_tying.then_some(json!(true))),
            ("exclude_modules", self.exclude_modules.as_ref().map(TargetModules::to_value)),
            ("fan_in_fan_out", Some(json!(false))),
            ("inference_mode", Some(json!(true))),
            ("init_lora_weights", Some(init_lora_weights)),
            ("layers_pattern", layers_pattern),
            ("layers_to_transform", self.layers_to_transform.as_ref().map(|layers| json!(layers))),
            ("lora_alpha", Some(integral(self.lora_alpha))),
            ("lora_dropout", Some(json!(self.lora_dropout))),
            ("modules_to_save", Some(modules_to_save)),
            ("peft_type", Some(json!("LORA"))),
            ("r", Some(json!(self.r))),
            ("rank_pattern", (!ranks.is_empty()).then_some(Value::Object(ranks))),
            ("revision", self.revision.as_ref().map(|revision| json!(revision))),
            ("target_modules", Some(self.target_modules.to_value())),
            ("task_type", Some(json!("CAUSAL_LM"))),
            ("trainable_token_indices", (!tokens.is_empty()).then_some(Value::Object(tokens))),
            ("use_dora", self.use_dora.then_some(json!(true))),
            ("use_rslora", self.use_rslora.then_some(json!(true))),
        ];
        let set = entries.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
        let value = Value::Object(set.collect());
        let text = serde_json::to_string_pretty(&value).expect("a JSON value has string keys");
        ascii(&text)
    }
}

impl LoraConfig {
    /// Returns `target_modules` for the file of an adapter. Like PEFT, danlu writes `all-linear` as a list of
    /// names, because the meaning of `all-linear` depends on the version of PEFT.
    ///
    /// If the base has a vision tower, a name such as `q_proj` would also select modules of the tower. A list
    /// of such names without `layers_to_transform` is therefore written as a regular expression, which
    /// selects only the text model.
    pub(crate) fn targets_of_model(&self, model: &ModelConfig) -> TargetModules {
        let names: Vec<String> = match &self.target_modules {
            TargetModules::AllLinear => model.projections().map(|p| p.name().to_owned()).collect(),
            TargetModules::List(names) => names.clone(),
            TargetModules::Regex(_) => return self.target_modules.clone(),
        };
        let is_short = names.iter().all(|name| Projection::from_name(name).is_some());
        // PEFT rejects `layers_to_transform` if `target_modules` is a regular expression.
        if model.is_nested && is_short && self.layers_to_transform.is_none() {
            return TargetModules::Regex(format!(r".*language_model\.layers\..*\.({})", names.join("|")));
        }
        TargetModules::List(names)
    }
}

impl TargetModules {
    fn to_value(&self) -> Value {
        match self {
            Self::AllLinear => json!("all-linear"),
            Self::List(names) => json!(names),
            Self::Regex(pattern) => json!(pattern),
        }
    }
}

/// Escapes all characters that are not ASCII. PEFT opens the file in the encoding of the locale, which may
/// not be UTF-8.
fn ascii(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    out
}

/// Settings of PEFT that do not change the results of a loaded adapter.
const HARMLESS: &[&str] = &[
    "auto_mapping",
    "peft_version",
    "inference_mode",
    "megatron_core",
    "runtime_config",
    "qalora_group_size",
    // These settings determine initial values, which are overwritten when the adapter is loaded.
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "loftq_config",
];

/// Settings that danlu supports.
const READ: &[&str] = &[
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "use_dora",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "base_model_name_or_path",
    "revision",
    "modules_to_save",
    "trainable_token_indices",
    "ensure_weight_tying",
];

fn parse_object(bytes: &[u8]) -> Result<Map<String, Value>, AdapterError> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    serde_json::from_slice(bytes).map_err(|e| AdapterError::Json {
        line: e.line(),
        column: e.column(),
        message: json_words(bytes, &e),
    })
}

fn refuse_unsupported(map: &Map<String, Value>) -> Result<(), AdapterError> {
    if map.contains_key("hidden_size") && !map.contains_key("peft_type") {
        return Err(AdapterError::Unsupported {
            key: "model_type".to_owned(),
            found: map.get("model_type").map_or("missing".to_owned(), shown),
            advice:
                "put back the `adapter_config.json` that PEFT wrote: this is the `config.json` of a model"
                    .to_owned(),
        });
    }
    for (key, found) in map {
        let unset = match found {
            Value::Null | Value::Bool(false) => true,
            Value::Number(n) => n.as_f64() == Some(0.0),
            Value::String(s) => s.is_empty(),
            Value::Array(a) => a.is_empty(),
            Value::Object(o) => o.is_empty(),
            Value::Bool(true) => false,
        };
        if unset || READ.contains(&key.as_str()) || HARMLESS.contains(&key.as_str()) {
            continue;
        }
        let text = found.as_str();
        let advice = match key.as_str() {
            "peft_type" if text == Some("LORA") => continue,
            "task_type" if text == Some("CAUSAL_LM") => continue,
            "bias" if text == Some("none") => continue,
            "init_lora_weights" if *found == Value::Bool(true) => continue,
            "init_lora_weights" if matches!(text, Some("gaussian" | "orthogonal" | "eva")) => continue,
            "init_lora_weights" => {
                "this start value changes the base as well; save the adapter converted to plain LoRA, with PEFT's \
                 `path_initial_model_for_weight_conversion`"
            }
            "peft_type" => "train or convert the adapter as LoRA (`peft_type` `LORA`)",
            "task_type" => "only adapters of causal language models (`CAUSAL_LM`) are read",
            "bias" | "lora_bias" => "train with `bias=\"none\"` and `lora_bias=False`",
            "fan_in_fan_out" => {
                "it is for models with transposed weights such as GPT-2, which are not supported"
            }
            _ => "merge the adapter with PEFT, or train without this setting",
        };
        return Err(AdapterError::Unsupported {
            key: key.clone(),
            found: shown(found),
            advice: advice.to_owned(),
        });
    }
    if !map.contains_key("peft_type") {
        return Err(wrong("peft_type", None, "\"LORA\""));
    }
    Ok(())
}

/// A JSON object with typed access by key. A `null` is treated as a missing key.
struct Keys<'a>(&'a Map<String, Value>);

impl Keys<'_> {
    fn get<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, AdapterError> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(found) => read(found).map(Some).ok_or_else(|| wrong(key, Some(found), expected)),
        }
    }

    fn rank(&self, key: &str) -> Result<Option<u32>, AdapterError> {
        self.get(key, "a whole number above 0", rank_value)
    }

    fn number(&self, key: &str) -> Result<Option<f64>, AdapterError> {
        self.get(key, "a number", Value::as_f64)
    }

    fn flag(&self, key: &str) -> Result<bool, AdapterError> {
        Ok(self.get(key, "true or false", Value::as_bool)?.unwrap_or(false))
    }

    fn string(&self, key: &str) -> Result<Option<String>, AdapterError> {
        self.get(key, "a string", |v| v.as_str().map(str::to_owned))
    }

    fn strings(&self, key: &str) -> Result<Vec<String>, AdapterError> {
        let read = |v: &Value| match v {
            Value::String(s) if s.is_empty() => Some(Vec::new()),
            Value::String(s) => Some(vec![s.clone()]),
            v => string_list(v),
        };
        Ok(self.get(key, "a string or a list of strings", read)?.unwrap_or_default())
    }

    fn integers(&self, key: &str) -> Result<Option<Vec<i64>>, AdapterError> {
        let read = |v: &Value| match v {
            Value::Array(items) => items.iter().map(Value::as_i64).collect(),
            v => v.as_i64().map(|n| vec![n]),
        };
        // An empty list means all layers, as in PEFT.
        Ok(self.get::<Vec<_>>(key, "layer numbers", read)?.filter(|layers| !layers.is_empty()))
    }

    /// Reads token ids for each table. A list without a table name belongs to the embedding table.
    fn tokens(&self, key: &str) -> Result<Vec<(String, Vec<u32>)>, AdapterError> {
        let ids = |v: &Value| -> Option<Vec<u32>> {
            v.as_array()?.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect()
        };
        let read = |v: &Value| match v {
            Value::Object(tables) => tables.iter().map(|(name, v)| Some((name.clone(), ids(v)?))).collect(),
            v => Some(vec![("embed_tokens".to_owned(), ids(v)?)]),
        };
        let tables: Vec<(String, Vec<u32>)> =
            self.get(key, "a list of token ids, or such lists by table", read)?.unwrap_or_default();
        let largest = tables.iter().flat_map(|(_, ids)| ids).max();
        match largest.filter(|&&id| id > MAX_TOKEN) {
            Some(id) => Err(value(key.to_owned(), id, format!("token ids up to {MAX_TOKEN}"))),
            None => Ok(tables.into_iter().filter(|(_, ids)| !ids.is_empty()).collect()),
        }
    }

    fn modules(&self, key: &str) -> Result<Option<TargetModules>, AdapterError> {
        let read = |v: &Value| match v {
            Value::String(s) if s.eq_ignore_ascii_case("all-linear") && key == "target_modules" => {
                Some(TargetModules::AllLinear)
            }
            // A module path cannot contain a comma, so this text is a list of names.
            Value::String(s) if s.contains(',') => match s.parse() {
                Ok(TargetModules::List(names)) => Some(TargetModules::List(names)),
                _ => Some(TargetModules::Regex(s.clone())),
            },
            Value::String(s) => Some(TargetModules::Regex(s.clone())),
            v => string_list(v).map(TargetModules::List),
        };
        let modules = self.get(key, "a list of module names or a regular expression", read)?;
        // PEFT writes an empty exclusion as null, as an empty list, or as an empty text.
        let empty = |m: &TargetModules| match m {
            TargetModules::AllLinear => false,
            TargetModules::List(names) => names.is_empty(),
            TargetModules::Regex(pattern) => pattern.is_empty(),
        };
        Ok(modules.filter(|m| key == "target_modules" || !empty(m)))
    }

    fn pattern<T>(
        &self,
        key: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Vec<(String, T)>, AdapterError> {
        let object = |v: &Value| v.as_object().filter(|o| o.len() <= MAX_PATTERNS).cloned();
        let expected = format!("an object of at most {MAX_PATTERNS} keys");
        let entries = self.get(key, &expected, object)?.unwrap_or_default();
        entries
            .into_iter()
            .map(|(name, found)| match read(&found) {
                Some(value) => Ok((name, value)),
                None => Err(wrong(&format!("{key}.{name}"), Some(&found), "a number")),
            })
            .collect()
    }
}

fn rank_value(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|n| u32::try_from(n).ok())
}

fn string_list(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|v| v.as_str().map(str::to_owned)).collect()
}

fn value(key: String, found: impl ToString, expected: String) -> AdapterError {
    AdapterError::Value { key, found: found.to_string(), expected }
}

fn wrong(key: &str, found: Option<&Value>, expected: &str) -> AdapterError {
    value(key.to_owned(), found.map_or("missing".to_owned(), shown), expected.to_owned())
}

fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
