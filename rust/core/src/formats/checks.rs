//! Rules that every prompt and every response keeps.

use super::Reject;
use super::message::Message;
use crate::reject::shorten;

/// The last turn of a chat must be the assistant's, and say something or call a tool.
pub fn check_response(last: Option<&Message>, field: &str) -> Result<(), Reject> {
    let (reason, value, rule, remedy) = match last {
        None => (
            "empty_response",
            "[]",
            format!("{field} must hold a response"),
            "drop the row",
        ),
        Some(message) if message.role != "assistant" => (
            "not_assistant",
            message.role,
            format!("the last turn of {field} must be the assistant's"),
            "drop the turn after it, or the row",
        ),
        Some(message) if message.is_blank() && !message.calls_tools() => (
            "empty_response",
            &*message.content,
            format!("the response of {field} must not be empty"),
            "drop the row",
        ),
        Some(_) => return Ok(()),
    };
    Err(Reject {
        reason,
        field: field.to_owned(),
        value: shorten(value),
        rule,
        remedy,
    })
}

/// A prompt must say something.
pub fn check_prompt(messages: &[Message]) -> Result<(), Reject> {
    if messages
        .iter()
        .all(|message| message.is_blank() && !message.calls_tools())
    {
        return Err(Reject {
            reason: "empty_prompt",
            field: "prompt".into(),
            value: shorten(messages.last().map_or("[]", |message| &message.content)),
            rule: "the prompt must not be empty".into(),
            remedy: "drop the row",
        });
    }
    Ok(())
}
