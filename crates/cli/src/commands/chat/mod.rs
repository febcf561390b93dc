//! `danlu chat`: chat with a base, an adapter or a merged model.

mod command;
mod history;
mod settings;

use std::io::{self, BufRead, IsTerminal};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Instant;

use clap::Args;
use danlu_generate::{ChatReply, ChatSession, GenerateOptions, StopReason};
use danlu_kernels::CpuOptions;
use danlu_loader::{LoadOptions, LoadedModel, ModelFiles, QuantChoice, choose_quantization};
use danlu_model::{ModelConfig, Quantization, Tokenizer, files};
use danlu_train::{InferencePass, memory};
use rustix::termios::{LocalModes, OptionalActions};
use rustyline::error::ReadlineError;
use serde_json::{Map, Value};

use crate::args::QuantArgs;
use crate::args::chat_template::{TemplateValues, with_chat_template};
use crate::args::compute::check_context;
use crate::args::compute::{ComputeArgs, DTypeChoice};
use crate::args::sampling::SamplingArgs;
use crate::clap_error::at_least_one;
use crate::diagnostic::{Diagnostic, Result};
use crate::interrupt;
use crate::lesson;
use crate::memory_forecast::MemoryForecast;
use crate::model_loader::{ModelLoader, token_check};
use crate::printer::Printer;
use crate::style::Style;
use crate::terminal_mode::TerminalMode;
use crate::terminal_text;
use command::ChatInput;
use history::ChatHistory;

pub const EXAMPLES: &str = "\
Examples:
  danlu chat danlu-demo/adapter
  danlu chat danlu-demo/adapter --prompt '皇上驾到！' --temperature 0
  danlu chat danlu-demo/merged --system '你是甄嬛。' --top-p 0.9
  echo '今晚月色真美。' | danlu chat danlu-demo/base-8m

Commands in a chat: /retry answers again, /undo removes the last turn, /compare asks the base, /set changes the \
sampling, /reset clears the conversation, /system TEXT sets the system prompt, /save FILE saves the conversation \
as training data, /help lists them, /exit leaves. Ctrl-C stops a reply.";

/// Default of `--context`, in tokens.
const DEFAULT_CONTEXT: usize = 8192;

/// Number of prompt tokens that the memory forecast assumes.
const USUAL_PROMPT: usize = 64;

/// Largest file of prompts that is read, in bytes.
const MAX_PROMPT_FILE_BYTES: u64 = 16 << 20;

/// Difference between the seeds of a reply and of its `/retry`.
const RETRY_STRIDE: u64 = 1_000_003;

/// The flags of `danlu chat`.
#[derive(Args, Clone, Debug)]
pub struct ChatArgs {
    /// Adapter, merged model or base: a folder or a Hub name
    pub path: PathBuf,
    /// Base of the adapter, instead of the one the adapter names
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// Answer this prompt and exit
    #[arg(short, long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// Answer each line of a file in a conversation of its own, and exit
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    pub prompt_file: Option<PathBuf>,
    /// System prompt
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Continue even if the base's chat template differs from the adapter's
    #[arg(long)]
    pub allow_template_mismatch: bool,
    /// Chat template instead of the model's: a file, or chatml, llama3, alpaca, vicuna or zephyr
    #[arg(long, value_name = "FILE|NAME")]
    pub chat_template: Option<String>,
    /// Value of `enable_thinking` in the chat template, as of Qwen3 [default: the template's]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub enable_thinking: Option<bool>,
    /// Further values of the chat template, as a JSON object such as {"enable_thinking": false}
    #[arg(long, value_name = "JSON", value_parser = TemplateValues::from_str)]
    pub chat_template_kwargs: Option<TemplateValues>,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Longest reply, in tokens
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = at_least_one, help_heading = "Reply")]
    pub max_new_tokens: usize,
    /// Longest conversation, in tokens; older turns are dropped [default: the model's limit, at most 8192]
    #[arg(long, value_name = "N", value_parser = at_least_one, help_heading = "Reply")]
    pub context: Option<usize>,
    /// Number type of matrix multiplications: auto (the faster of bf16 and f32), bf16, f32, or f16 (GPU only) [default: auto]
    #[arg(long, value_name = "TYPE", value_parser = DTypeChoice::from_str, help_heading = "Machine")]
    pub dtype: Option<DTypeChoice>,
    #[command(flatten)]
    pub quant: QuantArgs,
    #[command(flatten)]
    pub compute: ComputeArgs,
}

