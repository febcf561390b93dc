//! Tests user errors. Each error exits with code 1, and prints a reason and a hint.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use common::{Scene, record};

#[test]
fn missing_files_are_named() {
    let scene = Scene::new();
    scene.refuses(
        "train --base nope --data data.json --output out",
        "error: cannot load `nope`: it does not exist\n\nhint: name the folder of an adapter, a merged model or a base\n",
    );
    scene.refuses(
        "train --base base --data nope.json --output out",
        "error: cannot read `nope.json`: it does not exist\n\nhint: check the path for a typing mistake\n",
    );
    scene.refuses(
        "train --base base --data data.json",
        "error: `--output` is missing: the folder to write the adapter to\n\n\
         hint: danlu train --base DIR --data FILE --output DIR\n",
    );
    scene.refuses(
        "chat nope --prompt hi",
        "error: cannot load `nope`: it does not exist\n\nhint: name the folder of an adapter, a merged model or a base\n",
    );
    assert!(!scene.path("out").exists(), "nothing is created for a run that cannot be");
}

#[test]
fn a_misspelt_key_is_underlined() {
    let scene = Scene::new();
    scene.write("run.toml", "base = \"base\"\nlerning_rate = 1e-4\n");
    let expected = "\
error: unknown key `lerning_rate`
    ╭─[run.toml:2:1]
  2 │ lerning_rate = 1e-4
    · ────────────

hint: did you mean `learning_rate`?
";
    scene.refuses("train --config run.toml", expected);
}

#[test]
fn a_bad_value_in_the_file_is_underlined() {
    let scene = Scene::new();
    scene.write("run.toml", "dtype = \"fp8\"\n");
    let expected = "\
error: invalid value `fp8` for `--dtype <TYPE>`: expected auto, bf16, f16 or f32
    ╭─[run.toml:1:9]
  1 │ dtype = \"fp8\"
    ·         ─────
";
    scene.refuses("train --config run.toml", expected);
}

#[test]
fn an_unknown_target_module_is_underlined_with_what_there_is() {
    let scene = Scene::new();
    let toml = "base = \"base\"\ndata = \"data.json\"\noutput = \"out\"\ntarget_modules = [\"q_porj\", \"v_proj\"]\n";
    scene.write("run.toml", toml);
    let hint =
        "hint: choose from `q_proj`, `k_proj`, `v_proj`, `o_proj`, `gate_proj`, `up_proj`, `down_proj`\n";
    let message = "error: cannot adapt `q_porj`: it matches no module of the base model\n";
    let snippet = "    ╭─[run.toml:4:20]\n  4 │ target_modules = [\"q_porj\", \"v_proj\"]\n    ·                    ──────\n";
    scene.refuses("train --config run.toml", &format!("{message}{snippet}\n{hint}"));
    scene.refuses(
        "train --base base --data data.json --output out --target-modules q_porj",
        &format!("{message}\n{hint}"),
    );
    assert!(!scene.path("out").exists());
}

