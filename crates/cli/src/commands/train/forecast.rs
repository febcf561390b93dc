//! Predicts the memory of a run. The memory in use is measured, and the memory of the training is planned.

use danlu_adapter::TrainingIdentity;
use danlu_kernels::cuda::{self, CudaOptions};
use danlu_kernels::{Backend, BackendOptions};
use danlu_model::{ModelConfig, Tokenizer, Weights};
use danlu_report::MemoryUse;
use danlu_train::memory::{self, display};
use danlu_train::{
    BaselineMemory, LayerPolicies, MemoryPlan, PlanInput, RecordSize, ReplySize, SuggestedLimits, TrainError,
    TrainSettings, Trainer, WeightBytes, check_weights, device_weight_bytes_of, weight_bytes_of,
};

use super::REPLY_TOKENS;
use super::prepare::Prepared;
use super::run_config::{GpuMemory, RunLimits};
use crate::allocator;
use crate::args::compute::unusable;
use crate::diagnostic::{Diagnostic, Result};
use crate::evaluation::replies::Question;
use crate::lesson;
use crate::memory_forecast::tokenizer_bytes;
use crate::printer::Printer;
use crate::style::Style;
use crate::terminal_text;

/// Bytes that a run uses in addition to the plan: code pages, stacks and small allocations.
const GROWTH: u64 = 5 << 20;

/// Assumed memory of the program, if the system does not report this memory.
const PROGRAM: u64 = 16 << 20;

/// Measures memory while a run is prepared.
pub struct MemoryBaseline {
    start: Option<u64>,
    tokenizer: Option<u64>,
    data: Option<u64>,
    copied: u64,
}

impl MemoryBaseline {
    pub fn new() -> Self {
        Self { start: in_use(), tokenizer: None, data: None, copied: 0 }
    }

    pub fn tokenizer(&mut self, tokens: &TrainingIdentity) {
        self.tokenizer = in_use();
        self.copied = tokens.largest_file();
    }

    pub fn data(&mut self) {
        self.data = in_use();
    }

    /// Returns the measured baseline. If the tokenizer is not loaded, its size is estimated from the
    /// vocabulary.
    fn present(&self, vocab_size: usize) -> BaselineMemory {
        let program = self.start.unwrap_or(PROGRAM);
        let estimate = tokenizer_bytes(vocab_size);
        let tokenizer = self.tokenizer.map_or(estimate, |now| now.saturating_sub(program));
        let data = self.data.map_or(0, |now| now.saturating_sub(program + tokenizer));
        let peak = memory::peak().unwrap_or(0);
        BaselineMemory { program: program + GROWTH, tokenizer, data, peak, copied: self.copied }
    }
}

/// Returns the baseline of a process that has loaded neither a tokenizer nor data.
pub fn present() -> BaselineMemory {
    let (program, peak) = (in_use().unwrap_or(PROGRAM) + GROWTH, memory::peak().unwrap_or(0));
    BaselineMemory { program, peak, ..BaselineMemory::default() }
}

/// Returns the number of resident bytes, without free heap pages.
fn in_use() -> Option<u64> {
    allocator::trim();
    memory::resident()
}

pub struct Forecast {
    pub plan: MemoryPlan,
    /// The limit that the user set.
    pub limit: Option<u64>,
    /// Memory available to this process, if the system reports it.
    pub available: Option<u64>,
    /// Whether the run fits only if the system evicts pages of the weights.
    pub weights_evictable: bool,
}

/// The run to plan.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// The base's weights, if they exist yet.
    pub weights: Option<&'a Weights>,
    pub config: &'a ModelConfig,
    pub settings: &'a TrainSettings,
    /// The device, the threads and the memory that the run may use.
    pub limits: &'a RunLimits,
}

impl Forecast {
    /// Plans a run. Without data, every record is assumed to have the longest allowed length.
    ///
    /// # Errors
    /// If the run does not fit, or the base's weights are invalid.
    pub fn of(
        subject: &Subject<'_>,
        data: Option<(&Prepared, &Tokenizer, &[Question])>,
        baseline: &MemoryBaseline,
    ) -> Result<Self> {
        let RunLimits { memory, gpu_memory, .. } = *subject.limits;
        Self::with_input(&input(subject, data, baseline)?, (memory, gpu_memory), &|smaller| {
            smaller.to_string()
        })
    }

