//! A local server with the API of the Hugging Face Hub, for tests only. A test can inject faults.
//!
//! `reference/hub.py` checks the server with `huggingface_hub` from PyPI.
//!
//! The Hub has two kinds of hosts, so this server has two listeners. The first one serves names, trees and
//! commits, and accepts tokens. The second one stores large files under signed URLs, and rejects a request
//! with a token.
//!
//! ```
//! use danlu_hub_test_server::{Action, Fault, HubServer, Method};
//!
//! let server = HubServer::start();
//! server.add_user("zhen", "hf_secret");
//! let commit = server.add_model("zhen/small", &[("config.json", b"{}"), ("model.safetensors", b"weights")]);
//! assert_eq!(server.read("zhen/small", "main", "config.json").as_deref(), Some(&b"{}"[..]));
//! assert_eq!(server.commits("zhen/small")[0].id, commit);
//!
//! server.fault(Fault::on(Method::Get, "config.json").times(2).then(Action::CutBefore));
//! // ... a client's requests to `server.endpoint()`, then:
//! assert!(server.requests().is_empty());
//! ```

mod access;
mod api_error;
mod change;
mod clock;
mod fault;
mod git;
mod http;
mod hub;
mod listener;
mod model_builder;
mod recorded_request;
mod repository;
mod routes;
mod server;
mod settings;
mod store;

pub use fault::{Action, Fault, Method};
pub use model_builder::ModelBuilder;
pub use recorded_request::{Host, RecordedRequest};
pub use repository::Gate;
pub use server::{Builder, CommitInfo, HubServer};
