//! `card.json`: all values that a card shows. No value is a path.

use std::path::Path;

use danlu_adapter::base_identity::{REVISION_FORM, is_revision};
use danlu_adapter::fidelity::Fidelity;
use danlu_adapter::merge::{FormFidelity, MergeBase, MergeReport, QuantizedFidelity};
use danlu_adapter::{BaseIdentity, LoraConfig, TargetModules};
use danlu_model::{Quantization, files, is_repo_id, json_words};
use danlu_train::TrainSettings;
use serde::{Deserialize, Serialize};

use super::license::{is_license, license_of};
use super::quantized::InFourBits;
use crate::Language;
use crate::{DataSummary, Reply, ReportError, RunSummary, Verdict};

/// Name of the file with the values of a card.
pub const CARD_FILE: &str = "card.json";

/// Maximum size of a `card.json`.
const MAX_BYTES: u64 = 16 << 20;

/// The languages of a card, in the order of their parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CardLanguage {
    /// Simplified Chinese.
    #[serde(rename = "zh")]
    Zh,
    /// English.
    #[default]
    #[serde(rename = "en")]
    En,
    /// Chinese first, then English.
    #[serde(rename = "zh+en")]
    ZhEn,
    /// English first, then Chinese.
    #[serde(rename = "en+zh")]
    EnZh,
}

impl CardLanguage {
    /// Returns the languages in order.
    pub fn order(self) -> &'static [Language] {
        match self {
            Self::Zh => &[Language::Zh],
            Self::En => &[Language::En],
            Self::ZhEn => &[Language::Zh, Language::En],
            Self::EnZh => &[Language::En, Language::Zh],
        }
    }
}

/// The values in the card of an adapter or of a full model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Card {
    /// Name of the model's folder.
    pub name: String,
    /// Repository on the Hub, `owner/name`, if the model was published.
    pub repository: Option<String>,
    /// Branch of the repository, unless it is `main`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Languages of the card.
    pub language: CardLanguage,
    /// The base of the model.
    pub base: BaseIdentity,
    /// Rank, scaling and targets of the adapter. `None` for a quantized base.
    pub lora: Option<Lora>,
    /// Licence identifier in the Hub's spelling.
    pub license: Option<String>,
    /// Data sets on the Hub, `owner/name`.
    pub datasets: Vec<String>,
    /// The training run, if danlu trained the adapter.
    pub training: Option<Training>,
    /// The merge, if this is a merged model.
    pub merge: Option<Merge>,
    /// The quantization, if this is a full model that was quantized.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_four_bits: Option<InFourBits>,
    /// The base that the adapter was trained on, if the adapter was merged into a different base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trained_on: Option<BaseIdentity>,
    /// Whether the folder contains the file `loss.svg`.
    pub has_picture: bool,
    /// Version of danlu that wrote the card.
    pub version: String,
}

/// Rank, scaling and targets of an adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lora {
    /// Rank.
    pub r: u32,
    /// Alpha.
    pub alpha: f64,
    /// Whether the update is scaled by alpha / sqrt(rank).
    pub use_rslora: bool,
    /// Target modules in PEFT's spelling.
    pub target_modules: String,
}

impl Lora {
    /// Returns the values of an adapter's configuration.
    pub fn of(config: &LoraConfig) -> Self {
        let target_modules = match &config.target_modules {
            TargetModules::AllLinear => "all-linear".to_owned(),
            TargetModules::List(names) => names.join(", "),
            TargetModules::Regex(regex) => regex.clone(),
        };
        Self { r: config.r, alpha: config.lora_alpha, use_rslora: config.use_rslora, target_modules }
    }
}

