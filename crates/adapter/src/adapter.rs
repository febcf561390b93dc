//! An adapter in memory: one flat f32 buffer, and the offsets of each module's matrices.

use std::fmt;
use std::path::{Path, PathBuf};

use danlu_kernels::{Backend, BackendError, Buffer, Element, LoraRef};
use danlu_model::{LoraSource, ModelConfig, OutputFactors, Projection, Weights};

#[cfg(doc)]
use crate::InitLoraWeights;
use crate::base_changes::{BaseChanges, BaseScope};
use crate::config::TargetModules;
use crate::dora::DoraFactors;
use crate::{AdapterError, AdapterNote, LoraConfig, targets};

/// One adapted projection, with the offsets of its matrices in [`Adapter::params`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Module {
    /// Layer number, starting at 0.
    pub layer: usize,
    /// Projection within the layer.
    pub projection: Projection,
    /// Rank `R`.
    pub rank: usize,
    /// Number of inputs, `IN`.
    pub d_in: usize,
    /// Number of outputs, `OUT`.
    pub d_out: usize,
    /// Scaling factor: `alpha / rank`, or `alpha / sqrt(rank)` for rsLoRA.
    pub scaling: f32,
    /// Offset of `A (R, IN)`, in elements.
    pub a: usize,
    /// Offset of `B (OUT, R)`, in elements.
    pub b: usize,
    /// Offset of the magnitudes `(OUT)` of DoRA, in elements.
    pub magnitude: Option<usize>,
}

impl Module {
    /// Returns the module's name in a checkpoint: `model.layers.3.self_attn.q_proj`.
    pub fn path(&self) -> String {
        self.projection.module_path(self.layer)
    }

    /// Returns `A`, `B` and DoRA's magnitudes, with the names that PEFT uses.
    pub fn tensors(&self) -> impl Iterator<Item = Tensor> + use<> {
        let path = self.path();
        let tensor = |name: &str, shape: &[usize], offset| Tensor {
            name: format!("{PREFIX}{path}.{name}"),
            shape: shape.to_vec(),
            offset,
        };
        let pair = [
            tensor("lora_A.weight", &[self.rank, self.d_in], self.a),
            tensor("lora_B.weight", &[self.d_out, self.rank], self.b),
        ];
        let magnitude = self.magnitude.map(|offset| tensor(MAGNITUDE, &[self.d_out], offset));
        pair.into_iter().chain(magnitude)
    }
}

/// PEFT's name for DoRA's magnitudes.
pub(crate) const MAGNITUDE: &str = "lora_magnitude_vector";

/// Prefix of module paths in PEFT's files.
pub(crate) const PREFIX: &str = "base_model.model.";

/// One tensor of an adapter file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// PEFT's name: `base_model.model.<module path>.lora_A.weight`.
    pub name: String,
    /// Number of rows and columns, or the length of a vector.
    pub shape: Vec<usize>,
    /// Offset in [`Adapter::params`], in elements.
    pub offset: usize,
}

impl Tensor {
    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Returns `false`, because every rank is at least 1.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Low-rank matrices `A` and `B`, and DoRA's magnitudes, for the projections of one base model.
///
/// Gradients and optimizer state are buffers of [`num_parameters`](Adapter::num_parameters) elements. These
/// buffers have the same layout as the parameters, so one AdamW call updates everything.
pub struct Adapter {
    /// Configuration of the adapter.
    pub config: LoraConfig,
    /// The matrices `A` and `B` of each module, and the magnitudes of DoRA, in the order of
    /// [`modules`](Adapter::modules).
    pub params: Buffer,
    modules: Vec<Module>,
    /// The index in `modules` of each projection, at the position that `place` returns. `None` if the
    /// projection is not adapted.
    by_place: Vec<Option<u32>>,
    source: Option<PathBuf>,
    pub(crate) notes: Vec<AdapterNote>,
    pub(crate) changes: Option<BaseChanges>,
    /// DoRA's factors for each module on the current base. [`Adapter::prepare`] computes these factors.
    pub(crate) factors: Option<DoraFactors>,
    /// Whether DoRA's magnitudes still have to be set to the norms of the base.
    pub(crate) needs_magnitudes: bool,
    /// Whether `A` and `B` still have to be computed from the base.
    pub(crate) needs_base_values: bool,
    /// Whether the second half of each rank is frozen. This half subtracts the initial product `B A`, so that
    /// training starts from the base.
    freezes_start: bool,
    /// `target_modules` as it is written to the adapter's file.
    pub(crate) saved_targets: TargetModules,
    /// Whether the base also has a vision tower. The tensor names in files then contain `language_model`.
    is_nested: bool,
}

impl Adapter {
    /// Returns an untrained adapter, which has no effect. The method [`InitLoraWeights`] of the configuration
    /// determines `A` and `B`. A method that depends on the base, and the magnitudes of DoRA, are completed
    /// by the first call of [`Adapter::prepare`].
    ///
    /// Each value depends only on `seed`, layer, projection and index. An additional target does not change
    /// the values of the other targets.
    ///
    /// # Errors
    /// If the configuration does not fit the model.
    pub fn init(
        config: LoraConfig,
        model: &ModelConfig,
        seed: u64,
        backend: &dyn Backend,
    ) -> Result<Self, AdapterError> {
        let method = config.init_lora_weights;
        let config = config.converted();
        let modules = targets::resolve(&config, model)?;
        let mut adapter = Self::zeroed(config, modules, model, backend, None);
        adapter.write_initial_values(method, seed, backend)?;
        adapter.needs_base_values = method.changes_base();
        adapter.freezes_start = method.changes_base();
        adapter.needs_magnitudes = adapter.config.use_dora;
        Ok(adapter)
    }

