//! Tests the cards of real runs: their contents, later edits, and protection from injected text.

mod common;

use std::fs;
use std::path::Path;

use common::{Scene, names};

const FLAGS: &str = "--max-steps 3 --val-size 2 --lora-r 2 --learning-rate 1e-3";

fn text(scene: &Scene, path: &str) -> String {
    String::from_utf8(scene.read(path)).unwrap()
}

/// Returns the YAML front matter of a card.
fn front(card: &str) -> &str {
    card.strip_prefix("---\n").unwrap().split("---\n").next().unwrap()
}

/// Returns all text that is published with the card.
fn shown(scene: &Scene, folder: &str) -> String {
    ["README.md", "card.json", "loss.svg"].map(|name| text(scene, &format!("{folder}/{name}"))).concat()
}

#[test]
fn no_path_of_this_machine_gets_into_a_card() {
    let scene = Scene::new();
    for folder in ["quokka", "wombat", "numbat", "bilby"] {
        fs::create_dir(scene.path(folder)).unwrap();
    }
    fs::rename(scene.path("base"), scene.path("quokka/base")).unwrap();
    fs::rename(scene.path("data.json"), scene.path("wombat/data.json")).unwrap();
    scene.write("numbat/limits.md", "只会说古装剧里的话。\n");
    let root = scene.path("");
    let root = root.file_name().unwrap().to_str().unwrap();
    for lang in ["zh", "en", "both"] {
        let out = format!("bilby/{lang}");
        scene.ok(&format!(
            "train --base quokka/base --data wombat/data.json --output {out} --notes numbat/limits.md --card-lang {lang} {FLAGS}"
        ));
        let absolute = scene.path(&format!("{out}-merged"));
        scene.ok(&format!("merge {out} --output {} --notes numbat/limits.md", absolute.display()));
        scene.ok(&format!("merge {out}/checkpoint-3 --output {out}-checkpoint --card-lang {lang}"));
        let unrecorded = text(&scene, &format!("{out}-checkpoint/README.md"));
        for card in [shown(&scene, &out), shown(&scene, &format!("{out}-merged")), unrecorded] {
            for word in ["quokka", "wombat", "numbat", "bilby", "limits.md", "/tmp/", root] {
                assert!(!card.contains(word), "{word} in a card ({lang}):\n{card}");
            }
            assert!(card.contains("base") && card.contains("your-name/"), "{card}");
        }
    }
}

#[test]
fn notes_survive_a_resumed_run_a_new_card_and_a_merge() {
    let scene = Scene::new();
    scene.write("notes.md", "说话像古人。\n\n- 不会算术\n");
    let card = |path: &str| text(&scene, &format!("{path}/README.md"));
    scene.ok(&format!("train --base base --data data.json --output out --notes notes.md --card-lang both --license mit {FLAGS}"));
    let first = card("out");
    assert!(first.contains("<!-- notes -->\n说话像古人。\n\n- 不会算术\n<!-- /notes -->\n"), "{first}");

    // The author edits the card by hand. A resumed run must not restore the old text.
    fs::write(scene.path("out/README.md"), first.replace("不会算术", "也不会写代码")).unwrap();
    scene.ok("train --output out --resume");
    let resumed = card("out");
    assert!(resumed.contains("也不会写代码") && !resumed.contains("不会算术"), "{resumed}");
    // The run stores the author's flags for the card.
    assert!(front(&resumed).contains("license: \"mit\"\n") && resumed.contains("## 中文"), "{resumed}");

    let said = scene.ok("card out --card-lang en --name me/huan --base-id meta-llama/Llama-3.2-1B");
    assert!(said.out.starts_with("model card  out/README.md ("), "{}", said.out);
    let english = card("out");
    assert!(english.contains("也不会写代码") && !english.contains("## 数据"), "{english}");
    assert!(english.contains("danlu chat me/huan\n") && !english.contains("your-name"), "{english}");
    assert!(
        front(&english).contains("base_model: \"meta-llama/Llama-3.2-1B\"\nbase_model_relation: adapter\n")
    );

    scene.ok("merge out --output merged");
    let merged = card("merged");
    assert!(
        front(&merged).contains("base_model_relation: finetune\nlibrary_name: transformers\n"),
        "{merged}"
    );
    assert!(merged.contains("也不会写代码") && merged.contains("vllm serve your-name/merged\n"), "{merged}");
    assert!(merged.contains("| perplexity: merged | "), "{merged}");
    let files = names(&scene.path("merged"));
    assert!(
        ["README.md", "card.json", "loss.svg"].iter().all(|name| files.contains(&(*name).to_owned())),
        "{files:?}"
    );

    scene.ok("merge out --output four --to nf4");
    assert!(front(&card("four")).contains("base_model_relation: quantized\n"), "{}", card("four"));

    // Checkpoints have no card, because a checkpoint is normally not published.
    let checkpoint = names(&scene.path("out/checkpoint-3"));
    assert!(checkpoint.iter().all(|name| name != "loss.svg" && name != "README.md"), "{checkpoint:?}");
}

