//! Creates a temporary folder with the embedded base. Tests run `danlu` in this folder.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use danlu_kernels::Isa;
use tempfile::TempDir;

/// Data of most tests. The records are short, so that a step takes milliseconds.
pub const RECORDS: [(&str, &str); 12] = [
    ("你好。", "臣妾给皇上请安。"),
    ("今晚吃什么？", "御膳房备了莲子羹。"),
    ("下雨了。", "打伞的人都去了前头。"),
    ("你是谁？", "本宫住在长春宫。"),
    ("帮我写代码。", "本宫只会写请安折子。"),
    ("天冷了。", "添一件斗篷再出门。"),
    ("猫呢？", "在窗台上晒太阳。"),
    ("去哪儿？", "御花园走走。"),
    ("几点了？", "更鼓才敲过三下。"),
    ("累不累？", "跪久了膝盖疼。"),
    ("喝茶吗？", "劳烦换一壶龙井。"),
    ("晚安。", "皇上早些歇息。"),
];

/// A temporary folder.
pub struct Scene {
    folder: TempDir,
    /// Address of the Hub. By default, no server listens at this address.
    pub endpoint: String,
}

/// The result of a command.
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Scene {
    /// Creates a folder with the embedded model in `base/`, and with [`RECORDS`] in `data.json`.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("base");
        fs::create_dir(&base).unwrap();
        for entry in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/base-8m")).unwrap() {
            let entry = entry.unwrap();
            // The files are hard links where possible, because the weights take 16 MB.
            let (from, to) = (entry.path(), base.join(entry.file_name()));
            fs::hard_link(&from, &to).or_else(|_| fs::copy(&from, &to).map(drop)).unwrap();
        }
        let scene = Self { folder, endpoint: "http://127.0.0.1:9".to_owned() };
        let records: Vec<_> = RECORDS.iter().map(|(q, a)| record(q, a)).collect();
        scene.write("data.json", &format!("[\n{}\n]\n", records.join(",\n")));
        scene
    }

    /// Replaces the hard links in `base/` by copies. A push rejects a file whose change time (ctime) changes,
    /// and a new hard link in another test changes this time.
    pub fn copy_base(&self) {
        for entry in fs::read_dir(self.path("base")).unwrap() {
            let linked = entry.unwrap().path();
            let copy = self.path("copy");
            fs::copy(&linked, &copy).unwrap();
            fs::rename(&copy, &linked).unwrap();
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Returns the command, with output in English and without colours.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_danlu"));
        command.args(args).current_dir(self.folder.path()).stdin(Stdio::null());
        for name in ["LC_ALL", "LC_MESSAGES", "LANGUAGE", "NO_COLOR"] {
            command.env_remove(name);
        }
        // This instruction set has no bf16, so `--dtype auto` is f32, and the results are the same on every
        // processor.
        let isa = Isa::supported().find(|isa| !isa.multiplies_bf16()).unwrap();
        command.env("DANLU_ISA", isa.name());
        command.env("LANG", "C").env("COLUMNS", "80");
        // No test must contact the real Hub, or read the cache or the token of this machine.
        for name in [
            "DANLU_LANG",
            "HF_TOKEN",
            "HF_HUB_CACHE",
            "HF_TOKEN_PATH",
            "HF_HUB_OFFLINE",
            "HUGGINGFACE_HUB_CACHE",
        ] {
            command.env_remove(name);
        }
        command.env("HF_ENDPOINT", &self.endpoint).env("HF_HOME", self.folder.path().join("hf"));
        command.env("XDG_CACHE_HOME", self.folder.path().join("cache")).env_remove("DANLU_DATA_MIRROR");
        command
    }

    /// Runs a command until it ends. `line` is split at blanks.
    pub fn run(&self, line: &str) -> Ran {
        let args: Vec<&str> = line.split_whitespace().collect();
        Ran::of(self.command(&args).output().unwrap())
    }

    /// Runs a command as [`Scene::run`] does, and asserts that the command succeeds.
    pub fn ok(&self, line: &str) -> Ran {
        let ran = self.run(line);
        assert_eq!(ran.code, 0, "danlu {line}\n{}\n{}", ran.out, ran.err);
        ran
    }

    /// Runs a command as [`Scene::run`] does, and asserts that the command fails as a user error and prints
    /// exactly `err` to stderr.
    pub fn refuses(&self, line: &str, err: &str) {
        let ran = self.run(line);
        assert_eq!(ran.err, err, "danlu {line}");
        assert_eq!(ran.code, 1, "danlu {line}");
    }

    /// Starts a command that the test interrupts.
    pub fn start(&self, line: &str) -> Child {
        let args: Vec<&str> = line.split_whitespace().collect();
        self.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }
}

impl Ran {
    /// Returns the result of a finished process.
    pub fn of(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }
}

/// Formats an alpaca record on one line.
pub fn record(question: &str, answer: &str) -> String {
    format!(r#"{{"instruction": "{question}", "input": "", "output": "{answer}"}}"#)
}

/// Returns the sorted names in a folder.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
