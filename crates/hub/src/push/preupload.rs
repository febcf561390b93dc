//! The preupload request, which classifies files as regular, large or ignored.

use std::collections::BTreeMap;
use std::io::Read;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::http::Request;
use crate::http::Resource;
use crate::http::url::escaped;
use crate::{Hub, HubError, PushOptions, RepoName, UploadFile};

const MAX_FILES_PER_REQUEST: usize = 256;

/// Number of bytes of a file that the Hub inspects.
const SAMPLE_BYTES: u64 = 512;

/// Maximum size of all regular files in a commit, in bytes. The regular files are in memory together. The Hub
/// classifies a file above about 10 MB as large.
pub const MAX_COMMIT_BYTES: u64 = 32 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UploadMode {
    /// The file is uploaded inside the commit request.
    Regular,
    /// The file is uploaded to the storage before the commit.
    Large,
    /// The file is not uploaded, because the `.gitignore` of the repository excludes it.
    Ignored,
}

#[derive(Deserialize)]
struct PreuploadResponse {
    files: Vec<PreuploadFile>,
}

#[derive(Deserialize)]
struct PreuploadFile {
    path: String,
    #[serde(rename = "uploadMode")]
    mode: String,
    #[serde(rename = "shouldIgnore", default)]
    ignore: bool,
}

impl Hub {
    /// Requests the upload mode of each file that is not in `upload_modes`.
    pub(super) fn fetch_upload_modes(
        &self,
        repo: &RepoName,
        options: &PushOptions,
        files: &[&UploadFile],
        upload_modes: &mut BTreeMap<String, UploadMode>,
    ) -> Result<(), HubError> {
        let unknown: Vec<&&UploadFile> =
            files.iter().filter(|file| !upload_modes.contains_key(file.path())).collect();
        let proposes = if options.create_pr { "?create_pr=1" } else { "" };
        let endpoint = self.http.endpoint();
        let url =
            format!("{endpoint}/api/models/{}/preupload/{}{proposes}", repo.id(), escaped(repo.revision()));
        for files in unknown.chunks(MAX_FILES_PER_REQUEST) {
            let files: Vec<Value> = files.iter().map(|file| described(file)).collect::<Result<_, _>>()?;
            let wish = json!({ "files": files }).to_string();
            let request = Request::post(&url, "application/json", wish.as_bytes());
            let PreuploadResponse { files } = self.json(&request, Resource::Repo(repo))?;
            for file in files {
                let mode = match file.mode.as_str() {
                    _ if file.ignore => UploadMode::Ignored,
                    "regular" => UploadMode::Regular,
                    "lfs" => UploadMode::Large,
                    mode => {
                        return Err(
                            request.fault(format!("unknown upload mode {mode:?} for {:?}", file.path))
                        );
                    }
                };
                upload_modes.insert(file.path, mode);
            }
        }
        let mut regular = 0;
        let request = Request::get(&url);
        for file in files {
            match upload_modes.get_mut(file.path()) {
                // The storage has no empty objects, so an empty file is regular.
                Some(mode @ UploadMode::Large) if file.size() == 0 => *mode = UploadMode::Regular,
                Some(UploadMode::Regular) => regular += file.size(),
                Some(_) => {}
                None => return Err(request.fault(format!("no entry for {:?}", file.path()))),
            }
        }
        if regular > MAX_COMMIT_BYTES {
            let is_regular =
                |file: &&&UploadFile| upload_modes.get(file.path()) == Some(&UploadMode::Regular);
            let largest = files.iter().filter(is_regular).max_by_key(|file| file.size());
            return Err(HubError::LargeCommit {
                repo: repo.clone(),
                bytes: regular,
                most: MAX_COMMIT_BYTES,
                largest: largest.map_or_else(String::new, |file| file.path().to_owned()),
            });
        }
        Ok(())
    }
}

fn described(file: &UploadFile) -> Result<Value, HubError> {
    let mut sample = Vec::new();
    let content = file.open()?;
    content.reader().take(SAMPLE_BYTES).read_to_end(&mut sample).map_err(|e| file.unread(e))?;
    Ok(json!({ "path": file.path(), "size": file.size(), "sample": STANDARD.encode(sample) }))
}
