//! Tokenizer, chat template and default settings of the base or of an adapter.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use danlu_generate::SamplingOptions;
use danlu_loader::{AdapterFiles, BaseFiles, GenerationConfig, LoadError};
use danlu_model::sidecar_files::generation_folder;
use danlu_model::{ModelConfig, TokenFingerprint, Tokenizer, files};
use sha2::{Digest, Sha256};

use crate::grammar::GrammarFactory;
use crate::tools::CallFormat;

/// Files that determine the tokenizer and the chat template.
const TOKEN_FILES: [&str; 6] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
];

/// A tokenizer with its fingerprint. Adapter versions with equal tokenizer files share one value.
pub(crate) struct SharedTokens {
    pub tokenizer: Tokenizer,
    pub fingerprint: TokenFingerprint,
    /// The compiler of grammars, which is built for the first request that needs a grammar.
    grammars: OnceLock<Result<Arc<GrammarFactory>, String>>,
    /// The form of tool calls in the chat template, or the reason why there is none.
    calls: OnceLock<Result<Arc<CallFormat>, String>>,
}

impl SharedTokens {
    fn new(tokenizer: Tokenizer, fingerprint: TokenFingerprint) -> Self {
        Self { tokenizer, fingerprint, grammars: OnceLock::new(), calls: OnceLock::new() }
    }

    /// Returns the compiler of grammars. The first call may take seconds.
    ///
    /// # Errors
    /// If the model has no token that ends a reply.
    pub fn grammars(&self, vocab_size: usize) -> Result<&Arc<GrammarFactory>, String> {
        let new = || GrammarFactory::new(&self.tokenizer, vocab_size).map(Arc::new);
        self.grammars.get_or_init(new).as_ref().map_err(Clone::clone)
    }

    /// Returns the form of tool calls.
    ///
    /// # Errors
    /// If the chat template renders no tools, or no calls in JSON.
    pub fn calls(&self) -> Result<&Arc<CallFormat>, String> {
        let find = || {
            let template = self.tokenizer.template().map_err(|error| error.to_string())?;
            CallFormat::find(template, &self.tokenizer).map(Arc::new)
        };
        self.calls.get_or_init(find).as_ref().map_err(Clone::clone)
    }
}

/// Tokenizer and default settings for the requests of one model.
#[derive(Clone)]
pub(crate) struct ModelProfile {
    pub tokens: Arc<SharedTokens>,
    /// System message for conversations that have none.
    pub default_system: Option<String>,
    /// Default sampling settings for fields that a request omits.
    pub sampling: SamplingOptions,
}

impl ModelProfile {
    /// Returns the tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokens.tokenizer
    }
}

/// The profiles of a base and its adapters. While a tokenizer is in use, equal files are not parsed again.
pub(crate) struct ModelProfiles {
    base: Arc<BaseFiles>,
    config: ModelConfig,
    of_base: Arc<ModelProfile>,
    /// Tokenizers of adapters, by the SHA-256 of their files.
    shared: Mutex<HashMap<[u8; 32], Weak<SharedTokens>>>,
}

impl ModelProfiles {
    /// Creates the profiles of a base without adapters.
    ///
    /// # Errors
    /// If `generation_config.json` of the base is invalid.
    pub fn new(
        base: Arc<BaseFiles>,
        config: ModelConfig,
        tokenizer: Tokenizer,
        default_system: Option<String>,
    ) -> Result<Self, LoadError> {
        let sampling = default_sampling(base.folder())?;
        let fingerprint = tokenizer.fingerprint();
        let tokens = Arc::new(SharedTokens::new(tokenizer, fingerprint));
        let of_base = Arc::new(ModelProfile { tokens, default_system, sampling });
        Ok(Self { base, config, of_base, shared: Mutex::default() })
    }

    /// Returns the profile of the base.
    pub fn of_base(&self) -> &Arc<ModelProfile> {
        &self.of_base
    }

    /// Returns the profile of an adapter.
    ///
    /// # Errors
    /// If a file is invalid, or if the tokenizer differs from the one used in training. Also returns an error
    /// if a token of the base has a different id in the adapter's tokenizer.
    pub fn of_adapter(&self, files: &AdapterFiles) -> Result<Arc<ModelProfile>, LoadError> {
        let tokens = self.tokens(files)?;
        let trained = files.identity().map(|identity| identity.fingerprint());
        let differences = match trained {
            Some(trained) => trained.difference(&tokens.fingerprint, ["in training", "now"]),
            None => Vec::new(),
        };
        if !differences.is_empty() {
            return Err(LoadError::TokenMismatch {
                summary: format!(
                    "cannot serve `{}`: its tokenizer or template differs from the one used in training",
                    files.name()
                ),
                differences,
                hint: "serve it on the base of its training, with the tokenizer of its training",
            });
        }
        let default_system = files.identity().and_then(|identity| identity.default_system());
        let folder = generation_folder(self.base.folder(), Some(files.folder()));
        Ok(Arc::new(ModelProfile {
            tokens,
            default_system: default_system.map(str::to_owned),
            sampling: default_sampling(folder)?,
        }))
    }

