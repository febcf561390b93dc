//! Models that are ready to run.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use danlu_adapter::Adapter;
use danlu_kernels::Backend;
use danlu_model::{Decoder, LoraSource, PackedAdapter, Quantization, QuantizeProgress, Tokenizer};

use crate::{
    AdapterFiles, BaseFiles, LoadError, Loader, ModelFiles, ModelTokens, Notice, Progress, TokenCheck,
    training_quantization,
};

/// Quantization that is applied to the base while it is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuantChoice {
    /// The quantization that the base had in the adapter's training.
    AsTrained,
    /// This quantization, or no quantization for `None`.
    As(Option<Quantization>),
}

/// Options for loading a model.
#[derive(Clone)]
pub struct LoadOptions {
    /// Back end that runs the model.
    pub backend: Arc<dyn Backend>,
    /// Quantization of the base.
    pub quantization: QuantChoice,
    /// Number of threads for quantization.
    pub threads: usize,
    /// Whether loading fails if the tokenizer or the chat template differs from that of the training.
    pub tokens: TokenCheck,
}

/// A base that is ready to run.
pub struct LoadedBase {
    files: Arc<BaseFiles>,
    decoder: Arc<Decoder>,
    quantization: Option<Quantization>,
    threads: usize,
}

impl LoadedBase {
    /// Returns the files of the base.
    pub fn files(&self) -> &Arc<BaseFiles> {
        &self.files
    }

    /// Returns the decoder.
    pub fn decoder(&self) -> &Arc<Decoder> {
        &self.decoder
    }

    /// Returns the quantization that loading applied.
    pub fn quantization(&self) -> Option<Quantization> {
        self.quantization
    }

    /// Loads the tensors of an adapter, and prepares them for this base.
    ///
    /// # Errors
    /// If a file of the adapter is invalid, or if the adapter was made for a base of a different shape. Also
    /// returns an error if the adapter replaces tensors of the base, because the base may be shared with
    /// other adapters.
    pub fn load_adapter(&self, files: &AdapterFiles) -> Result<Adapter, LoadError> {
        let decoder = self.decoder();
        let mut adapter = files.load(decoder.config(), self.files().folder(), &**decoder.backend())?;
        adapter.prepare(decoder, self.threads)?;
        if adapter.changes_base() {
            return Err(LoadError::ChangesBase { adapter: files.folder().to_owned() });
        }
        Ok(adapter)
    }
}

impl Loader<'_> {
    /// Loads the decoder of a base. If `quantization` is given, the base is quantized.
    ///
    /// # Errors
    /// If a tensor is missing or invalid, or if the observer stops the quantization. Also returns an error if
    /// `quantization` is given and the base is already stored in 4 bits.
    pub fn load_decoder(
        &self,
        files: &BaseFiles,
        quantization: Option<Quantization>,
        threads: usize,
        backend: Arc<dyn Backend>,
    ) -> Result<Decoder, LoadError> {
        let mut progress = |progress| match quantization {
            Some(Quantization { quant_type: code, .. }) => {
                (self.observer)(Progress::Quantizing { code, progress })
            }
            None => ControlFlow::Continue(()),
        };
        build_decoder(files, (quantization, threads), backend, &mut progress)
    }

    /// Loads a base as [`Loader::load_decoder`] does. The result also contains the files of the base, because
    /// loading an adapter requires them.
    ///
    /// # Errors
    /// The errors of [`Loader::load_decoder`].
    pub fn load_base(
        &self,
        files: Arc<BaseFiles>,
        quantization: Option<Quantization>,
        threads: usize,
        backend: Arc<dyn Backend>,
    ) -> Result<LoadedBase, LoadError> {
        let decoder = Arc::new(self.load_decoder(&files, quantization, threads, backend)?);
        Ok(LoadedBase { files, decoder, quantization, threads })
    }

    /// Loads a base, and its adapter if there is one.
    ///
    /// # Errors
    /// If a file is invalid, or if the observer stops the quantization. Also returns an error if the
    /// tokenizer or the template differs from that of the training and `options.tokens` is
    /// [`TokenCheck::Require`].
    pub fn load(
        &self,
        files: ModelFiles,
        options: &LoadOptions,
        notices: &mut Vec<Notice>,
    ) -> Result<LoadedModel, LoadError> {
        let quantization = choose_quantization(&files, options.quantization, notices)?;
        let adapter = files.load_adapter(&*options.backend)?;
        // If the adapter replaces tensors of the base, the decoder is built from the changed base. The
        // unchanged base is never loaded.
        let changed = adapter.as_ref().map(|adapter| files.base().changed_by(adapter)).transpose()?.flatten();
        let base = changed.map_or_else(|| Arc::clone(files.base()), Arc::new);
        let base = self.load_base(base, quantization, options.threads, Arc::clone(&options.backend))?;
        LoadedModel::assemble(files, Arc::new(base), adapter, options.tokens, notices)
    }
}

fn build_decoder(
    files: &BaseFiles,
    (quantization, threads): (Option<Quantization>, usize),
    backend: Arc<dyn Backend>,
    progress: &mut dyn FnMut(QuantizeProgress) -> ControlFlow<()>,
) -> Result<Decoder, LoadError> {
    let (config, weights) = (files.config().clone(), files.weights());
    Ok(match quantization {
        Some(quantization) => {
            Decoder::quantized(config, weights, backend, (quantization, threads), progress)?
        }
        None => Decoder::new(config, weights, backend)?,
    })
}

