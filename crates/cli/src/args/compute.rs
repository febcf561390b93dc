//! What computes: threads, instruction set, precision.

use std::str::FromStr;
use std::sync::Arc;

use clap::Args;
use danlu_kernels::{Backend, Cpu, CpuOptions, DType, Isa};

use crate::diagnostic::{Diagnostic, Result};

/// The variable that chooses an instruction set.
pub const ISA_VARIABLE: &str = "DANLU_ISA";

/// Flags of every command that computes.
#[derive(Args, Clone, Debug, Default)]
pub struct ComputeArgs {
    /// Threads to compute with; results are the same for any number [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = "Machine")]
    pub threads: Option<u16>,
}

impl ComputeArgs {
    /// The CPU back end with these threads, products in `dtype`.
    ///
    /// # Errors
    /// If `DANLU_ISA` names no instruction set, or one this machine lacks.
    pub fn backend(&self, dtype: DType) -> Result<Arc<dyn Backend>> {
        Ok(Arc::new(Cpu::new(self.options(dtype)?)))
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        let offered = || std::thread::available_parallelism().map_or(1, usize::from);
        self.threads.map_or_else(offered, usize::from)
    }

    /// What that back end is made with.
    ///
    /// # Errors
    /// As [`ComputeArgs::backend`].
    pub fn options(&self, dtype: DType) -> Result<CpuOptions> {
        Ok(CpuOptions { threads: self.threads.map(usize::from), isa: isa_from_env()?, dtype })
    }
}

/// The type that products are computed in, by its name.
pub fn products(name: &str) -> Result<DType, String> {
    match name {
        "f32" => Ok(DType::F32),
        "bf16" => Ok(DType::Bf16),
        _ => Err("expected f32 or bf16".to_owned()),
    }
}

/// The instruction set that the environment asks for.
///
/// # Errors
/// If it is unknown, or this machine lacks it.
pub fn isa_from_env() -> Result<Option<Isa>> {
    let Some(name) = std::env::var(ISA_VARIABLE).ok().filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    let supported = || Isa::supported().map(|isa| format!("`{isa}`")).collect::<Vec<_>>().join(", ");
    let hint = format!("this machine runs {}", supported());
    let isa = Isa::from_str(&name).map_err(|_| {
        Diagnostic::input(format!("{ISA_VARIABLE} is `{name}`, which is no instruction set")).with_hint(&hint)
    })?;
    if !isa.is_supported() {
        let diagnostic =
            Diagnostic::input(format!("{ISA_VARIABLE} is `{isa}`, which this processor does not have"));
        return Err(diagnostic.with_hint(hint));
    }
    Ok(Some(isa))
}

/// Checks that `tokens`, as the flags ask for, are no more than the model was made for.
///
/// # Errors
/// If they are: what it would compute at positions it has never seen means nothing.
pub fn check_context(tokens: usize, most: usize, flags: &str) -> Result<()> {
    if tokens <= most {
        return Ok(());
    }
    let text = format!("{tokens} tokens of {flags}, and the model was made for {most}");
    Err(Diagnostic::input(text).with_hint(format!("at most {most}, or a model for longer texts")))
}
