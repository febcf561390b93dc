//! Settings of a server.

use std::path::PathBuf;

use crate::AdapterSource;

/// An adapter that is loaded before the server takes requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedAdapter {
    /// The name by which clients select it.
    pub name: String,
    /// Where it comes from.
    pub source: AdapterSource,
}

/// Settings of a server.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Name or address to bind.
    pub host: String,
    /// Port to bind; 0 for a free one.
    pub port: u16,
    /// Names of the base. Clients may use each of them.
    pub base_names: Vec<String>,
    /// Key that clients must send.
    pub api_key: Option<String>,
    /// Key that clients must send to load and unload adapters.
    pub admin_key: Option<String>,
    /// Whether an address that other machines reach may be bound without a key.
    pub is_insecure: bool,
    /// Whether clients without an admin key may load and unload adapters.
    pub allows_updates: bool,
    /// Folder under which paths in requests may lie.
    pub adapter_root: Option<PathBuf>,
    /// Names on the Hub that a request may load: `org/*` or `org/name`.
    pub allow_hub: Vec<String>,
    /// Adapters that are loaded at the start.
    pub adapters: Vec<ServedAdapter>,
    /// Output folders of training runs, by the name that serves their newest checkpoint.
    pub watches: Vec<(String, PathBuf)>,
    /// Most bytes of adapters in memory.
    pub max_adapter_bytes: u64,
    /// Most tokens of a prompt and its reply.
    pub context: usize,
    /// Most sequences in a step.
    pub max_running: usize,
    /// Most requests that wait for one of those.
    pub max_queued: usize,
    /// Most tokens whose keys and values are in memory.
    pub max_kv_tokens: usize,
    /// Most prompt tokens in a step.
    pub prefill_tokens: usize,
    /// Whether prompts share the keys and values of a common beginning.
    pub prefix_cache: bool,
    /// Most bytes of a request body.
    pub max_body_bytes: usize,
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
        }
    }
}
