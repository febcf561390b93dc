//! Reasons to skip a file.

use std::fmt;

use danlu_model::files::TEMPORARY_PREFIX;

/// Reason why a file is not uploaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SkipReason {
    /// A checkpoint of a training run.
    Checkpoint,
    /// Optimizer state, schedule state, random state, or a pickle.
    TrainerState,
    /// A log or a list of measurements.
    Log,
    /// A cache.
    Cache,
    /// A temporary file, a lock file, or a backup file of an editor.
    Temporary,
    /// A hidden file, such as `.env`.
    Hidden,
    /// A key or a password, according to its file name.
    Key,
    /// A file with local paths of this computer.
    RunFile,
    /// Training or evaluation data.
    Data,
    /// The content looks like a token or a private key.
    Token {
        /// Line number, starting at 1.
        line: u64,
    },
    /// The path looks like a token. Messages show only a part of the path.
    TokenInName,
    /// The file on the Hub contains text of its author, so the upload does not replace it.
    EditedThere,
    /// A symbolic link that leads out of the folder, to a folder, or to nothing.
    Link,
    /// Neither a file nor a folder.
    Special,
    /// A name that is not allowed in a repository.
    Name,
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Checkpoint => "a checkpoint",
            Self::TrainerState => "state of a training run",
            Self::Log => "a log",
            Self::Cache => "a cache",
            Self::Temporary => "a temporary file",
            Self::Hidden => "hidden",
            Self::Key => "a key or a password by its name",
            Self::RunFile => "it names folders of this machine",
            Self::Data => "training or evaluation data",
            Self::Token { line } => {
                return write!(f, "line {line} looks like an access token or a private key");
            }
            Self::TokenInName => "something in its path looks like an access token",
            Self::EditedThere => "the one on the Hub has text that this one lacks, and stays",
            Self::Link => "a link that leads out of the folder, to a folder or to nothing",
            Self::Special => "neither a file nor a folder",
            Self::Name => "a name that a repository cannot have",
        })
    }
}

impl SkipReason {
    /// Returns the reason to skip a folder with this name, if any.
    pub(crate) fn of_folder(name: &str) -> Option<Self> {
        let lower = name.to_lowercase();
        Some(match lower.as_str() {
            name if name.starts_with('.') => Self::Hidden,
            name if name.starts_with("checkpoint-") => Self::Checkpoint,
            name if is_step(name, "global_step") => Self::Checkpoint,
            "runs" | "logs" | "log" | "wandb" | "mlruns" | "lightning_logs" | "tensorboard" => Self::Log,
            "cache" | "__pycache__" | "node_modules" => Self::Cache,
            "tmp" | "temp" => Self::Temporary,
            _ => return None,
        })
    }

    /// Returns the reason to skip a file with this name, if any.
    pub(crate) fn of_file(name: &str) -> Option<Self> {
        let lower = name.to_lowercase();
        let (stem, end) = lower.rsplit_once('.').unwrap_or((&lower, ""));
        let begins = |all: &[&str]| all.iter().any(|begin| lower.starts_with(begin));
        let is_log = || begins(&["history", "metrics", "log", "train_log", "nohup"]);
        Some(match (stem, end) {
            _ if name.starts_with(TEMPORARY_PREFIX) || lower.ends_with('~') => Self::Temporary,
            _ if name.starts_with('.') => Self::Hidden,
            (_, "pem" | "key" | "p12" | "pfx" | "jks" | "keystore" | "gpg" | "ppk" | "env" | "netrc") => {
                Self::Key
            }
            (_, "" | "pub") if lower.starts_with("id_") => Self::Key,
            ("token" | "tokens" | "secret" | "secrets" | "credentials" | "credential" | "password", _) => {
                Self::Key
            }
            ("" | "_netrc" | "htpasswd" | "env", _) => Self::Key,
            (_, "tmp" | "temp" | "lock" | "incomplete" | "part" | "swp" | "swo" | "bak" | "orig") => {
                Self::Temporary
            }
            _ if begins(&["optimizer.", "optimizer_", "scheduler.", "rng_state", "random_states_"]) => {
                Self::TrainerState
            }
            ("trainer_state" | "training_args" | "danlu_state" | "scaler", _) => Self::TrainerState,
            (_, "pt" | "pth" | "ckpt" | "pkl" | "pickle") => Self::TrainerState,
            _ if lower == "checksums.sha256" => Self::TrainerState,
            (_, "log" | "out" | "err") => Self::Log,
            _ if lower.contains("tfevents") => Self::Log,
            (_, "jsonl") if is_log() => Self::Log,
            ("metrics", "json" | "csv" | "tsv") => Self::Log,
            (_, "pyc" | "pyo") => Self::Cache,
            ("run", "toml") | ("merge_report", "json") => Self::RunFile,
            ("held_out", "json") | ("skipped_records", "txt") => Self::Data,
            (_, "jsonl" | "csv" | "tsv" | "parquet" | "arrow") => Self::Data,
            _ => return None,
        })
    }

