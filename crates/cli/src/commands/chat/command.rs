//! A line typed in a chat: something to say, or a command.

use std::path::Path;

use danlu_generate::ChatSession;
use danlu_model::files;
use serde_json::json;

use crate::diagnostic::{Report, Result};

/// Every command.
pub const NAMES: [&str; 6] = ["/reset", "/system", "/save", "/help", "/exit", "/quit"];

/// What `/help` prints, in Chinese.
pub const HELP_ZH: &str = "\
/reset        忘记之前的对话
/system 文字  设定系统提示词；不带文字则显示
/save 文件    把对话存成一条训练数据（JSON Lines，messages 格式）
/help         列出这些命令
/exit         离开（Ctrl-D 亦可）；Ctrl-C 打断回复";

/// What `/help` prints, in English.
pub const HELP_EN: &str = "\
/reset        forget the conversation
/system TEXT  set the system prompt; without TEXT show it
/save FILE    keep the conversation as one training record (JSON lines, `messages`)
/help         list these commands
/exit         leave, as does Ctrl-D; Ctrl-C stops a reply";

/// What a line means.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<'a> {
    Say(&'a str),
    Reset,
    System(&'a str),
    Save(&'a Path),
    Help,
    Exit,
    /// A command as it is not used, and how it is.
    Misused(&'a str, &'static str),
    Unknown(&'a str),
}

/// Reads a line. Only a word of letters after the slash is a command: `/` and `1/2` are things to say.
pub fn parse(input: &str) -> Line<'_> {
    let input = input.trim();
    let (name, rest) = input.split_once(char::is_whitespace).unwrap_or((input, ""));
    let rest = rest.trim();
    match (name, rest) {
        ("/reset", "") => Line::Reset,
        ("/system", text) => Line::System(text),
        ("/save", path) if !path.is_empty() => Line::Save(Path::new(path)),
        ("/help", "") => Line::Help,
        ("/exit" | "/quit", "") => Line::Exit,
        ("/save", _) => Line::Misused(name, "/save FILE, as in /save talk.jsonl"),
        ("/reset" | "/help" | "/exit" | "/quit", _) => {
            Line::Misused(name, "nothing stands after /reset, /help and /exit")
        }
        _ if is_command(name) => Line::Unknown(name),
        _ => Line::Say(input),
    }
}

fn is_command(name: &str) -> bool {
    name.strip_prefix('/')
        .is_some_and(|word| !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase()))
}

/// Writes the conversation as one record in the `messages` format, to a file that does not exist yet.
pub fn save(session: &ChatSession<'_>, path: &Path) -> Result<()> {
    if session.history().is_empty() {
        return Err(Report::input("there is no conversation to save yet").with_hint("say something first"));
    }
    if path.exists() {
        let report = Report::input(format!("`{}` exists already", path.display()));
        return Err(report.with_hint("choose another name: nothing is overwritten"));
    }
    let record = json!({ "messages": session.messages() });
    Ok(files::write_atomic(path, format!("{record}\n").as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_told_from_things_to_say() {
        assert_eq!(parse("/reset "), Line::Reset);
        assert_eq!(parse("/system  你是 甄嬛。"), Line::System("你是 甄嬛。"));
        assert_eq!(parse("/save a b.jsonl"), Line::Save(Path::new("a b.jsonl")));
        assert_eq!(parse("/quit"), Line::Exit);
        assert_eq!(parse("/rest"), Line::Unknown("/rest"));
        assert!(matches!(parse("/save"), Line::Misused("/save", _)));
        assert!(matches!(parse("/reset now"), Line::Misused("/reset", _)));
        for text in ["/", "1/2", "/etc/passwd 是什么？", "你好"] {
            assert_eq!(parse(text), Line::Say(text));
        }
    }
}
