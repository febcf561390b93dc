//! Atomic writes. After a crash, the folder contains the old file or the complete new file, but never a part
//! of a file.

use std::fs::{self, File, TryLockError};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::shell_word;
use crate::spelling::edit_distance;

/// Prefix of every temporary file. The prefix identifies the files that a killed run did not remove. The
/// final name of the file may follow after another `-`.
pub const TEMPORARY_PREFIX: &str = ".danlu-tmp-";

/// A file operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} `{}`: {}", path.display(), reason(action, path, source))]
#[non_exhaustive]
pub struct FileError {
    /// The failed action, as a verb: `read`, `write`, `create`.
    pub action: &'static str,
    /// Path of the file or folder.
    pub path: PathBuf,
    /// Error of the operating system.
    pub source: io::Error,
}

impl FileError {
    /// Returns the error of `action` on `path`. Temporary names in `path` are replaced by final names,
    /// because the temporary file no longer exists when the user reads the message.
    pub fn new(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self { action, path: final_path(path), source }
    }

    /// Returns the next step for the user, if there is one.
    pub fn hint(&self) -> Option<String> {
        let hint = match self.source.kind() {
            io::ErrorKind::NotFound if is_lacking(&self.path) => {
                "complete the download or the copy: the folder exists, but this file is missing"
            }
            io::ErrorKind::NotFound if writes(self.action) => {
                return Some(match missing_folder(&self.path) {
                    Some(folder) => {
                        format!("create the folder first: mkdir -p {}", shell_word(&folder.to_string_lossy()))
                    }
                    None => "choose another folder".to_owned(),
                });
            }
            io::ErrorKind::NotFound => {
                return Some(match similar_path(&self.path) {
                    Some(similar) => format!("did you mean `{}`?", similar.display()),
                    None => "check the path for a typing mistake".to_owned(),
                });
            }
            io::ErrorKind::PermissionDenied => "check the owner and the permissions of the folder",
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "free some space, or choose a folder on another disk"
            }
            io::ErrorKind::FileTooLarge => {
                "choose a folder on another disk, or raise the limit (`ulimit -f` shows it)"
            }
            io::ErrorKind::NotADirectory => "name a folder whose path leads through folders only",
            io::ErrorKind::AlreadyExists => "name a new or an empty folder",
            io::ErrorKind::ReadOnlyFilesystem => "choose a folder on a disk that can be written",
            io::ErrorKind::ResourceBusy => "wait until the other process ends, or stop it first",
            io::ErrorKind::DirectoryNotEmpty => {
                "name a new or an empty folder, so that nothing of yours is overwritten"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

/// Returns whether `path` is a missing model file in a folder that contains other files.
fn is_lacking(path: &Path) -> bool {
    let of_a_model = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| {
        matches!(name, "config.json" | "tokenizer.json" | "tokenizer_config.json")
            || name.ends_with(".safetensors")
    });
    let has_others = |folder| fs::read_dir(folder).is_ok_and(|mut files| files.next().is_some());
    of_a_model && path.parent().is_some_and(has_others)
}

/// Returns whether an action creates an entry of a folder.
fn writes(action: &str) -> bool {
    matches!(action, "write" | "write to" | "create")
}

/// Returns the folder in which `path` should be created, if that folder does not exist.
fn missing_folder(path: &Path) -> Option<&Path> {
    Some(parent(path)).filter(|folder| !folder.exists())
}

/// Maximum number of entries of a folder that are compared with a missing name.
const MAX_COMPARED: usize = 1000;

/// Returns an existing path whose names are similar to those of the missing `path`.
pub fn similar_path(path: &Path) -> Option<PathBuf> {
    let mut found = PathBuf::new();
    for part in path.components() {
        let next = found.join(part);
        if next.exists() {
            found = next;
            continue;
        }
        let wanted = part.as_os_str().to_str()?;
        let folder = if found.as_os_str().is_empty() { Path::new(".") } else { &found };
        let entries = fs::read_dir(folder).ok()?.flatten().take(MAX_COMPARED);
        let names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        // Two different short names may differ in only a few characters. The shorter the name, the fewer
        // edits are therefore allowed.
        let stem = Path::new(wanted).file_stem()?.to_str()?.chars().count();
        let limit = (stem / 4).max(usize::from(stem > 2));
        let near = names.iter().map(|name| (edit_distance(wanted, name), name)).min()?;
        found.push(Some(near).filter(|(edits, _)| *edits <= limit)?.1);
    }
    Some(found)
}

/// Returns the reason in plain words. If a file cannot be created because its folder is missing, the reason
/// names the folder.
fn reason(action: &str, path: &Path, error: &io::Error) -> String {
    match (error.kind(), missing_folder(path)) {
        (io::ErrorKind::NotFound, Some(folder)) if writes(action) => {
            format!("the folder `{}` does not exist", folder.display())
        }
        (io::ErrorKind::NotFound, None) if writes(action) => {
            "the system refuses new files and folders there".to_owned()
        }
        _ => plain(error),
    }
}

/// Returns the reason in plain words. For rare errors, returns the text of the operating system.
///
/// The kind of the error is checked first, because wrappers such as tempfile's change the text but preserve
/// the kind.
fn plain(error: &io::Error) -> String {
    let reason = match error.kind() {
        io::ErrorKind::NotFound => "it does not exist",
        io::ErrorKind::PermissionDenied => "permission denied",
        io::ErrorKind::StorageFull => "the disk is full",
        io::ErrorKind::QuotaExceeded => "the disk quota is used up",
        io::ErrorKind::FileTooLarge => "the file grows larger than the disk or a limit of the system allows",
        io::ErrorKind::ReadOnlyFilesystem => "the disk is read-only",
        io::ErrorKind::IsADirectory => "it is a folder",
        io::ErrorKind::NotADirectory => "part of the path is a file, not a folder",
        _ => return error.to_string(),
    };
    reason.to_owned()
}

/// Replaces temporary names in `path` by final names, and removes temporary folders from `path`.
pub fn final_path(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part.as_os_str().to_str().and_then(|name| name.strip_prefix(TEMPORARY_PREFIX)) {
            None => out.push(part),
            Some(rest) => out.extend(rest.split_once('-').map(|(_, name)| name)),
        }
    }
    out
}

/// Opens a regular file. A pipe is rejected, because opening a pipe could block forever.
///
/// # Errors
/// If the file cannot be opened, or is not a regular file.
pub fn open_regular(path: &Path) -> Result<File, FileError> {
    let error = |e| FileError::new("read", path, e);
    check_regular(&fs::metadata(path).map_err(error)?).map_err(error)?;
    File::open(path).map_err(error)
}

/// Returns an error for a folder, a pipe or a device.
pub(crate) fn check_regular(metadata: &fs::Metadata) -> io::Result<()> {
    match () {
        () if metadata.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        () if !metadata.is_file() => Err(io::Error::other("it is not a regular file")),
        () => Ok(()),
    }
}

/// Locks a folder for this process. The operating system releases the lock when the process ends.
///
/// Returns `None` if the folder cannot be opened, or if the file system does not support locks.
///
/// # Errors
/// If another process has locked the folder.
pub fn lock_folder(folder: &Path) -> Result<Option<File>, FileError> {
    let Ok(lock) = File::open(folder) else { return Ok(None) };
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(TryLockError::Error(_)) => Ok(None),
        Err(TryLockError::WouldBlock) => {
            let busy = io::Error::new(io::ErrorKind::ResourceBusy, "another danlu is writing to it");
            Err(FileError::new("write to", folder, busy))
        }
    }
}

