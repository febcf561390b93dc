//! Errors of the Hub client. No error contains a token.

use std::path::PathBuf;
use std::time::Duration;

use danlu_model::FileError;

use crate::{RepoName, TokenFault};

/// A request, a transfer or the cache failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// Another file failed, and this one is no longer needed.
    #[error("stopped")]
    Stopped,
    /// An invalid model name.
    #[error("cannot parse `{text}` as a model name, expected `org/name` or `org/name@revision`")]
    Name {
        /// The text.
        text: String,
    },
    /// An invalid `HF_ENDPOINT`.
    #[error(
        "`HF_ENDPOINT` is `{text}`, expected an address such as `https://huggingface.co`, without a password"
    )]
    Endpoint {
        /// The text.
        text: String,
    },
    /// An invalid certificate file or proxy variable.
    #[error("cannot use `{variable}`: {reason}")]
    Variable {
        /// The variable.
        variable: &'static str,
        /// The reason.
        reason: String,
    },
    /// There is no home folder, and no variable sets the cache.
    #[error("cannot locate the cache: there is no home folder")]
    NoHome,
    /// Text that cannot be a token.
    #[error("{}", if *is_empty { "the token is empty" } else { "the token contains characters that are not allowed" })]
    TokenShape {
        /// Whether the text is empty.
        is_empty: bool,
    },
    /// The given token is invalid.
    #[error(transparent)]
    Token(#[from] TokenFault),
    /// A file of the cache, or of a push, failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// A model is not cached, and network access is forbidden.
    #[error("{what} is not in the cache, and `HF_HUB_OFFLINE` forbids requests to the Hub")]
    Offline {
        /// The missing item.
        what: String,
    },
    /// A push needs the network, and network access is forbidden.
    #[error("cannot look up `{repo}`: `HF_HUB_OFFLINE` forbids requests to the Hub")]
    OfflineRepo {
        /// The repository.
        repo: RepoName,
    },
    /// An account needs the network, and network access is forbidden.
    #[error("cannot look up the account: `HF_HUB_OFFLINE` forbids requests to the Hub")]
    OfflineAccount,
    /// There is no connection, or it broke.
    #[error("cannot reach {host}: {reason}")]
    Connect {
        /// Whether an existing connection broke.
        is_lost: bool,
        /// The host.
        host: String,
        /// The system's reason.
        reason: String,
    },
    /// The host's certificate is invalid.
    #[error("cannot verify the certificate of {host}: {reason}")]
    Certificate {
        /// The host.
        host: String,
        /// The reason.
        reason: String,
    },
    /// The proxy failed.
    #[error("cannot reach {host} through the proxy of `{variable}`: {reason}")]
    Proxy {
        /// The host.
        host: String,
        /// The variable that sets the proxy.
        variable: &'static str,
        /// The proxy's reason.
        reason: String,
    },
    /// A download broke on every attempt.
    #[error("cannot download `{file}`: {reason} after {done} of {size} bytes")]
    Cut {
        /// The file.
        file: String,
        /// Bytes that have arrived.
        done: u64,
        /// Size of the file.
        size: u64,
        /// The last reason.
        reason: String,
    },
    /// The model does not exist, or the account cannot see it.
    #[error("cannot find the model `{}` at {host}{}", repo.id(), if *with_token { " with this account" } else { "" })]
    NoModel {
        /// The name.
        repo: RepoName,
        /// The host.
        host: String,
        /// Whether a token was sent.
        with_token: bool,
    },
    /// The model has no such branch, tag or commit.
    #[error("`{}` has no revision `{}`", repo.id(), repo.revision())]
    NoRevision {
        /// The name.
        repo: RepoName,
    },
    /// A listed file does not exist.
    #[error("`{repo}` has no file `{file}`")]
    NoFile {
        /// The model.
        repo: RepoName,
        /// The file.
        file: String,
    },
    /// The model's owner must grant access first.
    #[error("`{}` is gated: {}", repo.id(), if *with_token { "this account has no access yet" } else { "it requires an account" })]
    Gated {
        /// The model.
        repo: RepoName,
        /// Its page.
        page: String,
        /// Whether a token was sent.
        with_token: bool,
    },
    /// The token is expired, revoked or mistyped.
    #[error("{host} rejected the token{}", if *is_variable { " of `HF_TOKEN`" } else { "" })]
    BadToken {
        /// The host.
        host: String,
        /// Whether the token comes from a variable.
        is_variable: bool,
    },
    /// The request needs a token.
    #[error("{what} needs a token")]
    NoToken {
        /// The request.
        what: String,
    },
    /// The account lacks a permission.
    #[error("{host} denied the request{}", if message.is_empty() { " and gave no reason".to_owned() } else { format!(": {message}") })]
    Forbidden {
        /// The host.
        host: String,
        /// The server's reason.
        message: String,
    },
    /// The server requires a wait beyond the limit.
    #[error("{host} requires a wait of {} seconds", wait.as_secs())]
    Busy {
        /// The host.
        host: String,
        /// The wait.
        wait: Duration,
    },
    /// Any other status.
    #[error("{host} answered {status}{} to {request}", if message.is_empty() { String::new() } else { format!(" ({message})") })]
    Status {
        /// The host.
        host: String,
        /// The request, without its secrets.
        request: String,
        /// The status.
        status: u16,
        /// The server's message.
        message: String,
    },
    /// A response that the Hub does not give.
    #[error("unexpected response from {host} to {request}: {fault}")]
    Response {
        /// The host.
        host: String,
        /// The request, without its secrets.
        request: String,
        /// The fault.
        fault: String,
    },
    /// A repository with contradictory files.
    #[error("`{repo}` is damaged: {fault}")]
    Repo {
        /// The model.
        repo: RepoName,
        /// The fault.
        fault: String,
    },
    /// A file had a wrong checksum twice.
    #[error("`{file}` of `{repo}` has the checksum {found}, expected {expected}")]
    Checksum {
        /// The model.
        repo: RepoName,
        /// The file.
        file: String,
        /// The checksum of the downloaded bytes.
        found: String,
        /// The checksum in the listing.
        expected: String,
    },
    /// A small file exceeds its maximum size.
    #[error("`{file}` of `{repo}` has {size} bytes, expected at most {most} for such a file")]
    TooLarge {
        /// The model.
        repo: RepoName,
        /// The file.
        file: String,
        /// Its size.
        size: u64,
        /// The maximum size.
        most: u64,
    },
    /// The disk is too small.
    #[error("cannot download `{repo}`: it needs {needed} bytes, and the disk of `{}` has {available} free", cache.display())]
    Space {
        /// The model.
        repo: RepoName,
        /// The cache.
        cache: PathBuf,
        /// Bytes to download.
        needed: u64,
        /// Free bytes.
        available: u64,
    },
    /// A repository without safetensors.
    #[error("`{repo}` has no safetensors weights{}", found.as_ref().map(|file| format!(", only `{file}`")).unwrap_or_default())]
    NoWeights {
        /// The model.
        repo: RepoName,
        /// Weights of another format.
        found: Option<String>,
    },
    /// A folder that is neither an adapter nor a model.
    #[error("`{}` is neither an adapter nor a model: it has no `adapter_config.json` and no `config.json`", folder.display())]
    NotAModel {
        /// The folder.
        folder: PathBuf,
    },
    /// An `include` pattern matches nothing.
    #[error("`--include {path}` matches no file in `{}`", folder.display())]
    NoMatch {
        /// The folder.
        folder: PathBuf,
        /// The pattern.
        path: String,
    },
    /// Every file is skipped.
    #[error("cannot push `{}`: every file is skipped", folder.display())]
    NothingToSend {
        /// The folder.
        folder: PathBuf,
    },
    /// A file changed during a push.
    #[error("cannot upload `{}`: the file changed during the upload", path.display())]
    FileChanged {
        /// The file.
        path: PathBuf,
    },
    /// The repository is public, and a private one was requested.
    #[error("cannot make `{}` private: it exists and is public", repo.id())]
    Public {
        /// The repository.
        repo: RepoName,
    },
    /// An adapter and a full model would share a repository.
    #[error("`{}` already holds {} (`{file}`); loaders would {}", repo.id(),
        if *is_adapter { "a full model" } else { "an adapter" },
        if *is_adapter { "pick the adapter instead" } else { "not find the model" })]
    Mixture {
        /// The repository.
        repo: RepoName,
        /// A file of the other kind.
        file: String,
        /// Whether the push contains an adapter.
        is_adapter: bool,
    },
    /// The regular files exceed the limit of a commit.
    #[error("cannot commit to `{}`: its regular files have {bytes} bytes, and one commit holds at most {most}", repo.id())]
    LargeCommit {
        /// The repository.
        repo: RepoName,
        /// Size of the files.
        bytes: u64,
        /// The limit.
        most: u64,
        /// The largest file.
        largest: String,
    },
    /// The repository's `.gitignore` excludes a file that loading needs.
    #[error("the `.gitignore` of `{}` excludes `{file}`, and the upload cannot be loaded without it", repo.id())]
    Ignored {
        /// The repository.
        repo: RepoName,
        /// The file.
        file: String,
    },
    /// The Hub does not report whether the repository is private.
    #[error("cannot verify that `{}` is private: {host} does not report it", repo.id())]
    NotPrivate {
        /// The repository.
        repo: RepoName,
        /// The host.
        host: String,
    },
    /// A pull request without a target.
    #[error("cannot open a pull request: `{}` does not exist{}", repo.id(), if *with_token { " or is hidden from this account" } else { "" })]
    NothingToProposeTo {
        /// The repository.
        repo: RepoName,
        /// Whether a token was sent.
        with_token: bool,
    },
    /// The revision is a commit or a tag.
    #[error("`{}` of `{}` is not a branch", repo.revision(), repo.id())]
    NoBranch {
        /// The repository at that revision.
        repo: RepoName,
    },
    /// Other commits came first on every attempt.
    #[error("cannot commit to `{repo}`: another commit came first on each of {attempts} attempts")]
    Race {
        /// Number of attempts.
        attempts: u32,
        /// The repository.
        repo: RepoName,
    },
    /// The token is read-only.
    #[error("the token of `{account}` is read-only")]
    ReadOnly {
        /// The account.
        account: String,
        /// Whether the token comes from a variable.
        is_variable: bool,
    },
    /// The repository has another owner.
    #[error("`{account}` cannot write to `{}`{}", repo.id(), if orgs.is_empty() { String::new() } else { format!("; it may write to its own repositories and those of {}", orgs.join(", ")) })]
    NotOwner {
        /// The repository.
        repo: RepoName,
        /// The account.
        account: String,
        /// Its organisations.
        orgs: Vec<String>,
        /// Whether the repository exists, as far as the account can see.
        exists: bool,
    },
    /// The account has access, and the token does not.
    #[error("the token of `{account}` cannot write to `{}`{}", repo.id(), if message.is_empty() { String::new() } else { format!(": {message}") })]
    MayNotWrite {
        /// The repository.
        repo: RepoName,
        /// The account.
        account: String,
        /// The Hub's reason.
        message: String,
    },
    /// The Hub rejected the commit.
    #[error("`{repo}` rejected the commit: {message}")]
    Refused {
        /// The repository.
        repo: RepoName,
        /// The Hub's reason.
        message: String,
    },
}
