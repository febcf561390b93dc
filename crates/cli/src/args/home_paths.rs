//! Expands paths that start with `~/`. A shell expands them in `--output ~/x`, but not in
//! `--output=~/x`, in quotes, or in a configuration file.

use std::any::TypeId;
use std::path::{Path, PathBuf};

use clap::Command;
use clap::builder::{PathBufValueParser, TypedValueParser as _};

/// Expands `~/` to the home folder.
pub fn in_home(path: &Path) -> PathBuf {
    match (path.strip_prefix("~"), std::env::home_dir()) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path.to_owned(),
    }
}

/// Lets every flag of a command and its subcommands that takes a path expand `~/`.
pub fn expand_home(command: Command) -> Command {
    let command = command.mut_args(|arg| match arg.get_value_parser().type_id() == TypeId::of::<PathBuf>() {
        true => arg.value_parser(PathBufValueParser::new().map(|path| in_home(&path))),
        false => arg,
    });
    command.mut_subcommands(expand_home)
}

#[cfg(test)]
mod tests {
    use clap::{Arg, value_parser};

    use super::*;

    #[test]
    fn only_a_leading_tilde_of_a_path_is_expanded() {
        let home = std::env::home_dir().unwrap();
        let command = Command::new("danlu").subcommand(
            Command::new("train")
                .arg(Arg::new("output").long("output").value_parser(value_parser!(PathBuf)))
                .arg(Arg::new("prompt").long("prompt")),
        );
        let line = ["danlu", "train", "--output=~/x", "--prompt=~/x"];
        let matches = expand_home(command).try_get_matches_from(line).unwrap();
        let (_, train) = matches.subcommand().unwrap();
        assert_eq!(train.get_one::<PathBuf>("output"), Some(&home.join("x")));
        assert_eq!(train.get_one::<String>("prompt").map(String::as_str), Some("~/x"));
        for path in ["a/~/b", "~a/b", "x~"] {
            assert_eq!(in_home(Path::new(path)), Path::new(path));
        }
    }
}
