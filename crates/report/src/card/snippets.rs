//! Code snippets for danlu, transformers, PEFT and vLLM.

use danlu_model::Quantization;
use danlu_model::shell_word;
use danlu_train::Precision;

use super::markdown::{fenced, line, literal, plain};
use super::{Card, Page};

/// Values that vLLM accepts for `--max-lora-rank`. The first value is the default.
const VLLM_RANKS: [u32; 7] = [16, 32, 64, 128, 256, 320, 512];

/// Maximum number of characters of a question in a snippet.
const MAX_QUESTION_CHARS: usize = 60;

pub(super) fn render(page: &Page<'_>) -> String {
    let values = SnippetValues::of(page);
    let adapter = page.card.merge.is_none();
    let mut out = page.section("用法", "Use it") + &placeholders(page, &values);
    let mut part = |title: &str, blocks: &[String]| {
        out += &format!("**{title}**\n\n{}", blocks.concat());
    };
    if values.is_chat {
        part("danlu", &[danlu(page, &values)]);
    }
    part("transformers", &[transformers(page.card, &values)]);
    if adapter {
        part("PEFT", &[peft(page.card, &values)]);
    }
    if !adapter || page.card.lora.as_ref().is_none_or(|lora| lora.r <= VLLM_RANKS[6]) {
        part("vLLM", &[serve(page.card, &values), request(page.card, &values)]);
    }
    out
}

/// Names, and a question, that are inserted into the snippets.
struct SnippetValues {
    /// Repository of the model.
    repository: String,
    /// Branch of the repository, unless it is `main`.
    revision: Option<String>,
    /// Name of the repository without its owner.
    name: String,
    /// Repository of the base, or name of the base's folder.
    base: String,
    /// Commit of the base, if known.
    base_revision: Option<String>,
    /// Whether the model has a chat template.
    is_chat: bool,
    question: String,
    /// The conversation as a literal that is valid in Python and JSON.
    messages: String,
    most: usize,
}

