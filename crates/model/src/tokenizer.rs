//! The tokenizer of a model folder, which encodes and decodes text, and returns named tokens and end tokens.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde_json::Value;
use sha2::{Digest, Sha256};
use tokenizers::ModelWrapper;

use crate::added_tokens::TokenFiles;
use crate::chat_template::ChatTemplate;
use crate::encode_windows::{TextToken, WindowFault, WindowOptions, encode_windows};
use crate::guarded_thread::{self, NoResult, WorkLimits};
use crate::json::{self, Fields};
use crate::token_fingerprint::TokenFingerprint;
use crate::tokenizer_file::{MAX_TOKEN_BYTES, TokenizerFile};
use crate::{ConfigJson, ModelConfig, ModelError, files, sentencepiece, sidecar_files};

/// Maximum size of a tokenizer file. The largest published files have some 35 MB.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;

/// SentencePiece's model file, which is read if there is no `tokenizer.json`.
const SENTENCEPIECE: &str = "tokenizer.model";

/// Files of tokenizers that have no `tokenizer.json`.
const OTHER_TOKENIZERS: [&str; 8] = [
    SENTENCEPIECE,
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
    "tiktoken.model",
    "qwen.tiktoken",
];

/// Limits for reading a file. They grow with the size of the file.
const LOAD_LIMITS: WorkLimits = WorkLimits { time: Duration::from_secs(15), bytes: 128 << 20 };

/// Limits for encoding a text with slow patterns. They grow with the length of the text.
const ENCODE_LIMITS: WorkLimits = WorkLimits { time: Duration::from_secs(5), bytes: 128 << 20 };

/// A tokenizer with its chat template.
pub struct Tokenizer {
    path: PathBuf,
    inner: Arc<tokenizers::Tokenizer>,
    /// Whether encoding needs a time limit.
    is_slow: bool,
    /// Options for dividing a long text into windows.
    windows: WindowOptions,
    /// The reason why an encoding was abandoned. After such an encoding, this tokenizer returns an error for
    /// every text.
    abandoned: OnceLock<NoResult>,
    ignored_dropout: Option<f32>,
    /// Number of rows of the model's embedding table, if known.
    table_rows: OnceLock<usize>,
    specials: Vec<String>,
    named: BTreeMap<String, String>,
    stop_ids: BTreeSet<u32>,
    template: Option<ChatTemplate>,
}

/// A token id and its byte range in the text.
pub type TokenSpan = (u32, Range<usize>);

