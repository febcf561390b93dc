//! The loss of a model on held-out records.

use danlu_model::{Batch, Decoder, LabeledSequence, LoraSource, Workspace};

use crate::diagnostic::Result;
use crate::printer::Printer;

/// Tokens per micro-batch, enough for efficient matrix multiplications.
pub const BATCH_TOKENS: usize = 1024;

/// Loss of a record: the sum over its trained tokens, and the number of these tokens.
pub type RecordLoss = (f64, usize);

/// Returns the loss of each record, in the order of the records.
///
/// # Errors
/// If a token is outside the vocabulary.
pub fn measure(
    decoder: &Decoder,
    lora: Option<&dyn LoraSource>,
    sequences: &[LabeledSequence],
    name: &str,
    printer: &Printer,
) -> Result<Vec<RecordLoss>> {
    let mut work = Workspace::new();
    let mut out = Vec::with_capacity(sequences.len());
    let mut rest = sequences;
    while !rest.is_empty() {
        let mut tokens = 0;
        let fits = rest.iter().take_while(|s| {
            tokens += s.ids.len();
            tokens <= BATCH_TOKENS
        });
        let (batch, left) = rest.split_at(fits.count().max(1));
        let losses = decoder.losses(&mut work, &Batch::for_model(decoder.config(), false, batch), lora)?;
        let mut losses = losses.into_iter().map(f64::from);
        out.extend(
            batch.iter().map(|s| (losses.by_ref().take(s.trained_tokens()).sum(), s.trained_tokens())),
        );
        rest = left;
        let (done, total) = (out.len(), sequences.len());
        printer.live(
            &printer.pick(format!("{name}：{done}/{total} 条"), format!("{name}: {done} of {total} records")),
        );
    }
    printer.clear_live();
    Ok(out)
}

/// Returns the mean loss per token over all records.
pub fn mean_loss(losses: &[RecordLoss]) -> f64 {
    let (sum, tokens) = losses.iter().fold((0.0, 0), |(s, n), (loss, tokens)| (s + loss, n + tokens));
    sum / tokens.max(1) as f64
}
