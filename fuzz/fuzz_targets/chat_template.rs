//! `just fuzz chat_template 300`
//!
//! Compiles a chat template and renders a conversation with it.

#![no_main]

use std::collections::BTreeMap;
use std::path::Path;

use danlu_model::{ChatTemplate, Message};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(source) = std::str::from_utf8(data) else { return };
    let tokens = ["<|begin|>", "<|eot|>"].map(str::to_owned);
    let [bos, eos] = tokens.clone();
    let variables = BTreeMap::from([("bos_token".to_owned(), bos), ("eos_token".to_owned(), eos)]);
    let path = Path::new("tokenizer_config.json");
    let Ok(template) = ChatTemplate::new(path, source, variables, &tokens) else { return };
    let messages = [("system", "Be brief."), ("user", "甄嬛?"), ("assistant", "Yes.\n"), ("user", "{{ x }}")];
    let messages = messages.map(|(role, text)| Message::new(role, text));
    let _ = template.render(&messages, true);
    if let Ok(rendered) = template.assistant_spans(&messages[..3]) {
        for span in rendered.spans {
            assert!(rendered.text.get(span).is_some());
        }
    }
});
