//! Git's object ids. An id is the SHA-1 of the kind, the length and the content of an object.

use std::collections::BTreeMap;

use sha1::{Digest, Sha1};

/// Returns the id of a file with this content.
pub(crate) fn blob_id(content: &[u8]) -> String {
    hex::encode(object_id("blob", content))
}

/// Returns the pointer file that replaces a large file in git.
pub(crate) fn pointer(sha256: &str, size: u64) -> String {
    format!("version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n")
}

/// Returns the ids of all folders, by path. `files` contains the ids of all files by path. The root has an
/// empty path.
pub(crate) fn folder_ids(files: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    // The children of each folder. A child folder has no id yet.
    let mut folders: BTreeMap<String, BTreeMap<String, Option<String>>> = BTreeMap::new();
    folders.insert(String::new(), BTreeMap::new());
    for (path, id) in files {
        let (mut folder, name) = split(path);
        folders.entry(folder.to_owned()).or_default().insert(name.to_owned(), Some(id.clone()));
        while !folder.is_empty() {
            let (parent, name) = split(folder);
            folders.entry(parent.to_owned()).or_default().insert(name.to_owned(), None);
            folder = parent;
        }
    }
    let mut ids: BTreeMap<String, String> = BTreeMap::new();
    // A folder sorts before its children, so the reverse order visits children first.
    for (folder, children) in folders.iter().rev() {
        let mut lines: Vec<(String, Vec<u8>)> = children
            .iter()
            .map(|(name, file)| {
                let (mode, key, id) = match file {
                    Some(id) => ("100644", name.clone(), id),
                    // Git sorts a folder as if its name ended with a slash.
                    None => ("40000", format!("{name}/"), &ids[&join(folder, name)]),
                };
                (
                    key,
                    [format!("{mode} {name}\0").as_bytes(), &hex::decode(id).expect("an id is hexadecimal")]
                        .concat(),
                )
            })
            .collect();
        lines.sort();
        let content: Vec<u8> = lines.into_iter().flat_map(|(_, line)| line).collect();
        ids.insert(folder.clone(), hex::encode(object_id("tree", &content)));
    }
    ids
}

pub(crate) fn commit_id(tree: &str, parents: &[String], author: &str, seconds: u64, message: &str) -> String {
    let mut text = format!("tree {tree}\n");
    for parent in parents {
        text.push_str(&format!("parent {parent}\n"));
    }
    let person = format!("{author} <{author}@users.noreply.huggingface.co> {seconds} +0000");
    text.push_str(&format!("author {person}\ncommitter {person}\n\n{message}"));
    hex::encode(object_id("commit", text.as_bytes()))
}

/// Splits `path` into its folder and its name. The folder is empty for a file in the root.
pub(crate) fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

fn object_id(kind: &str, content: &[u8]) -> Vec<u8> {
    let mut hash = Sha1::new();
    hash.update(format!("{kind} {}\0", content.len()));
    hash.update(content);
    hash.finalize().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    // Expected ids: git 2 (`git hash-object`, `git write-tree` and `git commit-tree`).
    #[test]
    fn ids_are_those_of_git() {
        let hello = blob_id(b"hello\n");
        assert_eq!(hello, "ce013625030ba8dba906f756967f9e9ca394464a");
        assert_eq!(folder_ids(&BTreeMap::new())[""], "4b825dc642cb6eb9a060e54bf8d69288fbee4904");
        let files =
            ["a.txt", "a/b.txt", "a-b/c.txt", "a/d/e.txt"].map(|path| (path.to_owned(), hello.clone()));
        let ids = folder_ids(&BTreeMap::from(files));
        assert_eq!(ids.keys().map(String::as_str).collect::<Vec<_>>(), ["", "a", "a-b", "a/d"]);
        assert_eq!(ids[""], "854f5d4201988685cd76ceb987bd8d9241b6536e");
        assert_eq!(ids["a"], "e61ad814c952e28080d49d7fff014626427008e6");
        let commit = commit_id(&ids[""], &[], "zhen", 1_700_000_000, "first\n");
        assert_eq!(commit, "7018cebadd8fac78221cdfba1f79f2c3cd91dd54");
    }
}
