//! Tests complete cards of one run. The names and texts in the run try to inject markup.

use danlu_adapter::BaseIdentity;
use danlu_adapter::fidelity::{Fidelity, FidelityLimits};
use danlu_adapter::merge::MergeBase;
use danlu_kernels::DType;

use super::*;
use crate::summary::tests::sample;

fn card(language: CardLanguage) -> Card {
    let run = sample();
    let lora = Some(Lora { r: 8, alpha: 32.0, use_rslora: false, target_modules: "all-linear".into() });
    Card {
        name: run.adapter_name.clone(),
        repository: None,
        revision: None,
        language,
        base: BaseIdentity { name: "base-8m".into(), ..BaseIdentity::default() },
        lora,
        license: None,
        datasets: Vec::new(),
        training: Some(Training::of(&run, Some("cd".repeat(32)), 64, Some("Some CPU".into()))),
        merge: None,
        in_four_bits: None,
        trained_on: None,
        has_picture: true,
        version: "0.1.0".into(),
    }
}

fn on_the_hub(language: CardLanguage) -> Card {
    let mut card = card(language);
    card.base.hub_id = Some("meta-llama/Llama-3.2-1B".into());
    card.repository = Some("me/huan".into());
    card.license = Some("llama3.2".into());
    card.datasets = vec!["me/palace".into()];
    card.training.as_mut().unwrap().data.languages = vec!["zh".into()];
    card
}

fn merge() -> Merge {
    let fidelity = Fidelity {
        sequences: 20,
        tokens: 900,
        trained_tokens: 300,
        max_logit_difference: 0.01,
        mean_logit_difference: 0.001,
        kl: 1.5e-6,
        kl_of_adapter: 0.8,
        kl_limit: 1e-2,
        same_choice: 0.995,
        perplexity_base: 80.0,
        perplexity_adapter: 4.0,
        perplexity_merged: 4.001,
        limits: FidelityLimits::of(DType::Bf16),
        passed: true,
    };
    Merge {
        base: MergeBase::Original,
        forms: vec![],
        dtype: vec!["bfloat16".into()],
        quantized: None,
        fidelity,
    }
}

fn front(card: &str) -> &str {
    card.strip_prefix("---\n").unwrap().split("---\n").next().unwrap()
}

#[test]
fn the_front_matter_is_what_the_hub_asks_for() {
    let adapter = on_the_hub(CardLanguage::Zh);
    assert_eq!(
        front(&adapter.render("")),
        "base_model: \"meta-llama/Llama-3.2-1B\"\nbase_model_relation: adapter\nlibrary_name: peft\n\
         pipeline_tag: text-generation\nlicense: \"llama3.2\"\nlanguage:\n- \"zh\"\ndatasets:\n- \"me/palace\"\n\
         tags:\n- \"danlu\"\n- \"lora\"\n- \"transformers\"\n- \"base_model:adapter:meta-llama/Llama-3.2-1B\"\n"
    );
    let merged = adapter.merged("m".into(), merge()).render("");
    assert!(
        front(&merged).contains("base_model_relation: finetune\nlibrary_name: transformers\n"),
        "{merged}"
    );
    // If a folder name were written as `base_model`, the Hub would link to an unrelated repository.
    assert!(!front(&card(CardLanguage::Zh).render("")).contains("base_model"));
}

#[test]
fn both_languages_stand_once_each_and_the_notes_below_them() {
    let both = card(CardLanguage::ZhEn).render("只会说古装剧里的话。");
    let places: Vec<usize> =
        ["## 中文", "### 数据", "## English", "### Data", "## 局限与说明 · Limits and notes", "只会说古装剧"]
            .map(|text| both.find(text).unwrap_or_else(|| panic!("{text}\n{both}")))
            .into();
    assert!(places.is_sorted(), "{places:?}");
    assert_eq!(both.matches("只会说古装剧里的话。").count(), 1);
    assert!(!both.contains("作者还没有写明"));
    let english = card(CardLanguage::En).render("");
    assert!(english.contains("The author has not described the limits"), "{english}");
    // In an English card, only the data contains Han characters.
    let own = english.replace("推荐您去海底捞火锅。", "").replace("臣妾参见皇上", "");
    assert!(!own.chars().any(|c| ('\u{4e00}'..'\u{9fff}').contains(&c)), "{own}");
}

