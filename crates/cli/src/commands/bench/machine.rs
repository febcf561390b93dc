//! The machine that is measured, and its measured peak.

use std::str::FromStr;
use std::sync::Arc;

use clap::Args;
use danlu_kernels::cuda::Cuda;
use danlu_kernels::{Backend, Isa, Profile, peak};
use danlu_model::{Decoder, ModelConfig, Quantization, Weights};
use danlu_train::Precision;

use super::model::BenchModel;
use super::output::{self, BenchOutput};
use crate::args::ComputeArgs;
use crate::args::QuantArgs;
use crate::args::compute::{DTypeChoice, DTypeReason, ResolvedDType, isa_from_env};
use crate::diagnostic::{Diagnostic, Result};
use crate::interrupt;
use crate::printer::Printer;
use crate::terminal_text;

/// Sustained FLOP per second of an H200, for bf16 matrix multiplications at the GPU's power limit.
const H200_FLOPS: f64 = 680e12;

/// Sustained bytes per second of an H200's memory reads.
const H200_BYTES: f64 = 4.3e12;

/// Device and precision flags.
#[derive(Args, Clone, Debug)]
pub struct MachineArgs {
    /// Number type of matrix multiplications: auto (the faster of bf16 and f32), bf16, f32, or f16 (GPU only) [default: auto]
    #[arg(long, value_name = "TYPE", value_parser = DTypeChoice::from_str, help_heading = "Machine")]
    pub dtype: Option<DTypeChoice>,
    #[command(flatten)]
    pub quant: QuantArgs,
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// Also print the time of each operation, with its share of the peak (CPU only)
    #[arg(long, help_heading = "Measurement")]
    profile: bool,
}

/// The back end and its options.
pub struct Machine {
    pub backend: Arc<dyn Backend>,
    /// The same back end, if the time of each operation is measured.
    profile: Option<Arc<Profile>>,
    /// The same back end, if it is a GPU.
    cuda: Option<Arc<Cuda>>,
    /// Type of matrix multiplications.
    pub precision: Precision,
    pub threads: usize,
    isa: Isa,
    /// The reason for this precision.
    reason: DTypeReason,
    /// Quantization of the model's projections.
    pub quantization: Option<Quantization>,
}

impl MachineArgs {
    /// Opens the back end.
    ///
    /// # Errors
    /// If the device or `DANLU_ISA` cannot be used.
    pub fn machine(&self) -> Result<Machine> {
        let isa = isa_from_env()?.unwrap_or_else(Isa::detect);
        let ResolvedDType { precision, reason } = self.compute.dtype(self.dtype)?;
        let cuda = self.compute.cuda(precision.into())?;
        let (backend, profile) = match &cuda {
            Some(_) if self.profile => {
                let text = "cannot use `--profile`: a GPU runs operations in the background";
                return Err(Diagnostic::input(text).with_hint("run it on the processor with `--device cpu`"));
            }
            Some(cuda) => (Arc::clone(cuda) as Arc<dyn Backend>, None),
            None => match (self.compute.backend(precision.into())?, self.profile) {
                (backend, false) => (backend, None),
                (backend, true) => {
                    let profile = Arc::new(Profile::new(backend));
                    (Arc::clone(&profile) as Arc<dyn Backend>, Some(profile))
                }
            },
        };
        let threads = self.compute.threads();
        let quantization = self.quant.quantization()?.flatten();
        Ok(Machine { backend, profile, cuda, precision, threads, isa, reason, quantization })
    }
}

impl Machine {
    /// Returns the weights of a model, quantized if requested.
    ///
    /// # Errors
    /// If a file is invalid, there is too little memory, or the weights are already in 4 bits.
    pub fn weights(&self, model: &BenchModel, config: &ModelConfig, printer: &Printer) -> Result<Weights> {
        // On a GPU, weights from files are quantized later, while the decoder is built.
        let quantization = self.quantization.filter(|_| self.cuda.is_none() || model.is_in_memory());
        model.weights(config, quantization, self.threads, printer)
    }

    /// Returns a decoder on this machine.
    ///
    /// # Errors
    /// If the weights do not match the configuration.
    pub fn decoder(&self, config: &ModelConfig, weights: &Weights) -> Result<Arc<Decoder>> {
        let (config, backend) = (config.clone(), Arc::clone(&self.backend));
        Ok(Arc::new(match self.quantization.filter(|_| !weights.is_quantized()) {
            Some(quantization) => {
                let how = (quantization, self.threads);
                Decoder::quantized(config, weights, backend, how, &mut |_| interrupt::check())?
            }
            None => Decoder::new(config, weights, backend)?,
        }))
    }

