//! `danlu bench merge`: times the merge of a random adapter and, for comparison, a copy of the weights.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use danlu_adapter::merge::{self, MergeOptions, MergeProgress};
use danlu_adapter::{Adapter, LoraConfig};
use danlu_kernels::{Backend, DType, rng::Stream};
use danlu_model::{FileError, ModelConfig, Weights, files};

use super::machine::describe_memory;
use super::model::{BenchModel, ModelArgs};
use super::output::{BenchOutput, rate, seconds};
use super::{RunArgs, median, stopped};
use crate::args::ComputeArgs;
use crate::diagnostic::{Diagnostic, Result};
use crate::memory::{self, MemoryWatch};
use crate::printer::Printer;
use crate::temp_dirs::TrackedTempDir;
use crate::{interrupt, terminal_text};

/// Rank and alpha of the adapter: the defaults of `danlu train`.
const RANK: u32 = 8;
const ALPHA: f64 = 32.0;

/// Number of bytes that are copied at a time.
const CHUNK: usize = 1 << 20;

/// The flags of `danlu bench merge`.
#[derive(Args, Clone, Debug)]
pub struct MergeBenchArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// One round, which is a merge followed by a copy.
struct Round {
    merge: Timed,
    copy: Timed,
    /// The largest anonymous memory during the merge.
    anonymous: Option<u64>,
}

/// Bytes written to the disk, and the seconds that the writing took.
#[derive(Clone, Copy)]
struct Timed {
    bytes: u64,
    seconds: f64,
}

/// Merges an adapter into a model, copies as many bytes for comparison, and reports the speed of both.
///
/// # Errors
/// If a flag or the model is invalid, or the disk has too little space.
pub fn run(args: &MergeBenchArgs, printer: &Printer) -> Result<()> {
    let model = args.model.model(printer)?;
    let config = model.config()?;
    let threads = args.compute.threads();
    let backend = args.compute.backend(DType::F32)?;
    let own = match &model {
        BenchModel::Shape(_, None) => Some(TrackedTempDir::new_in(&std::env::temp_dir())?),
        _ => None,
    };
    let otherwise = own.as_ref().map_or_else(PathBuf::new, |own| own.path().join("base"));
    let base = model.folder(&otherwise, threads, printer)?;
    let weights = Weights::open(&base)?;
    weights.check_complete(&config)?;
    let beside = TrackedTempDir::new_in(&parent(&base)?)?;
    warn_of_memory_disks(beside.path(), printer);

    let mut figures = BenchOutput::new("merge", args.run.json, printer);
    model.describe(&config, (&weights, None), &mut figures, printer);
    let adapter = random_adapter(&config, &*backend)?;
    let modules = adapter.modules().len();
    figures.row(("任务", "job"), &printer.pick(
        format!("把 r {RANK} 的随机适配器合并进 {modules} 个张量，{threads} 线程；再复制同样的字节作对照"),
        format!("a random adapter of r {RANK} into {modules} tensors, {threads} threads; then a copy of the same bytes"),
    ));
    figures.set("threads", threads);
    figures.set("lora_r", RANK);
    figures.set("merged_tensors", modules);

    read_once(weights.files(), printer)?;
    let runs = args.run.runs(3, 0);
    let rounds = runs.measure(printer, |_| {
        round(&base, weights.files(), &adapter, &*backend, beside.path(), threads, printer)
    })?;
    let peak = memory::peak();
    drop((beside, own));

    describe_rounds(&rounds, runs.warm_up, &mut figures, printer);
    let anonymous = rounds.iter().filter_map(|round| round.anonymous).max();
    describe_memory(peak, anonymous, &mut figures, printer);
    figures.finish();
    Ok(())
}

