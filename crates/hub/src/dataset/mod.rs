//! Data sets of the Hub: their names, the choice of files, and downloads.
//!
//! A [`DatasetRef`] names a data set and one of its splits. The files of a split are chosen as Python's
//! `datasets` chooses them: from the front matter of the card, or else from the names of files and folders.
//! danlu never runs the loading script of a data set.

mod card;
mod choice;
mod glob;
mod pull;
mod reference;

pub(crate) use choice::PARQUET_BRANCH;
pub use pull::DatasetFiles;
pub use reference::DatasetRef;