impl Tokenizer {
    /// Reads `tokenizer.json` of a folder, or `tokenizer.model` if there is no `tokenizer.json`. Also reads
    /// the following files if they exist: `tokenizer_config.json`, `special_tokens_map.json`,
    /// `added_tokens.json`, `chat_template.jinja`, `generation_config.json` and `config.json`.
    ///
    /// # Errors
    /// If there is no tokenizer, or a file is malformed.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        Self::read_from(folder, folder, folder, ConfigJson::read_optional(folder)?.as_ref())
    }

    /// Reads the tokenizer of `base`. `config` is the base's `config.json`. The following files of `adapter`
    /// replace the files of the base: a complete tokenizer, a chat template, and `generation_config.json`.
    ///
    /// # Errors
    /// The errors of [`Tokenizer::read`].
    pub fn read_with(base: &Path, adapter: Option<&Path>, config: &ConfigJson) -> Result<Self, ModelError> {
        let [tokenizer, template] = Self::folders(base, adapter.unwrap_or(base));
        let generation = sidecar_files::generation_folder(base, adapter);
        Self::read_from(tokenizer, template, generation, Some(config))
    }

    /// Returns whether `adapter` contains a file that [`Tokenizer::read_with`] uses instead of a file of the
    /// base.
    pub fn is_brought_by(adapter: &Path) -> bool {
        let none = Path::new("");
        Self::folders(none, adapter) != [none, none]
            || sidecar_files::generation_folder(none, Some(adapter)) != none
    }

    /// Returns the folders from which [`Tokenizer::read_with`] reads the tokenizer and the template.
    pub fn folders<'a>(base: &'a Path, adapter: &'a Path) -> [&'a Path; 2] {
        let has = |name: &str| adapter.join(name).is_file();
        let tokenizer = if has("tokenizer.json") && has("tokenizer_config.json") { adapter } else { base };
        [tokenizer, if has("chat_template.jinja") { adapter } else { tokenizer }]
    }

    fn read_from(
        folder: &Path,
        template: &Path,
        generation: &Path,
        config_json: Option<&ConfigJson>,
    ) -> Result<Self, ModelError> {
        let config_path = folder.join("tokenizer_config.json");
        let files = TokenFiles {
            config: json::read_optional(&config_path)?,
            map: json::read_optional(&folder.join("special_tokens_map.json"))?,
            added: json::read_optional(&folder.join("added_tokens.json"))?,
        };
        let named = files.named();
        let (path, bytes) = read_bytes(folder, &files, &named)?;
        let error = |message: String| ModelError::Tokenizer { path: path.clone(), message };
        let file = TokenizerFile::parse(&bytes).map_err(error)?;
        file.check().map_err(error)?;
        let mut inner = load(bytes).map_err(error)?;
        let present = inner.get_added_tokens_decoder().into_values().map(|token| token.content).collect();
        let additions = files.additions(&present);
        if let Some(token) = additions.iter().find(|token| token.content.len() > MAX_TOKEN_BYTES) {
            let bytes = token.content.len();
            let message = format!("it adds a token of {bytes} bytes, expected at most {MAX_TOKEN_BYTES}");
            return Err(ModelError::Tokenizer { path: config_path, message });
        }
        inner.add_tokens(additions).map_err(|e| error(e.to_string()))?;
        let specials: Vec<String> = inner
            .get_added_tokens_decoder()
            .into_values()
            .filter(|token| token.special)
            .map(|token| token.content)
            .collect();
        let compile = |(path, source): (PathBuf, String)| {
            ChatTemplate::new(&path, &source, named.clone(), &turn_ends(&inner))
        };
        let sources = template_sources(template, &config_path, files.config.as_ref())?;
        let template = match (sources.default.map(compile), sources.tool_use.map(compile)) {
            (Some(default), Some(tool_use)) => Some(default?.with_tool_use(tool_use?)),
            (default, _) => default.transpose()?,
        };

        let mut stop_ids = BTreeSet::new();
        let generation = generation.join("generation_config.json");
        if let Some(value) = json::read_optional(&generation)? {
            stop_ids.extend(Fields::new(&generation, &value)?.token_ids("eos_token_id")?);
        }
        stop_ids.extend(config_json.map(ConfigJson::eos_token_ids).transpose()?.into_iter().flatten());
        let end_of_turn = template.as_ref().and_then(|t| t.end_of_turn());
        let by_name = named.get("eos_token").map(|token| token.as_str());
        let turn_starts = template.iter().flat_map(|t| t.turn_starts()).map(String::as_str);
        let ends = by_name.into_iter().chain(end_of_turn).chain(turn_starts);
        stop_ids.extend(ends.filter_map(|token| inner.token_to_id(token)));
        Ok(Self {
            windows: WindowOptions::new(!is_joined_within_words(&inner)),
            inner: Arc::new(inner),
            is_slow: file.has_slow_pattern(),
            abandoned: OnceLock::new(),
            ignored_dropout: file.dropout(),
            table_rows: OnceLock::new(),
            path,
            named,
            specials,
            stop_ids,
            template,
        })
    }

    /// Returns the ids of `text`. Special tokens in the text are recognised. No special tokens are added.
    ///
    /// # Errors
    /// If the tokenizer cannot represent the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let mut ids = Vec::new();
        self.visit_ids(text, &mut |piece| {
            ids.extend_from_slice(piece);
            ControlFlow::Continue(())
        })?;
        Ok(ids)
    }

    /// Returns the number of tokens of `text`. Counting may stop once the number exceeds `limit`, so a result
    /// above `limit` may be too small.
    ///
    /// # Errors
    /// The errors of [`Tokenizer::encode`].
    pub fn count(&self, text: &str, limit: usize) -> Result<usize, ModelError> {
        let mut count = 0;
        self.visit_ids(text, &mut |piece| {
            count += piece.len();
            if count > limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        Ok(count)
    }

    /// Passes the ids of `text` to `visit`. The ids of a long text are passed in several calls.
    fn visit_ids(
        &self,
        text: &str,
        visit: &mut dyn FnMut(&[u32]) -> ControlFlow<()>,
    ) -> Result<(), ModelError> {
        if text.len() > self.windows.bytes {
            return self.visit_tokens(text, &mut |tokens| {
                visit(&tokens.iter().map(|(id, _)| *id).collect::<Vec<_>>())
            });
        }
        let encoding = self.guarded(text, |inner, text| inner.encode_fast(text, false))?;
        self.check_rows(encoding.get_ids())?;
        // This was the last call of `visit`, so its return value has no effect.
        let _ = visit(encoding.get_ids());
        Ok(())
    }

    /// Passes the ids of `text` and their byte ranges to `visit`. The ids of a long text are passed in
    /// several calls. `visit` may break.
    ///
    /// # Errors
    /// The errors of [`Tokenizer::encode`].
    pub fn visit_tokens(
        &self,
        text: &str,
        visit: &mut dyn FnMut(&[TokenSpan]) -> ControlFlow<()>,
    ) -> Result<(), ModelError> {
        let encode = |window: &str| {
            let encoding = self.guarded(window, |inner, text| inner.encode(text, false))?;
            self.check_rows(encoding.get_ids())?;
            let words = encoding.get_word_ids().iter();
            let tokens = encoding.get_ids().iter().zip(encoding.get_offsets()).zip(words);
            let token = |((&id, &(start, end)), &word)| TextToken { id, range: start..end, word };
            Ok(tokens.map(token).collect())
        };
        let mut pairs = |tokens: &[TextToken]| {
            visit(&tokens.iter().map(|token| (token.id, token.range.clone())).collect::<Vec<_>>())
        };
        encode_windows(text, self.windows, &encode, &mut pairs).map_err(|fault| match fault {
            WindowFault::Encode(error) => error,
            WindowFault::Indivisible(at) => {
                let (all, most) = (text.len(), self.windows.max_bytes);
                let message = format!(
                    "cannot encode a text of {all} bytes: {most} bytes from byte {at} on cannot be divided"
                );
                ModelError::Tokenizer { path: self.path.clone(), message }
            }
        })
    }

    /// Encodes `text`. A panic of the library becomes an error. If the tokenizer has slow patterns, the time
    /// is limited.
    fn guarded(
        &self,
        text: &str,
        encode: fn(&tokenizers::Tokenizer, &str) -> tokenizers::Result<tokenizers::Encoding>,
    ) -> Result<tokenizers::Encoding, ModelError> {
        let fault = |message: String| ModelError::Tokenizer { path: self.path.clone(), message };
        if let Some(reason) = self.abandoned.get() {
            return Err(fault(format!("cannot encode a text: {reason}")));
        }
        let encoded = if self.is_slow {
            let limits = WorkLimits {
                time: ENCODE_LIMITS.time + Duration::from_micros(20 * text.len() as u64),
                bytes: ENCODE_LIMITS.bytes + 1024 * text.len() as u64,
            };
            let (inner, owned) = (Arc::clone(&self.inner), text.to_owned());
            guarded_thread::run(limits, move || encode(&inner, &owned))
        } else {
            guarded_thread::catch_panic(|| encode(&self.inner, text)).map_err(NoResult::Panic)
        };
        let encoded = encoded.map_err(|reason| {
            let message = format!("cannot encode a text of {} bytes: {reason}", text.len());
            if reason.is_abandoned() {
                drop(self.abandoned.set(reason));
            }
            fault(message)
        })?;
        encoded.map_err(|e| fault(e.to_string()))
    }

    /// Returns the path of the tokenizer's file, such as `tokenizer.json`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the BPE dropout of the file, which is the share of merges to skip at random. danlu skips no
    /// merges, so that runs can be repeated.
    pub fn ignored_dropout(&self) -> Option<f32> {
        self.ignored_dropout
    }

    /// Passes `value` to the chat template under `name`. Without a template, nothing changes.
    pub fn with_template_value(mut self, name: &str, value: serde_json::Value) -> Self {
        self.template = self.template.map(|template| template.with_value(name, value));
        self
    }

    /// Replaces the chat template by `source`, which was read from `path`. The end-of-turn tokens of the old
    /// and of the new template then end a reply.
    ///
    /// # Errors
    /// If the template is not valid.
    pub fn with_template(mut self, path: &Path, source: &str) -> Result<Self, ModelError> {
        let template = ChatTemplate::new(path, source, self.named.clone(), &turn_ends(&self.inner))?;
        let ends =
            template.end_of_turn().into_iter().chain(template.turn_starts().iter().map(String::as_str));
        self.stop_ids.extend(ends.filter_map(|end| self.inner.token_to_id(end)));
        self.template = Some(template);
        Ok(self)
    }

    /// Returns the ids that the tokenizer itself adds before a text, such as the BOS token. Many tokenizers
    /// define a BOS token but do not add it.
    ///
    /// # Errors
    /// The errors of [`Tokenizer::encode`].
    pub fn starting_ids(&self) -> Result<Vec<u32>, ModelError> {
        let encoding = self.guarded("a", |inner, text| inner.encode_fast(text, true))?;
        let plain = self.encode("a")?;
        let ids = encoding.get_ids();
        let at = ids.windows(plain.len().max(1)).position(|window| window == plain);
        Ok(ids[..at.unwrap_or(0)].to_vec())
    }

    /// Returns the ids of `text`, as [`Tokenizer::encode`] does, and the byte range of each id. If several
    /// tokens share a character, each of them has the range of this character.
    ///
    /// # Errors
    /// The errors of [`Tokenizer::encode`].
    pub fn encode_with_offsets(&self, text: &str) -> Result<Vec<(u32, Range<usize>)>, ModelError> {
        let mut tokens = Vec::new();
        self.visit_tokens(text, &mut |piece| {
            tokens.extend_from_slice(piece);
            ControlFlow::Continue(())
        })?;
        Ok(tokens)
    }

    /// Returns a special token that occurs in `text`. [`Tokenizer::encode`] would encode this occurrence as
    /// the special token, and not as plain text.
    pub fn special_in(&self, text: &str) -> Option<&str> {
        self.specials.iter().map(String::as_str).find(|token| text.contains(token))
    }

    /// Returns the texts of all special tokens.
    pub fn specials(&self) -> &[String] {
        &self.specials
    }

    /// Returns the text of `ids`. Ids outside the vocabulary are skipped. Invalid bytes become U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let decoded = guarded_thread::catch_panic(|| self.inner.decode(ids, skip_special));
        decoded.map(Result::unwrap_or_default).unwrap_or_default()
    }

    /// Returns a decoder for tokens that arrive one by one.
    pub fn decode_stream(&self, skip_special: bool) -> DecodeStream<'_> {
        DecodeStream { tokenizer: self, state: DecodeState::new(skip_special) }
    }

    /// Returns the spelling of a token in the vocabulary. In a byte-level vocabulary, the spelling differs
    /// from the text of the token.
    pub fn token_str(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Returns the id of the token with this spelling in the vocabulary.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Returns the token named `name` (`bos_token`, `eos_token`, `pad_token`, ...).
    pub fn named(&self, name: &str) -> Option<&str> {
        self.named.get(name).map(|token| token.as_str())
    }

    /// Returns the id of the BOS token.
    pub fn bos_id(&self) -> Option<u32> {
        self.token_id(self.named("bos_token")?)
    }

    /// Returns the id of the EOS token.
    pub fn eos_id(&self) -> Option<u32> {
        self.token_id(self.named("eos_token")?)
    }

    /// Returns the id of the padding token.
    pub fn pad_id(&self) -> Option<u32> {
        self.token_id(self.named("pad_token")?)
    }

    /// Returns every id that ends a reply. These are the end tokens of `generation_config.json`, of
    /// `config.json` and of the tokenizer, and the end-of-turn token of the template.
    pub fn stop_ids(&self) -> &BTreeSet<u32> {
        &self.stop_ids
    }

    /// Returns one more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1)
    }

    /// Limits the ids of a text to the rows of the model's embedding table.
    ///
    /// Llama 2 and CodeLlama have tokens without a row. Only a text that contains such a token is rejected.
    pub fn limit_ids(&self, config: &ModelConfig) {
        self.table_rows.get_or_init(|| config.vocab_size);
    }

    /// Rejects ids that have no row in the embedding table.
    fn check_rows(&self, ids: &[u32]) -> Result<(), ModelError> {
        let Some(&vocab_size) = self.table_rows.get() else { return Ok(()) };
        match ids.iter().find(|&&id| id as usize >= vocab_size) {
            Some(&id) => Err(ModelError::TokenOutOfRange { id, vocab_size }),
            None => Ok(()),
        }
    }

    /// Returns the chat template.
    ///
    /// # Errors
    /// If the model has no chat template.
    pub fn template(&self) -> Result<&ChatTemplate, ModelError> {
        let folder = self.path.parent().unwrap_or(&self.path);
        self.template.as_ref().ok_or_else(|| ModelError::NoTemplate { folder: folder.to_owned() })
    }

    /// Returns the fingerprint of tokenizer and template.
    pub fn fingerprint(&self) -> TokenFingerprint {
        // The canonical form that the library writes does not depend on the layout or the version of the
        // file.
        let canonical = self.inner.to_string(false).unwrap_or_default();
        let named = |name: &str| self.named(name).map(str::to_owned);
        TokenFingerprint {
            template_sha256: self.template.as_ref().map(|t| t.sha256()),
            tokenizer_sha256: hex::encode(Sha256::digest(canonical.as_bytes())),
            bos: named("bos_token"),
            eos: named("eos_token"),
            pad: named("pad_token"),
            stop: self
                .stop_ids
                .iter()
                .map(|&id| self.token_str(id).unwrap_or_else(|| id.to_string()))
                .collect(),
            default_system: self.template.as_ref().and_then(|t| t.default_system()).map(str::to_owned),
        }
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({}, stops at {:?})", self.path.display(), self.stop_ids)
    }
}

