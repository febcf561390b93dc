//! Errors when a server starts.

use std::io;

use danlu_loader::LoadError;

/// Reason why a server cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The host name cannot be resolved.
    #[error("cannot find the address of `{host}`: {source}")]
    Host {
        /// Name of the host.
        host: String,
        /// The cause.
        source: io::Error,
    },
    /// Other machines can reach the address, and no key is set.
    #[error("cannot serve on `{host}`: other machines reach this address, and no key is set")]
    NoKey {
        /// Name of the host.
        host: String,
    },
    /// The address cannot be bound, for example because another process uses the port.
    #[error("cannot bind `{address}`: {source}")]
    Bind {
        /// Host and port.
        address: String,
        /// The cause.
        source: io::Error,
    },
    /// The name of an adapter is invalid, or the base or a different adapter has this name.
    #[error("{message}")]
    Name {
        /// The whole message.
        message: String,
    },
    /// An adapter cannot be loaded.
    #[error("cannot serve `{name}`: {source}")]
    Adapter {
        /// Name of the adapter.
        name: String,
        /// The cause.
        source: Box<LoadError>,
    },
    /// The adapters need more memory than the limit.
    #[error("cannot serve `{name}`: it needs {bytes} bytes, and adapters may have {max}")]
    AdapterMemory {
        /// Name of the adapter that did not fit.
        name: String,
        /// Size of this adapter in bytes.
        bytes: u64,
        /// Limit for all adapters in bytes.
        max: u64,
    },
    /// The system cannot start a thread.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// The system allows too few open files for the HTTP thread.
    #[error("cannot start the HTTP runtime: {0}")]
    Runtime(io::Error),
    /// A file of the base is invalid.
    #[error(transparent)]
    Load(#[from] LoadError),
}

impl ServeError {
    /// Returns the next step for the user, if there is one.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Host { .. } => "use `--host 127.0.0.1`, or `--host 0.0.0.0` with `--api-key`",
            Self::NoKey { .. } => {
                "set `--api-key` or DANLU_API_KEY; `--insecure` serves everybody who reaches the address"
            }
            Self::Bind { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
                "stop the program on that port, or choose another with `--port`"
            }
            Self::Bind { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "choose a port above 1023 with `--port`"
            }
            Self::Bind { .. } => "choose an address of this machine with `--host`",
            Self::Name { .. } => "choose another name",
            Self::AdapterMemory { .. } => "raise `--adapter-memory`",
            Self::Thread(_) => "raise the limit on threads, such as `ulimit -u`",
            Self::Runtime(_) => "raise the limit on open files, such as `ulimit -n`",
            Self::Adapter { source, .. } => return source.hint(),
            Self::Load(error) => return error.hint(),
        };
        Some(hint.to_owned())
    }

    /// Returns lines to print below the message.
    pub fn details(&self) -> &[String] {
        match self {
            Self::Adapter { source, .. } => source.details(),
            Self::Load(error) => error.details(),
            _ => &[],
        }
    }
}
