//! Models that are ready to run.

use std::path::Path;
use std::sync::Arc;

use danlu_adapter::Adapter;
use danlu_kernels::Backend;
use danlu_model::{Decoder, LoraSource, Quantization, Tokenizer};

use crate::{
    AdapterFiles, BaseFiles, LoadError, Loader, ModelFiles, ModelTokens, Notice, Progress, TokenCheck,
    training_quantization,
};

/// Which 4 bits the base is quantized to while it is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuantChoice {
    /// Those that the adapter was trained over.
    AsTrained,
    /// These, or none.
    As(Option<Quantization>),
}

/// How a model is loaded.
#[derive(Clone)]
pub struct LoadOptions {
    /// Computes.
    pub backend: Arc<dyn Backend>,
    /// Quantization of the base.
    pub quantization: QuantChoice,
    /// Threads that quantize.
    pub threads: usize,
    /// What to do when the tokens differ from those of training.
    pub tokens: TokenCheck,
}

/// A base that is ready to run.
pub struct LoadedBase {
    files: Arc<BaseFiles>,
    decoder: Arc<Decoder>,
    quantization: Option<Quantization>,
}

impl LoadedBase {
    /// The files it was loaded from.
    pub fn files(&self) -> &Arc<BaseFiles> {
        &self.files
    }

    /// The decoder.
    pub fn decoder(&self) -> &Arc<Decoder> {
        &self.decoder
    }

    /// How it was quantized while it was loaded.
    pub fn quantization(&self) -> Option<Quantization> {
        self.quantization
    }
}

impl Loader<'_> {
    /// Loads the decoder of a base, quantized if asked.
    ///
    /// # Errors
    /// If a tensor is missing or has a fault, the base is stored in 4 bits and should be quantized, or the
    /// observer stops it.
    pub fn load_decoder(
        &self,
        files: &BaseFiles,
        quantization: Option<Quantization>,
        threads: usize,
        backend: Arc<dyn Backend>,
    ) -> Result<Decoder, LoadError> {
        let weights = files.weights().clone();
        let weights = match quantization {
            None => weights,
            Some(quantization) => {
                weights.quantize(files.config(), quantization, threads, &mut |progress| {
                    (self.observer)(Progress::Quantizing { code: quantization.quant_type, progress })
                })?
            }
        };
        Ok(Decoder::new(files.config().clone(), &weights, backend)?)
    }

    /// As [`Loader::load_decoder`], with the files kept for adapters that are loaded later.
    ///
    /// # Errors
    /// As [`Loader::load_decoder`].
    pub fn load_base(
        &self,
        files: Arc<BaseFiles>,
        quantization: Option<Quantization>,
        threads: usize,
        backend: Arc<dyn Backend>,
    ) -> Result<LoadedBase, LoadError> {
        let decoder = Arc::new(self.load_decoder(&files, quantization, threads, backend)?);
        Ok(LoadedBase { files, decoder, quantization })
    }

    /// Loads a model: its base, and its adapter onto it.
    ///
    /// # Errors
    /// If a file has a fault, the tokens differ from those of training, or the observer stops it.
    pub fn load(
        &self,
        files: ModelFiles,
        options: &LoadOptions,
        notices: &mut Vec<Notice>,
    ) -> Result<LoadedModel, LoadError> {
        let quantization = choose_quantization(&files, options.quantization, notices)?;
        let backend = Arc::clone(&options.backend);
        let base = self.load_base(Arc::clone(files.base()), quantization, options.threads, backend)?;
        LoadedModel::on(files, Arc::new(base), options.tokens, notices)
    }
}

/// The quantization of a model's base; adds a notice if the adapter's training decides it.
///
/// # Errors
/// As [`training_quantization`].
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

/// An adapter on a base that is loaded.
pub struct LoadedAdapter {
    /// Its tensors.
    pub adapter: Adapter,
    /// Its tokens.
    pub tokens: ModelTokens,
}

impl LoadedAdapter {
    /// Loads an adapter onto `base`. The base's weights are not read.
    ///
    /// # Errors
    /// If a file of the adapter has a fault, the adapter was made for a base of another shape, or the tokens
    /// differ.
    pub fn load(
        files: &AdapterFiles,
        base: &LoadedBase,
        check: TokenCheck,
        notices: &mut Vec<Notice>,
    ) -> Result<Self, LoadError> {
        let decoder = base.decoder();
        let adapter = files.load(decoder.config(), base.files().folder(), &**decoder.backend())?;
        let tokens = ModelTokens::of_adapter(files, base.files(), check, notices)?;
        tokens.tokenizer.check_fits(decoder.config())?;
        Ok(Self { adapter, tokens })
    }
}

/// A model that is ready to run: a base, an adapter if there is one, and the tokens of both.
pub struct LoadedModel {
    files: ModelFiles,
    base: Arc<LoadedBase>,
    adapter: Option<Adapter>,
    tokens: ModelTokens,
}

impl LoadedModel {
    /// Puts a model onto its base, which is loaded.
    ///
    /// # Errors
    /// As [`LoadedAdapter::load`].
    pub fn on(
        files: ModelFiles,
        base: Arc<LoadedBase>,
        check: TokenCheck,
        notices: &mut Vec<Notice>,
    ) -> Result<Self, LoadError> {
        let (adapter, tokens) = match files.adapter() {
            Some(adapter) => {
                let LoadedAdapter { adapter, tokens } = LoadedAdapter::load(adapter, &base, check, notices)?;
                (Some(adapter), tokens)
            }
            None => {
                let tokens = ModelTokens::read(&files, check, notices)?;
                tokens.tokenizer.check_fits(base.decoder().config())?;
                (None, tokens)
            }
        };
        Ok(Self { files, base, adapter, tokens })
    }

    /// The files it was loaded from.
    pub fn files(&self) -> &ModelFiles {
        &self.files
    }

    /// Folder of the adapter, or of the model without one.
    pub fn folder(&self) -> &Path {
        self.files.own_folder()
    }

    /// The decoder.
    pub fn decoder(&self) -> &Arc<Decoder> {
        self.base.decoder()
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokens.tokenizer
    }

    /// The system prompt of the training data, for conversations that set none.
    pub fn default_system(&self) -> Option<&str> {
        self.tokens.default_system.as_deref()
    }

    /// The adapter as the decoder reads it.
    pub fn lora(&self) -> Option<&dyn LoraSource> {
        self.adapter.as_ref().map(|adapter| adapter as &dyn LoraSource)
    }

    /// The name to show.
    pub fn name(&self) -> String {
        self.files.name()
    }
}
