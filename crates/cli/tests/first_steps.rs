//! Tests the first commands of a new user: the greeting, data sets, and the embedded base by its name.

mod common;

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::Stdio;

use common::{Ran, Scene};

#[test]
fn danlu_alone_greets_and_names_three_commands() {
    let scene = Scene::new();
    let english = scene.ok("");
    for command in ["danlu demo", "danlu new", "danlu explain"] {
        assert!(english.out.contains(command), "{}", english.out);
    }
    assert_eq!(english.err, "");
    assert!(scene.ok("--lang zh").out.contains("丹炉 danlu "));
}

#[test]
fn embedded_data_is_written_once_and_never_overwrites() {
    let scene = Scene::new();
    let list = scene.ok("data get").out;
    assert!(list.contains("palace") && list.contains("cook") && list.contains("huanhuan"), "{list}");
    let got = scene.ok("data get palace");
    assert_eq!(got.out, "palace.json\n");
    assert!(got.err.ends_with("Next: danlu data check palace.json\n"), "{}", got.err);
    assert_eq!(scene.read("palace.json"), include_bytes!("../assets/palace.json"));
    scene.ok("data get palace");
    scene.write("palace.json", "[]");
    scene.refuses(
        "data get palace",
        "error: cannot write `palace.json`: it exists with another content\n\n\
         hint: choose another file with `--output`\n",
    );
    assert_eq!(scene.read("palace.json"), b"[]");
    let unknown = scene.run("data get castle");
    assert!(unknown.err.contains("expected one of palace, cook, huanhuan"), "{}", unknown.err);
}

/// Serves `content` for one request. Returns the address, and a thread that returns the requested path.
fn serve(content: &'static str) -> (String, std::thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 4096];
        let read = stream.read(&mut request).unwrap();
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{content}", content.len()).unwrap();
        String::from_utf8_lossy(&request[..read]).lines().next().unwrap_or_default().to_owned()
    });
    (address, server)
}

#[test]
fn a_mirror_with_another_file_is_refused_by_its_checksum() {
    let scene = Scene::new();
    let (mirror, server) = serve("[]");
    let mut command = scene.command(&["data", "get", "huanhuan"]);
    let ran = Ran::of(command.env("DANLU_DATA_MIRROR", mirror).output().unwrap());
    let request = server.join().unwrap();
    assert_eq!(request, "GET /datawhalechina/self-llm/master/dataset/huanhuan.json HTTP/1.1");
    assert_eq!(ran.code, 1, "{}", ran.err);
    assert!(ran.err.contains("SHA-256 4f53cda18c2b..., expected 1bbe8b098572..."), "{}", ran.err);
    assert!(ran.err.contains("hint: set `DANLU_DATA_MIRROR`"), "{}", ran.err);
    assert!(!scene.path("huanhuan.json").exists());
}

#[test]
fn demo_names_the_embedded_base_in_every_command() {
    let scene = Scene::new();
    scene.ok("data check data.json --base demo");
    scene.ok("plan --base demo --data data.json");
    scene.ok("train --base demo --data data.json --output out/x --max-steps 2 --val-size 2");
    let config = String::from_utf8(scene.read("out/x/adapter_config.json")).unwrap();
    let folder = scene.path("cache/danlu/base-8m");
    assert!(config.contains(&format!("\"{}\"", folder.display())), "{config}");
    // A later `chat` finds the base through the adapter.
    scene.ok("chat out/x --prompt 你好 --max-new-tokens 2");
    scene.ok("compare out/x demo --replies 1");
    scene.ok("merge out/x --base demo --output merged --allow-worse --threshold 9");
    scene.ok("chat demo --prompt 你好 --max-new-tokens 2");
    scene.write("run.toml", "base = \"demo\"\ndata = [\"data.json\"]\noutput = \"out/y\"\nmax_steps = 1\n");
    scene.ok("train --config run.toml");
    let run = String::from_utf8(scene.read("out/y/run.toml")).unwrap();
    assert!(run.contains("cache/danlu/base-8m"), "{run}");
    scene.ok("train --output out/y --resume --max-steps 1");
}

