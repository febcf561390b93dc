//! DoRA: every output of a projection has a magnitude of its own. Source: Liu et al., 2024,
//! <https://arxiv.org/abs/2402.09353>.
//!
//! ```text
//! out = m / |W + scaling · B A| · (inp Wᵀ + scaling · (inp Aᵀ) Bᵀ)
//! ```
//!
//! The norm is that of a row. It depends on the base, so an adapter is prepared for the base that it runs on.

use std::thread;

use danlu_kernels::{Buffer, Element, FamilyOperation, Matrix};
use danlu_model::{Decoder, ModelError};

use crate::merge_rows::{Delta, add_delta};
use crate::{Adapter, AdapterError, Module};

/// Elements of a block of rows: 512 KB of f32.
const BLOCK_ELEMENTS: usize = 1 << 17;

/// Factors `m / |W + scaling · B A|` of all modules.
#[derive(Debug)]
pub(crate) struct DoraFactors {
    pub values: Buffer,
    /// Index of each module's first factor.
    pub offsets: Vec<usize>,
}

/// Returns the factor of a row of `W + scaling · B A`.
pub(crate) fn factor(magnitude: f32, row: &[f32]) -> f32 {
    let norm = row.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
    (f64::from(magnitude) / norm) as f32
}

impl Adapter {
    /// Computes the factors of a DoRA adapter on its base, by `threads` threads. Other adapters need no preparation.
    ///
    /// # Errors
    /// If the back end cannot scale outputs, or a factor is not finite.
    pub fn prepare(&mut self, decoder: &Decoder, threads: usize) -> Result<(), AdapterError> {
        if !self.config.use_dora {
            return Ok(());
        }
        let backend = &**decoder.backend();
        if !backend.supports(FamilyOperation::ColumnScale) {
            let (family, backend) = ("dora".to_owned(), backend.name());
            let operation = FamilyOperation::ColumnScale;
            return Err(ModelError::MissingOperation { family, backend, operation }.into());
        }
        let params = self.to_vec(backend)?;
        let modules = self.modules();
        let threads = threads.clamp(1, modules.len().max(1));
        let of_module =
            |module: &Module| of_module(module, &params, decoder.projection(module.layer, module.projection));
        let parts: Vec<Vec<Vec<f32>>> = thread::scope(|scope| {
            let part = |part: usize| {
                let of_module = &of_module;
                scope.spawn(move || modules.iter().skip(part).step_by(threads).map(of_module).collect())
            };
            let running: Vec<_> = (0..threads).map(part).collect();
            running.into_iter().map(|part| part.join().expect("no factor panics")).collect()
        });
        let (mut values, mut offsets) = (Vec::new(), Vec::new());
        for (i, module) in modules.iter().enumerate() {
            let factors = &parts[i % threads][i / threads];
            if let Some(element) = factors.iter().position(|factor| !factor.is_finite()) {
                let name = format!("{}.{}", module.path(), crate::adapter::MAGNITUDE);
                return Err(AdapterError::NotFinite { name, value: factors[element], element });
            }
            offsets.push(values.len());
            values.extend_from_slice(factors);
        }
        let mut buffer = backend.alloc(values.len(), Element::Exact);
        backend.write(&mut buffer, 0, &values);
        self.factors = Some(DoraFactors { values: buffer, offsets });
        Ok(())
    }
}

/// The factors of one module, over the weight of its projection.
fn of_module(module: &Module, params: &[f32], weight: &Matrix) -> Vec<f32> {
    let &Module { rank, d_in, d_out, scaling, a, b, magnitude, .. } = module;
    let magnitude = magnitude.expect("every module of a DoRA adapter has magnitudes");
    let (a, b) = (&params[a..][..rank * d_in], &params[b..][..d_out * rank]);
    let step = (BLOCK_ELEMENTS / d_in).max(1);
    let mut factors = Vec::with_capacity(d_out);
    let mut values = vec![0.0; step.min(d_out) * d_in];
    for start in (0..d_out).step_by(step) {
        let rows = start..d_out.min(start + step);
        let values = &mut values[..rows.len() * d_in];
        weight.rows_to_f32(rows.clone(), values);
        let b = &b[start * rank..][..rows.len() * rank];
        add_delta(values, Delta { a, b, rank, scaling, magnitude: None }, d_in);
        let magnitudes = &params[magnitude + start..][..rows.len()];
        factors.extend(magnitudes.iter().zip(values.chunks_exact(d_in)).map(|(m, row)| factor(*m, row)));
    }
    factors
}
