//! The flags of `danlu serve`, and the parsers of their values.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use danlu_adapter::parse_byte_size;
use danlu_hub::RepoName;
use danlu_loader::{ModelRef, explicit_name};
use danlu_serve::{AdapterSource, ServedAdapter};

use super::load_test::LoadSize;
use crate::args::compute::{ComputeArgs, DTypeChoice};
use crate::args::home_paths::in_home;
use crate::args::{QuantArgs, Secret};
use crate::clap_error::at_least_one;
use crate::model_loader::{hub_name, is_cached};

/// The flags of `danlu serve`.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// Base or merged model, or an adapter to serve on its base: a folder or a Hub name
    pub path: PathBuf,
    /// Base of the adapter, instead of the one the adapter names
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// Address or name to listen on
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1", help_heading = "Network")]
    pub host: String,
    /// Port to listen on; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8000, help_heading = "Network")]
    pub port: u16,
    /// Key that clients must send [default: DANLU_API_KEY]
    #[arg(long, value_name = "KEY", help_heading = "Network")]
    pub api_key: Option<Secret>,
    /// Key that clients must send to load and unload adapters [default: DANLU_ADMIN_KEY]
    #[arg(long, value_name = "KEY", help_heading = "Network")]
    pub admin_key: Option<Secret>,
    /// Listen without a key on an address that other machines reach
    #[arg(long, help_heading = "Network")]
    pub insecure: bool,
    /// Seconds that running replies may take after a signal to stop
    #[arg(long, value_name = "SECONDS", default_value_t = 30, help_heading = "Network")]
    pub shutdown_timeout: u64,
    /// Name of the model for clients [default: its folder or Hub name]
    #[arg(long, value_name = "NAME", num_args = 1.., help_heading = "Adapters")]
    pub served_model_name: Vec<String>,
    /// Adapter to serve, and the name that clients send as `model`; may be repeated
    #[arg(long, value_name = "NAME=PATH", alias = "lora-modules", num_args = 1.., value_parser = named_adapter, help_heading = "Adapters")]
    pub adapter: Vec<ServedAdapter>,
    /// Output folder of a running training; its newest checkpoint is served as NAME
    #[arg(long, value_name = "NAME=DIR", value_parser = named_folder, help_heading = "Adapters")]
    pub watch: Vec<(String, PathBuf)>,
    /// Adapters on the Hub that a request may load by their name, such as 'you/*'
    #[arg(long, value_name = "PATTERN", value_parser = hub_pattern, help_heading = "Adapters")]
    pub allow_hub: Vec<String>,
    /// Folder that must contain every adapter that a request loads by path
    #[arg(long, value_name = "DIR", help_heading = "Adapters")]
    pub adapter_root: Option<PathBuf>,
    /// Allow loading and unloading adapters without an admin key
    #[arg(long, conflicts_with = "admin_key", help_heading = "Adapters")]
    pub allow_adapter_updates: bool,
    /// Memory for adapters; the least recently used adapters are evicted, and loaded again when needed
    /// [default: a tenth of the available memory]
    #[arg(long, value_name = "SIZE", value_parser = |text: &str| parse_byte_size(text).map_err(|e| e.to_string()), help_heading = "Adapters")]
    pub adapter_memory: Option<u64>,
    /// Longest prompt and reply together, in tokens [default: the model's limit, at most 8192]
    #[arg(long, value_name = "N", value_parser = at_least_one, help_heading = "Load")]
    pub max_model_len: Option<usize>,
    /// Maximum number of replies at the same time
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = "Load")]
    pub max_num_seqs: u16,
    /// Maximum number of waiting requests; further requests get status 429 [default: 8 times --max-num-seqs]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=65_536), help_heading = "Load")]
    pub max_num_queued_reqs: Option<u32>,
    /// Maximum number of prompt tokens in a step; each running reply gets one token
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = at_least_one, help_heading = "Load")]
    pub max_num_batched_tokens: usize,
    /// Memory for keys and values of prompts and replies [default: enough for all replies, at most a quarter
    /// of the available memory]
    #[arg(long, value_name = "SIZE", value_parser = |text: &str| parse_byte_size(text).map_err(|e| e.to_string()), help_heading = "Load")]
    pub kv_cache_memory: Option<u64>,
    /// Process each prompt from its start, even if an earlier prompt has the same beginning
    #[arg(long, help_heading = "Load")]
    pub no_enable_prefix_caching: bool,
    /// Measure the server with its own clients and adapters, such as 8x8, and end
    #[arg(long, value_name = "CLIENTSxADAPTERS", value_parser = LoadSize::from_str, help_heading = "Load")]
    pub bench: Option<LoadSize>,
    /// Continue even if the base's chat template differs from the one in training
    #[arg(long)]
    pub allow_template_mismatch: bool,
    /// Chat template instead of the model's: a file, or chatml, llama3, alpaca, vicuna or zephyr
    #[arg(long, value_name = "FILE|NAME")]
    pub chat_template: Option<String>,
    /// Number type of matrix multiplications: auto (the faster of bf16 and f32), bf16, f32, or f16 (GPU only) [default: auto]
    #[arg(long, value_name = "TYPE", value_parser = DTypeChoice::from_str, help_heading = "Machine")]
    pub dtype: Option<DTypeChoice>,
    #[command(flatten)]
    pub quant: QuantArgs,
    #[command(flatten)]
    pub compute: ComputeArgs,
}

