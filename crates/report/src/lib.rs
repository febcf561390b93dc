//! What a run leaves for people: the HTML page, the model card, and the summary that both are written from.
//!
//! - [`summary`]: the run as plain values, without a path of the machine it ran on.
//! - [`page`]: `report.html`, one self-contained page, and the loss as an SVG file.
//! - [`card`]: `README.md` and `card.json` of an adapter or a merged model.
//! - [`number_format`]: numbers as both of them, and the terminal, print them.
//!
//! The crate writes cards and returns pages. It neither trains nor talks to the Hub.

pub mod card;
pub mod number_format;
pub mod page;
pub mod summary;

mod error;
mod language;

pub use error::ReportError;
pub use language::Language;
pub use summary::{DataFile, DataSummary, MemoryUse, Reply, RunSummary};
