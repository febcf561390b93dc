//! Chooses the files of a split, as Python's `datasets` does.
//!
//! If the card declares subsets with files, the patterns in the card select the files of each split.
//! Otherwise, a word such as `train` or `test` in the name of a file or of its folder assigns the file to
//! that split. If no name contains such a word, all files belong to the training split.

use std::collections::BTreeMap;

use super::card::{DeclaredSubset, declared_subsets};
use super::glob;
use crate::{DatasetRef, HubError};

/// Name of the default split.
const TRAIN: &str = "train";

/// Name of the subset that is read if the user names no subset.
const DEFAULT_SUBSET: &str = "default";

/// The branch on which the Hub stores every data set as Parquet, as `subset/split/0000.parquet`.
pub(crate) const PARQUET_BRANCH: &str = "refs/convert/parquet";

/// Each split with its words. If the name of a file or of its folder contains such a word, the file belongs
/// to the split.
const SPLIT_WORDS: [(&str, &[&str]); 3] = [
    (TRAIN, &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// Characters that separate the words in the name of a file or folder.
const SEPARATORS: &[char] = &['-', '.', '_', ' ', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9'];

/// Files that describe a data set and contain no records.
const DESCRIPTIONS: [&str; 6] = [
    "README.md",
    "config.json",
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "dummy_data.zip",
];

/// The kind of a file with records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum RecordFile {
    Json,
    Table,
    Parquet,
}

impl RecordFile {
    /// Returns the kind of a file by its extension, or `None` if danlu does not read such files.
    fn of(path: &str) -> Option<Self> {
        let name = path.to_ascii_lowercase();
        let name = [".gz", ".zst"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
        Some(match name.rsplit_once('.')?.1 {
            "json" | "jsonl" | "ndjson" => Self::Json,
            "csv" | "tsv" => Self::Table,
            "parquet" => Self::Parquet,
            _ => return None,
        })
    }
}

/// The files of the part that the user named: a split, a subset or one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ChosenFiles {
    /// The name of the part: a split, `subset/split` or the path of a file.
    pub part: String,
    /// Paths in the repository.
    pub files: Vec<String>,
}

/// A subset of a data set, with the files of each split.
#[derive(Debug)]
struct Subset {
    /// The name, or an empty string if the data set has no subsets.
    name: String,
    is_default: bool,
    splits: Vec<(String, Vec<String>)>,
}

/// Chooses the files of the part that `dataset` names. `paths` lists all files of the repository, and `card`
/// is the text of its `README.md`.
///
/// # Errors
/// If there is no such part, no subset is the default, the data set is a loading script, or no file contains
/// records.
pub(crate) fn choose(dataset: &DatasetRef, paths: &[&str], card: &str) -> Result<ChosenFiles, HubError> {
    if let Some(path) = dataset.part().filter(|part| paths.contains(part)) {
        return Ok(ChosenFiles { part: path.to_owned(), files: vec![path.to_owned()] });
    }
    let repo = || dataset.repo().clone();
    let script = format!("{}.py", dataset.repo().model());
    if paths.contains(&script.as_str()) {
        return Err(HubError::LoadingScript { repo: repo(), script });
    }
    let subsets = subsets(dataset, paths, card)?;
    if subsets.iter().all(|subset| subset.splits.is_empty()) {
        let found = paths.iter().find(|path| is_candidate(path)).map(|&path| path.to_owned());
        return Err(HubError::NoRecords { repo: repo(), found });
    }
    let (subset, split) = find_part(dataset, &subsets)?;
    let files = readable(&split.1);
    if files.is_empty() {
        return Err(HubError::NoRecords { repo: repo(), found: split.1.first().cloned() });
    }
    Ok(ChosenFiles { part: part_name(subset, &split.0), files })
}

fn part_name(subset: &Subset, split: &str) -> String {
    if subset.name.is_empty() { split.to_owned() } else { format!("{}/{split}", subset.name) }
}

/// Returns all subsets. A data set without subsets is returned as one subset with an empty name.
fn subsets(dataset: &DatasetRef, paths: &[&str], card: &str) -> Result<Vec<Subset>, HubError> {
    let declared = declared_subsets(card).map_err(|fault| HubError::Repo {
        repo: dataset.repo().clone(),
        fault: format!("the front matter of `README.md` is invalid: {fault}"),
    })?;
    if !declared.is_empty() {
        let is_only = declared.len() == 1;
        return Ok(declared.iter().map(|subset| declared_files(subset, is_only, paths)).collect());
    }
    if dataset.repo().revision() == PARQUET_BRANCH {
        return Ok(exported_subsets(paths));
    }
    let paths: Vec<&str> = paths.iter().copied().filter(|path| is_candidate(path)).collect();
    Ok(vec![Subset { name: String::new(), is_default: true, splits: splits_by_name(&paths) }])
}

fn declared_files(declared: &DeclaredSubset, is_only: bool, paths: &[&str]) -> Subset {
    let prefix = match declared.folder() {
        "" => String::new(),
        folder => format!("{folder}/"),
    };
    let below: Vec<&str> = paths.iter().filter_map(|path| path.strip_prefix(&prefix)).collect();
    let whole = |path: &str| format!("{prefix}{path}");
    let patterns = declared.splits();
    let splits = match patterns.is_empty() {
        true => {
            let below: Vec<&str> = below.into_iter().filter(|path| is_candidate(path)).collect();
            let splits = splits_by_name(&below).into_iter();
            splits.map(|(split, files)| (split, files.iter().map(|file| whole(file)).collect())).collect()
        }
        false => patterns
            .into_iter()
            .map(|(split, patterns)| {
                let matches_any = |path: &&&str| patterns.iter().any(|pattern| glob::matches(pattern, path));
                (split, below.iter().filter(matches_any).map(|path| whole(path)).collect())
            })
            .collect(),
    };
    let name = if is_only && declared.name == DEFAULT_SUBSET { String::new() } else { declared.name.clone() };
    Subset { name, is_default: is_only || declared.is_default || declared.name == DEFAULT_SUBSET, splits }
}

/// Returns the subsets on the branch [`PARQUET_BRANCH`], where the folder of a file is `subset/split`.
fn exported_subsets(paths: &[&str]) -> Vec<Subset> {
    let mut found: BTreeMap<&str, BTreeMap<&str, Vec<String>>> = BTreeMap::new();
    for path in paths {
        if let [subset, split, _] = path.split('/').collect::<Vec<_>>()[..]
            && RecordFile::of(path).is_some()
        {
            // For a large data set, only the start of a split is exported, in a folder such as
            // `partial-train`.
            let split = split.strip_prefix("partial-").unwrap_or(split);
            found.entry(subset).or_default().entry(split).or_default().push((*path).to_owned());
        }
    }
    let is_only = found.len() == 1;
    let subset = |(name, splits): (&str, BTreeMap<&str, Vec<String>>)| Subset {
        name: if is_only && name == DEFAULT_SUBSET { String::new() } else { name.to_owned() },
        is_default: is_only || name == DEFAULT_SUBSET,
        splits: splits.into_iter().map(|(split, files)| (split.to_owned(), files)).collect(),
    };
    found.into_iter().map(subset).collect()
}

/// Returns whether a file may contain records, by its name.
fn is_candidate(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    glob::matches("**", path) && !DESCRIPTIONS.contains(&name)
}

/// Assigns files to splits by their names. The first of these rules that finds a file applies:
///
/// 1. A numbered file such as `data/train-00000-of-00002.parquet` belongs to the split before the numbers.
/// 2. A file belongs to a split if the name of one of its folders contains a word of the split.
/// 3. A file belongs to a split if its own name contains a word of the split.
/// 4. All files belong to the training split.
fn splits_by_name(paths: &[&str]) -> Vec<(String, Vec<String>)> {
    let paths: Vec<&str> = paths.iter().copied().filter(|path| RecordFile::of(path).is_some()).collect();
    let numbered = numbered_splits(&paths);
    if !numbered.is_empty() {
        return numbered;
    }
    let folders =
        |path: &str| path.rsplit_once('/').map_or_else(String::new, |(folders, _)| folders.to_owned());
    let file = |path: &str| path.rsplit('/').next().unwrap_or(path).to_owned();
    for names in [&folders as &dyn Fn(&str) -> String, &file] {
        let found = SPLIT_WORDS.iter().filter_map(|(split, words)| {
            let has_word = |path: &&&str| {
                names(path).split('/').any(|name| name.split(SEPARATORS).any(|word| words.contains(&word)))
            };
            let files: Vec<String> = paths.iter().filter(has_word).map(|path| (*path).to_owned()).collect();
            (!files.is_empty()).then(|| ((*split).to_owned(), files))
        });
        let found: Vec<_> = found.collect();
        if !found.is_empty() {
            return found;
        }
    }
    match paths.is_empty() {
        true => Vec::new(),
        false => vec![(TRAIN.to_owned(), paths.iter().map(|path| (*path).to_owned()).collect())],
    }
}

/// Returns the splits of numbered files in the folder `data`.
fn numbered_splits(paths: &[&str]) -> Vec<(String, Vec<String>)> {
    let mut found: Vec<(String, Vec<String>)> = Vec::new();
    for path in paths {
        let Some((split, _)) = path.strip_prefix("data/").and_then(shard) else { continue };
        match found.iter_mut().find(|(name, _)| name == split) {
            Some((_, files)) => files.push((*path).to_owned()),
            None => found.push((split.to_owned(), vec![(*path).to_owned()])),
        }
    }
    found
}

/// Parses the name of a numbered file, such as `train-00000-of-00002.parquet`. Returns the text before the
/// numbers, and the second number.
pub(crate) fn shard(name: &str) -> Option<(&str, usize)> {
    let at = name.find("-of-")?;
    let (start, end) = (name.get(..at)?, name.get(at + 4..)?);
    let count = end.get(..5).filter(|count| count.bytes().all(|c| c.is_ascii_digit()))?.parse().ok()?;
    let (split, number) = start.rsplit_once('-')?;
    let is_number = number.len() == 5 && number.bytes().all(|c| c.is_ascii_digit());
    (is_number && !split.is_empty() && !split.contains('/')).then_some((split, count))
}

/// Returns the files that danlu reads. If these files are of several kinds, returns only those of the most
/// frequent kind.
fn readable(files: &[String]) -> Vec<String> {
    let kinds = [RecordFile::Json, RecordFile::Table, RecordFile::Parquet];
    let count = |kind: &RecordFile| files.iter().filter(|file| RecordFile::of(file) == Some(*kind)).count();
    // If several kinds have the same count, `max_by_key` returns the last one. The reversed order makes JSON
    // the last kind, so JSON is preferred.
    let most = kinds.into_iter().rev().max_by_key(count);
    files
        .iter()
        .filter(|file| RecordFile::of(file).is_some() && RecordFile::of(file) == most)
        .cloned()
        .collect()
}

/// Finds the subset and the split that `dataset` names.
fn find_part<'a>(
    dataset: &DatasetRef,
    subsets: &'a [Subset],
) -> Result<(&'a Subset, &'a (String, Vec<String>)), HubError> {
    let split_of = |subset: &'a Subset, name: &str| {
        let found = subset.splits.iter().find(|(split, files)| split == name && !files.is_empty());
        found.map(|split| (subset, split))
    };
    let training_split = |subset: &'a Subset| match &subset.splits[..] {
        [only] => Some((subset, only)),
        _ => split_of(subset, TRAIN),
    };
    let default = subsets.iter().find(|subset| subset.is_default);
    let found = match dataset.part() {
        None => match default {
            Some(subset) => training_split(subset),
            None => {
                let names = subsets.iter().map(|subset| subset.name.clone()).collect();
                return Err(HubError::SeveralSubsets { dataset: dataset.clone(), names });
            }
        },
        Some(part) => default
            .and_then(|subset| split_of(subset, part))
            .or_else(|| subsets.iter().find(|subset| subset.name == part).and_then(training_split))
            .or_else(|| {
                let (name, split) = part.rsplit_once('/')?;
                let named = |subset: &&Subset| {
                    subset.name == name || (subset.name.is_empty() && name == DEFAULT_SUBSET)
                };
                subsets.iter().find(named).and_then(|subset| split_of(subset, split))
            }),
    };
    found.ok_or_else(|| {
        let parts = subsets.iter().flat_map(|subset| {
            subset
                .splits
                .iter()
                .filter(|(_, files)| !files.is_empty())
                .map(|(split, _)| part_name(subset, split))
        });
        HubError::NoPart { dataset: dataset.clone(), parts: parts.collect() }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(name: &str, paths: &[&str], card: &str) -> Result<(String, Vec<String>), String> {
        let dataset: DatasetRef = name.parse().unwrap();
        let found = choose(&dataset, paths, card);
        found.map(|found| (found.part, found.files)).map_err(|error| error.to_string())
    }

    fn part(part: &str, files: &[&str]) -> Result<(String, Vec<String>), String> {
        Ok((part.to_owned(), files.iter().map(|&file| file.to_owned()).collect()))
    }

    // The rules are those of `get_data_patterns` in Python's datasets 5.2.0.
    #[test]
    fn names_of_files_and_folders_decide_the_split() {
        let numbered = [
            "data/train-00000-of-00002.parquet",
            "data/train-00001-of-00002.parquet",
            "data/test-00000-of-00001.parquet",
        ];
        assert_eq!(chosen("a/b", &numbered, ""), part("train", &numbered[..2]));
        assert_eq!(chosen("a/b:test", &numbered, ""), part("test", &numbered[2..]));
        let words = ["README.md", "dev.jsonl", "my_train_2.jsonl", "my_train_10.jsonl", "trainer.jsonl"];
        assert_eq!(chosen("a/b", &words, ""), part("train", &["my_train_2.jsonl", "my_train_10.jsonl"]));
        assert_eq!(chosen("a/b:validation", &words, ""), part("validation", &["dev.jsonl"]));
        let folders = ["raw/test.csv", "train/a.csv", "train/b/c.csv", "x.csv"];
        assert_eq!(chosen("a/b", &folders, ""), part("train", &["train/a.csv", "train/b/c.csv"]));
        let plain = ["README.md", "config.json", "alpaca.json", ".hidden.json", "__x/y.json", "deep/z.json"];
        assert_eq!(chosen("a/b", &plain, ""), part("train", &["alpaca.json", "deep/z.json"]));
        assert_eq!(chosen("a/b:alpaca.json", &plain, ""), part("alpaca.json", &["alpaca.json"]));
        // The most frequent kind of file is read.
        assert_eq!(chosen("a/b", &["a.csv", "b.csv", "c.json"], ""), part("train", &["a.csv", "b.csv"]));
        // If a data set has only one split, its name may be omitted.
        assert_eq!(chosen("a/b", &["test.csv"], ""), part("test", &["test.csv"]));
    }

    // The expected splits are those of Python's datasets 5.2.0, from `reference/dataset_splits.py`.
    #[test]
    fn fifty_layouts_have_the_splits_of_datasets() {
        #[derive(serde::Deserialize)]
        struct Case {
            paths: Vec<String>,
            splits: BTreeMap<String, Vec<String>>,
        }
        let cases: Vec<Case> = serde_json::from_str(include_str!("splits_by_name.json")).unwrap();
        assert_eq!(cases.len(), 50);
        for Case { paths, splits } in cases {
            let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
            let candidates: Vec<&str> = paths.iter().copied().filter(|path| is_candidate(path)).collect();
            let sorted = |(split, mut files): (String, Vec<String>)| {
                files.sort();
                (split, files)
            };
            let found: BTreeMap<_, _> = splits_by_name(&candidates).into_iter().map(sorted).collect();
            assert_eq!(found, splits, "{paths:?}");
        }
    }

    #[test]
    fn the_card_declares_subsets_and_splits() {
        let card = "---
configs:
- config_name: main
  default: true
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: main/test-*
- config_name: socratic
  data_dir: socratic
---
";
        let paths =
            ["main/test-0.parquet", "main/train-0.parquet", "socratic/test.jsonl", "socratic/train.jsonl"];
        assert_eq!(chosen("a/b", &paths, card), part("main/train", &paths[1..2]));
        assert_eq!(chosen("a/b:test", &paths, card), part("main/test", &paths[..1]));
        assert_eq!(chosen("a/b:socratic", &paths, card), part("socratic/train", &paths[3..]));
        assert_eq!(chosen("a/b:socratic/test", &paths, card), part("socratic/test", &paths[2..3]));
        assert_eq!(chosen("a/b:dev", &paths, card), Err("`a/b` has no part `dev`".to_owned()));
        let card = card.replace("  default: true\n", "");
        let several = "`a/b` has several subsets, and none is the default".to_owned();
        assert_eq!(chosen("a/b", &paths, &card), Err(several));
        let missing = "---\nconfigs:\n- config_name: default\n  data_files: x/*.csv\n---\n";
        assert_eq!(chosen("a/b", &paths, missing), Err("`a/b` has no file with records".to_owned()));
    }

    #[test]
    fn the_parquet_branch_has_subsets_and_splits_as_folders() {
        let paths = ["all/test/0000.parquet", "all/train/0000.parquet", "all/train/0001.parquet"];
        assert_eq!(chosen("a/b@refs/convert/parquet", &paths, ""), part("all/train", &paths[1..]));
        assert_eq!(chosen("a/b@refs/convert/parquet:all/test", &paths, ""), part("all/test", &paths[..1]));
    }

    #[test]
    fn scripts_and_other_files_are_named_and_refused() {
        assert_eq!(
            chosen("a/b", &["b.py", "train.json"], ""),
            Err("cannot read `a/b`: it is the loading script `b.py`, and danlu runs no code".to_owned())
        );
        assert_eq!(
            chosen("a/b", &["README.md", "x.arrow"], ""),
            Err("`a/b` has no file with records, only `x.arrow`".to_owned())
        );
    }

    #[test]
    fn a_shard_has_two_numbers_of_five_digits() {
        assert_eq!(shard("train-00000-of-00002.parquet"), Some(("train", 2)));
        assert_eq!(shard("train_sft-00001-of-00002-a1b2.parquet"), Some(("train_sft", 2)));
        for name in ["train-0-of-2.parquet", "train.json", "-00000-of-00001.csv", "a-of-b", "甄-of-嬛嬛.json"]
        {
            assert_eq!(shard(name), None, "{name}");
        }
    }
}
