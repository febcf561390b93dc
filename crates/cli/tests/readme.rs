//! Runs every command that the READMEs and the guide show. The embedded base and test data get the names that
//! the pages use.

mod common;

use std::collections::BTreeSet;
use std::fs;

use common::Scene;
use danlu_hub_test_server::HubServer;
use serde_json::Value;

/// The pages of one language, in reading order.
struct Pages {
    language: &'static str,
    readme: &'static str,
    guide: [&'static str; 6],
}

macro_rules! pages {
    ($language:literal, $readme:literal) => {
        Pages {
            language: $language,
            readme: include_str!(concat!("../../../", $readme)),
            guide: [
                include_str!(concat!("../../../docs/guide/", $language, "/data.md")),
                include_str!(concat!("../../../docs/guide/", $language, "/training.md")),
                include_str!(concat!("../../../docs/guide/", $language, "/merging.md")),
                include_str!(concat!("../../../docs/guide/", $language, "/four-bit.md")),
                include_str!(concat!("../../../docs/guide/", $language, "/hub.md")),
                include_str!(concat!("../../../docs/guide/", $language, "/card.md")),
            ],
        }
    };
}

const PAGES: [Pages; 2] = [pages!("en", "README.md"), pages!("zh", "README.zh.md")];

impl Pages {
    fn all(&self) -> impl Iterator<Item = &'static str> {
        [self.readme].into_iter().chain(self.guide)
    }

    /// Returns the commands of all pages in order, without duplicates.
    fn commands(&self) -> Vec<&'static str> {
        let mut seen = BTreeSet::new();
        self.all().flat_map(commands).filter(|line| seen.insert(*line)).collect()
    }
}

/// Returns the lines of fenced blocks.
fn fenced(page: &str) -> impl Iterator<Item = &str> {
    page.split("```").skip(1).step_by(2).flat_map(str::lines).map(str::trim)
}

/// Returns the commands of fenced blocks, without comments.
fn commands(page: &str) -> Vec<&str> {
    let lines = fenced(page).filter(|line| line.starts_with("danlu "));
    let commands = lines.map(|line| line.split(" #").next().unwrap_or(line).trim());
    // The demo takes a minute, and `guide.rs` already runs it.
    commands.filter(|line| *line != "danlu demo").collect()
}

/// Returns every word for which `of` is true. The arguments of `of` are the previous word and the word.
fn words<'a>(commands: &[&'a str], of: impl Fn(&str, &str) -> bool) -> BTreeSet<&'a str> {
    let pairs = commands.iter().flat_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.windows(2).map(|pair| (pair[0], pair[1])).collect::<Vec<_>>()
    });
    pairs.filter(|(before, word)| of(before, word)).map(|(_, word)| word).collect()
}

/// Returns whether a word is a Hub name. On the pages, local folders start with `out/` or `models/`.
fn is_on_hub(word: &str) -> bool {
    word.contains('/') && !word.starts_with("out/") && !word.starts_with("models/")
}

/// Starts a Hub with the models of the pages, and with a user `you` who has write access. Each model is a
/// copy of the embedded base.
fn hub_with_models(scene: &Scene, commands: &[&str]) -> HubServer {
    let hub = HubServer::start();
    for name in words(commands, |before, word| ["pull", "chat"].contains(&before) && is_on_hub(word)) {
        let (id, revision) = name.split_once('@').unwrap_or((name, "main"));
        let mut model = hub.model(id).on(&format!("refs/heads/{revision}"));
        for file in common::names(&scene.path("base")) {
            model = model.file(&file, &scene.read(&format!("base/{file}")));
        }
        model.add();
    }
    hub.add_user("you", "hf_yours");
    fs::create_dir(scene.path("hf")).unwrap();
    scene.write("hf/token", "hf_yours");
    hub
}

#[test]
fn the_commands_of_readme_and_guide_run_as_they_stand() {
    for pages in PAGES {
        for command in ["data check", "train", "compare", "chat", "merge"] {
            let is_shown = |line: &&str| line.starts_with(&format!("danlu {command} "));
            let shown = commands(pages.readme).iter().any(is_shown);
            assert!(shown, "the README in `{}` shows no `danlu {command}`", pages.language);
        }
        let (mut scene, commands) = (Scene::new(), pages.commands());
        let hub = hub_with_models(&scene, &commands);
        scene.endpoint = hub.endpoint();
        for base in words(&commands, |before, _| before == "--base") {
            fs::create_dir_all(scene.path(base).parent().unwrap()).unwrap();
            fs::rename(scene.path("base"), scene.path(base)).expect("one base for all commands");
        }
        // A run creates the files in `out/`. The other data files get 100 records, which is enough to hold
        // some out.
        let palace: Vec<Value> = serde_json::from_str(include_str!("../assets/palace.json")).unwrap();
        for file in words(&commands, |_, word| word.ends_with(".json") && !word.starts_with("out/")) {
            scene.write(file, &serde_json::to_string_pretty(&palace[..100]).unwrap());
        }
        for line in commands {
            scene.ok(line.strip_prefix("danlu ").unwrap());
        }
    }
}

/// Commands in running text are in backticks, such as `danlu bench train|prefill`.
#[test]
fn every_command_that_readme_and_guide_name_exists() {
    let scene = Scene::new();
    for pages in PAGES {
        let mut seen = BTreeSet::new();
        for text in pages.all() {
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
        }
        assert!(seen.len() > 4, "{}: {seen:?}", pages.language);
        for command in seen {
            let ran = scene.run(&format!("{command} --help"));
            let is_help = ran.code == 0 && ran.out.contains("Usage: danlu ");
            assert!(is_help, "{}: danlu {command}\n{}", pages.language, ran.err);
        }
    }
}
