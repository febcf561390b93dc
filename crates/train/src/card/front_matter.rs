//! The head of a card that the Hub and its tools read.

use std::fmt::Write as _;

use super::Card;
use super::markdown::{line, literal};

/// The YAML between two lines of dashes.
///
/// `base_model` takes names of the Hub only: the Hub links whatever stands there.
pub(super) fn render(card: &Card) -> String {
    // A JSON string is a YAML string, whatever is in it.
    let quoted = |text: &str| literal(&line(text));
    let (library, relation) = match &card.merge {
        None => ("peft", "adapter"),
        Some(merge) if merge.quantized.is_some() => ("transformers", "quantized"),
        Some(_) => ("transformers", "finetune"),
    };
    let mut out = String::from("---\n");
    if let Some(base) = &card.base.hub_id {
        let _ = writeln!(out, "base_model: {}\nbase_model_relation: {relation}", quoted(base));
    }
    let _ = writeln!(out, "library_name: {library}\npipeline_tag: text-generation");
    if let Some(license) = &card.license {
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
    list("language", card.training.as_ref().map_or(&[], |run| &run.data.languages));
    list("datasets", &card.datasets);
    let mut tags: Vec<String> = ["danlu", "lora"].map(str::to_owned).into();
    // The Hub's own tags of a relation, which tools without its front matter look for.
    tags.extend(card.base.hub_id.iter().map(|base| format!("base_model:{relation}:{base}")));
    if card.merge.is_none() {
        tags.push("transformers".to_owned());
    }
    list("tags", &tags);
    out + "---\n\n"
}
