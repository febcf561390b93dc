//! What can go wrong between here and a Hub. No error holds a token.

use std::path::PathBuf;
use std::time::Duration;

use danlu_model::FileError;

use crate::{RepoName, TokenFault};

/// A request, a transfer or the cache failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// Another file failed: nobody waits for this one.
    #[error("stopped")]
    Stopped,
    /// A text that names no model.
    #[error("`{text}` is no name of a model on the Hub, expected `org/name` or `org/name@revision`")]
    Name {
        /// The text.
        text: String,
    },
    /// `HF_ENDPOINT` is no address.
    #[error(
        "`HF_ENDPOINT` is `{text}`, expected an address such as `https://huggingface.co`, without a password"
    )]
    Endpoint {
        /// The text.
        text: String,
    },
    /// A certificate file or a proxy variable has a fault.
    #[error("cannot use `{variable}`: {reason}")]
    Variable {
        /// Its name.
        variable: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// There is no home, and no variable says where the cache is.
    #[error("there is no home folder to keep a cache in")]
    NoHome,
    /// A token that could not be one.
    #[error("{}", if *is_empty { "the token is empty" } else { "the token holds blanks or letters that no token has" })]
    TokenShape {
        /// Whether there was none at all.
        is_empty: bool,
    },
    /// A token that is given and cannot be used.
    #[error(transparent)]
    Token(#[from] TokenFault),
    /// A file or folder of the cache.
    #[error(transparent)]
    File(#[from] FileError),
    /// The network is needed, and switched off.
    #[error("{what} is not in the cache, and `HF_HUB_OFFLINE` forbids to ask the Hub")]
    Offline {
        /// What was wanted.
        what: String,
    },
    /// The same, where no cache would do.
    #[error("`HF_HUB_OFFLINE` forbids to ask the Hub about `{repo}`")]
    OfflineRepo {
        /// The repository.
        repo: RepoName,
    },
    /// The same, of the account.
    #[error("`HF_HUB_OFFLINE` forbids to ask the Hub whose token it is")]
    OfflineAccount,
    /// Nobody answers, or no longer.
    #[error("cannot reach {host}: {reason}")]
    Connect {
        /// Whether there was a connection, and it broke.
        is_lost: bool,
        /// The host asked.
        host: String,
        /// What the system said.
        reason: String,
    },
    /// Someone else may be answering.
    #[error("{host} cannot be trusted: {reason}")]
    Certificate {
        /// The host asked.
        host: String,
        /// What is wrong.
        reason: String,
    },
    /// The proxy does not let through.
    #[error("cannot reach {host} through the proxy of `{variable}`: {reason}")]
    Proxy {
        /// The host asked.
        host: String,
        /// What names the proxy.
        variable: &'static str,
        /// What it said.
        reason: String,
    },
    /// A transfer broke off, again and again.
    #[error("`{file}` stopped at {done} of {size} bytes: {reason}")]
    Cut {
        /// The file.
        file: String,
        /// Bytes that are here.
        done: u64,
        /// Bytes of the whole.
        size: u64,
        /// What happened last.
        reason: String,
    },
    /// No such model, or a private one of someone else.
    #[error("there is no model `{}` at {host}{}", repo.id(), if *with_token { " that this account may see" } else { "" })]
    NoModel {
        /// The name.
        repo: RepoName,
        /// The host asked.
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
    /// A file that was listed is not there.
    #[error("`{repo}` has no file `{file}`")]
    NoFile {
        /// The model.
        repo: RepoName,
        /// The file.
        file: String,
    },
    /// The owner lets in who asked for it.
    #[error("`{}` is gated: {}", repo.id(), if *with_token { "this account has not been let in" } else { "it wants an account" })]
    Gated {
        /// The model.
        repo: RepoName,
        /// Its page.
        page: String,
        /// Whether a token was sent.
        with_token: bool,
    },
    /// The token is expired, revoked or mistyped.
    #[error("{host} does not accept the token{}", if *is_variable { " of `HF_TOKEN`" } else { "" })]
    BadToken {
        /// The host asked.
        host: String,
        /// Whether a variable gave it.
        is_variable: bool,
    },
    /// A token is needed and there is none.
    #[error("{what} needs a token")]
    NoToken {
        /// What was asked for.
        what: String,
    },
    /// The account may not.
    #[error("{host} refuses{}", if message.is_empty() { " without a reason".to_owned() } else { format!(": {message}") })]
    Forbidden {
        /// The host asked.
        host: String,
        /// What it said.
        message: String,
    },
    /// It has too much to do, for longer than is worth waiting.
    #[error("{host} asks to wait {} seconds", wait.as_secs())]
    Busy {
        /// The host asked.
        host: String,
        /// How long.
        wait: Duration,
    },
    /// Any other answer.
    #[error("{host} answered {status}{} to {request}", if message.is_empty() { String::new() } else { format!(" ({message})") })]
    Status {
        /// The host asked.
        host: String,
        /// The request, without its secrets.
        request: String,
        /// The status.
        status: u16,
        /// What it said.
        message: String,
    },
    /// An answer that the Hub does not give: a fault, or an ill will.
    #[error("{host} gave no proper answer to {request}: {fault}")]
    Response {
        /// The host asked.
        host: String,
        /// The request, without its secrets.
        request: String,
        /// What is wrong with it.
        fault: String,
    },
    /// A repository whose files contradict each other.
    #[error("`{repo}` is damaged: {fault}")]
    Repo {
        /// The model.
        repo: RepoName,
        /// What is wrong.
        fault: String,
    },
    /// A file whose bytes are not those that were announced, twice.
    #[error("`{file}` of `{repo}` arrived with checksum {found}, expected {expected}")]
    Checksum {
        /// The model.
        repo: RepoName,
        /// The file.
        file: String,
        /// The checksum of what arrived.
        found: String,
        /// The one announced.
        expected: String,
    },
    /// A small file that is none.
    #[error("`{file}` of `{repo}` is of {size} bytes, and at most {most} are fetched of such a file")]
    TooLarge {
        /// The model.
        repo: RepoName,
        /// The file.
        file: String,
        /// Its bytes.
        size: u64,
        /// The bytes of the longest that is fetched.
        most: u64,
    },
    /// The disk is too small for what would come.
    #[error("`{repo}` needs {needed} bytes, and the disk of `{}` has {available}", cache.display())]
    Space {
        /// The model.
        repo: RepoName,
        /// The cache.
        cache: PathBuf,
        /// Bytes that would come.
        needed: u64,
        /// Bytes that are free.
        available: u64,
    },
    /// Neither an adapter nor a model that danlu reads.
    #[error("`{repo}` holds no weights in safetensors{}", found.as_ref().map(|file| format!(", only `{file}`")).unwrap_or_default())]
    NoWeights {
        /// The model.
        repo: RepoName,
        /// Weights of another kind.
        found: Option<String>,
    },
    /// A folder that is not to be pushed.
    #[error("`{}` holds neither an adapter nor a model: no `adapter_config.json`, no `config.json`", folder.display())]
    NotAModel {
        /// The folder.
        folder: PathBuf,
    },
    /// A path that is to come along means nothing.
    #[error("`{}` has nothing that `{path}` means", folder.display())]
    NotThere {
        /// The folder.
        folder: PathBuf,
        /// The path.
        path: String,
    },
    /// Everything stays.
    #[error("nothing of `{}` may be sent", folder.display())]
    NothingToSend {
        /// The folder.
        folder: PathBuf,
    },
    /// A file was written while it was read.
    #[error("`{}` changed while it was read to be sent", path.display())]
    FileChanged {
        /// The file.
        path: PathBuf,
    },
    /// Private was asked for, and everyone sees it.
    #[error("`{}` is there already, and public", repo.id())]
    Public {
        /// The repository.
        repo: RepoName,
    },
    /// An adapter was to be put beside a model, or a model beside an adapter.
    #[error("`{}` holds {} (`{file}`): beside it {}", repo.id(),
        if *is_adapter { "a whole model" } else { "an adapter" },
        if *is_adapter { "an adapter would be loaded in its place" } else { "the model would not be found" })]
    Mixture {
        /// The repository.
        repo: RepoName,
        /// The file that makes it so.
        file: String,
        /// Whether it was an adapter that was pushed.
        is_adapter: bool,
    },
    /// More within one commit than is held in memory.
    #[error("the files that `{}` wants within the commit hold {bytes} bytes, and at most {most} are sent so", repo.id())]
    LargeCommit {
        /// The repository.
        repo: RepoName,
        /// Their bytes.
        bytes: u64,
        /// How many are sent.
        most: u64,
        /// The largest of them.
        largest: String,
    },
    /// What it takes to load a model would be left out there.
    #[error("the `.gitignore` of `{}` leaves `{file}` out, and without it nothing that is sent can be loaded", repo.id())]
    Ignored {
        /// The repository.
        repo: RepoName,
        /// The file.
        file: String,
    },
    /// Private was asked for, and the Hub does not say whether it is.
    #[error("{host} does not say that `{}` is private", repo.id())]
    NotPrivate {
        /// The repository.
        repo: RepoName,
        /// The host asked.
        host: String,
    },
    /// A pull request to nobody.
    #[error("there is no `{}` to offer a pull request to{}", repo.id(), if *with_token { " that this account may see" } else { "" })]
    NothingToProposeTo {
        /// The repository.
        repo: RepoName,
        /// Whether a token was sent.
        with_token: bool,
    },
    /// A commit or a tag stays what it is.
    #[error("`{}` of `{}` is no branch", repo.revision(), repo.id())]
    NoBranch {
        /// The repository at that revision.
        repo: RepoName,
    },
    /// Others were faster, again and again.
    #[error("`{repo}` got another commit each time that this one was ready; nothing was published")]
    Race {
        /// The repository.
        repo: RepoName,
    },
    /// The token reads only.
    #[error("the token of `{account}` may read and not write")]
    ReadOnly {
        /// The account.
        account: String,
        /// Whether a variable gave it.
        is_variable: bool,
    },
    /// The namespace is another's.
    #[error("`{account}` may not write to `{}`{}", repo.id(), if orgs.is_empty() { String::new() } else { format!(", only as itself or for {}", orgs.join(", ")) })]
    NotOwner {
        /// The repository.
        repo: RepoName,
        /// The account.
        account: String,
        /// Its organisations.
        orgs: Vec<String>,
        /// Whether the repository is there, as far as the account may see.
        exists: bool,
    },
    /// The account could, and this token may not.
    #[error("the token of `{account}` may not write to `{}`{}", repo.id(), if message.is_empty() { String::new() } else { format!(": {message}") })]
    MayNotWrite {
        /// The repository.
        repo: RepoName,
        /// The account.
        account: String,
        /// What the Hub said.
        message: String,
    },
    /// The Hub looked at the commit and does not want it.
    #[error("`{repo}` does not take the commit: {message}")]
    Refused {
        /// The repository.
        repo: RepoName,
        /// What the Hub said.
        message: String,
    },
}