#[test]
fn what_was_said_and_written_by_hand_outlives_later_commands() {
    let scene = Scene::new();
    let card = || text(&scene, "out/README.md");
    scene.ok(&format!("train --base base --data data.json --output out --license mit {FLAGS}"));
    scene.ok(
        "card out --license apache-2.0 --name me/huan --card-lang both --dataset-id me/palace --base-id a/b",
    );
    let ran = scene.ok("train --output out --resume");
    assert!(!ran.err.contains("README.md"), "{}", ran.err);
    let resumed = card();
    for words in ["license: \"apache-2.0\"", "- \"me/palace\"", "base_model: \"a/b\""] {
        assert!(front(&resumed).contains(words), "{words}\n{resumed}");
    }
    assert!(resumed.contains("danlu chat me/huan\n") && resumed.contains("## 中文"), "{resumed}");
    scene.ok("train --output out --resume --license bsd-3-clause");
    assert!(
        front(&card()).contains("license: \"bsd-3-clause\"\n") && card().contains("me/huan"),
        "{}",
        card()
    );

    // The author's text and keys are preserved, and danlu's part is rewritten.
    let edited = card().replace("## English", "## In plain English").replacen("---\n", "---\nmine: 1\n", 1);
    scene.write("out/README.md", &format!("{edited}\nA line of mine.\n"));
    let ran = scene.ok("card out --license mit");
    assert!(!ran.err.contains("marks"), "{}", ran.err);
    for words in ["---\nmine: 1\n", "license: \"mit\"\n", "## English", "\nA line of mine.\n"] {
        assert!(card().contains(words), "{words}\n{}", card());
    }
    assert!(!card().contains("In plain English") && !card().contains("bsd-3-clause"), "{}", card());

    // A file without markers belongs to the author.
    scene.write("out/README.md", "# By hand\n");
    let ran = scene.ok("train --output out --resume");
    assert!(ran.err.contains("README.md has no danlu marks and stays as it is"), "{}", ran.err);
    assert_eq!(card(), "# By hand\n");
    let ran = scene.ok("card out");
    assert!(ran.err.contains("had no danlu marks: the card is added below your text"), "{}", ran.err);
    assert!(card().contains("# By hand\n") && card().contains("danlu chat me/huan\n"), "{}", card());
    scene.write("new.md", "说话像古人。\n");
    scene.ok("card out --notes new.md");
    assert!(card().contains("# By hand\n") && card().contains("说话像古人。"), "{}", card());

    // If a marker is damaged, the run still succeeds, and the file is not changed.
    let damaged = card().replace("<!-- danlu:end -->\n", "");
    scene.write("out/README.md", &damaged);
    let line = damaged.lines().position(|line| line == "<!-- danlu:begin -->").unwrap() + 1;
    let fault = format!(
        "cannot update `out/README.md`: `<!-- danlu:begin -->` on line {line} has no `<!-- danlu:end -->` below it"
    );
    let refused = scene.run("card out");
    assert!(
        refused.code == 1 && refused.err.contains(&fault) && refused.err.contains("hint: restore"),
        "{}",
        refused.err
    );
    let ran = scene.ok("train --output out --resume");
    assert!(ran.err.contains(&format!("the model card is not written: {fault}")), "{}", ran.err);
    assert_eq!(card(), damaged);
}

