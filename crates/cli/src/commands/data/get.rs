//! `danlu data get`: writes a data set to a file. The embedded data sets need no network.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use danlu_hub::PublicFile;
use danlu_model::files;

use crate::diagnostic::{Diagnostic, Result};
use crate::embedded_data::{COOK, EmbeddedData, PALACE};
use crate::printer::Printer;
use crate::style::Style;
use crate::terminal_text;

pub const EXAMPLES: &str = "\
Examples:
  danlu data get
  danlu data get palace
  danlu data get huanhuan --output huanhuan-2.json

DANLU_DATA_MIRROR replaces https://raw.githubusercontent.com, for a network that cannot reach it. The checksum \
of the file is checked in any case.";

/// Environment variable with the URL of a mirror.
const MIRROR_VARIABLE: &str = "DANLU_DATA_MIRROR";

/// Host of the public data sets.
const PUBLIC_HOST: &str = "https://raw.githubusercontent.com";

/// The flags of `danlu data get`.
#[derive(Args, Clone, Debug)]
pub struct GetArgs {
    /// Data set; without it, all are listed
    #[arg(value_name = "NAME", value_parser = NamedData::from_str)]
    pub name: Option<NamedData>,
    /// Output file [default: the data set's own name, in this folder]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// A data set that `danlu data get` can write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamedData {
    name: &'static str,
    source: Source,
    zh: &'static str,
    en: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Embedded(EmbeddedData),
    /// A file on the public host, given by its path, checksum and size.
    Public {
        path: &'static str,
        sha256: &'static str,
        bytes: u64,
    },
}

const DATA_SETS: [NamedData; 3] = [
    NamedData {
        name: PALACE.name,
        source: Source::Embedded(PALACE),
        zh: "376 条中文对话：虚构王朝的一位妃子（内置）",
        en: "376 Chinese dialogues of a consort in an invented dynasty (embedded)",
    },
    NamedData {
        name: COOK.name,
        source: Source::Embedded(COOK),
        zh: "121 条英文对话：一位船上厨师（内置）",
        en: "121 English dialogues of a ship's cook (embedded)",
    },
    NamedData {
        name: "huanhuan",
        source: Source::Public {
            path: "datawhalechina/self-llm/master/dataset/huanhuan.json",
            sha256: "1bbe8b09857274adc58186919622554df7f71dcee8655537f6a8b80993d6e6f3",
            bytes: 936_794,
        },
        zh: "3729 条中文对话：Chat-嬛嬛教程的数据（从 GitHub 下载，0.9 MB）",
        en: "3729 Chinese dialogues of the Chat-嬛嬛 tutorial (downloaded from GitHub, 0.9 MB)",
    },
];

impl FromStr for NamedData {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        DATA_SETS.into_iter().find(|data| data.name == name).ok_or_else(|| {
            let names = DATA_SETS.map(|data| data.name);
            format!("expected one of {}", names.join(", "))
        })
    }
}

impl NamedData {
    /// Returns all data sets.
    pub fn all() -> &'static [Self] {
        &DATA_SETS
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Describes the data set in the language of the printer.
    pub fn about(&self, printer: &Printer) -> &'static str {
        printer.pick(self.zh, self.en)
    }

    /// Writes the data set to `path`, unless this file already exists with the same content. Returns the size
    /// of the file.
    ///
    /// # Errors
    /// If the file exists with different content, or cannot be downloaded or written.
    pub fn write(&self, path: &Path) -> Result<u64> {
        let content = self.content()?;
        write_new(path, &content)?;
        Ok(content.len() as u64)
    }

    /// Returns the content of the file.
    fn content(&self) -> Result<Vec<u8>> {
        match self.source {
            Source::Embedded(data) => Ok(data.text.as_bytes().to_vec()),
            Source::Public { path, sha256, bytes } => {
                let mirror = std::env::var(MIRROR_VARIABLE).ok().filter(|mirror| !mirror.is_empty());
                let host = mirror.as_deref().unwrap_or(PUBLIC_HOST).trim_end_matches('/');
                let file = PublicFile { url: format!("{host}/{path}"), sha256: sha256.to_owned(), bytes };
                file.fetch().map_err(|error| {
                    Diagnostic::from(error).with_hint(format!(
                        "set `{MIRROR_VARIABLE}` to a mirror of {PUBLIC_HOST}, or use an embedded one: danlu data get palace"
                    ))
                })
            }
        }
    }
}

/// Writes a data set, or lists all data sets.
///
/// # Errors
/// If the file exists with different content, or cannot be downloaded or written.
pub fn run(args: &GetArgs, printer: &Printer) -> Result<()> {
    let Some(data) = args.name else {
        for data in DATA_SETS {
            let name = printer.paint_data(Style::Cyan, &terminal_text::pad(data.name, 10));
            printer.data(&format!("{name}{}", data.about(printer)));
        }
        return Ok(());
    };
    let output = args.output.clone().unwrap_or_else(|| PathBuf::from(format!("{}.json", data.name)));
    let bytes = data.write(&output)?;
    printer.data(&output.display().to_string());
    let (next, size) = (terminal_text::shell_path(&output), terminal_text::bytes(bytes));
    printer.status(&printer.pick(
        format!("{size}。接下来：danlu data check {next}"),
        format!("{size}. Next: danlu data check {next}"),
    ));
    Ok(())
}

/// Writes `content` to `path`, unless the file exists with the same content.
fn write_new(path: &Path, content: &[u8]) -> Result<()> {
    // A device may have no end, so only a file of the same length is read.
    let is_same = |file: std::fs::Metadata| {
        file.is_file()
            && file.len() == content.len() as u64
            && std::fs::read(path).is_ok_and(|found| found == content)
    };
    match std::fs::metadata(path).map(is_same) {
        Ok(true) => Ok(()),
        Ok(false) => {
            let text = format!("cannot write `{}`: it exists with another content", path.display());
            Err(Diagnostic::input(text).with_hint("choose another file with `--output`"))
        }
        Err(_) => Ok(files::write_atomic(path, content)?),
    }
}
