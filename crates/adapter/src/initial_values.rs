//! Initial values of `A` and `B`, for the methods of PEFT's `init_lora_weights`.
//!
//! | method | `A` | `B` | source |
//! |---|---|---|---|
//! | default | uniform in `±1/√IN` | 0 | Kaiming, with `a = √5` |
//! | gaussian | normal with deviation `1/R` | 0 | |
//! | orthogonal | `(N₁ Q_even)ᵀ / 10` | `N₂ Q_odd / 10` | PEFT, `orthogonal_init` |
//! | olora | `R_r` | `Q_r` | Büyükakyüz, 2024, <https://arxiv.org/abs/2406.01775> |
//!
//! For `orthogonal`, `N₁` and `N₂` are normal, and the rows of an orthogonal matrix are divided into
//! `Q_even` and `Q_odd`. `B A` is therefore zero, although neither matrix is.
//!
//! For `olora`, `Q_r (OUT, R)` and `R_r (R, IN)` are the first columns and rows of the QR decomposition of
//! the weight `W`. PEFT subtracts `scaling · Q_r R_r` from the base. danlu leaves the base unchanged: an
//! adapter of rank `2 R` contains the subtracted product as frozen columns. PEFT converts an OLoRA adapter
//! to the same form when it saves plain LoRA.
//!
//! ```text
//! A' = [A; R_r]    B' = [B, -Q_r]    scaling · B' A' = scaling · (B A - Q_r R_r)
//! ```

use std::fmt;
use std::str::FromStr;

use danlu_kernels::{Backend, Matrix, rng};
use danlu_model::Decoder;
use serde::{Deserialize, Serialize};

use crate::{Adapter, AdapterError, LoraConfig, Module};

/// Key of the random stream for initial values of the default method. No other random stream uses this key.
const INIT_STREAM: u64 = 0x6c6f_7261_5f41;

/// Key of the random stream for normal numbers.
const NORMAL_STREAM: u64 = 0x6e6f_726d_616c;

/// Methods of PEFT that danlu lacks.
const PEFT_METHODS: [&str; 6] = ["pissa", "loftq", "eva", "corda", "lora_ga", "mica"];

/// A method that sets the matrices `A` and `B` before training. The names are the same as in PEFT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InitLoraWeights {
    /// PEFT's default, `True`.
    #[default]
    Default,
    /// `A` is normal.
    Gaussian,
    /// `A` and `B` are not zero, and their product is.
    Orthogonal,
    /// `A` and `B` are parts of the QR decomposition of the weight. PEFT subtracts their product from the
    /// base. danlu leaves the base unchanged and subtracts the product with frozen columns of the adapter.
    Olora,
}

impl InitLoraWeights {
    /// All methods.
    pub const ALL: [Self; 4] = [Self::Default, Self::Gaussian, Self::Orthogonal, Self::Olora];

    /// Returns PEFT's name of the method, such as `olora`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Gaussian => "gaussian",
            Self::Orthogonal => "orthogonal",
            Self::Olora => "olora",
        }
    }

    /// Returns whether PEFT subtracts the initial product from the base with this method. danlu's adapter
    /// then has twice the rank, and half of the rank is frozen.
    pub fn changes_base(self) -> bool {
        self == Self::Olora
    }
}

impl fmt::Display for InitLoraWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for InitLoraWeights {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // PEFT's value for the default is `True`.
        let name = if text.eq_ignore_ascii_case("true") { "default" } else { text };
        Self::ALL.into_iter().find(|method| method.name() == name.to_ascii_lowercase()).ok_or_else(|| {
            match PEFT_METHODS.iter().find(|method| text.starts_with(**method)) {
                Some(method) => {
                    format!("danlu has no {method}; choose default, gaussian, orthogonal or olora")
                }
                None => "choose default, gaussian, orthogonal or olora".to_owned(),
            }
        })
    }
}

impl LoraConfig {
    /// Returns the configuration of the file that [`Adapter::save`] writes. If half of the rank is frozen,
    /// ranks and alphas become those of the rank `2 R`.
    pub(crate) fn converted(mut self) -> Self {
        if !self.init_lora_weights.changes_base() {
            return self;
        }
        // The scaling must stay the same: alpha / R, or alpha / √R with rsLoRA.
        let factor = if self.use_rslora { 2f64.sqrt() } else { 2.0 };
        self.r = self.r.saturating_mul(2);
        self.lora_alpha *= factor;
        self.rank_pattern.iter_mut().for_each(|(_, rank)| *rank = rank.saturating_mul(2));
        self.alpha_pattern.iter_mut().for_each(|(_, alpha)| *alpha *= factor);
        self.init_lora_weights = InitLoraWeights::Default;
        self
    }
}

