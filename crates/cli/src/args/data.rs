//! Flags of commands that read data files.

use std::str::FromStr;

use danlu_data::Format;

/// A format by its name.
///
/// # Errors
/// Lists the names there are.
pub fn format(name: &str) -> Result<Format, String> {
    Format::from_str(name).map_err(|_| {
        let known: Vec<_> = Format::ALL.iter().map(|format| format.name()).collect();
        format!("expected one of {}", known.join(", "))
    })
}
