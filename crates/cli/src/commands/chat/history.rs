//! The lines typed in earlier chats, for the arrow keys.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;

/// Maximum number of lines that are read.
const MAX_LINES: usize = 1000;

/// Largest file that is read, in bytes.
const MAX_BYTES: u64 = 4 << 20;

/// The file with the lines. Without a home folder and without `XDG_STATE_HOME`, no lines are stored.
pub struct ChatHistory {
    path: Option<PathBuf>,
}

impl ChatHistory {
    /// Returns the history in `danlu/chat_history` of the state folder, which is `XDG_STATE_HOME`, or
    /// `.local/state` in the home folder.
    pub fn of_user() -> Self {
        let set = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        let state = set.or_else(|| std::env::home_dir().map(|home| home.join(".local/state")));
        Self { path: state.map(|state| state.join("danlu/chat_history")) }
    }

    /// Returns the newest lines, oldest first. If the file has more than `2 * MAX_LINES` lines, removes the
    /// older ones from the file.
    pub fn read(&self) -> Vec<String> {
        let Some(path) = &self.path else { return Vec::new() };
        let Ok(bytes) = danlu_model::files::read_bounded(path, MAX_BYTES) else { return Vec::new() };
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let kept = lines[lines.len().saturating_sub(MAX_LINES)..].to_vec();
        if lines.len() > 2 * MAX_LINES {
            // The error is ignored, because the returned lines do not depend on this write.
            let _ = danlu_model::files::write_atomic(path, (kept.join("\n") + "\n").as_bytes());
        }
        kept
    }

    /// Appends a line. A failed write is ignored, so that the chat continues.
    pub fn append(&self, line: &str) {
        let Some(path) = &self.path else { return };
        let line = line.replace(['\n', '\r'], " ");
        let mut options = OpenOptions::new();
        options.append(true).create(true);
        // Only the owner can read a new file, because the user's messages to a model are private.
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let _ = path.parent().map(fs::create_dir_all);
        let _ = options.open(path).and_then(|mut file| writeln!(file, "{line}"));
    }
}
