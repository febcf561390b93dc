//! Watches the output folders of training runs, and serves each new checkpoint.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use danlu_adapter::{CONFIG_FILE, WEIGHTS_FILE, latest_checkpoint};

use super::{AdapterSource, LoadRequest, Registry};

/// Interval at which each folder is checked.
const INTERVAL: Duration = Duration::from_secs(1);

/// The last checkpoint that was loaded or tried: its folder, and the modification time of its weights.
type Version = (PathBuf, SystemTime);

/// A thread that checks folders until the watcher is dropped.
pub(crate) struct Watcher {
    has_ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Starts to watch folders. The alias of each folder refers to the newest checkpoint in the folder.
    ///
    /// # Errors
    /// If the system cannot start a thread.
    pub fn start(registry: Arc<Registry>, watches: Vec<(String, PathBuf)>) -> std::io::Result<Self> {
        let has_ended = Arc::new(AtomicBool::new(false));
        if watches.is_empty() {
            return Ok(Self { has_ended, thread: None });
        }
        let over = Arc::clone(&has_ended);
        let mut tried = vec![None; watches.len()];
        let watch = move || {
            while !over.load(Ordering::Relaxed) {
                for ((name, folder), tried) in watches.iter().zip(&mut tried) {
                    look(&registry, name, folder, tried);
                }
                thread::park_timeout(INTERVAL);
            }
        };
        let thread = thread::Builder::new().name("watch".to_owned()).spawn(watch)?;
        Ok(Self { has_ended, thread: Some(thread) })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.has_ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // If the thread panicked, the message was already printed.
            let _ = thread.join();
        }
    }
}

/// Loads the newest adapter of the run in `folder`, unless this version was tried before. If the load fails,
/// the alias does not change.
fn look(registry: &Registry, name: &str, folder: &Path, tried: &mut Option<Version>) {
    let Some(version) = newest(folder) else { return };
    if tried.as_ref() == Some(&version) {
        return;
    }
    let request = LoadRequest {
        name: name.to_owned(),
        source: AdapterSource::Folder(version.0.clone()),
        replaces: true,
        expected: None,
        // The trainer deletes old checkpoints, so an evicted checkpoint could not be read again.
        pinned: true,
    };
    match registry.set_now(request) {
        Ok(generation) => tracing::info!(name, id = %generation.id, "new checkpoint served"),
        Err(error) => tracing::warn!(name, ?error, "cannot serve the newest checkpoint; the last one stays"),
    }
    *tried = Some(version);
}

/// Returns the final adapter of a run, or its newest checkpoint if the run has not finished.
fn newest(folder: &Path) -> Option<Version> {
    let source = match folder.join(CONFIG_FILE).is_file() {
        true => folder.to_owned(),
        false => latest_checkpoint(folder).ok().flatten()?,
    };
    let written = std::fs::metadata(source.join(WEIGHTS_FILE)).and_then(|file| file.modified()).ok()?;
    Some((source, written))
}
