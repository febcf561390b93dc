//! The data sets inside the binary. `demo` trains on them, and `data get` writes them.

/// A data set of our own writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmbeddedData {
    /// Name for `data get`.
    pub name: &'static str,
    /// Name of the file that the demo writes.
    pub file: &'static str,
    pub text: &'static str,
}

/// Chat data in Chinese, in the voice of a consort of an invented dynasty.
pub const PALACE: EmbeddedData =
    EmbeddedData { name: "palace", file: "palace.json", text: include_str!("../assets/palace.json") };

/// A ship's cook, in English.
pub const COOK: EmbeddedData =
    EmbeddedData { name: "cook", file: "persona_en.json", text: include_str!("../assets/persona_en.json") };