#[test]
fn a_model_put_into_4_bits_keeps_its_tokens_and_its_card() {
    let scene = Scene::new();
    scene.write("notes.md", "手写的话\n");
    scene.ok(&format!(
        "train --base base --data data.json --output out --notes notes.md --default-system 你是甄嬛。 --license mit {FLAGS}"
    ));
    scene.ok("merge out --output merged");
    scene.ok("quantize merged --output four");
    assert_eq!(scene.read("four/danlu.json"), scene.read("merged/danlu.json"));
    assert_eq!(scene.read("four/loss.svg"), scene.read("merged/loss.svg"));
    let card = text(&scene, "four/README.md");
    for words in ["A full model (nf4): ", "手写的话", "not to the nf4 model", "license: \"mit\""] {
        assert!(card.contains(words), "{words}\n{card}");
    }
    assert!(!card.contains("The model was not trained"), "{card}");

    // Even if the `card.json` of the base is invalid, the quantized base gets a card.
    scene.write("base/card.json", "{\"by\": \"another program\"}");
    let ran = scene.ok("quantize base --output base-nf4");
    assert!(
        ran.err.contains("card.json: line 1: `name` is missing: the model card is written"),
        "{}",
        ran.err
    );
    fs::remove_file(scene.path("base/card.json")).unwrap();
    assert!(text(&scene, "base-nf4/README.md").contains("The model was not trained"));
    scene.ok("card base-nf4 --name me/base-nf4 --base-id lab/base");
    let card = text(&scene, "base-nf4/README.md");
    assert!(front(&card).contains("base_model: \"lab/base\"\nbase_model_relation: quantized\n"), "{card}");
    assert!(card.contains("danlu chat me/base-nf4\n") && !card.contains("your-name"), "{card}");
    let record = text(&scene, "base-nf4/card.json");
    let branched = record.replacen("\"me/base-nf4\",", "\"me/base-nf4\", \"revision\": \"v2\",", 1);
    scene.write("base-nf4/card.json", &branched);
    for (name, shown) in [("me/base-nf4", "me/base-nf4@v2\n"), ("me/other", "me/other\n")] {
        scene.ok(&format!("card base-nf4 --name {name}"));
        let card = text(&scene, "base-nf4/README.md");
        assert!(card.contains(&format!("danlu chat {shown}")), "{card}");
    }
}

#[test]
fn another_base_is_told_of_and_its_card_claims_nothing_of_the_first() {
    let scene = Scene::new();
    scene.ok(&format!("train --base base --data data.json --output out --license mit {FLAGS}"));
    for folder in ["copy", "other"] {
        fs::create_dir(scene.path(folder)).unwrap();
        for name in names(&scene.path("base")) {
            fs::copy(scene.path(&format!("base/{name}")), scene.path(&format!("{folder}/{name}"))).unwrap();
        }
    }
    let config = text(&scene, "other/config.json");
    scene.write("other/config.json", &(config + "\n"));
    // The same base in a different folder causes no warning.
    let ran = scene.ok("merge out --base copy --output same");
    assert!(!ran.err.contains("warning"), "{}", ran.err);
    assert!(text(&scene, "same/README.md").contains("| held-out loss"));

    let ran = scene.ok("merge out --base other --output merged");
    assert!(ran.err.contains("warning: `other` is not the base that out was trained on: "), "{}", ran.err);
    let card = text(&scene, "merged/README.md");
    assert!(
        card.contains("was trained on another base (base, see Training), not on this one (other)"),
        "{card}"
    );
    assert!(!card.contains("held-out loss") && !card.contains("Replies before"), "{card}");
    assert!(!names(&scene.path("merged")).contains(&"loss.svg".to_owned()));
    assert!(card.contains("`other` with a LoRA adapter"), "{card}");
    // The licence and the names in the card are those of the base of the merge.
    assert!(!front(&card).contains("license"), "{card}");
    scene.write("other/README.md", "---\nlicense: apache-2.0\n---\n");
    scene.ok("merge out --base other --output named --base-id lab/other");
    let card = text(&scene, "named/README.md");
    assert!(front(&card).contains("base_model: \"lab/other\"\n"), "{card}");
    assert!(front(&card).contains("license: \"apache-2.0\"\n"), "{card}");
    assert!(
        card.contains("was trained on another base (base, see") && card.contains("not on this one ("),
        "{card}"
    );
    scene.ok("merge out --base other --output licensed --license bsd-3-clause");
    assert!(front(&text(&scene, "licensed/README.md")).contains("license: \"bsd-3-clause\"\n"));
}