    /// Reports the back end and its options.
    pub fn describe(&self, figures: &mut BenchOutput<'_>, printer: &Printer) {
        let why = self.reason.note(self.precision, printer);
        figures.row(("计算", "computed by"), &format!("{}{why}", printer.backend(&self.backend.name())));
        if let Some(Quantization { quant_type, block_size, double_quant }) = self.quantization {
            let scales = match double_quant {
                true => printer.pick("缩放 8 位", "scales in 8 bits"),
                false => printer.pick("缩放 f32", "scales in f32"),
            };
            figures.row(
                ("量化", "4 bits"),
                &printer.pick(
                    format!("{quant_type}，每 {block_size} 个一块，{scales}"),
                    format!("{quant_type}, blocks of {block_size}, {scales}"),
                ),
            );
        }
        figures.set("quant", self.quantization.map(|q| q.quant_type.name()));
        figures.set("isa", self.isa.name());
        figures.set("dtype", self.precision.to_string());
        figures.set("threads", self.threads);
    }

    /// Reports the FLOP per second, and their share of the measured peak.
    pub fn compare_flops(&self, flops: f64, figures: &mut BenchOutput<'_>, printer: &Printer) {
        if let Some(cuda) = &self.cuda {
            return compare_gpu(cuda, flops, figures, printer);
        }
        printer.live(printer.pick("测量本机峰值", "measuring this machine's peak"));
        let peak = peak::flops(self.isa, self.precision.into(), self.threads);
        printer.clear_live();
        let share = output::share(flops, peak);
        let (rate, gflops) = (output::rate(flops / 1e9), peak.map(|peak| peak / 1e9));
        let text = match (share, gflops) {
            (Some(share), Some(gflops)) => {
                let (percent, peak) = (format!("{:.1}%", 100.0 * share), output::rate(gflops));
                printer.pick(
                    format!("{rate} · 本机实测峰值 {peak} 的 {percent}"),
                    format!("{rate} · {percent} of this machine's measured peak, {peak}"),
                )
            }
            _ => printer.pick(
                format!("{rate} · {} 没有可测的峰值", self.isa),
                format!("{rate} · no peak is measured for {}", self.isa),
            ),
        };
        figures.result(("GFLOP/秒", "GFLOP/s"), &text);
        figures.measured("gflop_per_second", flops / 1e9);
        figures.measured("peak_gflop_per_second", gflops);
        figures.measured("share_of_peak", share);
    }

    /// Starts the measurement of operations, if it is requested. Earlier operations are forgotten if `run` is
    /// the first run after `warm_up` others.
    pub fn profile_run(&self, run: u64, warm_up: u64) {
        let Some(profile) = &self.profile else { return };
        if run == warm_up {
            profile.clear();
        }
        profile.resume();
    }

    /// Stops the measurement of operations until the next run.
    pub fn pause_profile(&self) {
        if let Some(profile) = &self.profile {
            profile.pause();
        }
    }

    /// Reports the time of each operation, divided by `steps`, if it is measured.
    pub fn describe_profile(&self, steps: usize, figures: &mut BenchOutput<'_>, printer: &Printer) {
        let Some(profile) = &self.profile else { return };
        let peak = peak::flops(self.isa, self.precision.into(), self.threads);
        let ((seconds, rows), each) = (profile.finish(), 1e3 / steps.max(1) as f64);
        let known: f64 = rows.iter().map(|(_, row)| row.seconds).sum();
        let mut json = Vec::new();
        for (name, row) in &rows {
            let calls = row.calls as f64 / steps.max(1) as f64;
            let share = output::share(row.flops / row.seconds, peak).filter(|_| row.flops > 0.0);
            let of_peak = share.map_or(String::new(), |share| {
                let percent = format!("{:.1}%", 100.0 * share);
                printer.pick(format!("，峰值的 {percent}"), format!(", {percent} of the peak"))
            });
            let (time, percent) = (each * row.seconds, 100.0 * row.seconds / seconds);
            figures.row(
                ("操作", "operation"),
                &printer.pick(
                    format!("{time:9.3} 毫秒 {percent:5.1}%  {calls:6.0} 次  {name}{of_peak}"),
                    format!("{time:9.3} ms {percent:5.1}%  {calls:6.0} calls  {name}{of_peak}"),
                ),
            );
            json.push(serde_json::json!({
                "operation": name, "calls": calls, "milliseconds": time, "share_of_peak": share,
            }));
        }
        let (time, percent) = (each * (seconds - known), 100.0 * (seconds - known) / seconds);
        figures.row(
            ("操作", "operation"),
            &printer.pick(
                format!("{time:9.3} 毫秒 {percent:5.1}%  所有操作之外"),
                format!("{time:9.3} ms {percent:5.1}%  outside all operations"),
            ),
        );
        figures.set("operations", json);
    }

