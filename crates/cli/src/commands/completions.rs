//! `danlu completions`: prints a completion script for a shell.

use clap::{Args, Command};
use clap_complete::Shell;

use crate::diagnostic::Result;
use crate::printer::Printer;

pub const EXAMPLES: &str = "\
Examples:
  source <(danlu completions bash)
  source <(danlu completions zsh)
  danlu completions fish | source

To keep the completions, add the line to ~/.bashrc, ~/.zshrc or config.fish.";

/// The flags of `danlu completions`.
#[derive(Args, Clone, Debug)]
pub struct CompletionsArgs {
    /// Shell: bash, zsh, fish, elvish or powershell
    #[arg(value_name = "SHELL", hide_possible_values = true)]
    pub shell: Shell,
}

/// Prints the script.
///
/// # Errors
/// Never returns an error, because every shell has a script.
pub fn run(args: &CompletionsArgs, mut command: Command, printer: &Printer) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "danlu", &mut script);
    printer.data_raw(&String::from_utf8_lossy(&script));
    Ok(())
}