/// The values of a run that a card shows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Training {
    /// All settings of the run.
    pub settings: TrainSettings,
    /// Quantization of the base's own files, if the files are in 4 bits.
    #[serde(default)]
    pub stored: Option<Quantization>,
    /// Name of the adapter that the run continued from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_adapter: Option<String>,
    /// Number of parameters of the adapter.
    pub trainable_parameters: u64,
    /// Number of parameters of base and adapter together.
    pub all_parameters: u64,
    /// Counts of training data and held-out data.
    pub data: DataSummary,
    /// SHA-256 of the base's chat template, if the base has a template.
    pub template_sha256: Option<String>,
    /// Number of steps.
    pub steps: u64,
    /// Total duration of all steps, in seconds.
    pub seconds: f64,
    /// Number of tokens that training processed per second.
    pub tokens_per_second: Option<f64>,
    /// Mean training loss over the first tenth of the steps, and over the last tenth.
    pub train_loss: Option<(f64, f64)>,
    /// Held-out loss before and after training.
    pub held_out: Option<(f64, f64)>,
    /// Conclusions from the losses of the run.
    #[serde(default, alias = "warnings", skip_serializing_if = "Verdict::is_empty")]
    pub verdict: Verdict,
    /// Replies with and without the adapter.
    pub replies: Vec<Reply>,
    /// Maximum number of tokens in a reply.
    pub reply_tokens: usize,
    /// Name of the back end.
    pub backend: String,
    /// Name of the processor, if the system reports this name.
    pub processor: Option<String>,
    /// Measured and predicted peak memory in bytes.
    pub memory: Option<(u64, u64)>,
    /// Version of danlu that trained the adapter.
    pub version: String,
}

impl Training {
    /// Selects the values of a run that the card shows.
    pub fn of(
        run: &RunSummary,
        template_sha256: Option<String>,
        reply_tokens: usize,
        processor: Option<String>,
    ) -> Self {
        Self {
            settings: run.settings.clone(),
            stored: None,
            init_adapter: None,
            trainable_parameters: run.trainable_parameters,
            all_parameters: run.all_parameters,
            data: run.data.clone(),
            template_sha256,
            steps: run.steps.len() as u64,
            seconds: run.seconds(),
            tokens_per_second: run.tokens_per_second(),
            train_loss: run.train_loss(),
            held_out: run.held_out(),
            verdict: Verdict::of(run),
            replies: run.replies.clone(),
            reply_tokens,
            backend: run.backend.clone(),
            processor,
            memory: run.memory.as_ref().and_then(|memory| Some((memory.peak?, memory.plan.total))),
            version: run.version.clone(),
        }
    }

    /// Returns the quantization of the base during training.
    pub fn over(&self) -> Option<Quantization> {
        self.settings.quantization().or(self.stored)
    }

    /// Returns the number of trainable parameters as a percentage of all parameters.
    pub(crate) fn trainable_percent(&self) -> f64 {
        100.0 * self.trainable_parameters as f64 / self.all_parameters.max(1) as f64
    }
}

/// The values of a merge that a card shows: a [`MergeReport`] without paths.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Merge {
    /// The variant of the base that the adapter was merged into: original or dequantized.
    pub base: MergeBase,
    /// Measured fidelity of each variant of the base, if both variants were available.
    pub forms: Vec<FormFidelity>,
    /// Element types of the merged model in the spelling of `config.json`.
    pub dtype: Vec<String>,
    /// Fidelity of the quantized model, if the merged model is in 4 bits.
    pub quantized: Option<QuantizedFidelity>,
    /// Comparison of the merged model with the adapter on its base.
    pub fidelity: Fidelity,
}

impl Merge {
    /// Selects the values of a merge that the card shows.
    pub fn of(report: &MergeReport, fidelity: &Fidelity) -> Self {
        Self {
            base: report.merge_base,
            forms: report.forms.clone(),
            dtype: report.dtype.clone(),
            quantized: report.quantized,
            fidelity: fidelity.clone(),
        }
    }
}

impl Card {
    /// Reads the `card.json` of a folder. Returns `None` if the folder has no such file.
    ///
    /// # Errors
    /// If the file cannot be read, is not valid JSON, or contains a value that is not valid in a card.
    pub fn read(folder: &Path) -> Result<Option<Self>, ReportError> {
        let path = folder.join(CARD_FILE);
        if !path.exists() {
            return Ok(None);
        }
        Self::parse(&path, &files::read_bounded(&path, MAX_BYTES)?).map(Some)
    }