/// Decodes a growing list of tokens, and returns text only in whole characters. A Chinese character may need
/// three tokens.
///
/// The returned texts, including the text of [`finish`](DecodeStream::finish), add up to the text of all ids
/// decoded at once.
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    state: DecodeState,
}

impl DecodeStream<'_> {
    /// Adds one token. Returns the text that became complete with this token.
    pub fn push(&mut self, id: u32) -> Option<String> {
        self.state.push(self.tokenizer, id)
    }

    /// Returns the text that was not returned yet. Incomplete characters are replaced by U+FFFD.
    pub fn finish(mut self) -> Option<String> {
        self.state.finish(self.tokenizer)
    }
}

/// The state of a [`DecodeStream`] without its tokenizer, so that an owner need not borrow the tokenizer.
#[derive(Clone, Debug)]
pub struct DecodeState {
    /// The tokens of the last returned text, then the tokens whose text was not returned yet. A decoder may
    /// treat the first token of a text differently, so each text is decoded together with the previous one.
    ids: Vec<u32>,
    written: usize,
    skip_special: bool,
}

impl DecodeState {
    /// Returns a state without tokens.
    pub fn new(skip_special: bool) -> Self {
        Self { ids: Vec::new(), written: 0, skip_special }
    }

    /// Adds one token. Returns the text that became complete with this token.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Option<String> {
        self.ids.push(id);
        self.piece(tokenizer, false)
    }

    /// Returns the text that was not returned yet. Incomplete characters are replaced by U+FFFD.
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> Option<String> {
        self.piece(tokenizer, true)
    }

    fn piece(&mut self, tokenizer: &Tokenizer, at_end: bool) -> Option<String> {
        let whole = tokenizer.decode(&self.ids, self.skip_special);
        if whole.ends_with('\u{fffd}') && !at_end {
            return None;
        }
        let before = tokenizer.decode(&self.ids[..self.written], self.skip_special);
        let piece = whole.get(before.len()..)?.to_owned();
        if piece.is_empty() {
            return None;
        }
        self.ids.drain(..self.written);
        self.written = self.ids.len();
        Some(piece)
    }
}

