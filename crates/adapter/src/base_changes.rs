//! Tensors in an adapter file that change the base outside its projections.
//!
//! The embedding table and the output head are called tables. An adapter can replace a whole table, replace
//! the rows of single tokens, or add a low-rank update to a table. It can also replace whole modules such as
//! norms.
//!
//! PEFT writes these tensors for `modules_to_save`, for `trainable_token_indices`, and for tables in
//! `target_modules`. After the vocabulary was resized, PEFT always writes both tables.

use std::collections::BTreeMap;

use danlu_kernels::to_f32;
use danlu_model::{ModelConfig, TensorInfo, Weights};

use crate::adapter::PREFIX;
use crate::base_tensor_name::{BaseTensorName, Part};
use crate::merge_rows::{Delta, add_delta};
use crate::targets::is_in_base;
use crate::{AdapterError, LoraConfig};

/// Name of the embedding table in a checkpoint.
pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
/// Name of the output head in a checkpoint.
pub(crate) const HEAD: &str = "lm_head.weight";

/// A low-rank update of the embedding table or of the output head.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TableTarget {
    pub path: &'static str,
    pub rank: usize,
    pub scaling: f32,
}

/// The tensors of an adapter that change the base.
#[derive(Clone, Debug)]
pub(crate) struct BaseChanges {
    /// All tensors of the adapter's file.
    pub weights: Weights,
    /// The tensors that match no projection.
    pub stored: Vec<TensorInfo>,
    /// Replaced tensors other than the embedding table and the output head, with their names in the base.
    others: Vec<(String, TensorInfo)>,
    embedding: TableChange,
    head: TableChange,
    /// Number of tokens in the changed tables.
    vocab_size: usize,
    /// Whether the embedding table is also used as the output head.
    tied: bool,
}

/// The changes to apply to a base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BaseScope {
    /// All changes.
    Everything,
    /// Only the rows of new tokens. The result is the base after its vocabulary was resized and before
    /// training.
    NewRows,
}

/// The changes of the embedding table or of the output head.
#[derive(Clone, Debug, Default, PartialEq)]
struct TableChange {
    /// A tensor that replaces the whole table.
    whole: Option<TensorInfo>,
    /// A tensor of rows, and the token to which each row belongs.
    rows: Option<(TensorInfo, Vec<u32>)>,
    /// `A`, `B` and the scaling of a low-rank update. The shape of `A` is (rank, vocabulary) for the
    /// embedding table and (rank, hidden size) for the output head.
    pair: Option<(TensorInfo, TensorInfo, f32)>,
}

impl TableChange {
    fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the number of rows after the change. `base` is the number before the change.
    fn rows(&self, base: usize) -> usize {
        let whole = self.whole.as_ref().map_or(base, |info| info.shape[0]);
        let last =
            self.rows.iter().flat_map(|(_, tokens)| tokens).max().map_or(0, |&token| token as usize + 1);
        whole.max(last)
    }
}

/// The adapter's tensors that change the same tensor of the base.
type Parts<'a> = BTreeMap<Part, &'a TensorInfo>;

/// Settings that determine the changes of the embedding table and of the output head.
struct Tables<'a> {
    config: &'a LoraConfig,
    model: &'a ModelConfig,
    targets: &'a [TableTarget],
}