/// Reports the speed of merges and copies.
fn describe_rounds(rounds: &[Round], warm_up: u64, figures: &mut BenchOutput<'_>, printer: &Printer) {
    let middle = |of: fn(&Round) -> Timed| median(rounds.iter().map(|round| of(round).seconds));
    let (merge, copy) = (middle(|r| r.merge), middle(|r| r.copy));
    let (merge_bytes, copy_bytes) = (rounds[0].merge.bytes, rounds[0].copy.bytes);
    let row = |bytes: u64, time: f64| {
        let (time, size, speed) =
            (seconds(time, printer), terminal_text::bytes(bytes), rate(bytes as f64 / time / 1e9));
        printer.pick(
            format!("{time}，{size}，{speed} GB/秒，已写入磁盘"),
            format!("{time} for {size}, {speed} GB/s, synced to disk"),
        )
    };
    figures.result(("合并", "merge"), &row(merge_bytes, merge));
    figures.result(("照抄", "copy"), &row(copy_bytes, copy));
    // The rates are compared per byte, because a merge of a 4-bit base writes more than it reads.
    let ratio = (merge_bytes as f64 / merge) / (copy_bytes as f64 / copy);
    let (n, w, speed) = (rounds.len(), warm_up, rate(ratio));
    figures.result(
        ("速度比", "ratio"),
        &printer.pick(
            format!("合并的速度是复制的 {speed} 倍（{n} 轮的中位数，此前预热 {w} 轮）"),
            format!("the merge runs at {speed} of the copy's speed (medians of {n}, after {w} warm-up)"),
        ),
    );
    figures.set("steps", n);
    figures.set("warm_up", w);
    figures.set("merged_bytes", merge_bytes);
    figures.set("copied_bytes", copy_bytes);
    figures.measured("merge_seconds", merge);
    figures.measured("copy_seconds", copy);
    figures.measured("merge_gb_per_second", merge_bytes as f64 / merge / 1e9);
    figures.measured("copy_gb_per_second", copy_bytes as f64 / copy / 1e9);
    figures.measured("speed_relative_to_copy", ratio);
}

/// Returns the parent folder of `base`, with links resolved.
fn parent(base: &Path) -> Result<PathBuf> {
    let real = fs::canonicalize(base).map_err(|error| Diagnostic::io("open", base, error))?;
    Ok(real.parent().unwrap_or(&real).to_owned())
}

/// Returns an adapter with random `A` and `B`. A new adapter has `B` = 0, so its merge would change nothing.
fn random_adapter(config: &ModelConfig, backend: &dyn Backend) -> Result<Adapter> {
    let mut adapter = Adapter::init(LoraConfig::new(RANK, ALPHA), config, 1, backend)?;
    let mut stream = Stream::new(1);
    let values: Vec<f32> =
        (0..adapter.num_parameters()).map(|_| 0.02 * (stream.next_uniform() - 0.5)).collect();
    backend.write(&mut adapter.params, 0, &values);
    Ok(adapter)
}

/// Reads every file once, so that the merge and the copy both find the files in the page cache.
fn read_once(paths: &[PathBuf], printer: &Printer) -> Result<()> {
    let mut chunk = vec![0; CHUNK];
    for path in paths {
        let error = |error| Diagnostic::io("read", path, error);
        printer.live(
            &printer.pick(format!("先读一遍 {}", path.display()), format!("reading {} once", path.display())),
        );
        let mut file = File::open(path).map_err(error)?;
        while file.read(&mut chunk).map_err(error)? > 0 {
            if interrupt::requested() {
                return Err(stopped());
            }
        }
    }
    printer.clear_live();
    Ok(())
}

