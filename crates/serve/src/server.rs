//! The server: binds an address, loads adapters, and starts and stops the threads.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use danlu_generate::{Scheduler, SchedulerOptions};
use danlu_loader::{LoadedBase, ModelTokens};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::app::App;
use crate::connections::serve_connections;
use crate::engine_thread::EngineHandle;
use crate::grammar::MaskWorker;
use crate::metrics::Metrics;
use crate::model_profile::ModelProfiles;
use crate::registry::{
    AdapterLoader, LoadRequest, Registry, RegistryOptions, SetError, Watcher, check_alias,
};
use crate::routes;
use crate::security::Security;
use crate::wire::now;
use crate::{ServeError, ServeOptions};

/// Maximum number of threads for slow work, such as rendering templates and encoding text. More threads would
/// slow down the engine.
const BLOCKING_THREADS: usize = 4;

/// Maximum time for open connections to close after the server begins to stop.
const CLOSE_TIME: Duration = Duration::from_secs(1);

/// During shutdown, the server checks at this interval whether requests are still running.
const DRAIN_INTERVAL: Duration = Duration::from_millis(20);

/// A running server. When it is dropped, it rejects new requests and closes the connections within about two
/// seconds.
pub struct Server {
    address: SocketAddr,
    app: Arc<App>,
    /// The server stops when this sender is dropped.
    stop: Option<watch::Sender<()>>,
    http: Option<JoinHandle<()>>,
    _watcher: Watcher,
}

impl Server {
    /// Starts a server for the model `base` with its tokenizer `tokens`. Returns after the server accepts
    /// requests.
    ///
    /// # Errors
    /// If the address cannot be bound or needs a key, or if a name is invalid. Also returns an error if an
    /// adapter cannot be loaded, or the system cannot start a thread.
    pub fn start(
        base: Arc<LoadedBase>,
        tokens: ModelTokens,
        options: ServeOptions,
    ) -> Result<Self, ServeError> {
        check_names(&options)?;
        let listener = bind(&options)?;
        let io = |source| ServeError::Bind { address: options.host.clone(), source };
        let address = listener.local_addr().map_err(io)?;
        let app = Arc::new(make_app(base, tokens, &options, address)?);
        for adapter in &options.adapters {
            load_first(&app, &adapter.name, &adapter.source)?;
        }
        let watcher = Watcher::start(Arc::clone(&app.registry), options.watches.clone());
        let watcher = watcher.map_err(ServeError::Thread)?;
        listener.set_nonblocking(true).map_err(io)?;
        let (stop, stopped) = watch::channel(());
        let (router, metrics) = (routes::router(&app), Arc::clone(&app.metrics));
        let (runtime, listener) = http_runtime(listener).map_err(ServeError::Runtime)?;
        let run = move || {
            let limits = options.connections;
            let serving = serve_connections(listener, router, limits, metrics, stopped, CLOSE_TIME);
            runtime.block_on(serving);
            runtime.shutdown_timeout(CLOSE_TIME);
        };
        let http = thread::Builder::new().name("http".to_owned()).spawn(run).map_err(ServeError::Thread)?;
        Ok(Self { address, app, stop: Some(stop), http: Some(http), _watcher: watcher })
    }

    /// Returns the address that the server is bound to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the names of the server's adapters.
    pub fn adapters(&self) -> Vec<String> {
        self.app.registry.aliases().into_iter().map(|(name, ..)| name).collect()
    }

    /// Returns whether the server still accepts requests. After a failure of the engine, the server rejects
    /// all requests.
    pub fn is_alive(&self) -> bool {
        self.app.check_ready().is_ok() && self.http.as_ref().is_some_and(|http| !http.is_finished())
    }

    /// Rejects new requests, waits up to `timeout` for the running requests, and stops the server. Returns
    /// the number of requests that did not finish.
    pub fn drain(self, timeout: Duration) -> usize {
        self.app.is_draining.store(true, Ordering::Relaxed);
        let started = Instant::now();
        while self.app.engine.in_flight() > 0 && started.elapsed() < timeout {
            thread::sleep(DRAIN_INTERVAL);
        }
        self.app.engine.in_flight()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.app.is_draining.store(true, Ordering::Relaxed);
        drop(self.stop.take());
        if let Some(http) = self.http.take() {
            // If the thread panicked, the message was already printed.
            let _ = http.join();
        }
    }
}

