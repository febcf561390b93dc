//! Flags for the device, threads, instruction set and precision.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use clap::Args;
use danlu_kernels::cuda::{self, Cuda, CudaError, CudaOptions};
use danlu_kernels::{Backend, BackendOptions, Cpu, CpuOptions, DType, Isa, peak};
use danlu_train::Precision;

use crate::diagnostic::{Diagnostic, Result};
use crate::printer::Printer;

/// The environment variable that chooses an instruction set.
pub const ISA_VARIABLE: &str = "DANLU_ISA";

/// Flags of every command that computes.
#[derive(Args, Clone, Debug, Default)]
pub struct ComputeArgs {
    /// Number of CPU threads; results do not depend on it [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = "Machine")]
    pub threads: Option<u16>,
    /// Device: auto (the first NVIDIA GPU, otherwise the CPU), cpu, cuda or cuda:N [default: auto]
    #[arg(long, value_name = "DEVICE", value_parser = DeviceChoice::from_str, help_heading = "Machine")]
    pub device: Option<DeviceChoice>,
}

/// The value of `--device`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first NVIDIA GPU if there is one, otherwise the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let number = |text: &str| text.parse().map(Self::Cuda).ok();
        let choice = match text {
            "auto" => Some(Self::Auto),
            "cpu" => Some(Self::Cpu),
            "cuda" | "gpu" => Some(Self::Cuda(0)),
            _ => text.strip_prefix("cuda:").and_then(number),
        };
        choice.ok_or_else(|| "expected auto, cpu, cuda or cuda:N".to_owned())
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl DeviceChoice {
    /// Returns the number of the GPU, or `None` for the CPU.
    ///
    /// # Errors
    /// If a requested or detected GPU cannot be used.
    pub fn gpu(self) -> Result<Option<usize>> {
        match (self, cuda::device_count()) {
            (Self::Cpu, _) | (Self::Auto, Err(CudaError::NoDriver) | Ok(0)) => Ok(None),
            (Self::Auto, Ok(_)) => Ok(Some(0)),
            (Self::Cuda(index), Ok(count)) if index < count => Ok(Some(index)),
            (Self::Cuda(index), Ok(count)) => Err(unusable(&CudaError::NoDevice { index, count })),
            (_, Err(error)) => Err(unusable(&error)),
        }
    }
}

/// The value of `--dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DTypeChoice {
    /// The type that is faster on the device.
    Auto,
    Fixed(Precision),
}

impl FromStr for DTypeChoice {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        // The longer names are those of PyTorch.
        let name = match name {
            "float32" | "fp32" => "f32",
            "bfloat16" => "bf16",
            "float16" | "fp16" | "half" => "f16",
            name => name,
        };
        match name {
            "auto" => Ok(Self::Auto),
            _ => Precision::from_str(name)
                .map(Self::Fixed)
                .map_err(|_| "expected auto, bf16, f16 or f32".to_owned()),
        }
    }
}

/// The type of matrix multiplications, with the reason for its choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResolvedDType {
    pub precision: Precision,
    pub reason: DTypeReason,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DTypeReason {
    /// The user named the type, or the resumed run started with it.
    #[default]
    Asked,
    /// The type is the default of the GPU.
    Gpu,
    /// The type was measured to be the faster of bf16 and f32 on this processor.
    Measured,
}

impl ResolvedDType {
    /// Returns the type of the back end.
    pub fn dtype(self) -> DType {
        self.precision.into()
    }

    /// If the type was chosen by measurement, prints the back end and the reason.
    pub fn announce(self, backend: &dyn Backend, printer: &Printer) {
        if self.reason == DTypeReason::Measured {
            let (name, note) = (printer.backend(&backend.name()), self.reason.note(self.precision, printer));
            printer.status_bilingual(&format!("计算：{name}{note}"), &format!("computed by {name}{note}"));
        }
    }
}

impl DTypeReason {
    /// Returns a note to print directly after the type. The note is empty unless the type was chosen by
    /// measurement.
    pub fn note(self, precision: Precision, printer: &Printer) -> &'static str {
        match (self, precision) {
            (Self::Asked | Self::Gpu, _) | (_, Precision::F16) => "",
            (Self::Measured, Precision::Bf16) => {
                printer.pick("（默认：在本机比 f32 快）", " (the default: faster than f32 here)")
            }
            (Self::Measured, Precision::F32) => {
                printer.pick("（默认：在本机 bf16 不更快）", " (the default: bf16 is not faster here)")
            }
        }
    }
}

/// Returns the default type of a GPU. A GPU that this machine lacks is assumed to support bf16.
fn gpu_dtype(index: usize) -> DType {
    cuda::capability(index).map_or(DType::Bf16, cuda::default_dtype)
}

/// Returns the diagnostic for a GPU that cannot be used.
pub fn unusable(error: &CudaError) -> Diagnostic {
    Diagnostic::input(error.to_string()).with_hint(error.hint())
}

impl ComputeArgs {
    /// Opens the back end of the device, with matrix multiplications in `dtype`.
    ///
    /// # Errors
    /// If the device cannot be used, or `DANLU_ISA` names an instruction set that is unknown or that this
    /// machine lacks.
    pub fn backend(&self, dtype: DType) -> Result<Arc<dyn Backend>> {
        match self.cuda(dtype)? {
            Some(cuda) => Ok(cuda),
            None => Ok(Arc::new(Cpu::new(self.options(dtype)?))),
        }
    }