/// Answers one prompt, or chats until the input ends.
///
/// # Errors
/// If the model cannot be loaded, a setting is out of range, or a one-shot prompt cannot be answered.
pub fn run(args: &ChatArgs, printer: &Printer) -> Result<()> {
    if args.prompt.as_ref().is_some_and(|prompt| prompt.trim().is_empty()) {
        let diagnostic = Diagnostic::input("`--prompt` is empty: there is nothing to answer");
        return Err(diagnostic.with_hint("pass a text, or omit `--prompt` for a chat"));
    }
    let started = Instant::now();
    let dtype = args.compute.dtype(args.dtype)?;
    let backend = args.compute.backend(dtype.dtype())?;
    let prompts = args.prompt_file.as_deref().map(read_prompts).transpose()?;
    let is_at_terminal = args.prompt.is_none() && prompts.is_none() && io::stdin().is_terminal();
    if is_at_terminal || printer.verbose {
        dtype.announce(&*backend, printer);
    }
    let loader = ModelLoader::new(printer);
    let model = loader.open(&args.path, args.base.as_deref())?;
    let choice = args.quant.choice()?;
    let quantization = loader.run(|_, notices| choose_quantization(&model, choice, notices))?;
    let most = model.base().config().max_position_embeddings;
    if let Some(context) = args.context {
        check_context(context, most, "`--context`")?;
    }
    let context = args.context.unwrap_or(DEFAULT_CONTEXT);
    if args.compute.gpu()?.is_none() {
        check_cache(model.base().config(), context.min(most))?;
        let cpu = args.compute.options(dtype.dtype())?;
        check_memory(args, &model, (quantization, cpu), context.min(most), printer)?;
    }
    let options = LoadOptions {
        backend,
        quantization: QuantChoice::As(quantization),
        threads: args.compute.threads(),
        tokens: token_check(args.allow_template_mismatch),
    };
    let loaded = loader.run(|loader, notices| loader.load(model, &options, notices))?;
    let template = args.chat_template.as_deref();
    let loaded = loaded.map_tokenizer(|tokenizer| {
        let tokenizer = with_chat_template(tokenizer, template, printer)?;
        let thinks = args.enable_thinking.map(|thinks| ("enable_thinking".to_owned(), thinks.into()));
        let values = args.chat_template_kwargs.clone().map_or_else(Map::new, |TemplateValues(values)| values);
        let pass = |tokenizer: Tokenizer, (name, value): (String, Value)| {
            tokenizer.with_template_value(&name, value)
        };
        Ok::<_, Diagnostic>(values.into_iter().chain(thinks).fold(tokenizer, pass))
    })?;
    let options = GenerateOptions {
        max_new_tokens: args.max_new_tokens,
        stop_ids: Default::default(),
        sampling: args.sampling.resolve(loaded.files().generation_folder())?,
    };
    let mut session =
        ChatSession::new(loaded.decoder(), loaded.tokenizer(), loaded.lora(), context, options)?;
    session.set_system(args.system.clone().or_else(|| loaded.default_system().map(str::to_owned)));
    if printer.verbose {
        let took = started.elapsed().as_millis();
        printer.status_bilingual(&format!("模型 {took} 毫秒内就绪"), &format!("model ready in {took} ms"));
    }

    let mut talk = Talk { session, loaded: &loaded, context, printer };
    match (&args.prompt, prompts) {
        (Some(prompt), _) => talk.say(prompt),
        (None, Some(prompts)) => talk.answer_each(&prompts),
        (None, None) if is_at_terminal => talk.at_terminal(),
        (None, None) => talk.piped(),
    }
}

