//! Settings of a server.

use std::path::PathBuf;

use crate::{AdapterSource, ConnectionLimits};

/// An adapter that is loaded before the server accepts requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedAdapter {
    /// Name that clients send to select the adapter.
    pub name: String,
    /// Folder or repository of the adapter.
    pub source: AdapterSource,
}

/// Settings of a server.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Host name or IP address to bind.
    pub host: String,
    /// Port to bind. With 0, the system chooses a free port.
    pub port: u16,
    /// Names of the base. Clients may use any of these names.
    pub base_names: Vec<String>,
    /// Key that clients must send, or `None` if requests need no key. `/health` and `/metrics` never need a
    /// key.
    pub api_key: Option<String>,
    /// Key that clients must send to load and unload adapters. The key also permits all other requests.
    pub admin_key: Option<String>,
    /// Whether the server may bind an address that other machines can reach even if no key is set.
    pub is_insecure: bool,
    /// Whether every client may load and unload adapters. This setting has no effect if an admin key is set.
    pub allows_updates: bool,
    /// Folder that must contain every path in a request. With `None`, paths in requests are rejected.
    pub adapter_root: Option<PathBuf>,
    /// Patterns of Hub names that a request may load: `org/*` or `org/name`.
    pub allow_hub: Vec<String>,
    /// Adapters that are loaded when the server starts.
    pub adapters: Vec<ServedAdapter>,
    /// Output folders of training runs to watch. A client that sends the name of a run gets its newest
    /// checkpoint, or its final adapter after the run has finished.
    pub watches: Vec<(String, PathBuf)>,
    /// Maximum size of all adapters in memory, in bytes.
    pub max_adapter_bytes: u64,
    /// Maximum number of tokens of a prompt and its reply together.
    pub context: usize,
    /// Maximum number of sequences that run at the same time.
    pub max_running: usize,
    /// Maximum number of waiting requests.
    pub max_queued: usize,
    /// Maximum number of tokens whose keys and values are in memory.
    pub max_kv_tokens: usize,
    /// Maximum number of prompt tokens in one step of the scheduler.
    pub prefill_tokens: usize,
    /// Whether prompts with a common prefix share the keys and values of the prefix.
    pub prefix_cache: bool,
    /// Maximum size of a request body in bytes.
    pub max_body_bytes: usize,
    /// Limits on connections and slow clients.
    pub connections: ConnectionLimits,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: 8000,
            base_names: vec!["base".to_owned()],
            api_key: None,
            admin_key: None,
            is_insecure: false,
            allows_updates: false,
            adapter_root: None,
            allow_hub: Vec::new(),
            adapters: Vec::new(),
            watches: Vec::new(),
            max_adapter_bytes: 1 << 30,
            context: usize::MAX,
            max_running: 8,
            max_queued: 64,
            max_kv_tokens: 8192,
            prefill_tokens: 512,
            prefix_cache: true,
            max_body_bytes: 8 << 20,
            connections: ConnectionLimits::default(),
        }
    }
}