/// Reads a regular file of at most `limit` bytes. A pipe is rejected, because reading a pipe might never end.
///
/// # Errors
/// If the file cannot be read, is larger than `limit`, or is not a regular file.
pub fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, FileError> {
    let error = |e| FileError::new("read", path, e);
    let metadata = fs::metadata(path).map_err(error)?;
    check_regular(&metadata).map_err(error)?;
    if metadata.len() > limit {
        let message = format!("it holds {} bytes, and at most {limit} are read", metadata.len());
        return Err(error(io::Error::other(message)));
    }
    fs::read(path).map_err(error)
}

/// Returns the sorted names of the entries of a folder. If the folder does not exist, the result is empty.
///
/// # Errors
/// If the folder cannot be read.
pub fn names_in(folder: &Path) -> Result<Vec<String>, FileError> {
    let error = |e| FileError::new("read", folder, e);
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(error)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.map_err(error)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Atomically replaces `path` by a file with these bytes. The new file survives a power failure.
///
/// # Errors
/// If the folder cannot be written, or the disk is full. In these cases `path` does not change.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes).map_err(|e| FileError::new("write", path, e))?;
    file.commit()
}

/// A file that has a temporary name until [`commit`](AtomicFile::commit) renames it. Dropping the value
/// before `commit` removes the file.
#[derive(Debug)]
pub struct AtomicFile {
    writer: BufWriter<NamedTempFile>,
    path: PathBuf,
}

