//! Resolves the targets of an adapter's configuration to projections by PEFT's matching rules.
//!
//! An entry of a list matches a module if the module's path is equal to the entry, or ends with `.` and the
//! entry. A string is a regular expression that must match the whole path. A key of `rank_pattern` or
//! `alpha_pattern` is a regular expression that must match the end of the path after a `.`. The first
//! matching key applies.

use std::collections::HashSet;

use danlu_model::{ModelConfig, Projection};
use fancy_regex::{Regex, RegexBuilder};

use crate::base_changes::TableTarget;
use crate::config::{LoraConfig, TargetModules};
use crate::{AdapterError, AdapterNote, Module};

/// Maximum number of backtracking steps in one match. Ordinary patterns need only a few steps.
const MAX_BACKTRACK_STEPS: usize = 20_000;

/// Returns the projections that `config` adapts, ordered by layer and then by [`Projection`]. The offsets are
/// contiguous, with `A` before `B` for each projection.
///
/// # Errors
/// If a target, a layer or a pattern matches nothing, or if a rank is larger than both dimensions of the
/// weight.
pub fn resolve(config: &LoraConfig, model: &ModelConfig) -> Result<Vec<Module>, AdapterError> {
    let Resolved { modules, notes, tables } = resolve_finished(config, model)?;
    if let Some(TableTarget { path, .. }) = tables.first() {
        let target = TargetFilter::new(config)?.targets.matches(path)?.unwrap_or(path).to_owned();
        return Err(AdapterError::NotAdaptable { target, module: (*path).to_owned(), reason: TABLE });
    }
    match notes.into_iter().next() {
        Some(AdapterNote::UnusedNames { key, names }) => Err(unused(key, &names[0], model)),
        _ => Ok(modules),
    }
}

pub(crate) struct Resolved {
    pub modules: Vec<Module>,
    /// Tables with a low-rank update.
    pub tables: Vec<TableTarget>,
    /// Names in the configuration that match no module.
    pub notes: Vec<AdapterNote>,
}

/// Resolves the targets of a trained adapter. Unlike in [`resolve`], a name that matches nothing becomes a
/// note if another name matches.
///
/// # Errors
/// If nothing matches, or if a rank is too large for the weight.
pub(crate) fn resolve_finished(config: &LoraConfig, model: &ModelConfig) -> Result<Resolved, AdapterError> {
    config.validate()?;
    let filter = TargetFilter::new(config)?;
    filter.check_others(model)?;
    let Chosen { projections: chosen, tables, unused: targets } = filter.choose(model)?;
    let ranks = Patterns::new("rank_pattern", &config.rank_pattern)?;
    let alphas = Patterns::new("alpha_pattern", &config.alpha_pattern)?;
    let layers = filter.layers.missing(model);
    let saved = config.modules_to_save.iter().filter(|name| !is_in_base(name, model));
    let unused = [
        ("target_modules", targets),
        ("layers_to_transform", layers.map(|layer| layer.to_string()).collect()),
        ("rank_pattern", ranks.unused(&chosen)?),
        ("alpha_pattern", alphas.unused(&chosen)?),
        ("exclude_modules", filter.unused_exclusions(model)?),
        ("modules_to_save", saved.cloned().collect()),
    ];
    let unused = unused.into_iter().filter(|(_, names)| !names.is_empty());
    let notes = unused.map(|(key, names)| AdapterNote::UnusedNames { key, names }).collect();

    let rank_and_scaling = |path: &str, (d_out, d_in): (usize, usize)| {
        let rank = ranks.first(path)?.unwrap_or(config.r) as usize;
        let alpha = alphas.first(path)?.unwrap_or(config.lora_alpha);
        if rank > d_in.max(d_out) {
            return Err(AdapterError::RankTooLarge { module: path.to_owned(), rank, d_out, d_in });
        }
        let divisor = if config.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
        Ok((rank, (alpha / divisor) as f32))
    };
    let mut modules = Vec::with_capacity(chosen.len());
    let mut offset = 0usize;
    for (path, layer, projection) in chosen {
        let (d_out, d_in) = model.projection_shape(projection);
        let (rank, scaling) = rank_and_scaling(&path, (d_out, d_in))?;
        let (a, b) = (offset, offset + rank * d_in);
        offset = b + rank * d_out;
        let magnitude = config.use_dora.then_some(offset);
        offset += if config.use_dora { d_out } else { 0 };
        modules.push(Module { layer, projection, rank, d_in, d_out, scaling, a, b, magnitude });
    }
    let table = |path: &'static str| {
        let (rank, scaling) = rank_and_scaling(path, (model.vocab_size, model.hidden_size))?;
        Ok(TableTarget { path, rank, scaling })
    };
    let tables = tables.into_iter().map(table).collect::<Result<_, AdapterError>>()?;
    Ok(Resolved { modules, tables, notes })
}