    /// Returns the adapter with another configuration, so that a run can continue from it. The modules must
    /// stay the same.
    ///
    /// # Errors
    /// If the configuration does not fit the model, or selects other modules.
    pub fn with_config(self, config: LoraConfig, model: &ModelConfig) -> Result<Self, AdapterError> {
        let modules = targets::resolve(&config, model)?;
        if let Some((own, _)) = self.modules.iter().zip(&modules).find(|(own, other)| own != other) {
            return Err(AdapterError::OtherModule { module: own.path() });
        }
        if modules.len() != self.modules.len() {
            let longer = if modules.len() > self.modules.len() { &modules } else { &self.modules };
            let module = longer[modules.len().min(self.modules.len())].path();
            return Err(AdapterError::OtherModule { module });
        }
        let saved_targets = config.targets_of_model(model);
        Ok(Self { config, saved_targets, source: None, notes: Vec::new(), ..self })
    }

    /// Takes the parameters of an adapter with the same modules.
    ///
    /// # Panics
    /// If the modules differ.
    pub fn replace_params(&mut self, trained: Self) {
        assert!(trained.modules == self.modules, "the modules of both adapters are equal");
        self.params = trained.params;
        // These parameters include DoRA's magnitudes and values computed from the base.
        (self.needs_base_values, self.needs_magnitudes) = (false, false);
    }

    /// Returns a factor of 0 for each frozen parameter and of 1 for each trained parameter. Returns `None` if
    /// all parameters are trained.
    pub fn trained_mask(&self) -> Option<Vec<f32>> {
        if !self.freezes_start {
            return None;
        }
        let mut mask = vec![1.0; self.num_parameters()];
        for &Module { rank, d_in, d_out, a, b, .. } in &self.modules {
            let half = rank / 2;
            mask[a + half * d_in..a + rank * d_in].fill(0.0);
            mask[b..][..d_out * rank].chunks_exact_mut(rank).for_each(|row| row[half..].fill(0.0));
        }
        Some(mask)
    }

    pub(crate) fn zeroed(
        config: LoraConfig,
        modules: Vec<Module>,
        model: &ModelConfig,
        backend: &dyn Backend,
        source: Option<&Path>,
    ) -> Self {
        let mut by_place = vec![None; model.num_hidden_layers * Projection::ALL.len()];
        for (i, module) in modules.iter().enumerate() {
            by_place[place(module.layer, module.projection)] = Some(i as u32);
        }
        let params = backend.alloc(modules.last().map_or(0, end), Element::Exact);
        let source = source.map(Path::to_owned);
        let saved_targets = config.targets_of_model(model);
        Self {
            config,
            params,
            modules,
            by_place,
            source,
            notes: Vec::new(),
            changes: None,
            factors: None,
            needs_magnitudes: false,
            needs_base_values: false,
            freezes_start: false,
            saved_targets,
            is_nested: model.is_nested,
        }
    }