impl AtomicFile {
    /// Opens a temporary file in the folder of `path`. The file can then be renamed, because both names are
    /// on the same disk.
    ///
    /// # Errors
    /// If the folder does not exist or cannot be written, or if `path` is a folder, a pipe or a device.
    pub fn create(path: &Path) -> Result<Self, FileError> {
        let error = |e| FileError::new("write", path, e);
        // The rename would replace a device, such as `/dev/null`, by a file.
        if let Ok(metadata) = fs::metadata(path) {
            check_regular(&metadata).map_err(error)?;
        }
        let file = temporary(parent(path)).map_err(error)?;
        Ok(Self { writer: BufWriter::with_capacity(1 << 20, file), path: path.to_owned() })
    }

    /// Returns the final path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Flushes the file to the disk, then renames it.
    ///
    /// # Errors
    /// If the disk is full, or if the rename or the sync of the folder fails. No temporary file remains.
    pub fn commit(self) -> Result<(), FileError> {
        let Self { writer, path } = self;
        let error = |e| FileError::new("write", &path, e);
        let file = writer.into_inner().map_err(|e| error(e.into_error()))?;
        file.as_file().sync_all().map_err(error)?;
        file.persist(&path).map_err(|e| error(e.error))?;
        sync_folder(parent(&path)).map_err(error)
    }
}

impl Write for AtomicFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.writer.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// Returns the number of bytes that an ordinary user can still write to the disk of `path`. The path need not
/// exist.
///
/// # Errors
/// If no parent of `path` exists, or the operating system does not report the free space.
pub fn free_space(path: &Path) -> Result<u64, FileError> {
    let mut existing = path;
    while !existing.exists() {
        existing = parent(existing);
        if existing == Path::new(".") {
            break;
        }
    }
    let stat = rustix::fs::statvfs(existing)
        .map_err(|e| FileError::new("ask the free space of", path, io::Error::from(e)))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Creates the folder `path` if necessary, and checks that it is writable and that `allowed` accepts all of
/// its entries.
///
/// # Errors
/// If `path` is a file, cannot be written, or contains an entry that is not allowed. The error names such an
/// entry.
pub fn ensure_output_dir(path: &Path, allowed: impl Fn(&str) -> bool) -> Result<(), FileError> {
    let error = |e| FileError::new("write to", path, e);
    if path.is_file() {
        return Err(error(io::Error::new(io::ErrorKind::AlreadyExists, "it is a file, not a folder")));
    }
    fs::create_dir_all(path).map_err(|e| FileError::new("create", path, e))?;
    let mut other: Vec<String> = Vec::new();
    for entry in fs::read_dir(path).map_err(error)? {
        let name = entry.map_err(error)?.file_name().to_string_lossy().into_owned();
        if !name.starts_with(TEMPORARY_PREFIX) && !allowed(&name) {
            other.push(name);
        }
    }
    // The first name in sorted order, so that every run prints the same message.
    if let Some(example) = other.iter().min() {
        let message = format!("the folder already holds other things, such as `{example}`");
        return Err(error(io::Error::new(io::ErrorKind::DirectoryNotEmpty, message)));
    }
    temporary(path).map_err(error)?;
    Ok(())
}

/// Syncs the names in `folder` to the disk. A rename survives a power failure only after its folder is
/// synced.
fn sync_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder)?.sync_all() {
        // Some network file systems cannot sync a folder. The data of the file is already on the disk.
        Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Ok(()),
        result => result,
    }
}

