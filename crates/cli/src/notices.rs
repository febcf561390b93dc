//! Formats notices and progress of the loader in the two languages.

use std::path::Path;

use danlu_adapter::AdapterNote;
use danlu_hub::{Pulled, RepoName};
use danlu_kernels::FourBitCode;
use danlu_loader::Notice;
use danlu_model::{Quantization, QuantizeProgress};

use crate::printer::Printer;
use crate::terminal_text;

/// Number of hexadecimal digits of a SHA-256 that are shown.
const SHOWN_DIGITS: usize = 12;

/// Prints a notice. The notice is a warning if results may differ, and a status line otherwise.
pub fn print(notice: &Notice, printer: &Printer) {
    let (zh, en) = words(notice);
    match notice {
        Notice::QuantizedAsTrained { .. }
        | Notice::QuantizedAsNamed { .. }
        | Notice::AdapterTokens { .. }
        | Notice::AdapterInSubfolder { .. }
        | Notice::Adapter { .. }
        | Notice::IgnoredDropout { .. } => {
            printer.status_bilingual(&zh, &en);
        }
        _ => printer.warn(&printer.pick(zh, en)),
    }
}

fn words(notice: &Notice) -> (String, String) {
    match notice {
        Notice::IncompleteCache { name, files, reason } => {
            let files: Vec<String> = files.iter().map(|file| format!("`{file}`")).collect();
            let (zh, en) = (files.join("、"), files.join(", "));
            (
                format!(
                    "缓存中的 `{name}` 没有 {zh}，也无法查询 Hub 上有没有（{reason}）：将不使用这些文件，结果可能因此不同"
                ),
                format!(
                    "`{name}` is in the cache without {en}, and the Hub cannot be reached ({reason}): results may differ without these files"
                ),
            )
        }
        Notice::QuantizedAsTrained { name, code } => (
            format!("{name} 是在 {code} 基座上训练的：基座同样转为 4 位（`--quant none` 可保持原样）"),
            format!(
                "{name} was trained on a base in {code}: the base is quantized too (`--quant none` loads it unquantized)"
            ),
        ),
        Notice::QuantizedAsNamed { named, base } => {
            let base = base.display();
            (
                format!(
                    "适配器的基座是 4 位量化的仓库 `{named}`：以 `{base}` 为原始权重，按 bitsandbytes 的默认设置（nf4、双重量化）重新量化"
                ),
                format!(
                    "the adapter names the 4-bit repository `{named}`: using `{base}` as its original, quantized with bitsandbytes' defaults (nf4, double quantization)"
                ),
            )
        }
        Notice::OtherQuantization { name, base, trained, stored } => {
            let (base, trained, stored) = (base.display(), as_flags(*trained), as_flags(*stored));
            (
                format!("{name} 是在 {trained} 的基座上训练的，而 `{base}` 是 {stored}"),
                format!("{name} was trained on a base in {trained}, but `{base}` is in {stored}"),
            )
        }
        Notice::TrainedUnquantized { name, base, code } => {
            let base = base.display();
            (
                format!("{name} 是在 16 位或更高精度的基座上训练的，而 `{base}` 是 {code}：结果会有出入"),
                format!(
                    "{name} was trained on a base in 16 bits or more, but `{base}` is in {code}: results differ from those of training"
                ),
            )
        }
        Notice::OtherBase { .. } => other_base(notice),
        Notice::AdapterTokens { differences } => (
            format!("使用适配器自带的分词器与模板：{}", differences.join("；")),
            format!("using the adapter's own tokenizer and template: {}", differences.join("; ")),
        ),
        Notice::AdapterInSubfolder { folder } => (
            format!("使用子文件夹里的适配器：`{}`", folder.display()),
            format!("using the adapter in the subfolder `{}`", folder.display()),
        ),
        Notice::Adapter { name, note } => adapter_note(name, note),
        Notice::IgnoredDropout { file, dropout } => ignored_dropout(file, *dropout),
        Notice::TokenMismatch { summary, differences } => {
            let text = format!("{summary}: {}", differences.join("; "));
            (text.clone(), text)
        }
    }
}

fn ignored_dropout(file: &Path, dropout: f32) -> (String, String) {
    let file = file.display();
    (
        format!("`{file}` 要求以 {dropout} 的概率随机跳过合并（BPE dropout）：已关闭，否则训练无法重现"),
        format!(
            "`{file}` asks to skip merges at random (BPE dropout {dropout}): danlu skips none, so that a run can be repeated"
        ),
    )
}