    /// Returns whether a pattern must match the file's own name to include the file.
    pub(crate) fn wants_its_name(self) -> bool {
        matches!(self, Self::Hidden | Self::Key)
    }

    /// Returns whether the file is skipped even if a pattern matches.
    pub(crate) fn is_final(self) -> bool {
        matches!(self, Self::Link | Self::Special | Self::Name)
    }
}

fn is_step(name: &str, begin: &str) -> bool {
    let digits = name.strip_prefix(begin);
    digits.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_what_stays() {
        for (name, reason) in [
            ("optimizer.safetensors", SkipReason::TrainerState),
            ("optimizer.pt", SkipReason::TrainerState),
            ("scheduler.bin", SkipReason::TrainerState),
            ("rng_state_0.pth", SkipReason::TrainerState),
            ("training_args.bin", SkipReason::TrainerState),
            ("trainer_state.json", SkipReason::TrainerState),
            ("danlu_state.json", SkipReason::TrainerState),
            ("history.jsonl", SkipReason::Log),
            ("train.log", SkipReason::Log),
            ("events.out.tfevents.1.host", SkipReason::Log),
            (".danlu-tmp-1-config.json", SkipReason::Temporary),
            ("model.safetensors.incomplete", SkipReason::Temporary),
            (".env", SkipReason::Hidden),
            (".gitignore", SkipReason::Hidden),
            ("prod.env", SkipReason::Key),
            ("env", SkipReason::Key),
            ("id_rsa", SkipReason::Key),
            ("ID_ED25519.PUB", SkipReason::Key),
            ("server.pem", SkipReason::Key),
            ("credentials.json", SkipReason::Key),
            ("token", SkipReason::Key),
            ("run.toml", SkipReason::RunFile),
            ("merge_report.json", SkipReason::RunFile),
            ("held_out.json", SkipReason::Data),
            ("chat.jsonl", SkipReason::Data),
        ] {
            assert_eq!(SkipReason::of_file(name), Some(reason), "{name}");
        }
        for name in [
            "adapter_config.json",
            "adapter_model.safetensors",
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json",
            "tokenizer.model",
            "vocab.json",
            "merges.txt",
            "README.md",
            "LICENSE",
            "report.html",
            "loss.svg",
            "danlu.json",
            "chat_template.jinja",
            "modeling_x.py",
            "id_map.json",
            "甄嬛.png",
        ] {
            assert_eq!(SkipReason::of_file(name), None, "{name}");
        }
        assert_eq!(SkipReason::of_folder("checkpoint-12"), Some(SkipReason::Checkpoint));
        assert_eq!(SkipReason::of_folder("Runs"), Some(SkipReason::Log));
        assert_eq!(SkipReason::of_folder(".git"), Some(SkipReason::Hidden));
        assert_eq!(SkipReason::of_folder("onnx"), None);
    }
}