    /// Parses the bytes of a `card.json`. `path` is only used in messages.
    ///
    /// # Errors
    /// If the bytes are not valid JSON, or contain a value that is not valid in a card.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, ReportError> {
        let fault = |e: serde_json::Error| format!("line {}: {}", e.line(), json_words(bytes, &e));
        let card = serde_json::from_slice::<Self>(bytes).map_err(fault);
        card.and_then(|card| card.check().map(|()| card))
            .map_err(|reason| ReportError::Card { path: path.to_owned(), reason })
    }

    /// Checks the repository, data sets, bases, branch and licence, because they are inserted into links,
    /// commands, or metadata for the Hub.
    fn check(&self) -> Result<(), String> {
        let repository = self.repository.iter().map(|id| ("repository", id));
        for (field, id) in repository.chain(self.datasets.iter().map(|id| ("datasets", id))) {
            if !is_repo_id(id) {
                return Err(format!("`{field}` is {id:?}, expected owner/name"));
            }
        }
        let bases = [("base", Some(&self.base)), ("trained_on", self.trained_on.as_ref())];
        for (field, base) in bases.into_iter().filter_map(|(field, base)| Some((field, base?))) {
            base.check().map_err(|(part, fault)| format!("`{field}.{part}` is {fault}"))?;
        }
        if let Some(revision) = self.revision.as_ref().filter(|revision| !is_revision(revision)) {
            return Err(format!("`revision` is {revision:?}, expected {REVISION_FORM}"));
        }
        match &self.license {
            Some(id) if !is_license(id) => {
                Err(format!("`license` is {id:?}, expected a name such as apache-2.0"))
            }
            _ => Ok(()),
        }
    }

    /// Returns a valid repository name for a model that is not published. Characters that are invalid in a
    /// name on the Hub are replaced by dashes.
    pub(crate) fn name_on_hub(&self) -> String {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let mut name = String::new();
        for c in self.name.chars() {
            match c {
                c if is_plain(c) => name.push(c),
                '.' if name.ends_with(is_plain) => name.push('.'),
                _ if name.ends_with(is_plain) => name.push('-'),
                _ => {}
            }
        }
        let name: String = name.chars().take(80).collect();
        let name = name.trim_matches(|c| !is_plain(c));
        format!("your-name/{}", if name.is_empty() { "model" } else { name })
    }

    /// Returns the quantization of the model, if the model is in 4 bits.
    pub(crate) fn four_bit(&self) -> Option<Quantization> {
        let merged = self.merge.as_ref().and_then(|merge| merge.quantized);
        self.in_four_bits
            .as_ref()
            .map(|four| four.quantization)
            .or(merged.map(|figures| figures.quantization))
    }

    /// Returns the card for the quantized version of this model, in the folder `name`.
    pub fn quantized(self, name: String, in_four_bits: InFourBits) -> Self {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Self { name, in_four_bits: Some(in_four_bits), repository: None, revision: None, version, ..self }
    }

    /// Creates a card for the folder `name` with its base and licence. All other values are empty.
    pub fn new(name: String, language: CardLanguage, base: BaseIdentity, license: Option<String>) -> Self {
        Self {
            name,
            repository: None,
            revision: None,
            language,
            base,
            lora: None,
            license,
            datasets: Vec::new(),
            training: None,
            merge: None,
            in_four_bits: None,
            trained_on: None,
            has_picture: false,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// Creates a card as [`Card::new`] does, with the licence from the card of the base in `folder`.
    pub fn of_base(name: String, language: CardLanguage, base: BaseIdentity, folder: &Path) -> Self {
        Self::new(name, language, base, license_of(folder))
    }

    /// Returns the card of the merged model in the folder `name`.
    pub fn merged(self, name: String, merge: Merge) -> Self {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Self { name, merge: Some(merge), repository: None, revision: None, version, ..self }
    }
}
