//! One row of instruction data into a prompt and a response.

use super::json::Fields;
use super::message::{Message, chat, text, text_or_chat};
use super::preference::{missing, prompt, required, response};
use super::{Format, Reject};

/// A prompt and the assistant's last turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instruction {
    pub prompt: Vec<Message>,
    pub response: Message,
}

pub fn parse(row: &[u8], format: Format) -> Result<Instruction, Reject> {
    let fields = Fields::of_row(row)?;
    let (mut messages, field) = match format {
        Format::PromptResponse => prompt_and_response(&fields)?,
        Format::Instruction => (instruction_and_output(&fields)?, "output"),
        _ => whole_chat(&fields)?,
    };
    let response = response(messages.pop(), field)?;
    prompt(&messages)?;
    Ok(Instruction {
        prompt: messages,
        response,
    })
}

fn whole_chat(fields: &Fields) -> Result<(Vec<Message>, &'static str), Reject> {
    let field = if fields.get("conversations").is_some() {
        "conversations"
    } else {
        "messages"
    };
    Ok((chat(required(fields, field)?, field)?, field))
}

fn prompt_and_response(fields: &Fields) -> Result<(Vec<Message>, &'static str), Reject> {
    let field = if fields.get("completion").is_some() {
        "completion"
    } else {
        "response"
    };
    let mut messages = text_or_chat(required(fields, "prompt")?, "prompt", "user")?;
    messages.extend(text_or_chat(required(fields, field)?, field, "assistant")?);
    Ok((messages, field))
}

/// An instruction and its input stand in one user turn, a blank line between them.
fn instruction_and_output(fields: &Fields) -> Result<Vec<Message>, Reject> {
    let mut question = text(required(fields, "instruction")?, "instruction")?;
    if let Some(input) = fields.get("input") {
        let input = text(input, "input")?;
        if !input.trim().is_empty() {
            question = format!("{question}\n\n{input}");
        }
    }
    let output = fields
        .get("output")
        .ok_or_else(|| missing(fields, "output"))?;
    Ok(vec![
        Message::new("user", question),
        Message::new("assistant", text(output, "output")?),
    ])
}