/// Returns whether the base has a module of this name.
pub(crate) fn is_in_base(module: &str, model: &ModelConfig) -> bool {
    let is_of = |tensor: String| {
        let path = tensor.rsplit_once('.').map_or(tensor.as_str(), |(path, _)| path);
        path == module
            || path.ends_with(&format!(".{module}"))
            || path.split('.').any(|segment| segment == module)
    };
    module == "lm_head" || model.tensors().any(|(tensor, _)| is_of(tensor))
}

/// Returns the error for a name in the setting `key` that matches no module.
fn unused(key: &'static str, name: &str, model: &ModelConfig) -> AdapterError {
    match key {
        "target_modules" => no_such_target(name, model),
        "layers_to_transform" => {
            let layer = name.parse().unwrap_or(i64::MAX);
            AdapterError::NoSuchLayer { layer, layers: model.num_hidden_layers }
        }
        _ => AdapterError::UnusedPattern { key, pattern: name.to_owned() },
    }
}

fn no_such_target(target: &str, model: &ModelConfig) -> AdapterError {
    let available = model.projections().map(|p| p.name().to_owned()).collect();
    AdapterError::NoSuchTarget { target: target.to_owned(), available }
}

type Candidate = (String, usize, Projection);

struct Chosen {
    projections: Vec<Candidate>,
    tables: Vec<&'static str>,
    /// Targets that match no module.
    unused: Vec<String>,
}

/// Module paths of the embedding table and the output head.
const TABLES: [&str; 2] = ["model.embed_tokens", "lm_head"];

/// The end of the error message if a training run adapts the embedding table or the output head.
const TABLE: &str = "is not yet supported as a target";

struct TargetFilter<'a> {
    targets: Matcher<'a>,
    excluded: Option<Matcher<'a>>,
    layers: LayerFilter<'a>,
}

impl<'a> TargetFilter<'a> {
    fn new(config: &'a LoraConfig) -> Result<Self, AdapterError> {
        let excluded = config.exclude_modules.as_ref();
        Ok(Self {
            targets: Matcher::new("target_modules", &config.target_modules)?,
            excluded: excluded.map(|m| Matcher::new("exclude_modules", m)).transpose()?,
            layers: LayerFilter::new(config)?,
        })
    }

    fn is_excluded(&self, path: &str) -> Result<bool, AdapterError> {
        self.excluded.as_ref().map_or(Ok(false), |excluded| excluded.matches(path).map(|m| m.is_some()))
    }

    /// Returns the names in `exclude_modules` that match no module.
    fn unused_exclusions(&self, model: &ModelConfig) -> Result<Vec<String>, AdapterError> {
        let Some(excluded) = &self.excluded else { return Ok(Vec::new()) };
        let mut matched = HashSet::new();
        let paths = projections(model).into_iter().map(|(path, ..)| path);
        let paths = paths.chain(others(model).into_iter().map(|(path, _)| path));
        for path in paths.chain(TABLES.map(str::to_owned)) {
            matched.extend(excluded.all_matches(&path)?);
        }
        let unused = excluded.names().into_iter().filter(|name| !matched.contains(name));
        Ok(unused.map(str::to_owned).collect())
    }

    /// Rejects targets that match a module without LoRA support.
    fn check_others(&self, model: &ModelConfig) -> Result<(), AdapterError> {
        for (path, reason) in others(model) {
            if let Some(target) = self.targets.matches(&path)?
                && !self.is_excluded(&path)?
            {
                return Err(AdapterError::NotAdaptable { target: target.to_owned(), module: path, reason });
            }
        }
        Ok(())
    }

    fn choose(&self, model: &ModelConfig) -> Result<Chosen, AdapterError> {
        let (mut matched, mut chosen, mut removed) = (HashSet::new(), Vec::new(), 0);
        for (path, layer, projection) in projections(model) {
            let others = other_paths(model, layer, projection);
            let mut hits = self.targets.all_matches(&path)?;
            for other in &others {
                hits.extend(self.targets.all_matches(other)?);
            }
            if hits.is_empty() {
                continue;
            }
            // As in PEFT, a target that is a full path is adapted even if `layers_to_transform` does not list
            // its layer.
            let in_full = hits.iter().any(|hit| *hit == path || others.iter().any(|other| hit == other));
            matched.extend(hits.into_iter().map(str::to_owned));
            if self.is_excluded(&path)? || !(in_full || self.layers.contains(&path)?) {
                removed += 1;
                continue;
            }
            chosen.push((path, layer, projection));
        }
        let mut tables = Vec::new();
        for path in TABLES {
            let hits = self.targets.all_matches(path)?;
            if !hits.is_empty() && !self.is_excluded(path)? {
                matched.extend(hits.into_iter().map(str::to_owned));
                tables.push(path);
            }
        }
        let names = self.targets.names().into_iter().filter(|name| !matched.contains(*name));
        let unused: Vec<String> = names.map(str::to_owned).collect();
        match (chosen.is_empty() && tables.is_empty(), unused.first()) {
            (false, _) => Ok(Chosen { projections: chosen, tables, unused }),
            (true, Some(target)) if removed == 0 => Err(no_such_target(target, model)),
            (true, _) => Err(match self.layers.missing(model).next() {
                Some(layer) => AdapterError::NoSuchLayer { layer, layers: model.num_hidden_layers },
                None => AdapterError::NothingTargeted { removed },
            }),
        }
    }
}

