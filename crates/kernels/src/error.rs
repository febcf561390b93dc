//! The error of a failed device.

use std::error::Error;
use std::fmt;

/// An operation that a device could not carry out. Shapes that do not fit panic instead: callers own them.
///
/// A device computes asynchronously. After its first failure it skips all operations, and the next
/// [`read`](crate::Backend::read) returns that failure. Host back ends never fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendError {
    /// The operation, by its name in the trait.
    pub operation: String,
    /// The device and its own error message.
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
