//! The front matter of a card, which is YAML for the Hub and its tools.
//!
//! The front matter is edited as lines of text instead of being parsed and printed. This preserves the order
//! of the keys, the comments, and the author's keys.

use std::collections::HashSet;
use std::ops::Range;

use super::Card;
use super::markdown::{line, literal};
use super::readme::ReadmeFault;

/// The keys that danlu writes.
const OWN_KEYS: [&str; 8] = [
    "base_model",
    "base_model_relation",
    "library_name",
    "pipeline_tag",
    "license",
    "language",
    "datasets",
    "tags",
];

/// Prefix of tags that name a base. The Hub reads these tags if there is no key `base_model`.
const BASE_TAG: &str = "base_model:";

/// One of danlu's keys, with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    key: &'static str,
    value: Value,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    /// A fixed word that needs no quotes in YAML.
    Word(&'static str),
    /// Any text.
    Text(String),
    List(Vec<String>),
}

/// Returns the entries of a card. A key without a value is omitted, so that an author's value for this key is
/// not removed.
pub(super) fn entries(card: &Card) -> Vec<Entry> {
    let (library, relation) = match (&card.merge, card.four_bit()) {
        (_, Some(_)) => ("transformers", "quantized"),
        (None, None) => ("peft", "adapter"),
        (Some(_), None) => ("transformers", "finetune"),
    };
    let base = card.base.hub_id.as_deref();
    let mut out = Vec::new();
    let mut add = |key, value| out.push(Entry { key, value });
    // The key is written only for a base on the Hub, because the Hub turns any text of this key into a link.
    if let Some(base) = base {
        add("base_model", Value::Text(base.to_owned()));
        add("base_model_relation", Value::Word(relation));
    }
    add("library_name", Value::Word(library));
    add("pipeline_tag", Value::Word("text-generation"));
    if let Some(license) = &card.license {
        add("license", Value::Text(license.clone()));
    }
    let languages = card.training.as_ref().map_or(&[][..], |run| &run.data.languages);
    for (key, items) in [("language", languages), ("datasets", &card.datasets)] {
        if !items.is_empty() {
            add(key, Value::List(items.to_vec()));
        }
    }
    add("tags", Value::List(tags(card, relation)));
    out
}

fn tags(card: &Card, relation: &str) -> Vec<String> {
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
    let base = card.base.hub_id.iter().map(|base| format!("{BASE_TAG}{relation}:{base}"));
    tags.into_iter().map(str::to_owned).chain(base).collect()
}

pub(super) fn render(own: &[Entry]) -> String {
    format!("---\n{}---\n", own.iter().map(|entry| entry.value.lines(entry.key)).collect::<String>())
}

/// Returns the lines of the front matter `front` with the entries `own`. Existing entries of these keys are
/// replaced, and missing entries are added.
///
/// # Errors
/// If one of danlu's keys appears twice.
pub(super) fn updated(front: &str, own: &[Entry], line_end: &str) -> Result<String, ReadmeFault> {
    let lines: Vec<&str> = front.split_inclusive('\n').collect();
    let found = find_entries(&lines);
    refuse_doubled_keys(&found)?;
    let (mut out, mut at) = (String::new(), 0);
    for (key, range) in &found {
        let Some(entry) = own.iter().find(|entry| entry.key == key) else { continue };
        let (there, comments) = read_value(&lines[range.clone()]);
        let value = entry.value.clone().with_authors_tags(entry.key, &there);
        if value.items() == there {
            continue;
        }
        out.extend(lines[at..range.start].iter().copied());
        out.extend(comments.into_iter().map(|comment| format!("{comment}{line_end}")));
        out += &value.lines(entry.key).replace('\n', line_end);
        at = range.end;
    }
    out.extend(lines[at..].iter().copied());
    for entry in own.iter().filter(|entry| found.iter().all(|(key, _)| key != entry.key)) {
        out += &entry.value.lines(entry.key).replace('\n', line_end);
    }
    Ok(out)
}