/// Reads a tokenizer that [`TokenizerFile::check`] accepts. Padding, truncation and dropout are removed,
/// because danlu pads and truncates itself, and because a run must be repeatable.
fn load(bytes: Vec<u8>) -> Result<tokenizers::Tokenizer, String> {
    let limits = WorkLimits {
        time: LOAD_LIMITS.time + Duration::from_micros(bytes.len() as u64),
        bytes: LOAD_LIMITS.bytes + 40 * bytes.len() as u64,
    };
    let loaded = guarded_thread::run(limits, move || {
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes)?;
        inner.with_padding(None);
        inner.with_truncation(None)?;
        if let ModelWrapper::BPE(model) = inner.get_model()
            && model.dropout.is_some()
        {
            let mut model = model.clone();
            model.dropout = None;
            inner.with_model(model);
        }
        Ok::<_, tokenizers::Error>(inner)
    });
    loaded.map_err(|reason| format!("cannot read it: {reason}"))?.map_err(|e| e.to_string())
}

/// Returns whether two windows may be joined inside a word. The two tokens at the join must be enough to show
/// that no merge crosses the join. If the vocabulary marks the ends of a word, the two tokens are not enough,
/// because tokens then depend on where the word ends.
fn is_joined_within_words(inner: &tokenizers::Tokenizer) -> bool {
    let ModelWrapper::BPE(model) = inner.get_model() else { return false };
    let markers = [&model.continuing_subword_prefix, &model.end_of_word_suffix];
    markers.into_iter().flatten().all(String::is_empty)
}

