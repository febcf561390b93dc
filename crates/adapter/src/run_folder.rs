//! Names of the files and folders that a training run writes to its output folder.

use std::path::{Path, PathBuf};

use danlu_model::{FileError, files};

/// Name of the file with all settings of the run.
pub const RUN_FILE: &str = "run.toml";

/// Prefix of a checkpoint folder's name. The number of steps follows.
pub const CHECKPOINT_PREFIX: &str = "checkpoint-";

/// Name of the file that identifies a checkpoint folder.
pub const CHECKPOINT_STATE_FILE: &str = "danlu_state.json";

/// Returns the newest checkpoint of an output folder.
///
/// # Errors
/// If the folder cannot be read.
pub fn latest_checkpoint(output: &Path) -> Result<Option<PathBuf>, FileError> {
    Ok(checkpoints(output)?.pop().map(|(_, path)| path))
}

/// Returns the checkpoints of an output folder with their steps, oldest first. The list is empty if the
/// folder does not exist.
///
/// # Errors
/// If the folder cannot be read.
pub fn checkpoints(output: &Path) -> Result<Vec<(u64, PathBuf)>, FileError> {
    let mut found: Vec<(u64, PathBuf)> = Vec::new();
    for name in files::names_in(output)? {
        let step = name.strip_prefix(CHECKPOINT_PREFIX).and_then(|digits| digits.parse::<u64>().ok());
        // danlu does not write names such as `checkpoint-007` or `checkpoint-+7`.
        if let Some(step) = step.filter(|step| name == format!("{CHECKPOINT_PREFIX}{step}"))
            && output.join(&name).join(CHECKPOINT_STATE_FILE).is_file()
        {
            found.push((step, output.join(&name)));
        }
    }
    found.sort();
    Ok(found)
}
