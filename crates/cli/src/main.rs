//! The `danlu` command.
//!
//! `main` parses the command line, sets up the printer and calls a subcommand. Each subcommand has a file in
//! `commands/`, which also contains its flags.

mod allocator;
mod args;
mod browser;
mod bus_error;
mod chart;
mod clap_error;
mod commands;
mod config_file;
mod diagnostic;
mod embedded_base;
mod embedded_data;
mod evaluation;
mod greeting;
mod help_zh;
mod interrupt;
mod lang;
mod lesson;
mod library_errors;
mod log;
mod main_stack;
mod memory;
mod memory_forecast;
mod message_zh;
mod model_loader;
mod notices;
mod panic;
mod peer_config;
mod peer_flags;
mod printer;
mod secret_args;
mod style;
mod temp_dirs;
mod terminal_mode;
mod terminal_text;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use args::compute::available_cores;
use args::home_paths::expand_home;
use commands::{
    bench, card, chat, compare, completions, config, data, demo, doctor, explain, hub, merge, new, plan,
    quantize, report, serve, train,
};
use diagnostic::Result;
use lang::Lang;
use printer::Printer;
use style::Color;

/// Fine-tune, compare, chat with and merge LoRA adapters, from one binary.
#[derive(Parser, Debug)]
#[command(name = "danlu", version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// Language of messages, help and errors [default: DANLU_LANG, or the locale's]
    #[arg(long, value_name = "LANG", global = true, help_heading = "Output")]
    lang: Option<Lang>,
    /// When to use colour; NO_COLOR is honoured
    #[arg(
        long,
        value_name = "WHEN",
        global = true,
        default_value = "auto",
        hide_possible_values = true,
        help_heading = "Output"
    )]
    color: Color,
    /// Show log messages and tokens per second
    #[arg(short, long, global = true, help_heading = "Output")]
    verbose: bool,
    /// Print results, warnings and errors only
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "Output")]
    quiet: bool,
    /// Explain each stage and figure in one sentence
    #[arg(long, global = true, conflicts_with = "quiet", help_heading = "Output")]
    teach: bool,
    /// Answer yes to every question
    #[arg(short, long, global = true, help_heading = "Output")]
    yes: bool,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Train, compare, merge and chat with an adapter on the embedded base, in about a minute
    #[command(after_help = demo::EXAMPLES)]
    Demo(demo::DemoArgs),
    /// Answer five questions, get a run with its forecast, and start it
    #[command(after_help = new::EXAMPLES)]
    New(new::NewArgs),
    /// Check, preview, convert or get training data
    #[command(subcommand, after_help = data::EXAMPLES)]
    Data(data::DataCommand),
    /// Translate a configuration file of another tool
    #[command(subcommand, after_help = config::EXAMPLES)]
    Config(config::ConfigCommand),
    /// Fine-tune a LoRA adapter on your data
    #[command(after_help = train::EXAMPLES, allow_negative_numbers = true)]
    Train(Box<train::TrainArgs>),
    /// Predict memory and time of a training run before anything is loaded; takes the flags of train
    #[command(after_help = plan::EXAMPLES, allow_negative_numbers = true)]
    Plan(Box<plan::PlanArgs>),
    /// Show the report of a run in a browser, live, or compare several runs on one page
    #[command(after_help = report::EXAMPLES)]
    Report(report::ReportArgs),
    /// Compare base and adapter, or two models, on held-out data
    #[command(after_help = compare::EXAMPLES, allow_negative_numbers = true)]
    Compare(compare::CompareArgs),
    /// Chat with a base, an adapter or a merged model
    #[command(after_help = chat::EXAMPLES, allow_negative_numbers = true)]
    Chat(chat::ChatArgs),
    /// Serve a base and its adapters over HTTP, with the API of OpenAI
    #[command(after_help = serve::EXAMPLES)]
    Serve(Box<serve::ServeArgs>),
    /// Merge an adapter into its base, and measure the result
    #[command(after_help = merge::EXAMPLES, allow_negative_numbers = true)]
    Merge(merge::MergeArgs),
    /// Update the model card of an adapter or a merged model
    #[command(after_help = card::EXAMPLES)]
    Card(card::WriteArgs),
    /// Quantize a base to 4 bits, in the format of bitsandbytes
    #[command(after_help = quantize::EXAMPLES)]
    Quantize(quantize::QuantizeArgs),
    /// Download or update a model from the Hugging Face Hub
    #[command(after_help = hub::pull::EXAMPLES)]
    Pull(hub::pull::PullArgs),
    /// Publish an adapter or a model on the Hugging Face Hub, in one commit
    #[command(after_help = hub::push::EXAMPLES)]
    Push(hub::push::PushArgs),
    /// Store a token for the Hugging Face Hub
    #[command(after_help = hub::account::EXAMPLES)]
    Login(hub::account::LoginArgs),
    /// Show the account of the current token
    Whoami,
    /// Remove the stored token
    Logout,
    /// Measure training, prefill, decoding and merging, and compare with this machine's peak
    #[command(subcommand, after_help = bench::EXAMPLES)]
    Bench(bench::BenchCommand),
    /// Print a completion script for a shell
    #[command(after_help = completions::EXAMPLES)]
    Completions(completions::CompletionsArgs),
    /// Show the hardware of this machine and what danlu uses of it
    #[command(after_help = doctor::EXAMPLES)]
    Doctor(doctor::DoctorArgs),
    /// Explain a term of fine-tuning, such as rank or loss
    #[command(after_help = explain::EXAMPLES)]
    Explain(explain::ExplainArgs),
}

