//! Generations as text.

use danlu_generate::GenerationId;

/// Parses 64 hexadecimal digits.
pub(crate) fn parse_generation(text: &str) -> Option<GenerationId> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(GenerationId(bytes))
}
