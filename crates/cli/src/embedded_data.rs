//! The data sets inside the binary. `demo` trains on them, and `data get` writes them.

/// A data set that danlu's authors wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmbeddedData {
    /// The name that `danlu data get` accepts.
    pub name: &'static str,
    /// Name of the file that the demo writes.
    pub file: &'static str,
    pub text: &'static str,
}

/// Chat data in Chinese. The answers are those of a consort of an invented dynasty.
pub const PALACE: EmbeddedData =
    EmbeddedData { name: "palace", file: "palace.json", text: include_str!("../assets/palace.json") };

/// Chat data in English. The answers are those of a ship's cook.
pub const COOK: EmbeddedData =
    EmbeddedData { name: "cook", file: "persona_en.json", text: include_str!("../assets/persona_en.json") };
