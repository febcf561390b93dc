//! `danlu chat`: talk with a base, an adapter or a merged model.

mod line;

use std::io::{self, BufRead, IsTerminal};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use danlu_generate::{ChatSession, GenerateOptions, Reply, Sampling, StopReason};
use danlu_kernels::DType;
use danlu_model::Decoder;
use rustyline::error::ReadlineError;

use crate::commands::compute::{ComputeArgs, products};
use crate::commands::loaded::{Loaded, Place};
use crate::interrupt;
use crate::printer::{Look, Printer};
use crate::report::{Report, Result};
use crate::text;
use line::Line;

/// Examples under `--help`.
pub const EXAMPLES: &str = "\
Examples:
  danlu chat out/huanhuan
  danlu chat out/huanhuan --prompt '皇上驾到！' --temperature 0
  danlu chat out/huanhuan-merged --system '你是甄嬛。' --top-p 0.9
  echo '今晚月色真美。' | danlu chat models/base-28m

While talking: /reset forgets the conversation, /system TEXT sets the system prompt, /save FILE keeps the
conversation as training data, /help lists these, /exit leaves. Ctrl-C stops a reply.";

/// Longest conversation kept in memory unless `--context` says otherwise, in tokens.
const DEFAULT_CONTEXT: usize = 8192;

/// The flags of `danlu chat`.
#[derive(Args, Clone, Debug)]
pub struct ChatArgs {
    /// Folder of an adapter, a merged model or a base
    pub path: PathBuf,
    /// Folder of the adapter's base, instead of the one the adapter names
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// Say this, print the reply and leave
    #[arg(short, long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// System prompt
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Use the base's chat template although it differs from the adapter's
    #[arg(long)]
    pub allow_template_mismatch: bool,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Longest reply, in tokens
    #[arg(long, value_name = "N", default_value_t = 512, help_heading = "Reply")]
    pub max_new_tokens: usize,
    /// Longest conversation, in tokens; older turns are left out [default: the model's, at most 8192]
    #[arg(long, value_name = "N", help_heading = "Reply")]
    pub context: Option<usize>,
    /// What products are computed in: f32 or bf16
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = products, help_heading = "Machine")]
    pub dtype: DType,
    #[command(flatten)]
    pub compute: ComputeArgs,
}

/// How tokens are chosen, where the model's `generation_config.json` is to be overruled.
#[derive(Args, Clone, Debug, Default)]
pub struct SamplingArgs {
    /// 0 always takes the likeliest token [default: the model's, else 0.7]
    #[arg(long, value_name = "T", help_heading = "Reply")]
    pub temperature: Option<f32>,
    /// Keep the fewest tokens whose probabilities reach this [default: the model's, else 0.9]
    #[arg(long, value_name = "P", help_heading = "Reply")]
    pub top_p: Option<f32>,
    /// Keep this many of the likeliest tokens; 0 keeps all [default: the model's, else 0]
    #[arg(long, value_name = "K", help_heading = "Reply")]
    pub top_k: Option<usize>,
    /// Keep tokens at least this times as probable as the likeliest [default: the model's, else 0]
    #[arg(long, value_name = "P", help_heading = "Reply")]
    pub min_p: Option<f32>,
    /// Above 1, words already used become less likely [default: the model's, else 1]
    #[arg(long, value_name = "X", help_heading = "Reply")]
    pub repetition_penalty: Option<f32>,
    /// The same seed and words give the same reply
    #[arg(long, value_name = "SEED", default_value_t = 0, help_heading = "Reply")]
    pub seed: u64,
}

impl SamplingArgs {
    /// Flags over the model's own over ours.
    pub fn resolve(&self, model: &serde_json::Value) -> Sampling {
        let own = |name: &str| model.get(name).and_then(serde_json::Value::as_f64);
        let float =
            |flag: Option<f32>, name: &str, ours: f32| flag.unwrap_or(own(name).map_or(ours, |v| v as f32));
        // Without `do_sample` the figures beside it are transformers' defaults, which it does not use either.
        let model_samples = model.get("do_sample").and_then(serde_json::Value::as_bool).unwrap_or(false);
        let or_ours =
            |flag, name, ours| if model_samples { float(flag, name, ours) } else { flag.unwrap_or(ours) };
        Sampling {
            temperature: or_ours(self.temperature, "temperature", 0.7),
            top_p: or_ours(self.top_p, "top_p", 0.9),
            top_k: self.top_k.unwrap_or(own("top_k").filter(|_| model_samples).map_or(0, |k| k as usize)),
            min_p: or_ours(self.min_p, "min_p", 0.0),
            repetition_penalty: float(self.repetition_penalty, "repetition_penalty", 1.0),
            seed: self.seed,
        }
    }
}

/// Talks until there is nothing more to say.
///
/// # Errors
/// If the model cannot be loaded, a setting is out of range, or a one-shot prompt cannot be answered.
pub fn run(args: &ChatArgs, printer: &Printer) -> Result<()> {
    let started = Instant::now();
    let backend = args.compute.backend(args.dtype)?;
    let place = Place::find(&args.path, args.base.as_deref())?;
    let decoder = Arc::new(Decoder::load(&place.base, backend)?);
    let loaded = Loaded::on(place, decoder, args.allow_template_mismatch, printer)?;
    let options = GenerateOptions {
        max_new_tokens: args.max_new_tokens,
        stop_ids: Default::default(),
        sampling: args.sampling.resolve(&loaded.generation_config()?),
    };
    let context = args.context.unwrap_or(DEFAULT_CONTEXT);
    let mut session = ChatSession::new(&loaded.decoder, &loaded.tokenizer, loaded.lora(), context, options)?;
    session.set_system(args.system.clone().or_else(|| loaded.default_system.clone()));
    if printer.verbose {
        let took = started.elapsed().as_millis();
        printer.tell(&format!("模型 {took} 毫秒内就绪"), &format!("model ready in {took} ms"));
    }

    match &args.prompt {
        Some(prompt) => say(&mut session, prompt, printer),
        None if io::stdin().is_terminal() => talk(session, &loaded, printer),
        None => piped(session, printer),
    }
}

