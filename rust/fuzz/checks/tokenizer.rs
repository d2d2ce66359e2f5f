//! Any text becomes the tokens that `tokenizers` gives, and a pair becomes segments that hold together.
//!
//! The tokenizer is `PYPREFOPT_FUZZ_TOKENIZER` (a tokenizer.json), else a tiny byte-level BPE. The input's first byte
//! says where text shared by two others ends.

use std::sync::LazyLock;

use pyprefopt_core::message::Message;
use pyprefopt_core::template::ChatTemplate;
use pyprefopt_core::tokenize::{
    Boundary, Columns, Encoder, Limits, PromptOverflow, Response, Row, Shared, Tokenization,
    tokenize_row,
};

const TINY: &str = include_str!("../tiny-tokenizer.json");
const CHATML: &str = include_str!("../../../pyprefopt/data/tokenization/templates/chatml.jinja");

static ENCODER: LazyLock<Encoder> = LazyLock::new(|| {
    let json = match std::env::var_os("PYPREFOPT_FUZZ_TOKENIZER") {
        Some(path) => std::fs::read(path).expect("the tokenizer.json is readable"),
        None => TINY.into(),
    };
    Encoder::new(&json, &["<|endoftext|>".to_owned()]).expect("the tokenizer.json is one")
});
static TEMPLATE: LazyLock<ChatTemplate> = LazyLock::new(|| {
    ChatTemplate::new(CHATML, r#"{"eos_token": "<|endoftext|>"}"#, 0, None)
        .expect("the template compiles")
});

pub fn check(data: &[u8]) {
    let Some((&cut, bytes)) = data.split_first() else {
        return;
    };
    let text = String::from_utf8_lossy(bytes);
    let mismatch = ENCODER.prove(&[&text]);
    assert!(
        mismatch.is_none(),
        "other ids than tokenizers: {mismatch:?}"
    );

    let encoded = ENCODER.encode(&text).expect("a text can be encoded");
    assert_eq!(encoded.ids.len(), encoded.offsets.len());
    assert!(
        encoded
            .offsets
            .iter()
            .all(|&(start, end)| start <= end && end as usize <= text.len())
    );

    let mut at = usize::from(cut) % (text.len() + 1);
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    let (shared, tail) = text.split_at(at);
    let other = format!("{shared}other");
    let mut pair = Shared::default();
    ENCODER
        .encode_sharing(at, &[&text, &other], &mut pair)
        .expect("texts can be encoded");
    let alone = ENCODER.encode(&other).expect("a text can be encoded");
    for (rest, whole) in pair.rests.iter().zip([&encoded, &alone]) {
        assert_eq!([&pair.prefix.ids[..], &rest.ids].concat(), whole.ids);
        assert_eq!(
            [&pair.prefix.offsets[..], &rest.offsets].concat(),
            whole.offsets
        );
    }
    check_row(shared, tail, cut);
}

/// Rows are tokenized or refused; lines have one entry per token, offsets inside their message, and keep their bounds.
fn check_row(prompt: &str, answer: &str, settings: u8) {
    let response = |kind: &'static str, messages| Response {
        field: kind,
        kind,
        messages,
        complete: settings & 1 == 0,
        score: None,
    };
    let row = Row {
        row: 0,
        prompt: vec![Message::new("user", prompt)].into(),
        responses: vec![
            response("chosen", vec![Message::new("assistant", answer)].into()),
            response("rejected", vec![Message::new("assistant", prompt)].into()),
        ],
        tools: None,
        template_kwargs: None,
    };
    let overflow = [
        PromptOverflow::Error,
        PromptOverflow::Drop,
        PromptOverflow::KeepStart,
        PromptOverflow::KeepEnd,
    ];
    let limits = Limits {
        max_prompt_tokens: (settings & 2 > 0).then_some(40),
        prompt_overflow: overflow[usize::from(settings >> 2) % 4],
        max_tokens: (settings & 16 > 0).then_some(60),
        boundary: if settings & 32 > 0 {
            Boundary::Error
        } else {
            Boundary::Split
        },
    };
    let work = Tokenization {
        encoder: &ENCODER,
        template: &TEMPLATE,
        tool_template: None,
        limits,
        bos: None,
        eos: None,
        score_reasoning: settings & 64 == 0,
        refuse_identical: true,
    };
    let mut columns = Columns::default();
    tokenize_row(&work, &row, &mut columns);
    let tokens: usize = columns.lengths.iter().sum();
    let counts = [&columns.starts, &columns.ends, &columns.ids].map(Vec::len);
    assert_eq!(counts, [tokens; 3]);
    assert_eq!(
        [
            columns.mask.len(),
            columns.inside.len(),
            columns.turns.len()
        ],
        [tokens; 3]
    );
    if !columns.rejects.is_empty() {
        assert_eq!(columns.lengths.len(), 0);
        return;
    }
    assert_eq!(columns.lengths.len(), 3);
    if let Some(most) = limits.max_prompt_tokens {
        assert!(columns.lengths[0] <= most);
    }
    if let Some(most) = limits.max_tokens {
        assert!(
            columns.lengths[1..]
                .iter()
                .all(|length| columns.lengths[0] + length <= most)
        );
    }
    let mut at = 0;
    for (&length, content) in columns.lengths.iter().zip([prompt, answer, prompt]) {
        for t in (at..at + length).filter(|&t| columns.inside[t]) {
            assert!(
                columns.starts[t] <= columns.ends[t] && columns.ends[t] as usize <= content.len()
            );
        }
        at += length;
    }
}
