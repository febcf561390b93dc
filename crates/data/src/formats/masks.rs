//! Reads the keys with which other trainers exclude messages from the loss.

use std::ops::Range;

use danlu_model::Message;
use serde_json::Value;

use crate::{
    fields::{self, Object, type_mismatch},
    record::{Mismatch, RecordFault, TurnLoss},
};

/// Keys that decide whether a message has a loss. The value true or 1 includes the message, except for the
/// keys in [`INVERTED`]. The value null is ignored. `train_detail` lists the trained parts of the message's
/// text.
pub(crate) const TURN_KEYS: [&str; 8] =
    ["train", "train_detail", "training_detail", "loss", "loss_mask", "trainable", "weight", "mask_loss"];

/// Keys of a record whose value is a mask: a list with one value per message, or one value per answer. False
/// or 0 excludes a message from the loss.
pub(crate) const LIST_KEYS: [&str; 7] =
    ["train", "loss", "loss_mask", "trainable", "weight", "weights", "train_mask"];

/// Keys for which the value true or 1 excludes the message.
const INVERTED: [&str; 1] = ["mask_loss"];

/// Reads the [`TURN_KEYS`] of a message with the text `content`. Returns `None` if no key has a value.
pub(super) fn of_turn(turn: &Object, content: &str) -> Result<Option<TurnLoss>, Mismatch> {
    let mut decided: Option<(&str, TurnLoss)> = None;
    for key in TURN_KEYS {
        let loss = match turn.get(key) {
            None | Some(Value::Null) => continue,
            Some(Value::Array(parts)) if key.ends_with("detail") => parts_of(parts, content, key)?,
            Some(other) if key.ends_with("detail") => {
                return Err(type_mismatch(other, key, "a list of parts"));
            }
            Some(value) => match flag(value, key)? != INVERTED.contains(&key) {
                true => TurnLoss::Whole,
                false => TurnLoss::Masked,
            },
        };
        // A key that ends with `detail` takes precedence over the other keys.
        match &decided {
            Some((first, earlier))
                if *earlier != loss && !key.ends_with("detail") && !first.ends_with("detail") =>
            {
                let found = format!("`{first}` and `{key}`, which contradict each other");
                return Err(Mismatch::new(RecordFault::Conversation, found, "one of them"));
            }
            Some((first, _)) if first.ends_with("detail") => {}
            _ => decided = Some((key, loss)),
        }
    }
    Ok(decided.map(|(_, loss)| loss))
}

/// Reads a mask value: a boolean, 0 or 1.
fn flag(value: &Value, key: &str) -> Result<bool, Mismatch> {
    match value {
        Value::Bool(flag) => Ok(*flag),
        Value::Number(number) if number.as_f64() == Some(0.0) => Ok(false),
        Value::Number(number) if number.as_f64() == Some(1.0) => Ok(true),
        Value::Number(_) => {
            let found = format!("{} in `{key}`", fields::describe(value));
            let expected = "0 or 1; weights between them are not supported";
            Err(Mismatch::new(RecordFault::Unsupported, found, expected))
        }
        other => Err(type_mismatch(other, key, "true, false, 0 or 1")),
    }
}

/// Reads axolotl's `train_detail`: objects with `begin_offset`, an inclusive `end_offset` and `train`. The
/// offsets count characters.
fn parts_of(parts: &[Value], content: &str, key: &str) -> Result<TurnLoss, Mismatch> {
    let starts: Vec<usize> = content.char_indices().map(|(at, _)| at).chain([content.len()]).collect();
    let mut trained: Vec<Range<usize>> = Vec::new();
    for part in parts {
        let shape = || type_mismatch(part, key, "objects with `begin_offset`, `end_offset` and `train`");
        let offset =
            |name: &str| part.get(name).and_then(Value::as_u64).and_then(|at| usize::try_from(at).ok());
        let (Some(begin), Some(end)) = (offset("begin_offset"), offset("end_offset")) else {
            return Err(shape());
        };
        let is_trained = flag(part.get("train").ok_or_else(shape)?, "train")?;
        if begin > end || end + 1 >= starts.len() {
            let found = format!("the part {begin}..={end} in `{key}`");
            let expected = format!("a part of the text's {} characters", starts.len() - 1);
            return Err(Mismatch::new(RecordFault::Shape, found, expected));
        }
        if is_trained {
            trained.push(starts[begin]..starts[end + 1]);
        }
    }
    trained.sort_by_key(|part| part.start);
    Ok(if trained.is_empty() { TurnLoss::Masked } else { TurnLoss::Parts(trained) })
}

