//! Finds the repository and the branch of a push, and creates them if necessary.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::json;
use ureq::http::Method;

use crate::account::Account;
use crate::checksum::is_hex;
use crate::http::Request;
use crate::http::Resource;
use crate::http::url::escaped;
use crate::listing::Listing;
use crate::{Hub, HubError, PushOptions, RepoName};

/// Maximum number of lookups of the target: one at first, one after the repository is created, and one after
/// the branch is created.
const MAX_TARGET_CHECKS: usize = 3;

/// Records what a push created before its commit.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Created {
    pub repository: bool,
    pub branch: bool,
}

#[derive(Deserialize)]
struct Refs {
    #[serde(default)]
    branches: Vec<Ref>,
    #[serde(rename = "pullRequests", default)]
    pull_requests: Vec<Ref>,
}

#[derive(Deserialize)]
struct Ref {
    #[serde(rename = "ref")]
    name: String,
    #[serde(rename = "targetCommit")]
    commit: String,
}

impl Hub {
    /// Returns the listing of the target branch. Creates the repository and the branch if necessary.
    ///
    /// For a pull request, the target must already exist.
    pub(super) fn resolve_target(
        &self,
        repo: &RepoName,
        options: &PushOptions,
    ) -> Result<(Listing, Created), HubError> {
        let mut created = Created::default();
        let mut last = None;
        for _ in 0..MAX_TARGET_CHECKS {
            match self.list(repo) {
                Ok(listing) if options.private && listing.private == Some(false) && !options.create_pr => {
                    // An interrupted push may have left an empty public repository, which has published no
                    // content. Only such a repository is made private.
                    if !listing.is_empty() || !self.is_bare(repo, &listing.commit)? {
                        return Err(HubError::Public { repo: repo.clone() });
                    }
                    self.make_private(repo)?;
                    let listing = self.list(repo)?;
                    return match listing.private {
                        Some(true) => Ok((listing, created)),
                        _ => Err(self.not_private(repo)),
                    };
                }
                Ok(listing) if options.private && listing.private.is_none() && !options.create_pr => {
                    return Err(self.not_private(repo));
                }
                Ok(listing) => return Ok((listing, created)),
                Err(HubError::NoModel { repo, with_token, .. }) if options.create_pr => {
                    return Err(HubError::NothingToProposeTo { repo, with_token });
                }
                Err(error) if options.create_pr => return Err(error),
                Err(error @ HubError::NoModel { .. }) => {
                    self.create(repo, options.private)?;
                    created.repository = true;
                    last = Some(error);
                }
                Err(error @ HubError::NoRevision { .. }) if may_be_branch(repo.revision()) => {
                    self.branch(repo)?;
                    created.branch = true;
                    last = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(last.expect("what was found was returned"))
    }

    /// Creates the repository unless it exists.
    fn create(&self, repo: &RepoName, private: bool) -> Result<(), HubError> {
        let (owner, name) = repo.id().split_once('/').expect("checked when parsed");
        let wish = json!({ "type": "model", "organization": owner, "name": name, "private": private });
        let address = format!("{}/api/repos/create", self.http.endpoint());
        self.make(repo, &address, &wish)
    }

    /// Creates the branch, which starts at `main`.
    fn branch(&self, repo: &RepoName) -> Result<(), HubError> {
        let wish = json!({ "startingPoint": "main" });
        let endpoint = self.http.endpoint();
        let address = format!("{endpoint}/api/models/{}/branch/{}", repo.id(), escaped(repo.revision()));
        self.make(repo, &address, &wish)
    }

    fn make(&self, repo: &RepoName, address: &str, wish: &serde_json::Value) -> Result<(), HubError> {
        let wish = wish.to_string();
        let request = Request::post(address, "application/json", wish.as_bytes());
        let response = self.http.send(&request)?;
        if response.status.as_u16() == 409 {
            return Ok(());
        }
        self.http.check_status(response, &request, Resource::Repo(repo), self.settings.token_is_variable)?;
        Ok(())
    }

    fn make_private(&self, repo: &RepoName) -> Result<(), HubError> {
        let wish = json!({ "visibility": "private" }).to_string();
        let address = format!("{}/api/models/{}/settings", self.http.endpoint(), repo.id());
        let request =
            Request { method: Method::PUT, ..Request::post(address, "application/json", wish.as_bytes()) };
        self.http.send_checked(&request, Resource::Repo(repo), self.settings.token_is_variable)?;
        Ok(())
    }

    /// Returns the error for a repository that is not confirmed to be private.
    pub fn not_private(&self, repo: &RepoName) -> HubError {
        HubError::NotPrivate { repo: repo.clone(), host: self.host() }
    }

    /// Returns whether all branches and pull requests of a repository point to `commit`.
    fn is_bare(&self, repo: &RepoName, commit: &str) -> Result<bool, HubError> {
        let refs = self.refs(repo)?;
        Ok(refs.branches.iter().chain(&refs.pull_requests).all(|one| one.commit == commit))
    }

    /// Returns the ref and the commit of each pull request.
    pub(super) fn pull_requests(&self, repo: &RepoName) -> Result<BTreeMap<String, String>, HubError> {
        Ok(self.refs(repo)?.pull_requests.into_iter().map(|one| (one.name, one.commit)).collect())
    }

    fn refs(&self, repo: &RepoName) -> Result<Refs, HubError> {
        let endpoint = self.http.endpoint();
        let request = Request::get(format!("{endpoint}/api/models/{}/refs?include_prs=1", repo.id()));
        self.json(&request, Resource::Repo(repo))
    }

    /// Checks write access before the upload, based on names and roles. Returns the account.
    ///
    /// # Errors
    /// If there is no token, the Hub rejects the token, or the token is read-only. Also returns an error if
    /// the account cannot write for the repository's owner and no pull request is requested.
    pub fn may_push(&self, repo: &RepoName, options: &PushOptions) -> Result<Account, HubError> {
        self.require_online(repo)?;
        if !self.http.has_token() {
            return Err(HubError::NoToken { what: format!("a push to `{}`", repo.id()) });
        }
        let account = self.whoami()?;
        match self.write_denial(&account, repo) {
            Some(error) if !(options.create_pr && matches!(error, HubError::NotOwner { .. })) => Err(error),
            _ => Ok(account),
        }
    }

    /// Returns the reason why an account cannot write to a repository, based on names and roles.
    fn write_denial(&self, account: &Account, repo: &RepoName) -> Option<HubError> {
        let (owner, _) = repo.id().split_once('/').expect("checked when parsed");
        let name = account.name.clone();
        if account.role() == Some("read") {
            let is_variable = self.settings.token_is_variable;
            return Some(HubError::ReadOnly { account: name, is_variable });
        }
        let orgs: Vec<String> = account.orgs.iter().map(|org| org.name.clone()).collect();
        let is_owner = name == owner || orgs.iter().any(|org| org == owner);
        (!is_owner).then(|| {
            let exists = !matches!(self.list(repo), Err(HubError::NoModel { .. }));
            HubError::NotOwner { repo: repo.clone(), account: name, orgs, exists }
        })
    }

    /// If the permissions of the account explain a rejected push, returns a more exact error.
    pub(super) fn explained(&self, error: HubError, repo: &RepoName) -> HubError {
        let HubError::Forbidden { message, .. } = &error else { return error };
        let Ok(account) = self.whoami() else { return error };
        self.write_denial(&account, repo).unwrap_or_else(|| {
            let message = message.clone();
            HubError::MayNotWrite { repo: repo.clone(), account: account.name, message }
        })
    }
}

/// Returns whether a new branch may have this name. The name must not be `main`, a commit, or a full ref.
pub(super) fn may_be_branch(revision: &str) -> bool {
    revision != "main" && !is_hex(revision, 40) && !revision.starts_with("refs/")
}