/// Returns the rank of each of `paths`, and the targets that match none of `paths`. The rank is `None` for a
/// path that is not adapted.
pub(crate) fn ranks<'c>(
    config: &'c LoraConfig,
    paths: &[String],
) -> Result<(Vec<Option<usize>>, Vec<&'c str>), AdapterError> {
    let targets = Matcher::new("target_modules", &config.target_modules)?;
    let excluded = config.exclude_modules.as_ref().map(|m| Matcher::new("exclude_modules", m)).transpose()?;
    let patterns = Patterns::new("rank_pattern", &config.rank_pattern)?;
    let mut matched = HashSet::new();
    let mut ranks = Vec::with_capacity(paths.len());
    for path in paths {
        let hits = targets.all_matches(path)?;
        let is_excluded = match &excluded {
            Some(excluded) => excluded.matches(path)?.is_some(),
            None => false,
        };
        let is_meant = !hits.is_empty() && !is_excluded;
        matched.extend(hits);
        let rank = patterns.first(path)?.unwrap_or(config.r) as usize;
        ranks.push(is_meant.then_some(rank));
    }
    let unused = targets.names().into_iter().filter(|name| !matched.contains(name)).collect();
    Ok((ranks, unused))
}

/// Returns the path, layer and kind of every module with LoRA support.
fn projections(model: &ModelConfig) -> Vec<(String, usize, Projection)> {
    let of_layer = |layer: usize| model.projections().map(move |p| (model.module_path(layer, p), layer, p));
    (0..model.num_hidden_layers).flat_map(of_layer).collect()
}

/// Returns the other paths of a module of Gemma 3. The path depends on the model class and on the version of
/// transformers, and a target may be any of these paths.
fn other_paths(model: &ModelConfig, layer: usize, projection: Projection) -> Vec<String> {
    if !model.model_type.starts_with("gemma3") {
        return Vec::new();
    }
    let path = projection.module_path(layer);
    let nested = path.replacen("model.", "model.language_model.", 1);
    vec![format!("language_model.{path}"), nested, path]
}

/// Returns every module without LoRA support, and the reason.
fn others(model: &ModelConfig) -> Vec<(String, &'static str)> {
    const NOT_LINEAR: &str = "is not a linear projection";
    let mut paths: Vec<(String, _)> = Vec::new();
    for path in ["model", "model.layers", "model.norm", "model.rotary_emb"] {
        paths.push((path.to_owned(), NOT_LINEAR));
    }
    for layer in 0..model.num_hidden_layers {
        paths.push((format!("model.layers.{layer}"), NOT_LINEAR));
        for part in ["self_attn", "mlp", "mlp.act_fn", "input_layernorm", "post_attention_layernorm"] {
            paths.push((format!("model.layers.{layer}.{part}"), NOT_LINEAR));
        }
    }
    paths
}

enum Matcher<'a> {
    AllLinear,
    List(&'a [String]),
    Regex { key: &'static str, pattern: &'a str, regex: Regex },
}

impl<'a> Matcher<'a> {
    fn new(key: &'static str, modules: &'a TargetModules) -> Result<Self, AdapterError> {
        Ok(match modules {
            TargetModules::AllLinear => Self::AllLinear,
            TargetModules::List(names) => Self::List(names),
            TargetModules::Regex(pattern) => {
                Self::Regex { key, pattern, regex: compile(key, pattern, &format!(r"\A(?:{pattern})\z"))? }
            }
        })
    }

    fn names(&self) -> Vec<&'a str> {
        match self {
            Self::AllLinear => Vec::new(),
            Self::List(names) => names.iter().map(String::as_str).collect(),
            Self::Regex { pattern, .. } => vec![pattern],
        }
    }

    /// Returns the names or patterns that match `path`.
    fn all_matches(&self, path: &str) -> Result<Vec<&'a str>, AdapterError> {
        Ok(match self {
            Self::AllLinear => {
                let is_projection =
                    path.rsplit('.').next().is_some_and(|n| Projection::from_name(n).is_some());
                if is_projection { vec!["all-linear"] } else { Vec::new() }
            }
            Self::List(names) => {
                let hit = |name: &&String| {
                    path.strip_suffix(name.as_str())
                        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
                };
                names.iter().filter(hit).map(String::as_str).collect()
            }
            Self::Regex { key, pattern, regex } => {
                if is_match(key, regex, path)? {
                    vec![pattern]
                } else {
                    Vec::new()
                }
            }
        })
    }

    fn matches(&self, path: &str) -> Result<Option<&'a str>, AdapterError> {
        Ok(self.all_matches(path)?.first().copied())
    }
}

