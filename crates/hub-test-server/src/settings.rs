/// Settings that a test can change.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Number of entries on one page of a tree.
    pub page: usize,
    /// Size in bytes above which a file is large.
    pub large_over: u64,
    /// Name patterns of large files.
    pub large_names: Vec<String>,
    /// Size in bytes above which a file is uploaded in parts.
    pub multipart_over: u64,
    /// Size of a part in bytes.
    pub part_size: u64,
    /// Whether `/resolve/` redirects to `/api/resolve-cache/` for small files. The Hub has done so since
    /// 2025.
    pub resolve_cache: bool,
}

impl Default for Settings {
    fn default() -> Self {
        let names = "*.7z *.bin *.ckpt *.gguf *.gz *.h5 *.model *.msgpack *.npy *.npz *.onnx *.parquet *.pickle \
                     *.pkl *.pt *.pth *.safetensors *.tar *.xz *.zip *.zst *tfevents*";
        Self {
            page: 1000,
            large_over: 10 << 20,
            large_names: names.split(' ').map(str::to_owned).filter(|name| !name.is_empty()).collect(),
            multipart_over: 5 << 30,
            part_size: 64 << 20,
            resolve_cache: false,
        }
    }
}

impl Settings {
    /// Returns whether a file is large: because of its name, its size, or a zero byte in `sample`, the start
    /// of its content.
    pub fn is_large(&self, path: &str, size: u64, sample: &[u8]) -> bool {
        let name = path.rsplit('/').next().unwrap_or(path);
        size > 0
            && (size > self.large_over
                || sample.contains(&0)
                || self.large_names.iter().any(|pattern| matches(pattern, name)))
    }

    /// Returns the content of `.gitattributes` in a new repository.
    pub fn attributes(&self) -> String {
        let line = |name: &String| format!("{name} filter=lfs diff=lfs merge=lfs -text\n");
        self.large_names.iter().map(line).collect()
    }
}

/// Returns whether `name` matches `pattern`, in which `*` matches any characters.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(name) = name.strip_prefix(start) else { return false };
    (0..=name.len()).filter(|&at| name.is_char_boundary(at)).any(|at| matches(rest, &name[at..]))
}

/// Returns whether the `.gitignore` with these lines excludes `path`. The last matching line applies.
pub(crate) fn is_ignored(lines: &str, path: &str) -> bool {
    let mut ignored = false;
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (line, means) = line.strip_prefix('!').map_or((line, true), |line| (line, false));
        let (line, folder) = line.strip_suffix('/').map_or((line, false), |line| (line, true));
        let anchored = line.contains('/');
        let line = line.trim_start_matches('/');
        let parts: Vec<&str> = path.split('/').collect();
        // The pattern is compared with each parent folder and with the file. A pattern for folders does not
        // match the file.
        let met = (1..=parts.len()).filter(|&end| !folder || end < parts.len()).any(|end| {
            if anchored { matches(line, &parts[..end].join("/")) } else { matches(line, parts[end - 1]) }
        });
        if met {
            ignored = means;
        }
    }
    ignored
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sizes_and_bytes_make_a_file_large() {
        let settings = Settings { large_over: 10, ..Settings::default() };
        assert!(settings.is_large("a/model.safetensors", 1, b"x"));
        assert!(settings.is_large("a.txt", 11, b"x"));
        assert!(settings.is_large("a.txt", 2, b"x\0"));
        assert!(!settings.is_large("a.txt", 10, b"x"));
        assert!(!settings.is_large("model.safetensors", 0, b""));
    }

    #[test]
    fn ignored_is_what_git_ignores() {
        let lines = "# logs\n*.log\n!keep.log\nbuild/\n/top.txt\ndocs/*.md\n";
        for path in ["a.log", "x/a.log", "build/x", "a/build/b/c", "top.txt", "docs/a.md"] {
            assert!(is_ignored(lines, path), "{path}");
        }
        for path in ["keep.log", "build", "a/top.txt", "a/docs/a.md", "log"] {
            assert!(!is_ignored(lines, path), "{path}");
        }
    }
}
