//! `danlu.json`: tokenizer, template and default system prompt of the training, stored beside the adapter.
//!
//! An adapter used with another template gives wrong replies without any error.

use std::path::{Path, PathBuf};

use danlu_model::{Quantization, TokenFingerprint, Tokenizer, files, json_words};
use serde::{Deserialize, Serialize};

use crate::{AdapterError, BaseIdentity};

/// Name of the file beside the adapter that records its training.
pub const IDENTITY_FILE: &str = "danlu.json";

/// The file that holds a chat template.
const TEMPLATE_FILE: &str = "chat_template.jinja";

/// Files that make up a tokenizer, as far as a base has them.
const TOKENIZER_FILES: [&str; 4] =
    ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", TEMPLATE_FILE];

/// Largest tokenizer file that is copied. The largest in use have some 30 MB.
const MAX_BYTES: u64 = 1 << 30;

/// Tokenizer, template and default system prompt of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenIdentity {
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
    /// The quantization of the base in training, at load time or in its files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    quantization: Option<Quantization>,
    /// Projections that were not quantized.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    skip_modules: Vec<String>,
    /// The base of the training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base: Option<BaseIdentity>,
    /// The 4 bits that the base's own files held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stored_quantization: Option<Quantization>,
}

impl TokenIdentity {
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

    /// The same, of a run with a template other than the base's.
    pub fn with_template(mut self, source: Option<String>) -> Self {
        self.template = source;
        self
    }

    /// The same, of a run over a quantized base, without the modules of `skip_modules`.
    pub fn over(mut self, quantization: Option<Quantization>, skip_modules: Vec<String>) -> Self {
        self.written.quantization = quantization;
        self.written.skip_modules = skip_modules;
        self
    }

    /// Records the base of the training, and the 4 bits that its own files hold.
    pub fn trained_on(mut self, base: BaseIdentity, stored: Option<Quantization>) -> Self {
        self.written.base = Some(base);
        self.written.stored_quantization = stored;
        self
    }

    /// The base of the training; none in a file of an older version.
    pub fn base(&self) -> Option<&BaseIdentity> {
        self.written.base.as_ref()
    }

    /// The 4 bits that the base's own files held in training.
    pub fn stored_quantization(&self) -> Option<Quantization> {
        self.written.stored_quantization
    }

    /// Projections in 16 bits of a base that was stored in 4 bits.
    pub fn skip_modules(&self) -> &[String] {
        &self.written.skip_modules
    }

    /// The quantization of the base in training, if it was quantized.
    pub fn quantization(&self) -> Option<Quantization> {
        self.written.quantization
    }

    /// Bytes of the largest file that [`TokenIdentity::write`] copies, which pass through memory.
    pub fn largest_file(&self) -> u64 {
        let size = |name: &&str| std::fs::metadata(self.folder.join(name)).map_or(0, |file| file.len());
        TOKENIZER_FILES.iter().map(size).max().unwrap_or(0)
    }

    /// Writes the tokenizer's own files and `danlu.json` into an adapter's folder.
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

    /// Reads the identity from an adapter's folder. `None` if another program made the adapter.
    ///
    /// # Errors
    /// If the file exists and cannot be read.
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

    /// The differences from the tokens of `tokenizer`, a sentence each.
    pub fn differences(&self, tokenizer: &Tokenizer) -> Vec<String> {
        self.written.tokens.difference(&tokenizer.fingerprint(), ["in training", "now"])
    }

    /// Template, special tokens and tokenizer, hashed.
    pub fn fingerprint(&self) -> &TokenFingerprint {
        &self.written.tokens
    }
}