    /// Returns PEFT's name for a tensor of this adapter. PEFT's name differs from [`Tensor::name`] if the
    /// base also has a vision tower.
    pub fn file_name(&self, tensor: &Tensor) -> String {
        match (self.is_nested, tensor.name.strip_prefix("base_model.model.model.")) {
            (true, Some(rest)) => format!("base_model.model.model.language_model.{rest}"),
            _ => tensor.name.clone(),
        }
    }

    /// Returns the adapted projections, ordered by layer and then by [`Projection`].
    pub fn modules(&self) -> &[Module] {
        &self.modules
    }

    /// Returns the tensors of the adapter file, in the order of their offsets.
    pub fn tensors(&self) -> impl Iterator<Item = Tensor> + '_ {
        self.modules.iter().flat_map(Module::tensors)
    }

    /// Returns the number of trainable parameters.
    pub fn num_parameters(&self) -> usize {
        self.modules.last().map_or(0, end)
    }

    /// Returns the folder that the adapter was loaded from. An untrained adapter has no folder.
    pub fn source(&self) -> Option<&Path> {
        self.source.as_deref()
    }

    /// Returns the differences between the loaded files and the files that PEFT writes.
    pub fn notes(&self) -> &[AdapterNote] {
        &self.notes
    }

    /// Returns whether the adapter replaces tensors of its base, such as the embedding table.
    pub fn changes_base(&self) -> bool {
        self.changes.is_some()
    }

    /// Returns the base with the tensors that the adapter replaces, or `None` if the adapter replaces no
    /// tensor. The adapter's low-rank matrices must be used with this changed base.
    ///
    /// # Errors
    /// If a tensor of the base is missing or invalid.
    pub fn changed_base(
        &self,
        model: &ModelConfig,
        base: &Weights,
    ) -> Result<Option<(ModelConfig, Weights)>, AdapterError> {
        self.changes.as_ref().map(|changes| changes.apply(model, base, BaseScope::Everything)).transpose()
    }

    /// Returns the base with rows for the adapter's new tokens, but without other changes. This base accepts
    /// text that was encoded with the adapter's tokenizer. Returns `None` if the adapter replaces no tensor.
    ///
    /// # Errors
    /// The same errors as [`Adapter::changed_base`].
    pub fn resized_base(
        &self,
        model: &ModelConfig,
        base: &Weights,
    ) -> Result<Option<(ModelConfig, Weights)>, AdapterError> {
        self.changes.as_ref().map(|changes| changes.apply(model, base, BaseScope::NewRows)).transpose()
    }

    /// Returns all parameters, in the order of their offsets.
    ///
    /// # Errors
    /// If an operation of the device fails.
    pub fn to_vec(&self, backend: &dyn Backend) -> Result<Vec<f32>, BackendError> {
        let mut values = vec![0.0; self.num_parameters()];
        backend.read(&mut values, &self.params, 0)?;
        Ok(values)
    }

    /// Returns the module of a projection, if the projection is adapted.
    pub fn module(&self, layer: usize, projection: Projection) -> Option<&Module> {
        let index = (*self.by_place.get(place(layer, projection))?)?;
        Some(&self.modules[index as usize])
    }
}

impl LoraSource for Adapter {
    fn pair(&self, layer: usize, projection: Projection) -> Option<LoraRef<'_>> {
        let &Module { rank, d_in, d_out, scaling, a, b, .. } = self.module(layer, projection)?;
        Some(LoraRef { params: &self.params, a, b, rank, d_in, d_out, scaling })
    }

    fn output_factors(&self, layer: usize, projection: Projection) -> Option<OutputFactors<'_>> {
        let index = (*self.by_place.get(place(layer, projection))?)? as usize;
        let magnitude = self.modules[index].magnitude?;
        let factors = self.factors.as_ref().expect("an adapter is prepared for its base before it runs");
        let DoraFactors { values, inverse_norms, offsets } = factors;
        Some(OutputFactors { values, inverse_norms, offset: offsets[index], magnitude })
    }

    fn scales_outputs(&self) -> bool {
        self.config.use_dora
    }
}

impl fmt::Debug for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Adapter({} modules, {} parameters)", self.modules.len(), self.num_parameters())
    }
}

fn place(layer: usize, projection: Projection) -> usize {
    layer * Projection::ALL.len() + projection.index()
}

fn end(module: &Module) -> usize {
    module.magnitude.map_or(module.b + module.d_out * module.rank, |magnitude| magnitude + module.d_out)
}
