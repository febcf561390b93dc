//! The files of a repository at one revision.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::checksum::{Checksum, is_hex};
use crate::http::Resource;
use crate::http::url::{escaped, joined, origin};
use crate::http::{MAX_RESPONSE_BYTES, Request, Response, Unread};
use crate::settings::DEFAULT_ENDPOINT;
use crate::{Hub, HubError, RepoName};

/// Maximum number of pages of a listing. The Hub returns 1,000 files per page.
const MAX_PAGES: usize = 100;

const MAX_FILES: usize = 100_000;

/// Maximum length of a path in bytes. Linux accepts no longer paths.
const MAX_PATH_BYTES: usize = 4096;

/// The state of a repository at one commit.
#[derive(Clone, Debug)]
pub(crate) struct Listing {
    /// The commit as 40 hexadecimal digits.
    pub commit: String,
    /// Whether the repository is private, or `None` if the Hub does not report it.
    pub private: Option<bool>,
    /// The files of the commit by path.
    pub files: BTreeMap<String, RemoteFile>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RemoteFile {
    pub size: u64,
    /// Checksum of the content, which is also the name of the blob in the cache.
    pub hash: Checksum,
}

impl Listing {
    /// Returns whether the repository contains no files except the one that the Hub adds to a new repository.
    pub fn is_empty(&self) -> bool {
        self.files.keys().all(|path| path == ".gitattributes")
    }
}

#[derive(Deserialize)]
struct Revision {
    sha: String,
    private: Option<bool>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    oid: String,
    #[serde(default)]
    size: u64,
    lfs: Option<Large>,
}

#[derive(Deserialize)]
struct Large {
    oid: String,
    size: u64,
}

impl Hub {
    /// Requests the commit of a revision and the list of its files.
    ///
    /// # Errors
    /// If the repository or the revision does not exist, or the response is not a listing.
    pub(crate) fn list(&self, repo: &RepoName) -> Result<Listing, HubError> {
        let http = self.online(|| format!("`{repo}`"))?;
        let (endpoint, revision) = (http.endpoint(), escaped(repo.revision()));
        let request = Request::get(format!("{endpoint}/api/{}/revision/{revision}", repo.api_path()));
        let Revision { sha: commit, private } = self.json(&request, Resource::Repo(repo))?;
        if !is_hex(&commit, 40) {
            return Err(request.fault("the commit is not 40 hexadecimal digits"));
        }
        let files = self.tree(repo, &commit)?;
        Ok(Listing { commit, private, files })
    }

    /// Requests the list of files of a commit.
    ///
    /// # Errors
    /// If the commit does not exist, or the response is not a listing.
    pub(crate) fn tree(
        &self,
        repo: &RepoName,
        commit: &str,
    ) -> Result<BTreeMap<String, RemoteFile>, HubError> {
        let http = self.online(|| format!("`{repo}`"))?;
        let mut files = BTreeMap::new();
        let mut next =
            Some(format!("{}/api/{}/tree/{commit}?recursive=true", http.endpoint(), repo.api_path()));
        // Size and time are limited for all pages together, not for each page.
        let (mut left, time) = (MAX_RESPONSE_BYTES, 2 * http.time());
        let end = Instant::now() + time;
        for _ in 0..MAX_PAGES {
            let Some(url) = next.take() else { break };
            let request = Request::get(url);
            if Instant::now() > end {
                return Err(request.fault(format!("an incomplete listing after {} seconds", time.as_secs())));
            }
            let (entries, link, bytes) = self.page::<Vec<Entry>>(&request, Resource::Repo(repo), left)?;
            left -= bytes;
            for entry in entries.into_iter().filter(|entry| entry.kind == "file") {
                if entry.path.len() > MAX_PATH_BYTES || http.is_token_in(&entry.path) {
                    let len = entry.path.len();
                    return Err(request.fault(match len > MAX_PATH_BYTES {
                        true => format!("a path of {len} bytes, expected at most {MAX_PATH_BYTES}"),
                        false => "a path that contains the token".to_owned(),
                    }));
                }
                let (size, hash) = match entry.lfs {
                    Some(Large { oid, size }) if is_hex(&oid, 64) => (size, Checksum::Sha256(oid)),
                    None if is_hex(&entry.oid, 40) => (entry.size, Checksum::Git(entry.oid)),
                    _ => return Err(request.fault(format!("{:?} has no valid checksum", entry.path))),
                };
                files.insert(entry.path, RemoteFile { size, hash });
            }
            if files.len() > MAX_FILES {
                let fault =
                    format!("a listing of {} files and more, expected at most {MAX_FILES}", files.len());
                return Err(request.fault(fault));
            }
            next = link.map(|link| self.next_page(&request, &link)).transpose()?;
        }
        match next {
            Some(next) => Err(Request::get(next).fault(format!("a listing of more than {MAX_PAGES} pages"))),
            None => Ok(files),
        }
    }

