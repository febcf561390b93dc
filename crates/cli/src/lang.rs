//! The two languages of help, messages and tables.

use std::ffi::OsString;
use std::fmt;

use clap::ValueEnum as _;

/// The environment variable that chooses a language.
pub const LANG_VARIABLE: &str = "DANLU_LANG";

/// The language of help, messages and tables. A Chinese error is followed by its English text, because users
/// search for the English text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Lang {
    Zh,
    En,
}

impl Lang {
    /// Returns the language of a command line before clap parses it. The language comes from `--lang`, else
    /// from `DANLU_LANG`, else from the locale.
    pub fn detect(line: &[OsString]) -> Self {
        let words = || line.iter().filter_map(|word| word.to_str());
        let after = words().zip(words().skip(1)).find(|(flag, _)| *flag == "--lang").map(|(_, lang)| lang);
        let given = words().find_map(|word| word.strip_prefix("--lang=")).or(after);
        let variable = std::env::var(LANG_VARIABLE).ok();
        let parse = |text: &str| Self::from_str(text, true).ok();
        given
            .and_then(parse)
            .or_else(|| variable.as_deref().map(Self::from_tag))
            .unwrap_or_else(Self::from_locale)
    }

    /// Returns Chinese for any `zh` locale, and English otherwise.
    pub fn from_locale() -> Self {
        Self::from_tag(sys_locale::get_locale().as_deref().unwrap_or_default())
    }

    fn from_tag(tag: &str) -> Self {
        let language = tag.split(['-', '_', '.']).next().unwrap_or_default();
        if language.eq_ignore_ascii_case("zh") { Self::Zh } else { Self::En }
    }

    pub fn of_page(self) -> danlu_report::Language {
        self.pick(danlu_report::Language::Zh, danlu_report::Language::En)
    }

    pub fn pick<T>(self, zh: T, en: T) -> T {
        match self {
            Self::Zh => zh,
            Self::En => en,
        }
    }
}

impl fmt::Display for Lang {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.pick("zh", "en"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_decides_wherever_it_stands() {
        let of = |line: &str| Lang::detect(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert_eq!(of("danlu train --lang zh"), Lang::Zh);
        assert_eq!(of("danlu --lang=EN train"), Lang::En);
    }

    #[test]
    fn chinese_locales_speak_chinese_and_all_others_english() {
        for tag in ["zh", "zh-CN", "zh_TW.UTF-8", "ZH-Hans"] {
            assert_eq!(Lang::from_tag(tag), Lang::Zh, "{tag}");
        }
        for tag in ["", "C", "en-US", "POSIX", "zha", "fr_FR.UTF-8"] {
            assert_eq!(Lang::from_tag(tag), Lang::En, "{tag}");
        }
    }
}