#[test]
fn flags_and_values_that_do_not_exist_are_refused() {
    let scene = Scene::new();
    scene.refuses("train --lora-rr 3", "error: unknown flag `--lora-rr`\n\nhint: did you mean `--lora-r`?\n");
    scene.refuses(
        "train --lr-scheduler-type cosin",
        "error: invalid value `cosin` for `--lr-scheduler-type <TYPE>`: `cosin` is no schedule; \
         there are linear, cosine, constant, constant_with_warmup\n",
    );
    scene.refuses(
        "train --base base --data data.json --output out --lora-dropout 1",
        "error: `lora_dropout` is 1, expected at least 0 and below 1\n",
    );
    scene.refuses(
        "train --base base --data data.json --output out --max-length 4096",
        "error: 4096 tokens of `--max-length` exceed the model's context of 1024\n\n\
         hint: use at most 1024, or a model with a longer context\n",
    );
    scene.refuses(
        "chat base --prompt hi --temperature -1",
        "error: cannot use `temperature`: it is -1, expected 0 or more\n",
    );
    scene.refuses("chta", "error: unknown command `chta`\n\nhint: did you mean `chat`?\n");
    scene.refuses("chat", "error: `<PATH>` is missing\n\nhint: danlu chat <PATH>\n");
    scene.refuses(
        "train --base base --data data.json --output out --learning-rate -1e-4",
        "error: `learning_rate` is -0.0001, expected more than 0\n",
    );
    scene.refuses(
        "train --packing yes",
        "error: unexpected argument `yes`\n\n\
         hint: write `--packing`, or `--packing=false` to switch it off\n",
    );
    for line in [
        "data check data.json --max-length 0",
        "data preview data.json -n -1",
        "chat base --max-new-tokens 0",
    ] {
        let ran = scene.run(line);
        assert!(ran.err.ends_with(": expected a whole number, 1 or more\n"), "{}", ran.err);
        assert_eq!(ran.code, 1);
    }
    scene.refuses(
        "chat base --prompt hi --context 9999",
        "error: 9999 tokens of `--context` exceed the model's context of 1024\n\n\
         hint: use at most 1024, or a model with a longer context\n",
    );
    scene.refuses(
        "compare base base --data data.json --max-length 100000",
        "error: 100000 tokens of `--max-length` exceed the model's context of 1024\n\n\
         hint: use at most 1024, or a model with a longer context\n",
    );
}

#[test]
fn an_instruction_set_that_is_none_is_refused() {
    let scene = Scene::new();
    let output = scene.command(&["doctor"]).env("DANLU_ISA", "sse9").output().unwrap();
    let ran = common::Ran::of(output);
    assert_eq!(ran.code, 1);
    let start = "error: DANLU_ISA is `sse9`, which is not an instruction set\n\nhint: use one that this machine supports: ";
    assert!(ran.err.starts_with(start), "{}", ran.err);
}

#[test]
fn bad_records_are_refused_by_line_unless_skipped() {
    let scene = Scene::new();
    let good = record("你好。", "臣妾在。");
    scene.write(
        "bad.jsonl",
        &format!("{good}\n{{\"instruction\": \"问\"}}\n{}\nnot json\n", record("问", "")),
    );
    let expected = "\
error: 3 of 4 records are bad
  bad.jsonl:2 (record 2): found the key `instruction`, expected `instruction`, `output` of the alpaca format (and perhaps `input`, `system`, `history`)
  bad.jsonl:3 (record 3): found an empty `output`, expected an answer
  bad.jsonl:4:2 (record 4): found `o`, expected a value: a text in double quotes, a number, `true`, `false`, `null`, `[` or `{`

hint: correct them (`danlu data check bad.jsonl` lists all), or skip them with `--skip-bad`
";
    let line = "train --base base --data bad.jsonl --output out --max-steps 1";
    scene.refuses(line, expected);
    assert!(!scene.path("out").exists());

    let ran = scene.ok(&format!("{line} --skip-bad"));
    assert!(
        ran.err.contains("warning: 3 bad records are skipped:\n  bad.jsonl:2 (record 2): found"),
        "{}",
        ran.err
    );
}

#[test]
fn data_that_is_none_is_refused_with_the_formats() {
    let scene = Scene::new();
    scene.write("e.json", "[]");
    scene.refuses(
        "data check e.json",
        "error: cannot read `e.json`: it contains no records\n\n\
         hint: write the records as a JSON array, as JSON lines (one record per line), as CSV or as TSV\n",
    );
    scene.write("f.json", "{\"foo\": 1}\n");
    let ran = scene.run("data check f.json");
    assert_eq!(ran.code, 1);
    assert!(ran.err.starts_with(
        "error: cannot read `f.json:1` (record 1): a record with the key `foo` matches no known format\n\nhint: "
    ));
}

