//! What to do about what went wrong.

use crate::HubError;
use crate::cache::is_abbreviation;
use crate::settings::DEFAULT_ENDPOINT;

impl HubError {
    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::File(error) => return error.hint(),
            Self::Endpoint { .. } => "leave it out for the Hub itself, or name a mirror",
            Self::NoHome => "set `HF_HOME` to a folder",
            Self::TokenShape { .. } => {
                "make one at https://huggingface.co/settings/tokens and paste it whole"
            }
            Self::Token(fault) => fault.hint(),
            Self::Offline { .. } => "unset `HF_HUB_OFFLINE`, or name a folder",
            Self::OfflineRepo { .. } | Self::OfflineAccount => "unset `HF_HUB_OFFLINE`",
            Self::Connect { .. } => "check the network, and `HF_ENDPOINT` where it is set",
            Self::Certificate { .. } => {
                "behind a company's proxy set `SSL_CERT_FILE` to the file of its authority; also check this machine's clock, and `HF_ENDPOINT` where it is set"
            }
            Self::Proxy { variable, .. } => {
                return Some(format!("check `{variable}`, or name the host in `NO_PROXY`"));
            }
            Self::Cut { .. } | Self::Busy { .. } => "run the same command again: it goes on where it stopped",
            Self::NoModel { with_token: false, .. } => {
                "check the spelling; a private model needs `danlu login`"
            }
            Self::NoModel { .. } => "check the spelling, and whose account the token is of: `danlu whoami`",
            Self::NoRevision { repo } if is_abbreviation(repo.revision()) => {
                "the Hub knows a commit by all of its 40 digits; fewer do where the cache has just one that begins so"
            }
            Self::NoRevision { repo } => {
                return Some(format!("leave `@{}` out for its main branch", repo.revision()));
            }
            Self::Gated { page, with_token: true, .. } => {
                return Some(format!(
                    "accept its terms at {page}, with the account that `danlu whoami` names"
                ));
            }
            Self::Gated { page, .. } => {
                return Some(format!(
                    "accept its terms at {page}, then `danlu login` with a token of that account"
                ));
            }
            Self::BadToken { is_variable: true, .. } => {
                "set `HF_TOKEN` to one that is valid, or unset it: a public model needs none"
            }
            Self::BadToken { host, .. } if DEFAULT_ENDPOINT.strip_prefix("https://") != Some(host) => {
                return Some(format!(
                    "get a new one at {DEFAULT_ENDPOINT}/settings/tokens, or at {host} if it has accounts of its own, then `danlu login`; a public model needs none: `danlu logout`"
                ));
            }
            Self::BadToken { .. } => {
                "get a new one at https://huggingface.co/settings/tokens, then `danlu login`; a public model needs none: `danlu logout`"
            }
            Self::NoToken { .. } => "danlu login",
            Self::Checksum { .. } => {
                "something between here and the Hub changes files: try another network or mirror"
            }
            Self::Space { .. } => "free some space, or set `HF_HUB_CACHE` to a folder on another disk",
            Self::NoWeights { found: Some(_), .. } => {
                "danlu reads safetensors alone: look for a copy of the model in that form"
            }
            Self::Repo { .. } | Self::TooLarge { .. } => {
                "tell its owner, or name another revision: `org/name@revision`"
            }
            Self::NoWeights { .. } => "name a model, or an adapter that PEFT saved",
            Self::NotAModel { .. } => {
                "name the output folder of `danlu train` or `danlu merge`; an adapter is there when the training has ended"
            }
            Self::NotThere { .. } => {
                "paths are those within the folder; a `*` means neither a `/` nor the dot that hides a file"
            }
            Self::NothingToSend { .. } => "`--dry-run` lists what stays, and why",
            Self::FileChanged { .. } => "let the program that writes it end, then push again",
            Self::Forbidden { message, .. } if message.is_empty() => {
                "run it again; a proxy or a firewall on the way may be who refuses: try another network or mirror"
            }
            Self::Public { repo } => {
                return Some(format!(
                    "make `{}` private on its settings page, push to a new name, or leave `--private` out",
                    repo.id()
                ));
            }
            Self::Mixture { is_adapter: true, .. } => {
                "push the adapter to another name, or take the model's files out of that page first"
            }
            Self::Mixture { .. } => {
                "push the model to another name, or take the adapter's files out of that page first"
            }
            Self::LargeCommit { largest, .. } => {
                return Some(format!(
                    "`{largest}` is the largest: take it out of the folder, or have the repository's `.gitattributes` keep its kind as large files"
                ));
            }
            Self::Ignored { .. } => {
                "nothing was published: take that line out of the page's `.gitignore`, then push again"
            }
            Self::NotPrivate { repo, .. } => {
                return Some(format!(
                    "nothing was published: look at the settings page of `{}`, or leave `--private` out",
                    repo.id()
                ));
            }
            Self::NothingToProposeTo { .. } => {
                "check the spelling; in a namespace of your own a push without `--create-pr` makes the repository"
            }
            Self::NoBranch { .. } => "name a branch: one that is not there yet begins where the main one is",
            Self::Race { .. } => "push again when nobody else does: what was sent is not sent again",
            Self::ReadOnly { is_variable: true, .. } => {
                "set `HF_TOKEN` to one that may write, from https://huggingface.co/settings/tokens"
            }
            Self::ReadOnly { .. } => {
                "get one that may write at https://huggingface.co/settings/tokens, then `danlu login`"
            }
            Self::NotOwner { repo, account, exists: false, .. } => {
                return Some(format!("check the spelling, or push to `{account}/{}`", repo.model()));
            }
            Self::NotOwner { repo, account, .. } => {
                return Some(format!(
                    "push to `{account}/{}`, or offer it to the owner with `--create-pr`",
                    repo.model()
                ));
            }
            Self::MayNotWrite { .. } => {
                "a fine-grained token needs the right to write to it: https://huggingface.co/settings/tokens"
            }
            Self::Refused { .. } => "nothing was published: mend what it names, then push again",
            Self::Stopped
            | Self::Name { .. }
            | Self::Variable { .. }
            | Self::NoFile { .. }
            | Self::Forbidden { .. } => return None,
            Self::Status { .. } | Self::Response { .. } => {
                "try again later; https://status.huggingface.co tells whether the Hub is well"
            }
        };
        Some(hint.to_owned())
    }
}
