//! The head of a card that the Hub and its tools read.

use std::fmt::Write as _;

use super::Card;
use super::markdown::{line, literal};

/// What stands in it.
pub(super) struct Front<'a> {
    /// The base, by its name on the Hub only: the Hub links whatever stands there.
    pub base: Option<&'a str>,
    /// What the model is to the base.
    pub relation: &'a str,
    pub library: &'a str,
    pub license: Option<&'a str>,
    pub languages: &'a [String],
    pub datasets: &'a [String],
    pub tags: Vec<String>,
}

/// The head of an adapter's or a merged model's card.
pub(super) fn render(card: &Card) -> String {
    let (library, relation) = match (&card.merge, card.four_bit()) {
        (_, Some(_)) => ("transformers", "quantized"),
        (None, None) => ("peft", "adapter"),
        (Some(_), None) => ("transformers", "finetune"),
    };
    let mut tags = vec!["danlu"];
    if card.lora.is_some() {
        tags.push("lora");
    }
    if relation == "adapter" {
        tags.push("transformers");
    }
    if card.in_four_bits.is_some() {
        tags.extend(["bitsandbytes", "4-bit"]);
    }
    let tags = tags.into_iter().map(str::to_owned).collect();
    let base = card.base.hub_id.as_deref();
    let license = card.license.as_deref();
    let languages = card.training.as_ref().map_or(&[][..], |run| &run.data.languages);
    Front { base, relation, library, license, languages, datasets: &card.datasets, tags }.render()
}

impl Front<'_> {
    /// The YAML between two lines of dashes.
    pub fn render(&self) -> String {
        // A JSON string is a YAML string, whatever is in it.
        let quoted = |text: &str| literal(&line(text));
        let relation = self.relation;
        let mut out = String::from("---\n");
        if let Some(base) = self.base {
            let _ = writeln!(out, "base_model: {}\nbase_model_relation: {relation}", quoted(base));
        }
        let _ = writeln!(out, "library_name: {}\npipeline_tag: text-generation", self.library);
        if let Some(license) = self.license {
            let _ = writeln!(out, "license: {}", quoted(license));
        }
        let mut list = |key: &str, items: &[String]| {
            if !items.is_empty() {
                let _ = writeln!(out, "{key}:");
                for item in items {
                    let _ = writeln!(out, "- {}", quoted(item));
                }
            }
        };
        list("language", self.languages);
        list("datasets", self.datasets);
        // The Hub's own tag of a relation, which tools without its front matter look for.
        let tag = self.base.map(|base| format!("base_model:{relation}:{base}"));
        list("tags", &self.tags.iter().cloned().chain(tag).collect::<Vec<_>>());
        out + "---\n\n"
    }
}