fn temporary(folder: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY_PREFIX);
    // tempfile restricts access to the owner by default. With mode 0666 the umask determines the permissions,
    // as for any new file.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    // tempfile replaces the message of an error, so the error is rebuilt from its kind.
    builder.tempfile_in(folder).map_err(|e| match e.kind() {
        io::ErrorKind::Other | io::ErrorKind::InvalidInput => e,
        kind => kind.into(),
    })
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => Path::new("."),
        None => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_dropped_file_leaves_the_old_one_and_no_temporary() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        write_atomic(&path, b"old").unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"half of the ne").unwrap();
        assert_eq!(names(folder.path()).len(), 2);
        drop(file);
        assert_eq!(names(folder.path()), ["a.json"]);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        write_atomic(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[cfg(unix)]
    #[test]
    fn a_path_that_is_no_file_is_never_replaced() {
        use std::os::unix::fs::FileTypeExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let error = write_atomic(&path, b"new").unwrap_err();
        assert!(error.to_string().ends_with("it is not a regular file"), "{error}");
        assert!(fs::metadata(&path).unwrap().file_type().is_socket());
        assert_eq!(names(folder.path()), ["socket"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_new_file_has_ordinary_permissions() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (ours, plain) = (folder.path().join("ours"), folder.path().join("plain"));
        write_atomic(&ours, b"").unwrap();
        fs::write(&plain, b"").unwrap();
        assert_eq!(
            fs::metadata(ours).unwrap().permissions().mode(),
            fs::metadata(plain).unwrap().permissions().mode()
        );
    }

    #[test]
    fn an_output_folder_with_other_things_is_refused_by_example() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("deep/out");
        ensure_output_dir(&out, |_| false).unwrap();
        fs::write(out.join("thesis.docx"), b"").unwrap();
        fs::write(out.join("ours.json"), b"").unwrap();
        fs::write(out.join(".danlu-tmp-x"), b"").unwrap();
        ensure_output_dir(&out, |name| name != "nothing").unwrap();
        let error = ensure_output_dir(&out, |name| name == "ours.json").unwrap_err();
        assert!(error.to_string().contains("such as `thesis.docx`"), "{error}");
        assert!(error.hint().is_some());
        let error = ensure_output_dir(&out.join("ours.json"), |_| true).unwrap_err();
        assert!(error.to_string().contains("it is a file, not a folder"), "{error}");
    }

    #[test]
    fn errors_say_the_reason_in_plain_words() {
        let folder = tempfile::tempdir().unwrap();
        let error = write_atomic(&folder.path().join("absent/a"), b"").unwrap_err();
        assert!(error.to_string().ends_with("absent` does not exist"), "{error}");
        let error = write_atomic(folder.path(), b"").unwrap_err();
        assert!(error.to_string().ends_with("it is a folder"), "{error}");
        let full = FileError::new("write", Path::new("a"), io::ErrorKind::StorageFull.into());
        assert_eq!(full.to_string(), "cannot write `a`: the disk is full");
        let wrapped = io::Error::new(io::ErrorKind::StorageFull, "No space left at path \"/x/.tmp\"");
        let wrapped = FileError::new("write", Path::new("a"), wrapped);
        assert_eq!(wrapped.to_string(), "cannot write `a`: the disk is full");
    }

    #[test]
    fn a_temporary_name_is_not_shown() {
        for (path, shown) in [
            ("out/.danlu-tmp-Xy12-checkpoint-4/a", "out/checkpoint-4/a"),
            ("/out/.danlu-tmp-model/b", "/out/b"),
            ("out/.danlu-tmp-aside-checkpoint-4", "out/checkpoint-4"),
            ("./out/c", "./out/c"),
            ("../c", "../c"),
        ] {
            let error = FileError::new("write", Path::new(path), io::ErrorKind::StorageFull.into());
            assert_eq!(error.to_string(), format!("cannot write `{shown}`: the disk is full"));
        }
    }

    #[test]
    fn a_file_over_its_limit_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("big");
        fs::write(&path, [0; 9]).unwrap();
        assert_eq!(read_bounded(&path, 9).unwrap().len(), 9);
        assert!(read_bounded(&path, 8).unwrap_err().to_string().contains("holds 9 bytes"));
    }

    #[test]
    fn free_space_answers_for_a_folder_that_does_not_exist_yet() {
        let folder = tempfile::tempdir().unwrap();
        assert!(free_space(&folder.path().join("not/yet")).unwrap() > 0);
        assert!(free_space(Path::new("not-yet")).unwrap() > 0);
    }
}
