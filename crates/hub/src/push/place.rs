//! Where a push goes: the repository and its branch, made where they are not there.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::json;

use crate::http::Ask;
use crate::listing::{Listing, escaped, is_hex};
use crate::refusal::About;
use crate::{Hub, HubError, PushOptions, RepoName};

/// A repository and its branch: each is made at most once.
const LOOKS: usize = 3;

#[derive(Deserialize)]
struct Refs {
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
    /// What the branch holds that a push goes to, and whether the repository was made for it. A pull request goes to what
    /// is there.
    pub(super) fn place(&self, repo: &RepoName, options: &PushOptions) -> Result<(Listing, bool), HubError> {
        let mut created = false;
        let mut last = None;
        for _ in 0..LOOKS {
            match self.list(repo) {
                Ok(listing) if options.private && listing.private == Some(false) && !options.create_pr => {
                    return Err(HubError::Public { repo: repo.clone() });
                }
                Ok(listing) => return Ok((listing, created)),
                Err(error) if options.create_pr => return Err(error),
                Err(error @ HubError::NoModel { .. }) => {
                    self.create(repo, options.private)?;
                    created = true;
                    last = Some(error);
                }
                Err(error @ HubError::NoRevision { .. }) if may_be_branch(repo.revision()) => {
                    self.branch(repo)?;
                    last = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(last.expect("what was found was returned"))
    }

    /// Makes the repository; one that is there already is as good.
    fn create(&self, repo: &RepoName, private: bool) -> Result<(), HubError> {
        let (owner, name) = repo.id().split_once('/').expect("checked when parsed");
        let wish = json!({ "type": "model", "organization": owner, "name": name, "private": private });
        let address = format!("{}/api/repos/create", self.http.endpoint());
        self.make(repo, &address, &wish)
    }

    /// Makes the branch, where the main one is.
    fn branch(&self, repo: &RepoName) -> Result<(), HubError> {
        let wish = json!({ "startingPoint": "main" });
        let endpoint = self.http.endpoint();
        let address = format!("{endpoint}/api/models/{}/branch/{}", repo.id(), escaped(repo.revision()));
        self.make(repo, &address, &wish)
    }

    fn make(&self, repo: &RepoName, address: &str, wish: &serde_json::Value) -> Result<(), HubError> {
        let wish = wish.to_string();
        let ask = Ask::post(address, "application/json", wish.as_bytes());
        let answer = self.http.ask(&ask)?;
        if answer.status.as_u16() == 409 {
            return Ok(());
        }
        self.http.judged(answer, &ask, About::Repo(repo), self.settings.token_is_variable)?;
        Ok(())
    }

    /// The pull requests of a repository: refs and their commits.
    pub(super) fn pull_requests(&self, repo: &RepoName) -> Result<BTreeMap<String, String>, HubError> {
        let endpoint = self.http.endpoint();
        let ask = Ask::get(format!("{endpoint}/api/models/{}/refs?include_prs=1", repo.id()));
        let Refs { pull_requests } = self.json(&ask, About::Repo(repo))?;
        Ok(pull_requests.into_iter().map(|one| (one.name, one.commit)).collect())
    }

    /// What a refusal of a push means, by what the token's account may.
    pub(super) fn explained(&self, error: HubError, repo: &RepoName) -> HubError {
        let HubError::Forbidden { message, .. } = &error else { return error };
        let Ok(account) = self.whoami() else { return error };
        let (owner, _) = repo.id().split_once('/').expect("checked when parsed");
        let orgs: Vec<String> = account.orgs.iter().map(|org| org.name.clone()).collect();
        if account.role() == Some("read") {
            let is_variable = self.settings.token_is_variable;
            return HubError::ReadOnly { account: account.name, is_variable };
        }
        if account.name != owner && !orgs.iter().any(|org| org == owner) {
            return HubError::NotOwner { repo: repo.clone(), account: account.name, orgs };
        }
        HubError::MayNotWrite { repo: repo.clone(), account: account.name, message: message.clone() }
    }
}

/// Whether a branch may have this name: neither a commit nor a whole ref is one.
fn may_be_branch(revision: &str) -> bool {
    revision != "main" && !is_hex(revision, 40) && !revision.starts_with("refs/")
}
