//! A base that is not the one its adapter was trained on: nothing else would tell, for any of the same shape runs.

use std::path::Path;

use danlu_adapter::{BaseIdentity, TokenIdentity};
use danlu_model::{Weights, base_fingerprint, base_sample};

use super::loaded::ModelDirs;
use crate::commands::base_identity::base_identity;
use crate::diagnostic::Result;
use crate::printer::Printer;
use crate::terminal_text;

/// How closely a base is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckDepth {
    /// At a few pages, which costs no time.
    Sample,
    /// At what a resumed run compares.
    Full,
}

/// Warns of whatever makes the base in `base` another than the adapter at `place` was trained on; that base, where its
/// weights or configuration are others.
///
/// # Errors
/// If a file of it cannot be read.
pub fn warn(
    place: &ModelDirs,
    base: &Path,
    depth: CheckDepth,
    printer: &Printer,
) -> Result<Option<BaseIdentity>> {
    let Some(adapter) = &place.adapter else { return Ok(None) };
    let Some(identity) = TokenIdentity::read(adapter)? else { return Ok(None) };
    let stored = Weights::open(base)?.stored_quantization()?;
    if let Some(stored) = stored.filter(|_| identity.quantization().is_none()) {
        let (name, base, code) = (place.name(), base.display(), stored.quant_type);
        printer.warn(&printer.pick(
            format!("{name} 是在 16 位或更高精度的基座上训练的，而 `{base}` 是 {code}：结果会有出入"),
            format!("{name} was trained on a base in 16 bits or more, and `{base}` is in {code}: results differ from those of training"),
        ));
    }
    let Some(base_then) = identity.base() else { return Ok(None) };
    let Some(trained) = &base_then.sha256 else { return Ok(None) };
    // 4 bits and what they were made from have nothing in common that could be compared.
    if identity.stored_quantization().is_some() != stored.is_some() {
        return Ok(None);
    }
    let here = base_identity("", base);
    let is_same_commit =
        here.revision.is_some() && (&here.revision, &here.hub_id) == (&base_then.revision, &base_then.hub_id);
    if is_same_commit {
        return Ok(None);
    }
    if depth == CheckDepth::Sample {
        match &base_then.sample {
            Some(sample) if *sample != base_sample(base)? => {}
            _ => return Ok(None),
        }
    }
    let now = base_fingerprint(base)?;
    if now == *trained {
        return Ok(None);
    }
    let begin = |hash: &str| hash.get(..12).unwrap_or(hash).to_owned();
    let (before, after) = (begin(trained), begin(&now));
    let (shown, name) = (base.display(), place.name());
    let (which_zh, which) = match base_then.revision.as_ref().and(base_then.at_revision()) {
        Some(id) => {
            let id = terminal_text::shell_word(&id);
            (
                format!("；训练时的基座：`--base {id}`"),
                format!("; `--base {id}` is the base it was trained on"),
            )
        }
        None => Default::default(),
    };
    printer.warn(&printer.pick(
        format!("`{shown}` 不是 {name} 训练时的基座：权重或 config.json 不同（SHA-256 训练时 {before}…，现在 {after}…），结果不可靠{which_zh}"),
        format!(
            "`{shown}` is not the base that {name} was trained on: weights or config.json are others (SHA-256 {before}… in training, {after}… here), and results mean little{which}"
        ),
    ));
    Ok(Some(BaseIdentity { sha256: Some(now), ..here }))
}

/// Whether danlu trained the adapter, and on a base that was not in 4 bits.
pub fn trained_on_unquantized_base(adapter: &Path) -> bool {
    let identity = TokenIdentity::read(adapter).ok().flatten();
    identity.is_some_and(|identity| identity.quantization().is_none())
}
