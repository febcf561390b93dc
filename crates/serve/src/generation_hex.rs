//! Parses the ids of adapter versions.

use danlu_generate::GenerationId;

/// Parses the id of an adapter version: 64 hexadecimal digits.
pub(crate) fn parse_generation(text: &str) -> Option<GenerationId> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(GenerationId(bytes))
}