#[test]
fn a_folder_with_other_things_is_never_written_to() {
    let scene = Scene::new();
    fs::create_dir(scene.path("mine")).unwrap();
    scene.write("mine/thesis.txt", "years of work");
    let hint = "hint: name a new or an empty folder, so that nothing of yours is overwritten\n";
    let error =
        "error: cannot write to `mine`: the folder already holds other things, such as `thesis.txt`\n";
    scene.refuses("train --base base --data data.json --output mine", &format!("{error}\n{hint}"));
    assert_eq!(common::names(&scene.path("mine")), ["thesis.txt"]);
    scene.refuses(
        "train --output mine --resume",
        "error: `mine` holds no run to resume\n\nhint: omit `--resume` to start one\n",
    );
}

#[test]
fn a_read_only_folder_is_said_to_be_one() {
    let scene = Scene::new();
    let locked = scene.path("locked");
    fs::create_dir(&locked).unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o555)).unwrap();
    if fs::write(locked.join("probe"), "").is_ok() {
        eprintln!("skipped: this user writes to read-only folders");
        return;
    }
    scene.refuses(
        "train --base base --data data.json --output locked/out",
        "error: cannot create `locked/out`: permission denied\n\n\
         hint: check the owner and the permissions of the folder\n",
    );
}

/// The test uses a folder below `/sys`, where even root cannot create files.
#[cfg(target_os = "linux")]
#[test]
fn a_folder_that_no_one_can_write_to_is_said_to_be_one() {
    let scene = Scene::new();
    let ran = scene.run("train --base base --data data.json --output /sys/danlu-out");
    let reasons = [
        "permission denied\n\nhint: check the owner and the permissions of the folder\n",
        "the disk is read-only\n\nhint: choose a folder on a disk that can be written\n",
    ];
    let expected = reasons.map(|reason| format!("error: cannot create `/sys/danlu-out`: {reason}"));
    assert!(ran.code == 1 && expected.contains(&ran.err), "{}", ran.err);
}

#[test]
fn an_output_that_is_a_file_is_refused() {
    let scene = Scene::new();
    scene.refuses(
        "train --base base --data data.json --output data.json",
        "error: cannot write to `data.json`: it is a file, not a folder\n\nhint: name a new or an empty folder\n",
    );
    scene.refuses(
        "train --base base --data data.json --output data.json/out",
        "error: cannot create `data.json/out`: part of the path is a file, not a folder\n\n\
         hint: name a folder whose path leads through folders only\n",
    );
}

#[test]
fn an_adapter_whose_base_is_elsewhere_asks_for_it() {
    let scene = Scene::new();
    scene.ok("train --base base --data data.json --output out --max-steps 1");
    fs::rename(scene.path("base"), scene.path("moved")).unwrap();
    scene.refuses(
        "chat out --prompt hi",
        "error: cannot find the base of `out`: its base `base` is no model folder here\n\n\
         hint: name its folder with `--base DIR`\n",
    );
    scene.ok("chat out --base moved --prompt hi --max-new-tokens 2");

    // If tensors do not fit, the hint names both possible causes: a different base, and an edited
    // configuration.
    let config = String::from_utf8(scene.read("out/adapter_config.json")).unwrap();
    for (from, to) in [("\"r\": 8", "\"r\": 4"), ("\"q_proj\"", "\"x_proj\"")] {
        assert!(config.contains(from), "{config}");
        scene.write("out/adapter_config.json", &config.replace(from, to));
        let ran = scene.run("chat out --base moved --prompt hi");
        let hint = "hint: the adapter was trained on `base` (`base_model_name_or_path`), and the base here is `moved`: give \
                    the one it was trained on with `--base DIR`, or put `adapter_config.json` back if it was edited\n";
        assert!(ran.code == 1 && ran.err.ends_with(hint), "{}", ran.err);
    }
}

