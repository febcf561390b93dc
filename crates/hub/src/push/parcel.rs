//! What of a folder goes to the Hub, and what stays.

use std::collections::BTreeSet;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use danlu_model::FileError;

use super::pattern::Pattern;
use super::reason::Reason;
use super::secrets;
use crate::listing::Hash;
use crate::sum::{PIECE, Sum};
use crate::{HubError, Token};

/// One of these makes a folder an adapter or a model.
const CONFIGS: [&str; 2] = ["adapter_config.json", "config.json"];

/// Of a file of weights so much is searched for secrets: its texts come first.
const SEARCHED_OF_WEIGHTS: u64 = 16 << 20;

/// What is otherwise than usual in a [`Parcel`].
#[derive(Clone, Debug, Default)]
pub struct ParcelOptions {
    /// Paths that come along though they would stay: `run.toml`, `*.jsonl`, `checkpoint-3`. A `*` stands for no `/`, and
    /// not for the dot that hides a file; a name without a `/` is meant in every folder. Files with a token in them still
    /// stay.
    pub include: Vec<String>,
    /// Whether files come along in which something looks like a token.
    pub with_tokens: bool,
    /// The user's own token, which is looked for as well.
    pub token: Option<Token>,
}

/// What of a folder goes to the Hub, and what stays.
#[derive(Debug)]
pub struct Parcel {
    folder: PathBuf,
    files: Vec<ParcelFile>,
    left: Vec<Left>,
}

/// A file that goes.
#[derive(Debug)]
pub struct ParcelFile {
    path: String,
    place: PathBuf,
    stamp: Stamp,
    git: OnceLock<String>,
    sha256: OnceLock<String>,
}

/// A file that stays, or a folder with all that is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Its path within the folder, with `/`; a folder's ends in one.
    pub path: String,
    /// Why.
    pub reason: Reason,
}

/// What a file was when it was looked at: it does not change without one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    size: u64,
    inode: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(data: &Metadata) -> Self {
        Self {
            size: data.len(),
            inode: data.ino(),
            modified: (data.mtime(), data.mtime_nsec()),
            changed: (data.ctime(), data.ctime_nsec()),
        }
    }
}

impl Parcel {
    /// Looks through a folder: nothing is sent.
    ///
    /// # Errors
    /// If it holds neither an adapter nor a model, cannot be read, or nothing has a name that is to come along.
    pub fn of(folder: &Path, options: &ParcelOptions) -> Result<Self, HubError> {
        let root = fs::canonicalize(folder).map_err(|e| FileError::new("read", folder, e))?;
        if !root.is_dir() {
            return Err(FileError::new("read", folder, io::ErrorKind::NotADirectory.into()).into());
        }
        if !CONFIGS.iter().any(|name| root.join(name).is_file()) {
            return Err(HubError::NotAModel { folder: folder.to_owned() });
        }
        let include = options.include.iter().map(|text| text.parse().expect("every text is a pattern"));
        let mut walk = Walk {
            root: &root,
            include: include.collect(),
            used: BTreeSet::new(),
            options,
            parcel: Self { folder: folder.to_owned(), files: Vec::new(), left: Vec::new() },
        };
        walk.folder(&mut Vec::new(), None)?;
        let Walk { used, mut parcel, .. } = walk;
        if let Some(i) = (0..options.include.len()).find(|i| !used.contains(i)) {
            return Err(HubError::NotThere { folder: folder.to_owned(), path: options.include[i].clone() });
        }
        parcel.files.sort_by(|a, b| a.path.cmp(&b.path));
        parcel.left.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(parcel)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What goes, by path.
    pub fn files(&self) -> &[ParcelFile] {
        &self.files
    }

    /// What stays, by path.
    pub fn left(&self) -> &[Left] {
        &self.left
    }

    /// Bytes of what goes.
    pub fn size(&self) -> u64 {
        self.files.iter().map(ParcelFile::size).sum()
    }
}

struct Walk<'a> {
    root: &'a Path,
    include: Vec<Pattern>,
    /// Those of `include` that meant something.
    used: BTreeSet<usize>,
    options: &'a ParcelOptions,
    parcel: Parcel,
}

