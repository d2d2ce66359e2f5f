//! Work in proportion to a chat's length, counted in bytes of messages that are rendered.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value as Json;

use crate::message::Message;
use crate::template::ChatTemplate;
use crate::tokenize::{Columns, Encoder, Limits, Response, Row, Tokenization, tokenize_row};

const TOKENIZER: &str = include_str!("../../../../fuzz/tiny-tokenizer.json");

/// A renderer that counts the bytes of the messages that it is given.
fn counting(count: Arc<AtomicUsize>) -> ChatTemplate {
    let render = move |messages: &str, add: bool, _: Option<&str>, _: Option<&str>, _: &str| {
        count.fetch_add(messages.len(), Ordering::Relaxed);
        let messages: Vec<Json> = serde_json::from_str(messages).expect("a list");
        let mut text = String::new();
        let last = messages.len() - 1;
        for (index, message) in messages.iter().enumerate() {
            let [role, content] =
                ["role", "content"].map(|key| message[key].as_str().unwrap_or_default());
            let think = message["reasoning_content"]
                .as_str()
                .map_or(String::new(), |r| format!("<think>{r}</think>"));
            let calls = if message["tool_calls"].is_null() {
                String::new()
            } else {
                message["tool_calls"].to_string()
            };
            let start = if index == last && role == "assistant" {
                "!"
            } else {
                ""
            };
            let parts = [
                "<", role, ">", start, &think, content, &calls, "</", role, ">\n",
            ];
            text += &parts.concat();
        }
        if add {
            text.push_str("<assistant>");
        }
        Ok(text)
    };
    ChatTemplate::new("{{", "{}", 0, Some(Box::new(render))).expect("the reference renders")
}

/// A chat of `length` messages of many kinds, in the prompt or in the response.
fn chat(length: usize, kind: usize) -> Vec<Message<'static>> {
    let with = |role, content: String, extra: String| Message {
        extra: (!extra.is_empty()).then(|| extra.into()),
        ..Message::new(role, content)
    };
    let message = |index: usize| match (kind, index % 4) {
        (0, 0 | 2) => Message::new("user", format!("question {index}")),
        (0, _) => with(
            "assistant",
            format!("answer {index}"),
            format!(r#"{{"name": "n{index}"}}"#),
        ),
        (1, 0 | 2) => with(
            "assistant",
            String::new(),
            format!(r#"{{"tool_calls": [{{"name": "call{index}"}}]}}"#),
        ),
        (1, _) => Message::new("tool", format!("result {index}")),
        (_, 0 | 2) => Message::new("user", format!("why {index}")),
        (_, 1) => with(
            "assistant",
            format!("so {index}"),
            format!(r#"{{"reasoning_content": "thought {index}"}}"#),
        ),
        (_, _) => Message::new("assistant", format!("<think>a {index}</think>b {index}")),
    };
    (0..length).map(message).collect()
}

fn work(length: usize, kind: usize, in_response: bool) -> (usize, Columns) {
    let count = Arc::new(AtomicUsize::new(0));
    let template = counting(count.clone());
    let encoder = Encoder::new(TOKENIZER.as_bytes(), &[]).expect("a tokenizer");
    let work = Tokenization {
        encoder: &encoder,
        template: &template,
        tool_template: None,
        limits: Limits::default(),
        bos: None,
        eos: None,
        score_reasoning: true,
        refuse_identical: true,
    };
    let mut turns = chat(length, kind);
    let mut prompt = vec![Message::new("user", "go")];
    let mut response = Vec::new();
    if in_response {
        response.append(&mut turns);
    } else {
        prompt.append(&mut turns);
        prompt.push(Message::new("user", "now"));
    }
    response.push(Message::new("assistant", "the end"));
    let row = Row {
        row: 0,
        prompt: prompt.into(),
        responses: vec![Response {
            field: "response",
            kind: "response",
            messages: response.into(),
            complete: true,
            score: None,
        }],
        tools: None,
        template_kwargs: None,
    };
    let mut columns = Columns::new(true);
    tokenize_row(&work, &row, &mut columns);
    assert_eq!(columns.rejects, []);
    (count.load(Ordering::Relaxed), columns)
}

#[test]
fn long_chats_take_work_in_proportion_to_their_length() {
    for kind in 0..3 {
        for in_response in [false, true] {
            let [short, long] = [200, 1600].map(|length| work(length, kind, in_response).0);
            assert!(long < 10 * short, "{kind} {in_response}: {short} {long}");
        }
    }
}
