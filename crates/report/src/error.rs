//! Errors of reading and writing cards.

use std::path::PathBuf;

use danlu_model::FileError;

use crate::card::ReadmeFault;

/// Why a card cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// A `card.json` that no card can be written from.
    #[error("{}: {reason}", path.display())]
    Card {
        /// The file.
        path: PathBuf,
        /// What the parser met.
        reason: String,
    },
    /// A `README.md` in which danlu cannot tell its own part from the author's.
    #[error("cannot update `{}`: {fault}", path.display())]
    Readme {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: ReadmeFault,
    },
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

impl ReportError {
    /// The next step, where one is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Card { .. } => Some(
                "mend that line, or move it away: `danlu train --resume` writes it again, and `danlu merge` goes by \
                 `adapter_config.json` then"
                    .to_owned(),
            ),
            Self::Readme { fault, .. } => Some(fault.hint().to_owned()),
            Self::File(error) => error.hint(),
        }
    }
}
