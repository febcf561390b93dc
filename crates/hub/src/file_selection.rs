//! Selects the files that danlu reads: safetensors, configurations and tokenizer files. Never selects code or
//! pickles.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use danlu_model::files::read_bounded;
use danlu_model::{INDEX_FILE, SINGLE_FILE, sidecar_files};
use serde::Deserialize;

use crate::listing::Listing;
use crate::{HubError, RepoName};

pub(crate) const CONFIG: &str = "config.json";
pub(crate) const ADAPTER_CONFIG: &str = "adapter_config.json";
pub(crate) const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
pub(crate) const TOKENIZER: &str = "tokenizer.json";

/// Files that danlu writes into the folder of an adapter and reads again.
const WRITTEN: [&str; 3] = [IDENTITY, "card.json", "loss.svg"];

/// The Hub adds this file to every repository. No loader reads the file.
const ATTRIBUTES: &str = ".gitattributes";

/// The model card, which may contain the licence of the base and notes of the author.
pub(crate) const CARD: &str = "README.md";

/// The file with the chat template of older models.
pub(crate) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS: &str = "special_tokens_map.json";
const TEMPLATE: &str = "chat_template.jinja";

/// The file with sampling settings and end-of-reply tokens.
const GENERATION: &str = "generation_config.json";

/// The file with the tokenizer fingerprint of an adapter, the quantization of the base, and the system
/// message.
const IDENTITY: &str = "danlu.json";

/// Maximum size in bytes of a [`TOKENIZER_CONFIG`] that is searched for a chat template.
const MAX_CONFIG_BYTES: u64 = 4 << 20;

const MAX_TOKENIZER_BYTES: u64 = 256 << 20;

/// Maximum size in bytes of a small file that is neither a vocabulary nor a shard index.
pub(crate) const MAX_SMALL_FILE_BYTES: u64 = 16 << 20;

const MAX_INDEX_BYTES: u64 = 64 << 20;

/// Extensions of weight files that danlu does not read.
const OTHER_WEIGHTS: [&str; 6] = [".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack"];

/// Names of small files: first those that a repository has, then those that it lacks. Small files are all
/// files that danlu reads except the weights.
type Settings = (Vec<&'static str>, Vec<&'static str>);

#[derive(Deserialize)]
struct Index {
    weight_map: std::collections::BTreeMap<String, String>,
}

/// Splits the names of all small files (configurations, tokenizer, template, card) into those that the
/// repository has and those that it lacks.
///
/// # Errors
/// If a file exceeds its maximum size.
pub(crate) fn settings(listing: &Listing, repo: &RepoName) -> Result<Settings, HubError> {
    let known: BTreeSet<&str> =
        sidecar_files::names().chain([CONFIG, ADAPTER_CONFIG, INDEX_FILE, CARD]).chain(WRITTEN).collect();
    let (there, mut absent): Settings = known.into_iter().partition(|path| listing.files.contains_key(*path));
    // Python records a file as absent only if a loader requested it by name. Files in subfolders are listed,
    // not requested by name, so no record exists for them.
    absent.retain(|path| !path.contains('/'));
    for &path in &there {
        let (size, most) = (listing.files[path].size, longest(path));
        if size > most {
            return Err(HubError::TooLarge { repo: repo.clone(), file: path.to_owned(), size, most });
        }
    }
    Ok((there, absent))
}

/// Returns the maximum size of a small file with this name.
fn longest(path: &str) -> u64 {
    match path {
        TOKENIZER | "vocab.json" | "merges.txt" | "tokenizer.model" => MAX_TOKENIZER_BYTES,
        INDEX_FILE => MAX_INDEX_BYTES,
        _ => MAX_SMALL_FILE_BYTES,
    }
}

