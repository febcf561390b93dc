//! Hints: the next step for the user after an error.

use crate::cache::is_abbreviation;
use crate::dataset::PARQUET_BRANCH;
use crate::settings::DEFAULT_ENDPOINT;
use crate::{DatasetRef, HubError};

impl HubError {
    /// Returns the next step for the user, if one is known.
    pub fn hint(&self) -> Option<String> {
        self.connection_hint()
            .or_else(|| self.download_hint())
            .or_else(|| self.dataset_hint())
            .or_else(|| self.push_hint())
    }

    fn connection_hint(&self) -> Option<String> {
        let hint = match self {
            Self::File(error) => return error.hint(),
            Self::Endpoint { .. } => "unset it to use the Hub itself, or set it to a mirror",
            Self::NoHome => "set `HF_HOME` to a folder",
            Self::TokenShape { .. } => {
                "create a token at https://huggingface.co/settings/tokens and paste all of it"
            }
            Self::Token(fault) => fault.hint(),
            Self::Offline { .. } => "unset `HF_HUB_OFFLINE`, or pass a local folder",
            Self::OfflineRepo { .. } | Self::OfflineAccount => "unset `HF_HUB_OFFLINE`",
            Self::Connect { .. } => "check the network, and `HF_ENDPOINT` if it is set",
            Self::Certificate { .. } => {
                "behind a company's proxy, set `SSL_CERT_FILE` to its certificates; also check the clock of this machine, and `HF_ENDPOINT` if it is set"
            }
            Self::Proxy { variable, .. } => {
                return Some(format!("check `{variable}`, or add the host to `NO_PROXY`"));
            }
            Self::BadToken { is_variable: true, .. } => {
                "set `HF_TOKEN` to a valid token, or unset it for public models"
            }
            Self::BadToken { host, .. } if DEFAULT_ENDPOINT.strip_prefix("https://") != Some(host) => {
                return Some(format!(
                    "create a token at {DEFAULT_ENDPOINT}/settings/tokens, or at {host} if it has its own accounts, then run `danlu login`; for public models, run `danlu logout`"
                ));
            }
            Self::BadToken { .. } => {
                "create a token at https://huggingface.co/settings/tokens, then run `danlu login`; for public models, run `danlu logout`"
            }
            Self::NoToken { .. } => "run `danlu login`",
            Self::Forbidden { message, .. } if message.is_empty() => {
                "run it again, or try another network or mirror; a proxy or a firewall may deny the request"
            }
            Self::Status { .. } | Self::Response { .. } => {
                "try again later; https://status.huggingface.co shows the state of the Hub"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }

    fn download_hint(&self) -> Option<String> {
        let hint = match self {
            Self::Cut { .. } | Self::Busy { .. } => "run the same command again; it resumes the transfer",
            Self::NoModel { repo, with_token: false, .. } if repo.is_dataset() => {
                "check the spelling; a private data set needs `danlu login`"
            }
            Self::NoModel { with_token: false, .. } => {
                "check the spelling; a private model needs `danlu login`"
            }
            Self::NoModel { .. } => "check the spelling, and the account of the token with `danlu whoami`",
            Self::NoRevision { repo } if is_abbreviation(repo.revision()) => {
                "write all of its 40 digits; a shorter commit works only if the cache has exactly one that starts with it"
            }
            Self::NoRevision { repo } => {
                return Some(format!("omit `@{}` to use the main branch", repo.revision()));
            }
            Self::Gated { page, with_token: true, .. } => {
                return Some(format!(
                    "accept its terms at {page} with the account that `danlu whoami` prints"
                ));
            }
            Self::Gated { page, .. } => {
                return Some(format!(
                    "accept its terms at {page}, then run `danlu login` with a token of that account"
                ));
            }
            Self::Checksum { .. } => "try another network or mirror; a proxy on the way may change files",
            Self::Space { .. } => "free some space, or set `HF_HUB_CACHE` to a folder on another disk",
            Self::NoWeights { found: Some(_), .. } => {
                "use a copy of the model in safetensors; danlu reads no other format"
            }
            Self::Repo { .. } | Self::TooLarge { .. } => {
                "use another revision with `org/name@revision`, or report it to the owner"
            }
            Self::NoWeights { .. } => "use a model, or an adapter that PEFT saved",
            _ => return None,
        };
        Some(hint.to_owned())
    }

    fn dataset_hint(&self) -> Option<String> {
        const MAX_SHOWN: usize = 20;
        let one_of = |dataset: &DatasetRef, parts: &[String]| {
            let shown = parts.iter().take(MAX_SHOWN).map(|part| format!("`{}:{part}`", dataset.repo()));
            format!("choose one: {}", shown.collect::<Vec<_>>().join(", "))
        };
        Some(match self {
            Self::NoPart { dataset, parts } => one_of(dataset, parts),
            Self::SeveralSubsets { dataset, names } => one_of(dataset, names),
            Self::LoadingScript { repo, .. } => format!(
                "use the Parquet files that the Hub made of it: `hf:{}@{PARQUET_BRANCH}`; or write its records as JSON lines with Python's datasets",
                repo.id()
            ),
            Self::NoRecords { .. } => {
                "danlu reads JSON, JSON lines, CSV, TSV and Parquet, also with .gz or .zst".to_owned()
            }
            _ => return None,
        })
    }

    fn push_hint(&self) -> Option<String> {
        let hint = match self {
            Self::NotAModel { .. } => {
                "pass the output folder of `danlu train` or `danlu merge`; `train` writes the adapter when it ends"
            }
            Self::NoMatch { .. } => {
                "write paths relative to the folder; `*` does not match `/` or a leading dot"
            }
            Self::NothingToSend { .. } => "run with `--dry-run` to list the skipped files and the reasons",
            Self::SecretMessage => {
                "write another message; revoke the token if the shell's history is not private"
            }
            Self::FileChanged { .. } => "wait until the program that writes it ends, then push again",
            Self::Public { repo } => {
                return Some(format!(
                    "make `{}` private on its settings page, push to a new name, or omit `--private`",
                    repo.id()
                ));
            }
            Self::Mixture { is_adapter: true, .. } => {
                "push the adapter to another name, or remove the model's files from that repository first"
            }
            Self::Mixture { .. } => {
                "push the model to another name, or remove the adapter's files from that repository first"
            }
            Self::LargeCommit { largest, .. } => {
                return Some(format!(
                    "remove the largest, `{largest}`, from the folder, or list its file type in the repository's `.gitattributes`"
                ));
            }
            Self::Ignored { .. } => {
                "remove that line from the repository's `.gitignore`, then push again; nothing was published"
            }
            Self::NotPrivate { repo, .. } => {
                return Some(format!(
                    "check the settings page of `{}`, or omit `--private`; nothing was published",
                    repo.id()
                ));
            }
            Self::NothingToProposeTo { .. } => {
                "check the spelling; in your own namespace, push without `--create-pr` to create the repository"
            }
            Self::NoBranch { .. } => "use the name of a branch; a new branch starts at the main branch",
            Self::Race { .. } => "push again when no one else does; uploaded files are not uploaded again",
            Self::ReadOnly { is_variable: true, .. } => {
                "set `HF_TOKEN` to a token with write access, from https://huggingface.co/settings/tokens"
            }
            Self::ReadOnly { .. } => {
                "create a token with write access at https://huggingface.co/settings/tokens, then run `danlu login`"
            }
            Self::NotOwner { repo, account, exists: false, .. } => {
                return Some(format!("check the spelling, or push to `{account}/{}`", repo.model()));
            }
            Self::NotOwner { repo, account, .. } => {
                return Some(format!(
                    "push to `{account}/{}`, or open a pull request with `--create-pr`",
                    repo.model()
                ));
            }
            Self::MayNotWrite { .. } => {
                "give the fine-grained token write access to the repository at https://huggingface.co/settings/tokens"
            }
            Self::Refused { .. } => "fix the reported fault, then push again; nothing was published",
            _ => return None,
        };
        Some(hint.to_owned())
    }
}
