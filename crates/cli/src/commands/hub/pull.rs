//! `danlu pull`: a model into the cache, or up to date there.

use std::time::Instant;

use clap::Args;
use danlu_hub::{Extent, Hub, Pulled, RepoName, Transfer};

use super::open;
use crate::printer::Printer;
use crate::report::Result;
use crate::text;

/// Examples under `--help`.
pub const EXAMPLES: &str = "\
Examples:
  danlu pull HuggingFaceTB/SmolLM2-135M-Instruct
  danlu pull you/huanhuan-lora@v2
  HF_ENDPOINT=https://hf-mirror.com danlu pull meta-llama/Llama-3.2-1B-Instruct

The cache is the one that Python's tools use (HF_HOME, HF_HUB_CACHE). Every command fetches what it is named and does
not find there; `pull` also looks whether there is something newer.";

/// The flags of `danlu pull`.
#[derive(Args, Clone, Debug)]
pub struct PullArgs {
    /// Model on the Hub: org/name or org/name@revision
    #[arg(value_name = "NAME")]
    pub name: RepoName,
}

/// Fetches it, and prints where it is.
///
/// # Errors
/// If the Hub cannot be asked or refuses, or the disk is too small.
pub fn run(args: &PullArgs, printer: &Printer) -> Result<()> {
    let pulled = fetch(&open()?, &args.name, Extent::All, printer)?;
    printer.out(&pulled.folder.display().to_string());
    Ok(())
}

/// Fetches a model with a live line.
///
/// # Errors
/// As [`run`].
pub fn fetch(hub: &Hub, name: &RepoName, extent: Extent, printer: &Printer) -> Result<Pulled> {
    let start = Instant::now();
    printer.live(&printer.pick(format!("查询 {name}"), format!("asking for {name}")));
    let pulled = hub.pull(name, extent, &mut |transfer| {
        let line = progress(&transfer, start.elapsed().as_secs_f64(), printer);
        printer.live(&printer.pick(format!("下载 {name} {line}"), format!("fetching {name} {line}")));
    });
    printer.clear_live();
    let pulled = pulled?;
    let (size, came, commit) = (text::bytes(pulled.bytes), text::bytes(pulled.fetched), &pulled.commit[..8]);
    let time = text::duration(start.elapsed().as_secs_f64());
    if pulled.fetched == 0 {
        printer.tell(
            &format!("{name}（{commit}）已在缓存中，无需下载：{size}"),
            &format!("{name} ({commit}) is in the cache already: {size}, nothing to fetch"),
        );
    } else {
        printer.tell(
            &format!("已下载 {name}（{commit}）：共 {size}，本次传输 {came}，用时 {time}，校验通过"),
            &format!("fetched {name} ({commit}): {size}, {came} of it now, in {time}; checksums are right"),
        );
    }
    Ok(pulled)
}

/// `1.2 GB / 16 GB · 85 MB/s · 3m 2s left`.
pub fn progress(transfer: &Transfer, seconds: f64, printer: &Printer) -> String {
    let Transfer { done, total, .. } = *transfer;
    let mut line = format!("{} / {}", text::bytes(done), text::bytes(total));
    let speed = transfer.fetched() as f64 / seconds.max(1e-3);
    if speed >= 1.0 {
        let left = text::duration(total.saturating_sub(done) as f64 / speed);
        let speed = text::bytes(speed as u64);
        line += &printer.pick(format!(" · {speed}/s · 剩余 {left}"), format!(" · {speed}/s · {left} left"));
    }
    line
}