#[test]
fn an_adapter_refuses_another_template_unless_told_otherwise() {
    let scene = Scene::new();
    scene.ok("train --base base --data data.json --output out --max-steps 1");
    let path = scene.path("base/tokenizer_config.json");
    let changed =
        fs::read_to_string(&path).unwrap().replace("<|end_header_id|>\\n\\n", "<|end_header_id|>\\n");
    fs::remove_file(&path).unwrap();
    fs::write(&path, changed).unwrap();
    let ran = scene.run("chat out --prompt hi --max-new-tokens 2");
    assert_eq!(ran.code, 1);
    assert!(
        ran.err.starts_with(
            "error: `out` was trained with a tokenizer or template that differs from that of `base`\n  "
        ),
        "{}",
        ran.err
    );
    let hint = "hint: use the base it was trained on, or continue with the adapter's tokenizer and template: `--allow-template-mismatch`\n";
    assert!(ran.err.ends_with(hint), "{}", ran.err);
    let ran = scene.ok("chat out --prompt hi --max-new-tokens 2 --allow-template-mismatch");
    assert!(ran.err.starts_with("warning: `out` was trained with a tokenizer or template"), "{}", ran.err);
}

#[test]
fn what_is_no_model_is_told_apart() {
    let scene = Scene::new();
    scene.ok("train --base base --data data.json --output out --max-steps 1");
    scene.refuses(
        "chat out --base out --prompt hi",
        "error: cannot use `out` as a base: it is an adapter\n\nhint: name the folder of the model that it was trained on\n",
    );
    // A name may be a mistyped folder, so the Hub is asked only with `hf:`.
    let absent = "error: cannot load `meta-llama/Llama-3.2-1B`: it does not exist\n\n\
                  hint: name the folder of an adapter, a merged model or a base; if it is on the Hub, write \
                  `hf:meta-llama/Llama-3.2-1B`, or run `danlu pull meta-llama/Llama-3.2-1B` first\n";
    scene.refuses("chat meta-llama/Llama-3.2-1B --prompt hi", absent);
    scene.refuses("train --base meta-llama/Llama-3.2-1B --data data.json --output new", absent);
    scene.refuses("data check data.json --base meta-llama/Llama-3.2-1B", absent);
    let hub = scene.run("chat hf:meta-llama/Llama-3.2-1B --prompt hi").err;
    assert!(
        hub.starts_with("error: cannot reach 127.0.0.1:9: Connection refused\n\nhint: check the network"),
        "{hub}"
    );
    scene.refuses(
        "chat data.json --prompt hi",
        "error: cannot load `data.json`: it is a file, expected a folder\n\nhint: name the folder that holds `config.json`\n",
    );
}

#[test]
fn a_run_that_was_stopped_is_named_with_its_newest_checkpoint() {
    let scene = Scene::new();
    scene.ok("train --base base --data data.json --output out --max-steps 4 --save-steps 2");
    fs::remove_file(scene.path("out/adapter_config.json")).unwrap();
    let error = "error: cannot load `out`: it is a stopped run without an adapter\n\n\
                 hint: use its newest checkpoint, `out/checkpoint-4`, or finish the run: danlu train --output out --resume\n";
    scene.refuses("chat out --prompt hi", error);
    scene.refuses("compare out --data data.json", error);
    scene.ok("chat out/checkpoint-4 --prompt hi --max-new-tokens 2");
}

