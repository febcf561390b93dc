//! `--chat-template`: replaces the base's template, or sets one for a base that has none.

use std::path::Path;

use danlu_model::{KNOWN_TEMPLATES, Tokenizer, files, known_template};

use crate::diagnostic::{Diagnostic, Result};
use crate::printer::Printer;

/// Largest template file that is read, in bytes.
const MAX_TEMPLATE_BYTES: u64 = 1 << 20;

/// Returns the tokenizer with the template `choice`, which is a known name or a file. Warns if the template
/// uses tokens that the tokenizer lacks.
///
/// # Errors
/// If `choice` is neither a known name nor a file, or the template is not valid.
pub fn with_chat_template(
    tokenizer: Tokenizer,
    choice: Option<&str>,
    printer: &Printer,
) -> Result<Tokenizer> {
    let Some(choice) = choice else { return Ok(tokenizer) };
    if let Some(known) = known_template(choice) {
        for token in known.tokens.iter().filter(|token| tokenizer.token_id(token).is_none()) {
            printer.warn(&printer.pick(
                format!("模板 `{choice}` 用到 `{token}`，分词器里没有这个词元：会拆成几个词元"),
                format!("the template `{choice}` uses `{token}`, which the tokenizer lacks: it becomes several tokens"),
            ));
        }
        return Ok(tokenizer.with_template(Path::new(choice), known.source)?);
    }
    let file = Path::new(choice);
    if !file.is_file() {
        let names: Vec<String> = KNOWN_TEMPLATES.iter().map(|known| format!("`{}`", known.name)).collect();
        return Err(Diagnostic::input(format!(
            "cannot read the chat template `{choice}`: there is no such file"
        ))
        .with_hint(format!("name a file, or one of {}", names.join(", "))));
    }
    let source = String::from_utf8(files::read_bounded(file, MAX_TEMPLATE_BYTES)?).map_err(|_| {
        Diagnostic::input(format!("cannot read the chat template `{choice}`: it is not UTF-8"))
    })?;
    Ok(tokenizer.with_template(file, &source)?)
}
