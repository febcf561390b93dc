//! DoRA: every output of a projection has a separate magnitude. Source: Liu et al., 2024,
//! <https://arxiv.org/abs/2402.09353>.
//!
//! ```text
//! out = m / |W + scaling · B A| · (inp Wᵀ + scaling · (inp Aᵀ) Bᵀ)
//! ```
//!
//! `|…|` is the norm of each row. The norms depend on the base, so an adapter must be prepared for the base
//! that it is used with.

use std::thread;

use danlu_kernels::{Buffer, Element, FamilyOperation, Matrix, MatrixStorage};
use danlu_model::{Decoder, LoraSource as _, ModelError};

use crate::merge_rows::{Delta, add_delta};
use crate::{Adapter, AdapterError, InitLoraWeights, Module};

/// Number of elements in a block of rows: 512 KB of f32.
const BLOCK_ELEMENTS: usize = 1 << 17;

/// The factors `m / |W + scaling · B A|` of all modules.
#[derive(Debug)]
pub(crate) struct DoraFactors {
    pub values: Buffer,
    pub inverse_norms: Buffer,
    /// Index of the first factor of each module.
    pub offsets: Vec<usize>,
}

/// Returns the factor for one row of `W + scaling · B A`.
pub(crate) fn factor(magnitude: f32, row: &[f32]) -> f32 {
    (f64::from(magnitude) / norm(row)) as f32
}

fn norm(row: &[f32]) -> f64 {
    row.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt()
}

impl Adapter {
    /// Computes the factors of a DoRA adapter on its base with `threads` threads. Computes the initial values
    /// that depend on the base. Any other adapter needs no preparation.
    ///
    /// Training calls this function in every step, because the norms change with `A` and `B`. The first call
    /// for an untrained adapter sets the magnitudes to the norms, so that the adapter has no effect.
    ///
    /// # Errors
    /// If the back end cannot scale outputs, or if a factor is not finite. Also returns an error if initial
    /// values depend on weights that are on a device, because the host computes these values.
    pub fn prepare(&mut self, decoder: &Decoder, threads: usize) -> Result<(), AdapterError> {
        if !self.config.use_dora && !self.needs_base_values {
            return Ok(());
        }
        let backend = &**decoder.backend();
        let is_on_device = backend.computes()
            && self.modules().first().is_some_and(|module| {
                let weight = decoder.projection(module.layer, module.projection);
                matches!(weight.storage(), MatrixStorage::Opaque(_))
            });
        if self.needs_base_values && is_on_device {
            let method = InitLoraWeights::Olora.name();
            return Err(AdapterError::WeightsOnDevice { method, backend: backend.name() });
        }
        if self.needs_base_values && backend.computes() {
            self.write_olora_values(decoder);
            self.needs_base_values = false;
        }
        if !self.config.use_dora {
            return Ok(());
        }
        if !backend.supports(FamilyOperation::ColumnScale) {
            let (family, backend) = ("dora".to_owned(), backend.name());
            let operation = FamilyOperation::ColumnScale;
            return Err(ModelError::MissingOperation { family, backend, operation }.into());
        }
        let mut offsets = Vec::with_capacity(self.modules().len());
        let mut outputs = 0;
        for module in self.modules() {
            offsets.push(outputs);
            outputs += module.d_out;
        }
        let reserve = || backend.alloc(outputs, Element::Exact);
        let (mut values, mut inverse_norms) = match self.factors.take() {
            Some(factors) => (factors.values, factors.inverse_norms),
            None => (reserve(), reserve()),
        };
        // A back end that only plans memory has no weights, so no factors are computed.
        if backend.computes() {
            self.write_factors(decoder, threads, [&mut values, &mut inverse_norms])?;
        }
        self.factors = Some(DoraFactors { values, inverse_norms, offsets });
        Ok(())
    }

