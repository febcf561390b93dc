//! The adapters of the server: their names, their versions, and the memory they use.
//!
//! An alias is a name under which clients select an adapter. An alias refers to a generation, which is one
//! version of the adapter. The id of a generation is a digest of its content.
//!
//! A request takes a lease (an `Arc` of the generation) before it is queued. A load changes an alias only
//! after the new generation is complete in memory, so no request uses a mixture of old and new weights. If a
//! generation was evicted from memory, the next request for its alias loads the adapter again from its
//! source.
//!
//! The field `model` of a request is looked up in this order:
//!
//! ```text
//! model ─► base name ─► alias ─► allowed Hub name ─► 404
//!                         │            │
//!                         ▼            ▼
//!                     generation ◄── load (one for all waiters)
//! ```

mod adapter_loader;
mod generation;
mod load_pool;
mod paths;
mod residency;
mod watch;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use danlu_data::edit_distance;
use danlu_generate::GenerationId;
use danlu_hub::RepoName;
use danlu_loader::LoadError;
use tokio::sync::watch::{Receiver, Sender, channel};

pub(crate) use adapter_loader::AdapterLoader;
pub use generation::AdapterSource;
pub(crate) use generation::Generation;
use load_pool::LoadPool;
pub(crate) use paths::{check_alias, resolve_path};
pub(crate) use residency::GenerationState;
use residency::Residency;
pub(crate) use watch::Watcher;

use crate::api_error::ApiError;
use crate::model_profile::ModelProfile;

/// Time for which the error of a failed load is returned without a new attempt. Repeated requests for a
/// misspelled name thus do not flood the Hub.
const FAILURE_MEMORY: Duration = Duration::from_secs(5);

const MAX_FAILURES: usize = 1000;

/// Number of threads that read adapters from disk.
const DISK_THREADS: usize = 2;

/// Number of threads that download adapters.
const HUB_THREADS: usize = 2;

#[derive(Clone, Debug)]
pub(crate) struct RegistryOptions {
    /// Names of the base. Lists of models show the first name.
    pub base_names: Vec<String>,
    /// Patterns of Hub names that a request may load: `org/*` or `org/name`.
    pub allow_hub: Vec<String>,
    /// Folder that must contain every local `lora_path`. With `None`, local paths are rejected.
    pub adapter_root: Option<PathBuf>,
    /// Maximum size of all adapters in memory, in bytes.
    pub max_bytes: u64,
}

/// The model of a request: the base, or an adapter version that stays in memory until the lease is dropped.
#[derive(Clone)]
pub(crate) struct Lease {
    pub generation: Option<Arc<Generation>>,
    pub profile: Arc<ModelProfile>,
    /// Alias of the adapter, for metrics. The alias is `None` for the base.
    pub alias: Option<String>,
}

/// The adapter version that a name refers to.
#[derive(Clone, Debug)]
pub(crate) struct Alias {
    pub source: AdapterSource,
    pub generation: GenerationId,
    pub pinned: bool,
    pub created: u64,
    pub rank: usize,
    pub bytes: u64,
}

/// A request to load an adapter under a name.
#[derive(Clone, Debug)]
pub(crate) struct LoadRequest {
    pub name: String,
    pub source: AdapterSource,
    /// Whether the request may replace an existing alias.
    pub replaces: bool,
    /// The version that the alias must refer to before the change. With `None`, any version is accepted.
    pub expected: Option<GenerationId>,
    pub pinned: bool,
}

/// Reason why an alias was not changed.
#[derive(Debug)]
pub(crate) enum SetError {
    IsLoaded,
    IsBusy,
    Mismatch {
        found: Option<GenerationId>,
    },
    Unknown,
    /// The adapter exceeds the limit by itself.
    TooLarge {
        bytes: u64,
        max: u64,
    },
    /// Adapters that requests use leave no room at the moment.
    NoRoom {
        bytes: u64,
        max: u64,
    },
    Load(Box<LoadError>),
    LoaderEnded,
}

