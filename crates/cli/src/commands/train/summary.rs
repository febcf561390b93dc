//! The summary of a run.

use std::path::Path;

use danlu_adapter::BaseIdentity;
use danlu_loader::folder_name;
use danlu_model::{LoraSource, Tokenizer, Workspace};
use danlu_report::{DataSummary, MemoryUse, Reply, RunSummary};
use danlu_train::Trainer;

use super::REPLY_TOKENS;
use crate::diagnostic::Result;
use crate::evaluation::replies;
use crate::interrupt;
use crate::printer::Printer;

/// Returns replies of the base and of the adapter to the same questions. After Ctrl-C, the remaining
/// questions are skipped.
pub fn before_and_after(
    trainer: &Trainer,
    tokenizer: &Tokenizer,
    questions: &[replies::Question],
    printer: &Printer,
) -> Result<Vec<Reply>> {
    let mut work = Workspace::new();
    let mut out = Vec::new();
    for (i, question) in questions.iter().enumerate() {
        if interrupt::requested() {
            break;
        }
        let total = questions.len();
        printer.live(&printer.pick(
            format!("训练前后的回答 {}/{total}", i + 1),
            format!("replies before and after {} of {total}", i + 1),
        ));
        let mut say = |lora| {
            replies::reply(trainer.decoder(), &mut work, lora, tokenizer, &question.messages, REPLY_TOKENS)
        };
        let before = say(None)?;
        let after = say(Some(trainer.adapter() as &dyn LoraSource))?;
        out.push(Reply { prompt: question.text().to_owned(), before, after });
    }
    printer.clear_live();
    Ok(out)
}

/// The data of a run, from which the summary is made.
pub struct RunFacts<'a> {
    pub output: &'a Path,
    pub trainer: &'a Trainer,
    /// Counts of the training data.
    pub data: DataSummary,
    pub replies: Vec<Reply>,
    /// Planned and measured memory, or `None` during the run.
    pub memory: Option<MemoryUse>,
    pub base: &'a BaseIdentity,
}

/// Summarizes a run for its report and its card.
pub fn summarize(facts: RunFacts<'_>) -> RunSummary {
    let RunFacts { output, trainer, data, replies, memory, base } = facts;
    let trainable_parameters = trainer.adapter().num_parameters() as u64;
    RunSummary {
        adapter_name: folder_name(output),
        base_name: base.shown().to_owned(),
        all_parameters: trainer.decoder().config().num_parameters() + trainable_parameters,
        trainable_parameters,
        settings: trainer.settings().clone(),
        data,
        steps: trainer.history().to_vec(),
        evaluations: trainer.state().evaluations(),
        replies,
        backend: trainer.decoder().backend().name(),
        memory,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}