#[test]
fn figures_settings_and_data_are_told() {
    let english = card(CardLanguage::En).render("");
    for text in [
        "| held-out loss (nats per token) | 4.4000 | 1.3000 |",
        "Measured on 20 held-out records",
        "![The loss over the steps](loss.svg)",
        "| `lora_r` | 8 |",
        "| `max_steps` | not set |",
        "Trained on 290 records, with 20 held out.",
        "Only answers carry a loss",
        "chat template (SHA-256 cdcdcdcdcdcd…)",
        "| Hardware | Some CPU; cpu avx512bf16, 2 threads |",
    ] {
        assert!(english.contains(text), "{text}\n{english}");
    }
    assert!(!english.contains("start of their question"));
    let mut chinese = card(CardLanguage::Zh);
    chinese.training.as_mut().unwrap().backend = "cpu avx512, 2 threads, f32".into();
    assert!(chinese.render("").contains("| 硬件 | Some CPU; cpu avx512, 2 线程, f32 |"));
    let merged = card(CardLanguage::Zh).merged("m".into(), merge()).render("");
    for text in
        ["| KL 散度（奈特/词元） | 1.500e-6 |", "| 困惑度：合并后 | 4.0010 |", "| 首选词元一致 | 99.50% |"]
    {
        assert!(merged.contains(text), "{text}\n{merged}");
    }
}

