//! Converts records to JSON objects of a format, which is the inverse of reading.

use danlu_model::Message;
use serde_json::{Value, json};

use crate::{
    Format,
    fields::Object,
    record::{BadRecord, Conversation, Mismatch, Record, RecordContent, RecordFault, TurnLoss},
};

/// Converts a record to a JSON object of `format`. Reading this object returns the same content, except that
/// an answer inside a prompt may become masked.
///
/// # Errors
/// If the format cannot express the record.
pub fn to_json(record: &Record, format: Format) -> Result<Object, Box<BadRecord>> {
    let object = match (&record.content, format) {
        (RecordContent::Text(text), Format::Text) => Ok(json!({ "text": text })),
        (RecordContent::Text(_), _) => Err(("a document without roles", "records of the text format")),
        (RecordContent::Chat(_), Format::Text) => Err(("a conversation", "documents without roles")),
        (RecordContent::Chat(chat), Format::Messages) => {
            Ok(with_tools(json!({ "messages": turns(chat, 0, "role", "content") }), chat))
        }
        (RecordContent::Chat(chat), Format::ShareGpt) => {
            Ok(with_tools(json!({ "conversations": turns(chat, 0, "from", "value") }), chat))
        }
        (RecordContent::Chat(chat), Format::PromptCompletion) => {
            Ok(with_tools(prompt_completion(chat), chat))
        }
        (RecordContent::Chat(chat), Format::Alpaca) => alpaca(chat)
            .ok_or(("turns that `history` cannot hold", "pairs of question and answer, without masks")),
    };
    match object {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => unreachable!("every format is an object"),
        Err((found, expected)) => {
            let expected = format!("{expected}, to write the {format} format");
            Err(Box::new(Mismatch::new(RecordFault::Shape, found, expected).at(record.source.clone())))
        }
    }
}

/// Returns the most common format that can express all of `records`. Returns `None` if there are no records,
/// or if the records contain both documents and conversations.
pub fn common_format(records: &[Record]) -> Option<Format> {
    let chats: Vec<&Conversation> = records
        .iter()
        .filter_map(|record| match &record.content {
            RecordContent::Chat(chat) => Some(chat),
            RecordContent::Text(_) => None,
        })
        .collect();
    match chats.len() {
        _ if records.is_empty() => None,
        0 => Some(Format::Text),
        count if count < records.len() => None,
        _ if chats.iter().all(|chat| first_answer(chat) == Some(0)) => Some(Format::Messages),
        _ if chats.iter().all(|chat| first_answer(chat).is_some()) => Some(Format::PromptCompletion),
        _ => Some(Format::Messages),
    }
}

/// Returns the index of the first message after the last untrained answer, or 0 if all answers are trained.
/// Returns `None` if a trained answer precedes an untrained one, or if a message is masked or partly trained.
fn first_answer(chat: &Conversation) -> Option<usize> {
    let is_answer = |index: &usize| chat.messages[*index].role == "assistant";
    let plain = |index: usize, loss: &TurnLoss| {
        matches!(loss, TurnLoss::Context) || (is_answer(&index) && matches!(loss, TurnLoss::Whole))
    };
    if !chat.loss.iter().enumerate().all(|(index, loss)| plain(index, loss)) {
        return None;
    }
    let context = |index: &usize| is_answer(index) && chat.loss[*index] == TurnLoss::Context;
    let Some(last_context) = (0..chat.loss.len()).rev().find(context) else { return Some(0) };
    let mixed = (0..last_context).any(|index| chat.loss[index] == TurnLoss::Whole);
    (!mixed).then_some(last_context + 1)
}

fn with_tools(mut record: Value, chat: &Conversation) -> Value {
    if !chat.tools.is_empty() {
        record["tools"] = chat.tools.clone().into();
    }
    record
}

/// Returns the turns that start at index `start` or later. A turn gets a `train` key if its loss differs from
/// the default of its role.
fn turns(chat: &Conversation, start: usize, role: &str, content: &str) -> Vec<Value> {
    let names: &[(&str, &str)] =
        if role == "from" { &[("user", "human"), ("assistant", "gpt")] } else { &[] };
    let turn = |(message, loss): (&Message, &TurnLoss)| {
        let name =
            names.iter().find(|(role, _)| *role == message.role).map_or(message.role.as_str(), |(_, n)| n);
        let mut turn = json!({ role: name, content: message.content });
        for (key, value) in &message.extra {
            let key = if key == "content" { content } else { key.as_str() };
            turn[key] = value.clone();
        }
        match (message.role == "assistant", loss) {
            (true, TurnLoss::Whole) | (false, TurnLoss::Context) => {}
            (_, TurnLoss::Parts(parts)) => turn["train_detail"] = detail(&message.content, parts),
            (_, loss) => turn["train"] = loss.is_trained().into(),
        }
        turn
    };
    chat.messages.iter().zip(&chat.loss).skip(start).map(turn).collect()
}

