//! Accepts connections, and limits their number and the time of slow clients.

use std::error::Error as _;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::process::{Resource, getrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_io_timeout::TimeoutWriter;

use crate::metrics::{Metrics, SlowPart};

/// Maximum size of the headers of a request. hyper uses buffers of up to this size for each connection.
const MAX_HEADER_BYTES: usize = 64 << 10;

/// Time until the next attempt after the system refuses a connection, for example for lack of open files.
const RETRY_TIME: Duration = Duration::from_secs(1);

/// Limits on the connections of a server, which bound the resources that slow clients can occupy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Maximum number of open connections. Further clients wait until a connection is closed. The server
    /// never uses more than half of the process's limit on open files for connections.
    pub max_connections: usize,
    /// Maximum time from the start of a connection, or from the previous response, to the end of the next
    /// headers.
    pub header_time: Duration,
    /// Maximum time for the body of a request.
    pub body_time: Duration,
    /// Maximum time in which a client accepts no byte of a response.
    pub write_time: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            max_connections: 512,
            header_time: Duration::from_secs(30),
            body_time: Duration::from_secs(60),
            write_time: Duration::from_secs(60),
        }
    }
}

impl ConnectionLimits {
    /// Limits the number of connections to half of the process's limit on open files. The other half is for
    /// the files of the base and the adapters.
    fn within_open_files(self) -> Self {
        let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let half = usize::try_from(files / 2).unwrap_or(usize::MAX).max(1);
        Self { max_connections: self.max_connections.min(half).clamp(1, Semaphore::MAX_PERMITS), ..self }
    }
}

#[derive(Clone)]
struct Shared {
    router: Router,
    limits: ConnectionLimits,
    metrics: Arc<Metrics>,
    stopped: watch::Receiver<()>,
}

/// Accepts connections until the sender of `stopped` is dropped. Then waits up to `close_time` for the open
/// connections.
pub(crate) async fn serve_connections(
    listener: TcpListener,
    router: Router,
    limits: ConnectionLimits,
    metrics: Arc<Metrics>,
    stopped: watch::Receiver<()>,
    close_time: Duration,
) {
    let limits = limits.within_open_files();
    let slots = Arc::new(Semaphore::new(limits.max_connections));
    let shared = Shared { router, limits, metrics, stopped: stopped.clone() };
    tokio::select! {
        () = accept_all(&listener, &slots, &shared) => {}
        () = until_dropped(stopped) => {}
    }
    // Without a listener, a new client gets an error at once instead of waiting.
    drop(listener);
    let all = u32::try_from(limits.max_connections).unwrap_or(u32::MAX);
    let _ = tokio::time::timeout(close_time, slots.acquire_many(all)).await;
}

async fn accept_all(listener: &TcpListener, slots: &Arc<Semaphore>, shared: &Shared) {
    loop {
        if slots.available_permits() == 0 {
            let max_connections = shared.limits.max_connections;
            tracing::warn!(max_connections, "no more connections are accepted until one closes");
        }
        // `acquire_owned` fails only if the semaphore is closed, and nothing closes it.
        let Ok(slot) = Arc::clone(slots).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(serve_connection(stream, shared.clone(), slot));
            }
            Err(error) if is_of_one_client(&error) => {}
            Err(error) => {
                tracing::error!(%error, "cannot accept a connection");
                tokio::time::sleep(RETRY_TIME).await;
            }
        }
    }
}

/// Returns whether an error of `accept` concerns only one client, which has already disconnected.
fn is_of_one_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Serves the requests of one connection. `slot` becomes free at the end.
async fn serve_connection(stream: TcpStream, shared: Shared, slot: OwnedSemaphorePermit) {
    let Shared { router, limits, metrics, stopped } = shared;
    metrics.connection_opened();
    // Without this option, the system delays small packets, and tokens arrive late.
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutWriter::new(stream);
    stream.set_timeout(Some(limits.write_time));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_time)
        .max_buf_size(MAX_HEADER_BYTES)
        .serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = until_dropped(stopped) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
        let is_write = source.is_some_and(|source| source.kind() == io::ErrorKind::TimedOut);
        let slow_part = match (error.is_timeout(), is_write) {
            (true, _) => Some(SlowPart::Headers),
            (false, true) => Some(SlowPart::Response),
            (false, false) => None,
        };
        if let Some(part) = slow_part {
            metrics.client_timed_out(part);
        }
        tracing::debug!(%error, "a connection ended");
    }
    metrics.connection_closed();
    drop(slot);
}

/// Returns after the sender was dropped.
async fn until_dropped(mut receiver: watch::Receiver<()>) {
    while receiver.changed().await.is_ok() {}
}