/// Returns the files that are missing in the snapshot, may exist on the Hub, and would change results.
///
/// Python may have downloaded only a part of the repository. Some missing files need no lookup:
///
/// - Files that are recorded as absent.
/// - The separate chat template, if `tokenizer_config.json` contains a template.
/// - If [`ATTRIBUTES`] exists: all files of an adapter, and all files of a model except
///   `tokenizer_config.json`. [`ATTRIBUTES`] is only downloaded with the whole repository.
pub(crate) fn missing_optional_files(snapshot: &Path, is_absent: impl Fn(&str) -> bool) -> Vec<&'static str> {
    let has = |name: &str| fs::metadata(snapshot.join(name)).is_ok();
    let read: &[&str] = match (has(ADAPTER_CONFIG), has(ATTRIBUTES)) {
        (true, true) => &[],
        (true, false) => &[IDENTITY, TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS, TEMPLATE, GENERATION],
        // If `snapshot_download` was interrupted, `tokenizer_config.json` is the file most likely to be
        // missing, because files are downloaded in the order of their names.
        (false, true) => &[TOKENIZER_CONFIG],
        (false, false) => &[IDENTITY, TOKENIZER_CONFIG, SPECIAL_TOKENS, TEMPLATE, GENERATION],
    };
    let has_template = || {
        let config = read_bounded(&snapshot.join(TOKENIZER_CONFIG), MAX_CONFIG_BYTES).unwrap_or_default();
        let key = b"\"chat_template\"";
        config.windows(key.len()).any(|window| window == key)
    };
    let mut missing_optional_files: Vec<&str> =
        read.iter().copied().filter(|name| !has(name) && !is_absent(name)).collect();
    missing_optional_files.retain(|&name| name != TEMPLATE || !has_template());
    missing_optional_files
}

/// Returns the weight files in a listing. `snapshot` must already contain the small files.
///
/// # Errors
/// If there are no safetensors files, or the index names a file that does not exist.
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
                .ok_or_else(|| unread(repo, format!("`{INDEX_FILE}` is not an index of shards")))?;
            match shards.iter().find(|shard| !has(shard)) {
                Some(shard) => {
                    Err(unread(repo, format!("`{INDEX_FILE}` lists {shard:?}, which does not exist")))
                }
                None => Ok(shards.into_iter().collect()),
            }
        }
        () if has(SINGLE_FILE) => Ok(vec![SINGLE_FILE.to_owned()]),
        () => Err(none()),
    }
}

fn unread(repo: &RepoName, fault: String) -> HubError {
    HubError::Repo { repo: repo.clone(), fault }
}

/// Returns the shards in an index. Returns `None` if the index is invalid or empty, or if a name contains a
/// folder or is not the name of a safetensors file.
fn shards(index: &Path) -> Option<BTreeSet<String>> {
    let bytes = read_bounded(index, MAX_INDEX_BYTES).ok()?;
    let Index { weight_map } = serde_json::from_slice(&bytes).ok()?;
    let shards: BTreeSet<String> = weight_map.into_values().collect();
    let is_plain = |name: &String| !name.contains(['/', '\\']) && name.ends_with(".safetensors");
    (!shards.is_empty() && shards.iter().all(is_plain)).then_some(shards)
}

/// Returns whether a snapshot contains `config.json`, and contains `tokenizer.json` unless the repository has
/// none.
pub(crate) fn has_settings(snapshot: &Path, is_absent: impl Fn(&str) -> bool) -> bool {
    let has = |name: &str| fs::metadata(snapshot.join(name)).is_ok();
    has(CONFIG) && (has(TOKENIZER) || is_absent(TOKENIZER))
}

/// Returns whether a snapshot contains the weights of an adapter, or the configuration, tokenizer and weights
/// of a model.
pub(crate) fn is_whole(snapshot: &Path, is_absent: impl Fn(&str) -> bool) -> bool {
    let has = |name: &str| fs::metadata(snapshot.join(name)).is_ok();
    if has(ADAPTER_CONFIG) {
        return has(ADAPTER_WEIGHTS);
    }
    let has_weights = match has(INDEX_FILE) {
        true => {
            shards(&snapshot.join(INDEX_FILE)).is_some_and(|shards| shards.iter().all(|shard| has(shard)))
        }
        false => has(SINGLE_FILE),
    };
    has_settings(snapshot, is_absent) && has_weights
}