/// Returns the lines of a file that are not empty.
fn read_prompts(path: &Path) -> Result<Vec<String>> {
    let bytes = files::read_bounded(path, MAX_PROMPT_FILE_BYTES)?;
    let text = String::from_utf8(bytes).map_err(|_| {
        let diagnostic = Diagnostic::input(format!("cannot read `{}`: it is not UTF-8", path.display()));
        diagnostic.with_hint("convert it first: `iconv -f GB18030 -t UTF-8`")
    })?;
    let prompts: Vec<String> =
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    match prompts.is_empty() {
        true => Err(Diagnostic::input(format!("`{}` has no line to answer", path.display()))
            .with_hint("write one prompt per line")),
        false => Ok(prompts),
    }
}

/// Checks that the keys and values of `context` tokens fit in the free memory.
fn check_cache(config: &ModelConfig, context: usize) -> Result<()> {
    let per_token =
        2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * size_of::<f32>();
    let needed = context as u64 * per_token as u64;
    let Some(free) = memory::available().filter(|&free| free < needed) else { return Ok(()) };
    let text = format!(
        "cannot chat with a context of {context} tokens: its cache needs {}, and {} are available",
        memory::display(needed),
        memory::display(free)
    );
    let fits = free / per_token as u64 * 3 / 4;
    Err(Diagnostic::input(text).with_hint(format!("use `--context {fits}`, which fits")))
}

/// Checks that the model and the conversation fit into the free memory.
fn check_memory(
    args: &ChatArgs,
    files: &ModelFiles,
    (quantization, cpu): (Option<Quantization>, CpuOptions),
    context: usize,
    printer: &Printer,
) -> Result<()> {
    let (config, threads) = (files.base().config(), args.compute.threads());
    let mut forecast = MemoryForecast::new();
    forecast.add_base(files.base(), quantization.map(|quantization| (quantization, threads)));
    files.adapter().into_iter().for_each(|adapter| forecast.add_adapter(adapter));
    forecast.add_tokenizer(config.vocab_size);
    let passes = [1, USUAL_PROMPT].map(|prompt| InferencePass::Reply { prompt, context });
    forecast.add_pass(config, cpu.into(), passes)?;
    forecast.check("chat with", &args.path, printer)
}

/// A chat with its model.
struct Talk<'a> {
    session: ChatSession<'a>,
    loaded: &'a LoadedModel,
    /// Longest conversation in tokens.
    context: usize,
    printer: &'a Printer,
}

