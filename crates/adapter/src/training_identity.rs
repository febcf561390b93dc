//! `danlu.json`: the tokenizer, template, default system prompt and base that an adapter was trained with.
//!
//! With another template an adapter gives poor answers without any error. Loading therefore compares fingerprints.

use std::path::{Path, PathBuf};

use danlu_model::{Quantization, TokenFingerprint, Tokenizer, files, json_words};
use serde::{Deserialize, Serialize};

use crate::{AdapterError, BaseIdentity};

/// Name of the file with the identity of an adapter.
pub const IDENTITY_FILE: &str = "danlu.json";

/// Name of the file with a chat template.
const TEMPLATE_FILE: &str = "chat_template.jinja";

/// Files of a tokenizer. A base may lack some.
const TOKENIZER_FILES: [&str; 4] =
    ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", TEMPLATE_FILE];

/// Largest tokenizer file that is copied. The largest in use have about 30 MB.
const MAX_BYTES: u64 = 1 << 30;

/// The identity of an adapter: tokenizer, template, default system prompt and base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainingIdentity {
    folder: PathBuf,
    /// The template of the run, if it is not the base's.
    template: Option<String>,
    written: Written,
}

/// The contents of `danlu.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Written {
    danlu_version: String,
    /// The system prompt of conversations without one.
    default_system: Option<String>,
    tokens: TokenFingerprint,
    /// The quantization of the base in training, on load or in its files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    quantization: Option<Quantization>,
    /// Modules left in 16 bits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    skip_modules: Vec<String>,
    /// The base of the training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base: Option<BaseIdentity>,
    /// The 4 bits that the base's own files held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stored_quantization: Option<Quantization>,
}

impl TrainingIdentity {
    /// The identity of the tokenizer in `folder`, which was read as `tokenizer`.
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

    /// Sets a template other than the base's.
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

    /// The base of the training. Older versions did not record it.
    pub fn base(&self) -> Option<&BaseIdentity> {
        self.written.base.as_ref()
    }

    /// The quantization of the base's files in training.
    pub fn stored_quantization(&self) -> Option<Quantization> {
        self.written.stored_quantization
    }

    /// Modules left in 16 bits by the quantization.
    pub fn skip_modules(&self) -> &[String] {
        &self.written.skip_modules
    }

    /// The quantization of the base in training, if there was one.
    pub fn quantization(&self) -> Option<Quantization> {
        self.written.quantization
    }

    /// Bytes of the largest file that [`TrainingIdentity::write`] reads into memory.
    pub fn largest_file(&self) -> u64 {
        let size = |name: &&str| std::fs::metadata(self.folder.join(name)).map_or(0, |file| file.len());
        TOKENIZER_FILES.iter().map(size).max().unwrap_or(0)
    }

    /// Writes the tokenizer's files and `danlu.json` into an adapter's folder.
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

    /// Reads `danlu.json` in an adapter's folder. Adapters of other programs have none.
    ///
    /// # Errors
    /// If it cannot be read, or has a fault.
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

    /// The system prompt of conversations without one.
    pub fn default_system(&self) -> Option<&str> {
        self.written.default_system.as_deref()
    }

    /// Compares the tokens with those of `tokenizer`. Each difference is one sentence.
    pub fn differences(&self, tokenizer: &Tokenizer) -> Vec<String> {
        self.written.tokens.difference(&tokenizer.fingerprint(), ["in training", "now"])
    }

    /// The fingerprint of template, special tokens and tokenizer.
    pub fn fingerprint(&self) -> &TokenFingerprint {
        &self.written.tokens
    }
}