    /// Plans `input`. If the run does not fit, the hint of the error suggests a smaller run with the flags
    /// that `flags` formats.
    ///
    /// If the user sets no limit, the available memory is the limit.
    ///
    /// # Errors
    /// If the run does not fit.
    pub fn with_input(
        input: &PlanInput<'_>,
        (limit, gpu_memory): (Option<u64>, GpuMemory),
        flags: &dyn Fn(SuggestedLimits) -> String,
    ) -> Result<Self> {
        if let BackendOptions::Cuda(CudaOptions { device, .. }) = input.backend {
            return Self::on_gpu(input, limit, usable_memory(device, gpu_memory)?, flags);
        }
        let here = memory::resident().unwrap_or(0);
        // The address space of the process limits the run even if the user's limit is larger. The plan
        // includes weights that are already mapped, so their space counts as free.
        let space = memory::address_space().map(|free| free + here + input.weights.open);
        let available = memory::free().map(|free| free + here).into_iter().chain(space).min();
        let settled = |plan, weights_evictable| Ok(Self { plan, limit, available, weights_evictable });
        let Some(room) = limit.or(available).into_iter().chain(space).min() else {
            return settled(MemoryPlan::new(input, None)?, false);
        };
        match MemoryPlan::new(input, Some(room)) {
            Ok(plan) => settled(plan, false),
            Err(TrainError::Memory { needed, fits, .. }) if space == Some(room) => {
                Err(beyond_space(needed, room, fits.map(flags)))
            }
            // Weights are mapped from a file. If the user sets no limit, the system may evict pages of the
            // weights and read them again.
            Err(TrainError::Memory { .. }) if limit.is_none() => {
                let room = (room + input.weights.mapped).min(space.unwrap_or(u64::MAX));
                settled(
                    MemoryPlan::new(input, Some(room)).map_err(|error| refused(error, false, flags))?,
                    true,
                )
            }
            Err(error) => Err(refused(error, true, flags)),
        }
    }

    /// Plans `input` for a GPU with `available` bytes of usable memory.
    fn on_gpu(
        input: &PlanInput<'_>,
        limit: Option<u64>,
        available: Option<u64>,
        flags: &dyn Fn(SuggestedLimits) -> String,
    ) -> Result<Self> {
        let room = limit.into_iter().chain(available).min();
        let given = limit.is_some() && limit == room;
        let plan = MemoryPlan::new(input, room).map_err(|error| refused(error, given, flags))?;
        Ok(Self { plan, limit, available, weights_evictable: false })
    }

    /// Allocates the buffers of the trainer with the planned sizes.
    pub fn reserve(&self, trainer: &mut Trainer) {
        let plan = &self.plan;
        let room = (plan.tokens as usize, plan.trained_tokens as usize, plan.sharing_tokens as usize);
        trainer.reserve(plan.layers.policies(), plan.grouping(), room);
    }

    /// Prints the plan in two lines.
    pub fn print(&self, printer: &Printer) {
        let row = |zh: &str, en: &str, value: String| {
            let label = printer.paint_status(Style::Dim, &terminal_text::pad(printer.pick(zh, en), 10));
            printer.status_labeled(&format!("{label} "), &value);
        };
        match self.plan.on_device {
            true => {
                let host = display(self.plan.host);
                row("显存", "GPU memory", self.peak(printer));
                row(
                    "内存",
                    "memory",
                    printer.pick(format!("预计峰值 {host}"), format!("predicted peak {host}")),
                );
            }
            false => row("内存", "memory", self.peak(printer)),
        }
        printer.teach(lesson::PEAK_MEMORY);
        row("各层", "layers", layers(&self.plan, printer));
        printer.teach(lesson::STORED_ACTIVATIONS);
        self.warn(printer);
    }

    pub fn warn(&self, printer: &Printer) {
        if self.weights_evictable {
            printer.warn(printer.pick(
                "内存放不下全部权重：系统会反复从磁盘读取，速度会很慢",
                "not all weights fit in memory: the system will read them from disk repeatedly, which is slow",
            ));
        }
    }

