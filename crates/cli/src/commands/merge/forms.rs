//! Which form of its base an adapter is merged into: the original, or the one out of 4 bits that it was trained on.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use danlu_adapter::LoraConfig;
use danlu_adapter::merge::MergeBase;
use danlu_kernels::FourBitCode;
use danlu_model::{ModelConfig, Quantization};

use crate::commands::base;
use crate::commands::loaded::{FOUR_BIT_NAME, Place};
use crate::printer::Printer;
use crate::report::{Report, Result};

/// What `--merge-base` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Whichever is nearer to what was trained.
    Auto,
    /// That one.
    Form(MergeBase),
}

impl FromStr for Wanted {
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

/// A base in one form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form {
    /// Its folder.
    pub folder: PathBuf,
    /// What its projections are put through, where the folder holds another form.
    pub through: Option<Quantization>,
}

/// The forms at hand; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forms {
    /// As published.
    pub original: Option<Form>,
    /// Out of 4 bits: what the adapter was trained on, where there is one.
    pub dequantized: Option<Form>,
}

impl Forms {
    /// The forms of the base at `place`; `original` is the folder that `--original` names.
    ///
    /// # Errors
    /// If a folder holds no model, or `--original` is none.
    pub fn of(place: &Place, original: Option<&Path>, printer: &Printer) -> Result<Self> {
        let stored = ModelConfig::read(&place.base)?;
        let plain = |folder: &Path| Form { folder: folder.to_owned(), through: None };
        if stored.quantization.is_some() {
            let original = match original {
                None => None,
                Some(folder) => Some(plain(unquantized(folder, &stored)?)),
            };
            return Ok(Self { original, dequantized: Some(plain(&place.base)) });
        }
        if let Some(folder) = original {
            let text = format!("`{}` is in 16 bits or more: it is the original itself", place.base.display());
            let hint = format!("leave `--original {}` out", folder.display());
            return Err(Report::input(text).with_hint(hint));
        }
        let through = match base::trained_over(place)? {
            Some(quantization) => Some(quantization),
            None => named_four_bit(place, printer)?,
        };
        let dequantized = through.map(|through| Form { folder: place.base.clone(), through: Some(through) });
        Ok(Self { original: Some(plain(&place.base)), dequantized })
    }

    /// The form of that kind.
    ///
    /// # Errors
    /// If it is not at hand.
    pub fn get(&self, kind: MergeBase) -> Result<&Form> {
        let (form, text, hint) = match kind {
            MergeBase::Original => (
                &self.original,
                "the base is in 4 bits, and the original is not at hand",
                "name its folder with `--original DIR`",
            ),
            MergeBase::Dequantized => (
                &self.dequantized,
                "the adapter was not trained over 4 bits: there is only the original",
                "leave `--merge-base dequantized` out",
            ),
        };
        form.as_ref().ok_or_else(|| Report::input(text).with_hint(hint))
    }
}

/// `folder`, if it holds the same model in 16 bits or more.
fn unquantized<'a>(folder: &'a Path, stored: &ModelConfig) -> Result<&'a Path> {
    let config = ModelConfig::read(folder)?;
    if config.quantization.is_some() {
        let text = format!("`--original` is `{}`, which is in 4 bits too", folder.display());
        return Err(Report::input(text).with_hint("name the folder of the model as it was published"));
    }
    let sizes = |c: &ModelConfig| c.tensors().collect::<Vec<_>>();
    if sizes(&config) != sizes(stored) {
        let sizes = |c: &ModelConfig| format!("{} layers of {}", c.num_hidden_layers, c.hidden_size);
        let (here, there) = (sizes(&config), sizes(stored));
        let text = format!(
            "`--original` is `{}` ({here}), which is another model than the base in 4 bits ({there})",
            folder.display()
        );
        return Err(Report::input(text).with_hint("the two `config.json` must say the same model"));
    }
    Ok(folder)
}

/// An adapter of another program says by its base's name that it was trained over 4 bits.
fn named_four_bit(place: &Place, printer: &Printer) -> Result<Option<Quantization>> {
    let Some(adapter) = &place.adapter else { return Ok(None) };
    let named = LoraConfig::read(adapter)?.base_model_name_or_path.unwrap_or_default();
    if !named.ends_with(FOUR_BIT_NAME) {
        return Ok(None);
    }
    printer.tell(
        &format!("适配器的基座是 `{named}`，即 4 位量化的仓库；以 `{}` 为原始权重，按 bitsandbytes 的默认（nf4、双重量化）重现其 4 位形式", place.base.display()),
        &format!(
            "the adapter names `{named}`, a repository in 4 bits: `{}` is taken for its original, and put into 4 bits as bitsandbytes does by default (nf4, double quantisation)",
            place.base.display()
        ),
    );
    Ok(Some(Quantization::new(FourBitCode::Nf4)))
}
