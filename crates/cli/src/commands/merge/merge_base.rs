//! Finds the base to merge into. After training on 4 bits, the merge can use the original or the dequantized
//! base.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use danlu_adapter::merge::MergeBase;
use danlu_loader::{BaseFiles, ModelFiles, trained_on_unquantized_base, training_quantization};
use danlu_model::{ModelConfig, Quantization};

use crate::diagnostic::{Diagnostic, Result};
use crate::model_loader::ModelLoader;
use crate::terminal_text;

/// The value of `--merge-base`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeBaseArg {
    /// The original or the dequantized base, whichever gives the merged model closest to base plus adapter.
    Auto,
    /// The base that the user named.
    Form(MergeBase),
}

impl FromStr for MergeBaseArg {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "auto" => Ok(Self::Auto),
            "original" => Ok(Self::Form(MergeBase::Original)),
            "dequantized" => Ok(Self::Form(MergeBase::Dequantized)),
            _ => Err("expected auto, original or dequantized".to_owned()),
        }
    }
}

/// One form of the base: the original, or the dequantized base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseForm {
    /// The folder of this form.
    pub folder: PathBuf,
    /// The 4-bit quantization to apply to the folder's weights, which are then dequantized. `None` if the
    /// folder already contains this form.
    pub requantize_as: Option<Quantization>,
}

/// The available forms of the base. There is at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseForms {
    /// The base as it was published.
    pub original: Option<BaseForm>,
    /// The base after dequantization from 4 bits.
    pub dequantized: Option<BaseForm>,
    /// The form that the adapter was trained on. This form may be unavailable.
    pub trained: MergeBase,
}

impl BaseForms {
    /// Finds the forms of the model's base. `original` is the folder of `--original`.
    ///
    /// # Errors
    /// If a folder contains no model, or `original` is not the original of the base.
    pub fn of(model: &ModelFiles, original: Option<&Path>, loader: &ModelLoader<'_>) -> Result<Self> {
        let plain = |folder: &Path| BaseForm { folder: folder.to_owned(), requantize_as: None };
        let base = model.base();
        let quantization = loader.run(|_, notices| training_quantization(model, notices))?;
        if is_four_bit(base) {
            let original = match original {
                None => None,
                Some(folder) => Some(plain(unquantized(folder, base.config())?)),
            };
            let trained = match model.adapter().is_some_and(trained_on_unquantized_base) {
                true => MergeBase::Original,
                false => MergeBase::Dequantized,
            };
            return Ok(Self { original, dequantized: Some(plain(base.folder())), trained });
        }
        if let Some(folder) = original {
            let text = format!("`{}` is in 16 bits or more, so it is the original", base.folder().display());
            let hint = format!("omit `--original {}`", terminal_text::shell_path(folder));
            return Err(Diagnostic::input(text).with_hint(hint));
        }
        let dequantized =
            quantization.map(|code| BaseForm { folder: base.folder().to_owned(), requantize_as: Some(code) });
        let trained = if dequantized.is_some() { MergeBase::Dequantized } else { MergeBase::Original };
        Ok(Self { original: Some(plain(base.folder())), dequantized, trained })
    }

    /// Returns the folder of the form that the adapter was trained on. If that form is unavailable, returns
    /// the folder of the other form.
    pub fn trained_folder(&self) -> Option<&Path> {
        let [trained, other] = match self.trained {
            MergeBase::Original => [&self.original, &self.dequantized],
            MergeBase::Dequantized => [&self.dequantized, &self.original],
        };
        trained.as_ref().or(other.as_ref()).map(|form| form.folder.as_path())
    }

    /// Returns the form `kind`.
    ///
    /// # Errors
    /// If that form is not available.
    pub fn get(&self, kind: MergeBase) -> Result<&BaseForm> {
        let (form, text, hint) = match kind {
            MergeBase::Original => (
                &self.original,
                "the base is in 4 bits, and its original is unknown",
                "name its folder with `--original DIR`",
            ),
            MergeBase::Dequantized => (
                &self.dequantized,
                "the adapter was not trained on 4 bits, so there is no dequantized base",
                "omit `--merge-base dequantized`",
            ),
        };
        form.as_ref().ok_or_else(|| Diagnostic::input(text).with_hint(hint))
    }
}

/// Returns whether the weights are stored in 4 bits. `config.json` is not used for this, because it may lack
/// the quantization.
fn is_four_bit(base: &BaseFiles) -> bool {
    base.weights().first_four_bit().is_some()
}

/// Returns `folder`, or an error unless it contains the unquantized model with the tensors of `stored`.
fn unquantized<'a>(folder: &'a Path, stored: &ModelConfig) -> Result<&'a Path> {
    let original = BaseFiles::open(folder)?;
    if is_four_bit(&original) {
        let text = format!("`--original` is `{}`, which is in 4 bits too", folder.display());
        return Err(Diagnostic::input(text).with_hint("name the folder of the model as it was published"));
    }
    let config = original.config();
    let tensors = |c: &ModelConfig| c.tensors().collect::<Vec<_>>();
    if tensors(config) != tensors(stored) {
        let sizes = |c: &ModelConfig| format!("{} layers of {}", c.num_hidden_layers, c.hidden_size);
        let (here, there) = (sizes(config), sizes(stored));
        let text = format!(
            "`--original` is `{}` ({here}), which is not the model of the 4-bit base ({there})",
            folder.display()
        );
        return Err(
            Diagnostic::input(text).with_hint("name a folder whose `config.json` describes the same model")
        );
    }
    Ok(folder)
}
