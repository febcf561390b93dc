//! What a device reports when it fails.

use std::error::Error;
use std::fmt;

/// An operation that a device could not carry out. Shapes that do not fit panic instead: callers own them.
///
/// A device computes behind the host, so the first failure is kept, later operations do nothing, and the next
/// [`read`](crate::Backend::read) returns it. Host back ends never fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendError {
    /// The operation, as the trait names it.
    pub operation: String,
    /// The device and its own words.
    pub reason: String,
    /// The next step for the user, in the imperative.
    pub hint: String,
}

impl fmt::Display for BackendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot run `{}`: {}", self.operation, self.reason)
    }
}

impl Error for BackendError {}