    /// Returns the URL of the next page. The URL must belong to the endpoint.
    fn next_page(&self, request: &Request<'_>, link: &str) -> Result<String, HubError> {
        let endpoint = self.http.endpoint().as_str();
        // A mirror may return URLs of the Hub itself, which are replaced by URLs of the mirror.
        let link = match link.strip_prefix(DEFAULT_ENDPOINT) {
            Some(path) if path.starts_with('/') => format!("{endpoint}{path}"),
            _ => link.to_owned(),
        };
        let is_ours = |next: &String| origin(next) == origin(endpoint) && !self.http.is_token_in(next);
        let next = joined(&request.url, &link).filter(is_ours);
        next.ok_or_else(|| {
            let page = self.http.redacted(&Request::get(link).words());
            request.fault(format!("the listing continues at `{page}`, expected a URL of {endpoint}"))
        })
    }

    /// Requests a JSON value.
    pub(crate) fn json<T: DeserializeOwned>(
        &self,
        request: &Request<'_>,
        resource: Resource<'_>,
    ) -> Result<T, HubError> {
        Ok(self.page(request, resource, MAX_RESPONSE_BYTES)?.0)
    }

    /// Requests a JSON value of at most `most` bytes. Returns the value, the URL of the next page, and the
    /// number of bytes read.
    fn page<T: DeserializeOwned>(
        &self,
        request: &Request<'_>,
        resource: Resource<'_>,
        most: u64,
    ) -> Result<(T, Option<String>, u64), HubError> {
        let (response, bytes) = self.whole(request, resource, most)?;
        // The parser's error quotes invalid text, which may contain the token.
        let value = serde_json::from_slice(&bytes)
            .map_err(|error| request.fault(self.http.redacted(&error.to_string())))?;
        Ok((value, response.header("link").and_then(next_page), bytes.len() as u64))
    }

    /// Reads a whole response. If the connection is lost, sends the request again.
    pub(crate) fn whole(
        &self,
        request: &Request<'_>,
        resource: Resource<'_>,
        most: u64,
    ) -> Result<(Response, Vec<u8>), HubError> {
        let mut attempts = self.http.retry_policy().attempts;
        loop {
            attempts -= 1;
            let mut response = self.http.send_checked(request, resource, self.settings.token_is_variable)?;
            match response.at_most(most) {
                Ok(bytes) => return Ok((response, bytes)),
                Err(Unread::Cut(_)) if attempts > 0 => {}
                Err(error) => return Err(request.fault(error.to_string())),
            }
        }
    }
}

pub(crate) fn file_url(hub: &Hub, repo: &RepoName, commit: &str, path: &str) -> String {
    let path: Vec<String> = path.split('/').map(escaped).collect();
    format!("{}/{}/resolve/{commit}/{}", hub.http.endpoint(), repo.page_path(), path.join("/"))
}

/// Returns the `next` URL of a `Link` header.
fn next_page(link: &str) -> Option<String> {
    link.split(',').find_map(|one| {
        let (url, kind) = one.trim().strip_prefix('<')?.split_once('>')?;
        kind.contains("rel=\"next\"").then(|| url.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_parts_of_paths_are_read_and_written() {
        let link = r#"<https://hub/x?cursor=a>; rel="prev", <https://hub/x?cursor=b>; rel="next""#;
        assert_eq!(next_page(link).unwrap(), "https://hub/x?cursor=b");
        assert_eq!(next_page("<x>; rel=\"prev\""), None);
        assert_eq!(escaped("refs/pr/1"), "refs%2Fpr%2F1");
        assert_eq!(escaped("a b#甄.json"), "a%20b%23%E7%94%84.json");
        assert!(is_hex(&"a1".repeat(20), 40) && !is_hex(&"A1".repeat(20), 40) && !is_hex("../x", 4));
    }
}
