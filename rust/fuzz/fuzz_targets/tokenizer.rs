//! Any text becomes the tokens that `tokenizers` gives, and a pair becomes segments that hold together.
//!
//! The tokenizer is `PYPREFOPT_FUZZ_TOKENIZER` (a tokenizer.json), else a tiny byte-level BPE. The input's first byte
//! says where text shared by two others ends.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use pyprefopt_core::template::{ChatTemplate, Message};
use pyprefopt_core::tokenize::{Encoder, Limits, Response, Row, tokenize_row};

const TINY: &str = include_str!("../tiny-tokenizer.json");
const CHATML: &str = include_str!("../../../pyprefopt/data/templates/chatml.jinja");

static ENCODER: LazyLock<Encoder> = LazyLock::new(|| {
    let json = match std::env::var_os("PYPREFOPT_FUZZ_TOKENIZER") {
        Some(path) => std::fs::read(path).expect("the tokenizer.json is readable"),
        None => TINY.into(),
    };
    Encoder::new(&json, &["<|endoftext|>".to_owned()]).expect("the tokenizer.json is one")
});
static TEMPLATE: LazyLock<ChatTemplate> = LazyLock::new(|| {
    ChatTemplate::new(CHATML, r#"{"eos_token": "<|endoftext|>"}"#, 0).expect("the template compiles")
});

fuzz_target!(|data: &[u8]| {
    let Some((&cut, bytes)) = data.split_first() else {
        return;
    };
    let text = String::from_utf8_lossy(bytes);
    let mismatch = ENCODER.prove(&[&text]);
    assert!(mismatch.is_none(), "other ids than tokenizers: {mismatch:?}");

    let encoded = ENCODER.encode(&text).expect("a text can be encoded");
    assert_eq!(encoded.ids.len(), encoded.offsets.len());
    assert!(encoded.offsets.iter().all(|&(start, end)| start <= end && end as usize <= text.len()));

    let mut at = usize::from(cut) % (text.len() + 1);
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    let (shared, tail) = text.split_at(at);
    let other = format!("{shared}other");
    let pair = ENCODER.encode_sharing(at, &[&text, &other]).expect("texts can be encoded");
    assert_eq!(pair[0], encoded);
    assert_eq!(pair[1], ENCODER.encode(&other).expect("a text can be encoded"));
    check_row(shared, tail);
});

/// Rows are tokenized or refused; segments have one entry per token, and offsets inside their message.
fn check_row(prompt: &str, answer: &str) {
    let message = |role, content| Message { role, content, extra: None };
    let row = Row {
        prompt: vec![message("user", prompt)],
        responses: ["chosen", "rejected"]
            .map(|field| Response {
                field,
                messages: vec![message("assistant", if field == "chosen" { answer } else { prompt })],
                complete: true,
            })
            .into(),
        tools: None,
        template_kwargs: None,
    };
    let Ok(tokens) = tokenize_row(&ENCODER, &TEMPLATE, &row, Limits::default()) else {
        return;
    };
    assert_eq!(tokens.segments.len(), 3);
    for (segment, content) in tokens.segments.iter().zip([prompt, answer, prompt]) {
        let count = segment.ids.len();
        assert!(count == segment.mask.len() && count == segment.starts.len() && count == segment.ends.len());
        assert!(segment.ends.iter().flatten().all(|&end| end as usize <= content.len()));
    }
}
