//! What the READMEs tell people to type is typed here: each command runs as it stands, on the embedded base and the
//! test's data under the names that the README gives them.

mod common;

use std::collections::BTreeSet;
use std::fs;

use common::Scene;
use danlu_hub_test_server::HubServer;
use serde_json::Value;

const READMES: [(&str, &str); 2] = [
    ("README.md", include_str!("../../../README.md")),
    ("README.zh.md", include_str!("../../../README.zh.md")),
];

/// The lines of fenced blocks.
fn fenced(readme: &str) -> impl Iterator<Item = &str> {
    readme.split("```").skip(1).step_by(2).flat_map(str::lines).map(str::trim)
}

/// The commands of fenced blocks, without the comments behind them.
fn commands(readme: &str) -> Vec<&str> {
    let lines = fenced(readme).filter(|line| line.starts_with("danlu "));
    lines.map(|line| line.split(" #").next().unwrap_or(line).trim()).collect()
}

/// The word behind each `flag`, or those that end like this.
fn words<'a>(commands: &[&'a str], of: impl Fn(&str, &str) -> bool) -> BTreeSet<&'a str> {
    let pairs = commands.iter().flat_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.windows(2).map(|pair| (pair[0], pair[1])).collect::<Vec<_>>()
    });
    pairs.filter(|(before, word)| of(before, word)).map(|(_, word)| word).collect()
}

/// Whether a word is a name on the Hub, by not being one of the READMEs' own folders.
fn is_on_hub(word: &str) -> bool {
    word.contains('/') && !word.starts_with("out/") && !word.starts_with("models/")
}

#[test]
fn the_commands_of_the_readmes_run_as_they_stand() {
    for (name, text) in READMES {
        let commands = commands(text);
        for command in ["data check", "data preview", "train", "compare", "chat", "merge"] {
            let shown = commands.iter().any(|line| line.starts_with(&format!("danlu {command} ")));
            assert!(shown, "{name} shows no `danlu {command}`");
        }
        let (mut scene, hub) = (Scene::new(), HubServer::start());
        scene.endpoint = hub.endpoint();
        for name in words(&commands, |before, word| ["pull", "chat"].contains(&before) && is_on_hub(word)) {
            let (id, revision) = name.split_once('@').unwrap_or((name, "main"));
            let model = hub.model(id).on(&format!("refs/heads/{revision}"));
            let files = common::names(&scene.path("base"));
            files
                .iter()
                .fold(model, |model, file| model.file(file, &scene.read(&format!("base/{file}"))))
                .add();
        }
        for base in words(&commands, |before, _| before == "--base") {
            fs::create_dir_all(scene.path(base).parent().unwrap()).unwrap();
            fs::rename(scene.path("base"), scene.path(base)).expect("one base for all commands");
        }
        // What a run writes itself is taken from there. Enough records to hold some out.
        let palace: Vec<Value> = serde_json::from_str(include_str!("../assets/palace.json")).unwrap();
        for file in words(&commands, |_, word| word.ends_with(".json") && !word.starts_with("out/")) {
            scene.write(file, &serde_json::to_string_pretty(&palace[..100]).unwrap());
        }
        for line in commands {
            scene.ok(line.strip_prefix("danlu ").unwrap());
        }
    }
}

/// `danlu bench train|prefill` and `danlu train --output ...` between sentences: words in backticks.
#[test]
fn every_command_the_readmes_name_exists() {
    let scene = Scene::new();
    for (name, text) in READMES {
        let mut seen = BTreeSet::new();
        let cargo = fenced(text).filter_map(|line| line.strip_prefix("cargo run --release -- "));
        let spans = text.split('`').filter_map(|span| span.strip_prefix("danlu "));
        for words in cargo.chain(spans) {
            let is_word = |word: &&str| word.chars().all(|c| c.is_ascii_lowercase() || c == '|');
            let path: Vec<&str> = words.split_whitespace().take_while(is_word).take(2).collect();
            let [command, rest @ ..] = &path[..] else { continue };
            for last in rest.first().map_or(vec![""], |last| last.split('|').collect()) {
                seen.insert(format!("{command} {last}"));
            }
        }
        assert!(seen.len() > 4, "{name}: {seen:?}");
        for command in seen {
            let ran = scene.run(&format!("{command} --help"));
            assert!(
                ran.code == 0 && ran.out.contains("Usage: danlu "),
                "{name}: danlu {command}\n{}",
                ran.err
            );
        }
    }
}