impl Adapter {
    /// Writes the initial values that do not depend on the base.
    pub(crate) fn write_initial_values(
        &mut self,
        method: InitLoraWeights,
        seed: u64,
        backend: &dyn Backend,
    ) -> Result<(), AdapterError> {
        for module in self.modules().to_vec() {
            let key =
                |stream| rng::key(&[seed, stream, module.layer as u64, module.projection.index() as u64]);
            let (rank, d_in) = (module.rank, module.d_in);
            match method {
                InitLoraWeights::Default => {
                    let (key, bound) = (key(INIT_STREAM), 1.0 / (d_in as f32).sqrt());
                    let uniform = |i| (2.0 * rng::uniform(key, i) - 1.0) * bound;
                    let a: Vec<f32> = (0..(rank * d_in) as u64).map(uniform).collect();
                    backend.write(&mut self.params, module.a, &a);
                }
                InitLoraWeights::Gaussian => {
                    let deviation = 1.0 / rank as f64;
                    let a = normals(key(NORMAL_STREAM), rank * d_in);
                    let a: Vec<f32> = a.into_iter().map(|v| (v * deviation) as f32).collect();
                    backend.write(&mut self.params, module.a, &a);
                }
                InitLoraWeights::Orthogonal => {
                    let [a, b] = orthogonal_values(&module, key(NORMAL_STREAM))?;
                    backend.write(&mut self.params, module.a, &a);
                    backend.write(&mut self.params, module.b, &b);
                }
                // `Adapter::prepare` writes these values, because they depend on the base.
                InitLoraWeights::Olora => check_olora_rank(&module)?,
            }
        }
        Ok(())
    }

    /// Writes the initial values of `olora`, which depend on the base.
    pub(crate) fn write_olora_values(&mut self, decoder: &Decoder) {
        let backend = &**decoder.backend();
        for module in self.modules().to_vec() {
            let weight = decoder.projection(module.layer, module.projection);
            let [a, b] = olora_values(weight, module.rank / 2);
            backend.write(&mut self.params, module.a, &a);
            backend.write(&mut self.params, module.b, &b);
        }
    }
}

/// Returns `A` and `B` of the method `orthogonal`.
fn orthogonal_values(module: &Module, key: u64) -> Result<[Vec<f32>; 2], AdapterError> {
    let &Module { rank, d_in, d_out, .. } = module;
    if !rank.is_multiple_of(2) {
        return Err(AdapterError::Value {
            key: "init_lora_weights".to_owned(),
            found: "orthogonal".to_owned(),
            expected: format!("default or gaussian for the odd rank {rank} of `{}`", module.path()),
        });
    }
    let half = rank / 2;
    let mut columns: Vec<Vec<f64>> =
        normals(rng::key(&[key, 0]), rank * rank).chunks(rank).map(<[f64]>::to_vec).collect();
    orthonormalize(&mut columns);
    // The matrix with orthonormal columns is square, so its rows are orthonormal too. These columns serve as
    // the rows of `Q`.
    let row = |row: usize, k: usize| columns[row][k];
    let (of_a, of_b) =
        (normals(rng::key(&[key, 1]), half * d_in), normals(rng::key(&[key, 2]), half * d_out));
    let mut a = vec![0.0; rank * d_in];
    for k in 0..rank {
        for i in 0..d_in {
            let sum: f64 = (0..half).map(|j| of_a[j * d_in + i] * row(2 * j, k)).sum();
            a[k * d_in + i] = (sum / 10.0) as f32;
        }
    }
    let mut b = vec![0.0; d_out * rank];
    for o in 0..d_out {
        for k in 0..rank {
            let sum: f64 = (0..half).map(|j| of_b[j * d_out + o] * row(2 * j + 1, k)).sum();
            b[o * rank + k] = (sum / 10.0) as f32;
        }
    }
    Ok([a, b])
}

/// Rejects a rank that is larger than the number of columns that a QR decomposition has.
fn check_olora_rank(module: &Module) -> Result<(), AdapterError> {
    let (rank, most) = (module.rank / 2, module.d_in.min(module.d_out));
    if rank <= most {
        return Ok(());
    }
    Err(AdapterError::Value {
        key: "init_lora_weights".to_owned(),
        found: "olora".to_owned(),
        expected: format!("a rank up to {most} for `{}`, not {rank}", module.path()),
    })
}