    /// Returns the tokenizer of an adapter. Returns the tokenizer of the base if the adapter has no tokenizer
    /// files, or if its files define the same tokenizer.
    fn tokens(&self, files: &AdapterFiles) -> Result<Arc<SharedTokens>, LoadError> {
        let of_base = &self.of_base.tokens;
        if !Tokenizer::is_brought_by(files.folder()) {
            return Ok(Arc::clone(of_base));
        }
        let digest = digest_of_files(files.folder());
        if let Some(shared) = self.lock().get(&digest).and_then(Weak::upgrade) {
            return Ok(shared);
        }
        let tokenizer = self.base.tokenizer(Some(files.folder()))?;
        tokenizer.limit_ids(&self.config);
        let fingerprint = tokenizer.fingerprint();
        let tokens = match fingerprint == of_base.fingerprint
            && tokenizer.stop_ids() == of_base.tokenizer.stop_ids()
        {
            true => Arc::clone(of_base),
            false => {
                check_ids(files, &of_base.tokenizer, &tokenizer)?;
                Arc::new(SharedTokens::new(tokenizer, fingerprint))
            }
        };
        let mut shared = self.lock();
        shared.retain(|_, tokens| tokens.strong_count() > 0);
        shared.insert(digest, Arc::downgrade(&tokens));
        Ok(tokens)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<[u8; 32], Weak<SharedTokens>>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Rejects a tokenizer that assigns an id of the base to a different token.
fn check_ids(files: &AdapterFiles, base: &Tokenizer, own: &Tokenizer) -> Result<(), LoadError> {
    let common = base.vocab_size().min(own.vocab_size()) as u32;
    let Some(id) = (0..common).find(|&id| base.token_str(id) != own.token_str(id)) else { return Ok(()) };
    let shown = |tokenizer: &Tokenizer| tokenizer.token_str(id).unwrap_or_else(|| "no token".to_owned());
    Err(LoadError::TokenMismatch {
        summary: format!(
            "cannot serve `{}`: a token has different ids in its tokenizer and in the base's",
            files.name()
        ),
        differences: vec![format!(
            "id {id} is `{}` in the base and `{}` beside the adapter",
            shown(base),
            shown(own)
        )],
        hint: "serve it on the base of its training",
    })
}

/// Maximum size of a tokenizer's file. The largest known file has 34 MB.
const MAX_TOKEN_FILE_BYTES: u64 = 256 << 20;

/// Returns the SHA-256 of the files that determine the tokenizer. A missing file and an empty file give
/// different hashes.
fn digest_of_files(folder: &Path) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for name in TOKEN_FILES {
        let bytes = files::read_bounded(&folder.join(name), MAX_TOKEN_FILE_BYTES).ok();
        let len = bytes.as_ref().map_or(u64::MAX, |bytes| bytes.len() as u64);
        hasher.update(len.to_le_bytes());
        hasher.update(bytes.unwrap_or_default());
    }
    hasher.finalize().into()
}

/// Returns the sampling settings: OpenAI's defaults, replaced by the values in `generation_config.json`.
fn default_sampling(folder: &Path) -> Result<SamplingOptions, LoadError> {
    let config = GenerationConfig::read(folder)?;
    let mut sampling = SamplingOptions::default();
    // Without `do_sample`, transformers ignores the sampling values of the file.
    if config.flag("do_sample")? {
        let temperature = config.number("temperature", |x| x >= 0.0, "0 or more")?;
        let top_p = config.number("top_p", |x| x > 0.0 && x <= 1.0, "above 0 and at most 1")?;
        let min_p = config.number("min_p", |x| (0.0..=1.0).contains(&x), "between 0 and 1")?;
        sampling.temperature = temperature.unwrap_or(sampling.temperature);
        sampling.top_p = top_p.unwrap_or(sampling.top_p);
        sampling.min_p = min_p.unwrap_or(sampling.min_p);
        sampling.top_k = config.count("top_k")?.unwrap_or(sampling.top_k);
    }
    let penalty = config.number("repetition_penalty", |x| x > 0.0 && x.is_finite(), "above 0")?;
    sampling.repetition_penalty = penalty.unwrap_or(sampling.repetition_penalty);
    Ok(sampling)
}