#[test]
fn a_local_folder_named_demo_is_not_the_embedded_base() {
    let scene = Scene::new();
    std::fs::create_dir(scene.path("demo")).unwrap();
    let refused = scene.run("data check data.json --base demo");
    assert_eq!(refused.code, 1, "{}", refused.out);
    assert!(!scene.path("cache").exists());
}

/// Runs `danlu new` with `answers` on stdin.
fn answer(scene: &Scene, line: &str, answers: &str) -> Ran {
    let args: Vec<&str> = line.split_whitespace().collect();
    let mut child = scene
        .command(&args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(answers.as_bytes()).unwrap();
    Ran::of(child.wait_with_output().unwrap())
}

#[test]
fn five_answers_give_a_run_with_a_comment_on_every_key() {
    let scene = Scene::new();
    let ran = answer(&scene, "new", "zh\n1\ndata.json\n你是沈令仪。\n30m 2GiB\nn\n");
    assert_eq!(ran.code, 0, "{}", ran.err);
    for question in ["[1/5]", "[2/5]", "[3/5]", "[4/5]", "[5/5]"] {
        assert!(ran.err.contains(question), "{}", ran.err);
    }
    for row in ["base       demo, 7,999,744 parameters", "memory", "disk", "time       about "] {
        assert!(ran.out.contains(row), "{row}: {}", ran.out);
    }
    assert!(ran.err.ends_with("To start: danlu train --config run.toml\n"), "{}", ran.err);
    let text = String::from_utf8(scene.read("run.toml")).unwrap();
    let blocks: Vec<&str> = text.trim_end().split("\n\n").skip(1).collect();
    assert!(blocks.len() > 10, "{text}");
    for block in blocks {
        let lines: Vec<&str> = block.lines().collect();
        assert!(lines.len() == 2 && lines[0].starts_with("# ") && lines[1].contains(" = "), "{block}");
    }
    assert!(text.contains("default_system = \"你是沈令仪。\"\n"), "{text}");
    assert!(text.contains("memory_limit = \"2147483648B\"\n"), "{text}");
    scene.ok("train --config run.toml --max-steps 1");
    assert!(scene.path("out/data/adapter_model.safetensors").is_file());
    // A second call chooses a new file and a new output folder.
    let again = answer(&scene, "new --lang zh --data data.json", "zh\ndemo\n\n\nn\n");
    assert_eq!(again.code, 0, "{}", again.err);
    let text = String::from_utf8(scene.read("run-2.toml")).unwrap();
    assert!(text.contains("output = \"out/data-2\"") && text.contains("# 学习率："), "{text}");
}

#[test]
fn yes_answers_with_the_defaults_and_trains() {
    let scene = Scene::new();
    let ran = scene.ok("new --yes --base demo --data data.json --limits 0.01s");
    assert!(ran.err.contains("the time allows"), "{}", ran.err);
    assert!(scene.path("out/data/report.html").is_file());
}

#[test]
fn an_invalid_answer_is_named_and_nothing_is_written() {
    let scene = Scene::new();
    for (answers, says) in [
        ("fr\n", "cannot use the language `fr`: expected zh or en"),
        ("en\nnowhere\n", "cannot use the base `nowhere`: there is no such folder"),
        ("en\n1\nmine.csv\n", "cannot use the data `mine.csv`: there is no such file"),
        ("en\n1\npalace\n\nsoon\n", "cannot use the limit `soon`: expected a time or a size"),
    ] {
        let ran = answer(&scene, "new", answers);
        assert_eq!(ran.code, 1, "{answers}");
        assert!(ran.err.contains(says), "{answers}: {}", ran.err);
    }
    assert!(!scene.path("run.toml").exists() && !scene.path("palace.json").exists());
}

#[test]
fn teach_explains_each_figure_once() {
    let scene = Scene::new();
    scene.ok("data get palace");
    let train = "train --base demo --data palace.json --max-steps 3 --logging-steps 1 --val-size 2";
    let plain = scene.ok(&format!("{train} --output plain"));
    assert!(!plain.err.contains('↳'), "{}", plain.err);
    let taught = scene.ok(&format!("{train} --output taught --teach"));
    for sentence in [
        "Training changes these parameters only",
        "Only the tokens of the answers count in the loss",
        "The loss measures how much the next token surprises the model",
        "Held-out records are never trained on",
        "This is the most memory that the run needs",
    ] {
        assert_eq!(taught.err.matches(sentence).count(), 1, "`{sentence}` in:\n{}", taught.err);
    }
    let merged = scene.ok("merge taught --output merged --teach --lang zh");
    assert!(merged.err.contains("KL 散度衡量两个模型的预测差多少"), "{}", merged.err);
    assert!(!merged.out.contains('↳'), "{}", merged.out);
}

/// Commands that need a network, an account or a terminal, that never end, or that download or measure large
/// models.
const NOT_RUN: [&str; 14] = [
    "hf:",
    "data get huanhuan",
    "danlu demo",
    "danlu login",
    "danlu pull",
    "danlu push",
    "danlu serve",
    "danlu bench",
    "danlu new",
    "llama-3",
    "danlu completions",
    "danlu report danlu-demo/adapter\n",
    "danlu report danlu-demo/adapter out/rank-16\n",
    "danlu doctor",
];

/// Returns the example commands of a help page. A `\` at the end of a line continues the command.
fn examples(help: &str) -> Vec<String> {
    let text = help.replace(" \\\n    ", " ");
    let is_command = |line: &&str| line.starts_with("  ") && line.contains("danlu") && !line.contains(" = ");
    let after = text.split("Examples:\n").nth(1).or_else(|| text.split("files of the demo:\n").nth(1));
    after.unwrap_or_default().lines().filter(is_command).map(|line| format!("{}\n", line.trim())).collect()
}

/// Writes what `danlu demo` leaves, from a training of four steps.
fn demo_folder(scene: &Scene) {
    std::fs::create_dir(scene.path("danlu-demo")).unwrap();
    std::fs::rename(scene.path("base"), scene.path("danlu-demo/base-8m")).unwrap();
    scene.write("danlu-demo/palace.json", include_str!("../assets/palace.json"));
    scene.ok(
        "train --base danlu-demo/base-8m --data danlu-demo/palace.json --val-size 32 --lr 1e-3 --max-steps 4 \
         --output danlu-demo/adapter",
    );
    scene.ok("merge danlu-demo/adapter --output danlu-demo/merged");
}

#[test]
fn examples_of_every_help_run_as_they_stand_after_the_demo() {
    let commands = [
        "",
        "demo",
        "new",
        "data",
        "data get",
        "config",
        "train",
        "plan",
        "report",
        "compare",
        "chat",
        "serve",
        "merge",
        "card",
        "quantize",
        "pull",
        "push",
        "login",
        "bench",
        "completions",
        "doctor",
        "explain",
    ];
    let mut ran = 0;
    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_danlu")).parent().unwrap().to_owned();
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(binary).chain(std::env::split_paths(&folders))).unwrap();
    for command in commands {
        let scene = Scene::new();
        let help = scene.ok(&format!("{command} --help")).out;
        let examples = examples(&help);
        assert!(!examples.is_empty(), "{command}: {help}");
        let run: Vec<&String> =
            examples.iter().filter(|line| !NOT_RUN.iter().any(|it| line.contains(it))).collect();
        if !run.is_empty() {
            demo_folder(&scene);
        }
        for line in run {
            // A few steps show that the flags are right.
            let is_short = !line.contains("danlu train") || line.contains("--resume");
            let line = match line.trim() {
                line if is_short => line.to_owned(),
                line if line.contains("--num-train-epochs 3") => {
                    line.replace("--num-train-epochs 3", "--max-steps 2")
                }
                line => format!("{line} --max-steps 2"),
            };
            let mut shell = std::process::Command::new("bash");
            shell.args(["-c", &line]).current_dir(scene.path("")).stdin(Stdio::null());
            for (name, value) in scene.command(&[]).get_envs() {
                match value {
                    Some(value) => shell.env(name, value),
                    None => shell.env_remove(name),
                };
            }
            let output = Ran::of(shell.env("PATH", &path).output().unwrap());
            assert_eq!(output.code, 0, "{line}\n{}\n{}", output.out, output.err);
            ran += 1;
        }
    }
    assert!(ran > 25, "{ran}");
}