fn adapter_note(name: &str, note: &AdapterNote) -> (String, String) {
    match note {
        AdapterNote::OtherForm { file } => {
            let file = file.file_name().unwrap_or_default().to_string_lossy();
            (
                format!("从 `{file}` 读取 {name} 的张量"),
                format!("reading the tensors of {name} from `{file}`"),
            )
        }
        AdapterNote::RenamedTensors { count, example, wrapper } => {
            let by = wrapper.map(|wrapper| format!(" ({wrapper})")).unwrap_or_default();
            (
                format!("{name} 有 {count} 个张量的名称与 PEFT 不同{by}，已换成 PEFT 的名称：如 `{example}`"),
                format!(
                    "{name} has {count} tensors with names other than PEFT's{by}, which are read under PEFT's: such as `{example}`"
                ),
            )
        }
        AdapterNote::OwnTensors { tensors, vocab_sizes } => own_tensors(name, tensors, *vocab_sizes),
        AdapterNote::UnusedNames { key, names } => {
            let names: Vec<String> = names.iter().take(8).map(|name| format!("`{name}`")).collect();
            (
                format!("{name} 的 `{key}` 里有基座没有的名称，已忽略：{}", names.join("、")),
                format!(
                    "`{key}` of {name} has names that match nothing in the base and are ignored: {}",
                    names.join(", ")
                ),
            )
        }
    }
}

fn own_tensors(name: &str, tensors: &[String], vocab_sizes: Option<[usize; 2]>) -> (String, String) {
    let shown: Vec<String> = tensors.iter().take(4).map(|name| format!("`{name}`")).collect();
    let more = tensors.len() - shown.len();
    let (rest_zh, rest) = match more {
        0 => Default::default(),
        more => (format!("等 {} 个", tensors.len()), format!(" and {more} more")),
    };
    let (size_zh, size) = match vocab_sizes {
        Some([base, own]) => {
            (format!("，词表由 {base} 变为 {own}"), format!(", for {own} tokens instead of {base}"))
        }
        None => Default::default(),
    };
    (
        format!("{name} 自带并替换基座的张量：{}{rest_zh}{size_zh}", shown.join("、")),
        format!("{name} brings tensors that replace those of the base: {}{rest}{size}", shown.join(", ")),
    )
}

fn other_base(notice: &Notice) -> (String, String) {
    let Notice::OtherBase { name, base, trained, found, trained_on } = notice else {
        return Default::default();
    };
    let base = base.display();
    let [trained, found] = [trained, found].map(|hash| hash.get(..SHOWN_DIGITS).unwrap_or(hash));
    let (hint_zh, hint) = match trained_on {
        Some(id) => {
            let id = terminal_text::shell_word(id);
            (
                format!("；训练时的基座：`--base {id}`"),
                format!("; `--base {id}` is the base it was trained on"),
            )
        }
        None => Default::default(),
    };
    (
        format!(
            "`{base}` 不是 {name} 训练时的基座：权重或 config.json 不同（SHA-256 训练时 {trained}…，现在 {found}…），结果不可靠{hint_zh}"
        ),
        format!(
            "`{base}` is not the base that {name} was trained on: weights or config.json differ (SHA-256 {trained}… in training, {found}… here), so results are unreliable{hint}"
        ),
    )
}

/// Formats a quantization as flags of the command line.
fn as_flags(Quantization { quant_type, block_size, double_quant }: Quantization) -> String {
    let scales = if double_quant { "" } else { " --no-double-quant" };
    format!("`{quant_type} --quant-block-size {block_size}{scales}`")
}

/// Shows the progress of a quantization.
pub fn show_quantizing(code: FourBitCode, progress: QuantizeProgress, printer: &Printer) {
    let (done, total) = (terminal_text::bytes(progress.bytes), terminal_text::bytes(progress.total));
    printer.live(
        &printer.pick(
            format!("转为 {code}：{done} / {total}"),
            format!("quantizing to {code}: {done} of {total}"),
        ),
    );
}

/// Prints how much a transfer downloaded.
pub fn print_fetched(name: &RepoName, pulled: &Pulled, seconds: f64, printer: &Printer) {
    let (size, fetched, commit) =
        (terminal_text::bytes(pulled.bytes), terminal_text::bytes(pulled.fetched), &pulled.commit[..8]);
    let time = terminal_text::duration(seconds);
    if pulled.fetched == 0 {
        printer.status_bilingual(
            &format!("{name}（{commit}）已在缓存中，无需下载：{size}"),
            &format!("{name} ({commit}) is in the cache already: {size}, nothing to fetch"),
        );
        return;
    }
    printer.status_bilingual(
        &format!("已下载 {name}（{commit}）：共 {size}，本次传输 {fetched}，用时 {time}，校验通过"),
        &format!("fetched {name} ({commit}): {size}, {fetched} of it now, in {time}; checksums match"),
    );
}