    /// Formats the peak and the parts that it consists of.
    pub fn peak(&self, printer: &Printer) -> String {
        let plan = &self.plan;
        let state = plan.adapter + plan.optimizer + plan.gradients;
        let rest = plan.tokenizer + plan.data + plan.program + plan.transient;
        let [total, weights, state, activations, scratch, rest] =
            [plan.total, plan.weights, state, plan.activations, plan.scratch.total(), rest].map(display);
        let most = self.bound(printer);
        printer.pick(
            format!("预计峰值 {total}{most}：权重 {weights}，适配器 {state}，激活 {activations}，工作区 {scratch}，其余 {rest}"),
            format!("predicted peak {total}{most}: weights {weights}, adapter {state}, activations {activations}, scratch {scratch}, rest {rest}"),
        )
    }

    /// Formats the limit that applies, such as ` of 8.00 GiB available`.
    fn bound(&self, printer: &Printer) -> String {
        match (self.limit, self.available) {
            (Some(limit), _) => {
                let limit = display(limit);
                printer.pick(format!("（上限 {limit}）"), format!(" under a limit of {limit}"))
            }
            (None, Some(available)) => {
                let available = display(available);
                printer.pick(format!("（可用 {available}）"), format!(" of {available} available"))
            }
            (None, None) => String::new(),
        }
    }

    /// Returns the plan together with the measured peak.
    pub fn measured(self, backend: &dyn Backend) -> MemoryUse {
        let peak = match self.plan.on_device {
            true => backend.device_memory().map(|memory| memory.peak),
            false => memory::peak(),
        };
        MemoryUse { plan: self.plan, peak }
    }
}

/// Returns the diagnostic for a run that does not fit. `given` is true if the user set the exceeded limit,
/// and false if the available memory is exceeded.
fn refused(error: TrainError, given: bool, flags: &dyn Fn(SuggestedLimits) -> String) -> Diagnostic {
    match error {
        TrainError::Memory { needed, limit, fits } if !given => {
            let (needed, available) = (display(needed), display(limit));
            let diagnostic = Diagnostic::input(format!(
                "the run needs at least {needed} of memory, and {available} is available"
            ));
            diagnostic.with_hint(match fits.map(flags) {
                Some(flags) => format!("use `{flags}`, which fits"),
                None => "use a smaller model, or quantize a 16-bit base with `--quant nf4`".to_owned(),
            })
        }
        TrainError::Memory { needed, fits, .. } => {
            Diagnostic::from(error).with_hint(TrainError::room_hint(needed, fits.map(flags)))
        }
        error => error.into(),
    }
}

/// Returns the diagnostic for a run that exceeds the limit of the address space.
fn beyond_space(needed: u64, space: u64, fits: Option<String>) -> Diagnostic {
    let (needed, space) = (display(needed), display(space));
    let text = format!(
        "the run needs at least {needed} of memory, and the limit of the address space leaves {space}"
    );
    let more = "raise the limit with `ulimit -v`";
    Diagnostic::input(text).with_hint(
        fits.map_or_else(|| more.to_owned(), |flags| format!("use `{flags}`, which fits, or {more}")),
    )
}

/// Returns the memory of a GPU that a run can use, or `None` if this memory is unknown.
fn usable_memory(device: usize, memory: GpuMemory) -> Result<Option<u64>> {
    if let GpuMemory::Total(total) = memory {
        return Ok(Some(cuda::usable_bytes_of(total)));
    }
    match cuda::free_memory(device) {
        Ok(free) => Ok(Some(cuda::usable_bytes(free))),
        Err(_) if memory == GpuMemory::FreeOrUnlimited => Ok(None),
        Err(error) => Err(unusable(&error)),
    }
}

