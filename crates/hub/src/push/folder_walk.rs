//! Walks through a folder, and selects the files to upload.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use danlu_model::FileError;

use super::options::{SkippedFile, UploadOptions};
use super::pattern::Pattern;
use super::secrets;
use super::skip_reason::SkipReason;
use super::upload_file::UploadFile;
use crate::HubError;

/// Number of bytes of a weight file that are scanned for secrets. The metadata is at the start of the file.
const MAX_SCANNED_WEIGHT_BYTES: u64 = 16 << 20;

/// Number of characters of a token that an error shows. The first characters identify the kind of token.
const SHOWN_TOKEN_CHARS: usize = 3;

pub(super) struct FolderWalk<'a> {
    root: &'a Path,
    options: &'a UploadOptions,
    include: Vec<Pattern>,
    /// Indices of the `include` patterns that matched a path.
    pub used: BTreeSet<usize>,
    pub files: Vec<UploadFile>,
    pub skipped: Vec<SkippedFile>,
}

impl<'a> FolderWalk<'a> {
    /// Walks through `root`, which must be a canonical path.
    pub fn through(root: &'a Path, options: &'a UploadOptions) -> Result<Self, HubError> {
        let include = options.include.iter().map(|text| text.parse().expect("every text is a pattern"));
        let (used, files, skipped) = Default::default();
        let mut walk = Self { root, options, include: include.collect(), used, files, skipped };
        walk.folder(&mut Vec::new(), None)?;
        Ok(walk)
    }

    /// Walks through a folder below the root. `stays` is the reason why a parent folder is skipped, if any.
    fn folder(&mut self, parts: &mut Vec<String>, stays: Option<SkipReason>) -> Result<(), HubError> {
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
                self.leave(parts, kind.is_dir(), SkipReason::Name);
            } else if kind.is_dir() {
                let name = parts.last().expect("just pushed");
                let stays = stays.or_else(|| SkipReason::of_folder(name));
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

    fn file(&mut self, parts: &[String], stays: Option<SkipReason>, is_link: bool) -> Result<(), HubError> {
        let path = parts.join("/");
        let place = self.root.join(&path);
        let name = parts.last().expect("a file has a name");
        let mut stays = stays.or_else(|| SkipReason::of_file(name));
        // Path of the file. For a link to a file inside the folder, path of that file.
        let mut target = parts.to_vec();
        if is_link {
            let real = fs::canonicalize(&place).ok().filter(|real| real.is_file());
            let inside = real.as_ref().and_then(|real| real.strip_prefix(self.root).ok());
            match inside.and_then(Path::to_str) {
                None => stays = Some(SkipReason::Link),
                // The skip rules also apply to the path of the target.
                Some(inside) => {
                    target = inside.split('/').map(str::to_owned).collect();
                    stays = stays.or_else(|| of_path(inside));
                }
            }
        }
        if stays != Some(SkipReason::Link) {
            let data = fs::metadata(&place).map_err(|e| FileError::new("read", &place, e))?;
            if !data.is_file() {
                stays = Some(SkipReason::Special);
            }
        }
        if stays.is_none() && starts_a_list(&place, name)? {
            stays = Some(SkipReason::Data);
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
        let found = UploadFile::of(path, place.clone(), &file).map_err(error)?;
        if !self.options.with_tokens {
            if let Some(at) = secrets::find_in_path(found.path(), self.options.token.as_ref()) {
                let path = found.path();
                let path = format!("{}…", path.get(..at + SHOWN_TOKEN_CHARS).unwrap_or(&path[..at]));
                self.skipped.push(SkippedFile { path, reason: SkipReason::TokenInName });
                return Ok(());
            }
            let is_weights = [".safetensors", ".gguf"].iter().any(|end| name.ends_with(end));
            let most = if is_weights { MAX_SCANNED_WEIGHT_BYTES } else { u64::MAX };
            let line = secrets::find(file.take(most), self.options.token.as_ref()).map_err(error)?;
            if let Some(line) = line {
                self.leave(parts, false, SkipReason::Token { line });
                return Ok(());
            }
        }
        self.files.push(found);
        Ok(())
    }

    /// Returns whether an `include` pattern matches a file.
    ///
    /// If a pattern matches only a parent folder, hidden files and keys in the folder are still skipped.
    fn is_included(&mut self, parts: &[String], stays: Option<SkipReason>) -> bool {
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let last = parts.len() - 1;
        let is_key = SkipReason::of_file(parts[last]).is_some_and(SkipReason::wants_its_name);
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

    fn leave(&mut self, parts: &[String], is_folder: bool, reason: SkipReason) {
        let end = if is_folder { "/" } else { "" };
        self.skipped.push(SkippedFile { path: format!("{}{end}", parts.join("/")), reason });
    }
}

/// Returns the reason to skip a path in the folder.
fn of_path(path: &str) -> Option<SkipReason> {
    let (folders, name) = path.rsplit_once('/').unwrap_or(("", path));
    folders.split('/').find_map(SkipReason::of_folder).or_else(|| SkipReason::of_file(name))
}

/// Returns whether a JSON file starts with a list, as data files do. The JSON files of models start with an
/// object.
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