/// Result of a load, or `None` until the load ends. Several requests may wait for the same load.
type Outcome = Option<Result<Arc<Generation>, ApiError>>;

#[derive(Default)]
struct State {
    aliases: BTreeMap<String, Alias>,
    residency: Residency,
    /// Running loads that requests have started, by alias or Hub name.
    loading: HashMap<String, Receiver<Outcome>>,
    /// Aliases that a load request is currently changing.
    setting: Vec<String>,
    failures: HashMap<String, (Instant, ApiError)>,
}

/// All adapters of a server.
pub(crate) struct Registry {
    options: RegistryOptions,
    loader: AdapterLoader,
    state: Mutex<State>,
    disk: LoadPool,
    hub: LoadPool,
}

impl Registry {
    /// Returns a registry without adapters.
    ///
    /// # Errors
    /// If the system cannot start a thread.
    pub fn new(options: RegistryOptions, loader: AdapterLoader) -> std::io::Result<Self> {
        let mut state = State::default();
        state.residency.set_max_bytes(options.max_bytes);
        let (disk, hub) = (LoadPool::start("load", DISK_THREADS)?, LoadPool::start("fetch", HUB_THREADS)?);
        Ok(Self { options, loader, state: Mutex::new(state), disk, hub })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the settings.
    pub fn options(&self) -> &RegistryOptions {
        &self.options
    }

    /// Returns the loader.
    pub fn loader(&self) -> &AdapterLoader {
        &self.loader
    }

    /// Returns whether `name` is a name of the base.
    pub fn is_base(&self, name: &str) -> bool {
        self.options.base_names.iter().any(|base| base == name)
    }

    /// Returns a lease on the base.
    pub fn base_lease(&self) -> Lease {
        Lease { generation: None, profile: Arc::clone(self.loader.profiles.of_base()), alias: None }
    }

    /// Returns a lease on the model `name`. If `name` is an adapter that is not in memory, loads the adapter
    /// first.
    ///
    /// # Errors
    /// If there is no such model, or the model cannot be loaded. The error of a failed load is repeated for
    /// [`FAILURE_MEMORY`].
    pub async fn lease(self: &Arc<Self>, name: &str) -> Result<Lease, ApiError> {
        if self.is_base(name) {
            return Ok(self.base_lease());
        }
        let mut outcome = match self.find(name)? {
            Found::Resident(generation) => return Ok(lease_of(name, generation)),
            Found::Loading(outcome) => outcome,
        };
        let loaded = outcome.wait_for(Option::is_some).await.map_err(|_| loader_ended())?;
        let generation = loaded.clone().unwrap_or_else(|| Err(loader_ended()))?;
        Ok(lease_of(name, generation))
    }

    /// Returns a lease on the adapter version `id`, if this version is in memory.
    pub fn lease_generation(&self, id: &GenerationId) -> Option<Lease> {
        let mut state = self.lock();
        let generation = state.residency.get(id)?;
        let alias = state.aliases.iter().find(|(_, alias)| alias.generation == *id).map(|(name, _)| name);
        Some(lease_of(alias.map_or("", String::as_str), generation))
    }

    /// Returns the adapter version if it is in memory. If not, joins a load in progress or starts a load.
    fn find(self: &Arc<Self>, name: &str) -> Result<Found, ApiError> {
        let mut state = self.lock();
        let (source, is_alias) = match state.aliases.get(name) {
            Some(alias) => {
                let id = alias.generation;
                let source = alias.source.clone();
                if let Some(generation) = state.residency.get(&id) {
                    return Ok(Found::Resident(generation));
                }
                (source, true)
            }
            None => match self.allowed_hub_name(name) {
                Some(name) => (AdapterSource::Hub(name), false),
                None => return Err(ApiError::unknown_model(name, &self.nearest(&state, name))),
            },
        };
        if let Some(outcome) = state.loading.get(name) {
            return Ok(Found::Loading(outcome.clone()));
        }
        if let Some((_, error)) = state.failures.get(name).filter(|(at, _)| at.elapsed() < FAILURE_MEMORY) {
            return Err(error.clone());
        }
        let (sender, outcome) = channel(None);
        state.loading.insert(name.to_owned(), outcome.clone());
        drop(state);
        self.start_load(name.to_owned(), source, is_alias, sender);
        Ok(Found::Loading(outcome))
    }

    /// Starts a load. All requests that wait for `name` receive the result.
    fn start_load(
        self: &Arc<Self>,
        name: String,
        source: AdapterSource,
        is_alias: bool,
        sender: Sender<Outcome>,
    ) {
        let pool = self.pool(&source);
        let registry = Arc::clone(self);
        pool.run(move || {
            let ended = LoadEnd { registry: &registry, name: &name };
            let result = match registry.loader.load(&source) {
                Ok(generation) => registry.keep_loaded(&name, source, is_alias, generation),
                Err(error) => Err(ApiError::from(error)),
            };
            if let Err(error) = &result {
                let mut state = registry.lock();
                if state.failures.len() >= MAX_FAILURES {
                    state.failures.retain(|_, (at, _)| at.elapsed() < FAILURE_MEMORY);
                }
                if state.failures.len() < MAX_FAILURES {
                    state.failures.insert(name.clone(), (Instant::now(), error.clone()));
                }
            }
            // The entry in `loading` is removed before the result is sent. A new request then finds the
            // loaded adapter or the stored error.
            drop(ended);
            let _ = sender.send(Some(result));
        });
    }

    fn pool(&self, source: &AdapterSource) -> &LoadPool {
        match source {
            AdapterSource::Folder(_) => &self.disk,
            AdapterSource::Hub(_) => &self.hub,
        }
    }

    /// Stores a version that was loaded for a request, and sets its alias.
    fn keep_loaded(
        &self,
        name: &str,
        source: AdapterSource,
        is_alias: bool,
        generation: Generation,
    ) -> Result<Arc<Generation>, ApiError> {
        let mut state = self.lock();
        let is_removed = is_alias && state.aliases.get(name).is_none_or(|alias| alias.source != source);
        if is_removed {
            // The alias was removed or replaced during the load. The waiting requests are older than this
            // change, so they use the loaded version, which is not stored.
            return Ok(Arc::new(generation));
        }
        let generation = state.insert(generation).map_err(|error| set_error(name, error))?;
        state.set_alias(name, source, &generation, None);
        Ok(generation)
    }

    /// Loads an adapter and sets its alias.
    ///
    /// # Errors
    /// If the alias does not meet the conditions in `request`, or the adapter cannot be loaded. The alias is
    /// then unchanged.
    pub async fn set(self: &Arc<Self>, request: LoadRequest) -> Result<Arc<Generation>, SetError> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let registry = Arc::clone(self);
        self.pool(&request.source).run(move || {
            // The send fails if the client has disconnected. The alias is set anyway.
            let _ = sender.send(registry.set_now(request));
        });
        receiver.await.map_err(|_| SetError::LoaderEnded)?
    }

