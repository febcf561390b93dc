//! The model card of a finished run.

use std::path::Path;

use danlu_adapter::{BaseIdentity, LoraConfig, TrainingIdentity};
use danlu_model::files;
use danlu_report::card::{self, Card, CardLanguage, Lora, PICTURE_FILE, Training};
use danlu_report::{ReportError, RunSummary, page};

use super::{REPLY_TOKENS, RunConfig, init_adapter};
use crate::commands::doctor;
use crate::diagnostic::Result;
use crate::printer::Printer;
use crate::terminal_text;

/// Writes the card of a finished run, and its chart.
///
/// Values that the author changed in an earlier card are preserved. If the markers in `README.md` are missing
/// or damaged, the file is not changed, and the run still succeeds.
///
/// # Errors
/// If the folder cannot be read or written.
pub fn write_for_run(
    run: &RunConfig,
    summary: &RunSummary,
    lora: &LoraConfig,
    tokens: &TrainingIdentity,
    base: BaseIdentity,
    earlier: Option<&Card>,
    printer: &Printer,
) -> Result<(), ReportError> {
    let lang = printer.lang;
    let template = tokens.fingerprint().template_sha256.clone();
    let mut training = Training::of(summary, template, REPLY_TOKENS, doctor::processor());
    let recorded = earlier.and_then(|card| card.training.as_ref()?.memory);
    // A resumed run measures the memory only after the resume, and may have no step left. If the peak in the
    // earlier card is larger, this peak is therefore recorded.
    if recorded > training.memory {
        training.memory = recorded;
    }
    training.stored = tokens.quantization().filter(|_| run.settings.quantization().is_none());
    training.init_adapter = run.files.init_adapter.as_deref().map(init_adapter::shown_name);
    let language = lang.pick(CardLanguage::Zh, CardLanguage::En);
    let mut card = Card {
        lora: Some(Lora::of(lora)),
        training: Some(training),
        version: summary.version.clone(),
        ..Card::of_base(summary.adapter_name.clone(), language, base, &run.files.base)
    };
    match earlier {
        None => run.card.args.apply(&mut card, lang),
        Some(earlier) => {
            card.repository.clone_from(&earlier.repository);
            card.language = earlier.language;
            card.license = earlier.license.clone().or(card.license);
            // In earlier versions, `danlu card --base-id` wrote the Hub name only to the card.
            if let (None, Some(id)) = (&card.base.hub_id, &earlier.base.hub_id) {
                card.base = card.base.with_hub_id(id);
            }
            card.datasets.clone_from(&earlier.datasets);
            run.card.given.apply(&mut card, lang);
        }
    }
    for dataset in run.files.datasets() {
        let id = dataset.repo().id().to_owned();
        if !card.datasets.contains(&id) {
            card.datasets.push(id);
        }
    }
    let first = card.language.order().first().copied().unwrap_or_default();
    let picture = page::picture(summary, first);
    card.has_picture = !picture.is_empty();
    if card.has_picture {
        files::write_atomic(&run.files.output.join(PICTURE_FILE), picture.as_bytes())?;
    }
    write_card(&card, &run.files.output, printer)
}

/// Writes `card.json`. Also writes the card into `README.md`, if that file has markers or no text.
fn write_card(card: &Card, folder: &Path, printer: &Printer) -> Result<(), ReportError> {
    card.write_record(folder)?;
    let output = terminal_text::shell_path(folder);
    let has_no_marks = card::read_readme(folder).and_then(|readme| {
        card::is_authors_alone(&readme.unwrap_or_default())
            .map_err(|fault| ReportError::Readme { path: folder.join(card::README_FILE), fault })
    });
    let written = match has_no_marks {
        Ok(true) => {
            printer.status_bilingual(
                &format!("README.md 没有 danlu 的标记，保持原样（`danlu card {output}` 把卡片写在它下面）"),
                &format!("README.md has no danlu marks and stays as it is (`danlu card {output}` adds the card below its text)"),
            );
            return Ok(());
        }
        Ok(false) => card.write(folder, None),
        Err(error) => Err(error),
    };
    match written {
        Err(error @ ReportError::Readme { .. }) => {
            warn_of_readme(&error, &output, printer);
            Ok(())
        }
        written => written,
    }
}

/// Warns that the card was not written, and names the command that writes the card.
fn warn_of_readme(error: &ReportError, output: &str, printer: &Printer) {
    let hint = error.hint().unwrap_or_default();
    printer.warn(&printer.pick(
        format!("没有写模型卡片：{error}（{hint}，然后 `danlu card {output}`）"),
        format!("the model card is not written: {error} ({hint}, then `danlu card {output}`)"),
    ));
}
