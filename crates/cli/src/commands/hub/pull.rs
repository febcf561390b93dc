//! `danlu pull`: downloads or updates a model in the cache.

use clap::Args;
use danlu_hub::{FetchScope, RepoName, Transfer};
use danlu_loader::{fetch_optional_files, parse_name};

use crate::diagnostic::Result;
use crate::model_loader::ModelLoader;
use crate::printer::Printer;
use crate::terminal_text;

pub const EXAMPLES: &str = "\
Examples:
  danlu pull HuggingFaceTB/SmolLM2-135M-Instruct
  danlu pull HuggingFaceTB/SmolLM2-135M-Instruct@main
  HF_ENDPOINT=https://hf-mirror.com danlu pull Qwen/Qwen2.5-0.5B-Instruct

The cache is shared with Python's tools (HF_HOME, HF_HUB_CACHE). Other commands download \
`hf:org/name` if the cache lacks it; `pull` also checks for a newer version.";

/// The flags of `danlu pull`.
#[derive(Args, Clone, Debug)]
pub struct PullArgs {
    /// Model on the Hub: org/name, org/name@revision, or the URL of its page
    #[arg(value_name = "NAME", value_parser = parse_name)]
    pub name: RepoName,
}

/// Downloads a model, and prints its folder.
///
/// # Errors
/// If the Hub cannot be reached or rejects the request, or the disk is full.
pub fn run(args: &PullArgs, printer: &Printer) -> Result<()> {
    let (loader, name) = (ModelLoader::new(printer), &args.name);
    let cached = loader.run(|loader, notices| {
        let hub = loader.hub().hub()?;
        let cached = match hub.settings().offline {
            true => hub.cached_folder(name, FetchScope::Full)?,
            false => None,
        };
        notices.extend(cached.as_ref().and_then(|folder| fetch_optional_files(hub, name, folder)));
        Ok(cached)
    })?;
    let folder = match cached {
        Some(folder) => {
            printer.status_bilingual(
                &format!("{name} 在缓存中；已设置 HF_HUB_OFFLINE，没有查询 Hub 上是否有更新"),
                &format!("{name} is in the cache; HF_HUB_OFFLINE is set, so updates were not checked"),
            );
            folder
        }
        None => loader.run(|loader, _| loader.fetch(name, FetchScope::Full))?.folder,
    };
    printer.data(&folder.display().to_string());
    Ok(())
}

/// Returns the message that is printed if a signal ends the process during a transfer.
pub fn stopped(name: &RepoName, printer: &Printer) -> String {
    if name.is_dataset() {
        return printer.pick(
            format!("已停止：{name} 已下载的部分保留着，再运行同一命令即可接着下载"),
            format!("stopped: the same command resumes from the downloaded part of {name}"),
        );
    }
    printer.pick(
        format!("已停止：{name} 已下载的部分保留着，用 `danlu pull {name}` 接着下载"),
        format!("stopped: `danlu pull {name}` resumes from the downloaded part of {name}"),
    )
}

/// Formats progress: `1.2 GB / 16 GB · 85 MB/s · 3m 2s left`.
pub fn progress(transfer: &Transfer, seconds: f64, printer: &Printer) -> String {
    let Transfer { done, total, .. } = *transfer;
    let mut line = format!("{} / {}", terminal_text::bytes(done), terminal_text::bytes(total));
    let speed = transfer.fetched() as f64 / seconds.max(1e-3);
    if speed >= 1.0 {
        let left = terminal_text::duration(total.saturating_sub(done) as f64 / speed);
        let speed = terminal_text::bytes(speed as u64);
        line += &printer.pick(format!(" · {speed}/s · 剩余 {left}"), format!(" · {speed}/s · {left} left"));
    }
    line
}
