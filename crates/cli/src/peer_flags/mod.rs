//! Flag names of TRL, PEFT, axolotl, LLaMA-Factory, Unsloth and mlx-lm.
//!
//! A name with the same meaning as a danlu flag is translated before clap parses the command line. For any
//! other known name, the error names the flag to use, or the reason why danlu has no such flag.

mod table;

use std::ffi::OsString;
use std::iter::Peekable;

use clap::{Arg, Command};
use table::{COMMANDS, PREFIXES, TABLE, VALUES, WITHOUT_EFFECT};

use crate::diagnostic::{Diagnostic, Result};

/// The meaning of another tool's flag in danlu.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerFlag {
    /// danlu flags with the same meaning. The name is translated to the first of these flags that the command
    /// has.
    Same(&'static [&'static str]),
    /// A switch that becomes these arguments.
    Switch(&'static str),
    /// danlu has no such flag. The two texts are the hint in English and in Chinese.
    Advice(&'static str, &'static str),
}

use PeerFlag::{Advice, Same, Switch};

/// Largest number of letters in which a suggestion may differ from the typed word.
const MAX_EDITS: usize = 2;

/// Returns the meaning of another tool's flag. `name` has no leading dashes, and has `-` in place of `_`.
pub fn meaning(name: &str) -> Option<PeerFlag> {
    let exact = TABLE.iter().find(|(names, _)| names.contains(&name));
    let begun = || PREFIXES.iter().find(|(starts, _)| starts.iter().any(|start| name.starts_with(start)));
    exact.or_else(begun).map(|(_, meaning)| *meaning)
}

/// Returns danlu's value for another tool's value of danlu's flag `flag`, such as `bf16` for `bfloat16`.
pub fn own_value(flag: &str, value: &str) -> Option<&'static str> {
    let (_, values) = VALUES.iter().find(|(of, _)| *of == flag)?;
    values.iter().find(|(theirs, _)| *theirs == value).map(|(_, ours)| *ours)
}

/// Returns whether another tool's flag has no effect with this value, such as `--max_steps -1`.
pub fn is_without_effect(name: &str, value: &str) -> bool {
    WITHOUT_EFFECT.contains(&(name, value.to_ascii_lowercase().as_str()))
}

/// Returns the hint for a command of another tool.
pub fn command_hint(name: &str) -> Option<&'static str> {
    let name = name.replace('_', "-");
    COMMANDS.iter().find(|(names, ..)| names.contains(&name.as_str())).map(|(_, hint, _)| *hint)
}

/// Returns the Chinese text of a hint about a flag or a command of another tool.
pub fn chinese_hint(english: &str) -> Option<&'static str> {
    let flags = TABLE.iter().chain(PREFIXES).filter_map(|(_, meaning)| match meaning {
        Advice(hint, chinese) => Some((*hint, *chinese)),
        _ => None,
    });
    let commands = COMMANDS.iter().map(|(_, hint, chinese)| (*hint, *chinese));
    flags.chain(commands).find(|(hint, _)| *hint == english).map(|(_, chinese)| chinese)
}

/// Returns the known word closest to `word`. At most two letters may differ, and at least two letters must be
/// equal.
pub fn close<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = MAX_EDITS.min(word.chars().count().saturating_sub(2));
    let ranked = known.into_iter().map(|known| (danlu_data::edit_distance(word, known), known));
    ranked.filter(|(edits, _)| *edits <= limit).min().map(|(_, known)| known)
}

