//! Errors of reading and writing cards.

use std::path::PathBuf;

use danlu_model::FileError;

use crate::card::ReadmeFault;

/// An error while reading or writing a card.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each variant has a doc, and its message names the fields")]
pub enum ReportError {
    /// `card.json` contains a value that is not valid in a card.
    #[error("{}: {reason}", path.display())]
    Card { path: PathBuf, reason: String },
    /// danlu cannot separate its own part of a `README.md` from the author's text.
    #[error("cannot update `{}`: {fault}", path.display())]
    Readme { path: PathBuf, fault: ReadmeFault },
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

impl ReportError {
    /// Returns the next step for the user, if there is one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Card { .. } => Some(
                "mend that line, or move the file away: `danlu train --resume` writes it again, and `danlu merge` goes by \
                 `adapter_config.json` then"
                    .to_owned(),
            ),
            Self::Readme { fault, .. } => Some(fault.hint().to_owned()),
            Self::File(error) => error.hint(),
        }
    }
}