#[test]
fn snippets_name_the_model_and_ask_as_the_run_did() {
    let mut adapter = on_the_hub(CardLanguage::En);
    adapter.lora.as_mut().unwrap().r = 24;
    let run = adapter.training.as_mut().unwrap();
    run.settings.default_system = Some("It's \"me\"".into());
    run.replies[0].prompt = "你是谁？".into();
    let text = adapter.render("");
    for line in [
        "danlu chat me/huan\n",
        "# pip install torch transformers peft\nfrom peft import PeftModel\n",
        "base = AutoModelForCausalLM.from_pretrained(\"meta-llama/Llama-3.2-1B\", dtype=\"float32\")\n",
        "model = PeftModel.from_pretrained(base, \"me/huan\")\n",
        "model.load_adapter(\"me/huan\")\n",
        "max_new_tokens=64, do_sample=False",
        "vllm serve meta-llama/Llama-3.2-1B --enable-lora --max-lora-rank 32 --lora-modules huan=me/huan\n",
        r#"[{"role": "system", "content": "It's \"me\""}, {"role": "user", "content": "你是谁？"}]"#,
        r#"-d '{"model": "huan", "messages": [{"role": "system", "content": "It'\''s \"me\""}, "#,
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    assert!(!text.contains("your-name"));
    let merged = on_the_hub(CardLanguage::En).merged("huan-merged".into(), merge()).render("");
    assert!(
        merged.contains("vllm serve your-name/huan-merged\n") && !merged.contains("PeftModel"),
        "{merged}"
    );
    assert!(merged.contains(r#"-d '{"model": "your-name/huan-merged", "messages""#), "{merged}");
}

#[test]
fn snippets_name_the_branch_where_it_is_not_the_main_one() {
    let mut card = on_the_hub(CardLanguage::En);
    card.revision = Some("v2".into());
    let adapter = card.render("");
    for snippet in [
        "danlu chat me/huan@v2\n",
        "AutoTokenizer.from_pretrained(\"me/huan\", revision=\"v2\")",
        "model.load_adapter(\"me/huan\", adapter_kwargs={\"revision\": \"v2\"})",
        "PeftModel.from_pretrained(base, \"me/huan\", revision=\"v2\")",
        "--lora-modules huan=\"$(hf download me/huan --revision v2 --quiet)\"",
    ] {
        assert!(adapter.contains(snippet), "{snippet}\n{adapter}");
    }
    let merged = Card { merge: Some(merge()), ..card }.render("");
    for snippet in [
        "from_pretrained(\"me/huan\", revision=\"v2\", dtype=\"float32\")",
        "vllm serve me/huan --revision v2\n",
    ] {
        assert!(merged.contains(snippet), "{snippet}\n{merged}");
    }
}

#[test]
fn the_name_in_snippets_is_one_that_the_hub_takes() {
    for (folder, name) in [
        ("huanhuan-r8.v2", "huanhuan-r8.v2"),
        ("my model", "my-model"),
        ("甄嬛 r8", "r8"),
        ("a -- b..c.", "a-b.c"),
        ("甄嬛", "model"),
    ] {
        let card = Card { name: folder.into(), ..card(CardLanguage::En) };
        let id = card.name_on_hub();
        assert!(id == format!("your-name/{name}") && danlu_model::is_repo_id(&id), "{folder}: {id}");
    }
}

#[test]
fn figures_of_a_model_in_four_bits_are_told_from_those_of_its_training() {
    let four = InFourBits {
        quantization: danlu_model::Quantization::new(danlu_kernels::FourBitCode::Nf4),
        skipped: Vec::new(),
        sizes: ("2 GB".into(), "1 GB".into()),
    };
    let text =
        on_the_hub(CardLanguage::En).merged("m".into(), merge()).quantized("m-nf4".into(), four).render("");
    for words in [
        "A full model (nf4): ",
        "These values belong to base + adapter, not to the nf4 model.",
        "Computed in f32, greedy, at most 64 tokens, without selection. These are not replies of the nf4 model.",
        "The cost of nf4 was not measured.",
        "# pip install torch transformers accelerate bitsandbytes\n",
        "base_model_relation: quantized\n",
    ] {
        assert!(text.contains(words), "{words}\n{text}");
    }
}

#[test]
fn a_base_in_four_bits_is_loaded_as_it_was_trained() {
    let mut adapter = on_the_hub(CardLanguage::En);
    adapter.training.as_mut().unwrap().settings.quant = danlu_train::Quant::Nf4;
    let text = adapter.render("");
    assert!(text.contains("# pip install torch transformers peft accelerate bitsandbytes\n"), "{text}");
    assert!(text.contains("bnb_4bit_quant_type=\"nf4\", bnb_4bit_use_double_quant=True)\n"), "{text}");
    assert!(text.contains("from_pretrained(\"meta-llama/Llama-3.2-1B\", quantization_config=four_bit)\n"));
    // A base that is stored in 4 bits already contains its quantization settings.
    let mut stored = on_the_hub(CardLanguage::En);
    let quantization = danlu_model::Quantization::new(danlu_kernels::FourBitCode::Nf4);
    stored.training.as_mut().unwrap().stored = Some(quantization);
    let text = stored.render("");
    assert!(
        text.contains("| Base precision | nf4, as stored (QLoRA) |") && !text.contains("four_bit"),
        "{text}"
    );
    assert!(text.contains("# pip install torch transformers peft accelerate bitsandbytes\n"), "{text}");
    adapter.training.as_mut().unwrap().settings.quant_block_size = 128;
    assert!(
        adapter.render("").contains(
            "# trained on 4 bits in blocks of 128; BitsAndBytesConfig supports only blocks of 64\n"
        )
    );
}

#[test]
fn no_text_breaks_out_of_its_place() {
    let mut hostile = card(CardLanguage::ZhEn);
    hostile.base.name = "a\nlicense: \"x\" `b` | <c>".into();
    let run = hostile.training.as_mut().unwrap();
    run.settings.default_system = Some("```\n<!-- /notes -->\n<!-- danlu:end -->\n# out\n```".into());
    run.replies[0].after = "a | b\n<!-- notes -->\n\n| c |\n---\n</details>".into();
    let text = hostile.render("my notes");
    assert_eq!(notes_of(&text).unwrap(), "my notes");
    assert!(text.contains("| pal&#124;ace &#38; co.json |"), "{text}");
    assert!(
        text.contains(
            "a &#124; b<br>&#60;!-- notes --&#62;<br><br>&#124; c &#124;<br>---<br>&#60;/details&#62; |"
        ),
        "{text}"
    );
    assert!(text.contains("````text\n```\n<!-- /notes -->\n<!--danlu:end-->\n# out\n```\n````\n"), "{text}");
    assert!(
        text.contains("# huan&#60;huan&#62;\n") && text.contains("danlu chat your-name/huan-huan --base ")
    );
    assert!(!front(&text).contains("license"));
}

/// A card written by danlu 0.1. Only the notes have markers.
const OLD_CARD: &str = "---\nlibrary_name: peft\npipeline_tag: text-generation\ntags:\n- \"danlu\"\n---\n\n# huan\n\n\
    A LoRA adapter.\n\n## Limits and notes\n\n<!-- What stands between the two marks is written by hand and kept when \
    the card is written again. -->\n<!-- notes -->\n只会说古装剧里的话。\n<!-- /notes -->\n";

#[test]
fn only_danlus_part_and_keys_change() {
    let adapter = on_the_hub(CardLanguage::En);
    let first = adapter.render("mine");
    let edited = first.replace("- \"lora\"\n", "- \"lora\"\n- roleplay\n").replacen(
        "---\n",
        "---\nmetrics: [f1] # mine\n",
        1,
    ) + "\n## My own section\n\ntext\n";
    let edited = edited
        .replace("<!-- danlu:begin -->", "Above it.\n\n<!-- danlu:begin -->")
        .replace("## Data", "## The data");
    let again =
        Card { name: "other".into(), license: Some("mit".into()), ..adapter }.updated(&edited, None).unwrap();
    for kept in [
        "metrics: [f1] # mine\n",
        "- roleplay\n",
        "Above it.\n\n<!-- danlu:begin -->\n",
        "mine\n<!-- /notes -->\n\n## My own section\n\ntext\n",
    ] {
        assert!(again.contains(kept), "{kept}\n{again}");
    }
    for new in ["# other\n", "license: \"mit\"\n", "## Data\n"] {
        assert!(again.contains(new), "{new}\n{again}");
    }
    assert!(!again.contains("llama3.2\"\n") && !again.contains("## The data"), "{again}");
}

#[test]
fn texts_without_marks_stay_whole_above_the_card() {
    let folder = tempfile::tempdir().unwrap();
    let readme = folder.path().join(README_FILE);
    let hand_edited = OLD_CARD.replace("A LoRA adapter.", "A LoRA adapter of mine.");
    for text in
        [OLD_CARD, &hand_edited, "# By hand\n\n- x", "---\nlicense: mit # mine\nfoo: bar\n---\n# By hand\n"]
    {
        assert!(is_authors_alone(text).unwrap());
        fs::write(&readme, text).unwrap();
        let adapter = card(CardLanguage::En);
        adapter.write(folder.path(), None).unwrap();
        let once = fs::read_to_string(&readme).unwrap();
        for line in text.lines() {
            assert!(once.lines().any(|other| other == line), "{line}\n{once}");
        }
        assert!(
            once.find("danlu:begin").unwrap() > once.find(text.lines().last().unwrap()).unwrap(),
            "{once}"
        );
        assert_eq!(read_notes(folder.path()).unwrap(), notes_of(text));
        adapter.write(folder.path(), None).unwrap();
        assert_eq!(fs::read_to_string(&readme).unwrap(), once, "a second time changes nothing");
    }
}

#[test]
fn a_faulty_readme_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let readme = folder.path().join(README_FILE);
    for (text, words) in [
        (&b"# x\n<!-- danlu:begin -->\nmine\n"[..], "on line 2 has no `<!-- danlu:end -->` below it"),
        (b"---\ntags: x\n", "no closing `---`"),
        (b"caf\xe9\n", "byte 3 is not UTF-8"),
    ] {
        fs::write(&readme, text).unwrap();
        let error = card(CardLanguage::En).write(folder.path(), Some("notes")).unwrap_err();
        assert!(error.to_string().contains(words) && error.hint().is_some(), "{error}");
        assert_eq!(fs::read(&readme).unwrap(), text);
        assert!(!folder.path().join(CARD_FILE).exists());
    }
}

#[test]
fn a_push_removes_no_line_of_the_authors() {
    let ours = on_the_hub(CardLanguage::En);
    let here = card(CardLanguage::En).render("mine");
    let published = |there: Option<&str>| ours.to_publish(Some(&here), there).unwrap();
    let ToPublish::Ours(first) = published(None) else { panic!("nothing is there") };
    assert!(first.contains("danlu chat me/huan\n") && first.contains("mine"), "{first}");
    // The Hub's web form creates a `README.md` with a licence and no text.
    for there in [&first, "---\nlicense: mit\n---\n", ""] {
        assert_eq!(published(Some(there)), ToPublish::Ours(first.clone()));
    }
    let edited = format!("{first}\nMended on the page.\n");
    assert_eq!(published(Some(&edited)), ToPublish::Theirs(edited.clone()));
    let ToPublish::Theirs(text) = card(CardLanguage::En).to_publish(Some(&here), Some(&edited)).unwrap()
    else {
        panic!("its text stays")
    };
    assert!(text.contains("Mended on the page.") && text.contains("your-name/"), "{text}");
    assert_eq!(published(Some("# By hand\n")), ToPublish::Nothing);
    assert_eq!(published(Some("<!-- danlu:begin -->\nx\n")), ToPublish::Nothing);
    // A README without danlu's begin and end markers is published unchanged.
    let alone = ours.to_publish(Some("# By hand\nmore\n"), Some("# By hand\n")).unwrap();
    assert_eq!(alone, ToPublish::Ours("# By hand\nmore\n".into()));
}

#[test]
fn a_card_is_written_again_from_its_record_with_its_notes() {
    let folder = tempfile::tempdir().unwrap();
    write_notes(folder.path(), CardLanguage::Zh, "手写的话").unwrap();
    let first = card(CardLanguage::Zh);
    first.write(folder.path(), None).unwrap();
    let read = Card::read(folder.path()).unwrap().unwrap();
    assert_eq!(read, first);
    Card { language: CardLanguage::En, ..read }.write(folder.path(), None).unwrap();
    assert_eq!(read_notes(folder.path()).unwrap().unwrap(), "手写的话");
    let mut hostile = first.clone();
    hostile.base.hub_id = Some("a/b) <c>".into());
    hostile.write(folder.path(), None).unwrap();
    let error = Card::read(folder.path()).unwrap_err().to_string();
    assert!(error.ends_with("`base.hub_id` is \"a/b) <c>\", expected owner/name"), "{error}");
    // Values that are shown in a terminal or used in a command must not contain control characters or shell
    // syntax.
    let refused = |card: Card, words: &str| {
        card.write(folder.path(), None).unwrap();
        let error = Card::read(folder.path()).unwrap_err().to_string();
        assert!(error.contains(words) && !error.contains('\u{1b}'), "{error}");
    };
    let bad = Some("\u{1b}[31m; rm".to_owned());
    let base = || first.base.clone();
    refused(Card { revision: bad.clone(), ..first.clone() }, "`revision` is ");
    let base_at = BaseIdentity { revision: bad.clone(), ..base() };
    refused(Card { base: base_at.clone(), ..first.clone() }, "`base.revision` is ");
    refused(Card { trained_on: Some(base_at), ..first.clone() }, "`trained_on.revision` is ");
    refused(
        Card { base: BaseIdentity { sha256: bad.clone(), ..base() }, ..first.clone() },
        "`base.sha256` is ",
    );
    refused(Card { base: BaseIdentity { sample: bad, ..base() }, ..first.clone() }, "64 hexadecimal digits");
    fs::write(folder.path().join(CARD_FILE), "{\"name\": 1}").unwrap();
    let error = Card::read(folder.path()).unwrap_err();
    assert!(
        error.to_string().contains("card.json: line 1: found `1`, expected a text in double quotes"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("move the file away"));
}