impl Walk<'_> {
    /// Looks through a folder within the root; `stays` is why one above it stays.
    fn folder(&mut self, parts: &mut Vec<String>, stays: Option<Reason>) -> Result<(), HubError> {
        let place = parts.iter().fold(self.root.to_owned(), |path, part| path.join(part));
        let error = |e: io::Error| FileError::new("read", &place, e);
        for entry in fs::read_dir(&place).map_err(error)? {
            let entry = entry.map_err(error)?;
            let kind = entry.file_type().map_err(error)?;
            let name = entry.file_name();
            let is_name = name
                .to_str()
                .is_some_and(|name| name != ".git" && !name.contains(|c: char| c.is_control() || c == '\\'));
            parts.push(name.to_string_lossy().into_owned());
            if !is_name {
                self.leave(parts, kind.is_dir(), Reason::Name);
            } else if kind.is_dir() {
                let name = parts.last().expect("just pushed");
                let stays = stays.or_else(|| Reason::of_folder(name));
                match stays {
                    Some(reason) if self.include.is_empty() => self.leave(parts, true, reason),
                    stays => self.folder(parts, stays)?,
                }
            } else {
                self.file(parts, stays, kind.is_symlink())?;
            }
            parts.pop();
        }
        Ok(())
    }

    fn file(&mut self, parts: &[String], stays: Option<Reason>, is_link: bool) -> Result<(), HubError> {
        let path = parts.join("/");
        let place = self.root.join(&path);
        let name = parts.last().expect("a file has a name");
        let mut stays = stays.or_else(|| Reason::of_file(name));
        // Where a link leads within the folder.
        let mut target = parts.to_vec();
        if is_link {
            let real = fs::canonicalize(&place).ok().filter(|real| real.is_file());
            let inside = real.as_ref().and_then(|real| real.strip_prefix(self.root).ok());
            match inside.and_then(Path::to_str) {
                None => stays = Some(Reason::Link),
                // A second name does not make a secret or a state something else.
                Some(inside) => {
                    target = inside.split('/').map(str::to_owned).collect();
                    stays = stays.or_else(|| of_path(inside));
                }
            }
        }
        if stays != Some(Reason::Link) {
            let data = fs::metadata(&place).map_err(|e| FileError::new("read", &place, e))?;
            if !data.is_file() {
                stays = Some(Reason::Special);
            }
        }
        if stays.is_none() && starts_a_list(&place, name)? {
            stays = Some(Reason::Data);
        }
        let comes = self.is_included(parts, stays) && self.is_included(&target, stays);
        match stays {
            Some(reason) if reason.is_final() || !comes => {
                self.leave(parts, false, reason);
                return Ok(());
            }
            _ => {}
        }
        let error = |e: io::Error| FileError::new("read", &place, e);
        let file = File::open(&place).map_err(error)?;
        let stamp = Stamp::of(&file.metadata().map_err(error)?);
        if !self.options.with_tokens {
            let is_weights = [".safetensors", ".gguf"].iter().any(|end| name.ends_with(end));
            let most = if is_weights { SEARCHED_OF_WEIGHTS } else { u64::MAX };
            let found = secrets::find(file.take(most), self.options.token.as_ref()).map_err(error)?;
            if let Some(line) = found {
                self.leave(parts, false, Reason::Token { line });
                return Ok(());
            }
        }
        let (git, sha256) = Default::default();
        self.parcel.files.push(ParcelFile { path, place, stamp, git, sha256 });
        Ok(())
    }

    /// Whether a file was asked for by name. What is hidden, or a key, has to be named itself: neither a folder above it
    /// nor a file within brings it.
    fn is_included(&mut self, parts: &[String], stays: Option<Reason>) -> bool {
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let last = parts.len() - 1;
        let is_key = Reason::of_file(parts[last]).is_some_and(Reason::wants_its_name);
        let wants_name = |i: usize| parts[i].starts_with('.') || (is_key && i == last);
        let mut comes = false;
        for (i, pattern) in self.include.iter().enumerate() {
            for named in pattern.named(&parts) {
                self.used.insert(i);
                comes |= stays.is_none()
                    || (0..parts.len()).all(|part| !wants_name(part) || named.contains(&part));
            }
        }
        comes
    }

    fn leave(&mut self, parts: &[String], is_folder: bool, reason: Reason) {
        let end = if is_folder { "/" } else { "" };
        self.parcel.left.push(Left { path: format!("{}{end}", parts.join("/")), reason });
    }
}

