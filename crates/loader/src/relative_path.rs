//! Resolves relative paths that the files of an earlier run contain.

use std::fs;
use std::path::{Path, PathBuf};

/// Resolves the path `name`, which a file in `folder` contains. `name` may be relative to the working
/// directory or to `folder`, and the working directory is tried first. Returns the first path that `is_it`
/// accepts.
pub fn find_beside(folder: &Path, name: &Path, is_it: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    [name.to_owned(), resolved(folder).join(name)].into_iter().find(|path| is_it(path))
}

/// Resolves the path `name`, which a file in `folder` contains. `name` may be relative to the working
/// directory, to `folder`, or to a folder above `folder`. These folders are tried in this order. Returns the
/// first path that `is_it` accepts.
///
/// The path is usually relative to the folder in which the run started, which is often a folder above
/// `folder`. The path thus stays valid if the whole project is moved.
pub fn find_above(folder: &Path, name: &Path, is_it: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let folder = resolved(folder);
    let above = folder.ancestors().map(|folder| folder.join(name));
    std::iter::once(name.to_owned()).chain(above).find(|path| is_it(path))
}

fn resolved(folder: &Path) -> PathBuf {
    fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_folder_above_that_holds_the_path_wins() {
        let top = tempfile::tempdir().unwrap();
        let at = |name: &str| fs::canonicalize(top.path()).unwrap().join(name);
        fs::create_dir_all(at("a/b/out")).unwrap();
        let find = || find_above(&at("a/b/out"), Path::new("data.json"), Path::is_file);
        assert_eq!(find(), None);
        for place in ["data.json", "a/data.json", "a/b/data.json"] {
            fs::write(at(place), "").unwrap();
            assert_eq!(find(), Some(at(place)));
        }
        let absolute = at("a/data.json");
        assert_eq!(find_above(&at("a/b/out"), &absolute, Path::is_file), Some(absolute));
    }
}
