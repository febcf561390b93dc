//! How the Hub wants each file: within the commit, as a large file, or not at all.

use std::collections::BTreeMap;
use std::io::Read;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::http::About;
use crate::http::Ask;
use crate::http::url::escaped;
use crate::{Hub, HubError, ParcelFile, PushOptions, RepoName};

/// Files asked for at a time.
const AT_A_TIME: usize = 256;

/// Bytes of a file that the Hub wants to see first.
const SAMPLE: u64 = 512;

/// Most bytes of all files within one commit, which is in memory as it is sent: the Hub itself has those of more than
/// some 10 MB apart.
const LARGEST_COMMIT: u64 = 32 << 20;

/// How a file is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Within the commit.
    Regular,
    /// Before it, to the storage of large files.
    Large,
    /// Not: the repository's `.gitignore` leaves it out.
    Ignored,
}

#[derive(Deserialize)]
struct Answer {
    files: Vec<FileAnswer>,
}

#[derive(Deserialize)]
struct FileAnswer {
    path: String,
    #[serde(rename = "uploadMode")]
    mode: String,
    #[serde(rename = "shouldIgnore", default)]
    ignore: bool,
}

impl Hub {
    /// Asks how each of `files` is wanted, of which `modes` does not tell already.
    pub(super) fn modes(
        &self,
        repo: &RepoName,
        options: &PushOptions,
        files: &[&ParcelFile],
        modes: &mut BTreeMap<String, Mode>,
    ) -> Result<(), HubError> {
        let unknown: Vec<&&ParcelFile> =
            files.iter().filter(|file| !modes.contains_key(file.path())).collect();
        let proposes = if options.create_pr { "?create_pr=1" } else { "" };
        let endpoint = self.http.endpoint();
        let url =
            format!("{endpoint}/api/models/{}/preupload/{}{proposes}", repo.id(), escaped(repo.revision()));
        for files in unknown.chunks(AT_A_TIME) {
            let files: Vec<Value> = files.iter().map(|file| described(file)).collect::<Result<_, _>>()?;
            let wish = json!({ "files": files }).to_string();
            let ask = Ask::post(&url, "application/json", wish.as_bytes());
            let Answer { files } = self.json(&ask, About::Repo(repo))?;
            for file in files {
                let mode = match file.mode.as_str() {
                    _ if file.ignore => Mode::Ignored,
                    "regular" => Mode::Regular,
                    "lfs" => Mode::Large,
                    mode => return Err(ask.fault(format!("{:?} is to be sent as {mode:?}", file.path))),
                };
                modes.insert(file.path, mode);
            }
        }
        let mut regular = 0;
        let ask = Ask::get(&url);
        for file in files {
            match modes.get_mut(file.path()) {
                // Storage has no objects without bytes.
                Some(mode @ Mode::Large) if file.size() == 0 => *mode = Mode::Regular,
                Some(Mode::Regular) => regular += file.size(),
                Some(_) => {}
                None => return Err(ask.fault(format!("nothing about {:?}", file.path()))),
            }
        }
        if regular > LARGEST_COMMIT {
            let is_regular = |file: &&&ParcelFile| modes.get(file.path()) == Some(&Mode::Regular);
            let largest = files.iter().filter(is_regular).max_by_key(|file| file.size());
            return Err(HubError::LargeCommit {
                repo: repo.clone(),
                bytes: regular,
                most: LARGEST_COMMIT,
                largest: largest.map_or_else(String::new, |file| file.path().to_owned()),
            });
        }
        Ok(())
    }
}

fn described(file: &ParcelFile) -> Result<Value, HubError> {
    let mut sample = Vec::new();
    let content = file.open()?;
    content.reader().take(SAMPLE).read_to_end(&mut sample).map_err(|e| file.unread(e))?;
    Ok(json!({ "path": file.path(), "size": file.size(), "sample": STANDARD.encode(sample) }))
}