/// Returns the quantization for a model's base. Adds a notice if the base is quantized as in the adapter's
/// training.
///
/// # Errors
/// The errors of [`training_quantization`].
pub fn choose_quantization(
    files: &ModelFiles,
    choice: QuantChoice,
    notices: &mut Vec<Notice>,
) -> Result<Option<Quantization>, LoadError> {
    match choice {
        QuantChoice::As(quantization) => Ok(quantization),
        QuantChoice::AsTrained => {
            let trained = training_quantization(files, notices)?;
            if let Some(Quantization { quant_type: code, .. }) = trained {
                notices.push(Notice::QuantizedAsTrained { name: files.name(), code });
            }
            Ok(trained)
        }
    }
}

/// An adapter that is loaded onto a base.
pub struct LoadedAdapter {
    /// Tensors of the adapter.
    pub adapter: Adapter,
    /// Tokenizer and template of the adapter.
    pub tokens: ModelTokens,
}

impl LoadedAdapter {
    /// Loads an adapter onto `base`. The weights of the base are not read.
    ///
    /// # Errors
    /// The errors of [`LoadedBase::load_adapter`]. Also returns an error if the tokenizer or the template
    /// differs from that of the training and `check` is [`TokenCheck::Require`].
    pub fn load(
        files: &AdapterFiles,
        base: &LoadedBase,
        check: TokenCheck,
        notices: &mut Vec<Notice>,
    ) -> Result<Self, LoadError> {
        let adapter = base.load_adapter(files)?;
        notices.extend(Notice::of_adapter(&files.name(), &adapter));
        let tokens = ModelTokens::of_adapter(files, base.files(), check, notices)?;
        tokens.tokenizer.limit_ids(base.decoder().config());
        Ok(Self { adapter, tokens })
    }
}

/// A model that is ready to run: a base, an adapter if there is one, and the tokenizer.
pub struct LoadedModel {
    files: ModelFiles,
    base: Arc<LoadedBase>,
    adapter: Option<PackedAdapter>,
    tokens: ModelTokens,
}

impl LoadedModel {
    /// Loads the adapter of a model onto `base`. If the adapter replaces tensors of the base, a changed copy
    /// of the base is built for this model alone.
    ///
    /// # Errors
    /// If a file is invalid, or if the adapter was made for a base of a different shape. Also returns an
    /// error if the tokenizer or the template differs from that of the training and `check` is
    /// [`TokenCheck::Require`].
    pub fn on(
        files: ModelFiles,
        base: Arc<LoadedBase>,
        check: TokenCheck,
        notices: &mut Vec<Notice>,
    ) -> Result<Self, LoadError> {
        let backend = Arc::clone(base.decoder().backend());
        let adapter = files.load_adapter(&*backend)?;
        let changed = adapter.as_ref().map(|adapter| files.base().changed_by(adapter)).transpose()?.flatten();
        let base = match changed {
            Some(changed) => {
                // The progress is ignored, because the user has already seen the progress of the unchanged
                // base.
                let (quantization, threads) = (base.quantization, base.threads);
                let mut progress = |_| ControlFlow::Continue(());
                let decoder = build_decoder(&changed, (quantization, threads), backend, &mut progress)?;
                let (files, decoder) = (Arc::new(changed), Arc::new(decoder));
                Arc::new(LoadedBase { files, decoder, quantization, threads })
            }
            None => base,
        };
        Self::assemble(files, base, adapter, check, notices)
    }

    /// `base` already contains the tensors that the adapter replaces.
    fn assemble(
        files: ModelFiles,
        base: Arc<LoadedBase>,
        adapter: Option<Adapter>,
        check: TokenCheck,
        notices: &mut Vec<Notice>,
    ) -> Result<Self, LoadError> {
        let pack = |mut adapter: Adapter| -> Result<PackedAdapter, LoadError> {
            let decoder = base.decoder();
            adapter.prepare(decoder, base.threads)?;
            notices.extend(Notice::of_adapter(&files.name(), &adapter));
            Ok(PackedAdapter::new(Arc::new(adapter), decoder.config(), &**decoder.backend()))
        };
        let adapter = adapter.map(pack).transpose()?;
        let tokens = ModelTokens::read(&files, check, notices)?;
        tokens.tokenizer.limit_ids(base.decoder().config());
        Ok(Self { files, base, adapter, tokens })
    }

    /// Returns the files of the model.
    pub fn files(&self) -> &ModelFiles {
        &self.files
    }

    /// Returns the folder of the adapter. If there is no adapter, returns the folder of the model.
    pub fn folder(&self) -> &Path {
        self.files.own_folder()
    }

    /// Returns the decoder.
    pub fn decoder(&self) -> &Arc<Decoder> {
        self.base.decoder()
    }

    /// Returns the tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokens.tokenizer
    }

    /// Returns the model with the tokenizer that `change` returns, for example with a different chat
    /// template.
    ///
    /// # Errors
    /// The errors of `change`.
    pub fn map_tokenizer<E>(self, change: impl FnOnce(Tokenizer) -> Result<Tokenizer, E>) -> Result<Self, E> {
        let ModelTokens { tokenizer, default_system } = self.tokens;
        let tokens = ModelTokens { tokenizer: change(tokenizer)?, default_system };
        Ok(Self { tokens, ..self })
    }

    /// Returns the system prompt of the training data. This prompt is used for conversations without a system
    /// message.
    pub fn default_system(&self) -> Option<&str> {
        self.tokens.default_system.as_deref()
    }

    /// Returns the adapter as an input of the decoder.
    pub fn lora(&self) -> Option<&dyn LoraSource> {
        self.adapter.as_ref().map(|adapter| adapter as &dyn LoraSource)
    }

    /// Returns the name that is shown to the user.
    pub fn name(&self) -> String {
        self.files.name()
    }
}
