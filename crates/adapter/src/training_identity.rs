//! `danlu.json`: the tokenizer, template, default system prompt and base that an adapter was trained with.
//!
//! With a different template, an adapter gives poor answers without any error. Loading therefore compares
//! fingerprints.

use std::path::{Path, PathBuf};

use danlu_model::{Quantization, TokenFingerprint, Tokenizer, files, json_words};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{AdapterError, BaseIdentity};

/// Name of the file.
pub const IDENTITY_FILE: &str = "danlu.json";

const TEMPLATE_FILE: &str = "chat_template.jinja";

/// Files of a tokenizer. Some bases do not have all of these files.
const TOKENIZER_FILES: [&str; 4] =
    ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", TEMPLATE_FILE];

/// Maximum size of a tokenizer file that is copied. Published tokenizer files have less than 40 MB.
const MAX_BYTES: u64 = 1 << 30;

/// The tokenizer, template, default system prompt and base that an adapter was trained with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainingIdentity {
    folder: PathBuf,
    /// The template of the run, if it differs from the template of the base.
    template: Option<String>,
    written: Written,
}

/// The contents of `danlu.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Written {
    danlu_version: String,
    /// System prompt for conversations without a system prompt.
    default_system: Option<String>,
    tokens: TokenFingerprint,
    /// Quantization of the base during training, either applied while loading or already in the base's files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    quantization: Option<Quantization>,
    /// Modules of the base that were not quantized.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    skip_modules: Vec<String>,
    /// The base of the training run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base: Option<BaseIdentity>,
    /// Quantization of the base's files, if they were stored in 4 bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stored_quantization: Option<Quantization>,
}

impl TrainingIdentity {
    /// Returns the identity for `tokenizer`, which was read from `folder`.
    pub fn new(folder: &Path, tokenizer: &Tokenizer, default_system: Option<String>) -> Self {
        let danlu_version = env!("CARGO_PKG_VERSION").to_owned();
        let tokens = tokenizer.fingerprint();
        let written = Written {
            danlu_version,
            default_system,
            tokens,
            quantization: None,
            skip_modules: Vec::new(),
            base: None,
            stored_quantization: None,
        };
        Self { folder: folder.to_owned(), template: None, written }
    }

    /// Sets a template that differs from the template of the base.
    pub fn with_template(mut self, source: Option<String>) -> Self {
        self.template = source;
        self
    }

    /// Sets the quantization of the base. The modules in `skip_modules` were not quantized.
    pub fn over(mut self, quantization: Option<Quantization>, skip_modules: Vec<String>) -> Self {
        self.written.quantization = quantization;
        self.written.skip_modules = skip_modules;
        self
    }

    /// Sets the base of the training run. `stored` is the quantization of the base's files, if they are in 4
    /// bits.
    pub fn trained_on(mut self, base: BaseIdentity, stored: Option<Quantization>) -> Self {
        self.written.base = Some(base);
        self.written.stored_quantization = stored;
        self
    }

    /// Returns the base of the training run. Older versions of danlu did not record the base.
    pub fn base(&self) -> Option<&BaseIdentity> {
        self.written.base.as_ref()
    }

    /// Returns the quantization of the base's files in training, if they were stored in 4 bits.
    pub fn stored_quantization(&self) -> Option<Quantization> {
        self.written.stored_quantization
    }

    /// Returns the modules of the base that were not quantized.
    pub fn skip_modules(&self) -> &[String] {
        &self.written.skip_modules
    }

    /// Returns the quantization of the base during training.
    pub fn quantization(&self) -> Option<Quantization> {
        self.written.quantization
    }

    /// Returns the size of the largest file that [`TrainingIdentity::write`] reads into memory.
    pub fn largest_file(&self) -> u64 {
        let size = |name: &&str| std::fs::metadata(self.folder.join(name)).map_or(0, |file| file.len());
        TOKENIZER_FILES.iter().map(size).max().unwrap_or(0)
    }

    /// Writes the tokenizer's files and `danlu.json` to an adapter's folder.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub fn write(&self, adapter: &Path) -> Result<(), AdapterError> {
        for name in TOKENIZER_FILES {
            let source = self.folder.join(name);
            if source.is_file() {
                files::write_atomic(&adapter.join(name), &files::read_bounded(&source, MAX_BYTES)?)?;
            }
        }
        if let Some(source) = &self.template {
            files::write_atomic(&adapter.join(TEMPLATE_FILE), source.as_bytes())?;
        }
        let text = serde_json::to_string_pretty(&self.written).expect("plain fields with names become JSON");
        Ok(files::write_atomic(&adapter.join(IDENTITY_FILE), text.as_bytes())?)
    }

    /// Reads `danlu.json` of an adapter's folder. Returns `None` if there is no such file, as in adapters of
    /// other programs.
    ///
    /// # Errors
    /// If the file cannot be read or is invalid.
    pub fn read(adapter: &Path) -> Result<Option<Self>, AdapterError> {
        let path = adapter.join(IDENTITY_FILE);
        if !path.exists() {
            return Ok(None);
        }
        let bytes = files::read_bounded(&path, MAX_BYTES)?;
        let fault = |e: serde_json::Error| format!("line {}: {}", e.line(), json_words(&bytes, &e));
        let written: Written = serde_json::from_slice(&bytes)
            .map_err(|e| AdapterError::Identity { path: path.clone(), reason: fault(e) })?;
        if let Some(Err((field, reason))) = written.base.as_ref().map(BaseIdentity::check) {
            return Err(AdapterError::Identity { path, reason: format!("`base.{field}` is {reason}") });
        }
        Ok(Some(Self { folder: adapter.to_owned(), template: None, written }))
    }

    /// Returns the contents of `danlu.json` with `base` as the base. All other fields are unchanged.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn json_with_base(adapter: &Path, base: &BaseIdentity) -> Result<Vec<u8>, AdapterError> {
        let path = adapter.join(IDENTITY_FILE);
        let bytes = files::read_bounded(&path, MAX_BYTES)?;
        let mut fields: Map<String, Value> = serde_json::from_slice(&bytes).map_err(|e| {
            let reason = format!("line {}: {}", e.line(), json_words(&bytes, &e));
            AdapterError::Identity { path, reason }
        })?;
        let base = serde_json::to_value(base).expect("plain fields become JSON");
        fields.insert("base".to_owned(), base);
        Ok(serde_json::to_vec_pretty(&fields).expect("JSON that was read is written again"))
    }

    /// Returns the system prompt for conversations without a system prompt.
    pub fn default_system(&self) -> Option<&str> {
        self.written.default_system.as_deref()
    }

    /// Compares the training tokenizer with `tokenizer`. Returns a sentence for each difference.
    pub fn differences(&self, tokenizer: &Tokenizer) -> Vec<String> {
        self.written.tokens.difference(&tokenizer.fingerprint(), ["in training", "now"])
    }

    /// Returns the fingerprint of the template, the special tokens and the tokenizer.
    pub fn fingerprint(&self) -> &TokenFingerprint {
        &self.written.tokens
    }
}