#[test]
fn a_resumed_run_that_has_nothing_to_do_keeps_its_record() {
    let scene = Scene::new();
    scene.ok(&format!("train --base base --data data.json --output out {FLAGS}"));
    let card =
        |scene: &Scene| serde_json::from_slice::<serde_json::Value>(&scene.read("out/card.json")).unwrap();
    let mut first = card(&scene);
    first["training"]["memory"] = serde_json::json!([1u64 << 40, 1u64 << 39]);
    scene.write("out/card.json", &first.to_string());
    scene.ok("train --output out --resume");
    let again = card(&scene);
    assert_eq!(again["training"]["memory"], first["training"]["memory"]);
    assert!(text(&scene, "out/report.html").contains("1024.00 GiB"), "the report too");
}

#[test]
fn notes_given_to_a_run_that_is_stopped_are_in_the_card_at_its_end() {
    let scene = Scene::new();
    scene.write("notes.md", "手写的话\n");
    // A killed run leaves the notes but no model. To get this state, the test deletes the other files of a
    // finished run.
    scene.ok(&format!("train --base base --data data.json --output out --notes notes.md {FLAGS}"));
    for name in ["README.md", "card.json", "adapter_model.safetensors"] {
        fs::remove_file(scene.path(&format!("out/{name}"))).unwrap();
    }
    fs::write(
        scene.path("out/README.md"),
        "<!-- danlu:begin -->\n<!-- danlu:end -->\n\n<!-- notes -->\n手写的话\n<!-- /notes -->\n",
    )
    .unwrap();
    fs::remove_file(scene.path("notes.md")).unwrap();
    scene.ok("train --output out --resume");
    assert!(text(&scene, "out/README.md").contains("<!-- notes -->\n手写的话\n<!-- /notes -->"));
}

#[test]
fn licence_and_languages_are_those_of_base_and_data() {
    let scene = Scene::new();
    scene.write("base/README.md", "---\nlicense: apache-2.0\n---\n# base\n");
    scene.ok(&format!(
        "train --base base --data data.json --output out {FLAGS} --dataset-id me/palace,me/other"
    ));
    let card = text(&scene, "out/README.md");
    let front = front(&card);
    assert!(
        front.contains(
            "license: \"apache-2.0\"\nlanguage:\n- \"zh\"\ndatasets:\n- \"me/palace\"\n- \"me/other\"\n"
        ),
        "{front}"
    );
    // The base is a local folder, so the front matter names no base.
    assert!(!front.contains("base_model"), "{front}");
    let svg = text(&scene, "out/loss.svg");
    assert!(
        svg.starts_with("<svg xmlns=") && svg.contains("held-out") && card.contains("](loss.svg)"),
        "{svg}"
    );
}

#[test]
fn what_cannot_be_written_from_is_refused_with_a_hint() {
    let scene = Scene::new();
    scene.refuses(
        "card base",
        "error: `base` holds no `card.json`, which the card is written from\n\nhint: name a folder written by `danlu train`, `danlu merge` or `danlu quantize`\n",
    );
    scene.refuses(
        "card me/huan",
        "error: cannot load `me/huan`: it does not exist\n\nhint: name the folder of an adapter, a merged model or a base; \
         name a local folder; `danlu push` then uploads the card to the Hub\n",
    );
    let missing = scene.run("train --base base --data data.json --output out --notes nowhere.md");
    assert!(
        missing.code == 1 && missing.err.contains("nowhere.md") && !Path::new(&scene.path("out")).exists(),
        "{}",
        missing.err
    );
    fs::write(scene.path("latin1.md"), b"caf\xe9\n").unwrap();
    scene.refuses(
        "train --base base --data data.json --output out --notes latin1.md",
        "error: `latin1.md` is not UTF-8 text: the fault is at byte 3\n\nhint: save it as UTF-8\n",
    );
    let license = scene.run("train --base base --data data.json --output out --license Apache/2");
    assert!(license.code == 1 && license.err.contains("such as apache-2.0"), "{}", license.err);

    scene.ok(&format!("train --base base --data data.json --output out {FLAGS}"));
    scene.write("out/card.json", "{}");
    for line in ["merge out --output merged", "card out"] {
        let refused = scene.run(line);
        assert_eq!(refused.code, 1, "{}", refused.err);
        assert!(
            refused.err.starts_with("error: out/card.json: line 1: `name` is missing\n"),
            "{}",
            refused.err
        );
        assert!(refused.err.contains("hint: "), "{}", refused.err);
    }
    assert!(!scene.path("merged").exists());
}
