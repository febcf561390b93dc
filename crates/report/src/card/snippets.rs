//! How to run it: danlu, transformers, PEFT and vLLM, each complete as it stands.

use danlu_model::Quantization;
use danlu_model::shell_word;

use super::markdown::{fenced, line, literal, plain};
use super::{Card, Page};

/// Ranks that vLLM makes room for; it takes adapters up to the first without being told.
const VLLM_RANKS: [u32; 7] = [16, 32, 64, 128, 256, 320, 512];

/// Longest question that a snippet asks, in characters.
const LONGEST_QUESTION: usize = 60;

pub(super) fn render(page: &Page<'_>) -> String {
    let ask = Ask::of(page);
    let adapter = page.card.merge.is_none();
    let mut out = page.section("用法", "Use it") + &placeholders(page, &ask);
    let mut part = |title: &str, blocks: &[String]| {
        out += &format!("**{title}**\n\n{}", blocks.concat());
    };
    if ask.is_chat {
        part("danlu", &[danlu(page, &ask)]);
    }
    part("transformers", &[transformers(page.card, &ask)]);
    if adapter {
        part("PEFT", &[peft(page.card, &ask)]);
    }
    if !adapter || page.card.lora.as_ref().is_none_or(|lora| lora.r <= VLLM_RANKS[6]) {
        part("vLLM", &[serve(page.card, &ask), request(page.card, &ask)]);
    }
    out
}

/// What every snippet asks, and whom.
struct Ask {
    /// The model's repository.
    repository: String,
    /// Its branch, where it is not the main one.
    revision: Option<String>,
    /// Its last part.
    name: String,
    /// The base's, as far as it is known.
    base: String,
    /// The base's commit, as far as it is known.
    base_revision: Option<String>,
    /// Whether there is a chat template.
    is_chat: bool,
    question: String,
    /// As Python and JSON spell them.
    messages: String,
    most: usize,
}

impl Ask {
    fn of(page: &Page<'_>) -> Self {
        let card = page.card;
        let repository = card.repository.as_deref().map_or_else(|| card.name_on_hub(), line);
        let name = repository.rsplit('/').next().unwrap_or_default().to_owned();
        let run = card.training.as_ref();
        let fits = |prompt: &str| !prompt.is_empty() && prompt.chars().count() <= LONGEST_QUESTION;
        let asked =
            run.and_then(|run| run.replies.iter().map(|r| line(&r.prompt)).find(|prompt| fits(prompt)));
        let question = asked.unwrap_or_else(|| page.pick("你好，你是谁？", "Hello, who are you?").to_owned());
        let message =
            |role: &str, text: &str| format!("{{\"role\": \"{role}\", \"content\": {}}}", literal(text));
        let system = run.and_then(|run| run.settings.default_system.as_ref());
        let system = system.map(|text| message("system", text));
        let messages: Vec<String> = system.into_iter().chain([message("user", &question)]).collect();
        Self {
            name,
            base: line(card.base.shown()),
            base_revision: card.base.revision.as_deref().filter(|_| card.base.hub_id.is_some()).map(line),
            is_chat: run.is_none_or(|run| run.template_sha256.is_some()),
            messages: format!("[{}]", messages.join(", ")),
            question,
            most: run.map_or(128, |run| run.reply_tokens),
            revision: card.revision.as_deref().map(line),
            repository,
        }
    }

    /// The repository as Python's loaders take it: with its branch as a further argument.
    fn in_python(&self) -> String {
        literal(&self.repository) + &revision_argument(self.revision.as_ref())
    }

    /// The base in the same way, with its commit.
    fn base_in_python(&self) -> String {
        literal(&self.base) + &revision_argument(self.base_revision.as_ref())
    }
}

/// A repository as danlu takes it, with its branch.
pub(super) fn at_branch(repository: &str, revision: Option<&String>) -> String {
    revision.map_or_else(|| repository.to_owned(), |revision| format!("{repository}@{revision}"))
}

/// A revision as `from_pretrained` takes it, behind the name.
pub(super) fn revision_argument(revision: Option<&String>) -> String {
    revision.map_or_else(String::new, |revision| format!(", revision={}", literal(revision)))
}

/// A revision as vLLM takes it, behind the name.
fn revision_flag(revision: Option<&String>) -> String {
    revision.map_or_else(String::new, |revision| format!(" --revision {}", shell_word(revision)))
}

/// Names that are to be replaced before a snippet works.
fn placeholders(page: &Page<'_>, ask: &Ask) -> String {
    let mut out = String::new();
    if page.card.repository.is_none() {
        let repository = plain(&ask.repository);
        out += &page.pick(
            format!("`your-name` 换成仓库主人的名字（{repository}），或换成本地文件夹。"),
            format!("Put the owner of this repository for `your-name` (in {repository}), or a local folder for the whole. "),
        );
    }
    if page.card.merge.is_none() && page.card.base.hub_id.is_none() {
        let base = plain(&ask.base);
        out += &page.pick(
            format!("基座“{base}”训练时是本地文件夹：换成它所在的位置。"),
            format!("The base \"{base}\" was a local folder in training: put the place where you have it."),
        );
    }
    if out.is_empty() { out } else { format!("{}\n\n", out.trim_end()) }
}

fn danlu(page: &Page<'_>, ask: &Ask) -> String {
    let needs_base = page.card.merge.is_none() && page.card.base.hub_id.is_none();
    let base = if needs_base { format!(" --base {}", shell_word(&ask.base)) } else { String::new() };
    let model = at_branch(&ask.repository, ask.revision.as_ref());
    fenced(&format!("danlu chat {}{base}", shell_word(&model)), "sh")
}

