//! Data sets of the Hub: their names, the choice of files, and downloads.
//!
//! A [`DatasetRef`] names a data set and one of its splits. danlu chooses the files of a split as Python's
//! `datasets` does: by the front matter of the card, or else by the names of files and folders. danlu never
//! runs the loading script of a data set.

mod card;
mod choice;
mod glob;
mod pull;
mod reference;

pub(crate) use choice::PARQUET_BRANCH;
pub use pull::DatasetFiles;
pub use reference::DatasetRef;
