//! Well-known chat templates, for bases that have no template.

/// A chat template with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownTemplate {
    /// Name of the template on the command line.
    pub name: &'static str,
    /// The Jinja text.
    pub source: &'static str,
    /// Tokens that mark the turns. If a tokenizer does not have such a token, it splits the token's text into
    /// several tokens.
    pub tokens: &'static [&'static str],
}

/// Every known template.
pub const KNOWN_TEMPLATES: [KnownTemplate; 5] = [
    KnownTemplate {
        name: "chatml",
        source: "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n\
            {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        tokens: &["<|im_start|>", "<|im_end|>"],
    },
    KnownTemplate {
        name: "llama3",
        source: "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n\
            {{ message.content | trim }}<|eot_id|>{% endfor %}\
            {% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        tokens: &["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    },
    KnownTemplate {
        name: "alpaca",
        source: "{{ bos_token }}{% if messages[0].role != 'system' %}Below is an instruction that describes a task. \
            Write a response that appropriately completes the request.\n\n{% endif %}\
            {% for message in messages %}{% if message.role == 'user' %}### Instruction:\n{{ message.content }}\n\n\
            {% elif message.role == 'assistant' %}### Response:\n{{ message.content }}{{ eos_token }}\n\n\
            {% else %}{{ message.content }}\n\n{% endif %}{% endfor %}\
            {% if add_generation_prompt %}### Response:\n{% endif %}",
        tokens: &[],
    },
    KnownTemplate {
        name: "vicuna",
        source: "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}USER: {{ message.content }} \
            {% elif message.role == 'assistant' %}ASSISTANT: {{ message.content }}{{ eos_token }}\
            {% else %}{{ message.content }} {% endif %}{% endfor %}\
            {% if add_generation_prompt %}ASSISTANT: {% endif %}",
        tokens: &[],
    },
    KnownTemplate {
        name: "zephyr",
        source: "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}{{ eos_token }}\n\
            {% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        tokens: &[],
    },
];

/// Returns the known template `name`.
pub fn known_template(name: &str) -> Option<&'static KnownTemplate> {
    KNOWN_TEMPLATES.iter().find(|template| template.name == name)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{ChatTemplate, Message};

    #[test]
    fn every_known_template_masks_each_answer_with_its_end() {
        let variables = [("bos_token", "<s>"), ("eos_token", "</s>")];
        let variables = variables.map(|(name, token)| (name.to_owned(), token.to_owned()));
        for known in KNOWN_TEMPLATES {
            let special: Vec<String> =
                known.tokens.iter().copied().chain(["<s>", "</s>"]).map(str::to_owned).collect();
            let path = Path::new(known.name);
            let template = ChatTemplate::new(path, known.source, variables.clone().into(), &special).unwrap();
            let turns =
                [("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")];
            let messages = turns.map(|(role, content)| Message::new(role, content));
            let rendered = template.assistant_spans(&messages).unwrap();
            let end = template.end_of_turn().unwrap();
            let learnt: Vec<&str> = rendered.spans.iter().map(|span| &rendered.text[span.clone()]).collect();
            assert_eq!(learnt, [format!("a{end}"), format!("b{end}")], "{}", known.name);
            assert_eq!(template.added_end(), None, "{}", known.name);
        }
    }
}