/// The settings `layers_to_transform` and `layers_pattern`.
struct LayerFilter<'a> {
    layers: Option<&'a [i64]>,
    patterns: Vec<Regex>,
}

impl<'a> LayerFilter<'a> {
    fn new(config: &'a LoraConfig) -> Result<Self, AdapterError> {
        let layers = config.layers_to_transform.as_deref();
        let key = "layers_pattern";
        let patterns = match config.layers_pattern.as_slice() {
            // The list of layers may have any name. The first number in the path is the layer number.
            [] => vec![compile(key, "", r"\A.*?\.[^.]*\.(?P<idx>\d+)\.")?],
            names => names
                .iter()
                .map(|name| compile(key, name, &format!(r"\A(?:(?:\A|.*?\.){name}\.(?P<idx>\d+)\.)")))
                .collect::<Result<_, _>>()?,
        };
        Ok(Self { layers, patterns })
    }

    fn missing(&self, model: &ModelConfig) -> impl Iterator<Item = i64> {
        let layers = self.layers.unwrap_or_default().iter().copied();
        layers.filter(move |layer| !usize::try_from(*layer).is_ok_and(|l| l < model.num_hidden_layers))
    }

    fn contains(&self, path: &str) -> Result<bool, AdapterError> {
        let Some(layers) = self.layers else { return Ok(true) };
        for regex in &self.patterns {
            let found =
                regex.captures(path).map_err(|e| pattern_error("layers_pattern", regex.as_str(), &e))?;
            if let Some(found) = found {
                let layer = found.name("idx").and_then(|m| m.as_str().parse::<i64>().ok());
                return Ok(layer.is_some_and(|l| layers.contains(&l)));
            }
        }
        Ok(false)
    }
}

/// The compiled keys of `rank_pattern` or `alpha_pattern`, in the order of the file.
struct Patterns<'a, T> {
    key: &'static str,
    entries: Vec<(&'a str, Regex, T)>,
}

impl<'a, T: Copy> Patterns<'a, T> {
    fn new(key: &'static str, entries: &'a [(String, T)]) -> Result<Self, AdapterError> {
        let entry = |(pattern, value): &'a (String, T)| {
            let regex = compile(key, pattern, &format!(r"\A(.*\.)?({pattern})\z"))?;
            Ok((pattern.as_str(), regex, *value))
        };
        Ok(Self { key, entries: entries.iter().map(entry).collect::<Result<_, AdapterError>>()? })
    }

    fn unused(&self, chosen: &[Candidate]) -> Result<Vec<String>, AdapterError> {
        let mut unused = Vec::new();
        for (pattern, regex, _) in &self.entries {
            let mut used = false;
            for (path, ..) in chosen {
                used = used || is_match(self.key, regex, path)?;
            }
            if !used {
                unused.push((*pattern).to_owned());
            }
        }
        Ok(unused)
    }

    fn first(&self, path: &str) -> Result<Option<T>, AdapterError> {
        for (_, regex, value) in &self.entries {
            if is_match(self.key, regex, path)? {
                return Ok(Some(*value));
            }
        }
        Ok(None)
    }
}

/// Compiles `pattern` first, so that an unbalanced bracket, as in `a)|(b`, cannot change the meaning of the
/// anchors around `pattern`. Then compiles `anchored`.
fn compile(key: &str, pattern: &str, anchored: &str) -> Result<Regex, AdapterError> {
    let build = |text: &str| {
        RegexBuilder::new(text)
            .backtrack_limit(MAX_BACKTRACK_STEPS)
            .delegate_size_limit(1 << 20)
            .delegate_dfa_size_limit(1 << 20)
            .build()
    };
    build(pattern).and_then(|_| build(anchored)).map_err(|e| pattern_error(key, pattern, &e))
}

fn is_match(key: &str, regex: &Regex, path: &str) -> Result<bool, AdapterError> {
    regex.is_match(path).map_err(|e| pattern_error(key, regex.as_str(), &e))
}

fn pattern_error(key: &str, pattern: &str, error: &fancy_regex::Error) -> AdapterError {
    AdapterError::Pattern { key: key.to_owned(), pattern: pattern.to_owned(), message: error.to_string() }
}