/// Translates the flags of a command line. In the name of a flag, `_` becomes `-`. Flags and values of other
/// tools become danlu's. A boolean flag may have its value as the next word, such as `--packing True`.
///
/// # Errors
/// If a flag of another tool has no equivalent in danlu, or if a long flag has only one dash. The hint names
/// what to do instead, or the reason why danlu has no such flag.
pub fn translate(root: &Command, line: Vec<OsString>) -> Result<Vec<OsString>> {
    let mut command = root;
    let mut words = line.into_iter().peekable();
    let mut out: Vec<OsString> = words.next().into_iter().collect();
    while let Some(word) = words.next() {
        let Some(text) = word.to_str() else {
            out.push(word);
            continue;
        };
        if text == "--" || command.get_name() == "login" {
            out.push(word);
            out.extend(words);
            return Ok(out);
        }
        if let Some(name) = long_with_one_dash(root, command, text) {
            let hint = format!("did you mean `--{name}`?");
            return Err(Diagnostic::input(format!("unknown flag `{text}`")).with_hint(hint));
        }
        let Some(body) = text.strip_prefix("--").filter(|body| !body.is_empty()) else {
            command = command.get_subcommands().find(|sub| sub.get_name() == text).unwrap_or(command);
            out.push(word);
            continue;
        };
        let (name, value) = body.split_once('=').map_or((body, None), |(name, value)| (name, Some(value)));
        let name = name.replace('_', "-");
        let mut value = Value { given: value.map(str::to_owned), words: &mut words };
        if value.take_if(|value| is_without_effect(&name, value)).is_some() {
            continue;
        }
        match translated(root, command, &name) {
            Translation::Flag(flag) => {
                let value = match flag_of(root, command, &flag).is_some_and(is_boolean) {
                    true => value.take_if(is_bool).map(|value| value.to_ascii_lowercase()),
                    false => value.take_if(|value| own_value(&flag, value).is_some()),
                }
                .or(value.given);
                let value = value.map(|value| own_value(&flag, &value).map_or(value, str::to_owned));
                out.push(value.map_or_else(|| format!("--{flag}"), |v| format!("--{flag}={v}")).into());
            }
            Translation::Switch(args) => {
                let value = value.take_if(|value| switch(value).is_some()).or(value.given);
                if value.as_deref().and_then(switch).unwrap_or(true) {
                    out.push(args.into());
                }
            }
            Translation::Advice(hint) => {
                return Err(Diagnostic::input(format!("unknown flag `--{name}`")).with_hint(hint));
            }
            Translation::Unknown => out.push(word),
        }
    }
    Ok(out)
}

/// The value of a flag: the text after its `=`, or the next word.
struct Value<'a, I: Iterator<Item = OsString>> {
    given: Option<String>,
    words: &'a mut Peekable<I>,
}

impl<I: Iterator<Item = OsString>> Value<'_, I> {
    /// Returns the value if `is_meant` accepts it. The next word is then removed from the line.
    fn take_if(&mut self, is_meant: impl Fn(&str) -> bool) -> Option<String> {
        match &self.given {
            Some(value) => Some(value.clone()).filter(|value| is_meant(value)),
            None => self.words.next_if(|next| next.to_str().is_some_and(&is_meant))?.into_string().ok(),
        }
    }
}

enum Translation {
    Flag(String),
    Switch(String),
    Advice(String),
    Unknown,
}

fn translated(root: &Command, command: &Command, name: &str) -> Translation {
    let has = |flag: &str| ["help", "version"].contains(&flag) || flag_of(root, command, flag).is_some();
    if has(name) {
        return Translation::Flag(name.to_owned());
    }
    match meaning(name) {
        Some(Same(flags)) => {
            if let Some(flag) = flags.iter().find(|flag| has(flag)) {
                return Translation::Flag((*flag).to_owned());
            }
            let elsewhere = |flag: &'static str| Some((command_with(root, command, flag)?, flag));
            if let Some((other, flag)) = flags.iter().find_map(|flag| elsewhere(flag)) {
                return Translation::Advice(format!("use `--{flag}` with `danlu {other}`"));
            }
        }
        Some(Switch(args)) if has(args.trim_start_matches("--").split('=').next().unwrap_or_default()) => {
            return Translation::Switch(args.to_owned());
        }
        Some(Advice(hint, _)) => return Translation::Advice(hint.to_owned()),
        Some(Switch(_)) | None => {}
    }
    let positive = name.strip_prefix("no-").and_then(|positive| flag_of(root, command, positive));
    if let Some(flag) = positive.filter(|arg| is_boolean(arg)).and_then(Arg::get_long) {
        return Translation::Switch(format!("--{flag}=false"));
    }
    match command_with(root, command, name) {
        Some(other) => Translation::Advice(format!("use it with `danlu {other}`")),
        None => Translation::Unknown,
    }
}

