//! Recognizes files without readable records, such as archives and workbooks, by their first bytes. Errors
//! and hints name the type of the file.

use std::path::Path;

/// A file type that danlu cannot read records from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnsupportedFile {
    /// An Excel workbook, `.xlsx`.
    Xlsx,
    /// An Excel workbook or Word document in the old OLE format, `.xls` or `.doc`.
    Ole,
    /// A Word document, `.docx`.
    Docx,
    /// A ZIP archive.
    Zip,
    /// An Arrow file or stream.
    Arrow,
    /// A web page.
    Html,
    /// An XML document.
    Xml,
    /// A PDF document.
    Pdf,
    /// An SQLite database.
    Sqlite,
    /// A bzip2 or xz stream, or a 7z, RAR or tar archive.
    Archive,
    /// A Python pickle or a NumPy file.
    Python,
    /// A Git LFS pointer file, which has the name of the real file but not its contents.
    LfsPointer,
}

/// A compression format that [`crate::read()`] decompresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    Gzip,
    Zstd,
}

impl Compression {
    pub fn of(head: &[u8]) -> Option<Self> {
        match head {
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// Returns whether a file starts with the magic number of Parquet.
pub(crate) fn is_parquet(head: &[u8]) -> bool {
    head.starts_with(b"PAR1")
}

impl UnsupportedFile {
    /// Recognizes the type of a file from its first bytes. A few kilobytes of `head` are enough.
    pub(crate) fn of(head: &[u8]) -> Option<Self> {
        const MAGIC: [(&[u8], UnsupportedFile); 14] = [
            (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", UnsupportedFile::Ole),
            (b"ARROW1", UnsupportedFile::Arrow),
            (b"\xff\xff\xff\xff", UnsupportedFile::Arrow),
            (b"%PDF-", UnsupportedFile::Pdf),
            (b"SQLite format 3\0", UnsupportedFile::Sqlite),
            (b"BZh", UnsupportedFile::Archive),
            (b"\xfd7zXZ\0", UnsupportedFile::Archive),
            (b"7z\xbc\xaf\x27\x1c", UnsupportedFile::Archive),
            (b"Rar!\x1a\x07", UnsupportedFile::Archive),
            (b"\x93NUMPY", UnsupportedFile::Python),
            (b"\x80\x02}", UnsupportedFile::Python),
            (b"\x80\x03]", UnsupportedFile::Python),
            (b"\x80\x04\x95", UnsupportedFile::Python),
            (b"version https://git-lfs", UnsupportedFile::LfsPointer),
        ];
        if head.starts_with(b"PK\x03\x04") || head.starts_with(b"PK\x05\x06") {
            return Some(Self::zipped(head));
        }
        if let Some((_, kind)) = MAGIC.iter().find(|(magic, _)| head.starts_with(magic)) {
            return Some(*kind);
        }
        let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
        // A JSON file may contain this word at the same offset.
        if head.get(257..262) == Some(b"ustar") && !text.starts_with(b"[") && !text.starts_with(b"{") {
            return Some(Self::Archive);
        }
        let start = String::from_utf8_lossy(&text[..text.len().min(256)]).to_lowercase();
        match start {
            start if start.starts_with("<?xml") && !start.contains("<html") => Some(Self::Xml),
            start if start.starts_with('<') && !start.starts_with("<|") => Some(Self::Html),
            _ => None,
        }
    }

    /// Returns the type of a ZIP archive, which depends on the file names in the archive.
    fn zipped(head: &[u8]) -> Self {
        let contains = |name: &[u8]| head.windows(name.len()).any(|window| window == name);
        match () {
            () if contains(b"xl/") => Self::Xlsx,
            () if contains(b"word/") => Self::Docx,
            () => Self::Zip,
        }
    }

    /// Returns the common name of the type, with an article.
    pub fn name(self) -> &'static str {
        match self {
            Self::Xlsx => "an Excel workbook (xlsx)",
            Self::Ole => "an old Office document (xls or doc)",
            Self::Docx => "a Word document (docx)",
            Self::Zip => "a ZIP archive",
            Self::Arrow => "an Arrow file",
            Self::Html => "a web page (HTML)",
            Self::Xml => "an XML document",
            Self::Pdf => "a PDF document",
            Self::Sqlite => "an SQLite database",
            Self::Archive => "a compressed archive (bzip2, xz, 7z, RAR or tar)",
            Self::Python => "a Python pickle or NumPy file",
            Self::LfsPointer => "a Git LFS pointer, not the file itself",
        }
    }

    /// Returns the hint of the error for `file`.
    pub fn hint(self, file: &Path) -> String {
        let file = file.display();
        match self {
            Self::Xlsx | Self::Ole => {
                "save the sheet as CSV UTF-8 in the spreadsheet program; danlu reads CSV and TSV".into()
            }
            Self::Zip => format!("unpack it with `unzip {file}` and name the file inside"),
            Self::Archive => "unpack it and name the file inside; danlu reads .gz and .zst as they are".into(),
            Self::Arrow => {
                "write it as Parquet or JSON, with `Dataset.to_parquet` or `Dataset.to_json` of Python's datasets"
                    .into()
            }
            Self::Html => "download the raw file in place of the page that shows it".into(),
            Self::LfsPointer => "fetch the file with `git lfs pull`, or download it from its page".into(),
            Self::Docx | Self::Xml | Self::Pdf | Self::Sqlite | Self::Python => {
                "write its records as JSON lines, CSV or Parquet".into()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_recognized_by_its_first_bytes() {
        let of = |head: &[u8]| UnsupportedFile::of(head);
        assert_eq!(
            of(b"PK\x03\x04\x14\0\0\0[Content_Types].xml..xl/workbook.xml"),
            Some(UnsupportedFile::Xlsx)
        );
        assert_eq!(of(b"PK\x03\x04\x14\0\0\0data.json"), Some(UnsupportedFile::Zip));
        assert_eq!(of(b"ARROW1\0\0"), Some(UnsupportedFile::Arrow));
        assert_eq!(of(b"\n <!DOCTYPE html>"), Some(UnsupportedFile::Html));
        assert_eq!(of(b"<?xml version='1.0'?><a/>"), Some(UnsupportedFile::Xml));
        assert_eq!(of(b"version https://git-lfs.github.com/spec/v1\n"), Some(UnsupportedFile::LfsPointer));
        let at_the_place_of_a_mark = |start: &str| format!("{start}{}ustar", "x".repeat(257 - start.len()));
        assert_eq!(of(at_the_place_of_a_mark("name").as_bytes()), Some(UnsupportedFile::Archive));
        assert_eq!(of(at_the_place_of_a_mark("[{\"text\": \"").as_bytes()), None);
        for text in
            [&b"[{}]"[..], b"{\"a\": 1}", b"a,b\n1,2\n", b"<|im_start|>user", b"\xef\xbb\xbfa\tb", b""]
        {
            assert_eq!(of(text), None);
        }
    }
}