impl Talk<'_> {
    /// Answers each prompt in a conversation of its own.
    fn answer_each(&mut self, prompts: &[String]) -> Result<()> {
        for prompt in prompts {
            let heading = format!("> {}", terminal_text::one_line(prompt));
            self.printer.data(&self.printer.paint_data(Style::Bold, &heading));
            self.session.reset();
            self.say(prompt)?;
        }
        Ok(())
    }

    fn at_terminal(&mut self) -> Result<()> {
        let printer = self.printer;
        let history = ChatHistory::of_user();
        let _attention = interrupt::graceful_stop(None)?;
        let mut editor = rustyline::DefaultEditor::new()
            .map_err(|error| Diagnostic::input(format!("cannot read from the terminal: {error}")))?;
        for line in history.read() {
            let _ = editor.add_history_entry(line);
        }
        let name = printer.paint_status(Style::Bold, &self.loaded.name());
        printer.status_bilingual(
            &format!("正在与 {name} 对话。/help 列出命令，/exit 或 Ctrl-D 离开。"),
            &format!("Chatting with {name}. /help lists the commands, /exit or Ctrl-D leaves."),
        );
        loop {
            match editor.readline("> ") {
                Ok(input) if input.trim().is_empty() => {}
                Ok(input) => {
                    let _ = editor.add_history_entry(&input);
                    history.append(&input);
                    // Without echo, text that is typed during a reply appears in the next prompt, not in the
                    // reply.
                    let _mode =
                        TerminalMode::without(LocalModes::ECHO, OptionalActions::Now).map_err(|error| {
                            Diagnostic::input(format!("cannot read from the terminal: {error}"))
                        })?;
                    if self.obey_or_answer(&input).unwrap_or_else(|diagnostic| {
                        printer.diagnostic(&diagnostic);
                        ControlFlow::Continue(())
                    }) == ControlFlow::Break(())
                    {
                        return Ok(());
                    }
                }
                Err(ReadlineError::Interrupted) => {
                    printer.status_bilingual("（/exit 或 Ctrl-D 离开）", "(/exit or Ctrl-D leaves)")
                }
                Err(ReadlineError::Eof) => return Ok(()),
                Err(error) => {
                    return Err(Diagnostic::input(format!("cannot read from the terminal: {error}")));
                }
            }
        }
    }

    /// Reads one message per line from a pipe. If a line fails, reports the error at once and continues.
    ///
    /// # Errors
    /// If a line failed, or standard input cannot be read.
    fn piped(&mut self) -> Result<()> {
        let printer = self.printer;
        let mut failed = 0;
        for input in io::stdin().lock().lines() {
            let input = input.map_err(|error| {
                if error.kind() == io::ErrorKind::InvalidData {
                    let diagnostic = Diagnostic::input("standard input is not UTF-8");
                    return diagnostic.with_hint("convert it first: `iconv -f GB18030 -t UTF-8`");
                }
                Diagnostic::input(format!("cannot read standard input: {error}"))
            })?;
            if input.trim().is_empty() {
                continue;
            }
            match self.obey_or_answer(&input) {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => break,
                Err(diagnostic) => {
                    failed += 1;
                    printer.diagnostic(&diagnostic);
                }
            }
        }
        match failed {
            0 => Ok(()),
            n => Err(Diagnostic::input(format!("{} failed, see above", terminal_text::counted(n, "line")))),
        }
    }

    /// Runs a command, or answers a message.
    fn obey_or_answer(&mut self, input: &str) -> Result<ControlFlow<()>> {
        let (session, printer) = (&mut self.session, self.printer);
        match command::parse(input) {
            ChatInput::Say(text) => self.say(text)?,
            ChatInput::Retry => self.retry()?,
            ChatInput::Undo => self.undo()?,
            ChatInput::Compare => self.compare()?,
            ChatInput::Settings => printer.status(&settings::list(session)),
            ChatInput::Set(name, value) => settings::set(session, name, value)?,
            ChatInput::Reset => {
                session.reset();
                printer.status_bilingual("已忘记之前的对话。", "The conversation is cleared.");
            }
            ChatInput::System("") => match session.system() {
                Some(system) => printer.status(&terminal_text::printable(system)),
                None => printer.status_bilingual("没有系统提示词。", "There is no system prompt."),
            },
            ChatInput::System(text) => {
                session.set_system(Some(text.to_owned()));
                printer.status_bilingual(
                    "系统提示词已设定，从下一句起生效。",
                    "The system prompt is set; it applies from the next message.",
                );
            }
            ChatInput::Save(path) => {
                command::save(session, &path)?;
                let path = path.display();
                printer.status_bilingual(
                    &format!("对话已存入 {path}"),
                    &format!("Saved the conversation to {path}"),
                );
            }
            ChatInput::Help => printer.status(printer.pick(command::HELP_ZH, command::HELP_EN)),
            ChatInput::Exit => return Ok(ControlFlow::Break(())),
            ChatInput::Misused(name, usage) => {
                return Err(Diagnostic::input(format!("`{name}` is not used like this")).with_hint(usage));
            }
            ChatInput::Unknown(name) => {
                let diagnostic = Diagnostic::input(format!("unknown command `{name}`"));
                return Err(diagnostic.with_hint(command::unknown_hint(name)));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Answers the last question again, with other random numbers.
    fn retry(&mut self) -> Result<()> {
        let question = self.session.undo().ok_or_else(no_question)?;
        let mut sampling = self.session.options().sampling.clone();
        sampling.seed = sampling.seed.wrapping_add(RETRY_STRIDE);
        self.session.set_sampling(sampling)?;
        self.say(&question)
    }

    fn undo(&mut self) -> Result<()> {
        let question = terminal_text::one_line(&self.session.undo().ok_or_else(no_question)?);
        self.printer.status_bilingual(&format!("已撤回：{question}"), &format!("removed: {question}"));
        Ok(())
    }

    /// Answers the last question with the base, without the adapter. The conversation is unchanged.
    fn compare(&mut self) -> Result<()> {
        if self.loaded.lora().is_none() {
            return Err(Diagnostic::input("cannot compare: the chat has no adapter, only a model")
                .with_hint("chat with an adapter, or run `danlu compare` on two models"));
        }
        let mut history = self.session.history().to_vec();
        let question = history.iter().rposition(|message| message.role == "user").ok_or_else(no_question)?;
        let question = history.split_off(question).swap_remove(0).content;
        let options = self.session.options().clone();
        let (decoder, tokenizer) = (self.loaded.decoder(), self.loaded.tokenizer());
        let mut base = ChatSession::new(decoder, tokenizer, None, self.context, options)?;
        base.set_system(self.session.system().map(str::to_owned));
        base.set_history(history);
        let label = self.printer.pick("基座：", "base: ");
        self.printer.status(&self.printer.paint_status(Style::Dim, label));
        say(&mut base, &question, self.printer)
    }

    fn say(&mut self, message: &str) -> Result<()> {
        say(&mut self.session, message, self.printer)
    }
}

/// Returns the error of a command that needs an earlier question.
fn no_question() -> Diagnostic {
    Diagnostic::input("there is no question yet").with_hint("say something first")
}

/// Prints one reply to stdout while it is generated.
fn say(session: &mut ChatSession<'_>, message: &str, printer: &Printer) -> Result<()> {
    interrupt::clear();
    let mut ended = true;
    let reply = session.reply(message, &mut |piece| {
        let piece = terminal_text::printable(piece);
        printer.data_raw(&piece);
        ended = piece.ends_with('\n');
        if interrupt::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    if !ended || reply.is_ok() {
        printer.data_raw("\n");
    }
    let reply = reply?;
    note(&reply, printer);
    Ok(())
}

/// Prints notices that concern a reply.
fn note(reply: &ChatReply, printer: &Printer) {
    let n = reply.forgotten;
    if n > 0 {
        printer.warn(&printer.pick(
            format!("上下文已满，最早的 {n} 条消息没有带上（--context 可加长）"),
            format!("the context is full: the oldest {n} messages were dropped (try a larger --context)"),
        ));
    }
    let generated = &reply.generated;
    match generated.stop {
        StopReason::MaxNewTokens => printer.status_bilingual(
            "（已到 --max-new-tokens，回复未完）",
            "(the reply reached --max-new-tokens and is cut short)",
        ),
        StopReason::ContextFull => {
            printer.status_bilingual(
                "（上下文已满，回复未完）",
                "(the context is full, the reply is cut short)",
            );
        }
        StopReason::Caller => printer.status_bilingual("（已停止）", "(stopped)"),
        StopReason::EndToken(_) => {}
    }
    if printer.verbose {
        let (first, speed) = (generated.prefill.as_millis(), generated.tokens_per_second());
        let (prompt, reused, new) = (generated.prompt_tokens, generated.reused_tokens, generated.ids.len());
        printer.status(&printer.paint_status(
            Style::Dim,
            &printer.pick(
                format!("提示 {prompt} 词元（{reused} 个沿用缓存），首词元 {first} 毫秒，回复 {new} 词元，{speed:.1} 词元/秒"),
                format!("prompt {prompt} tokens ({reused} cached), first token in {first} ms, {new} new tokens, {speed:.1} tok/s"),
            ),
        ));
        printer.teach(lesson::REPLY_SPEED);
    }
}