    fn write_factors(
        &mut self,
        decoder: &Decoder,
        threads: usize,
        [values, inverse_norms]: [&mut Buffer; 2],
    ) -> Result<(), AdapterError> {
        let backend = &**decoder.backend();
        let mut params = self.to_vec(backend)?;
        let norms = match self.norms_on_device(decoder, values)? {
            Some(norms) => norms,
            None => norms(self.modules(), &params, decoder, threads),
        };
        if self.needs_magnitudes {
            for (module, norms) in self.modules().iter().zip(&norms) {
                let at = module.magnitude.expect("every module of a DoRA adapter has magnitudes");
                params[at..][..norms.len()].copy_from_slice(norms);
            }
            backend.write(&mut self.params, 0, &params);
            self.needs_magnitudes = false;
        }
        let (mut factors, mut inverse) = (Vec::new(), Vec::new());
        for (module, norms) in self.modules().iter().zip(&norms) {
            let at = module.magnitude.expect("every module of a DoRA adapter has magnitudes");
            let of_module = params[at..][..norms.len()].iter().zip(norms);
            factors.extend(of_module.map(|(m, norm)| (f64::from(*m) / f64::from(*norm)) as f32));
            inverse.extend(norms.iter().map(|norm| 1.0 / norm));
            let start = factors.len() - norms.len();
            if let Some(element) = factors[start..].iter().position(|factor| !factor.is_finite()) {
                let name = format!("{}.{}", module.path(), crate::adapter::MAGNITUDE);
                return Err(AdapterError::NotFinite { name, value: factors[start + element], element });
            }
        }
        backend.write(values, 0, &factors);
        backend.write(inverse_norms, 0, &inverse);
        Ok(())
    }

    /// Computes the norms of all modules on the back end, in the memory of `scratch`. Returns `None` if the
    /// weights are in host memory.
    fn norms_on_device(
        &self,
        decoder: &Decoder,
        scratch: &mut Buffer,
    ) -> Result<Option<Vec<Vec<f32>>>, AdapterError> {
        let (backend, mut at) = (&**decoder.backend(), 0);
        for module in self.modules() {
            let &Module { layer, projection, .. } = module;
            let lora = self.pair(layer, projection).expect("a module has a pair of matrices");
            if !backend.row_norms(scratch, at, decoder.projection(layer, projection), lora) {
                return Ok(None);
            }
            at += module.d_out;
        }
        let mut all = vec![0.0; at];
        backend.read(&mut all, scratch, 0)?;
        let mut rest = &all[..];
        let of_module = |module: &Module| {
            let (norms, after) = rest.split_at(module.d_out);
            rest = after;
            norms.to_vec()
        };
        Ok(Some(self.modules().iter().map(of_module).collect()))
    }
}

/// Returns the norms of the rows of `W + scaling · B A` of each module, for weights in host memory.
fn norms(modules: &[Module], params: &[f32], decoder: &Decoder, threads: usize) -> Vec<Vec<f32>> {
    let threads = threads.clamp(1, modules.len().max(1));
    let of = |module: &Module| of_module(module, params, decoder.projection(module.layer, module.projection));
    let mut parts: Vec<_> = thread::scope(|scope| {
        let part = |part: usize| {
            let of = &of;
            scope.spawn(move || modules.iter().skip(part).step_by(threads).map(of).collect::<Vec<_>>())
        };
        let running: Vec<_> = (0..threads).map(part).collect();
        running.into_iter().map(|part| part.join().expect("no norm panics").into_iter()).collect()
    });
    (0..modules.len()).map(|i| parts[i % threads].next().expect("a part has each of its modules")).collect()
}

fn of_module(module: &Module, params: &[f32], weight: &Matrix) -> Vec<f32> {
    let &Module { rank, d_in, d_out, scaling, a, b, .. } = module;
    let (a, b) = (&params[a..][..rank * d_in], &params[b..][..d_out * rank]);
    let step = (BLOCK_ELEMENTS / d_in).max(1);
    let mut norms = Vec::with_capacity(d_out);
    let mut values = vec![0.0; step.min(d_out) * d_in];
    for start in (0..d_out).step_by(step) {
        let rows = start..d_out.min(start + step);
        let values = &mut values[..rows.len() * d_in];
        weight.rows_to_f32(rows.clone(), values);
        let b = &b[start * rank..][..rows.len() * rank];
        add_delta(values, Delta { a, b, rank, scaling, magnitude: None }, d_in);
        norms.extend(values.chunks_exact(d_in).map(|row| norm(row) as f32));
    }
    norms
}