/// Describes which activations the layers store, and how micro-batches are processed.
pub fn layers(plan: &MemoryPlan, printer: &Printer) -> String {
    let kept = kept(&plan.layers, printer);
    if let Some(rows) = plan.max_pass_rows {
        let rows = terminal_text::thousands(rows as u64);
        return printer.pick(
            format!("{kept}；超过 {rows} 词元的微批分几次进行"),
            format!("{kept}; micro-batches above {rows} tokens run in parts"),
        );
    }
    match plan.fuse_micro_batches {
        true => kept,
        false => {
            printer.pick(format!("{kept}；微批逐个进行"), format!("{kept}; micro-batches run one at a time"))
        }
    }
}

fn kept(layers: &LayerPolicies, printer: &Printer) -> String {
    let LayerPolicies { recompute, keep_some } = *layers;
    if recompute == 0 {
        return printer.pick(
            format!("内存够用，{keep_some} 层都保留激活（只重算归一化与激活函数）"),
            format!("all {keep_some} store their activations: only norms and SwiGLU are recomputed"),
        );
    }
    let (zh, en) =
        (format!("{recompute} 层只留输入并重算"), format!("{recompute} recompute from their input"));
    match keep_some {
        0 => printer.pick(zh, en),
        _ => printer.pick(
            format!("{zh}，{keep_some} 层保留激活"),
            format!("{en}, {keep_some} store their activations"),
        ),
    }
}

/// Formats the measured peak and the forecast. Returns `None` if the system reports no peak.
pub fn peak_line(memory: &MemoryUse, printer: &Printer) -> Option<String> {
    let (peak, planned) = (display(memory.peak?), display(memory.plan.total));
    if memory.plan.on_device {
        return Some(printer.pick(
            format!("显存峰值    {peak}，预计 {planned}"),
            format!("peak GPU memory {peak}, {planned} predicted"),
        ));
    }
    Some(printer.pick(
        format!("内存峰值    {peak}，预计 {planned}"),
        format!("peak memory     {peak}, {planned} predicted"),
    ))
}

fn input<'a>(
    subject: &Subject<'_>,
    data: Option<(&'a Prepared, &Tokenizer, &[Question])>,
    baseline: &MemoryBaseline,
) -> Result<PlanInput<'a>> {
    let Subject { weights, config, settings, limits } = *subject;
    let backend = limits.compute.backend_options(settings.dtype.into())?;
    let quantization = settings.quantization().map(|q| (q, limits.compute.threads()));
    let mut input = PlanInput {
        config: config.clone(),
        settings: settings.clone(),
        backend,
        records: Vec::new(),
        held_out: Vec::new(),
        reply: ReplySize::default(),
        checkpoints: true,
        weights: WeightBytes::default(),
        baseline: baseline.present(config.vocab_size),
    };
    let on_gpu = match input.backend {
        BackendOptions::Cuda(CudaOptions { dtype, .. }) => Some(dtype),
        BackendOptions::Cpu(_) => None,
    };
    check_weights(weights, config, quantization.is_some())?;
    let weight_bytes = |ids: Option<&mut dyn Iterator<Item = u32>>| match on_gpu {
        Some(dtype) => device_weight_bytes_of(weights, config, quantization.map(|(q, _)| q), dtype, ids),
        None => weight_bytes_of(weights, config, quantization, ids),
    };
    let Some((data, tokenizer, questions)) = data else {
        input.weights = weight_bytes(None);
        return Ok(input);
    };
    let sequences = || data.examples.iter().chain(&data.held_out).map(|example| &example.sequence);
    let mut ids = sequences().flat_map(|sequence| sequence.ids.iter().copied());
    input.weights = weight_bytes(Some(&mut ids));
    let unshared = input.settings.has_noise();
    input.records =
        data.examples.iter().map(|e| RecordSize::for_model(config, unshared, &e.sequence)).collect();
    input.held_out =
        data.held_out.iter().map(|e| RecordSize::for_model(config, false, &e.sequence)).collect();
    let tokens = |question: &Question| {
        let prompt = tokenizer.template().ok()?.render(&question.messages, true).ok()?;
        Some(tokenizer.encode(&prompt).ok()?.len())
    };
    // If the template rejects a question, the error is reported later, when the question is asked.
    let prompt_tokens = questions.iter().filter_map(tokens).max().unwrap_or(0);
    input.reply = ReplySize { prompt_tokens, new_tokens: REPLY_TOKENS };
    Ok(input)
}
