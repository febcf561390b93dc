//! `danlu doctor`: shows the hardware of this machine, and which parts danlu uses.

use std::fs;
use std::path::Path;

use clap::Args;
use danlu_kernels::cuda::{CudaError, LibraryFile, Survey, survey};
use danlu_kernels::{DType, Isa, peak};
use danlu_model::files;

use crate::args::compute::{ComputeArgs, ISA_VARIABLE, isa_from_env};
use crate::diagnostic::Result;
use crate::lang::{LANG_VARIABLE, Lang};
use crate::memory;
use crate::printer::Printer;
use crate::style::Style;
use crate::terminal_text;

pub const EXAMPLES: &str = "\
Examples:
  danlu doctor
  DANLU_ISA=scalar danlu doctor --threads 1";

/// The flags of `danlu doctor`.
#[derive(Args, Clone, Debug)]
pub struct DoctorArgs {
    #[command(flatten)]
    pub compute: ComputeArgs,
}

/// Prints one line per finding.
///
/// # Errors
/// If `DANLU_ISA` is invalid.
pub fn run(args: &DoctorArgs, printer: &Printer) -> Result<()> {
    let (zh, asked) = (printer.lang == Lang::Zh, isa_from_env()?);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let chosen = asked.unwrap_or_else(Isa::detect);
    let supported: Vec<_> = Isa::supported().map(|isa| isa.to_string()).collect();
    let why = match asked {
        Some(_) => printer.pick(format!("由 {ISA_VARIABLE} 指定"), format!("chosen by {ISA_VARIABLE}")),
        None => printer.pick("本机支持的最宽指令集".to_owned(), "the widest of this processor".to_owned()),
    };

    let row = |name: (&str, &str), value: String| {
        printer.data(&format!(
            "{} {value}",
            printer.paint_data(Style::Bold, &terminal_text::pad(printer.pick(name.0, name.1), 16))
        ));
    };
    row(("版本", "danlu"), env!("CARGO_PKG_VERSION").to_owned());
    row(("处理器", "processor"), processor().unwrap_or_else(|| std::env::consts::ARCH.to_owned()));
    row(("指令集", "instructions"), supported.join(", "));
    row(("将使用", "will use"), if zh { format!("{chosen}（{why}）") } else { format!("{chosen} ({why})") });
    let threads = args.compute.threads();
    let of =
        if zh { format!("{threads}（共 {cores} 核）") } else { format!("{threads} of {cores} cores") };
    row(("线程", "threads"), of);
    for (name, value) in peaks(printer) {
        row(name, value);
    }
    let auto = args.compute.dtype(None)?;
    let note = auto.reason.note(auto.precision, printer);
    row(("--dtype auto", "--dtype auto"), format!("{}{note}", auto.precision));
    for (dtype, name) in [(DType::F32, "--dtype f32"), (DType::Bf16, "--dtype bf16")] {
        row((name, name), printer.backend(&args.compute.backend(dtype)?.name()));
    }
    for (name, value) in gpu(printer) {
        row(name, value);
    }
    if let Some((total, free)) = memory::machine() {
        let (total, free) = (terminal_text::bytes(total), terminal_text::bytes(free));
        row(
            ("内存", "memory"),
            if zh { format!("{total}，可用 {free}") } else { format!("{total}, {free} available") },
        );
    }
    let here = std::env::current_dir().unwrap_or_else(|_| Path::new(".").to_owned());
    if let Ok(free) = files::free_space(&here) {
        let free = terminal_text::bytes(free);
        let place = here.display();
        row(
            ("磁盘", "disk"),
            if zh { format!("{place} 剩余 {free}") } else { format!("{free} free at {place}") },
        );
    }
    let locale = sys_locale::get_locale().unwrap_or_else(|| "-".to_owned());
    let variable = std::env::var(LANG_VARIABLE).map(|lang| format!("{LANG_VARIABLE}={lang}"));
    let variable = variable.unwrap_or_else(|_| printer.pick("没有 DANLU_LANG", "no DANLU_LANG").to_owned());
    row(
        ("语言", "language"),
        if zh {
            format!("{}（{variable}，系统区域设置 {locale}）", printer.lang)
        } else {
            format!("{} ({variable}, locale {locale})", printer.lang)
        },
    );
    Ok(())
}

/// Returns the measured peak of each instruction set, as a name in both languages and a value.
fn peaks(printer: &Printer) -> Vec<((&'static str, &'static str), String)> {
    let names = std::iter::once(("单线程峰值", "peak of a thread")).chain(std::iter::repeat(("", "")));
    let peaks = Isa::supported().filter_map(|isa| {
        let [bf16, f32] = peak::quick_flops(isa, [DType::Bf16, DType::F32]);
        let gigaflops = |peak: f64| format!("{:.0} GFLOP/s", peak / 1e9);
        let bf16 = bf16.filter(|_| isa.multiplies_bf16()).map(|peak| format!("bf16 {}", gigaflops(peak)));
        let f32 = format!("f32 {}", gigaflops(f32?));
        let types: Vec<_> = bf16.into_iter().chain([f32]).collect();
        Some(format!("{isa}: {}", types.join(printer.pick("，", ", "))))
    });
    names.zip(peaks).collect()
}

/// Returns the driver, the devices and cuBLASLt, each as a name in both languages and a value.
fn gpu(printer: &Printer) -> Vec<((&'static str, &'static str), String)> {
    let survey = match survey() {
        Ok(survey) => survey,
        Err(error @ CudaError::NoDriver) => {
            let error = printer.detail(&error.to_string());
            let none = printer.pick(format!("无（{error}）"), format!("none: {error}"));
            return vec![(("NVIDIA GPU", "NVIDIA GPU"), none)];
        }
        Err(error) => return vec![(("NVIDIA GPU", "NVIDIA GPU"), format!("{error}; {}", error.hint()))],
    };
    let version = |file: &LibraryFile, major: usize| {
        format!("{}.{}, {}", file.version / major, file.version % major / (major / 100), file.path.display())
    };
    let mut rows = vec![(("CUDA 驱动", "CUDA driver"), version(&survey.driver, 1000))];
    for (info, free) in &survey.devices {
        let (major, minor) = info.capability;
        let free = free.map(terminal_text::bytes).unwrap_or_else(|| "?".to_owned());
        let total = terminal_text::bytes(info.memory);
        let text = printer.pick(
            format!("{}，sm_{major}{minor}，{total}，可用 {free}", info.name),
            format!("{}, sm_{major}{minor}, {total}, {free} available", info.name),
        );
        rows.push((("GPU", "GPU"), format!("cuda:{} {text}", info.index)));
    }
    let missing = || {
        let install = Survey::CUBLASLT_INSTALL;
        printer.pick(format!("无；安装：{install}"), format!("none; install it with `{install}`"))
    };
    rows.push((
        ("cuBLASLt", "cuBLASLt"),
        survey.cublaslt.as_ref().map_or_else(missing, |f| version(f, 10_000)),
    ));
    rows
}

/// Returns the name of the processor, if the system reports it.
pub fn processor() -> Option<String> {
    let info = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
