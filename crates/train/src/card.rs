//! The adapter's `README.md`: a model card as the Hugging Face hub reads it.

use std::fmt::Write as _;

use crate::figures::{duration, thousands};
use crate::memory::display;
use crate::summary::value_text;
use crate::{DataSummary, MemoryUse, Reply, RunSummary};

/// The card, complete.
///
/// It names the base by `base_name` only: a path of the machine the run was made on says nothing to a
/// reader and tells him too much. Replies stand in fences that no text inside can close.
pub fn render(run: &RunSummary) -> String {
    let name = line(&run.adapter_name);
    let base = line(&run.base_name);
    let sections =
        [front_matter(run), about(run, &name, &base), usage(&name, &base), results(run), samples(run)];
    let tail = [data(&run.data), training(run)];
    sections.concat() + &tail.concat()
}

/// The last component of a path, or of a hub name with its owner kept: what a card may show of a base.
///
/// ```
/// assert_eq!(danlu_train::card::public_name("/home/me/models/base-8m/"), "base-8m");
/// assert_eq!(danlu_train::card::public_name("meta-llama/Llama-3.2-1B"), "meta-llama/Llama-3.2-1B");
/// assert_eq!(danlu_train::card::public_name(r"C:\models\base"), "base");
/// ```
pub fn public_name(path_or_hub_name: &str) -> &str {
    let trimmed = path_or_hub_name.trim_end_matches(['/', '\\']);
    let mut parts = trimmed.split('/');
    let hub_part = |part: &str| {
        let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        part.chars().all(known) && part.chars().any(|c| c.is_ascii_alphanumeric()) && !part.starts_with('.')
    };
    let is_hub_name = trimmed == path_or_hub_name
        && matches!((parts.next(), parts.next(), parts.next()), (Some(owner), Some(name), None) if hub_part(owner) && hub_part(name))
        && !std::path::Path::new(trimmed).exists();
    if is_hub_name { trimmed } else { trimmed.rsplit(['/', '\\']).next().unwrap_or(trimmed) }
}

fn front_matter(run: &RunSummary) -> String {
    // A JSON string is a YAML string, whatever is in it.
    let quoted = |text: &str| serde_json::Value::from(line(text)).to_string();
    let mut out = String::from("---\n");
    let _ = writeln!(out, "base_model: {}", quoted(&run.base_name));
    out += "library_name: peft\npipeline_tag: text-generation\ntags:\n";
    let _ = writeln!(out, "- {}", quoted(&format!("base_model:adapter:{}", run.base_name)));
    out += "- lora\n- danlu\n- transformers\n---\n\n";
    out
}

fn about(run: &RunSummary, name: &str, base: &str) -> String {
    let rank = run.settings.lora_r;
    let (trainable, percent) = (thousands(run.trainable_parameters), run.trainable_percent());
    format!(
        "# {name}\n\nA LoRA adapter of rank {rank} for `{base}`, trained with [danlu](https://github.com/danlu-rs/danlu) \
         {}: {trainable} trained parameters, {percent:.3}% of all. The base itself is unchanged and not included.\n\n",
        line(&run.version)
    )
}

