//! Random identifiers and seeds.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};

/// Returns 64 bits that differ with each call. The standard library seeds its hashers from the system.
pub(crate) fn entropy() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Returns `prefix` with 32 random hexadecimal digits.
pub(crate) fn random_id(prefix: &str) -> String {
    format!("{prefix}{:016x}{:016x}", entropy(), entropy())
}