/// Checks that the names of the base and the adapters are valid and distinct.
fn check_names(options: &ServeOptions) -> Result<(), ServeError> {
    let watched = options.watches.iter().map(|(name, _)| name);
    let mut names: Vec<&String> = options.base_names.iter().collect();
    for name in options.adapters.iter().map(|adapter| &adapter.name).chain(watched) {
        check_alias(name).map_err(|message| ServeError::Name { message })?;
        if names.contains(&name) {
            let message = format!("cannot serve `{name}`: the base or another adapter has that name");
            return Err(ServeError::Name { message });
        }
        names.push(name);
    }
    Ok(())
}

/// Binds the first address of the host that can be bound.
fn bind(options: &ServeOptions) -> Result<TcpListener, ServeError> {
    let host = options.host.clone();
    let addresses = (host.as_str(), options.port).to_socket_addrs();
    let addresses: Vec<SocketAddr> =
        addresses.map_err(|source| ServeError::Host { host: host.clone(), source })?.collect();
    let is_open = addresses.iter().any(|address| !address.ip().is_loopback());
    if is_open && options.api_key.is_none() && !options.is_insecure {
        return Err(ServeError::NoKey { host });
    }
    TcpListener::bind(&addresses[..])
        .map_err(|source| ServeError::Bind { address: format!("{host}:{}", options.port), source })
}

fn make_app(
    base: Arc<LoadedBase>,
    tokens: ModelTokens,
    options: &ServeOptions,
    address: SocketAddr,
) -> Result<App, ServeError> {
    let decoder = Arc::clone(base.decoder());
    let config = decoder.config().clone();
    let scheduler = Scheduler::new(
        decoder,
        SchedulerOptions {
            max_running: options.max_running,
            // `EngineHandle` limits the number of requests before they reach the scheduler.
            max_queued: usize::MAX,
            max_kv_tokens: options.max_kv_tokens,
            prefill_tokens: options.prefill_tokens,
            prefix_cache: options.prefix_cache,
        },
    );
    let context = options.context.min(scheduler.max_context_tokens());
    let max_in_flight = options.max_running.saturating_add(options.max_queued);
    let engine = EngineHandle::start(scheduler, max_in_flight).map_err(ServeError::Thread)?;
    let ModelTokens { tokenizer, default_system } = tokens;
    let profiles = ModelProfiles::new(Arc::clone(base.files()), config.clone(), tokenizer, default_system)?;
    let metrics = Arc::new(Metrics::default());
    let loader = AdapterLoader { base, profiles, metrics: Arc::clone(&metrics) };
    let registry_options = RegistryOptions {
        base_names: options.base_names.clone(),
        allow_hub: options.allow_hub.clone(),
        adapter_root: options.adapter_root.clone(),
        max_bytes: options.max_adapter_bytes,
    };
    let registry = Registry::new(registry_options, loader).map_err(ServeError::Thread)?;
    let (api_key, admin_key) = (options.api_key.as_deref(), options.admin_key.as_deref());
    Ok(App {
        registry: Arc::new(registry),
        engine,
        masks: MaskWorker::start().map_err(ServeError::Thread)?,
        metrics,
        security: Security::new(api_key, admin_key, options.allows_updates, &options.host, address.ip()),
        context,
        vocab_size: config.vocab_size,
        max_body_bytes: options.max_body_bytes,
        body_time: options.connections.body_time,
        max_requests: max_in_flight.saturating_mul(2).saturating_add(MIN_REQUESTS),
        requests: Default::default(),
        started: now(),
        is_draining: AtomicBool::new(false),
    })
}

/// Number of requests that [`App::max_requests`] allows even if the queue is small.
const MIN_REQUESTS: usize = 64;

/// Loads an adapter before the server accepts requests.
fn load_first(app: &App, name: &str, source: &crate::AdapterSource) -> Result<(), ServeError> {
    let request = LoadRequest {
        name: name.to_owned(),
        source: source.clone(),
        replaces: false,
        expected: None,
        pinned: false,
    };
    match app.registry.set_now(request) {
        Ok(_) => Ok(()),
        Err(SetError::Load(source)) => Err(ServeError::Adapter { name: name.to_owned(), source }),
        Err(SetError::TooLarge { bytes, max }) => {
            Err(ServeError::AdapterMemory { name: name.to_owned(), bytes, max })
        }
        Err(other) => Err(ServeError::Name { message: format!("cannot serve `{name}`: {other:?}") }),
    }
}

/// Creates the runtime of the HTTP thread and its listener. Returns an error if the system allows no more
/// open files.
fn http_runtime(listener: TcpListener) -> io::Result<(Runtime, tokio::net::TcpListener)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name("request")
        .build()?;
    let listener = {
        let _context = runtime.enter();
        tokio::net::TcpListener::from_std(listener)?
    };
    Ok((runtime, listener))
}
