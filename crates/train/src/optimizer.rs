//! AdamW over the flat parameter buffer of an adapter.

use std::ops::Range;
use std::path::Path;

use danlu_adapter::{Adapter, Module};
use danlu_kernels::{AdamW, Backend, BackendError, Buffer, DType, Element, from_f32};
use danlu_model::Weights;
use danlu_model::files;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::{TrainError, TrainSettings};

pub(crate) const OPTIMIZER_FILE: &str = "optimizer.safetensors";

/// Names of the moments in the file, as in PyTorch.
const MOMENTS: [&str; 2] = ["exp_avg", "exp_avg_sq"];

/// First and second moments of all parameters, with the same layout as the adapter's parameters.
#[derive(Debug)]
pub(crate) struct Optimizer {
    first: Buffer,
    second: Buffer,
    len: usize,
    /// Groups that cover all parameters in order.
    groups: Vec<ParameterGroup>,
    /// A factor of 0 or 1 for each gradient, if some parameters are frozen.
    mask: Option<Buffer>,
}

/// Parameters with the same learning rate.
#[derive(Clone, Debug, PartialEq)]
struct ParameterGroup {
    range: Range<usize>,
    /// Factor of the learning rate.
    lr_ratio: f64,
}

impl Optimizer {
    /// Creates moments for the parameters of `adapter`. All moments are zero. With `loraplus_lr_ratio`, the
    /// learning rate of `B` and of DoRA's magnitudes is multiplied by this ratio. Source: Hayou et al., 2024,
    /// <https://arxiv.org/abs/2402.12354> (LoRA+).
    pub fn new(backend: &dyn Backend, adapter: &Adapter, loraplus_lr_ratio: Option<f64>) -> Self {
        let len = adapter.num_parameters();
        let mask = adapter.trained_mask().map(|mask| {
            let mut buffer = backend.alloc(len, Element::Exact);
            backend.write(&mut buffer, 0, &mask);
            buffer
        });
        let groups = match loraplus_lr_ratio {
            None => vec![ParameterGroup { range: 0..len, lr_ratio: 1.0 }],
            Some(lr_ratio) => loraplus_groups(adapter, lr_ratio),
        };
        Self { groups, mask, ..Self::of_len(backend, len) }
    }

    fn of_len(backend: &dyn Backend, len: usize) -> Self {
        let moment = || backend.alloc(len, Element::Exact);
        let groups = vec![ParameterGroup { range: 0..len, lr_ratio: 1.0 }];
        Self { first: moment(), second: moment(), len, groups, mask: None }
    }

    /// Sets the gradients of frozen parameters to zero. These gradients then do not count in the norm, and do
    /// not change the frozen parameters.
    pub fn mask_gradients(&self, backend: &dyn Backend, grads: &mut Buffer) {
        if let Some(mask) = &self.mask {
            backend.scale_columns(grads, mask, 0, 0..1, self.len);
        }
    }

    /// Updates `params` with the gradient `grads`. The learning rate of a group replaces that of `update`.
    pub fn update(
        &mut self,
        backend: &dyn Backend,
        params: &mut Buffer,
        grads: &Buffer,
        learning_rate: f64,
        update: AdamW,
    ) {
        for ParameterGroup { range, lr_ratio } in &self.groups {
            let update = AdamW { learning_rate: (learning_rate * lr_ratio) as f32, ..update };
            backend.adamw(params, grads, &mut self.first, &mut self.second, range.clone(), update);
        }
    }

    /// Returns the temporary memory of [`Optimizer::save`] in bytes: both moments, and the contents of the
    /// file.
    pub fn saving_bytes(len: usize) -> u64 {
        2 * (2 * 4 * len as u64)
    }

    /// Writes both moments as f32.
    pub fn save(&self, folder: &Path, backend: &dyn Backend) -> Result<(), TrainError> {
        let read = |buffer: &Buffer| -> Result<Vec<u8>, BackendError> {
            let (mut values, mut bytes) = (vec![0.0; self.len], vec![0; self.len * 4]);
            backend.read(&mut values, buffer, 0)?;
            from_f32(DType::F32, &values, &mut bytes);
            Ok(bytes)
        };
        let bytes = [read(&self.first)?, read(&self.second)?];
        let view = |data| TensorView::new(Dtype::F32, vec![self.len], data).expect("four bytes an element");
        let views = MOMENTS.into_iter().zip(bytes.iter().map(|data| view(data)));
        let file = safetensors::serialize(views, None).expect("two tensors with names of their own");
        Ok(files::write_atomic(&folder.join(OPTIMIZER_FILE), &file)?)
    }