impl Command {
    /// Returns whether `--json` reserves stdout for events.
    fn wants_events(&self) -> bool {
        match self {
            Self::Train(args) => args.json,
            Self::Compare(args) => args.json,
            Self::Merge(args) => args.json,
            Self::Data(data::DataCommand::Check(args)) => args.json,
            _ => false,
        }
    }
}

const EXAMPLES: &str = "\
From data to a merged model, with the files of the demo:
  danlu demo
  danlu data check danlu-demo/palace.json --base danlu-demo/base-8m
  danlu train --base danlu-demo/base-8m --data danlu-demo/palace.json \\
    --output out/palace
  danlu compare out/palace
  danlu chat out/palace
  danlu merge out/palace --output out/palace-merged

Exit codes: 0 success, 1 bad input, 2 internal error (please report it), 130 interrupted. For `serve` and `report`, \
Ctrl-C is the normal end, with exit code 0.";

fn main() -> ExitCode {
    panic::install();
    allocator::configure();
    interrupt::survive_file_limits();
    bus_error::install();
    main_stack::run(run_line).unwrap_or_else(|error| {
        let lang = Lang::detect(&std::env::args_os().collect::<Vec<_>>());
        let diagnostic = diagnostic::Diagnostic::input(format!("cannot start a thread: {error}"))
            .with_hint("raise the limit on threads, such as `ulimit -u`");
        report(&diagnostic, &Printer::new(lang, Color::Auto, false))
    })
}

/// Runs the command line of this process. Its variables would not fit a small stack, so they stay out of the
/// frame of `main`.
#[inline(never)]
fn run_line() -> ExitCode {
    // This call starts a thread. `main_stack::run` changes the environment, which is safe only before any
    // thread starts.
    interrupt::exit_on_signals();
    let line: Vec<_> = std::env::args_os().collect();
    let lang = Lang::detect(&line);
    let args: Vec<String> = line.iter().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    if let Err(diagnostic) = secret_args::refuse_secrets(&args) {
        return report(&diagnostic, &Printer::new(lang, Color::Auto, false));
    }
    let command = expand_home(clap_error::accept_negative(Cli::command()));
    let command = lang.pick(help_zh::translate as fn(_) -> _, |command| command)(command);
    let line = match peer_flags::translate(&command, line) {
        Ok(line) => line,
        Err(diagnostic) => return report(&diagnostic, &Printer::new(lang, Color::Auto, false)),
    };
    let matches = match command.try_get_matches_from(line) {
        Ok(matches) => matches,
        Err(error) => return refuse(&error, lang),
    };
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => return refuse(&error, lang),
    };
    let printer = Printer::new(lang, cli.color, cli.verbose)
        .with_answers(cli.quiet, cli.yes)
        .with_lessons(cli.teach)
        .with_json(cli.command.as_ref().is_some_and(Command::wants_events));
    log::install(&printer);
    warn_about_threads(&matches, &printer);
    let Some(command) = &cli.command else {
        greeting::print(&printer);
        return ExitCode::SUCCESS;
    };
    let result = run(command, &matches, &printer);
    if let Some(peak) = memory::peak().filter(|_| printer.verbose) {
        let peak = danlu_train::memory::display(peak);
        printer.status_bilingual(&format!("内存峰值 {peak}"), &format!("peak memory {peak}"));
    }
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(diagnostic) => report(&diagnostic, &printer),
    }
}

/// Warns if `--threads` is larger than the number of cores.
fn warn_about_threads(matches: &clap::ArgMatches, printer: &Printer) {
    let mut command = matches;
    while let Some((_, subcommand)) = command.subcommand() {
        command = subcommand;
    }
    let (threads, cores) = (command.try_get_one::<u16>("threads"), available_cores());
    if let Some(&threads) = threads.ok().flatten().filter(|&&threads| usize::from(threads) > cores) {
        printer.warn(&printer.pick(
            format!("--threads {threads} 超过可用的 {cores} 个核：使用 {cores} 个线程"),
            format!("`--threads {threads}` exceeds the {cores} available cores: using {cores} threads"),
        ));
    }
}

