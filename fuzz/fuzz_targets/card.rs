//! `just fuzz card 300`
//!
//! Reads a `card.json` and a `README.md`, which are separated by a zero byte. Inserting the card into the
//! `README.md` preserves the author's lines.

#![no_main]

use std::path::Path;

use danlu_report::card::{Card, keeps_text};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut parts = data.splitn(2, |&byte| byte == 0);
    let Ok(card) = Card::parse(Path::new("card.json"), parts.next().unwrap_or_default()) else { return };
    let again = Card::parse(Path::new("card.json"), &card.to_json()).expect("a written card is readable");
    let Ok(readme) = std::str::from_utf8(parts.next().unwrap_or_default()) else { return };
    let Ok(updated) = again.updated(readme, None) else { return };
    assert!(keeps_text(&updated, readme).unwrap_or(true));
});