impl SnippetValues {
    fn of(page: &Page<'_>) -> Self {
        let card = page.card;
        let repository = card.repository.as_deref().map_or_else(|| card.name_on_hub(), line);
        let name = repository.rsplit('/').next().unwrap_or_default().to_owned();
        let run = card.training.as_ref();
        let fits = |prompt: &str| !prompt.is_empty() && prompt.chars().count() <= MAX_QUESTION_CHARS;
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

    /// Returns the arguments of Python's loaders for the repository and its branch.
    fn in_python(&self) -> String {
        literal(&self.repository) + &revision_argument(self.revision.as_ref())
    }

    /// Returns the arguments of Python's loaders for the base and its commit.
    fn base_in_python(&self) -> String {
        literal(&self.base) + &revision_argument(self.base_revision.as_ref())
    }
}

pub(super) fn at_branch(repository: &str, revision: Option<&String>) -> String {
    revision.map_or_else(|| repository.to_owned(), |revision| format!("{repository}@{revision}"))
}

/// Returns the `revision` argument of `from_pretrained`.
pub(super) fn revision_argument(revision: Option<&String>) -> String {
    revision.map_or_else(String::new, |revision| format!(", revision={}", literal(revision)))
}

/// Returns the `--revision` flag of vLLM.
fn revision_flag(revision: Option<&String>) -> String {
    revision.map_or_else(String::new, |revision| format!(" --revision {}", shell_word(revision)))
}

/// Returns sentences about the names that the reader must replace. The text is empty if there are no such
/// names.
fn placeholders(page: &Page<'_>, values: &SnippetValues) -> String {
    let mut out = String::new();
    if page.card.repository.is_none() {
        let repository = plain(&values.repository);
        out += &page.pick(
            format!("把 {repository} 里的 `your-name` 换成仓库所有者的名字，或把整个名字换成本地文件夹。"),
            format!("Replace `your-name` in {repository} with the owner of the repository, or the whole name with a local folder. "),
        );
    }
    if page.card.merge.is_none() && page.card.base.hub_id.is_none() {
        let base = plain(&values.base);
        out += &page.pick(
            format!("基座“{base}”在训练时是本地文件夹，请换成它在你机器上的位置。"),
            format!("The base \"{base}\" was a local folder during training: replace it with the path of your copy."),
        );
    }
    if out.is_empty() { out } else { format!("{}\n\n", out.trim_end()) }
}

fn danlu(page: &Page<'_>, values: &SnippetValues) -> String {
    let needs_base = page.card.merge.is_none() && page.card.base.hub_id.is_none();
    let base = if needs_base { format!(" --base {}", shell_word(&values.base)) } else { String::new() };
    let model = at_branch(&values.repository, values.revision.as_ref());
    fenced(&format!("danlu chat {}{base}", shell_word(&model)), "sh")
}

/// Returns the `dtype` argument of `from_pretrained`. The replies of the card were computed in this type, and
/// transformers would load the type of the files instead. A quantized base has its own argument.
fn dtype_argument(card: &Card, quantized: &str) -> String {
    let Some(run) = card.training.as_ref().filter(|_| quantized.is_empty()) else { return String::new() };
    let name = match run.settings.dtype {
        Precision::F32 => "float32",
        Precision::Bf16 => "bfloat16",
        Precision::F16 => "float16",
    };
    format!(", dtype=\"{name}\"")
}

fn transformers(card: &Card, values: &SnippetValues) -> String {
    let repository = values.in_python();
    let (imports, quantized) = loading(card);
    let dtype = dtype_argument(card, &quantized);
    let load = match &card.merge {
        Some(_) => format!("model = AutoModelForCausalLM.from_pretrained({repository}{dtype})\n"),
        None => format!(
            "model = AutoModelForCausalLM.from_pretrained({}{dtype}{quantized})\nmodel.load_adapter({}{})\nmodel.eval()\n",
            values.base_in_python(),
            literal(&values.repository),
            values.revision.as_ref().map_or_else(String::new, |revision| format!(
                ", adapter_kwargs={{\"revision\": {}}}",
                literal(revision)
            ))
        ),
    };
    let needs = packages(card);
    python(
        &format!("{needs}{imports}\ntokenizer = AutoTokenizer.from_pretrained({repository})\n{load}"),
        values,
    )
}

fn peft(card: &Card, values: &SnippetValues) -> String {
    let (repository, base) = (values.in_python(), values.base_in_python());
    let (imports, quantized) = loading(card);
    let dtype = dtype_argument(card, &quantized);
    let needs = packages(card);
    let head = format!(
        "{needs}from peft import PeftModel\n{imports}\ntokenizer = AutoTokenizer.from_pretrained({repository})\n\
         base = AutoModelForCausalLM.from_pretrained({base}{dtype}{quantized})\n\
         model = PeftModel.from_pretrained(base, {repository})\n"
    );
    python(&head, values)
}

/// Returns a Python comment with the command that installs the required packages.
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

/// Returns the Python imports, and the argument that quantizes the base in the same way as in training. The
/// argument is empty if training did not quantize the base.
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
            "# trained on 4 bits in blocks of {size}; BitsAndBytesConfig supports only blocks of {}\n",
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

/// Returns a Python program that starts with `head` and prints one greedy reply. The replies in the card are
/// greedy too.
fn python(head: &str, values: &SnippetValues) -> String {
    let inputs = match values.is_chat {
        true => format!(
            "messages = {}\ninputs = tokenizer.apply_chat_template(\n    messages, add_generation_prompt=True, \
             return_dict=True, return_tensors=\"pt\"\n).to(model.device)\n",
            values.messages
        ),
        false => format!(
            "inputs = tokenizer({}, return_tensors=\"pt\").to(model.device)\n",
            literal(&values.question)
        ),
    };
    let text = format!(
        "{head}\n{inputs}output = model.generate(**inputs, max_new_tokens={}, do_sample=False)\n\
         print(tokenizer.decode(output[0, inputs[\"input_ids\"].shape[1]:], skip_special_tokens=True))",
        values.most
    );
    fenced(&text, "python")
}

fn serve(card: &Card, values: &SnippetValues) -> String {
    let repository = shell_word(&values.repository);
    let text = match &card.merge {
        Some(_) => format!("vllm serve {repository}{}", revision_flag(values.revision.as_ref())),
        None => {
            let rank = card.lora.as_ref().map_or(0, |lora| lora.r);
            let room = VLLM_RANKS.into_iter().find(|room| *room >= rank).unwrap_or(VLLM_RANKS[0]);
            let room = if room > VLLM_RANKS[0] { format!(" --max-lora-rank {room}") } else { String::new() };
            let module = match &values.revision {
                // vLLM can only fetch the main branch of an adapter. For another branch, the snippet
                // downloads the folder first.
                Some(revision) => format!(
                    "{}=\"$(hf download {repository} --revision {} --quiet)\"",
                    shell_word(&values.name),
                    shell_word(revision)
                ),
                None => shell_word(&format!("{}={}", values.name, values.repository)),
            };
            let base = shell_word(&values.base) + &revision_flag(values.base_revision.as_ref());
            format!("vllm serve {base} --enable-lora{room} --lora-modules {module}")
        }
    };
    fenced(&text, "sh")
}

fn request(card: &Card, values: &SnippetValues) -> String {
    // vLLM serves a full model with the name of its repository, and an adapter with its name in
    // `--lora-modules`.
    let model = if card.merge.is_some() { &values.repository } else { &values.name };
    let (route, asked) = match values.is_chat {
        true => ("chat/completions", format!("\"messages\": {}", values.messages)),
        false => ("completions", format!("\"prompt\": {}", literal(&values.question))),
    };
    let (model, most) = (literal(model), values.most);
    let body = format!("{{\"model\": {model}, {asked}, \"max_tokens\": {most}, \"temperature\": 0}}");
    let body = shell_word(&body);
    fenced(
        &format!("curl http://localhost:8000/v1/{route} -H 'Content-Type: application/json' \\\n  -d {body}"),
        "sh",
    )
}