/// Prints an error, and returns its exit code.
fn report(diagnostic: &diagnostic::Diagnostic, printer: &Printer) -> ExitCode {
    printer.diagnostic(diagnostic);
    ExitCode::from(if interrupt::stopped() { interrupt::ABORTED } else { diagnostic.exit_code() })
}

fn run(command: &Command, matches: &clap::ArgMatches, printer: &Printer) -> Result<()> {
    match command {
        Command::Demo(args) => demo::run(args, printer),
        Command::New(args) => new::run(args, printer),
        Command::Data(command) => data::run(command, printer),
        Command::Config(command) => config::run(command, printer),
        Command::Train(_) => {
            // `resolve` gets the matches, because only flags on the command line take precedence over the
            // configuration file.
            let (_, own) = matches.subcommand().expect("a parsed command line has its subcommand");
            train::run(&train::RunConfig::resolve(own)?, printer)
        }
        Command::Plan(args) => {
            let (_, own) = matches.subcommand().expect("a parsed command line has its subcommand");
            plan::run(args, own, printer)
        }
        Command::Report(args) => report::run(args, printer),
        Command::Compare(args) => compare::run(args, printer),
        Command::Chat(args) => chat::run(args, printer),
        Command::Serve(args) => serve::run(args, printer),
        Command::Merge(args) => merge::run(args, printer),
        Command::Card(args) => card::run(args, printer),
        Command::Quantize(args) => quantize::run(args, printer),
        Command::Pull(args) => hub::pull::run(args, printer),
        Command::Push(args) => hub::push::run(args, printer),
        Command::Login(args) => hub::account::login(args, printer),
        Command::Whoami => hub::account::whoami(printer),
        Command::Logout => hub::account::logout(printer),
        Command::Bench(command) => bench::run(command, printer),
        Command::Completions(args) => completions::run(args, Cli::command(), printer),
        Command::Doctor(args) => doctor::run(args, printer),
        Command::Explain(args) => explain::run(args, printer),
    }
}

/// Prints help and version to stdout. Prints any other clap error as a diagnostic.
fn refuse(error: &clap::Error, lang: Lang) -> ExitCode {
    use clap::error::ErrorKind;
    let printer = Printer::new(lang, Color::Auto, false);
    let shown = matches!(error.kind(), ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand);
    if shown || !error.use_stderr() {
        if let Err(error) = error.print().and_then(|()| std::io::stdout().flush()) {
            printer.give_up_stdout(error);
        }
        return if shown { ExitCode::from(1) } else { ExitCode::SUCCESS };
    }
    let line: Vec<String> = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let shown = clap_error::of_line(error, &line).render_in(lang, printer.status_color());
    printer.error(without_tokens(&shown, &line).trim_end());
    ExitCode::from(1)
}

/// Returns `shown`, with every access token of `line` masked.
fn without_tokens(shown: &str, line: &[String]) -> String {
    const LONG_ENOUGH: usize = 20;
    let is_token = |word: &&str| {
        let secret = word.strip_prefix("hf_").unwrap_or_default();
        secret.len() >= LONG_ENOUGH && secret.bytes().all(|b| b.is_ascii_alphanumeric())
    };
    let words = line.iter().flat_map(|arg| arg.split('=')).filter(is_token);
    words.fold(shown.to_owned(), |shown, token| shown.replace(token, "hf_..."))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Collects the `after_help` texts of a command and of its subcommands.
    fn closing_parts(command: &clap::Command, out: &mut Vec<(String, String)>) {
        out.extend(command.get_after_help().map(|text| (command.get_name().to_owned(), text.to_string())));
        command.get_subcommands().for_each(|command| closing_parts(command, out));
    }

    /// In a narrow terminal, a long example would break and could not be pasted. Prose with its own line
    /// breaks would be wrapped a second time.
    #[test]
    fn examples_fit_a_narrow_terminal_and_prose_is_left_to_be_wrapped() {
        let mut parts = Vec::new();
        closing_parts(&Cli::command(), &mut parts);
        assert!(parts.len() > 10);
        for (command, text) in parts {
            let lines: Vec<&str> = text.lines().collect();
            for line in lines.iter().filter(|line| line.starts_with(' ')) {
                assert!(terminal_text::width(line) <= 80, "{command}: {line}");
            }
            let is_prose = |line: &str| !line.is_empty() && !line.starts_with(' ');
            let broken = lines.windows(2).find(|pair| is_prose(pair[0]) && is_prose(pair[1]));
            assert_eq!(broken, None, "{command}");
        }
    }
}
