//! `danlu.json`: tokenizer, template, default system prompt and base of an adapter's training.
//!
//! With another template an adapter gives poor answers without any error. Loading therefore compares
//! fingerprints.

use std::path::{Path, PathBuf};

use danlu_model::{Quantization, TokenFingerprint, Tokenizer, files, json_words};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{AdapterError, BaseIdentity};

/// Name of the file.
pub const IDENTITY_FILE: &str = "danlu.json";

/// Name of the file with a chat template.
const TEMPLATE_FILE: &str = "chat_template.jinja";

/// Files of a tokenizer. Some bases lack some of them.
const TOKENIZER_FILES: [&str; 4] =
    ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", TEMPLATE_FILE];

/// Largest tokenizer file that is copied. The largest in use have about 30 MB.
const MAX_BYTES: u64 = 1 << 30;

/// Identity of an adapter: tokenizer, template, default system prompt and base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainingIdentity {
    folder: PathBuf,
    /// Template of the run, if it differs from the base's.
    template: Option<String>,
    written: Written,
}

/// The contents of `danlu.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Written {
    danlu_version: String,
    /// System prompt for conversations without one.
    default_system: Option<String>,
    tokens: TokenFingerprint,
    /// Quantization of the base in training, on load or in its files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    quantization: Option<Quantization>,
    /// Modules in 16 bits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    skip_modules: Vec<String>,
    /// Base of the training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base: Option<BaseIdentity>,
    /// Quantization of the base's own files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stored_quantization: Option<Quantization>,
}

impl TrainingIdentity {
    /// Returns the identity of the tokenizer in `folder`, which was read as `tokenizer`.
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

    /// Sets a template that differs from the base's.
    pub fn with_template(mut self, source: Option<String>) -> Self {
        self.template = source;
        self
    }

    /// Sets the quantization of the base, without the modules of `skip_modules`.
    pub fn over(mut self, quantization: Option<Quantization>, skip_modules: Vec<String>) -> Self {
        self.written.quantization = quantization;
        self.written.skip_modules = skip_modules;
        self
    }

    /// Sets the base of the training, and the quantization of its files.
    pub fn trained_on(mut self, base: BaseIdentity, stored: Option<Quantization>) -> Self {
        self.written.base = Some(base);
        self.written.stored_quantization = stored;
        self
    }

    /// Returns the base of the training. Older versions did not record it.
    pub fn base(&self) -> Option<&BaseIdentity> {
        self.written.base.as_ref()
    }

    /// Returns the quantization of the base's files in training.
    pub fn stored_quantization(&self) -> Option<Quantization> {
        self.written.stored_quantization
    }

    /// Returns the modules that the quantization left in 16 bits.
    pub fn skip_modules(&self) -> &[String] {
        &self.written.skip_modules
    }

    /// Returns the quantization of the base in training.
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

    /// Reads `danlu.json` of an adapter's folder. Adapters of other programs have none.
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

    /// Returns the `danlu.json` of an adapter's folder with another base. All other fields are unchanged.
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

    /// Returns the system prompt for conversations without one.
    pub fn default_system(&self) -> Option<&str> {
        self.written.default_system.as_deref()
    }

    /// Compares the tokens with those of `tokenizer`. Returns a sentence for each difference.
    pub fn differences(&self, tokenizer: &Tokenizer) -> Vec<String> {
        self.written.tokens.difference(&tokenizer.fingerprint(), ["in training", "now"])
    }

    /// Returns the fingerprint of template, special tokens and tokenizer.
    pub fn fingerprint(&self) -> &TokenFingerprint {
        &self.written.tokens
    }
}
