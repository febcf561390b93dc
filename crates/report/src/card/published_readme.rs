//! What a card on the Hub says of the page that was sent with it: whether somebody edited that page since.

use serde_json::{Map, Value};

use super::{sha256, sum_without_notes};

/// Where `card.json` holds it, on the Hub alone.
const SENT: &str = "sent_readme_sha256";

/// The SHA-256 of the `README.md` that was sent last, by the bytes of the `card.json` that went with it.
pub fn sent_readme(record: &[u8]) -> Option<String> {
    Some(object(record)?.get(SENT)?.as_str()?.to_owned())
}

/// The bytes of a `card.json` that also say which `README.md` was sent last.
pub fn with_sent_readme(record: Vec<u8>, sum: Option<String>) -> Vec<u8> {
    let (Some(mut fields), Some(sum)) = (object(&record), sum) else { return record };
    fields.insert(SENT.to_owned(), sum.into());
    let mut bytes = serde_json::to_vec_pretty(&fields).expect("JSON that was read is written again");
    bytes.push(b'\n');
    bytes
}

/// Whether `readme` is what was sent with the `card.json` of these bytes. One of before that was noted tells it but for
/// the notes; none that can be read tells nothing against it.
pub fn is_as_sent(record: &[u8], readme: &[u8]) -> bool {
    if let Some(sent) = sent_readme(record) {
        return sent == sha256(readme);
    }
    let written = object(record).and_then(|record| Some(record.get("readme_sha256")?.as_str()?.to_owned()));
    written.is_none_or(|sum| sum == sum_without_notes(&String::from_utf8_lossy(readme)))
}

fn object(record: &[u8]) -> Option<Map<String, Value>> {
    serde_json::from_slice(record).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_was_edited_is_told_from_one_that_was_sent() {
        let sum = sha256(b"# mine\n");
        let record = with_sent_readme(b"{\"name\": \"x\"}".to_vec(), Some(sum.clone()));
        assert_eq!(sent_readme(&record), Some(sum));
        assert!(is_as_sent(&record, b"# mine\n") && !is_as_sent(&record, b"# mine, mended\n"));
        let older = format!("{{\"readme_sha256\": \"{}\"}}", sum_without_notes("# mine\n"));
        assert!(is_as_sent(older.as_bytes(), b"# mine\n") && !is_as_sent(older.as_bytes(), b"# other\n"));
        assert!(is_as_sent(b"{}", b"x") && is_as_sent(b"no JSON", b"x"));
        assert_eq!(with_sent_readme(b"{}".to_vec(), None), b"{}");
    }
}