/// Why the file at this path within the folder stays.
fn of_path(path: &str) -> Option<Reason> {
    let (folders, name) = path.rsplit_once('/').unwrap_or(("", path));
    folders.split('/').find_map(Reason::of_folder).or_else(|| Reason::of_file(name))
}

/// Whether a JSON file holds a list, as data does and no file of a model.
fn starts_a_list(place: &Path, name: &str) -> Result<bool, HubError> {
    if !name.to_lowercase().ends_with(".json") {
        return Ok(false);
    }
    let error = |e: io::Error| FileError::new("read", place, e);
    let mut start = Vec::new();
    File::open(place).and_then(|file| file.take(4096).read_to_end(&mut start)).map_err(error)?;
    let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&start);
    Ok(start.trim_ascii_start().starts_with(b"["))
}

impl ParcelFile {
    /// Its path within the folder, with `/`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Its bytes.
    pub fn size(&self) -> u64 {
        self.stamp.size
    }

    /// Opens it as it was when it was looked at.
    ///
    /// # Errors
    /// If it is not that file any more.
    pub(crate) fn open(&self) -> Result<File, HubError> {
        let file = File::open(&self.place).map_err(|e| FileError::new("read", &self.place, e))?;
        self.check(&file)?;
        Ok(file)
    }

    /// Sees that the file at its path, and `file`, are what was looked at.
    ///
    /// # Errors
    /// If either is another.
    pub(crate) fn check(&self, file: &File) -> Result<(), HubError> {
        let is = |data: io::Result<Metadata>| data.is_ok_and(|data| Stamp::of(&data) == self.stamp);
        if is(file.metadata()) && is(fs::metadata(&self.place)) { Ok(()) } else { Err(self.changed()) }
    }

    /// The error that it is another.
    pub(crate) fn changed(&self) -> HubError {
        HubError::FileChanged { path: self.place.clone() }
    }

    /// Its whole content, for a small one.
    pub(crate) fn content(&self) -> Result<Vec<u8>, HubError> {
        let file = self.open()?;
        let mut bytes = Vec::new();
        let read = (&file).take(self.size() + 1).read_to_end(&mut bytes);
        read.map_err(|e| FileError::new("read", &self.place, e))?;
        self.check(&file)?;
        if bytes.len() as u64 == self.size() { Ok(bytes) } else { Err(self.changed()) }
    }

    /// Whether its bytes give `hash`.
    pub(crate) fn is(&self, hash: &Hash, heard: &mut dyn FnMut(u64)) -> Result<bool, HubError> {
        let digits = match hash {
            Hash::Git(_) => self.sum(&self.git, Sum::git(self.size()), heard)?,
            Hash::Sha256(_) => self.sha256(heard)?,
        };
        Ok(digits == hash.digits())
    }

    /// SHA-256 of its bytes; `heard` hears of every byte that is read for it.
    pub(crate) fn sha256(&self, heard: &mut dyn FnMut(u64)) -> Result<&str, HubError> {
        self.sum(&self.sha256, Sum::sha256(), heard)
    }

    fn sum<'a>(
        &self,
        known: &'a OnceLock<String>,
        mut sum: Sum,
        heard: &mut dyn FnMut(u64),
    ) -> Result<&'a str, HubError> {
        if let Some(digits) = known.get() {
            return Ok(digits);
        }
        let (file, mut piece) = (self.open()?, vec![0; PIECE]);
        loop {
            match (&file).read(&mut piece) {
                Ok(0) => break,
                Ok(n) => {
                    sum.add(&piece[..n]);
                    heard(n as u64);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(FileError::new("read", &self.place, e).into()),
            }
        }
        self.check(&file)?;
        Ok(known.get_or_init(|| sum.digits()))
    }
}