/// A conversation at the terminal.
fn talk(mut session: ChatSession<'_>, loaded: &Loaded, printer: &Printer) -> Result<()> {
    let _attention = interrupt::listen(None)?;
    let mut editor = rustyline::DefaultEditor::new()
        .map_err(|error| Report::input(format!("cannot read from the terminal: {error}")))?;
    let name = printer.err(Look::Bold, &loaded.name());
    printer.tell(
        &format!("正在与 {name} 对话。/help 列出命令，/exit 或 Ctrl-D 离开。"),
        &format!("Talking with {name}. /help lists the commands, /exit or Ctrl-D leaves."),
    );
    loop {
        match editor.readline("> ") {
            Ok(input) if input.trim().is_empty() => {}
            Ok(input) => {
                let _ = editor.add_history_entry(&input);
                if obey_or_answer(&mut session, &input, printer).unwrap_or_else(|report| {
                    printer.say(report.render(printer.err_color()).trim_end());
                    ControlFlow::Continue(())
                }) == ControlFlow::Break(())
                {
                    return Ok(());
                }
            }
            Err(ReadlineError::Interrupted) => {
                printer.tell("（/exit 或 Ctrl-D 离开）", "(/exit or Ctrl-D leaves)")
            }
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(Report::input(format!("cannot read from the terminal: {error}"))),
        }
    }
}

/// A conversation read from a pipe, one message on each line.
fn piped(mut session: ChatSession<'_>, printer: &Printer) -> Result<()> {
    for input in io::stdin().lock().lines() {
        let input = input.map_err(|error| Report::input(format!("cannot read standard input: {error}")))?;
        if !input.trim().is_empty() && obey_or_answer(&mut session, &input, printer)?.is_break() {
            break;
        }
    }
    Ok(())
}

/// A command is obeyed, anything else answered.
fn obey_or_answer(session: &mut ChatSession<'_>, input: &str, printer: &Printer) -> Result<ControlFlow<()>> {
    match line::parse(input) {
        Line::Say(text) => say(session, text, printer)?,
        Line::Reset => {
            session.reset();
            printer.tell("已忘记之前的对话。", "The conversation is forgotten.");
        }
        Line::System("") => match session.system() {
            Some(system) => printer.say(&text::printable(system)),
            None => printer.tell("没有系统提示词。", "There is no system prompt."),
        },
        Line::System(text) => {
            session.set_system(Some(text.to_owned()));
            printer.tell(
                "系统提示词已设定，从下一句起生效。",
                "The system prompt is set, from the next message on.",
            );
        }
        Line::Save(path) => {
            line::save(session, path)?;
            let path = path.display();
            printer.tell(&format!("对话已存入 {path}"), &format!("Saved the conversation to {path}"));
        }
        Line::Help => printer.say(printer.pick(line::HELP_ZH, line::HELP_EN)),
        Line::Exit => return Ok(ControlFlow::Break(())),
        Line::Unknown(name) => {
            let report = Report::input(format!("unknown command `{name}`"));
            let hint = text::nearest(name, line::NAMES).map(|near| format!("did you mean `{near}`?"));
            return Err(report.with_hint(hint.unwrap_or_else(|| "/help lists the commands".to_owned())));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Streams one reply to stdout.
fn say(session: &mut ChatSession<'_>, message: &str, printer: &Printer) -> Result<()> {
    interrupt::forget();
    let mut ended = true;
    let reply = session.reply(message, &mut |piece| {
        let piece = text::printable(piece);
        printer.out_raw(&piece);
        ended = piece.ends_with('\n');
        if interrupt::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    if !ended || reply.is_ok() {
        printer.out_raw("\n");
    }
    let reply = reply?;
    note(&reply, printer);
    Ok(())
}

/// What the user should know about a reply, besides its text.
fn note(reply: &Reply, printer: &Printer) {
    let n = reply.forgotten;
    if n > 0 {
        printer.warn(&printer.pick(
            format!("上下文已满，最早的 {n} 条消息没有带上（--context 可加长）"),
            format!("the context is full: the oldest {n} messages were left out (--context makes room)"),
        ));
    }
    let generated = &reply.generated;
    match generated.stop {
        StopReason::MaxNewTokens => printer.tell(
            "（已到 --max-new-tokens，回复未完）",
            "(the reply reached --max-new-tokens and is cut short)",
        ),
        StopReason::ContextFull => {
            printer.tell("（上下文已满，回复未完）", "(the context is full, the reply is cut short)");
        }
        StopReason::EndToken(_) | StopReason::Caller => {}
    }
    if printer.verbose {
        let (first, speed) = (generated.prefill.as_millis(), generated.tokens_per_second());
        let (prompt, reused, new) = (generated.prompt_tokens, generated.reused_tokens, generated.ids.len());
        printer.say(&printer.err(
            Look::Dim,
            &printer.pick(
                format!("提示 {prompt} 词元（{reused} 个沿用缓存），首词元 {first} 毫秒，回复 {new} 词元，{speed:.1} 词元/秒"),
                format!("prompt {prompt} tokens ({reused} cached), first token in {first} ms, {new} new tokens, {speed:.1} tok/s"),
            ),
        ));
    }
}