    /// Does the same as [`Registry::set`], but on the current thread.
    pub fn set_now(&self, request: LoadRequest) -> Result<Arc<Generation>, SetError> {
        {
            let mut state = self.lock();
            state.check(&request)?;
            if state.setting.contains(&request.name) {
                return Err(SetError::IsBusy);
            }
            state.setting.push(request.name.clone());
        }
        let _setting = Setting { registry: self, name: &request.name };
        let generation =
            self.loader.load(&request.source).map_err(|error| SetError::Load(Box::new(error)))?;
        let mut state = self.lock();
        state.check(&request)?;
        state.check_pinned(&request, generation.bytes)?;
        let generation = state.insert(generation)?;
        state.set_alias(&request.name, request.source.clone(), &generation, Some(request.pinned));
        state.failures.remove(&request.name);
        Ok(generation)
    }

    /// Removes an alias. Running requests continue with their adapter version.
    ///
    /// # Errors
    /// If there is no such alias, or the alias refers to a version that differs from `expected`.
    pub fn remove(&self, name: &str, expected: Option<GenerationId>) -> Result<(), SetError> {
        let mut state = self.lock();
        let Some(alias) = state.aliases.get(name) else { return Err(SetError::Unknown) };
        if expected.is_some_and(|expected| expected != alias.generation) {
            return Err(SetError::Mismatch { found: Some(alias.generation) });
        }
        let id = alias.generation;
        state.aliases.remove(name);
        state.retire_unnamed(id);
        Ok(())
    }

