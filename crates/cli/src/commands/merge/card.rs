//! The model card of a merged model.

use std::path::Path;

use danlu_adapter::fidelity::Fidelity;
use danlu_adapter::merge::MergeReport;
use danlu_adapter::{BaseIdentity, LoraConfig};
use danlu_loader::{ModelFiles, folder_name, identify_base};
use danlu_model::{Extra, files};
use danlu_report::card::{self, Card, CardLanguage, Lora, Merge, PICTURE_FILE};

use crate::args::{CardArgs, NotesArgs};
use crate::diagnostic::Result;
use crate::lang::Lang;

/// Largest chart that is copied, in bytes.
const MAX_PICTURE_BYTES: u64 = 1 << 20;

/// The card of a merged model. The card is prepared before the merge, so that an error in the card appears
/// early.
///
/// The values come from the adapter's card or, without a card, from the adapter's configuration.
pub struct MergedCard {
    card: Card,
    notes: String,
    picture: Option<Vec<u8>>,
}

impl MergedCard {
    /// Reads the card of the adapter of `model`, and the notes.
    ///
    /// # Errors
    /// If a file of the card, or the notes, cannot be read.
    pub fn of(model: &ModelFiles, notes: &NotesArgs, lang: Lang) -> Result<Self> {
        let adapter = model.own_folder();
        let mut card = match Card::read(adapter)? {
            Some(card) => card,
            None => card_of_config(adapter, model.base().folder(), lang)?,
        };
        let picture = adapter.join(PICTURE_FILE);
        let picture = match card.has_picture && picture.is_file() {
            true => Some(files::read_bounded(&picture, MAX_PICTURE_BYTES)?),
            false => None,
        };
        card.has_picture = picture.is_some();
        let notes = match notes.read()? {
            Some(notes) => notes,
            None => card::read_notes(adapter)?.unwrap_or_default(),
        };
        Ok(Self { card, notes, picture })
    }

    /// Records that the base of the merge differs from the base of the training.
    ///
    /// The licence of the base in `folder` replaces the old licence. The training chart is removed.
    pub fn on_another_base(&mut self, base: BaseIdentity, folder: &Path) {
        self.card.license = card::license_of(folder);
        let trained = std::mem::replace(&mut self.card.base, base);
        self.card.trained_on = Some(trained);
        (self.card.has_picture, self.picture) = (false, None);
    }

    /// Overwrites the values for which a flag is given.
    pub fn apply(&mut self, args: &CardArgs, lang: Lang) {
        args.apply(&mut self.card, lang);
    }

    /// Returns the files of the card for the folder of the merged model.
    pub fn files(self, output: &Path, report: &MergeReport, fidelity: &Fidelity) -> Vec<Extra> {
        let card = self.card.merged(folder_name(output), Merge::of(report, fidelity));
        let picture = self.picture.map(|picture| (PICTURE_FILE, picture));
        card.files(&self.notes).into_iter().chain(picture).collect()
    }
}

/// Returns the card of an adapter without `card.json`. Such an adapter is a checkpoint, or another program
/// wrote it.
fn card_of_config(adapter: &Path, base: &Path, lang: Lang) -> Result<Card> {
    let config = LoraConfig::read(adapter)?;
    let named = config.base_model_name_or_path.clone().unwrap_or_default();
    let language = lang.pick(CardLanguage::Zh, CardLanguage::En);
    let card = Card::of_base(folder_name(adapter), language, identify_base(&named, base), base);
    Ok(Card { lora: Some(Lora::of(&config)), ..card })
}
