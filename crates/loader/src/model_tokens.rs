//! The tokenizer and the template of a model, which `chat`, `compare`, `merge` and `serve` choose by the same
//! rule.

use danlu_model::Tokenizer;

use crate::{AdapterFiles, BaseFiles, LoadError, ModelFiles, Notice};
use danlu_adapter::TrainingIdentity;

/// Effect of a tokenizer or a template that differs from that of the training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenCheck {
    /// Loading returns an error.
    Require,
    /// Loading adds a notice and continues.
    Warn,
}

/// The tokenizer and the system prompt of a model.
#[derive(Debug)]
pub struct ModelTokens {
    /// The tokenizer with the chat template. Files of the adapter replace files of the base.
    pub tokenizer: Tokenizer,
    /// System prompt of the training data. This prompt is used for conversations without a system message.
    pub default_system: Option<String>,
}

impl ModelTokens {
    /// Reads the tokenizer and the template of a model. If there is a `danlu.json`, both are compared with
    /// the fingerprint in this file.
    ///
    /// # Errors
    /// If a file is invalid. Also returns an error if the tokenizer or the template differs and `check` is
    /// [`TokenCheck::Require`].
    pub fn read(files: &ModelFiles, check: TokenCheck, notices: &mut Vec<Notice>) -> Result<Self, LoadError> {
        let tokens = match files.adapter() {
            Some(adapter) => Self::of_adapter(adapter, files.base(), check, notices),
            None => Self::of_model(files.base(), files.identity(), check, notices),
        }?;
        notices.extend(Notice::ignored_dropout(&tokens.tokenizer));
        Ok(tokens)
    }

    fn of_model(
        base: &BaseFiles,
        identity: Option<&TrainingIdentity>,
        check: TokenCheck,
        notices: &mut Vec<Notice>,
    ) -> Result<Self, LoadError> {
        let tokenizer = base.tokenizer(None)?;
        let Some(identity) = identity else { return Ok(Self { tokenizer, default_system: None }) };
        if let Some(mismatch) = Mismatch::changed(base.folder(), identity.differences(&tokenizer)) {
            mismatch.report(check, notices)?;
        }
        Ok(Self { tokenizer, default_system: identity.default_system().map(str::to_owned) })
    }

    /// Reads the tokenizer and the template of an adapter on a base.
    ///
    /// # Errors
    /// The errors of [`ModelTokens::read`].
    pub fn of_adapter(
        adapter: &AdapterFiles,
        base: &BaseFiles,
        check: TokenCheck,
        notices: &mut Vec<Notice>,
    ) -> Result<Self, LoadError> {
        let of_base = base.tokenizer(None)?;
        let own = match Tokenizer::is_brought_by(adapter.folder()) {
            true => Some(base.tokenizer(Some(adapter.folder()))?),
            false => None,
        };
        let Some(identity) = adapter.identity() else {
            return Ok(Self::of_another_program(of_base, own, notices));
        };
        let differences = identity.differences(&of_base);
        let of_own = own.as_ref().map(|own| identity.differences(own)).filter(|own| *own != differences);
        let on_base = Mismatch::on_base(adapter, base, differences);
        let changed = of_own.and_then(|differences| Mismatch::changed(adapter.folder(), differences));
        for mismatch in [on_base, changed].into_iter().flatten() {
            mismatch.report(check, notices)?;
        }
        let default_system = identity.default_system().map(str::to_owned);
        Ok(Self { tokenizer: own.unwrap_or(of_base), default_system })
    }

    /// Chooses the tokenizer for an adapter without `danlu.json`. Tokenizer files in the adapter's folder are
    /// assumed to be those of the training.
    fn of_another_program(base: Tokenizer, own: Option<Tokenizer>, notices: &mut Vec<Notice>) -> Self {
        let Some(own) = own else { return Self { tokenizer: base, default_system: None } };
        let differences =
            base.fingerprint().difference(&own.fingerprint(), ["in the base", "beside the adapter"]);
        if !differences.is_empty() {
            notices.push(Notice::AdapterTokens { differences });
        }
        Self { tokenizer: own, default_system: None }
    }
}

/// A difference between the current tokenizer or template and that of the training.
struct Mismatch {
    summary: String,
    differences: Vec<String>,
    hint: &'static str,
}

impl Mismatch {
    /// Returns a mismatch if there are `differences` between the base and the adapter's training.
    fn on_base(adapter: &AdapterFiles, base: &BaseFiles, differences: Vec<String>) -> Option<Self> {
        let (adapter, base) = (adapter.folder().display(), base.folder().display());
        let summary = format!(
            "`{adapter}` was trained with a tokenizer or template that differs from that of `{base}`"
        );
        let hint = "use the base it was trained on, or continue with the adapter's tokenizer and template: `--allow-template-mismatch`";
        (!differences.is_empty()).then_some(Self { summary, differences, hint })
    }

    /// Returns a mismatch if there are `differences`: files in `folder` were changed after the training.
    fn changed(folder: &std::path::Path, differences: Vec<String>) -> Option<Self> {
        let summary = format!(
            "the tokenizer or template in `{}` differs from the one used in training",
            folder.display()
        );
        let hint =
            "restore the changed file, or continue with the current files: `--allow-template-mismatch`";
        (!differences.is_empty()).then_some(Self { summary, differences, hint })
    }

    fn report(self, check: TokenCheck, notices: &mut Vec<Notice>) -> Result<(), LoadError> {
        let Self { summary, differences, hint } = self;
        match check {
            TokenCheck::Require => Err(LoadError::TokenMismatch { summary, differences, hint }),
            TokenCheck::Warn => {
                notices.push(Notice::TokenMismatch { summary, differences });
                Ok(())
            }
        }
    }
}