/// Applies the [`LIST_KEYS`] of a record to `loss`, which has one value per message.
pub(super) fn apply_lists(
    record: &Object,
    messages: &[Message],
    loss: &mut [TurnLoss],
) -> Result<(), Mismatch> {
    for key in LIST_KEYS {
        let values = match record.get(key) {
            None | Some(Value::Null) => continue,
            Some(Value::Array(values)) => values,
            // A number other than 0 and 1 is a measured loss and not a mask.
            Some(Value::Number(number))
                if key == "loss" && ![0.0, 1.0].map(Some).contains(&number.as_f64()) =>
            {
                continue;
            }
            Some(value) if flag(value, key)? => continue,
            Some(_) => {
                let found = format!("`{key}` that excludes the whole record");
                return Err(Mismatch::new(RecordFault::Untrained, found, "a record to train on"));
            }
        };
        let answers: Vec<usize> =
            (0..messages.len()).filter(|at| messages[*at].role == "assistant").collect();
        let targets = match values.len() {
            count if count == messages.len() => (0..messages.len()).collect(),
            count if count == answers.len() => answers,
            count => {
                let found = format!("{count} values in `{key}`");
                let expected =
                    format!("{}, one per message, or {}, one per answer", messages.len(), answers.len());
                return Err(Mismatch::new(RecordFault::Shape, found, expected));
            }
        };
        for (at, value) in targets.into_iter().zip(values) {
            let is_answer = messages[at].role == "assistant";
            match (flag(value, key)?, is_answer) {
                (false, _) => loss[at] = TurnLoss::Masked,
                (true, true) if loss[at] == TurnLoss::Context => loss[at] = TurnLoss::Whole,
                // A 1 for a question is ignored, because many files have a 1 for every message.
                (true, _) => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "one masked range is what is meant")]
mod tests {
    use crate::{
        Format, ReadOptions,
        formats::{convert, turns::TurnReader},
        record::{RecordContent, TurnLoss},
    };

    fn losses(record: &str) -> Result<Vec<TurnLoss>, String> {
        let (record, options) = (serde_json::from_str(record).unwrap(), ReadOptions::default());
        match convert(Format::Messages, &record, &mut TurnReader::new(&options)) {
            Ok(RecordContent::Chat(chat)) => Ok(chat.loss),
            Ok(RecordContent::Text(_)) => unreachable!("a record of messages"),
            Err(mismatch) => Err(format!("{} | {}", mismatch.found, mismatch.expected)),
        }
    }

    fn with(first: &str, beside: &str) -> Result<Vec<TurnLoss>, String> {
        losses(&format!(
            r#"{{"messages": [{{"role": "user", "content": "q"}}, {{"role": "assistant", "content": "一二三"{first}}},
                {{"role": "user", "content": "r"}}, {{"role": "assistant", "content": "b"}}]{beside}}}"#
        ))
    }

    #[test]
    fn every_mask_key_excludes_its_turn() {
        use TurnLoss::{Context, Masked, Parts, Whole};
        for key in ["train", "loss", "loss_mask", "trainable", "weight"] {
            for value in ["false", "0"] {
                let masked = with(&format!(r#", "{key}": {value}"#), "");
                assert_eq!(masked, Ok(vec![Context, Masked, Context, Whole]), "{key}");
            }
            assert_eq!(with(&format!(r#", "{key}": 1"#), ""), Ok(vec![Context, Whole, Context, Whole]));
        }
        let detail = r#", "train_detail": [{"begin_offset": 0, "end_offset": 0, "train": false},
            {"begin_offset": 1, "end_offset": 2, "train": true}]"#;
        assert_eq!(with(detail, ""), Ok(vec![Context, Parts(vec![3..9]), Context, Whole]));
    }

    #[test]
    fn a_list_beside_the_messages_has_a_value_per_message_or_answer() {
        use TurnLoss::{Context, Masked, Whole};
        assert_eq!(with("", r#", "loss_mask": [0, 0, 0, 1]"#), Ok(vec![Masked, Masked, Masked, Whole]));
        assert_eq!(with("", r#", "train": [false, true]"#), Ok(vec![Context, Masked, Context, Whole]));
        assert_eq!(
            with("", r#", "weights": [1]"#),
            Err("1 values in `weights` | 4, one per message, or 2, one per answer".into())
        );
    }

    #[test]
    fn a_mask_that_cannot_be_honoured_is_rejected() {
        assert_eq!(
            with(r#", "weight": 0.5"#, ""),
            Err("the number 0.5 in `weight` (message 2) | 0 or 1; weights between them are not supported"
                .into())
        );
        assert_eq!(
            with(r#", "train": false, "weight": 1"#, ""),
            Err("`train` and `weight`, which contradict each other (message 2) | one of them".into())
        );
        assert_eq!(
            with(r#", "train_detail": [{"begin_offset": 0, "end_offset": 3, "train": true}]"#, ""),
            Err("the part 0..=3 in `train_detail` (message 2) | a part of the text's 3 characters".into())
        );
        assert_eq!(
            with(r#", "train": false"#, r#", "loss": [1, 1, 1, 0]"#),
            Err("a conversation whose answers are all masked | an `assistant` message to learn from".into())
        );
    }
}
