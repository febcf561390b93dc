//! Random identifiers and seeds.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};

/// Returns 64 random bits. Each call returns a different value, because the standard library seeds its
/// hashers with random data of the system.
pub(crate) fn entropy() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Returns `prefix` followed by 32 random hexadecimal digits.
pub(crate) fn random_id(prefix: &str) -> String {
    format!("{prefix}{:016x}{:016x}", entropy(), entropy())
}