/// Returns the name of another command that has the flag `name`.
fn command_with<'a>(root: &'a Command, command: &Command, name: &str) -> Option<&'a str> {
    let has = |other: &&Command| other.get_arguments().any(|arg| arg.get_long() == Some(name));
    let others = root.get_subcommands().filter(|other| other.get_name() != command.get_name());
    others.filter(has).map(Command::get_name).next()
}

/// Returns whether the flag is a boolean whose value is optional, such as `--packing=false`.
fn is_boolean(arg: &Arg) -> bool {
    arg.is_require_equals_set() && arg.get_value_names().is_some_and(|names| names == ["BOOL"])
}

fn is_bool(text: &str) -> bool {
    ["true", "false"].iter().any(|bool| text.eq_ignore_ascii_case(bool))
}

/// Returns the name of a long flag that is written with one dash, such as `-base`.
fn long_with_one_dash(root: &Command, command: &Command, text: &str) -> Option<String> {
    let body = text.strip_prefix('-').filter(|body| body.len() > 2 && !body.starts_with('-'))?;
    let name = body.split('=').next().unwrap_or_default().replace('_', "-");
    let is_known = flag_of(root, command, &name).is_some() || meaning(&name).is_some();
    is_known.then_some(name)
}

/// Returns the flag `name` of the command, or the global flag of this name.
fn flag_of<'a>(root: &'a Command, command: &'a Command, name: &str) -> Option<&'a Arg> {
    let global = root.get_arguments().filter(|arg| arg.is_global_set());
    command.get_arguments().chain(global).find(|arg| arg.get_long() == Some(name))
}