fn transformers(card: &Card, ask: &Ask) -> String {
    let repository = ask.in_python();
    let (imports, quantized) = loading(card);
    let load = match &card.merge {
        Some(_) => format!("model = AutoModelForCausalLM.from_pretrained({repository})\n"),
        None => format!(
            "model = AutoModelForCausalLM.from_pretrained({}{quantized})\nmodel.load_adapter({}{})\nmodel.eval()\n",
            ask.base_in_python(),
            literal(&ask.repository),
            ask.revision.as_ref().map_or_else(String::new, |revision| format!(
                ", adapter_kwargs={{\"revision\": {}}}",
                literal(revision)
            ))
        ),
    };
    let needs = packages(card);
    python(&format!("{needs}{imports}\ntokenizer = AutoTokenizer.from_pretrained({repository})\n{load}"), ask)
}

fn peft(card: &Card, ask: &Ask) -> String {
    let (repository, base) = (ask.in_python(), ask.base_in_python());
    let (imports, quantized) = loading(card);
    let needs = packages(card);
    let head = format!(
        "{needs}from peft import PeftModel\n{imports}\ntokenizer = AutoTokenizer.from_pretrained({repository})\n\
         base = AutoModelForCausalLM.from_pretrained({base}{quantized})\n\
         model = PeftModel.from_pretrained(base, {repository})\n"
    );
    python(&head, ask)
}

/// What Python needs for it, as a comment with the command.
fn packages(card: &Card) -> String {
    let trained = card.training.as_ref().and_then(|run| run.over());
    let is_four_bit = match &card.merge {
        Some(_) => card.four_bit().is_some(),
        None => trained.is_some(),
    };
    let peft = if card.merge.is_none() { " peft" } else { "" };
    let four_bit = if is_four_bit { " accelerate bitsandbytes" } else { "" };
    format!("# pip install torch transformers{peft}{four_bit}\n")
}

/// The imports, and what puts a base into the 4 bits that the adapter was trained over.
fn loading(card: &Card) -> (String, String) {
    let plain = "from transformers import AutoModelForCausalLM, AutoTokenizer\n".to_owned();
    let over = card
        .training
        .as_ref()
        .filter(|_| card.merge.is_none())
        .and_then(|run| run.settings.quantization().map(|q| (q, run)));
    let Some((quantization, run)) = over else { return (plain, String::new()) };
    let double = if run.settings.no_double_quant { "False" } else { "True" };
    let blocks = match quantization.block_size {
        Quantization::BLOCK_SIZE => String::new(),
        size => format!(
            "# trained over 4 bits in blocks of {size}; BitsAndBytesConfig knows blocks of {} only\n",
            Quantization::BLOCK_SIZE
        ),
    };
    let imports = format!(
        "from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig\n\n{blocks}\
         four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=\"{}\", bnb_4bit_use_double_quant={double})\n",
        quantization.quant_type
    );
    (imports, ", quantization_config=four_bit".to_owned())
}

/// A program that loads as `head` does and prints one answer, greedy like the replies of the card.
fn python(head: &str, ask: &Ask) -> String {
    let inputs = match ask.is_chat {
        true => format!(
            "messages = {}\ninputs = tokenizer.apply_chat_template(\n    messages, add_generation_prompt=True, \
             return_dict=True, return_tensors=\"pt\"\n).to(model.device)\n",
            ask.messages
        ),
        false => format!(
            "inputs = tokenizer({}, return_tensors=\"pt\").to(model.device)\n",
            literal(&ask.question)
        ),
    };
    let text = format!(
        "{head}\n{inputs}output = model.generate(**inputs, max_new_tokens={}, do_sample=False)\n\
         print(tokenizer.decode(output[0, inputs[\"input_ids\"].shape[1]:], skip_special_tokens=True))",
        ask.most
    );
    fenced(&text, "python")
}

fn serve(card: &Card, ask: &Ask) -> String {
    let repository = shell_word(&ask.repository);
    let text = match &card.merge {
        Some(_) => format!("vllm serve {repository}{}", revision_flag(ask.revision.as_ref())),
        None => {
            let rank = card.lora.as_ref().map_or(0, |lora| lora.r);
            let room = VLLM_RANKS.into_iter().find(|room| *room >= rank).unwrap_or(VLLM_RANKS[0]);
            let room = if room > VLLM_RANKS[0] { format!(" --max-lora-rank {room}") } else { String::new() };
            let module = match &ask.revision {
                // vLLM fetches an adapter's main branch only: of another it is given the folder.
                Some(revision) => format!(
                    "{}=\"$(hf download {repository} --revision {} --quiet)\"",
                    shell_word(&ask.name),
                    shell_word(revision)
                ),
                None => shell_word(&format!("{}={}", ask.name, ask.repository)),
            };
            let base = shell_word(&ask.base) + &revision_flag(ask.base_revision.as_ref());
            format!("vllm serve {base} --enable-lora{room} --lora-modules {module}")
        }
    };
    fenced(&text, "sh")
}

fn request(card: &Card, ask: &Ask) -> String {
    // A whole model goes by its repository, an adapter by what `--lora-modules` calls it.
    let model = if card.merge.is_some() { &ask.repository } else { &ask.name };
    let (route, asked) = match ask.is_chat {
        true => ("chat/completions", format!("\"messages\": {}", ask.messages)),
        false => ("completions", format!("\"prompt\": {}", literal(&ask.question))),
    };
    let (model, most) = (literal(model), ask.most);
    let body = format!("{{\"model\": {model}, {asked}, \"max_tokens\": {most}, \"temperature\": 0}}");
    let body = shell_word(&body);
    fenced(
        &format!("curl http://localhost:8000/v1/{route} -H 'Content-Type: application/json' \\\n  -d {body}"),
        "sh",
    )
}