/// Returns `A' (2 R, IN)` and `B' (OUT, 2 R)` of the method `olora`. `rank` is `R`.
fn olora_values(weight: &Matrix, rank: usize) -> [Vec<f32>; 2] {
    let (d_out, d_in) = (weight.rows(), weight.cols());
    let mut row = vec![0.0; d_in];
    // The first columns of `Q` depend only on the first columns of the weight.
    let mut columns = vec![vec![0.0f64; d_out]; rank];
    for o in 0..d_out {
        weight.rows_to_f32(o..o + 1, &mut row);
        columns.iter_mut().zip(&row).for_each(|(column, value)| column[o] = f64::from(*value));
    }
    orthonormalize(&mut columns);
    let mut upper = vec![0.0f64; rank * d_in];
    for o in 0..d_out {
        weight.rows_to_f32(o..o + 1, &mut row);
        for (column, upper) in columns.iter().zip(upper.chunks_exact_mut(d_in)) {
            let factor = column[o];
            upper.iter_mut().zip(&row).for_each(|(sum, value)| *sum += factor * f64::from(*value));
        }
    }
    // `R` is zero below the diagonal, but rounding leaves small values there.
    for (k, upper) in upper.chunks_exact_mut(d_in).enumerate() {
        upper[..k].fill(0.0);
    }
    let half: Vec<f32> = upper.iter().map(|&value| value as f32).collect();
    let a = [&half[..], &half[..]].concat();
    let signs = [1.0, -1.0];
    let row = |o: usize| signs.map(|sign| columns.iter().map(move |column| (sign * column[o]) as f32));
    let b = (0..d_out).flat_map(|o| row(o).into_iter().flatten().collect::<Vec<_>>()).collect();
    [a, b]
}

/// Makes the columns orthonormal by the method of Gram and Schmidt. A column that depends on earlier columns
/// is replaced by a unit vector, so that the columns span as many dimensions as there are columns.
fn orthonormalize(columns: &mut [Vec<f64>]) {
    let mut next_unit = 0;
    for at in 0..columns.len() {
        let (before, rest) = columns.split_at_mut(at);
        let column = &mut rest[0];
        while !orthogonalize(column, before) {
            column.fill(0.0);
            column[next_unit] = 1.0;
            next_unit += 1;
        }
    }
}

/// Makes `column` orthogonal to the orthonormal columns `before`, and of length 1. Returns `false` if nothing
/// is left of the column.
fn orthogonalize(column: &mut [f64], before: &[Vec<f64>]) -> bool {
    let norm = |column: &[f64]| column.iter().map(|v| v * v).sum::<f64>().sqrt();
    let initial = norm(column);
    // After the second pass, the columns are orthogonal to the last digit.
    for _ in 0..2 {
        for other in before {
            let product: f64 = column.iter().zip(other).map(|(x, y)| x * y).sum();
            column.iter_mut().zip(other).for_each(|(x, y)| *x -= product * y);
        }
    }
    let length = norm(column);
    if length.is_nan() || length <= 1e-12 * initial {
        return false;
    }
    column.iter_mut().for_each(|value| *value /= length);
    true
}

/// Returns `len` normal numbers by the method of Box and Muller.
fn normals(key: u64, len: usize) -> Vec<f64> {
    let uniform = |i: u64| (rng::bits(key, i) >> 11) as f64 / (1u64 << 53) as f64;
    let normal = |i: u64| {
        // The logarithm needs a number above 0.
        let radius = (-2.0 * (1.0 - uniform(2 * i)).ln()).sqrt();
        radius * (std::f64::consts::TAU * uniform(2 * i + 1)).cos()
    };
    (0..len as u64).map(normal).collect()
}

#[cfg(test)]
mod tests {
    use danlu_kernels::Reference;
    use danlu_model::Preset;

    use super::*;

    fn adapter(method: InitLoraWeights, rank: u32) -> Result<(Adapter, Vec<f32>), AdapterError> {
        let config = LoraConfig { init_lora_weights: method, ..LoraConfig::new(rank, 8.0) };
        let backend = Reference::new();
        let adapter = Adapter::init(config, &Preset::Base8m.config(), 7, &backend)?;
        let values = adapter.to_vec(&backend)?;
        Ok((adapter, values))
    }