    /// Opens the GPU, or returns `None` if the CPU computes.
    ///
    /// # Errors
    /// If the device cannot be used.
    pub fn cuda(&self, dtype: DType) -> Result<Option<Arc<Cuda>>> {
        let Some(device) = self.gpu()? else { return Ok(None) };
        let cuda = Cuda::open(CudaOptions { device, dtype }).map_err(|error| unusable(&error))?;
        Ok(Some(Arc::new(cuda)))
    }

    /// Returns the number of the GPU, or `None` for the CPU.
    ///
    /// # Errors
    /// Returns the errors of [`DeviceChoice::gpu`].
    pub fn gpu(&self) -> Result<Option<usize>> {
        self.device.unwrap_or_default().gpu()
    }

    /// Resolves `--dtype`, whose default is `auto`. On a GPU, `auto` is bf16, or f16 if the GPU lacks bf16.
    /// On a CPU, `auto` is the faster of bf16 and f32, by a short measurement.
    ///
    /// # Errors
    /// Returns the errors of [`ComputeArgs::backend`].
    pub fn dtype(&self, choice: Option<DTypeChoice>) -> Result<ResolvedDType> {
        if let Some(DTypeChoice::Fixed(precision)) = choice {
            return Ok(ResolvedDType { precision, reason: DTypeReason::Asked });
        }
        if let Some(index) = self.planned_gpu()? {
            return Ok(ResolvedDType { precision: gpu_dtype(index).into(), reason: DTypeReason::Gpu });
        }
        let precision = match peak::fastest_dtype(isa_from_env()?.unwrap_or_else(Isa::detect)) {
            DType::Bf16 => Precision::Bf16,
            _ => Precision::F32,
        };
        Ok(ResolvedDType { precision, reason: DTypeReason::Measured })
    }

    /// Returns the requested number of threads, but at most the number of cores.
    ///
    /// With more threads than cores, the running threads would often wait for a thread that is not running.
    pub fn threads(&self) -> usize {
        self.threads.map_or(available_cores(), |threads| available_cores().min(threads.into()))
    }

    /// Returns the options of the back end for a memory forecast, which needs no GPU. `--device cuda:N` is
    /// accepted even if this machine has no such GPU.
    ///
    /// # Errors
    /// Returns the errors of [`ComputeArgs::backend`].
    pub fn backend_options(&self, dtype: DType) -> Result<BackendOptions> {
        match self.planned_gpu()? {
            Some(device) => Ok(BackendOptions::Cuda(CudaOptions { device, dtype })),
            None => Ok(self.options(dtype)?.into()),
        }
    }

    /// Like [`ComputeArgs::gpu`], but accepts `--device cuda:N` even if this machine has no such GPU.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn planned_gpu(&self) -> Result<Option<usize>> {
        match self.device {
            Some(DeviceChoice::Cuda(index)) => Ok(Some(index)),
            _ => self.gpu(),
        }
    }

    /// Returns the options of the CPU back end.
    ///
    /// # Errors
    /// Returns the errors of [`ComputeArgs::backend`].
    pub fn options(&self, dtype: DType) -> Result<CpuOptions> {
        if dtype == DType::F16 {
            let hint = "use `--dtype bf16` or `--dtype f32`, or choose a GPU with `--device cuda`";
            return Err(Diagnostic::input("cannot compute in f16 on the CPU").with_hint(hint));
        }
        Ok(CpuOptions { threads: Some(self.threads()), isa: isa_from_env()?, dtype })
    }
}

/// Returns the number of cores that this process may use. The affinity mask and the control group's CPU quota
/// limit this number.
pub fn available_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Reads the instruction set from `DANLU_ISA`.
///
/// # Errors
/// If the instruction set is unknown, or this machine lacks it.
pub fn isa_from_env() -> Result<Option<Isa>> {
    let Some(name) = std::env::var(ISA_VARIABLE).ok().filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    let supported = || Isa::supported().map(|isa| format!("`{isa}`")).collect::<Vec<_>>().join(", ");
    let hint = format!("use one that this machine supports: {}", supported());
    let isa = Isa::from_str(&name).map_err(|_| {
        Diagnostic::input(format!("{ISA_VARIABLE} is `{name}`, which is not an instruction set"))
            .with_hint(&hint)
    })?;
    if !isa.is_supported() {
        let diagnostic =
            Diagnostic::input(format!("{ISA_VARIABLE} is `{isa}`, which this processor does not have"));
        return Err(diagnostic.with_hint(hint));
    }
    Ok(Some(isa))
}

/// Checks that `tokens` does not exceed the model's context.
///
/// # Errors
/// If `tokens` exceeds the context, because results beyond the context are meaningless.
pub fn check_context(tokens: usize, most: usize, flags: &str) -> Result<()> {
    if tokens <= most {
        return Ok(());
    }
    let text = format!("{tokens} tokens of {flags} exceed the model's context of {most}");
    Err(Diagnostic::input(text).with_hint(format!("use at most {most}, or a model with a longer context")))
}
