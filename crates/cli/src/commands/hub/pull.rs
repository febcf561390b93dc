//! `danlu pull`: a model into the cache, or up to date there.

use std::time::Instant;

use clap::Args;
use danlu_hub::{FetchScope, Hub, HubError, Pulled, RepoName, Transfer};

use super::{complete, open};
use crate::diagnostic::{Diagnostic, Result};
use crate::interrupt;
use crate::printer::Printer;
use crate::terminal_text;

/// What may help where the Hub is not reached.
const MIRROR: &str = "in China a mirror: HF_ENDPOINT=https://hf-mirror.com";

/// Examples under `--help`.
pub const EXAMPLES: &str = "\
Examples:
  danlu pull HuggingFaceTB/SmolLM2-135M-Instruct
  danlu pull you/huanhuan-lora@v2
  HF_ENDPOINT=https://hf-mirror.com danlu pull meta-llama/Llama-3.2-1B

The cache is the one that Python's tools use (HF_HOME, HF_HUB_CACHE). Every command fetches \
what it is named and does not find there; `pull` also looks whether there is something newer.";

/// The flags of `danlu pull`.
#[derive(Args, Clone, Debug)]
pub struct PullArgs {
    /// Model on the Hub: org/name, org/name@revision, or the address of its page
    #[arg(value_name = "NAME", value_parser = super::name)]
    pub name: RepoName,
}

/// Fetches it, and prints where it is.
///
/// # Errors
/// If the Hub cannot be asked or refuses, or the disk is too small.
pub fn run(args: &PullArgs, printer: &Printer) -> Result<()> {
    let (hub, name) = (open(printer)?, &args.name);
    if hub.settings().offline
        && let Some(folder) = hub.cached_folder(name, FetchScope::Full)?
    {
        printer.status_bilingual(
            &format!("{name} 在缓存中；已设置 HF_HUB_OFFLINE，没有查询 Hub 上是否有更新"),
            &format!("{name} is in the cache; HF_HUB_OFFLINE is set, and nobody was asked for a newer one"),
        );
        complete(&hub, name, &folder, printer);
        printer.data(&folder.display().to_string());
        return Ok(());
    }
    let pulled = fetch(&hub, name, FetchScope::Full, printer)?;
    printer.data(&pulled.folder.display().to_string());
    Ok(())
}

/// Fetches a model with a live line.
///
/// # Errors
/// As [`run`].
pub fn fetch(hub: &Hub, name: &RepoName, scope: FetchScope, printer: &Printer) -> Result<Pulled> {
    let start = Instant::now();
    let _words = interrupt::exit_message(printer.pick(
        format!("已停止：{name} 已下载的部分保留着，用 `danlu pull {name}` 接着下载"),
        format!("stopped: what came of {name} is kept, and `danlu pull {name}` goes on with it"),
    ))?;
    printer.live(&printer.pick(format!("查询 {name}"), format!("asking for {name}")));
    let pulled = hub.pull(name, scope, &mut |transfer| {
        let line = progress(&transfer, start.elapsed().as_secs_f64(), printer);
        printer.live(&printer.pick(format!("下载 {name} {line}"), format!("fetching {name} {line}")));
    });
    printer.clear_live();
    let pulled = pulled.map_err(|error| match error {
        // Only here: what writes would hand its token to the mirror.
        HubError::Connect { .. } => Diagnostic::from(error).and_hint(MIRROR),
        error => error.into(),
    })?;
    let (size, came, commit) =
        (terminal_text::bytes(pulled.bytes), terminal_text::bytes(pulled.fetched), &pulled.commit[..8]);
    let time = terminal_text::duration(start.elapsed().as_secs_f64());
    if pulled.fetched == 0 {
        printer.status_bilingual(
            &format!("{name}（{commit}）已在缓存中，无需下载：{size}"),
            &format!("{name} ({commit}) is in the cache already: {size}, nothing to fetch"),
        );
    } else {
        printer.status_bilingual(
            &format!("已下载 {name}（{commit}）：共 {size}，本次传输 {came}，用时 {time}，校验通过"),
            &format!("fetched {name} ({commit}): {size}, {came} of it now, in {time}; checksums are right"),
        );
    }
    Ok(pulled)
}

/// `1.2 GB / 16 GB · 85 MB/s · 3m 2s left`.
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
