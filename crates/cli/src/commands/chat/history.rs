//! The lines typed in earlier chats, for the arrow keys.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;

/// Most lines that are kept.
const MAX_LINES: usize = 1000;

/// Largest file that is read.
const MAX_BYTES: u64 = 4 << 20;

/// The file of the lines. Without a home folder, nothing is kept.
pub struct ChatHistory {
    path: Option<PathBuf>,
}

impl ChatHistory {
    /// `chat_history` in the state folder: `XDG_STATE_HOME`, or `.local/state` in the home folder.
    pub fn of_user() -> Self {
        let set = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        let state = set.or_else(|| std::env::home_dir().map(|home| home.join(".local/state")));
        Self { path: state.map(|state| state.join("danlu/chat_history")) }
    }

    /// Returns the newest lines, oldest first, and shortens a long file.
    pub fn read(&self) -> Vec<String> {
        let Some(path) = &self.path else { return Vec::new() };
        let Ok(bytes) = danlu_model::files::read_bounded(path, MAX_BYTES) else { return Vec::new() };
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let kept = lines[lines.len().saturating_sub(MAX_LINES)..].to_vec();
        if lines.len() > 2 * MAX_LINES {
            // The lines in memory are complete if the file cannot be shortened.
            let _ = danlu_model::files::write_atomic(path, (kept.join("\n") + "\n").as_bytes());
        }
        kept
    }

    /// Appends a line. A chat goes on if the file cannot be written.
    pub fn append(&self, line: &str) {
        let Some(path) = &self.path else { return };
        let line = line.replace(['\n', '\r'], " ");
        let mut options = OpenOptions::new();
        options.append(true).create(true);
        // What a person writes to a model is private.
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let _ = path.parent().map(fs::create_dir_all);
        let _ = options.open(path).and_then(|mut file| writeln!(file, "{line}"));
    }
}
