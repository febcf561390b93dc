//! How long a text a model was made for.

use crate::report::{Report, Result};

/// Checks that `tokens`, as the flags ask for, are no more than the model was made for.
///
/// # Errors
/// If they are: what it would compute at positions it has never seen means nothing.
pub fn check_context(tokens: usize, most: usize, flags: &str) -> Result<()> {
    if tokens <= most {
        return Ok(());
    }
    let text = format!("{tokens} tokens of {flags}, and the model was made for {most}");
    Err(Report::input(text).with_hint(format!("at most {most}, or a model for longer texts")))
}
