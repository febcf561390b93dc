//! Guesses the encoding of a file that is not UTF-8, so that a message can show the conversion command.

use std::path::Path;

/// An encoding other than UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Charset {
    /// UTF-16 with a byte order mark.
    Utf16,
    /// UTF-16, little-endian, without a byte order mark.
    Utf16Le,
    /// UTF-16, big-endian, without a byte order mark.
    Utf16Be,
    /// Simplified Chinese, in GB 18030 or in one of its subsets GBK and GB 2312.
    Gb18030,
    /// Western European, in Windows-1252 or in its subset Latin-1.
    Windows1252,
}

impl Charset {
    /// Detects UTF-16 from the first two bytes, which are a byte order mark or the first character. JSON
    /// starts with an ASCII character, and one of the two bytes of an ASCII character is zero.
    pub(crate) fn of_start(bytes: &[u8]) -> Option<Self> {
        match bytes {
            // A byte order mark of UTF-16 starts with 0xff or 0xfe, which never occur in UTF-8.
            [0xff | 0xfe, ..] => Some(Self::Utf16),
            [0, ..] => Some(Self::Utf16Be),
            [_, 0, ..] => Some(Self::Utf16Le),
            _ => None,
        }
    }

    /// Returns the common name of the encoding.
    pub fn name(self) -> &'static str {
        match self {
            Self::Utf16 | Self::Utf16Le | Self::Utf16Be => "UTF-16",
            Self::Gb18030 => "GB18030 (GBK)",
            Self::Windows1252 => "Windows-1252 (Latin-1)",
        }
    }

    /// Returns the shell command that converts `file` to UTF-8.
    pub fn conversion(self, file: &Path) -> String {
        let from = match self {
            Self::Utf16 => "UTF-16",
            Self::Utf16Le => "UTF-16LE",
            Self::Utf16Be => "UTF-16BE",
            Self::Gb18030 => "GB18030",
            Self::Windows1252 => "WINDOWS-1252",
        };
        let extension = file.extension().map_or_else(|| "utf8".into(), |e| format!("utf8.{}", e.display()));
        let quoted = |path: &Path| {
            let path = path.display().to_string();
            let plain = path.chars().all(|c| c.is_alphanumeric() || "/._-+".contains(c));
            if plain { path } else { format!("'{}'", path.replace('\'', "'\\''")) }
        };
        format!(
            "iconv -f {from} -t UTF-8 {} > {}",
            quoted(file),
            quoted(Path::new(&file.with_extension(extension)))
        )
    }

    /// Returns the hint for a file in this encoding.
    pub fn hint(self, file: &Path) -> String {
        format!("the file looks like {}; convert it with {}", self.name(), self.conversion(file))
    }
}

/// Counts of non-ASCII bytes, from which [`Self::encoding`] guesses the encoding.
#[derive(Debug, Default)]
pub(crate) struct CharsetEvidence {
    /// Whether any UTF-8 record contains non-ASCII text.
    utf8: bool,
    /// Number of non-ASCII bytes that have a non-ASCII neighbour.
    paired: usize,
    /// Number of non-ASCII bytes between ASCII bytes.
    alone: usize,
}

impl CharsetEvidence {
    pub fn utf8(&mut self, text: &str) {
        self.utf8 |= !text.is_ascii();
    }

    pub fn other(&mut self, bytes: &[u8]) {
        let (mut whole, mut broken) = (0, 0);
        for chunk in bytes.utf8_chunks() {
            whole += chunk.valid().chars().filter(|c| !c.is_ascii()).count();
            broken += usize::from(!chunk.invalid().is_empty());
        }
        self.utf8 |= whole > 0 && whole >= broken;
        for run in bytes.split(u8::is_ascii).filter(|run| !run.is_empty()) {
            let count = if run.len() == 1 { &mut self.alone } else { &mut self.paired };
            *count += run.len();
        }
    }

    /// Returns the likely encoding. Returns `None` for ASCII, and for UTF-8 with a few damaged bytes.
    ///
    /// In GB 18030, non-ASCII bytes occur in pairs. In Windows-1252, an accented letter has ASCII neighbours.
    pub fn encoding(&self) -> Option<Charset> {
        match (self.utf8, self.paired, self.alone) {
            (true, ..) | (_, 0, 0) => None,
            (_, paired, alone) if paired > alone => Some(Charset::Gb18030),
            _ => Some(Charset::Windows1252),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(records: &[&[u8]]) -> Option<Charset> {
        let mut evidence = CharsetEvidence::default();
        for record in records {
            match std::str::from_utf8(record) {
                Ok(text) => evidence.utf8(text),
                Err(_) => evidence.other(record),
            }
        }
        evidence.encoding()
    }

    #[test]
    fn chinese_and_western_bytes_are_distinguished() {
        // Expected bytes: `printf '你好，甄嬛。' | iconv -t GB18030` and `printf 'Café déjà' | iconv -t LATIN1`.
        let chinese = b"\xc4\xe3\xba\xc3\xa3\xac\xd5\xe7\x8b\xd6\xa1\xa3";
        let western = b"Caf\xe9 d\xe9j\xe0";
        assert_eq!(seen(&[b"plain", chinese]), Some(Charset::Gb18030));
        assert_eq!(seen(&[western]), Some(Charset::Windows1252));
        assert_eq!(seen(&["甄嬛".as_bytes(), western]), None, "damage in a file that is UTF-8");
        assert_eq!(seen(&["甄嬛".as_bytes(), b"plain"]), None);
        assert_eq!(
            seen(&[b"plain", b"\xe7\x94\x84\xe5\xac\x9b\xff"]),
            None,
            "damage in the only such record"
        );
    }

    #[test]
    fn a_conversion_can_be_pasted() {
        assert_eq!(
            Charset::Gb18030.conversion(Path::new("data/mine.json")),
            "iconv -f GB18030 -t UTF-8 data/mine.json > data/mine.utf8.json"
        );
        assert_eq!(
            Charset::Utf16.conversion(Path::new("my data")),
            "iconv -f UTF-16 -t UTF-8 'my data' > 'my data.utf8'"
        );
    }
}
