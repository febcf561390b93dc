//! Whose tokenizer and template a model is asked with: one rule for `chat`, `compare` and `merge`.

use danlu_adapter::TokenIdentity;
use danlu_model::{ConfigJson, Tokenizer};

use super::loaded::ModelDirs;
use crate::diagnostic::{Diagnostic, Result};
use crate::printer::Printer;

/// Text to ids and back, as a model was trained with.
pub struct ModelTokens {
    /// The adapter's own where it brings one, else the base's.
    pub tokenizer: Tokenizer,
    /// The system prompt of the training data, for conversations that set none.
    pub default_system: Option<String>,
}

impl ModelTokens {
    /// The tokens of the model at `place`. Where `danlu.json` tells which it was trained with, both the base's and
    /// those beside the adapter must be these, unless `allow_mismatch`.
    ///
    /// # Errors
    /// If a file has a fault, or the tokens are others than in training.
    pub fn of(place: &ModelDirs, allow_mismatch: bool, printer: &Printer) -> Result<Self> {
        let base = Tokenizer::read(&place.base)?;
        let folder = place.adapter.as_ref().unwrap_or(&place.base);
        let own = match &place.adapter {
            Some(adapter) if Tokenizer::is_brought_by(adapter) => {
                Some(Tokenizer::read_with(&place.base, Some(adapter), &ConfigJson::read(&place.base)?)?)
            }
            _ => None,
        };
        let Some(identity) = TokenIdentity::read(folder)? else {
            return Ok(Self::of_another_program(base, own, printer));
        };
        let mut faults = Vec::new();
        if place.adapter.is_some() {
            let differences = identity.differences(&base);
            if !differences.is_empty() {
                let (adapter, base) = (folder.display(), place.base.display());
                let hint = "use the base it was trained on, or `--allow-template-mismatch` to go on with the adapter's own";
                faults.push((
                    format!("`{adapter}` was trained with other tokens than `{base}` has"),
                    differences,
                    hint,
                ));
            }
        }
        let here = if place.adapter.is_some() { own.as_ref() } else { Some(&base) };
        let differences = here.map(|here| identity.differences(here)).unwrap_or_default();
        if !differences.is_empty() && faults.iter().all(|(_, known, _)| *known != differences) {
            let folder = folder.display();
            let hint = "put back the file that was changed, or `--allow-template-mismatch` to go on with what is there";
            faults.push((
                format!("tokenizer or template of `{folder}` are not those it was trained with"),
                differences,
                hint,
            ));
        }
        for (text, differences, hint) in faults {
            if !allow_mismatch {
                return Err(Diagnostic::input(text).with_details(differences).with_hint(hint));
            }
            printer.warn(&format!("{text}: {}", differences.join("; ")));
        }
        let default_system = identity.default_system().map(str::to_owned);
        Ok(Self { tokenizer: own.unwrap_or(base), default_system })
    }

    /// An adapter of another program names no tokens, but those beside it are what it was trained with.
    fn of_another_program(base: Tokenizer, own: Option<Tokenizer>, printer: &Printer) -> Self {
        let Some(own) = own else { return Self { tokenizer: base, default_system: None } };
        let words = ["in the base", "beside the adapter"];
        let differences = base.fingerprint().difference(&own.fingerprint(), words);
        if !differences.is_empty() {
            printer.status_bilingual(
                &format!("使用适配器自带的分词器与模板：{}", differences.join("；")),
                &format!("using the adapter's own tokenizer and template: {}", differences.join("; ")),
            );
        }
        Self { tokenizer: own, default_system: None }
    }
}