fn usage(name: &str, base: &str) -> String {
    // Names go into Python as string literals; JSON's are a subset of Python's.
    let literal = |text: &str| serde_json::Value::from(text).to_string();
    let (adapter, base) = (literal(name), literal(base));
    format!(
        "## Use it\n\nThe tokenizer and the chat template it was trained with lie beside the adapter.\n\n\
         ```sh\ndanlu chat {}\n```\n\n\
         ```python\n\
         from peft import PeftModel\n\
         from transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
         tokenizer = AutoTokenizer.from_pretrained({adapter})\n\
         base = AutoModelForCausalLM.from_pretrained({base})\n\
         model = PeftModel.from_pretrained(base, {adapter})\n\n\
         messages = [{{\"role\": \"user\", \"content\": \"...\"}}]\n\
         inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors=\"pt\")\n\
         output = model.generate(**inputs, max_new_tokens=128)\n\
         print(tokenizer.decode(output[0, inputs[\"input_ids\"].shape[1]:], skip_special_tokens=True))\n\
         ```\n\n",
        shell_word(name)
    )
}

fn results(run: &RunSummary) -> String {
    let mut out = String::new();
    if let Some((before, after)) = run.held_out() {
        out += "## Result\n\n| | base | base + adapter |\n|---|---:|---:|\n";
        let _ = writeln!(out, "| held-out loss (nats per token) | {before:.4} | {after:.4} |");
        let _ = writeln!(out, "| held-out perplexity | {:.2} | {:.2} |", before.exp(), after.exp());
        let _ =
            writeln!(out, "\nMeasured on {} records that were not trained on.\n", run.data.held_out_records);
    }
    out
}

fn samples(run: &RunSummary) -> String {
    if run.replies.is_empty() {
        return String::new();
    }
    let one = |reply: &Reply| {
        let said = [&reply.prompt, &reply.before, &reply.after].map(|text| fenced(text));
        format!("Question:\n\n{}\nBase:\n\n{}\nBase and adapter:\n\n{}\n", said[0], said[1], said[2])
    };
    format!("## Replies\n\n{}", run.replies.iter().map(one).collect::<Vec<_>>().join("---\n\n"))
}

fn data(data: &DataSummary) -> String {
    let mut out = String::from("## Data\n\n");
    if !data.files.is_empty() {
        out += "| file | format | records | SHA-256 |\n|---|---|---:|---|\n";
        for file in &data.files {
            let (name, format) = (cell(&file.name), cell(&file.format));
            let _ = writeln!(out, "| {name} | {format} | {} | `{}` |", file.records, cell(&file.sha256));
        }
        out.push('\n');
    }
    let _ = write!(
        out,
        "{} records were trained on and {} held out: {} tokens, of which {} carry a loss; the longest record has {}.",
        thousands(data.training_records),
        thousands(data.held_out_records),
        thousands(data.tokens),
        thousands(data.trained_tokens),
        data.longest
    );
    for (count, what) in [
        (data.shortened, "shortened to fit"),
        (data.dropped, "left out because nothing of their answer fits"),
        (data.skipped, "left out because they could not be read"),
    ] {
        if count > 0 {
            let _ = write!(out, " {} were {what}.", thousands(count));
        }
    }
    out + "\n\n"
}

fn training(run: &RunSummary) -> String {
    let mut out = String::from("## Training\n\n");
    if let (Some((first, last)), Some(speed)) = (run.train_loss(), run.tokens_per_second()) {
        let (steps, time) = (thousands(run.steps.len() as u64), duration(run.seconds()));
        let _ = writeln!(
            out,
            "{steps} steps in {time} ({speed:.0} tokens/s, {}); training loss {first:.3} at first, {last:.3} at last.\n",
            line(&run.backend)
        );
    }
    if let Some(MemoryUse { plan, peak: Some(peak) }) = &run.memory {
        let (peak, plan) = (display(*peak), display(plan.total));
        let _ = writeln!(out, "Peak memory {peak}; {plan} were planned.\n");
    }
    out += "| setting | value |\n|---|---|\n";
    for (name, value) in run.settings.entries() {
        let _ = writeln!(out, "| `{name}` | {} |", cell(&value_text(&value, "not set")));
    }
    out
}

/// Text on one line.
fn line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Text inside a table.
fn cell(text: &str) -> String {
    line(text).replace('\\', "\\\\").replace('|', "\\|").replace('<', "&lt;")
}

/// Text in a fence longer than any run of backticks in it.
fn fenced(text: &str) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    format!("{fence}text\n{}\n{fence}\n", text.trim())
}

/// A name as one word of a shell command.
fn shell_word(name: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    if !name.is_empty() && name.chars().all(plain) {
        name.to_owned()
    } else {
        format!("'{}'", name.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::summary::tests::sample;

    #[test]
    fn the_front_matter_is_what_the_hub_asks_for() {
        let card = render(&sample());
        let front = card.strip_prefix("---\n").unwrap().split("\n---\n").next().unwrap();
        assert!(
            front.contains("base_model: \"base-8m\"\nlibrary_name: peft\npipeline_tag: text-generation\n")
        );
        assert!(front.contains("- lora\n- danlu"));
    }

    #[test]
    fn figures_and_settings_are_told() {
        let card = render(&sample());
        assert!(card.contains("| held-out loss (nats per token) | 4.4000 | 1.3000 |"), "{card}");
        assert!(card.contains("| `lora_r` | 8 |") && card.contains("| `max_steps` | not set |"));
        assert!(card.contains("290 records were trained on and 20 held out"));
        assert!(!card.contains("were shortened"));
    }

    #[test]
    fn no_text_breaks_out_of_its_place() {
        let card = render(&sample());
        assert!(card.contains("| pal\\|ace & co.json |"));
        assert!(card.contains("````text\n```\n臣妾参见皇上 \"&\"\n````"), "{card}");
        assert!(card.contains("danlu chat 'huan<huan>'"));
        let run = RunSummary { base_name: "a\nlicense: \"x\"".into(), ..sample() };
        assert!(render(&run).starts_with("---\nbase_model: \"a license: \\\"x\\\"\"\n"));
    }
}
