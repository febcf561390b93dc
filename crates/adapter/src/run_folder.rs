//! Names of the files and folders that a training run leaves in its output folder.

use std::path::{Path, PathBuf};

use danlu_model::{FileError, files};

/// Name of the file with every setting of the run.
pub const RUN_FILE: &str = "run.toml";

/// A checkpoint's folder is this and the number of steps done.
pub const CHECKPOINT_PREFIX: &str = "checkpoint-";

/// Name of the file that makes a folder a checkpoint.
pub const CHECKPOINT_STATE_FILE: &str = "danlu_state.json";

/// The newest checkpoint of an output folder, if there is one.
///
/// # Errors
/// If the folder cannot be read.
pub fn latest_checkpoint(output: &Path) -> Result<Option<PathBuf>, FileError> {
    Ok(checkpoints(output)?.pop().map(|(_, path)| path))
}

/// The checkpoints of an output folder with their steps, oldest first; none if it does not exist.
///
/// # Errors
/// If the folder cannot be read.
pub fn checkpoints(output: &Path) -> Result<Vec<(u64, PathBuf)>, FileError> {
    let mut found: Vec<(u64, PathBuf)> = Vec::new();
    for name in files::names_in(output)? {
        let step = name.strip_prefix(CHECKPOINT_PREFIX).and_then(|digits| digits.parse::<u64>().ok());
        // danlu does not write `checkpoint-007` or `checkpoint-+7`.
        if let Some(step) = step.filter(|step| name == format!("{CHECKPOINT_PREFIX}{step}"))
            && output.join(&name).join(CHECKPOINT_STATE_FILE).is_file()
        {
            found.push((step, output.join(&name)));
        }
    }
    found.sort();
    Ok(found)
}