/// Converts byte ranges to axolotl's character offsets, in which the end is inclusive.
fn detail(content: &str, parts: &[std::ops::Range<usize>]) -> Value {
    let chars = |at: usize| content[..at].chars().count();
    let part = |part: &std::ops::Range<usize>| json!({ "begin_offset": chars(part.start), "end_offset": chars(part.end) - 1, "train": true });
    parts.iter().map(part).collect()
}

fn prompt_completion(chat: &Conversation) -> Value {
    if let [question, answer] = &chat.messages[..]
        && (question.role == "user" && answer.role == "assistant" && first_answer(chat) == Some(0))
        && (question.extra.is_empty() && answer.extra.is_empty())
    {
        return json!({ "prompt": question.content, "completion": answer.content });
    }
    let answer = chat.loss.iter().position(TurnLoss::is_trained).unwrap_or(0);
    let at = first_answer(chat).filter(|at| *at > 0).unwrap_or(answer);
    let mut prompt = turns(chat, 0, "role", "content");
    let completion = prompt.split_off(at);
    // Inside a prompt, an answer has no loss by default, so the key `train` is not needed.
    for (turn, loss) in prompt.iter_mut().zip(&chat.loss) {
        if let (Some(turn), TurnLoss::Context) = (turn.as_object_mut(), loss) {
            turn.remove("train");
        }
    }
    json!({ "prompt": prompt, "completion": completion })
}

fn alpaca(chat: &Conversation) -> Option<Value> {
    let system = chat.system();
    let turns = &chat.messages[usize::from(system.is_some())..];
    let pairs: Vec<&[Message]> = turns.chunks(2).collect();
    let is_pair = |pair: &&[Message]| matches!(pair, [q, a] if q.role == "user" && a.role == "assistant");
    let is_plain = chat.tools.is_empty() && chat.messages.iter().all(|message| message.extra.is_empty());
    if !is_plain || first_answer(chat) != Some(0) || !pairs.iter().all(is_pair) {
        return None;
    }
    let (last, history) = pairs.split_last()?;
    let mut object = json!({ "instruction": last[0].content, "input": "", "output": last[1].content });
    if let Some(system) = system {
        object["system"] = system.into();
    }
    if !history.is_empty() {
        object["history"] = history.iter().map(|pair| json!([pair[0].content, pair[1].content])).collect();
    }
    Some(object)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{ReadOptions, read_from};

    fn read(text: &str) -> Vec<Record> {
        let dataset = read_from(text.as_bytes(), Path::new("a"), &ReadOptions::default()).unwrap();
        assert_eq!(dataset.bad, []);
        dataset.records
    }

    fn again(records: &[Record], format: Format) -> Vec<RecordContent> {
        let object = |record| Value::Object(to_json(record, format).unwrap()).to_string();
        let lines: Vec<String> = records.iter().map(object).collect();
        read(&lines.join("\n")).into_iter().map(|record| record.content).collect()
    }

    const ALPACA: &str =
        r#"{"instruction": "问\n\"一\"", "output": "答", "system": "你是甄嬛。", "history": [["a", "b"]]}"#;

    #[test]
    fn a_record_written_in_any_format_reads_back_equal() {
        let records = read(ALPACA);
        for format in [Format::Alpaca, Format::Messages, Format::ShareGpt] {
            assert_eq!(again(&records, format), [records[0].content.clone()], "{format}");
        }
        let pair = read(r#"{"prompt": "e", "completion": "f"}"#);
        assert_eq!(again(&pair, Format::PromptCompletion), [pair[0].content.clone()]);
        let text = read(r#"{"text": " a\n"}"#);
        assert_eq!(again(&text, Format::Text), [text[0].content.clone()]);
    }

    #[test]
    fn masks_survive_in_messages() {
        let masked = r#"{"messages": [{"role": "user", "content": "q", "train": true}, {"role": "assistant", "content": "a", "train": false},
            {"role": "assistant", "content": "一二", "train_detail": [{"begin_offset": 1, "end_offset": 1, "train": true}]}]}"#;
        let records = read(&masked.replace('\n', " "));
        assert_eq!(common_format(&records), Some(Format::Messages));
        for format in [Format::Messages, Format::ShareGpt] {
            assert_eq!(again(&records, format), [records[0].content.clone()], "{format}");
        }
        assert!(to_json(&records[0], Format::Alpaca).is_err());
    }

    #[test]
    fn tools_and_calls_survive_in_messages() {
        let record = r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": null, "tool_calls": [{"id": "1"}]},
            {"role": "tool", "content": "42", "tool_call_id": "1"}, {"role": "assistant", "content": "b"}], "tools": [{"name": "f"}]}"#;
        let records = read(&record.replace('\n', " "));
        for format in [Format::Messages, Format::ShareGpt] {
            assert_eq!(again(&records, format), [records[0].content.clone()], "{format}");
        }
        assert!(to_json(&records[0], Format::Alpaca).is_err());
    }

    #[test]
    fn a_format_that_cannot_hold_a_record_names_it() {
        let error = to_json(&read(ALPACA)[0], Format::Text).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a:1 (record 1): found a conversation, expected documents without roles, to write the text format"
        );
    }
}
