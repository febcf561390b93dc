//! The access token. Logs, errors and `Debug` output never contain it.

use std::fmt;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use danlu_model::FileError;
use danlu_model::files::{TEMPORARY_PREFIX, read_bounded};

use crate::HubError;

const MAX_TOKEN_FILE_BYTES: u64 = 4096;

/// An invalid token, with its source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TokenFault {
    message: String,
    is_variable: bool,
}

impl TokenFault {
    pub(crate) fn of_variable(name: &str, error: &HubError) -> Self {
        Self { message: format!("the token of `{name}` cannot be used: {error}"), is_variable: true }
    }

    pub(crate) fn of_file(path: &Path, error: &HubError) -> Self {
        let message = match error {
            HubError::File(error) => error.to_string(),
            error => format!("the token in `{}` cannot be used: {error}", path.display()),
        };
        Self { message, is_variable: false }
    }

    pub(crate) fn hint(&self) -> &'static str {
        match self.is_variable {
            true => "set it to a valid token, or unset it",
            false => "replace it with `danlu login`, or remove it with `danlu logout`",
        }
    }
}

/// An access token of the Hub.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Parses a typed or pasted token. Surrounding white space is ignored.
    ///
    /// # Errors
    /// If the token is empty, or contains characters that are not allowed in a header. The error does not
    /// contain the token.
    pub fn new(text: &str) -> Result<Self, HubError> {
        let text = text.trim();
        if text.is_empty() || !text.chars().all(|c| c.is_ascii_graphic()) {
            return Err(HubError::TokenShape { is_empty: text.is_empty() });
        }
        Ok(Self(text.to_owned()))
    }

    /// Reads the token file that [`Token::save`] or Python's `hf auth login` wrote. Returns `None` if the
    /// file does not exist.
    ///
    /// # Errors
    /// If the file cannot be read, or contains no valid token.
    pub fn read(path: &Path) -> Result<Option<Self>, HubError> {
        match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            _ => {}
        }
        let bytes = read_bounded(path, MAX_TOKEN_FILE_BYTES)?;
        let text = String::from_utf8_lossy(&bytes);
        if text.trim().is_empty() { Ok(None) } else { Self::new(&text).map(Some) }
    }

    /// Writes the token file. Only its owner can read the file.
    ///
    /// # Errors
    /// If the file cannot be written. An existing token file is then unchanged.
    pub fn save(&self, path: &Path) -> Result<(), HubError> {
        let error = |e: io::Error| FileError::new("write", path, e);
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(|e| FileError::new("create", folder, e))?;
        // `tempfile` creates a file that only its owner can read.
        let made = tempfile::Builder::new().prefix(TEMPORARY_PREFIX).tempfile_in(folder);
        let mut file = made.map_err(|e| error(e.kind().into()))?;
        file.write_all(self.0.as_bytes()).map_err(error)?;
        file.as_file().sync_all().map_err(error)?;
        file.persist(path).map_err(|e| error(e.error))?;
        Ok(())
    }

    /// Removes the token file. Returns whether the file existed.
    ///
    /// # Errors
    /// If the file cannot be removed.
    pub fn remove(path: &Path) -> Result<bool, HubError> {
        match fs::remove_file(path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(FileError::new("remove", path, error).into()),
        }
    }

    pub(crate) fn bearer(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// Replaces the token in a text from the server, so that the text can be displayed.
    pub(crate) fn redacted(&self, text: &str) -> String {
        // A URL parser converts hosts to lower case, so the search ignores case.
        let (small, token) = (text.to_ascii_lowercase(), self.0.to_ascii_lowercase());
        let (mut shown, mut end) = (String::new(), 0);
        for (start, _) in small.match_indices(&token) {
            shown += &text[end..start];
            shown += "(the token)";
            end = start + token.len();
        }
        shown + &text[end..]
    }

    /// Returns whether `bytes` contain the token.
    pub fn is_in(&self, bytes: &[u8]) -> bool {
        self.position_in(bytes).is_some()
    }

    /// Returns the position of the token in `bytes`.
    pub(crate) fn position_in(&self, bytes: &[u8]) -> Option<usize> {
        bytes.windows(self.0.len()).position(|window| window == self.0.as_bytes())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_kept_for_its_owner_and_shown_to_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/token");
        assert_eq!(Token::read(&path).unwrap(), None);
        let token = Token::new(" hf_secret\n").unwrap();
        token.save(&path).unwrap();
        assert_eq!(Token::read(&path).unwrap().as_ref(), Some(&token));
        assert_eq!(fs::read(&path).unwrap(), b"hf_secret");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(format!("{token:?}"), "Token(..)");
        assert_eq!(token.redacted("x HF_secret, 密hf_secret"), "x (the token), 密(the token)");
        assert!(token.is_in(b"x hf_secret y") && !token.is_in(b"hf_secre"));
        assert!(Token::remove(&path).unwrap() && !Token::remove(&path).unwrap());
        for wrong in ["", "  ", "hf_a b", "hf_a\nb", "密"] {
            let error = Token::new(wrong).unwrap_err().to_string();
            assert!(wrong.trim().is_empty() || !error.contains(wrong), "{error}");
        }
    }
}
