//! The user's answers to the five questions.

use std::path::{Path, PathBuf};

use super::NewArgs;
use super::interview::Interview;
use danlu_loader::DataRef;

use crate::args::adapter::memory_limit;
use crate::commands::data::get::NamedData;
use crate::diagnostic::{Diagnostic, Result};
use crate::embedded_base;
use crate::lang::Lang;
use crate::model_loader::hub_name;

/// The answers of the user.
#[derive(Clone, Debug, PartialEq)]
pub struct Answers {
    /// Language of the data and of the model card.
    pub language: Lang,
    pub base: PathBuf,
    pub data: DataAnswer,
    /// The system message that describes the character.
    pub character: Option<String>,
    pub limits: RunBudget,
}

/// The training data: a file, or a data set that danlu writes.
#[derive(Clone, Debug, PartialEq)]
pub enum DataAnswer {
    File(PathBuf),
    Named(NamedData),
}

/// Limits on the time and the memory of the run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RunBudget {
    pub seconds: Option<f64>,
    pub memory: Option<u64>,
}

/// A base that the user can choose, with its description in Chinese and English.
type BaseChoice = (&'static str, &'static str, &'static str);

const DEMO: BaseChoice = (
    embedded_base::DEMO_NAME,
    "内置，800 万参数，几分钟，只会模仿口气",
    "embedded, 8M parameters, minutes, imitates a tone",
);
const QWEN: BaseChoice = (
    "Qwen/Qwen2.5-0.5B-Instruct",
    "约 1 GB，中英文都会，Apache-2.0",
    "1 GB, Chinese and English, Apache-2.0",
);
const SMOLLM: BaseChoice =
    ("HuggingFaceTB/SmolLM2-135M-Instruct", "约 0.3 GB，只会英文，Apache-2.0", "0.3 GB, English, Apache-2.0");
const QWEN_LARGER: BaseChoice = (
    "Qwen/Qwen2.5-1.5B-Instruct",
    "约 3 GB，回答更好，慢三倍，Apache-2.0",
    "3 GB, better replies, a third of the speed, Apache-2.0",
);

fn base_choices(language: Lang) -> [BaseChoice; 3] {
    language.pick([DEMO, QWEN, QWEN_LARGER], [DEMO, SMOLLM, QWEN])
}

impl Answers {
    /// Asks every question that no flag answers.
    ///
    /// # Errors
    /// If an answer is invalid.
    pub fn collect(args: &NewArgs, interview: &Interview<'_>) -> Result<Self> {
        let printer = interview.printer;
        let here = printer.lang.to_string();
        let title = printer.pick("数据是什么语言？zh 或 en", "which language has your data? zh or en");
        let language = interview.ask(args.data_lang.as_deref(), (title, &[]), &here, parse_language)?;

        let choices = base_choices(language);
        let listed: Vec<String> = choices
            .iter()
            .enumerate()
            .map(|(i, (name, zh, en))| format!("{} {name}  {}", i + 1, printer.pick(zh, en)))
            .collect();
        let title = printer.pick(
            "用哪个基座？编号、文件夹，或 Hub 上的名字",
            "which base? A number, a folder, or a name on the Hub",
        );
        let base = interview.ask(args.base.as_deref(), (title, &listed), "1", |text| {
            parse_base(text, &choices.map(|choice| choice.0))
        })?;

        let names: Vec<String> =
            NamedData::all().iter().map(|data| format!("{}  {}", data.name(), data.about(printer))).collect();
        let title = printer.pick(
            "用什么数据？文件（JSON、JSONL、CSV、Parquet），或下面的名字",
            "which data? A file (JSON, JSONL, CSV, Parquet), or one of these names",
        );
        let default = language.pick("palace", "cook");
        let data = interview.ask(args.data.as_deref(), (title, &names), default, parse_data)?;

        let title = printer.pick(
            "一句话说明模型是谁（作为系统消息）；直接回车表示不写",
            "who is the model, in one sentence (the system message)? Enter for none",
        );
        let character = interview.ask(args.character.as_deref(), (title, &[]), "", |text| {
            Ok(Some(text.to_owned()).filter(|text| !text.is_empty()))
        })?;

        let title = printer.pick(
            "最多用多少时间和内存？如 30m 4GiB；直接回车表示不限",
            "how much time and memory may it take? Such as 30m 4GiB; Enter for no limit",
        );
        let limits = interview.ask(args.limits.as_deref(), (title, &[]), "", parse_limits)?;
        Ok(Self { language, base, data, character, limits })
    }
}

fn parse_language(text: &str) -> Result<Lang> {
    match text.to_lowercase().as_str() {
        "zh" | "中文" | "chinese" => Ok(Lang::Zh),
        "en" | "英文" | "english" => Ok(Lang::En),
        _ => Err(Diagnostic::input(format!("cannot use the language `{text}`: expected zh or en"))),
    }
}

/// Parses the answer about the base: a number in the list `choices`, a folder or a Hub name.
fn parse_base(text: &str, choices: &[&str]) -> Result<PathBuf> {
    let number = text.parse::<usize>().ok().and_then(|number| choices.get(number.checked_sub(1)?));
    let path = PathBuf::from(number.copied().unwrap_or(text));
    if path.is_dir() || embedded_base::is_demo(&path) || hub_name(&path).is_some() {
        return Ok(path);
    }
    let text = format!("cannot use the base `{text}`: there is no such folder");
    Err(Diagnostic::input(text).with_hint("answer with a number, a folder, or a Hub name such as org/name"))
}

fn parse_data(text: &str) -> Result<DataAnswer> {
    let path = Path::new(text);
    if path.is_file() || matches!(DataRef::parse(path), DataRef::Hub { .. }) {
        return Ok(DataAnswer::File(path.to_owned()));
    }
    text.parse().map(DataAnswer::Named).map_err(|names: String| {
        let text = format!("cannot use the data `{text}`: there is no such file");
        Diagnostic::input(text).with_hint(format!("name an existing file, or {names}"))
    })
}

/// Parses a time, a size, or both.
fn parse_limits(text: &str) -> Result<RunBudget> {
    let mut limits = RunBudget::default();
    for word in text.split([' ', ',', '，']).filter(|word| !word.is_empty()) {
        match parse_time(word) {
            Some(seconds) => limits.seconds = Some(seconds),
            None => {
                limits.memory = Some(memory_limit(word).map_err(|_| {
                    let text = format!("cannot use the limit `{word}`: expected a time or a size");
                    Diagnostic::input(text)
                        .with_hint("write a time such as 30m or 2h, and a size such as 4GiB")
                })?);
            }
        }
    }
    Ok(limits)
}

/// Parses a time in hours, minutes or seconds.
fn parse_time(word: &str) -> Option<f64> {
    let units = [
        ("小时", 3600.0),
        ("分钟", 60.0),
        ("min", 60.0),
        ("秒", 1.0),
        ("h", 3600.0),
        ("m", 60.0),
        ("s", 1.0),
    ];
    let (number, unit) =
        units.iter().find_map(|(unit, seconds)| Some((word.strip_suffix(unit)?, seconds)))?;
    number
        .parse::<f64>()
        .ok()
        .filter(|number| number.is_finite() && *number > 0.0)
        .map(|number| number * unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_a_time_a_size_both_or_none() {
        let limits = |text: &str| parse_limits(text).map_err(|error| error.render(false));
        assert_eq!(limits(""), Ok(RunBudget::default()));
        assert_eq!(limits("30m 4GiB"), Ok(RunBudget { seconds: Some(1800.0), memory: Some(4 << 30) }));
        assert_eq!(limits("1.5h"), Ok(RunBudget { seconds: Some(5400.0), memory: None }));
        assert_eq!(
            limits("20分钟，900MB"),
            Ok(RunBudget { seconds: Some(1200.0), memory: Some(900_000_000) })
        );
        for wrong in ["soon", "-5m", "0m", "4", "30 m"] {
            assert!(limits(wrong).unwrap_err().contains("expected a time or a size"), "{wrong}");
        }
    }

    #[test]
    fn a_base_is_a_number_of_the_list_a_folder_or_a_hub_name() {
        let choices = ["demo", "org/name"];
        assert_eq!(parse_base("1", &choices).unwrap(), Path::new("demo"));
        assert_eq!(parse_base("2", &choices).unwrap(), Path::new("org/name"));
        assert_eq!(parse_base("src", &choices).unwrap(), Path::new("src"));
        for wrong in ["3", "0", "no-such-folder"] {
            assert!(parse_base(wrong, &choices).is_err(), "{wrong}");
        }
    }
}