fn round(
    base: &Path,
    weights: &[PathBuf],
    adapter: &Adapter,
    backend: &dyn Backend,
    scratch: &Path,
    threads: usize,
    printer: &Printer,
) -> Result<Round> {
    let (merged, copied) = (scratch.join("merged"), scratch.join("copied"));
    let options = MergeOptions { threads: Some(threads), ..MergeOptions::default() };
    let mut progress = |p: MergeProgress<'_>| {
        let (done, total) = (terminal_text::bytes(p.bytes), terminal_text::bytes(p.total));
        printer.live(&printer.pick(format!("合并 {done} / {total}"), format!("merging: {done} of {total}")));
        // Ctrl-C is checked only between rounds, so that every started round is complete and counts.
        ControlFlow::Continue(())
    };
    let watch = MemoryWatch::start();
    let report = merge::merge(base, adapter, backend, &merged, &options, &mut progress)?;
    let anonymous = watch.finish();
    remove(&merged)?;

    printer.live(printer.pick("照抄", "copying"));
    let start = Instant::now();
    let bytes = copy_all(weights, &copied)?;
    let copy = Timed { bytes, seconds: start.elapsed().as_secs_f64() };
    remove(&copied)?;
    Ok(Round { merge: Timed { bytes: report.bytes, seconds: report.seconds }, copy, anonymous })
}

/// Copies files into a new folder, syncs them, and returns the number of bytes. The copy does not use
/// `fs::copy`, because some file systems then share the blocks instead of copying data.
fn copy_all(paths: &[PathBuf], folder: &Path) -> Result<u64> {
    let needed = paths.iter().map(|path| fs::metadata(path).map_or(0, |m| m.len())).sum();
    let available = files::free_space(folder)?;
    if needed > available {
        let (needed, available) = (terminal_text::bytes(needed), terminal_text::bytes(available));
        let text = format!("the copy needs {needed}, and the disk has {available} free");
        return Err(Diagnostic::input(text).with_hint("free some space, or measure a smaller shape"));
    }
    fs::create_dir(folder).map_err(|error| Diagnostic::io("create", folder, error))?;
    let (mut chunk, mut bytes) = (vec![0; CHUNK], 0);
    for path in paths {
        let to = folder.join(path.file_name().unwrap_or_default());
        let mut from = File::open(path).map_err(|error| Diagnostic::io("read", path, error))?;
        let written = copy(&mut from, &to, &mut chunk);
        bytes += written.map_err(|error| FileError::new("write", &to, error))?;
    }
    // Some network file systems cannot sync a folder. The error is ignored, because the files themselves are
    // synced.
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
    Ok(bytes)
}

fn copy(from: &mut File, to: &Path, chunk: &mut [u8]) -> io::Result<u64> {
    let (mut to, mut bytes) = (File::create(to)?, 0);
    loop {
        let n = from.read(chunk)?;
        if n == 0 {
            to.sync_all()?;
            return Ok(bytes);
        }
        to.write_all(&chunk[..n])?;
        bytes += n as u64;
    }
}

fn remove(folder: &Path) -> Result<()> {
    fs::remove_dir_all(folder).map_err(|error| Diagnostic::io("remove", folder, error))
}

/// Warns if the folder is in memory (tmpfs), where files are not written to a disk.
fn warn_of_memory_disks(folder: &Path, printer: &Printer) {
    #[cfg(target_os = "linux")]
    {
        const TMPFS_MAGIC: i128 = 0x0102_1994;
        if rustix::fs::statfs(folder).is_ok_and(|stat| i128::from(stat.f_type) == TMPFS_MAGIC) {
            let place = folder.display();
            printer.warn(&printer.pick(
                format!("{place} 在内存文件系统上；用 `--keep DIR` 指定磁盘上的文件夹"),
                format!("{place} is on a memory file system; name a folder on a disk with `--keep DIR`"),
            ));
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (folder, printer);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_every_byte_of_every_file() {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["a", "b"].map(|name| folder.path().join(name));
        fs::write(&paths[0], vec![7; 3 * CHUNK + 5]).unwrap();
        fs::write(&paths[1], "").unwrap();
        let to = folder.path().join("to");
        assert_eq!(copy_all(&paths, &to).unwrap(), 3 * CHUNK as u64 + 5);
        assert_eq!(fs::read(to.join("a")).unwrap(), fs::read(&paths[0]).unwrap());
        assert!(to.join("b").exists());
    }
}