    pub fn load(&mut self, folder: &Path, backend: &dyn Backend) -> Result<(), TrainError> {
        let path = folder.join(OPTIMIZER_FILE);
        // The file contains two f32 values per parameter and a header. A larger file is invalid.
        let limit = (self.len as u64 * 8).saturating_add(1 << 16);
        let found = Weights::from_bytes(&path, files::read_bounded(&path, limit)?)?;
        let [first, second] = MOMENTS.map(|name| found.vector_f32(name, self.len));
        let (first, second) = (first?, second?);
        if let Some(i) = first.iter().position(|v| !v.is_finite()) {
            return Err(TrainError::damaged(&path, format!("`exp_avg` holds {} at element {i}", first[i])));
        }
        if let Some(i) = second.iter().position(|v| !v.is_finite() || *v < 0.0) {
            return Err(TrainError::damaged(
                &path,
                format!("`exp_avg_sq` holds {} at element {i}", second[i]),
            ));
        }
        backend.write(&mut self.first, 0, &first);
        backend.write(&mut self.second, 0, &second);
        Ok(())
    }
}

/// Returns the groups of LoRA+: for each module, `A`, and then `B` with DoRA's magnitudes.
fn loraplus_groups(adapter: &Adapter, lr_ratio: f64) -> Vec<ParameterGroup> {
    let ends = adapter.modules().iter().skip(1).map(|next| next.a).chain([adapter.num_parameters()]);
    let of_module = |(module, end): (&Module, usize)| {
        let Module { a, b, .. } = *module;
        [ParameterGroup { range: a..b, lr_ratio: 1.0 }, ParameterGroup { range: b..end, lr_ratio }]
    };
    adapter.modules().iter().zip(ends).flat_map(of_module).collect()
}

/// Returns the AdamW update of step `step`. `norm` is the norm of the gradient, which is clipped as in
/// `torch.nn.utils.clip_grad_norm_`.
pub(crate) fn adamw(settings: &TrainSettings, learning_rate: f64, step: u64, norm: f64) -> AdamW {
    AdamW {
        learning_rate: learning_rate as f32,
        beta1: settings.adam_beta1 as f32,
        beta2: settings.adam_beta2 as f32,
        eps: settings.adam_epsilon as f32,
        weight_decay: settings.weight_decay as f32,
        // `Trainer::new` rejects runs of 2^32 or more steps.
        step: u32::try_from(step).unwrap_or(u32::MAX),
        grad_scale: clip_factor(norm, settings.max_grad_norm) as f32,
    }
}

/// Returns the clipping factor `min(1, max_norm / (norm + 1e-6))`, or 1 if `max_norm` is 0.
pub(crate) fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    if max_norm > 0.0 { (max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use danlu_adapter::LoraConfig;
    use danlu_kernels::Reference;
    use danlu_model::Preset;

    use super::*;

    #[test]
    fn clipping_only_ever_shrinks() {
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert!((clip_factor(4.0, 1.0) - 0.25).abs() < 1e-6);
        assert_eq!(clip_factor(4.0, 0.0), 1.0);
        assert_eq!(clip_factor(0.0, 1.0), 1.0);
    }

    #[test]
    fn loraplus_groups_cover_every_parameter_once() {
        let config = LoraConfig { use_dora: true, ..LoraConfig::new(2, 4.0) };
        let adapter = Adapter::init(config, &Preset::Base8m.config(), 0, &Reference::new()).unwrap();
        let groups = loraplus_groups(&adapter, 16.0);
        assert_eq!(groups.len(), 2 * adapter.modules().len());
        let mut end = 0;
        for group in &groups {
            assert_eq!(group.range.start, end);
            end = group.range.end;
        }
        assert_eq!(end, adapter.num_parameters());
        let module = &adapter.modules()[3];
        assert_eq!(groups[6], ParameterGroup { range: module.a..module.b, lr_ratio: 1.0 });
        let magnitude = module.magnitude.unwrap();
        assert_eq!(groups[7].range, module.b..magnitude + module.d_out);
    }

    #[test]
    fn the_state_survives_the_trip_and_a_damaged_one_is_refused() {
        let backend = Reference::new();
        let folder = tempfile::tempdir().unwrap();
        let mut saved = Optimizer::of_len(&backend, 3);
        backend.write(&mut saved.first, 0, &[1.0, -2.0, 1e-30]);
        backend.write(&mut saved.second, 0, &[1.0, 0.0, 1e-38]);
        saved.save(folder.path(), &backend).unwrap();
        let mut loaded = Optimizer::of_len(&backend, 3);
        loaded.load(folder.path(), &backend).unwrap();
        assert_eq!(loaded.first.host_slice(), saved.first.host_slice());
        assert_eq!(loaded.second.host_slice(), saved.second.host_slice());

        let error = Optimizer::of_len(&backend, 4).load(folder.path(), &backend).unwrap_err();
        assert!(error.to_string().contains("exp_avg"), "{error}");
        for (bad, name) in [(f32::NAN, "`exp_avg`"), (-1.0, "`exp_avg_sq`")] {
            let mut spoilt = Optimizer::of_len(&backend, 3);
            let buffer = if name == "`exp_avg`" { &mut spoilt.first } else { &mut spoilt.second };
            backend.write(buffer, 1, &[bad]);
            spoilt.save(folder.path(), &backend).unwrap();
            let error = loaded.load(folder.path(), &backend).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("element 1"), "{error}");
        }
    }
}
