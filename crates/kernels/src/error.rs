//! The error that a failed device returns.

use std::error::Error;
use std::fmt;

/// Reports that a device could not run an operation. Wrong shapes panic instead, because callers are
/// responsible for shapes.
///
/// A device computes asynchronously. After the first failure of a device, all operations are skipped, and the
/// next call of [`read`](crate::Backend::read), [`read_scalars`](crate::Backend::read_scalars) or
/// [`place`](crate::Backend::place) returns that failure. Host back ends never fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendError {
    /// Name of the failed operation of [`Backend`](crate::Backend).
    pub operation: String,
    /// Name of the device, and the error message of the device.
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
