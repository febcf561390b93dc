//! Detects files in a repository that conflict with the upload.
//!
//! An adapter and a model conflict with each other. Shards of a replaced model conflict with the new model.

use danlu_model::{INDEX_FILE, SINGLE_FILE};

use crate::file_selection::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG, TOKENIZER, TOKENIZER_CONFIG};
use crate::listing::Listing;
use crate::{HubError, RepoName, UploadSet};

/// Files of an adapter. If the first one exists, transformers loads an adapter and not a model.
const ADAPTER: [&str; 3] = [ADAPTER_CONFIG, ADAPTER_WEIGHTS, "adapter_model.bin"];

/// Rejects a push that would mix an adapter and a full model in one repository.
///
/// # Errors
/// If the upload is an adapter and the repository contains weights of a model, or the upload is a model and
/// the repository contains files of an adapter. Files that the upload replaces do not count.
pub(super) fn refuse_mixture(
    upload_set: &UploadSet,
    listing: &Listing,
    repo: &RepoName,
) -> Result<(), HubError> {
    let is_adapter = goes(upload_set, ADAPTER_CONFIG);
    let is_other = |path: &&String| match is_adapter {
        true => is_weights(path, &[".safetensors", ".bin"]) || **path == "pytorch_model.bin.index.json",
        false => ADAPTER.contains(&path.as_str()),
    };
    let other = listing.files.keys().filter(|path| !goes(upload_set, path)).find(is_other);
    match other {
        Some(file) => Err(HubError::Mixture { repo: repo.clone(), file: file.clone(), is_adapter }),
        None => Ok(()),
    }
}

/// Returns the path and size of all weights in the repository that the pushed model replaces.
pub(super) fn outdated(upload_set: &UploadSet, listing: &Listing) -> Vec<(String, u64)> {
    if !goes(upload_set, SINGLE_FILE) && !goes(upload_set, INDEX_FILE) {
        return Vec::new();
    }
    let old = listing
        .files
        .iter()
        .filter(|(path, _)| is_weights(path, &[".safetensors"]) && !goes(upload_set, path));
    old.map(|(path, file)| (path.clone(), file.size)).collect()
}

/// Returns whether a file is needed to load a model or an adapter.
pub(super) fn is_needed(path: &str) -> bool {
    const REQUIRED: [&str; 5] = [ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG, TOKENIZER, TOKENIZER_CONFIG];
    REQUIRED.contains(&path) || is_weights(path, &[".safetensors"])
}

fn goes(upload_set: &UploadSet, path: &str) -> bool {
    upload_set.files().iter().any(|file| file.path() == path)
}

/// Returns whether a path is a weight file by transformers' naming rules: a single file, a shard, or the
/// index.
fn is_weights(path: &str, ends: &[&str]) -> bool {
    if path == INDEX_FILE {
        return true;
    }
    let stem = ends.iter().find_map(|end| path.strip_suffix(end));
    let rest =
        stem.and_then(|stem| stem.strip_prefix("model").or_else(|| stem.strip_prefix("pytorch_model")));
    let Some(rest) = rest else { return false };
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let shard = rest.strip_prefix('-').and_then(|rest| rest.split_once("-of-"));
    rest.is_empty() || shard.is_some_and(|(number, count)| is_number(number) && is_number(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_known_by_their_names() {
        for path in [SINGLE_FILE, INDEX_FILE, "model-00001-of-00002.safetensors", "pytorch_model.bin"] {
            assert!(is_weights(path, &[".safetensors", ".bin"]), "{path}");
        }
        for path in [
            "adapter_model.safetensors",
            "deep/model.safetensors",
            "model-1-of-2.safetensors",
            "model_extra.safetensors",
            "training_args.bin",
            "consolidated.safetensors",
        ] {
            assert!(!is_weights(path, &[".safetensors", ".bin"]), "{path}");
        }
    }
}
