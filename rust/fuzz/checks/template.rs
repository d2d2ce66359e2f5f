//! A template and a chat, both of any form, are rendered or refused in words: no panic, no endless loop, no overflow.
//!
//! The input is `TEMPLATE \0 MESSAGES`, the messages as JSON; where they are none, a chat of odd texts is used.

use pyprefopt_core::template::{ChatTemplate, Options, parse_messages};

const CHAT: &str = r#"[{"role": "system", "content": "\u0000\ud7ff"}, {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": [1, null]}}}]}]"#;

pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (source, messages) = text.split_once('\0').unwrap_or((text, CHAT));
    let Ok(template) = ChatTemplate::new(
        source,
        r#"{"bos_token": "<s>", "eos_token": "</s>"}"#,
        0,
        None,
    ) else {
        return;
    };
    if let Ok(messages) = parse_messages(messages) {
        let _ = template.render(&messages, true, &Options::default());
    }
    let _ = Options::parse(Some(messages), Some(messages));
}