    /// Returns all aliases. The flag of each alias tells whether its version is in memory.
    pub fn aliases(&self) -> Vec<(String, Alias, bool)> {
        let state = self.lock();
        let of = |(name, alias): (&String, &Alias)| {
            (name.clone(), alias.clone(), state.residency.is_resident(&alias.generation))
        };
        state.aliases.iter().map(of).collect()
    }

    /// Returns one alias, and whether its version is in memory.
    pub fn alias(&self, name: &str) -> Option<(Alias, bool)> {
        let state = self.lock();
        let alias = state.aliases.get(name)?;
        Some((alias.clone(), state.residency.is_resident(&alias.generation)))
    }

    /// Returns the adapter versions in memory, including removed versions that running requests use.
    pub fn generations(&self) -> Vec<GenerationState> {
        let state = self.lock();
        let mut generations = state.residency.states();
        for generation in &mut generations {
            let named = state.aliases.iter().filter(|(_, alias)| alias.generation == generation.id);
            generation.aliases = named.map(|(name, _)| name.clone()).collect();
        }
        generations
    }

    /// Returns the size of all adapter versions in memory, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        self.lock().residency.bytes()
    }

    /// Returns the number of evicted adapter versions.
    pub fn evictions(&self) -> u64 {
        self.lock().residency.evictions()
    }

    /// Returns the names of models that are being loaded for requests.
    pub fn loading(&self) -> Vec<String> {
        self.lock().loading.keys().cloned().collect()
    }

    /// Parses `name` as a Hub name. Returns the repository if a pattern of `--allow-hub` matches it.
    pub fn allowed_hub_name(&self, name: &str) -> Option<RepoName> {
        let name: RepoName = name.parse().ok()?;
        let matches = |pattern: &String| match pattern.strip_suffix('*') {
            Some(prefix) => name.id().starts_with(prefix),
            None => name.id() == pattern,
        };
        self.options.allow_hub.iter().any(matches).then_some(name)
    }

    /// Returns the known names that are most similar to `name`.
    fn nearest(&self, state: &State, name: &str) -> Vec<String> {
        const MAX_SHOWN: usize = 3;
        let known = self.options.base_names.iter().take(1).chain(state.aliases.keys());
        let mut names: Vec<(usize, &String)> =
            known.map(|known| (edit_distance(&name.to_lowercase(), &known.to_lowercase()), known)).collect();
        names.sort();
        names.into_iter().take(MAX_SHOWN).map(|(_, name)| name.clone()).collect()
    }
}

/// A model in memory, or a load in progress.
enum Found {
    Resident(Arc<Generation>),
    Loading(Receiver<Outcome>),
}

fn lease_of(name: &str, generation: Arc<Generation>) -> Lease {
    let profile = Arc::clone(&generation.profile);
    Lease { generation: Some(generation), profile, alias: Some(name.to_owned()) }
}

fn loader_ended() -> ApiError {
    ApiError::internal("cannot load the adapter: its loader has ended")
}

