//! Client of the Hugging Face Hub.
//!
//! - [`RepoName`] is the name of a repository, such as `org/name@revision`.
//! - [`Hub::cached_folder`] returns the folder of a cached model, without a request.
//! - [`Hub::pull`] downloads the files that danlu reads, several at a time, and verifies each one.
//! - [`DatasetRef`] names a data set and a split. [`Hub::pull_dataset`] downloads the files of the split.
//! - [`UploadSet`] divides the files of a folder into files to upload and files to skip.
//! - [`Hub::diff`] compares an upload set with a repository, and [`Hub::push`] uploads it in one commit.
//!
//! The cache, its locks and the environment variables are the same as in `huggingface_hub`, so danlu and
//! Python share downloads.
//!
//! ```
//! use danlu_hub::RepoName;
//!
//! let name: RepoName = "org/name@v2".parse()?;
//! assert_eq!((name.id(), name.revision()), ("org/name", "v2"));
//! # Ok::<(), danlu_hub::HubError>(())
//! ```

mod account;
mod cache;
mod checksum;
mod client;
mod dataset;
mod download;
mod error;
mod file_selection;
mod hint;
mod http;
mod listing;
mod name;
mod public_file;
mod pull;
mod push;
mod settings;
mod snapshot_path;
mod token;
mod transfer;

pub use account::Account;
pub use client::Hub;
pub use dataset::{DatasetFiles, DatasetRef};
pub use error::HubError;
pub use http::RetryPolicy;
pub use name::RepoName;
pub use public_file::PublicFile;
pub use pull::{FetchScope, Pulled};
pub use push::{
    MAX_COMMIT_BYTES, PushOptions, PushStage, Pushed, RepoDiff, SkipReason, SkippedFile, UploadFile,
    UploadOptions, UploadSet, has_secret,
};
pub use settings::{Endpoint, HubSettings};
pub use snapshot_path::parse_snapshot_path;
pub use token::{Token, TokenFault};
pub use transfer::Transfer;
