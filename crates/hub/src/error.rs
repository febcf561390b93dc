//! Errors of the Hub client. No error contains a token.

use std::path::PathBuf;
use std::time::Duration;

use danlu_model::{FileError, format_bytes};

use crate::{DatasetRef, RepoName, TokenFault};

/// An error of a request, a transfer or the cache.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each variant has a doc, and its message names the fields")]
pub enum HubError {
    /// The transfer was cancelled because another file failed.
    #[error("stopped")]
    Stopped,
    /// The text is not a model name.
    #[error("cannot parse `{text}` as a model name, expected `org/name` or `org/name@revision`")]
    Name { text: String },
    /// The text is not the name of a data set.
    #[error(
        "cannot parse `{text}` as a data set, expected `org/name`, `org/name@revision` or `org/name:split`"
    )]
    DatasetName { text: String },
    /// `HF_ENDPOINT` is not the URL of a Hub.
    #[error(
        "`HF_ENDPOINT` is `{text}`, expected an address such as `https://huggingface.co`, without a password"
    )]
    Endpoint { text: String },
    /// A variable names an invalid certificate file or proxy.
    #[error("cannot use `{variable}`: {reason}")]
    Variable { variable: &'static str, reason: String },
    /// There is no home folder, and no variable sets the cache folder.
    #[error("cannot locate the cache: there is no home folder")]
    NoHome,
    /// The text cannot be a token.
    #[error("{}", if *is_empty { "the token is empty" } else { "the token contains characters that are not allowed" })]
    TokenShape { is_empty: bool },
    /// The configured token is invalid.
    #[error(transparent)]
    Token(#[from] TokenFault),
    /// A file of the cache or of the upload cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The model or data set is not cached, and `HF_HUB_OFFLINE` forbids requests.
    #[error("{what} is not in the cache, and `HF_HUB_OFFLINE` forbids requests to the Hub")]
    Offline { what: String },
    /// A push needs requests, and `HF_HUB_OFFLINE` forbids requests.
    #[error("cannot look up `{repo}`: `HF_HUB_OFFLINE` forbids requests to the Hub")]
    OfflineRepo { repo: RepoName },
    /// `whoami` needs a request, and `HF_HUB_OFFLINE` forbids requests.
    #[error("cannot look up the account: `HF_HUB_OFFLINE` forbids requests to the Hub")]
    OfflineAccount,
    /// The connection failed or was lost.
    #[error("cannot reach {host}: {reason}")]
    Connect { is_lost: bool, host: String, reason: String },
    /// The certificate of the host is invalid.
    #[error("cannot verify the certificate of {host}: {reason}")]
    Certificate { host: String, reason: String },
    /// The proxy failed.
    #[error("cannot reach {host} through the proxy of `{variable}`: {reason}")]
    Proxy { host: String, variable: &'static str, reason: String },
    /// The download was interrupted on every attempt.
    #[error("cannot download `{file}`: {reason} after {done} of {size} bytes")]
    Cut { file: String, done: u64, size: u64, reason: String },
    /// The repository does not exist, or the account cannot see it.
    #[error("cannot find the {} `{}` at {host}{}", if repo.is_dataset() { "data set" } else { "model" }, repo.id(), if *with_token { " with this account" } else { "" })]
    NoModel { repo: RepoName, host: String, with_token: bool },
    /// The repository has no branch, tag or commit with this name.
    #[error("`{}` has no revision `{}`", repo.id(), repo.revision())]
    NoRevision { repo: RepoName },
    /// The repository lists a file that does not exist.
    #[error("`{repo}` has no file `{file}`")]
    NoFile { repo: RepoName, file: String },
    /// The owner must grant access first.
    #[error("`{}` is gated: {}", repo.id(), if *with_token { "this account has no access yet" } else { "it requires an account" })]
    Gated { repo: RepoName, page: String, with_token: bool },
    /// The token is expired, revoked or mistyped.
    #[error("{host} rejected the token{}", if *is_variable { " of `HF_TOKEN`" } else { "" })]
    BadToken { host: String, is_variable: bool },
    /// The request needs a token, and there is none.
    #[error("{what} needs a token")]
    NoToken { what: String },
    /// The account or its token lacks a permission.
    #[error("{host} denied the request{}", if message.is_empty() { " and gave no reason".to_owned() } else { format!(": {message}") })]
    Forbidden { host: String, message: String },
    /// The server requires a wait above the limit.
    #[error("{host} requires a wait of {} seconds", wait.as_secs())]
    Busy { host: String, wait: Duration },
    /// The response has an unexpected status code.
    #[error("{host} answered {status}{} to {request}", if message.is_empty() { String::new() } else { format!(" ({message})") })]
    Status { host: String, request: String, status: u16, message: String },
    /// The response does not follow the Hub's API.
    #[error("unexpected response from {host} to {request}: {fault}")]
    Response { host: String, request: String, fault: String },
    /// A file or a path of the repository is invalid, or its shard index does not match its files.
    #[error("`{repo}` is damaged: {fault}")]
    Repo { repo: RepoName, fault: String },
    /// The checksum of the file was wrong in two downloads.
    #[error("`{file}` of `{repo}` has the checksum {found}, expected {expected}")]
    Checksum { repo: Box<RepoName>, file: String, found: String, expected: String },
    /// The file exceeds its maximum size.
    #[error("`{file}` of `{repo}` has {size} bytes, expected at most {most} for such a file")]
    TooLarge { repo: RepoName, file: String, size: u64, most: u64 },
    /// The disk has too little free space.
    #[error(
        "cannot download `{repo}`: it needs {}, and the disk of `{}` has {} free",
        format_bytes(*needed),
        cache.display(),
        format_bytes(*available)
    )]
    Space { repo: RepoName, cache: PathBuf, needed: u64, available: u64 },
    /// The repository has no safetensors weights.
    #[error("`{repo}` has no safetensors weights{}", found.as_ref().map(|file| format!(", only `{file}`")).unwrap_or_default())]
    NoWeights { repo: RepoName, found: Option<String> },
    /// The data set has no such split, subset or file.
    #[error("`{}` has no part `{}`", dataset.repo(), dataset.part().unwrap_or("train"))]
    NoPart { dataset: DatasetRef, parts: Vec<String> },
    /// The data set has several subsets, and the user named none.
    #[error("`{}` has several subsets, and none is the default", dataset.repo())]
    SeveralSubsets { dataset: DatasetRef, names: Vec<String> },
    /// The data set is a loading script, which is a Python program.
    #[error("cannot read `{repo}`: it is the loading script `{script}`, and danlu runs no code")]
    LoadingScript { repo: RepoName, script: String },
    /// No file of the data set contains records.
    #[error("`{repo}` has no file with records{}", found.as_ref().map(|file| format!(", only `{file}`")).unwrap_or_default())]
    NoRecords { repo: RepoName, found: Option<String> },
    /// The folder is neither an adapter nor a model.
    #[error("`{}` is neither an adapter nor a model: it has no `adapter_config.json` and no `config.json`", folder.display())]
    NotAModel { folder: PathBuf },
    /// An `--include` pattern matches no file.
    #[error("`--include {path}` matches no file in `{}`", folder.display())]
    NoMatch { folder: PathBuf, path: String },
    /// All files of the folder are skipped.
    #[error("cannot push `{}`: every file is skipped", folder.display())]
    NothingToSend { folder: PathBuf },
    /// The commit message contains a token or a private key. The error does not repeat the message.
    #[error("cannot push: the commit message contains a token or a private key")]
    SecretMessage,
    /// The file changed during the push.
    #[error("cannot upload `{}`: the file changed during the upload", path.display())]
    FileChanged { path: PathBuf },
    /// A private repository was requested, and the existing one is public.
    #[error("cannot make `{}` private: it exists and is public", repo.id())]
    Public { repo: RepoName },
    /// The push would mix an adapter and a full model in one repository.
    #[error("`{}` already holds {} (`{file}`); loaders would {}", repo.id(),
        if *is_adapter { "a full model" } else { "an adapter" },
        if *is_adapter { "pick the adapter instead" } else { "not find the model" })]
    Mixture { repo: RepoName, file: String, is_adapter: bool },
    /// The regular files exceed the limit of a commit.
    #[error("cannot commit to `{}`: its regular files have {bytes} bytes, and one commit holds at most {most}", repo.id())]
    LargeCommit { repo: RepoName, bytes: u64, most: u64, largest: String },
    /// The repository's `.gitignore` excludes a file that loading needs.
    #[error("the `.gitignore` of `{}` excludes `{file}`, and the upload cannot be loaded without it", repo.id())]
    Ignored { repo: RepoName, file: String },
    /// The Hub does not report whether the repository is private.
    #[error("cannot verify that `{}` is private: {host} does not report it", repo.id())]
    NotPrivate { repo: RepoName, host: String },
    /// The pull request has no target, because the repository does not exist.
    #[error("cannot open a pull request: `{}` does not exist{}", repo.id(), if *with_token { " or is hidden from this account" } else { "" })]
    NothingToProposeTo { repo: RepoName, with_token: bool },
    /// The revision is a commit or a tag, not a branch.
    #[error("`{}` of `{}` is not a branch", repo.revision(), repo.id())]
    NoBranch { repo: RepoName },
    /// On every attempt, another commit was made first.
    #[error("cannot commit to `{repo}`: another commit came first on each of {attempts} attempts")]
    Race { attempts: u32, repo: RepoName },
    /// The token is read-only.
    #[error("the token of `{account}` is read-only")]
    ReadOnly { account: String, is_variable: bool },
    /// The owner of the repository is neither the account nor one of its organisations.
    #[error("`{account}` cannot write to `{}`{}", repo.id(), if orgs.is_empty() { String::new() } else { format!("; it may write to its own repositories and those of {}", orgs.join(", ")) })]
    NotOwner { repo: RepoName, account: String, orgs: Vec<String>, exists: bool },
    /// The Hub denied the write, although the account or one of its organisations owns the repository. The
    /// token may lack the permission.
    #[error("the token of `{account}` cannot write to `{}`{}", repo.id(), if message.is_empty() { String::new() } else { format!(": {message}") })]
    MayNotWrite { repo: RepoName, account: String, message: String },
    /// The Hub rejected the commit.
    #[error("`{repo}` rejected the commit: {message}")]
    Refused { repo: RepoName, message: String },
}