    fn product(module: &Module, values: &[f32]) -> Vec<f64> {
        let &Module { rank, d_in, d_out, a, b, .. } = module;
        let at = |o: usize, i: usize| {
            let term = |k: usize| f64::from(values[b + o * rank + k]) * f64::from(values[a + k * d_in + i]);
            (0..rank).map(term).sum::<f64>()
        };
        (0..d_out).flat_map(|o| (0..d_in).map(move |i| (o, i))).map(|(o, i)| at(o, i)).collect()
    }

    #[test]
    fn gaussian_has_the_deviation_of_peft_and_a_zero_b() {
        let (adapter, values) = adapter(InitLoraWeights::Gaussian, 4).unwrap();
        let (mut sum, mut squares, mut count) = (0.0, 0.0, 0.0);
        for module in adapter.modules() {
            for &value in &values[module.a..][..module.rank * module.d_in] {
                sum += f64::from(value);
                squares += f64::from(value).powi(2);
                count += 1.0;
            }
            assert!(values[module.b..][..module.rank * module.d_out].iter().all(|&value| value == 0.0));
        }
        // PEFT draws with deviation 1 / rank.
        let deviation = (squares / count).sqrt();
        assert!((deviation / 0.25 - 1.0).abs() < 0.02, "{deviation}");
        assert!((sum / count).abs() < 4.0 * 0.25 / f64::sqrt(count), "{}", sum / count);
    }

    #[test]
    fn orthogonal_matrices_are_not_zero_and_their_product_is() {
        let (adapter, values) = adapter(InitLoraWeights::Orthogonal, 4).unwrap();
        let module = &adapter.modules()[0];
        let size = |from: usize, len: usize| {
            let squares = values[from..][..len].iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
            (squares / len as f64).sqrt()
        };
        // Each element is a sum of two products, divided by 10. The factors of a product are a normal number
        // and an element of a unit vector with four elements. The size is therefore sqrt(2 / 4) / 10.
        for size in [size(module.a, module.rank * module.d_in), size(module.b, module.rank * module.d_out)] {
            assert!((size / 0.0707 - 1.0).abs() < 0.1, "{size}");
        }
        let largest = product(module, &values).into_iter().fold(0.0, |most: f64, v| most.max(v.abs()));
        assert!(largest < 1e-8, "{largest}");
    }

    #[test]
    fn orthogonal_refuses_an_odd_rank_by_the_name_of_the_module() {
        let error = adapter(InitLoraWeights::Orthogonal, 3).unwrap_err().to_string();
        assert!(
            error.starts_with("`init_lora_weights` is orthogonal, expected default or gaussian"),
            "{error}"
        );
        assert!(error.contains("odd rank 3 of `model.layers.0.self_attn.q_proj`"), "{error}");
    }

    #[test]
    fn olora_factors_are_a_qr_decomposition_and_cancel_at_the_start() {
        let (rows, cols, rank) = (9, 6, 3);
        let values: Vec<f32> = normals(1, rows * cols).into_iter().map(|v| v as f32).collect();
        let [a, b] = olora_values(&Matrix::from_f32(&values, rows, cols), rank);
        let (full, q) = (2 * rank, |o: usize, k: usize| b[o * 2 * rank + k]);
        for (k, l) in (0..rank).flat_map(|k| (0..rank).map(move |l| (k, l))) {
            let dot: f32 = (0..rows).map(|o| q(o, k) * q(o, l)).sum();
            assert!((dot - f32::from(k == l)).abs() < 1e-6, "{k} {l} {dot}");
        }
        for (o, i) in (0..rows).flat_map(|o| (0..cols).map(move |i| (o, i))) {
            let of = |ks: std::ops::Range<usize>| ks.map(|k| q(o, k) * a[k * cols + i]).sum::<f32>();
            assert_eq!(of(0..rank) + of(rank..full), 0.0);
            // The first columns of the weight lie in the span of the first columns of Q.
            if i < rank {
                assert!((of(0..rank) - values[o * cols + i]).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn dependent_columns_become_orthonormal_too() {
        let mut columns = vec![vec![1.0, 1.0, 0.0], vec![2.0, 2.0, 0.0], vec![0.0; 3]];
        orthonormalize(&mut columns);
        for (k, l) in (0..3).flat_map(|k| (0..3).map(move |l| (k, l))) {
            let dot: f64 = columns[k].iter().zip(&columns[l]).map(|(x, y)| x * y).sum();
            assert!((dot - f64::from(u8::from(k == l))).abs() < 1e-12);
        }
    }
}
