//! The HTML page and the model card of a run, and the run summary that contains their data.
//!
//! - [`summary`]: the results of a run as plain values, without local paths.
//! - [`page`]: `report.html`, one self-contained page, and the loss as an SVG file.
//! - [`card`]: `README.md` and `card.json` of an adapter or a merged model.
//! - [`number_format`]: number formats for the page, the card and the terminal.
//!
//! This crate writes cards, and returns pages to the caller. The crate neither trains models nor uses the
//! Hub.

pub mod card;
pub mod number_format;
pub mod page;
pub mod summary;

mod error;
mod language;
mod verdict;

pub use error::ReportError;
pub use language::Language;
pub use summary::{DataFile, DataSummary, MemoryUse, Reply, RunSummary};
pub use verdict::{Finding, Verdict};
