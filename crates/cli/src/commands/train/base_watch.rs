//! Detects whether the files of a base change while a run reads them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use danlu_loader::BaseFiles;
use danlu_model::base_sample;

use crate::diagnostic::{Diagnostic, Result};
use crate::terminal_text;

/// Size and modification time of a file.
type FileState = (u64, Option<SystemTime>);

/// The state of a base's files before the first step.
pub struct BaseWatch {
    base: Arc<BaseFiles>,
    files: Vec<(PathBuf, FileState)>,
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
        let entries = entries.map_err(|error| danlu_model::FileError::new("read", folder, error))?;
        let is_read = |path: &PathBuf| {
            path.extension().is_some_and(|e| e == "safetensors") || path.ends_with("config.json")
        };
        let mut files: Vec<_> = entries.filter(is_read).map(|path| (path.clone(), state(&path))).collect();
        files.sort();
        Ok(Self { base, files, sample })
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
            (Some((path, before, now)), _) => format!(
                "cannot go on with `{}`: the file changed during the run; it had {} bytes and has {}",
                path.display(),
                before.0,
                now.0
            ),
            (None, first) => {
                // If a modification time changed, a new file may have replaced the open file. The sample is
                // then read from the folder, because the open file still has the old content.
                let now = match first {
                    Some(_) => base_sample(self.base.folder())?,
                    None => self.base.sample()?,
                };
                if now == self.sample {
                    return Ok(());
                }
                let path = first.map_or(self.base.folder(), |(path, ..)| path.as_path());
                format!(
                    "cannot go on with `{}`: its content changed during the run; the sampled hash was {:.12} and is {now:.12}",
                    path.display(),
                    self.sample
                )
            }
        };
        let resume = format!("danlu train --output {} --resume", terminal_text::shell_path(output));
        let hint = format!("put the base back as it was, then continue from the last checkpoint: {resume}");
        Err(Diagnostic::input(text).with_hint(hint))
    }
}

/// Returns the size and the modification time of a file. A missing file has size 0.
fn state(path: &Path) -> FileState {
    fs::metadata(path).map_or((0, None), |metadata| (metadata.len(), metadata.modified().ok()))
}
