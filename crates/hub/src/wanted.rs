//! What of a repository danlu reads: safetensors, configurations, the tokenizer. Never code, never a pickle.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use danlu_model::files::read_bounded;
use danlu_model::{INDEX_FILE, carried_files};
use serde::Deserialize;

use crate::listing::Listing;
use crate::{HubError, RepoName};

const CONFIG: &str = "config.json";
const ADAPTER_CONFIG: &str = "adapter_config.json";
const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
const WEIGHTS: &str = "model.safetensors";
const TOKENIZER: &str = "tokenizer.json";

/// What danlu writes beside an adapter, and reads again: its tokens, its card's record and picture.
const WRITTEN: [&str; 3] = ["danlu.json", "card.json", "loss.svg"];

/// The card: a base's licence, an author's notes.
const CARD: &str = "README.md";

/// Longest index of shards.
const LONGEST_INDEX: u64 = 64 << 20;

/// How files of weights end that danlu does not read.
const OTHER_WEIGHTS: [&str; 6] = [".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack"];

/// Whether there may be a file that a model lacks without harm.
pub(crate) const OPTIONAL: [&str; 1] = [TOKENIZER];

#[derive(Deserialize)]
struct Index {
    weight_map: std::collections::BTreeMap<String, String>,
}

/// The small files that are read, of those that are there.
pub(crate) fn settings(listing: &Listing) -> Vec<&str> {
    let known: BTreeSet<&str> =
        carried_files::names().chain([CONFIG, ADAPTER_CONFIG, INDEX_FILE, CARD]).chain(WRITTEN).collect();
    let is_known = |path: &&str| known.contains(path);
    listing.files.keys().map(String::as_str).filter(is_known).collect()
}

/// The files of weights, once the small files are in `snapshot`.
///
/// # Errors
/// If there are none that danlu reads, or the index names what is not there.
pub(crate) fn weights(listing: &Listing, snapshot: &Path, repo: &RepoName) -> Result<Vec<String>, HubError> {
    let has = |path: &str| listing.files.contains_key(path);
    let none = || {
        let is_other = |path: &&String| OTHER_WEIGHTS.iter().any(|end| path.ends_with(end));
        HubError::NoWeights { repo: repo.clone(), found: listing.files.keys().find(is_other).cloned() }
    };
    if has(ADAPTER_CONFIG) {
        return if has(ADAPTER_WEIGHTS) { Ok(vec![ADAPTER_WEIGHTS.to_owned()]) } else { Err(none()) };
    }
    match () {
        () if !has(CONFIG) => Err(none()),
        () if has(INDEX_FILE) => {
            let shards = shards(&snapshot.join(INDEX_FILE))
                .ok_or_else(|| unread(repo, format!("`{INDEX_FILE}` is no index of shards")))?;
            match shards.iter().find(|shard| !has(shard)) {
                Some(shard) => {
                    Err(unread(repo, format!("`{INDEX_FILE}` names {shard:?}, which is not there")))
                }
                None => Ok(shards.into_iter().collect()),
            }
        }
        () if has(WEIGHTS) => Ok(vec![WEIGHTS.to_owned()]),
        () => Err(none()),
    }
}

fn unread(repo: &RepoName, fault: String) -> HubError {
    HubError::Repo { repo: repo.clone(), fault }
}

/// The shards that an index names: plain names of safetensors, or nothing.
fn shards(index: &Path) -> Option<BTreeSet<String>> {
    let bytes = read_bounded(index, LONGEST_INDEX).ok()?;
    let Index { weight_map } = serde_json::from_slice(&bytes).ok()?;
    let shards: BTreeSet<String> = weight_map.into_values().collect();
    let is_plain = |name: &String| !name.contains(['/', '\\']) && name.ends_with(".safetensors");
    (!shards.is_empty() && shards.iter().all(is_plain)).then_some(shards)
}

/// Whether a snapshot has the small files of a model, those apart that the repository is known not to have.
pub(crate) fn has_settings(snapshot: &Path, is_absent: impl Fn(&str) -> bool) -> bool {
    let has = |name: &str| fs::metadata(snapshot.join(name)).is_ok();
    has(CONFIG) && (has(TOKENIZER) || is_absent(TOKENIZER))
}

/// Whether a snapshot has all that an adapter or a model needs.
pub(crate) fn is_whole(snapshot: &Path, is_absent: impl Fn(&str) -> bool) -> bool {
    let has = |name: &str| fs::metadata(snapshot.join(name)).is_ok();
    if has(ADAPTER_CONFIG) {
        return has(ADAPTER_WEIGHTS);
    }
    let has_weights = match has(INDEX_FILE) {
        true => {
            shards(&snapshot.join(INDEX_FILE)).is_some_and(|shards| shards.iter().all(|shard| has(shard)))
        }
        false => has(WEIGHTS),
    };
    has_settings(snapshot, is_absent) && has_weights
}
