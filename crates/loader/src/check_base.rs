//! Compares the base onto which an adapter is loaded with the base on which the adapter was trained.
//!
//! Any base of the same shape can be loaded, but the replies are correct only with the base of the training.
//! These checks warn if the base differs.

use std::fs;
use std::path::Path;

use danlu_adapter::{BaseIdentity, TrainingIdentity};
use danlu_hub::parse_snapshot_path;
use danlu_kernels::FourBitCode;
use danlu_model::Quantization;

use crate::{AdapterFiles, BaseFiles, LoadError, ModelFiles, Notice};

/// Suffix in the name of repositories that contain 4-bit weights of bitsandbytes.
pub(crate) const FOUR_BIT_SUFFIX: &str = "-bnb-4bit";

/// How much of a base's data is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckDepth {
    /// Compares a few pages of each file, which takes no noticeable time. If a page differs, the base is also
    /// compared as with [`Self::Full`].
    Sample,
    /// Compares [`danlu_model::base_fingerprint`] of the two bases, as a resumed run does.
    Full,
}

/// Returns the quantization that makes the given base equal to the base of the adapter's training. Adds a
/// notice if the given base is stored with a different quantization, or if only the name of the adapter's
/// base shows that it was quantized.
///
/// The quantization is read from `danlu.json`. If `danlu.json` contains none, an adapter whose base is named
/// `…-bnb-4bit` gets the default of bitsandbytes. All other adapters get `None`, and so does a base that is
/// already stored in 4 bits.
///
/// # Errors
/// [`LoadError::SkippedModules`] if the training left some modules in 16 bits, but the given base is not
/// stored in 4 bits. Also returns an error if the quantization state of a weight is invalid.
pub fn training_quantization(
    files: &ModelFiles,
    notices: &mut Vec<Notice>,
) -> Result<Option<Quantization>, LoadError> {
    let (Some(adapter), base) = (files.adapter(), files.base()) else { return Ok(None) };
    let trained = adapter.identity().and_then(TrainingIdentity::quantization);
    let named = match trained {
        Some(_) => None,
        None => four_bit_repository(adapter),
    };
    if trained.is_none() && named.is_none() {
        return Ok(None);
    }
    let folder = || base.folder().to_owned();
    if base.weights().first_four_bit().is_some() {
        if let (Some(trained), Some(stored)) = (trained, base.stored_quantization()?)
            && trained != stored
        {
            notices.push(Notice::OtherQuantization { name: adapter.name(), base: folder(), trained, stored });
        }
        return Ok(None);
    }
    let skipped = adapter.identity().map_or(&[][..], TrainingIdentity::skip_modules);
    if !skipped.is_empty() {
        return Err(LoadError::SkippedModules { base: folder(), skipped: skipped.to_vec() });
    }
    if let Some(named) = named {
        notices.push(Notice::QuantizedAsNamed { named: named.to_owned(), base: folder() });
        return Ok(Some(Quantization::new(FourBitCode::Nf4)));
    }
    Ok(trained)
}

fn four_bit_repository(adapter: &AdapterFiles) -> Option<&str> {
    adapter.config().base_model_name_or_path.as_deref().filter(|named| named.ends_with(FOUR_BIT_SUFFIX))
}

/// Identifies the base in `folder`. For a snapshot in the Hub's cache, the path gives the repository and the
/// commit. For any other folder, `named` is the name or path that the command or the adapter contains.
pub fn identify_base(named: &str, folder: &Path) -> BaseIdentity {
    let real = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
    match parse_snapshot_path(&real) {
        Some((id, revision)) => BaseIdentity::of_snapshot(&id, &revision),
        None => BaseIdentity::of_folder(named, folder),
    }
}

/// Returns whether `danlu.json` states that the adapter was trained on an unquantized base. Returns `false`
/// for an adapter without `danlu.json`.
pub fn trained_on_unquantized_base(adapter: &AdapterFiles) -> bool {
    adapter.identity().is_some_and(|identity| identity.quantization().is_none())
}

/// Compares `base` with the base of the adapter's training. Adds a notice if the contents differ, or if the
/// training used an unquantized base and `base` is stored in 4 bits.
///
/// Returns the identity of `base` if the contents differ. Returns `None` without a comparison in three cases:
/// only one of the two bases is stored in 4 bits, `danlu.json` contains no fingerprint, or both bases are the
/// same commit of the same repository.
///
/// # Errors
/// If a file of `base` cannot be read.
pub fn check_base(
    adapter: &AdapterFiles,
    base: &BaseFiles,
    depth: CheckDepth,
    notices: &mut Vec<Notice>,
) -> Result<Option<BaseIdentity>, LoadError> {
    let Some(identity) = adapter.identity() else { return Ok(None) };
    let stored = base.stored_quantization()?;
    if let Some(stored) = stored.filter(|_| trained_on_unquantized_base(adapter)) {
        let (name, base, code) = (adapter.name(), base.folder().to_owned(), stored.quant_type);
        notices.push(Notice::TrainedUnquantized { name, base, code });
    }
    // 4-bit weights and their 16-bit originals have different bytes, so a comparison would always fail.
    if identity.stored_quantization().is_some() != stored.is_some() {
        return Ok(None);
    }
    let Some(trained) = identity.base() else { return Ok(None) };
    let Some(trained_sha256) = &trained.sha256 else { return Ok(None) };
    let found = identify_base("", base.folder());
    let is_same_commit =
        found.revision.is_some() && (&found.revision, &found.hub_id) == (&trained.revision, &trained.hub_id);
    if is_same_commit {
        return Ok(None);
    }
    if depth == CheckDepth::Sample {
        match &trained.sample {
            Some(sample) if *sample != base.sample()? => {}
            _ => return Ok(None),
        }
    }
    let found_sha256 = base.fingerprint()?;
    if found_sha256 == *trained_sha256 {
        return Ok(None);
    }
    notices.push(Notice::OtherBase {
        name: adapter.name(),
        base: base.folder().to_owned(),
        trained: trained_sha256.clone(),
        found: found_sha256.clone(),
        trained_on: trained.revision.as_ref().and(trained.at_revision()),
    });
    Ok(Some(BaseIdentity { sha256: Some(found_sha256), ..found }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_path_identifies_name_and_commit() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("models--meta-llama--Llama-3.2-1B/snapshots/4e20de3");
        fs::create_dir_all(&folder).unwrap();
        let base = identify_base(folder.to_str().unwrap(), &folder);
        assert_eq!(base.hub_id.as_deref(), Some("meta-llama/Llama-3.2-1B"));
        assert_eq!((base.name.as_str(), base.revision.as_deref()), ("Llama-3.2-1B", Some("4e20de3")));
    }
}