#[test]
fn a_generation_config_with_an_impossible_value_is_named() {
    let scene = Scene::new();
    let path = scene.path("base/generation_config.json");
    fs::remove_file(&path).unwrap();
    fs::write(&path, r#"{"do_sample": true, "temperature": -4}"#).unwrap();
    scene.refuses(
        "chat base --prompt hi",
        "error: cannot use `base/generation_config.json`: `temperature` is -4, expected 0 or more\n\n\
         hint: correct the file, or override it with `--temperature`\n",
    );
    fs::write(&path, "{\n  \"do_sample\": true,\n}").unwrap();
    scene.refuses(
        "chat base --prompt hi",
        "error: cannot parse `base/generation_config.json:3:1`: found a `,` after the last value, expected none\n\n\
         hint: correct the file, or fetch it again\n",
    );
}

#[test]
fn an_adapter_is_sampled_from_by_its_own_generation_config() {
    let scene = Scene::new();
    scene.ok("train --base base --data data.json --output out --max-steps 1 --lora-r 1");
    scene.write("out/generation_config.json", r#"{"do_sample": true, "top_k": -1}"#);
    scene.refuses(
        "chat out --prompt hi",
        "error: cannot use `out/generation_config.json`: `top_k` is -1, expected a whole number, 0 or more\n\n\
         hint: correct the file, or override it with `--top-k`\n",
    );
}

#[test]
fn two_adapters_are_compared_only_on_what_both_held_out() {
    let scene = Scene::new();
    for (output, flags) in [("a", ""), ("b", "--learning-rate 1e-3"), ("c", "--seed 7")] {
        let line =
            format!("train --base base --data data.json --max-steps 1 --lora-r 1 --val-size 3 {flags}");
        scene.ok(&format!("{line} --output {output}"));
    }
    let few = "--replies 0 --records 1";
    let ran = scene.ok(&format!("compare a b {few}"));
    assert!(ran.err.starts_with("held-out records: a/held_out.json\n"), "{}", ran.err);
    scene.refuses(
        "compare a c",
        "error: `--data` is missing, and `a/held_out.json` and `c/held_out.json` hold different records: one adapter may have been trained on records that the other held out\n\n\
         hint: name records that neither was trained on with `--data FILE`\n",
    );
    fs::remove_file(scene.path("b/held_out.json")).unwrap();
    for line in ["compare a b", "compare b a"] {
        let ran = scene.run(line);
        assert_eq!(ran.code, 1);
        assert!(
            ran.err.starts_with("error: `--data` is missing, and `b` holds no `held_out.json`\n"),
            "{}",
            ran.err
        );
    }
    scene.ok(&format!("compare a base {few}"));
}

#[test]
fn data_found_beside_the_configuration_is_shown_with_its_path() {
    let scene = Scene::new();
    fs::create_dir(scene.path("runs")).unwrap();
    fs::copy(scene.path("data.json"), scene.path("runs/own.json")).unwrap();
    scene.write("runs/run.toml", "base = \"base\"\ndata = \"own.json\"\nmax_steps = 1\nlora_r = 1\n");
    let ran = scene.ok("train --config runs/run.toml --output out");
    let shown = fs::canonicalize(scene.path("runs/own.json")).unwrap();
    assert!(ran.err.contains(&format!(" {}\n", shown.display())), "{}", ran.err);
    let ran = scene.ok("train --config runs/run.toml --data data.json --output other");
    assert!(!ran.err.contains("own.json"), "{}", ran.err);
}

#[cfg(unix)]
#[test]
fn a_configuration_that_is_no_file_ends_at_once() {
    let scene = Scene::new();
    let ran = scene.run("train --config /dev/zero");
    assert!(ran.err.contains("expected a configuration of at most 1.0 MB"), "{}", ran.err);
    assert_eq!(ran.code, 1);
    std::os::unix::net::UnixListener::bind(scene.path("run.toml")).unwrap();
    let ran = scene.run("train --config run.toml");
    assert!(ran.err.contains("`run.toml`: it is not a regular file"), "{}", ran.err);
    assert_eq!(ran.code, 1);
}

#[test]
fn a_folder_that_does_not_exist_is_named_where_a_file_is_written() {
    let scene = Scene::new();
    for line in ["data convert data.json --output lacking/x.csv", "data get palace --output lacking/p.json"] {
        let file = line.rsplit(' ').next().unwrap();
        scene.refuses(
            line,
            &format!(
                "error: cannot write `{file}`: the folder `lacking` does not exist\n\n\
                 hint: create the folder first: mkdir -p lacking\n"
            ),
        );
    }
    let refused = scene.run("train --base base --data data.json --output /proc/x");
    assert!(refused.err.contains("cannot create `/proc/x`: the system refuses new files"), "{}", refused.err);
}

#[test]
fn a_mistyped_path_is_answered_with_the_similar_one() {
    let scene = Scene::new();
    for (line, similar) in [
        ("data check dta.json --base demo", "data.json"),
        ("data check data.json --base bse", "base"),
        ("train --config run.tml", "run.toml"),
    ] {
        scene.write("run.toml", "");
        let refused = scene.run(line);
        assert_eq!(refused.code, 1, "{line}");
        assert!(refused.err.contains(&format!("did you mean `{similar}`?")), "{line}: {}", refused.err);
    }
    fs::create_dir(scene.path("models")).unwrap();
    fs::rename(scene.path("base"), scene.path("models/base")).unwrap();
    let refused = scene.run("train --base models --data data.json --output out");
    assert!(refused.err.ends_with("hint: name one of its models: `models/base`\n"), "{}", refused.err);
    let refused = scene.run("data check huanhuan.json --base demo");
    assert!(refused.err.ends_with("write the data set first: danlu data get huanhuan\n"), "{}", refused.err);
    let refused = scene.run("data check a.json,b.json --base demo");
    assert!(refused.err.ends_with("name the files one by one: a.json b.json\n"), "{}", refused.err);
}

#[test]
fn a_tilde_is_the_home_folder_in_flags_and_files() {
    let scene = Scene::new();
    scene.write("run.toml", "base = \"base\"\ndata = [\"~/data.json\"]\noutput = \"~/a\"\nmax_steps = 1\n");
    for line in [
        "train --base base --data=~/data.json --output=~/b --max-steps 1",
        "train --config run.toml",
        "data get palace --output ~/p.json",
    ] {
        let args: Vec<&str> = line.split(' ').collect();
        let ran = common::Ran::of(scene.command(&args).env("HOME", scene.path("")).output().unwrap());
        assert_eq!(ran.code, 0, "{line}: {}", ran.err);
    }
    for name in ["a/adapter_config.json", "b/adapter_config.json", "p.json"] {
        assert!(scene.path(name).is_file(), "{name}");
    }
    assert!(!scene.path("~").exists());
}

/// Signals at any moment end a command with exit code 130, and leave no temporary folder.
#[cfg(unix)]
#[test]
fn a_signal_at_any_moment_ends_with_exit_code_130() {
    use std::time::Duration;
    let scene = Scene::new();
    scene.write("many.json", include_str!("../assets/palace.json"));
    for line in [
        "train --base base --data many.json --output out",
        "merge nowhere --output merged",
        "data check many.json many.json many.json many.json",
        "plan --base base --data many.json",
        "compare base base --data many.json",
    ] {
        for (signal, milliseconds) in [("TERM", 40), ("TERM", 120), ("INT", 80), ("HUP", 200)] {
            // On a busy machine, a signal can precede the start of danlu.
            let ended = (0..6).find_map(|attempt| {
                let mut child = scene.start(line);
                std::thread::sleep(Duration::from_millis(milliseconds << attempt));
                if child.try_wait().unwrap().is_none() {
                    let id = child.id().to_string();
                    std::process::Command::new("kill").args([&format!("-{signal}"), &id]).status().unwrap();
                }
                let code = child.wait_with_output().unwrap().status.code();
                let _ = fs::remove_dir_all(scene.path("out"));
                code
            });
            // A short command may end before the signal.
            assert!([0, 1, 130].map(Some).contains(&ended), "{line}, {signal}: {ended:?}");
        }
    }
    assert!(common::names(&scene.path("")).iter().all(|name| !name.starts_with(".danlu-tmp-")));
}
