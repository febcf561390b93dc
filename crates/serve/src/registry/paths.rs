//! Checks names of adapters, and paths in requests.

use std::path::{Path, PathBuf};

use crate::api_error::{ApiError, shortened};

const MAX_ALIAS_BYTES: usize = 256;

/// Checks the name of a new adapter.
///
/// # Errors
/// If the name is empty, is too long, begins with a slash, or contains a comma or a control character.
pub(crate) fn check_alias(name: &str) -> Result<(), String> {
    let shown = shortened(name);
    let reason = if name.is_empty() {
        "it is empty".to_owned()
    } else if name.len() > MAX_ALIAS_BYTES {
        format!("it has {} bytes, at most {MAX_ALIAS_BYTES} are allowed", name.len())
    } else if name.starts_with('/') {
        "it begins with a slash".to_owned()
    } else if name.chars().any(|c| c.is_control() || c == ',') {
        "it has a comma or a control character".to_owned()
    } else {
        return Ok(());
    };
    Err(format!("cannot use `{shown}` as the name of an adapter: {reason}"))
}

/// Resolves a path in a request. The path must be inside `root` even after symbolic links are resolved.
///
/// # Errors
/// If the server allows no paths, the path is outside `root`, or it does not exist.
pub(crate) fn resolve_path(root: Option<&Path>, path: &str) -> Result<PathBuf, ApiError> {
    let forbidden = |reason: &str| ApiError::forbidden("adapter_path_forbidden", reason);
    let Some(root) = root else {
        return Err(forbidden("cannot load from a path: the server was started without `--adapter-root`"));
    };
    let root =
        root.canonicalize().map_err(|_| forbidden("cannot load from a path: `--adapter-root` is missing"))?;
    // A relative path is relative to the root. `join` with an absolute path returns the absolute path.
    let missing = || ApiError::not_found(format!("No adapter found for {}", shortened(path)));
    let real = match root.join(path).canonicalize() {
        Ok(real) => real,
        // The error reveals whether a path exists only if the path is inside the root.
        Err(_) if is_lexically_inside(&root, path) => return Err(missing()),
        Err(_) => return Err(forbidden("cannot load from the path: it is outside of `--adapter-root`")),
    };
    match real.starts_with(&root) {
        true => Ok(real),
        false => Err(forbidden("cannot load from the path: it is outside of `--adapter-root`")),
    }
}

fn is_lexically_inside(root: &Path, path: &str) -> bool {
    use std::path::Component;
    let path = Path::new(path);
    path.components().all(|part| !matches!(part, Component::ParentDir))
        && (path.is_relative() || path.starts_with(root))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_path_that_leads_out_of_the_root_is_forbidden() {
        let top = tempfile::tempdir().unwrap();
        let root = top.path().join("root");
        fs::create_dir_all(root.join("a")).unwrap();
        fs::create_dir_all(top.path().join("other")).unwrap();
        std::os::unix::fs::symlink(top.path().join("other"), root.join("link")).unwrap();
        let resolve = |path: &str| resolve_path(Some(&root), path).map_err(|error| error.status.as_u16());
        let inside = root.join("a").canonicalize().unwrap();
        assert_eq!(resolve("a"), Ok(inside.clone()));
        assert_eq!(resolve(inside.to_str().unwrap()), Ok(inside));
        assert_eq!(resolve("absent"), Err(404));
        for out in ["../other", "link", "/etc", "/absent", "a/../../other", "../absent"] {
            assert_eq!(resolve(out), Err(403), "{out}");
        }
        assert_eq!(resolve_path(None, "a").unwrap_err().status.as_u16(), 403);
    }

    #[test]
    fn aliases_fit_into_lists_and_paths() {
        for name in ["huanhuan", "you/poet-lora@v2", "a:b", "皇上"] {
            assert_eq!(check_alias(name), Ok(()));
        }
        for name in ["", "/etc/x", "a,b", "a\nb", &"x".repeat(257)] {
            assert!(check_alias(name).is_err(), "{name}");
        }
    }
}
