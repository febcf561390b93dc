//! An HTTP server with the API of OpenAI. The server holds one base model in memory, and several adapters for
//! this base.
//!
//! ```text
//! HTTP request ─► lease ─► template, tokens ─► engine thread ─► text, stop strings ─► JSON or events
//! ```
//!
//! A lease is a reference to one version of an adapter, which stays in memory until the lease is dropped. A
//! request takes a lease before it is queued, and drops the lease after its last token. If an adapter is
//! replaced or evicted, running replies therefore continue with the leased version.
//!
//! One thread owns the scheduler. Another thread handles the connections, and a few threads load adapters.
//! See [`Server`].

mod api_error;
mod app;
mod connections;
mod constraint;
mod engine_thread;
mod error;
mod generation_hex;
mod grammar;
mod json_fields;
mod load_test;
mod logits_rules;
mod metrics;
mod model_profile;
mod options;
mod random_id;
mod registry;
mod reply;
mod routes;
mod sampling_fields;
mod security;
mod server;
mod stop_text;
mod stream;
mod token_bytes;
mod tools;
mod wire;

pub use connections::ConnectionLimits;
pub use error::ServeError;
pub use load_test::{LoadRound, LoadTest};
pub use options::{ServeOptions, ServedAdapter};
pub use registry::AdapterSource;
pub use server::Server;

/// Value of `system_fingerprint`.
pub(crate) const FINGERPRINT: &str = concat!("danlu-", env!("CARGO_PKG_VERSION"));