impl ServeArgs {
    /// Returns the key for inference, from the flag or from the environment.
    pub fn api_key(&self) -> Option<String> {
        key(self.api_key.as_ref(), "DANLU_API_KEY")
    }

    /// Returns the key for changes of adapters, from the flag or from the environment.
    pub fn admin_key(&self) -> Option<String> {
        key(self.admin_key.as_ref(), "DANLU_ADMIN_KEY")
    }
}

fn key(flag: Option<&Secret>, variable: &str) -> Option<String> {
    let from_env = || std::env::var(variable).ok().filter(|key| !key.is_empty());
    flag.map(|key| key.0.clone()).or_else(from_env)
}

/// Splits `NAME=PATH`.
fn named(text: &str) -> Result<(String, &str), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => Ok((name.to_owned(), path)),
        _ => Err("expected NAME=PATH".to_owned()),
    }
}

fn named_folder(text: &str) -> Result<(String, PathBuf), String> {
    named(text).map(|(name, path)| (name, in_home(path.as_ref())))
}

fn named_adapter(text: &str) -> Result<ServedAdapter, String> {
    let (name, path) = named(text)?;
    let path = &*in_home(path.as_ref());
    let source = match ModelRef::parse(path) {
        ModelRef::Hub(name) if explicit_name(path).is_some() || name.named_revision().is_some() => {
            AdapterSource::Hub(name)
        }
        // Any other name that the cache lacks may be a mistyped folder, which the loader reports.
        _ => hub_name(path)
            .filter(is_cached)
            .map_or_else(|| AdapterSource::Folder(path.to_owned()), AdapterSource::Hub),
    };
    Ok(ServedAdapter { name, source })
}

/// Checks a pattern. A pattern is a Hub name that may end in `*`.
fn hub_pattern(text: &str) -> Result<String, String> {
    let name = match text.strip_suffix('*') {
        // The star matches the rest of a name, so a letter replaces it for the check.
        Some(prefix) => format!("{prefix}x"),
        None => text.to_owned(),
    };
    match name.parse::<RepoName>() {
        Ok(name) if name.named_revision().is_none() => Ok(text.to_owned()),
        _ => Err("expected owner/name or owner/*".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_and_patterns_are_parsed() {
        let source = |text: &str| named_adapter(text).map(|adapter| adapter.source);
        assert_eq!(source("a=out/a/b"), Ok(AdapterSource::Folder("out/a/b".into())));
        assert!(matches!(source("a=you/poet@v2"), Ok(AdapterSource::Hub(name)) if name.revision() == "v2"));
        for wrong in ["a", "=x", "a="] {
            assert_eq!(source(wrong), Err("expected NAME=PATH".to_owned()));
        }
        for pattern in ["you/*", "you/poet-*", "you/poet"] {
            assert_eq!(hub_pattern(pattern), Ok(pattern.to_owned()));
        }
        for wrong in ["*", "you", "you/poet@v2", "a/b/c"] {
            assert!(hub_pattern(wrong).is_err(), "{wrong}");
        }
    }
}
