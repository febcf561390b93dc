//! A server on this machine that answers as the Hugging Face Hub does to the calls that clients make to fetch and to
//! publish models, and that fails where it is told to. It is for tests only, and proved faithful by `reference/hub.py`,
//! which drives it with PyPI's `huggingface_hub`.
//!
//! There are two listeners, as the Hub has two kinds of hosts: one answers for names, trees and commits and expects a
//! token, the other moves large files and is reached by signed addresses. It refuses a request that brings a token.
//!
//! ```
//! use danlu_hub_test_server::{Action, Fault, Method, HubServer};
//!
//! let server = HubServer::start();
//! server.add_user("zhen", "hf_secret");
//! let commit = server.add_model("zhen/small", &[("config.json", b"{}"), ("model.safetensors", b"weights")]);
//! assert_eq!(server.read("zhen/small", "main", "config.json").as_deref(), Some(&b"{}"[..]));
//! assert_eq!(server.commits("zhen/small")[0].id, commit);
//!
//! server.fault(Fault::on(Method::Get, "config.json").times(2).then(Action::CutBefore));
//! // ... a client's requests to `server.endpoint()`, and what came of them:
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
mod model;
mod record;
mod repository;
mod routes;
mod server;
mod settings;
mod store;

pub use fault::{Action, Fault, Method};
pub use model::Model;
pub use record::{Host, Record};
pub use repository::Gate;
pub use server::{Builder, CommitInfo, HubServer};