/// Returns the lines of a front matter that contain the author's keys.
pub(super) fn foreign_lines(front: &str) -> Vec<&str> {
    let lines: Vec<&str> = front.split_inclusive('\n').collect();
    let own: HashSet<usize> = find_entries(&lines)
        .into_iter()
        .filter(|(key, _)| OWN_KEYS.contains(&key.as_str()))
        .flat_map(|(_, range)| range)
        .collect();
    let foreign = lines.into_iter().enumerate().filter(|(i, _)| !own.contains(i));
    foreign.map(|(_, line)| line.trim()).collect()
}

impl Value {
    fn items(&self) -> Vec<String> {
        match self {
            Self::Word(word) => vec![(*word).to_owned()],
            Self::Text(text) => vec![line(text)],
            Self::List(items) => items.iter().map(|item| line(item)).collect(),
        }
    }

    /// Returns the lines of the entry. JSON strings are used for texts, because every JSON string is also a
    /// YAML string.
    fn lines(&self, key: &str) -> String {
        match self {
            Self::Word(word) => format!("{key}: {word}\n"),
            Self::Text(text) => format!("{key}: {}\n", literal(&line(text))),
            Self::List(items) => {
                let items = items.iter().map(|item| format!("- {}\n", literal(&line(item))));
                format!("{key}:\n{}", items.collect::<String>())
            }
        }
    }

    /// Adds the author's tags if this is the list of tags. Returns any other value unchanged.
    fn with_authors_tags(self, key: &str, there: &[String]) -> Self {
        let Self::List(ours) = &self else { return self };
        if key != "tags" {
            return self;
        }
        let is_stale = |tag: &&String| tag.starts_with(BASE_TAG) && !ours.contains(tag);
        if ours.iter().all(|tag| there.contains(tag)) && !there.iter().any(|tag| is_stale(&tag)) {
            return Self::List(there.to_vec());
        }
        let theirs = there.iter().filter(|tag| !ours.contains(tag) && !is_stale(tag));
        Self::List(ours.iter().chain(theirs).cloned().collect())
    }
}

/// Returns each key and the range of its lines, including continuation lines.
fn find_entries(lines: &[&str]) -> Vec<(String, Range<usize>)> {
    let mut found: Vec<(String, Range<usize>)> = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            // A comment belongs to an entry only if another line of the entry follows.
            continue;
        }
        let continues = line.starts_with([' ', '\t', '-']);
        match (continues, trimmed.split_once(':')) {
            (false, Some((key, _))) => found.push((unquoted(key).to_owned(), i..i + 1)),
            _ => {
                if let Some((_, range)) = found.last_mut() {
                    range.end = i + 1;
                }
            }
        }
    }
    found
}

fn refuse_doubled_keys(found: &[(String, Range<usize>)]) -> Result<(), ReadmeFault> {
    for own in OWN_KEYS {
        let mut at = found.iter().filter(|(key, _)| key == own).map(|(_, range)| range.start + 2);
        if let (Some(first), Some(second)) = (at.next(), at.next()) {
            let reason = format!("the front matter has `{own}` on lines {first} and {second}, expected once");
            return Err(ReadmeFault::FrontMatter(reason));
        }
    }
    Ok(())
}

/// Returns the items and the comments of an entry. A scalar is returned as one item.
fn read_value(lines: &[&str]) -> (Vec<String>, Vec<String>) {
    let (mut items, mut comments) = (Vec::new(), Vec::new());
    for (i, line) in lines.iter().enumerate() {
        let text = match i {
            0 => line.split_once(':').map_or("", |(_, value)| value),
            _ => line,
        };
        let (value, comment) = split_comment(text.trim());
        comments.extend(comment.map(str::to_owned));
        match value.strip_prefix('[').and_then(|list| list.strip_suffix(']')) {
            Some(list) => items.extend(list.split(',').map(|item| unquoted(item).to_owned())),
            None if value.is_empty() => {}
            None if i == 0 => items.push(unquoted(value).to_owned()),
            None => items.push(unquoted(value.strip_prefix('-').unwrap_or(value)).to_owned()),
        }
    }
    (items, comments)
}