impl BaseChanges {
    /// Matches tensors of the adapter with tensors of the base. `rest` contains the tensors that belong to no
    /// adapted projection. Returns `None` if `rest` and `targets` are empty.
    ///
    /// # Errors
    /// If a tensor matches nothing or has a wrong shape, or if a tensor that the configuration names is
    /// missing.
    pub fn bind(
        rest: &[&TensorInfo],
        found: &Weights,
        config: &LoraConfig,
        model: &ModelConfig,
        targets: &[TableTarget],
    ) -> Result<Option<Self>, AdapterError> {
        let mut shapes: BTreeMap<String, Vec<usize>> =
            if rest.is_empty() { BTreeMap::new() } else { model.tensors().collect() };
        shapes.entry(HEAD.to_owned()).or_default();
        let (mut names, mut unbound) = (BTreeMap::<String, Parts<'_>>::new(), Vec::new());
        for &info in rest {
            let known = BaseTensorName::parse(&info.name)
                .filter(|name| shapes.contains_key(&name.tensor) && name.changes_base());
            let taken = known.map(|name| names.entry(name.tensor).or_default().insert(name.part, info));
            // Two tensors for the same part are an error, because only one of them could be used.
            if !matches!(taken, Some(None)) {
                unbound.push(info.name.clone());
            }
        }
        let is_in_base = |module: &str| is_in_base(module, model);
        let missing = missing_modules(config, names.keys().map(String::as_str), &is_in_base);
        if !unbound.is_empty() || !missing.is_empty() {
            return Err(AdapterError::Binding { unbound, missing });
        }
        if names.is_empty() && targets.is_empty() {
            return Ok(None);
        }
        names.values().flat_map(Parts::values).try_for_each(|info| check(info, found))?;
        let (embedding, head) = (names.remove(EMBEDDING), names.remove(HEAD));
        let tables = [embedding, head].map(Option::unwrap_or_default);
        let others = bind_others(names, &shapes)?;
        let (embedding, head) = Tables { config, model, targets }.bind(tables)?;
        let tied = model.tie_word_embeddings && embedding == head;
        let vocab_size = embedding.rows(model.vocab_size);
        let of_head = head.rows(model.vocab_size);
        if vocab_size != of_head {
            let name = HEAD.to_owned();
            let (expected, found) = (vec![vocab_size, model.hidden_size], vec![of_head, model.hidden_size]);
            return Err(AdapterError::Shape { name, expected, found });
        }
        let stored = rest.iter().copied().cloned().collect();
        let changes = Self { weights: found.clone(), stored, others, embedding, head, vocab_size, tied };
        changes.check_rows(model)?;
        Ok(Some(changes))
    }

    /// Rejects a new token whose row is missing in the file, because PEFT would fill the row with random
    /// values.
    fn check_rows(&self, model: &ModelConfig) -> Result<(), AdapterError> {
        for change in [&self.embedding, &self.head] {
            let from = change.whole.as_ref().map_or(model.vocab_size, |info| info.shape[0]);
            let tokens = change.rows.as_ref().map_or(&[][..], |(_, tokens)| tokens);
            let missing = (from..self.vocab_size).find(|&row| !tokens.contains(&(row as u32)));
            if let Some(token) = missing {
                return Err(AdapterError::NoRow { token, rows: from });
            }
        }
        Ok(())
    }

    /// Returns the names of the changed tensors, and the old and new number of tokens if the number changes.
    pub fn describe(&self, model: &ModelConfig) -> (Vec<String>, Option<[usize; 2]>) {
        let tables = [(EMBEDDING, &self.embedding), (HEAD, &self.head)];
        let tables =
            tables.into_iter().filter(|(name, change)| !(change.is_none() || self.tied && *name == HEAD));
        let names =
            tables.map(|(name, _)| name.to_owned()).chain(self.others.iter().map(|(name, _)| name.clone()));
        let sizes = [model.vocab_size, self.vocab_size];
        (names.collect(), (sizes[0] != sizes[1]).then_some(sizes))
    }

    /// Returns the base with the changes in `scope`.
    ///
    /// # Errors
    /// If a tensor of the base is missing or invalid.
    pub fn apply(
        &self,
        model: &ModelConfig,
        base: &Weights,
        scope: BaseScope,
    ) -> Result<(ModelConfig, Weights), AdapterError> {
        let mut weights = base.clone();
        let head = if model.tie_word_embeddings { EMBEDDING } else { HEAD };
        for (name, original, change) in [(EMBEDDING, EMBEDDING, &self.embedding), (HEAD, head, &self.head)] {
            if name == HEAD && self.tied {
                // The embedding table is also the output head. If the base's file contains a copy of the
                // head, the copy is removed, because it would differ from the changed embedding table.
                weights.remove(HEAD);
                continue;
            }
            let original = (original, [model.vocab_size, model.hidden_size]);
            self.apply_table(name, change, (base, original), &mut weights, scope)?;
        }
        if scope == BaseScope::Everything {
            self.others.iter().for_each(|(name, info)| weights.replace_with(name, &self.weights, info));
        }
        let mut config = model.clone();
        (config.vocab_size, config.tie_word_embeddings) = (self.vocab_size, self.tied);
        Ok((config, weights))
    }

    fn apply_table(
        &self,
        name: &str,
        change: &TableChange,
        (base, (original, shape)): (&Weights, (&str, [usize; 2])),
        weights: &mut Weights,
        scope: BaseScope,
    ) -> Result<(), AdapterError> {
        let is_whole = change.rows.is_none() && change.pair.is_none();
        match &change.whole {
            _ if scope == BaseScope::NewRows => {}
            Some(info) if is_whole => {
                weights.replace_with(name, &self.weights, info);
                return Ok(());
            }
            // The output head was the embedding table of the base, and no longer follows the changed table.
            // The head therefore gets a copy of the base's table.
            None if is_whole => {
                if let Some(info) = base.info(original) {
                    weights.replace_with(name, base, info);
                }
                return Ok(());
            }
            _ => {}
        }
        let cols = shape[1];
        let mut values = match &change.whole {
            Some(info) => self.values(info),
            None => base.matrix(original, shape[0], cols)?.to_vec(),
        };
        values.resize(self.vocab_size * cols, 0.0);
        if let Some((info, tokens)) = &change.rows {
            for (row, &token) in self.values(info).chunks_exact(cols).zip(tokens) {
                values[token as usize * cols..][..cols].copy_from_slice(row);
            }
        }
        if let Some((a, b, scaling)) = &change.pair {
            self.add_pair(&mut values, name, (a, b, *scaling), cols);
        }
        if scope == BaseScope::NewRows {
            let kept = self.vocab_size.min(shape[0]);
            let of_base = base.matrix(original, shape[0], cols)?;
            of_base.rows_to_f32(0..kept, &mut values[..kept * cols]);
        }
        weights.replace_values(name, vec![self.vocab_size, cols], &values);
        Ok(())
    }

    fn add_pair(
        &self,
        out: &mut [f32],
        name: &str,
        (a, b, scaling): (&TensorInfo, &TensorInfo, f32),
        cols: usize,
    ) {
        let (rank, [a_values, b_values]) = (a.shape[0], [self.values(a), self.values(b)]);
        // The update of an embedding table is `(B A)ᵀ`, which equals `Aᵀ Bᵀ`.
        let (a, b) = match name {
            EMBEDDING => (transposed(&b_values, rank), transposed(&a_values, a.shape[1])),
            _ => (a_values, b_values),
        };
        let rows = b.len() / rank;
        add_delta(&mut out[..rows * cols], Delta { a: &a, b: &b, rank, scaling, magnitude: None }, cols);
    }

    fn values(&self, info: &TensorInfo) -> Vec<f32> {
        let mut values = vec![0.0; info.shape.iter().product()];
        let dtype = info.dtype().expect("types were checked when the tensors were bound");
        to_f32(dtype, self.weights.bytes(info), &mut values);
        values
    }
}

/// Transposes a matrix with `cols` columns.
fn transposed(values: &[f32], cols: usize) -> Vec<f32> {
    let rows = values.len() / cols;
    (0..values.len()).map(|at| values[at % rows * cols + at / rows]).collect()
}

/// Returns the names in `modules_to_save` for which the file has no tensor. As in PEFT, a name of no module
/// of the base is ignored.
pub(crate) fn missing_modules<'a>(
    config: &LoraConfig,
    tensors: impl Iterator<Item = &'a str> + Clone,
    is_in_base: &dyn Fn(&str) -> bool,
) -> Vec<String> {
    let is_of = |tensor: &str, module: &str| {
        let path = tensor.rsplit_once('.').map_or(tensor, |(path, _)| path);
        path.split('.').any(|segment| segment == module)
            || path == module
            || path.ends_with(&format!(".{module}"))
    };
    let is_missing =
        |module: &&String| is_in_base(module) && !tensors.clone().any(|tensor| is_of(tensor, module));
    let missing = config.modules_to_save.iter().filter(is_missing);
    missing.map(|module| format!("{PREFIX}*{module}.weight")).collect()
}

