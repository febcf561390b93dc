//! A line typed in a chat: a message or a command.

use std::path::{Path, PathBuf};

use danlu_generate::ChatSession;
use danlu_model::files;
use serde_json::json;

use super::settings;
use crate::args::home_paths::in_home;
use crate::diagnostic::{Diagnostic, Result};

pub const NAMES: [&str; 10] =
    ["/retry", "/undo", "/compare", "/set", "/reset", "/system", "/save", "/help", "/exit", "/quit"];

/// Chinese names of commands.
const NAMES_ZH: [(&str, &str); 9] = [
    ("/重试", "/retry"),
    ("/撤回", "/undo"),
    ("/对比", "/compare"),
    ("/设置", "/set"),
    ("/重置", "/reset"),
    ("/系统", "/system"),
    ("/保存", "/save"),
    ("/帮助", "/help"),
    ("/退出", "/exit"),
];

/// The text of `/help` in Chinese.
pub const HELP_ZH: &str = "\
/retry        换一个回答
/undo         撤回上一问一答
/compare      同一个问题，让基座（不带适配器）也答一遍
/set 名 值    改采样设置，如 /set temperature 0.5；不带参数则列出
/reset        忘记之前的对话
/system 文字  设定系统提示词；不带文字则显示
/save 文件    把对话存成一条训练数据（JSON Lines，messages 格式）
/help         列出这些命令
/exit         离开（Ctrl-D 亦可）；Ctrl-C 打断回复
命令也可以写中文：/重试 /撤回 /对比 /设置 /重置 /系统 /保存 /帮助 /退出";

/// The text of `/help` in English.
pub const HELP_EN: &str = "\
/retry        answer the last question again, with other random numbers
/undo         remove the last question and its reply
/compare      answer the last question with the base, without the adapter
/set NAME X   change a sampling setting, such as /set temperature 0.5; without NAME list them
/reset        clear the conversation
/system TEXT  set the system prompt; without TEXT show it
/save FILE    save the conversation as one training record (JSON lines, `messages`)
/help         list these commands
/exit         leave, as does Ctrl-D; Ctrl-C stops a reply";

#[derive(Debug, PartialEq, Eq)]
pub enum ChatInput<'a> {
    Say(&'a str),
    Retry,
    Undo,
    Compare,
    Settings,
    Set(&'a str, &'a str),
    Reset,
    System(&'a str),
    Save(PathBuf),
    Help,
    Exit,
    /// A command with a wrong argument, and its usage.
    Misused(&'a str, &'static str),
    Unknown(&'a str),
}

/// Parses a line. A command is `exit`, `quit`, or a slash followed by a word of letters. For example, `/` and
/// `1/2` are messages.
pub fn parse(input: &str) -> ChatInput<'_> {
    let input = input.trim();
    let (name, rest) = input.split_once(char::is_whitespace).unwrap_or((input, ""));
    let name = NAMES_ZH.iter().find(|(chinese, _)| *chinese == name).map_or(name, |(_, english)| english);
    let rest = rest.trim();
    match (name, rest) {
        ("/retry", "") => ChatInput::Retry,
        ("/undo", "") => ChatInput::Undo,
        ("/compare", "") => ChatInput::Compare,
        ("/set", "") => ChatInput::Settings,
        ("/set", words) => match words.split_once([' ', '=']) {
            Some((name, value)) => ChatInput::Set(name, value.trim()),
            None => ChatInput::Misused(name, "write a name and a value, such as /set temperature 0.5"),
        },
        ("/reset", "") => ChatInput::Reset,
        ("/system", text) => ChatInput::System(text),
        ("/save", path) if !path.is_empty() => ChatInput::Save(in_home(path.as_ref())),
        ("/help", "") => ChatInput::Help,
        // Other programs use these words, so users type them out of habit.
        ("/exit" | "/quit" | "exit" | "quit", "") => ChatInput::Exit,
        ("/save", _) => ChatInput::Misused(name, "name a file, such as /save talk.jsonl"),
        ("/retry" | "/undo" | "/compare" | "/reset" | "/help" | "/exit" | "/quit", _) => ChatInput::Misused(
            name,
            "leave the argument out: /retry, /undo, /compare, /reset, /help and /exit take none",
        ),
        _ if is_command(name) => ChatInput::Unknown(name),
        _ => ChatInput::Say(input),
    }
}

fn is_command(name: &str) -> bool {
    let is_letter = |c: char| c.is_ascii_lowercase() || c == '_' || (!c.is_ascii() && c.is_alphabetic());
    name.strip_prefix('/').is_some_and(|word| !word.is_empty() && word.chars().all(is_letter))
}

/// Returns the hint for an unknown command.
pub fn unknown_hint(name: &str) -> String {
    let setting = name.trim_start_matches('/');
    if settings::NAMES.contains(&setting) {
        return format!("change a setting with `/set {setting} VALUE`");
    }
    match danlu_data::closest_word(name, NAMES) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("`/help` lists the commands: {}", NAMES.join(" ")),
    }
}

/// Writes the conversation as one record in the `messages` format. Never overwrites a file.
pub fn save(session: &ChatSession<'_>, path: &Path) -> Result<()> {
    if session.history().is_empty() {
        return Err(
            Diagnostic::input("there is no conversation to save yet").with_hint("say something first")
        );
    }
    if path.exists() {
        let diagnostic = Diagnostic::input(format!("`{}` exists already", path.display()));
        return Err(diagnostic.with_hint("choose another name; existing files are not overwritten"));
    }
    let record = json!({ "messages": session.messages() });
    Ok(files::write_atomic(path, format!("{record}\n").as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_told_from_things_to_say() {
        assert_eq!(parse("/reset "), ChatInput::Reset);
        assert_eq!(parse("/system  你是 甄嬛。"), ChatInput::System("你是 甄嬛。"));
        assert_eq!(parse("/save a b.jsonl"), ChatInput::Save(PathBuf::from("a b.jsonl")));
        let home = std::env::home_dir().unwrap();
        assert_eq!(parse("/save ~/talk.jsonl"), ChatInput::Save(home.join("talk.jsonl")));
        assert_eq!(parse("/set temperature 0.5"), ChatInput::Set("temperature", "0.5"));
        assert_eq!(parse("/set top_p=0.5"), ChatInput::Set("top_p", "0.5"));
        assert_eq!(parse("/set"), ChatInput::Settings);
        assert_eq!(parse("/retry"), ChatInput::Retry);
        assert!(matches!(parse("/set temperature"), ChatInput::Misused("/set", _)));
        assert_eq!(parse("/quit"), ChatInput::Exit);
        assert_eq!(parse("exit"), ChatInput::Exit);
        assert_eq!(parse("exit the shop"), ChatInput::Say("exit the shop"));
        assert_eq!(parse("/rest"), ChatInput::Unknown("/rest"));
        assert!(matches!(parse("/save"), ChatInput::Misused("/save", _)));
        assert!(matches!(parse("/reset now"), ChatInput::Misused("/reset", _)));
        assert_eq!(parse("/系统 你是甄嬛。"), ChatInput::System("你是甄嬛。"));
        assert_eq!(parse("/退出"), ChatInput::Exit);
        assert_eq!(parse("/再见"), ChatInput::Unknown("/再见"));
        assert_eq!(unknown_hint("/temperature"), "change a setting with `/set temperature VALUE`");
        assert_eq!(unknown_hint("/hepl"), "did you mean `/help`?");
        for text in ["/", "1/2", "/etc/passwd 是什么？", "你好"] {
            assert_eq!(parse(text), ChatInput::Say(text));
        }
    }
}
