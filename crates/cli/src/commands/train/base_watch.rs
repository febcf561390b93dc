//! Detects whether the files of a base change while a run reads them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use danlu_loader::BaseFiles;
use danlu_model::{FileError, base_sample, sha256_of_file, sidecar_files};

use crate::diagnostic::{Diagnostic, Result};
use crate::terminal_text;

/// Size and modification time of a file.
type FileState = (u64, Option<SystemTime>);

/// The state of a base's files before the first step.
pub struct BaseWatch {
    base: Arc<BaseFiles>,
    files: Vec<(PathBuf, FileState)>,
    /// Files of the tokenizer with their SHA-256. Each save copies these files next to the adapter.
    tokenizer: Vec<(PathBuf, FileState, String)>,
    /// Hash over samples of the files' content.
    sample: String,
}

impl BaseWatch {
    /// Records the state of the files of `base`.
    ///
    /// # Errors
    /// If the folder of the base cannot be read.
    pub fn new(base: Arc<BaseFiles>) -> Result<Self> {
        let (folder, sample) = (base.folder(), base.sample()?);
        let entries = fs::read_dir(folder).map(|entries| entries.flatten().map(|entry| entry.path()));
        let entries = entries.map_err(|error| FileError::new("read", folder, error))?;
        let is_read = |path: &PathBuf| {
            path.extension().is_some_and(|e| e == "safetensors") || path.ends_with("config.json")
        };
        let mut files: Vec<_> = entries.filter(is_read).map(|path| (path.clone(), state(&path))).collect();
        files.sort();
        let paths =
            sidecar_files::tokenizer_names().map(|name| folder.join(name)).filter(|path| path.is_file());
        let hashed = |path: PathBuf| -> Result<_> {
            let hash = hash_of(&path)?;
            let before = state(&path);
            Ok((path, before, hash))
        };
        let tokenizer = paths.map(hashed).collect::<Result<_>>()?;
        Ok(Self { base, files, tokenizer, sample })
    }

    /// Compares sizes, modification times and sampled content of the files with their state before the first
    /// step.
    ///
    /// # Errors
    /// If the content of a file changed, or a file cannot be read. The hint names the command that resumes
    /// from the last checkpoint in `output`.
    pub fn check(&self, output: &Path) -> Result<()> {
        let sized = self.files.iter().map(|(path, before)| (path, *before, state(path)));
        let changed: Vec<_> = sized.filter(|(_, before, now)| before != now).collect();
        let resized = changed.iter().find(|(_, before, now)| before.0 != now.0);
        let text = match (resized, changed.first()) {
            (Some((path, before, now)), _) => resized_text(path, *before, *now),
            (None, first) => {
                // If a modification time changed, a new file may have replaced the open file. The sample is
                // then read from the folder, because the open file still has the old content.
                let now = match first {
                    Some(_) => base_sample(self.base.folder())?,
                    None => self.base.sample()?,
                };
                let path = first.map_or(self.base.folder(), |(path, ..)| path.as_path());
                match now == self.sample {
                    true => match self.changed_tokenizer()? {
                        Some(text) => text,
                        None => return Ok(()),
                    },
                    false => rewritten_text(path, &self.sample, &now),
                }
            }
        };
        let resume = format!("danlu train --output {} --resume", terminal_text::shell_path(output));
        let hint = format!("put the base back as it was, then continue from the last checkpoint: {resume}");
        Err(Diagnostic::input(text).with_hint(hint))
    }

    /// Returns the error for the first file of the tokenizer whose content changed.
    fn changed_tokenizer(&self) -> Result<Option<String>> {
        for (path, before, hash) in &self.tokenizer {
            let now = state(path);
            if now == *before {
                continue;
            }
            if now.0 != before.0 {
                return Ok(Some(resized_text(path, *before, now)));
            }
            let found = hash_of(path)?;
            if found != *hash {
                return Ok(Some(rewritten_text(path, hash, &found)));
            }
        }
        Ok(None)
    }
}

fn hash_of(path: &Path) -> Result<String> {
    Ok(sha256_of_file(path).map_err(|error| FileError::new("read", path, error))?)
}

fn resized_text(path: &Path, before: FileState, now: FileState) -> String {
    format!(
        "cannot go on with `{}`: the file changed during the run; it had {} bytes and has {}",
        path.display(),
        before.0,
        now.0
    )
}

fn rewritten_text(path: &Path, before: &str, now: &str) -> String {
    format!(
        "cannot go on with `{}`: its content changed during the run; the sampled hash was {before:.12} and is {now:.12}",
        path.display()
    )
}

/// Returns the size and the modification time of a file. A missing file has size 0.
fn state(path: &Path) -> FileState {
    fs::metadata(path).map_or((0, None), |metadata| (metadata.len(), metadata.modified().ok()))
}
