//! `danlu login`, `whoami` and `logout`: manage the Hub's access token. The token is stored in the file that
//! Python's huggingface_hub uses.

use std::ffi::OsString;
use std::io::{self, BufRead as _, IsTerminal, Read as _, Write as _};

use clap::Args;
use danlu_hub::{Account, Hub, HubError, HubSettings, Token};
use rustix::termios::{LocalModes, OptionalActions};

use super::open;
use crate::diagnostic::{Diagnostic, Result};

use crate::printer::Printer;
use crate::terminal_mode::TerminalMode;
use crate::terminal_text;

/// The page on which users create tokens.
const TOKENS_PAGE: &str = "https://huggingface.co/settings/tokens";

/// The file in which Python's huggingface_hub stores several tokens by name.
const STORED_TOKENS: &str = "stored_tokens";

/// Longest line that is read as a token, in bytes.
const MAX_TOKEN_BYTES: usize = 4096;

/// Examples that `login --help` shows.
pub const EXAMPLES: &str = "\
Examples:
  danlu login                      # asks for the token, without echo
  HF_TOKEN=hf_... danlu login      # stores the variable's token

Create a token at https://huggingface.co/settings/tokens. Downloads need `read`, `push` \
needs `write`. The token is stored where Python's tools look (HF_TOKEN_PATH, or `token` in HF_HOME), \
readable only by you. `hf auth whoami` finds it there; `hf auth list` shows only tokens \
from `hf auth login`.";

/// The flags of `danlu login`: none.
#[derive(Args, Clone, Debug)]
pub struct LoginArgs {
    /// Extra arguments, perhaps a token; no message may repeat them
    #[arg(hide = true, num_args = 0.., trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<OsString>,
}

/// Reads a token, verifies it with the Hub and stores it.
///
/// # Errors
/// If no token is given, the Hub rejects the token, or the token cannot be stored.
pub fn login(args: &LoginArgs, printer: &Printer) -> Result<()> {
    if !args.words.is_empty() {
        let diagnostic = Diagnostic::input(
            "`danlu login` takes no argument: a token on the command line stays in the shell's history, and other users of this machine may see it",
        );
        return Err(diagnostic
            .with_hint("run `danlu login`, which asks for the token without echo, or `danlu login < FILE`"));
    }
    let mut settings = HubSettings::from_env()?;
    if settings.offline {
        return Err(HubError::OfflineAccount.into());
    }
    // An invalid token in the file is no error here, because `login` overwrites the file.
    if let Some(fault) = settings.token_fault.take().filter(|_| settings.token_is_variable) {
        return Err(HubError::from(fault).into());
    }
    if settings.endpoint.is_mirror() {
        let endpoint = &settings.endpoint;
        printer.status_bilingual(
            &format!("令牌将发送给 {endpoint}（HF_ENDPOINT）；在 {TOKENS_PAGE} 创建，若 {endpoint} 有自己的账号，则在那里创建"),
            &format!("the token is sent to {endpoint} (HF_ENDPOINT); create it at {TOKENS_PAGE}, or there if {endpoint} has its own accounts"),
        );
    }
    let given = settings.token.clone().filter(|_| settings.token_is_variable);
    let token = match given {
        Some(token) => token,
        None => Token::new(&ask(settings.endpoint.is_mirror(), printer)?)?,
    };
    let hub = Hub::new(HubSettings { token: Some(token.clone()), ..settings });
    let account = hub.whoami()?;
    let path = &hub.settings().token_path;
    token.save(path)?;
    let (who, path) = (described(&account, printer), path.display());
    printer.data(&printer.pick(
        format!("已登录：{who}。令牌保存在 {path}，仅本人可读"),
        format!("logged in as {who}; the token is stored in {path}, readable only by you"),
    ));
    if account.role() == Some("read") {
        printer.status_bilingual(
            "该令牌只读：可以下载，不能上传（push 需要 write 权限的令牌）",
            "this token is read-only: downloads work, `push` needs a token with write access",
        );
    }
    Ok(())
}

/// Prints the account of the current token.
///
/// # Errors
/// If there is no token, or the Hub rejects the token.
pub fn whoami(printer: &Printer) -> Result<()> {
    let hub = open(printer)?;
    let account = hub.whoami()?;
    printer.data(&described(&account, printer));
    let orgs: Vec<&str> = account.orgs.iter().map(|org| org.name.as_str()).collect();
    if !orgs.is_empty() {
        let orgs = terminal_text::printable(&orgs.join(", "));
        printer.data(&printer.pick(format!("组织：{orgs}"), format!("organisations: {orgs}")));
    }
    Ok(())
}