/// Returns the tokens that may end a turn: special tokens, and other added tokens that start with `<` and end
/// with `>`. An example is an `<|im_end|>` that was not declared special.
fn turn_ends(inner: &tokenizers::Tokenizer) -> Vec<String> {
    let added = inner.get_added_tokens_decoder().into_values();
    let ends = added
        .filter(|token| token.special || (token.content.starts_with('<') && token.content.ends_with('>')));
    ends.map(|token| token.content).collect()
}

/// Returns the path and the bytes of a folder's `tokenizer.json`. Without this file, the bytes are converted
/// from the SentencePiece model.
fn read_bytes(
    folder: &Path,
    files: &TokenFiles,
    named: &BTreeMap<String, String>,
) -> Result<(PathBuf, Vec<u8>), ModelError> {
    let path = folder.join("tokenizer.json");
    let is_here = |name: &str| folder.join(name).is_file();
    if path.exists() || !OTHER_TOKENIZERS.iter().any(|name| is_here(name)) {
        let bytes = files::read_bounded(&path, MAX_TOKENIZER_BYTES)?;
        return Ok((path, bytes));
    }
    let path = folder.join(SENTENCEPIECE);
    if !path.is_file() {
        let found: Vec<&str> = OTHER_TOKENIZERS.into_iter().filter(|name| is_here(name)).collect();
        return Err(ModelError::OtherTokenizer { folder: folder.to_owned(), found: found.join("`, `") });
    }
    let config = files.config.as_ref();
    let flag = |name: &str| config.and_then(|config| config.get(name)?.as_bool());
    let class = config.and_then(|config| config.get("tokenizer_class")?.as_str()).unwrap_or_default();
    let is_llama = class.starts_with("Llama") || class.starts_with("CodeLlama");
    let adds_bos = flag("add_bos_token").unwrap_or(is_llama || class.starts_with("Gemma"));
    let settings = sentencepiece::Settings {
        is_legacy: flag("legacy").unwrap_or(!is_llama),
        add_prefix_space: flag("add_prefix_space"),
        added_bos: named.get("bos_token").filter(|_| adds_bos).map(String::as_str),
    };
    let bytes = files::read_bounded(&path, MAX_TOKENIZER_BYTES)?;
    match sentencepiece::tokenizer_json(&bytes, settings) {
        Ok(json) => Ok((path, json.to_string().into_bytes())),
        Err(message) => Err(ModelError::Tokenizer { path, message }),
    }
}

