//! Plans the memory of a server before the base is loaded.

use danlu_model::ModelConfig;
use danlu_train::memory::display;

use super::args::ServeArgs;
use crate::diagnostic::{Diagnostic, Result};

/// Default of `--max-model-len`, in tokens.
const DEFAULT_CONTEXT: usize = 8192;

/// Smallest default of `--adapter-memory`, in bytes.
const MIN_ADAPTER_BYTES: u64 = 64 << 20;

/// Limits of a server that follow from its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServeLimits {
    /// Maximum number of tokens in a prompt and its reply together.
    pub context: usize,
    /// Maximum number of tokens whose keys and values are in memory.
    pub kv_tokens: usize,
    /// Maximum number of bytes for these keys and values.
    pub kv_bytes: u64,
    /// Maximum number of bytes for adapters.
    pub adapter_bytes: u64,
}

impl ServeLimits {
    /// Chooses the limits that the flags do not set, for `config` and `available` bytes of memory.
    ///
    /// # Errors
    /// If a flag exceeds the model's context or the memory.
    pub fn choose(args: &ServeArgs, config: &ModelConfig, available: Option<u64>) -> Result<Self> {
        let most = config.max_position_embeddings;
        if let Some(len) = args.max_model_len {
            crate::args::compute::check_context(len, most, "`--max-model-len`")?;
        }
        let context = args.max_model_len.unwrap_or(DEFAULT_CONTEXT).min(most);
        let available = available.unwrap_or(u64::MAX);
        let adapter_bytes = args.adapter_memory.unwrap_or((available / 10).max(MIN_ADAPTER_BYTES));
        let per_token =
            (2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * size_of::<f32>())
                as u64;
        let wanted = (context as u64).saturating_mul(u64::from(args.max_num_seqs)).saturating_mul(per_token);
        let kv_bytes = args.kv_cache_memory.unwrap_or(wanted.min(available / 4));
        let kv_tokens = (kv_bytes / per_token) as usize;
        let limits = Self { context, kv_tokens, kv_bytes, adapter_bytes };
        limits.check(per_token, available)
    }

    fn check(self, per_token: u64, available: u64) -> Result<Self> {
        let Self { context, kv_tokens, kv_bytes, adapter_bytes } = self;
        if kv_tokens < context {
            let text = format!(
                "cannot serve a context of {context} tokens: its keys and values need {}, and {} are planned for them",
                display(context as u64 * per_token),
                display(kv_bytes)
            );
            let hint =
                format!("use `--max-model-len {}`, or more with `--kv-cache-memory`", kv_tokens.max(1));
            return Err(Diagnostic::input(text).with_hint(hint));
        }
        let needed = kv_bytes.saturating_add(adapter_bytes);
        if needed > available {
            let text = format!(
                "cannot serve: keys and values ({}) and adapters ({}) need {}, and {} are available",
                display(kv_bytes),
                display(adapter_bytes),
                display(needed),
                display(available)
            );
            let hint = "lower `--kv-cache-memory`, `--adapter-memory` or `--max-num-seqs`";
            return Err(Diagnostic::input(text).with_hint(hint));
        }
        Ok(self)
    }
}
