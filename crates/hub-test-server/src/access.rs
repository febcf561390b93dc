//! Accounts, tokens and permissions.

use std::collections::HashMap;

use crate::api_error::ApiError;
use crate::http::Head;
use crate::hub::State;
use crate::repository::{Gate, Repository};

/// An access token and its owner.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    pub name: String,
    pub writes: bool,
    pub expired: bool,
}

/// Accounts by token.
pub(crate) type Accounts = HashMap<String, Account>;

impl State {
    /// Returns the account that sent the request, or `None` if the request has no token.
    ///
    /// # Errors
    /// 401 for an unknown or expired token.
    pub fn caller(&self, head: &Head) -> Result<Option<Account>, ApiError> {
        let Some(header) = head.header("Authorization") else { return Ok(None) };
        let account = header.strip_prefix("Bearer ").and_then(|token| self.accounts.get(token));
        match account {
            Some(account) if account.expired => Err(ApiError::new(401, "User Access Token is expired")),
            Some(account) => Ok(Some(account.clone())),
            None => Err(ApiError::new(401, "Invalid credentials in Authorization header")),
        }
    }

    /// Returns whether the user `name` may write in `namespace`. A user may write in the namespace with the
    /// user's own name, and in the namespaces of the user's organisations.
    pub fn owns(&self, name: &str, namespace: &str) -> bool {
        name == namespace || self.members.iter().any(|(org, user)| org == namespace && user == name)
    }

    /// Returns the repository `id` if the caller may see it.
    ///
    /// # Errors
    /// For an unknown or hidden repository: 404, or 401 without a token.
    pub fn visible(&self, id: &str, caller: Option<&Account>) -> Result<&Repository, ApiError> {
        let repository = self.repositories.get(id).filter(|repository| {
            !repository.private || caller.is_some_and(|who| self.owns(&who.name, repository.namespace()))
        });
        repository.ok_or_else(|| ApiError::repository(caller.is_some()))
    }

    /// Checks that the caller may read the files of `repository`.
    ///
    /// # Errors
    /// 401 without a token, and 403 if the caller has no access to a gated repository.
    pub fn passes_gate(&self, repository: &Repository, caller: Option<&Account>) -> Result<(), ApiError> {
        let id = &repository.id;
        if repository.gate == Gate::Open {
            return Ok(());
        }
        let Some(who) = caller else {
            let message = format!(
                "Access to model {id} is restricted. You must have access to it and be authenticated to access it. \
                 Please log in."
            );
            return Err(ApiError::new(401, message).code("GatedRepo"));
        };
        if self.owns(&who.name, repository.namespace()) || repository.granted.contains(&who.name) {
            return Ok(());
        }
        let message = format!(
            "Access to model {id} is restricted and you are not in the authorized list. \
             Visit https://huggingface.co/{id} to ask for access."
        );
        Err(ApiError::new(403, message).code("GatedRepo"))
    }

    /// Returns the caller if it may write to `id`. If `proposes` is true, the caller only opens a pull
    /// request and need not own the repository.
    ///
    /// # Errors
    /// 401 without a token, 404 for an unknown repository, and 403 for another owner's repository or a
    /// read-only token.
    pub fn writer(&self, id: &str, caller: Option<Account>, proposes: bool) -> Result<Account, ApiError> {
        let repository = self.visible(id, caller.as_ref())?;
        let Some(who) = caller else { return Err(ApiError::new(401, "Invalid username or password.")) };
        if !who.writes {
            return Err(ApiError::new(
                403,
                "Forbidden: you must use a write token to upload to a repository.",
            ));
        }
        if !proposes && !self.owns(&who.name, repository.namespace()) {
            let message = "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request";
            return Err(ApiError::new(403, message));
        }
        Ok(who)
    }
}