/// The sources of a model's chat templates, each with the path of its file.
#[derive(Default)]
struct TemplateSources {
    default: Option<(PathBuf, String)>,
    /// The template for conversations with tools, if there is a separate one.
    tool_use: Option<(PathBuf, String)>,
}

/// Reads the chat templates of a model. As in transformers, the files take precedence over
/// `tokenizer_config.json`.
fn template_sources(
    folder: &Path,
    config_path: &Path,
    config: Option<&Value>,
) -> Result<TemplateSources, ModelError> {
    if let Some(default) = template_file(&folder.join(sidecar_files::TEMPLATE))? {
        let tool_use = template_file(&folder.join(sidecar_files::TOOL_TEMPLATE))?;
        return Ok(TemplateSources { default: Some(default), tool_use });
    }
    let Some(config) = config else { return Ok(TemplateSources::default()) };
    let fields = Fields::new(config_path, config)?;
    let (default, tool_use) = match fields.get("chat_template") {
        None => (None, None),
        Some(Value::String(source)) => (Some(source.as_str()), None),
        Some(Value::Array(list)) => {
            let named = |name: &str| {
                let template = list.iter().find(|t| t.get("name").and_then(Value::as_str) == Some(name));
                template.and_then(|t| t.get("template")).and_then(Value::as_str)
            };
            if named("default").is_none() {
                return Err(fields.wrong("chat_template", "a template named `default` in the list"));
            }
            (named("default"), named("tool_use"))
        }
        Some(_) => return Err(fields.wrong("chat_template", "a string, or a list of named templates")),
    };
    let source = |source: &str| (config_path.to_owned(), source.to_owned());
    Ok(TemplateSources { default: default.map(source), tool_use: tool_use.map(source) })
}

fn template_file(path: &Path) -> Result<Option<(PathBuf, String)>, ModelError> {
    if !path.exists() {
        return Ok(None);
    }
    let source = String::from_utf8(files::read_bounded(path, json::MAX_CONFIG_BYTES)?).map_err(|e| {
        let message = format!("it is not UTF-8: {e}");
        ModelError::Template { path: path.to_owned(), line: None, message }
    })?;
    Ok(Some((path.to_owned(), source)))
}

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
mod tests;