/// Returns the error for a request whose adapter does not fit in memory.
fn set_error(name: &str, error: SetError) -> ApiError {
    match error {
        SetError::NoRoom { bytes, max } => no_room(name, bytes, max),
        SetError::TooLarge { bytes, max } => ApiError::invalid(format!(
            "cannot load `{name}`: it needs {bytes} bytes, and adapters may have {max}"
        ))
        .with_code("lora_byte_limit_exceeded"),
        _ => loader_ended(),
    }
}

/// Returns the error for an adapter that fits as soon as running requests end.
pub(crate) fn no_room(name: &str, bytes: u64, max: u64) -> ApiError {
    let message = format!(
        "cannot load `{name}`: it needs {bytes} bytes, and adapters in use leave no room within {max}"
    );
    ApiError::too_many("lora_load_busy", message, 1)
}

/// Removes an entry from `loading` when dropped, even after a panic.
struct LoadEnd<'a> {
    registry: &'a Registry,
    name: &'a str,
}

impl Drop for LoadEnd<'_> {
    fn drop(&mut self) {
        self.registry.lock().loading.remove(self.name);
    }
}

/// Removes an entry from `setting` when dropped, even after a panic.
struct Setting<'a> {
    registry: &'a Registry,
    name: &'a str,
}

impl Drop for Setting<'_> {
    fn drop(&mut self) {
        self.registry.lock().setting.retain(|name| name != self.name);
    }
}

impl State {
    /// Checks that the alias meets the conditions in `request`.
    fn check(&self, request: &LoadRequest) -> Result<(), SetError> {
        let found = self.aliases.get(&request.name).map(|alias| alias.generation);
        if request.expected.is_some() && request.expected != found {
            return Err(SetError::Mismatch { found });
        }
        match found {
            Some(_) if !request.replaces => Err(SetError::IsLoaded),
            _ => Ok(()),
        }
    }

    /// Limits the pinned adapters to half of [`RegistryOptions::max_bytes`], so that other adapters can still
    /// be loaded.
    fn check_pinned(&self, request: &LoadRequest, bytes: u64) -> Result<(), SetError> {
        if !request.pinned {
            return Ok(());
        }
        let others = self.aliases.iter().filter(|(name, alias)| alias.pinned && **name != request.name);
        let pinned: u64 = others.map(|(_, alias)| alias.bytes).sum();
        let max = self.residency.max_bytes() / 2;
        if pinned + bytes > max { Err(SetError::TooLarge { bytes: pinned + bytes, max }) } else { Ok(()) }
    }

    /// Stores an adapter version. If the version does not fit in memory, evicts other versions first.
    fn insert(&mut self, generation: Generation) -> Result<Arc<Generation>, SetError> {
        let pinned: Vec<GenerationId> =
            self.aliases.values().filter(|alias| alias.pinned).map(|alias| alias.generation).collect();
        self.residency.insert(generation, &pinned)
    }

    fn set_alias(
        &mut self,
        name: &str,
        source: AdapterSource,
        generation: &Arc<Generation>,
        pinned: Option<bool>,
    ) {
        let before = self.aliases.get(name).map(|alias| (alias.generation, alias.pinned, alias.created));
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let is_same = before.is_some_and(|(id, ..)| id == generation.id);
        let alias = Alias {
            source,
            generation: generation.id,
            pinned: pinned.or(before.map(|(_, pinned, _)| pinned)).unwrap_or(false),
            created: before.filter(|_| is_same).map_or(now, |(.., created)| created),
            rank: generation.rank,
            bytes: generation.bytes,
        };
        self.aliases.insert(name.to_owned(), alias);
        if let Some((id, ..)) = before.filter(|_| !is_same) {
            self.retire_unnamed(id);
        }
    }

    /// Removes the version `id` from memory after its last lease is dropped, unless an alias still refers to
    /// it.
    fn retire_unnamed(&mut self, id: GenerationId) {
        if !self.aliases.values().any(|alias| alias.generation == id) {
            self.residency.retire(&id);
        }
    }
}
