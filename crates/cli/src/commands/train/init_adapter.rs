//! `--init-adapter`: a run that continues from the weights of an adapter.
//!
//! Rank, alpha, targets and the other settings of the adapter's modules come from its `adapter_config.json`.

use std::path::{Path, PathBuf};

use danlu_adapter::{Adapter, LoraConfig, latest_checkpoint, targets};
use danlu_kernels::Backend;
use danlu_loader::{
    AdapterFiles, BaseFiles, CheckDepth, ModelTokens, TokenCheck, check_base, folder_name, with_full_commit,
};
use danlu_model::ModelConfig;
use danlu_train::TrainSettings;
use serde_json::Value;

use super::run_config::RunFiles;
use crate::args::adapter::AdapterArgs;
use crate::diagnostic::{Diagnostic, Result};
use crate::model_loader::{ModelLoader, hub_name};

/// The adapter from which a run goes on.
#[derive(Clone, Debug)]
pub struct InitAdapter {
    /// Folder, or Hub name, as the user gave it. A Hub name has its commit.
    pub named: PathBuf,
    files: AdapterFiles,
}

/// Opens the adapter of `--init-adapter`, and returns the settings with its modules. Returns `None` without
/// the flag. Also returns `None` for a resumed run, because its settings already contain the modules.
///
/// # Errors
/// If there is no adapter, or if a given setting contradicts the adapter.
pub fn resolve(
    files: &RunFiles,
    settings: &TrainSettings,
    model: &ModelConfig,
    loader: &ModelLoader<'_>,
) -> Result<Option<(InitAdapter, TrainSettings)>> {
    let Some(named) = &files.init_adapter else { return Ok(None) };
    let resumes = match &files.resume {
        Some(Some(_)) => true,
        Some(None) => latest_checkpoint(&files.output)?.is_some(),
        None => false,
    };
    if resumes {
        return Ok(None);
    }
    let (on_hub, adapter) = (hub_name(named), loader.adapter_files(named)?);
    let named = match on_hub {
        Some(name) => PathBuf::from(with_full_commit(name, adapter.folder()).to_string()),
        None => named.clone(),
    };
    let adapter = InitAdapter { named, files: adapter };
    let settings = settings_of(&adapter, settings, &files.adapter_args, model)?;
    Ok(Some((adapter, settings)))
}

/// Returns the name of the adapter `named` for a card: its Hub name, or the name of its folder.
pub fn shown_name(named: &Path) -> String {
    hub_name(named).map_or_else(|| folder_name(named), |name| name.to_string())
}

/// Returns `settings` with the modules of the adapter. `given` are the flags of the command line and of the
/// configuration file.
fn settings_of(
    adapter: &InitAdapter,
    settings: &TrainSettings,
    given: &AdapterArgs,
    model: &ModelConfig,
) -> Result<TrainSettings> {
    let config = adapter.files.config();
    check_supported(&shown_name(&adapter.named), config)?;
    let of_adapter = TrainSettings {
        lora_r: config.r,
        lora_alpha: config.lora_alpha,
        use_rslora: config.use_rslora,
        use_dora: config.use_dora,
        target_modules: config.target_modules.clone(),
        exclude_modules: config.exclude_modules.clone(),
        layers_to_transform: config.layers_to_transform.clone(),
        rank_pattern: config.rank_pattern.clone(),
        alpha_pattern: config.alpha_pattern.clone(),
        ..settings.clone()
    };
    let mut asked = of_adapter.clone();
    given.apply(&mut asked);
    let modules = |settings: &TrainSettings| targets::resolve(&settings.lora_config(""), model);
    let is_start = asked.init_lora_weights != TrainSettings::default().init_lora_weights;
    if !is_start && modules(&asked).is_ok_and(|asked| modules(&of_adapter).is_ok_and(|own| own == asked)) {
        return Ok(asked);
    }
    let of_adapter = TrainSettings { init_lora_weights: Default::default(), ..of_adapter };
    let pairs = of_adapter.entries().into_iter().zip(asked.entries());
    let is_of_modules = |name: &str| !["lora_dropout"].contains(&name);
    let other = pairs.into_iter().find(|((name, own), (_, asked))| is_of_modules(name) && own != asked);
    let Some(((key, own), (_, asked))) = other else {
        // The configuration of the adapter does not fit the model.
        modules(&of_adapter)?;
        return Ok(of_adapter);
    };
    let shown = |value: &Value| if value.is_null() { "not set".to_owned() } else { value.to_string() };
    let text = format!("`{key}` is {}, expected {} as in the adapter", shown(&asked), shown(&own));
    Err(Diagnostic::input(text)
        .with_hint(format!("omit `{key}`: `--init-adapter` takes it from the adapter")))
}

/// Rejects an adapter with settings that a run does not have.
fn check_supported(name: &str, config: &LoraConfig) -> Result<()> {
    let extra = [
        ("modules_to_save", !config.modules_to_save.is_empty()),
        ("trainable_token_indices", !config.trainable_token_indices.is_empty()),
        ("layers_pattern", !config.layers_pattern.is_empty()),
    ];
    match extra.into_iter().find(|(_, is_set)| *is_set) {
        None => Ok(()),
        Some((key, _)) => {
            let text = format!("cannot continue from the adapter `{name}`: danlu does not train its `{key}`");
            let hint = "merge the adapter first, and train a new one on the merged model";
            Err(Diagnostic::input(text).with_hint(hint))
        }
    }
}

impl InitAdapter {
    /// Loads the weights, with the configuration of the run. Warns if the base or the tokenizer differs from
    /// that of the adapter's training.
    ///
    /// # Errors
    /// If the weights are damaged or belong to another base, or if the adapter replaces tensors of the base.
    pub fn load(
        &self,
        lora: LoraConfig,
        base: &BaseFiles,
        backend: &dyn Backend,
        loader: &ModelLoader<'_>,
    ) -> Result<Adapter> {
        let adapter = loader.run(|_, notices| {
            check_base(&self.files, base, CheckDepth::Sample, notices)?;
            ModelTokens::of_adapter(&self.files, base, TokenCheck::Warn, notices)?;
            self.files.load(base.config(), base.folder(), backend)
        })?;
        if adapter.changes_base() {
            let text = format!(
                "cannot continue from the adapter `{}`: danlu does not train its tensors of the base",
                shown_name(&self.named)
            );
            let hint = "merge the adapter first, and train a new one on the merged model";
            return Err(Diagnostic::input(text).with_hint(hint));
        }
        Ok(adapter.with_config(lora, base.config())?)
    }
}