fn check(info: &TensorInfo, found: &Weights) -> Result<(), AdapterError> {
    let name = info.name.clone();
    let Some(dtype) = info.dtype() else {
        return Err(AdapterError::DType { name, found: info.dtype_name.clone() });
    };
    if info.shape.contains(&0) {
        return Err(AdapterError::EmptyTensor { name, shape: info.shape.clone() });
    }
    let mut values = vec![0.0; 1 << 16];
    for (part, bytes) in found.bytes(info).chunks(values.len() * dtype.size()).enumerate() {
        let values = &mut values[..bytes.len() / dtype.size()];
        to_f32(dtype, bytes, values);
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            return Err(AdapterError::NotFinite { name, value: values[at], element: (part << 16) + at });
        }
    }
    Ok(())
}

fn check_shape(info: &TensorInfo, expected: Vec<usize>) -> Result<(), AdapterError> {
    if info.shape == expected {
        return Ok(());
    }
    Err(AdapterError::Shape { name: info.name.clone(), expected, found: info.shape.clone() })
}

fn bind_others(
    names: BTreeMap<String, Parts<'_>>,
    shapes: &BTreeMap<String, Vec<usize>>,
) -> Result<Vec<(String, TensorInfo)>, AdapterError> {
    let mut bound = Vec::new();
    for (name, parts) in names {
        // Some programs write the original tensor (`Part::Base`) beside the trained copy. The original is
        // used only if there is no trained copy.
        let own = [Part::Saved, Part::Plain, Part::Base].iter().find_map(|part| parts.get(part));
        let info = own.expect("a name has at least one tensor, which is whole");
        check_shape(info, shapes[&name].clone())?;
        bound.push((name, (*info).clone()));
    }
    Ok(bound)
}

