//! Paths that a file of an earlier run names, found again.

use std::fs;
use std::path::{Path, PathBuf};

/// The path that a file in `folder` calls `name`: from here, else from `folder`, wherever `is_it` first says yes.
pub fn beside(folder: &Path, name: &Path, is_it: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    [name.to_owned(), resolved(folder).join(name)].into_iter().find(|path| is_it(path))
}

/// The path that a file in `folder` calls `name`: from here, else from `folder` or the nearest folder above it,
/// wherever `is_it` first says yes.
///
/// Where a run was started stands on that way, so folders that were moved together find each other.
pub fn find(folder: &Path, name: &Path, is_it: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let place = resolved(folder);
    let beside = place.ancestors().map(|folder| folder.join(name));
    std::iter::once(name.to_owned()).chain(beside).find(|path| is_it(path))
}

fn resolved(folder: &Path) -> PathBuf {
    fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_folder_above_that_has_it_is_taken() {
        let top = tempfile::tempdir().unwrap();
        let at = |name: &str| fs::canonicalize(top.path()).unwrap().join(name);
        fs::create_dir_all(at("a/b/out")).unwrap();
        let find = || find(&at("a/b/out"), Path::new("data.json"), Path::is_file);
        assert_eq!(find(), None);
        for place in ["data.json", "a/data.json", "a/b/data.json"] {
            fs::write(at(place), "").unwrap();
            assert_eq!(find(), Some(at(place)));
        }
        let absolute = at("a/data.json");
        assert_eq!(super::find(&at("a/b/out"), &absolute, Path::is_file), Some(absolute));
    }
}