    /// Returns the measured read bandwidth in bytes per second, or the rate of an H200 if a GPU computes.
    /// Other programs on the host change the bandwidth, so callers measure it before and after the job.
    pub fn read_bandwidth(&self, printer: &Printer) -> f64 {
        if self.cuda.is_some() {
            return H200_BYTES;
        }
        printer.live(printer.pick("测量本机读带宽", "measuring this machine's read bandwidth"));
        let peak = peak::read_bandwidth(self.threads);
        printer.clear_live();
        peak
    }

    /// Reports the bytes per second, and their share of the bandwidth `peak`.
    pub fn compare_bytes(&self, bytes: f64, peak: f64, figures: &mut BenchOutput<'_>, printer: &Printer) {
        let (rate, of, percent) = (output::rate(bytes / 1e9), output::rate(peak / 1e9), 100.0 * bytes / peak);
        // If the rate exceeds the bandwidth of the memory, a part of the data comes from caches.
        let near = match bytes > peak {
            true => printer.pick("；有一部分留在处理器缓存里", "; part of it comes from the caches"),
            false => "",
        };
        figures.result(("GB/秒", "GB/s"), &printer.pick(
            format!("{rate}（权重与键值）· 本机实测读带宽 {of} 的 {percent:.1}%{near}"),
            format!("{rate} of weights, keys and values · {percent:.1}% of this machine's measured read bandwidth, {of}{near}"),
        ));
        figures.measured("gb_per_second", bytes / 1e9);
        figures.measured("peak_read_gb_per_second", peak / 1e9);
        figures.measured("share_of_read_bandwidth", bytes / peak);
    }
}

/// Compares the FLOP per second with an H200. Also reports the device memory and the number of kernel
/// launches.
fn compare_gpu(cuda: &Cuda, flops: f64, figures: &mut BenchOutput<'_>, printer: &Printer) {
    let (rate, percent) = (output::rate(flops / 1e12), 100.0 * flops / H200_FLOPS);
    let sustained = output::rate(H200_FLOPS / 1e12);
    figures.result(
        ("TFLOP/秒", "TFLOP/s"),
        &printer.pick(
            format!("{rate} · H200 持续可达 {sustained} 的 {percent:.1}%"),
            format!("{rate} · {percent:.1}% of the {sustained} that an H200 sustains"),
        ),
    );
    let (now, most) = cuda.allocated();
    let (now, most) = (terminal_text::bytes(now), terminal_text::bytes(most));
    figures.result(
        ("显存", "GPU memory"),
        &printer.pick(
            format!("峰值 {most}，现有 {now}；{} 次启动", cuda.launches()),
            format!("{most} allocated at most, {now} now; {} launches", cuda.launches()),
        ),
    );
    figures.measured("tflop_per_second", flops / 1e12);
    figures.set("gpu_peak_bytes", cuda.allocated().1);
    figures.set("launches", cuda.launches());
}

/// Reports the peak memory of this process, and its anonymous part.
pub fn describe_memory(
    peak: Option<u64>,
    anonymous: Option<u64>,
    figures: &mut BenchOutput<'_>,
    printer: &Printer,
) {
    let text = match (peak, anonymous) {
        (Some(peak), Some(anonymous)) => {
            let (peak, anonymous) = (terminal_text::bytes(peak), terminal_text::bytes(anonymous));
            printer.pick(
                format!("{peak}，其中匿名内存 {anonymous}"),
                format!("{peak}, {anonymous} of it anonymous at most"),
            )
        }
        _ => printer.pick("本系统不告知", "not reported by this system").to_owned(),
    };
    figures.result(("内存峰值", "peak memory"), &text);
    figures.set("peak_memory_bytes", peak);
    figures.set("peak_anonymous_bytes", anonymous);
}
