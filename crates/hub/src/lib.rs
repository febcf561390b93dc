//! The Hugging Face Hub: models by name, in the cache that Python's tools share.
//!
//! A [`RepoName`] such as `org/name@revision` becomes a folder: from the cache without a byte of traffic, or by
//! [`Hub::pull`], which fetches what danlu reads, several files at a time, and verifies every one. The layout, the
//! locks and the variables are those of `huggingface_hub`, so that either side finds what the other fetched.
//!
//! The other way a [`UploadSet`] says what of a folder goes and what stays, [`Hub::differences`] what a repository lacks of
//! it, and [`Hub::push`] sends that as one commit.

mod account;
mod cache;
mod checksum;
mod client;
mod download;
mod error;
mod file_selection;
mod hint;
mod http;
mod listing;
mod name;
mod pull;
mod push;
mod settings;
mod snapshot_path;
mod token;
mod transfer;

pub use account::Account;
pub use client::Hub;
pub use error::HubError;
pub use http::RetryPolicy;
pub use name::RepoName;
pub use pull::{FetchScope, Pulled};
pub use push::{
    PushOptions, Pushed, RepoDiff, SkipReason, SkippedFile, Stage, UploadFile, UploadOptions, UploadSet,
};
pub use settings::{Endpoint, HubSettings};
pub use snapshot_path::parse_snapshot_path;
pub use token::{Token, TokenFault};
pub use transfer::Transfer;