impl Tables<'_> {
    /// Resolves the changes of the embedding table and of the output head as PEFT does. If the base uses one
    /// tensor for both, a table in the file replaces both, unless `modules_to_save` names this table. If the
    /// file contains both tables, the head is used, because PEFT reads the head last.
    fn bind<'a>(
        &self,
        [mut embedding, mut head]: [Parts<'a>; 2],
    ) -> Result<(TableChange, TableChange), AdapterError> {
        let is_saved = |name: &str| self.config.modules_to_save.iter().any(|module| is_named(name, module));
        let saved = |parts: &mut Parts<'a>, name: &str| {
            let own = parts.remove(&Part::Saved);
            own.or_else(|| if is_saved(name) { parts.remove(&Part::Plain) } else { None })
        };
        let saved = [saved(&mut embedding, "embed_tokens"), saved(&mut head, "lm_head")];
        let mut of_base = [&mut embedding, &mut head].map(|parts| {
            let plain = parts.remove(&Part::Plain);
            parts.remove(&Part::Base).or(plain)
        });
        let is_tied = self.model.tie_word_embeddings;
        if is_tied {
            of_base = [of_base[1].or(of_base[0]); 2];
        }
        let follows = is_tied
            && saved[1].is_none()
            && saved[0].is_some_and(|info| {
                let of_head = of_base[1].map_or(self.model.vocab_size, |info| info.shape[0]);
                // A saved embedding table also replaces the head if the configuration says so, or if the
                // two tables would have different numbers of rows.
                self.config.ensure_weight_tying || info.shape.first() != Some(&of_head)
            });
        let whole = [saved[0].or(of_base[0]), if follows { saved[0] } else { saved[1].or(of_base[1]) }];
        for info in whole.into_iter().flatten() {
            let rows = info.shape.first().copied().unwrap_or(0);
            check_shape(info, vec![rows, self.model.hidden_size])?;
        }
        let rows = [self.rows(&mut embedding, "embed_tokens")?, self.rows(&mut head, "lm_head")?];
        let [of_embedding, of_head] = rows;
        let of_head =
            if is_tied && saved == [None, None] { of_head.or_else(|| of_embedding.clone()) } else { of_head };
        let mut changes = [(whole[0], of_embedding), (whole[1], of_head)].map(|(whole, rows)| TableChange {
            whole: whole.cloned(),
            rows,
            pair: None,
        });
        changes[0].pair =
            self.pair(&mut embedding, "model.embed_tokens", changes[0].rows(self.model.vocab_size))?;
        changes[1].pair = self.pair(&mut head, "lm_head", changes[1].rows(self.model.vocab_size))?;
        let unbound: Vec<String> =
            [embedding, head].into_iter().flatten().map(|(_, info)| info.name.clone()).collect();
        if !unbound.is_empty() {
            return Err(AdapterError::Binding { unbound, missing: Vec::new() });
        }
        let [embedding, head] = changes;
        Ok((embedding, head))
    }

    /// Returns the rows of `trainable_token_indices` and their tokens.
    fn rows(
        &self,
        parts: &mut Parts<'_>,
        module: &str,
    ) -> Result<Option<(TensorInfo, Vec<u32>)>, AdapterError> {
        let named = self.config.trainable_token_indices.iter().find(|(name, _)| is_named(module, name));
        let (info, tokens) = match (parts.remove(&Part::Rows), named) {
            (None, None) => return Ok(None),
            (Some(info), Some((_, tokens))) => (info, tokens),
            (Some(info), None) => {
                return Err(AdapterError::Binding { unbound: vec![info.name.clone()], missing: Vec::new() });
            }
            // If the embedding table is also the output head, PEFT stores the rows only for the embedding
            // table.
            (None, Some(_)) if module == "lm_head" && self.model.tie_word_embeddings => return Ok(None),
            (None, Some((name, _))) => {
                let missing = vec![format!("{PREFIX}*{name}.token_adapter.trainable_tokens_delta")];
                return Err(AdapterError::Binding { unbound: Vec::new(), missing });
            }
        };
        check_shape(info, vec![tokens.len(), self.model.hidden_size])?;
        Ok(Some((info.clone(), tokens.clone())))
    }

    /// Returns the low-rank update of a table with `rows` rows.
    fn pair(
        &self,
        parts: &mut Parts<'_>,
        path: &'static str,
        rows: usize,
    ) -> Result<Option<(TensorInfo, TensorInfo, f32)>, AdapterError> {
        let Some(target) = self.targets.iter().find(|target| target.path == path) else { return Ok(None) };
        let names = if path == "lm_head" {
            ["lora_A.weight", "lora_B.weight"]
        } else {
            ["lora_embedding_A", "lora_embedding_B"]
        };
        let mut half = |part: Part, name: &str| {
            let missing = || vec![format!("{PREFIX}{path}.{name}")];
            parts
                .remove(&part)
                .ok_or_else(|| AdapterError::Binding { unbound: Vec::new(), missing: missing() })
        };
        let (a, b) = (half(Part::A, names[0])?, half(Part::B, names[1])?);
        let (rank, hidden) = (target.rank, self.model.hidden_size);
        let shapes =
            if path == "lm_head" { [[rank, hidden], [rows, rank]] } else { [[rank, rows], [hidden, rank]] };
        check_shape(a, shapes[0].to_vec())?;
        check_shape(b, shapes[1].to_vec())?;
        Ok(Some((a.clone(), b.clone(), target.scaling)))
    }
}

/// Returns whether the last segment of `name`, a name in a configuration, is `module`.
fn is_named(module: &str, name: &str) -> bool {
    name.rsplit('.').next() == Some(module)
}