/// Removes the stored token.
///
/// # Errors
/// If the token's file cannot be removed.
pub fn logout(printer: &Printer) -> Result<()> {
    let settings = HubSettings::from_env()?;
    let path = settings.token_path.display();
    if Token::remove(&settings.token_path)? {
        printer.data(&printer.pick(format!("已删除令牌 {path}"), format!("the token in {path} is removed")));
    } else {
        printer.data(&printer.pick(format!("{path} 处没有令牌"), format!("there is no token in {path}")));
    }
    let others = settings.token_path.with_file_name(STORED_TOKENS);
    if others.exists() {
        let others = others.display();
        printer.status_bilingual(
            &format!("Python 工具另外保存的令牌仍在 {others}：用 `hf auth logout` 删除"),
            &format!("further tokens of Python's tools are still in {others}: `hf auth logout` removes them"),
        );
    }
    if settings.token_is_variable {
        printer.status_bilingual(
            "`HF_TOKEN` 仍然设置着，会继续使用它",
            "`HF_TOKEN` is still set and will be used",
        );
    }
    Ok(())
}

/// Formats an account: `me (token `laptop`, write)`.
fn described(account: &Account, printer: &Printer) -> String {
    let name = terminal_text::printable(&account.name);
    let [named, role] = [account.token_name(), account.role()].map(|said| said.map(terminal_text::printable));
    let token = match (named, role) {
        (Some(name), Some(role)) => format!("`{name}`, {role}"),
        (Some(name), None) => format!("`{name}`"),
        (None, Some(role)) => role,
        (None, None) => return name,
    };
    printer.pick(format!("{name}（令牌 {token}）"), format!("{name} (token {token})"))
}

/// Reads a token. At a terminal, the input is hidden. If standard input is not a terminal, its first line is
/// the token. If `is_told` is true, the address of the tokens page is not printed again.
fn ask(is_told: bool, printer: &Printer) -> Result<String> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        let mut line = String::new();
        let read = stdin.lock().take(MAX_TOKEN_BYTES as u64).read_line(&mut line);
        read.map_err(|error| Diagnostic::input(format!("cannot read a token from standard input: {error}")))?;
        if line.trim().is_empty() {
            let diagnostic = Diagnostic::input("there is no token on standard input");
            return Err(
                diagnostic.with_hint(format!("run `danlu login < FILE` with a token of {TOKENS_PAGE}"))
            );
        }
        return Ok(line);
    }
    if !is_told {
        printer.status_bilingual(
            &format!("在 {TOKENS_PAGE} 创建令牌"),
            &format!("create a token at {TOKENS_PAGE}"),
        );
    }
    let mut stderr = io::stderr();
    let _ =
        stderr.write_all(printer.pick("粘贴令牌（不会显示）：", "paste it here (without echo): ").as_bytes());
    let _ = stderr.flush();
    let line = hidden_line();
    let _ = stderr.write_all(b"\n");
    line?.ok_or_else(|| Diagnostic::input("stopped: no token was given"))
}

/// Reads a line from the terminal without echo. The terminal sends no signal for Ctrl-C in this mode: both
/// Ctrl-C and Ctrl-D arrive as bytes, and this function returns `None` for them.
fn hidden_line() -> Result<Option<String>> {
    const INTERRUPT: u8 = 3;
    const END: u8 = 4;
    let stdin = io::stdin();
    let fault = |error: io::Error| Diagnostic::input(format!("cannot read from the terminal: {error}"));
    let off = LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG;
    let _mode = TerminalMode::without(off, OptionalActions::Flush).map_err(fault)?;
    let mut line = Vec::new();
    let outcome = loop {
        let mut byte = [0];
        match stdin.lock().read(&mut byte) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break Err(fault(error)),
            Ok(0) => break Ok(None),
            Ok(_) => match byte[0] {
                INTERRUPT | END => break Ok(None),
                b'\r' | b'\n' => break Ok(Some(())),
                8 | 127 => drop(line.pop()),
                byte if line.len() < MAX_TOKEN_BYTES => line.push(byte),
                _ => {}
            },
        }
    };
    Ok(outcome?.map(|()| String::from_utf8_lossy(&line).into_owned()))
}
