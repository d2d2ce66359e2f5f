//! Rows that are refused before they are rendered, or because nothing of them would be scored.

use crate::reject::Reject;
use crate::tokenize::input::{Response, Row};

/// A row has a prompt and responses, none of them empty.
pub fn check(row: &Row) -> Result<(), Reject> {
    if row.prompt.is_empty() {
        let (rule, remedy) = (
            "a prompt must not be empty",
            "give the prompt at least one message, or drop the row",
        );
        return Err(Reject::new("prompt", "[]", "empty_prompt", rule, remedy));
    }
    if row.responses.is_empty() {
        let rule = "a prompt must have at least one response";
        return Err(Reject::new(
            "responses",
            "[]",
            "empty_response",
            rule,
            "drop the row",
        ));
    }
    let empty = |response: &&Response| {
        let last = response.messages.last();
        last.is_none_or(|message| message.content.trim().is_empty() && !message.calls_tools())
    };
    match row.responses.iter().find(empty) {
        None => Ok(()),
        Some(response) => Err(empty_response(response, "")),
    }
}

pub fn empty_response(response: &Response, content: &str) -> Reject {
    let rule = "a response must have content";
    Reject::new(
        response.field,
        content,
        "empty_response",
        rule,
        "drop the row",
    )
}

/// Nothing of the response would be scored.
pub fn no_answer(response: &Response, content: &str) -> Reject {
    let rule = "a response must have an answer behind its reasoning, which is not scored (score_reasoning false)";
    let remedy = "set score_reasoning to true, or drop the row";
    Reject::new(response.field, content, "no_answer", rule, remedy)
}