fn split_comment(text: &str) -> (&str, Option<&str>) {
    if text.starts_with('#') {
        return ("", Some(text));
    }
    let item = text.strip_prefix('-').map_or(text, str::trim_start);
    let from = match item.chars().next().filter(|c| matches!(c, '"' | '\'')) {
        // In a quoted value, a comment can only start after the closing quote.
        Some(quote) => text.len() - item.len() + item[1..].find(quote).map_or(item.len(), |end| end + 2),
        None => 0,
    };
    match text[from..].find(" #") {
        Some(at) => (text[..from + at].trim_end(), Some(text[from + at..].trim_start())),
        None => (text, None),
    }
}

fn unquoted(text: &str) -> &str {
    text.trim().trim_matches(['"', '\''])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Vec<Entry> {
        let tags = ["danlu", "base_model:adapter:lab/base"].map(str::to_owned).to_vec();
        vec![
            Entry { key: "base_model", value: Value::Text("lab/base".into()) },
            Entry { key: "library_name", value: Value::Word("peft") },
            Entry { key: "tags", value: Value::List(tags) },
        ]
    }

    #[test]
    fn foreign_keys_comments_and_order_stay() {
        let front = "# my card\nmetrics:\n- f1 # mine\nlibrary_name: transformers # was whole\nbase_model: lab/base\n\
                     model-index:\n  - name: x\n\n# the end\n";
        let expected = "# my card\nmetrics:\n- f1 # mine\n# was whole\nlibrary_name: peft\nbase_model: lab/base\n\
                        model-index:\n  - name: x\n\n# the end\n\
                        tags:\n- \"danlu\"\n- \"base_model:adapter:lab/base\"\n";
        let once = updated(front, &own(), "\n").unwrap();
        assert_eq!(once, expected);
        assert_eq!(updated(&once, &own(), "\n").unwrap(), expected);
        let foreign: Vec<&str> = foreign_lines(front).into_iter().filter(|line| !line.is_empty()).collect();
        assert_eq!(
            foreign,
            ["# my card", "metrics:", "- f1 # mine", "model-index:", "- name: x", "# the end"]
        );
    }

    #[test]
    fn the_authors_tags_stay_and_another_bases_go() {
        for tags in [
            "tags: [roleplay, danlu, 'base_model:adapter:lab/old']\n",
            "tags:\n  - roleplay\n  - base_model:adapter:lab/old\n",
        ] {
            let front = updated(tags, &own(), "\n").unwrap();
            assert!(
                front.starts_with("tags:\n- \"danlu\"\n- \"base_model:adapter:lab/base\"\n- \"roleplay\"\n"),
                "{front}"
            );
        }
        let kept = "tags: [roleplay, danlu, base_model:adapter:lab/base] # mine\n";
        assert!(updated(kept, &own(), "\n").unwrap().starts_with(kept));
    }

    #[test]
    fn a_key_that_stands_twice_is_refused_with_both_lines() {
        let fault = updated("tags: a\nx: 1\ntags: b\n", &own(), "\n").unwrap_err();
        assert_eq!(fault.to_string(), "the front matter has `tags` on lines 2 and 4, expected once");
        assert!(updated("x: 1\nx: 2\n", &own(), "\n").is_ok(), "the author's keys are the author's");
    }

    #[test]
    fn quotes_hide_what_looks_like_a_comment() {
        assert_eq!(read_value(&["license: \"a #b\" # c\n"]), (vec!["a #b".into()], vec!["# c".into()]));
        assert_eq!(read_value(&["tags:\n", "# all\n", "- x # y\n"]).0, ["x"]);
        assert_eq!(read_value(&["tags:\n", "# all\n", "- x # y\n"]).1, ["# all", "# y"]);
    }
}