/// Parses the value of a switch.
pub fn switch(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" | "auto" => Some(true),
        "false" | "0" | "no" | "off" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::Cli;

    fn line(text: &str) -> Result<String, String> {
        let words = text.split(' ').map(OsString::from).collect();
        let words = translate(&Cli::command(), words).map_err(|error| error.render(false))?;
        Ok(words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn a_long_flag_with_one_dash_is_answered() {
        let error = line("d train -base x").unwrap_err();
        assert_eq!(error, "error: unknown flag `-base`\n\nhint: did you mean `--base`?\n");
        // Short flags with their values stay as they are.
        for short in ["d chat m -p你好", "d data preview f -n12", "d train -vq"] {
            assert_eq!(line(short).as_deref(), Ok(short));
        }
    }

    #[test]
    fn names_of_other_tools_become_danlu_flags() {
        for (theirs, ours) in [
            ("d train --lora_r 16 --learning_rate=2e-4", "d train --lora-r 16 --learning-rate=2e-4"),
            ("d train --lr 1e-4 --epochs 3", "d train --learning-rate 1e-4 --num-train-epochs 3"),
            ("d train --batch-size 4", "d train --per-device-train-batch-size 4"),
            ("d train --output_dir out --model_name_or_path m", "d train --output out --base m"),
            ("d train --load_in_4bit --lr 1", "d train --quant=nf4 --learning-rate 1"),
            ("d train --load_in_4bit True", "d train --quant=nf4"),
            ("d train --load_in_4bit=False", "d train"),
            ("d train --bf16 true --cutoff_len 512", "d train --dtype=bf16 --max-length 512"),
            ("d train --packing True --lr 1", "d train --packing=true --learning-rate 1"),
            ("d train --packing=False --use_dora d.json", "d train --packing=false --use-dora d.json"),
            ("d train --no-packing", "d train --packing=false"),
            (
                "d train --torch_dtype bfloat16 --lora_target all",
                "d train --dtype=bf16 --target-modules=all-linear",
            ),
            ("d train --max_steps -1 --warmup_steps 0 --fp16 False", "d train"),
            ("d train --system s --random_state 3", "d train --default-system s --seed 3"),
            ("d chat m --temp 0 --max-tokens 9", "d chat m --temperature 0 --max-new-tokens 9"),
            ("d merge a --out-dtype bf16 --export_dir b", "d merge a --dtype bf16 --output b"),
            ("d --lang en train -- --lr", "d --lang en train -- --lr"),
            ("d chat m --prompt a_b=c", "d chat m --prompt a_b=c"),
        ] {
            assert_eq!(line(theirs).as_deref(), Ok(ours));
        }
    }

    #[test]
    fn a_name_without_an_equal_is_answered() {
        let error = line("d train --gradient_checkpointing true").unwrap_err();
        assert!(error.starts_with("error: unknown flag `--gradient-checkpointing`\n"), "{error}");
        assert!(error.contains("--memory-limit"), "{error}");
        for (names, meaning) in TABLE.iter().chain(PREFIXES) {
            let Advice(hint, _) = meaning else { continue };
            let ways = ["use ", "omit", "danlu has no ", "publish", "merge", "choose", "name "];
            assert!(ways.iter().any(|way| hint.contains(way)), "{names:?}: {hint}");
        }
    }

    #[test]
    fn a_flag_of_another_command_is_named_with_its_command() {
        for (theirs, hint) in [
            ("d plan --temperature 0", "use it with `danlu chat`"),
            ("d chat m --learning-rate 1", "use it with `danlu train`"),
            ("d doctor --lr 1", "use `--learning-rate` with `danlu train`"),
            ("d merge a --template llama3", "use `--chat-template` with `danlu train`"),
            ("d train --wandb_name x", "--report-to tensorboard"),
            ("d pull a/b --revision r", "`org/name@revision`"),
        ] {
            let error = line(theirs).unwrap_err();
            assert!(error.contains(hint), "{theirs}: {error}");
        }
    }

    #[test]
    fn the_table_points_only_to_flags_that_exist() {
        let root = Cli::command();
        fn has_flag(root: &Command, command: &Command, flag: &str) -> bool {
            flag_of(root, command, flag).is_some()
                || command.get_subcommands().any(|command| has_flag(root, command, flag))
        }
        let has = |flag: &str| has_flag(&root, &root, flag);
        let mut seen = std::collections::BTreeSet::new();
        for (names, meaning) in TABLE {
            for name in *names {
                assert!(seen.insert(*name), "{name} is listed twice");
            }
            match meaning {
                Same(flags) => flags.iter().for_each(|flag| assert!(has(flag), "{flag}")),
                Switch(args) => assert!(has(args.trim_start_matches("--").split('=').next().unwrap())),
                Advice(hint, _) => {
                    for word in hint.split(['`', ' ']).filter(|word| word.starts_with("--") && word.len() > 2)
                    {
                        assert!(has(word.trim_start_matches("--").trim_end_matches(',')), "{word}: {hint}");
                    }
                }
            }
        }
        assert!(seen.len() > 150, "{}", seen.len());
    }

    #[test]
    fn a_suggestion_differs_by_two_letters_at_most() {
        let flags = ["learning-rate", "lora-r", "output", "lr"];
        assert_eq!(close("lerning-rate", flags), Some("learning-rate"));
        assert_eq!(close("lerningrate", flags), Some("learning-rate"));
        assert_eq!(close("larnigrate", flags), None);
        assert_eq!(close("abcd", flags), None);
        assert_eq!(close("xx", flags), None);
    }
}
