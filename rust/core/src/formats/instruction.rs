//! One row of instruction data into a prompt and a response.

use std::borrow::Cow;

use super::checks::{check_prompt, check_response};
use super::fields::{json_text, missing, number, others, required, system, with_system};
use super::json::{Fields, text};
use super::message::{Message, chat, text_or_chat};
use super::raw::Raw;
use super::{Format, Reject, Rows};
use crate::reject::shorten;

/// A prompt and the assistant's last turn.
#[derive(Debug, Clone, PartialEq)]
pub struct Instruction<'a> {
    pub prompt: Vec<Message<'a>>,
    pub response: Message<'a>,
    /// Of rows that are candidates.
    pub score: Option<f32>,
    pub tools: Option<Cow<'a, str>>,
    pub template_kwargs: Option<Cow<'a, str>>,
}

/// Hand a row of instruction data (or of one scored response) to `found`, with its further fields as in `parse_pair`.
pub fn parse_instruction<T>(
    row: &[u8],
    format: Format,
    rows: Rows,
    carry: bool,
    found: impl FnOnce(&Instruction, Option<&str>) -> T,
) -> Result<T, Reject> {
    let fields = Fields::of_row(row)?;
    let others = others(&fields, format, carry)?;
    Ok(found(&parse(&fields, format, rows)?, others.as_deref()))
}

fn parse<'a>(fields: &Fields<'a>, format: Format, rows: Rows) -> Result<Instruction<'a>, Reject> {
    let (mut messages, field) = match format {
        Format::PromptResponse | Format::CandidateRows => prompt_and_response(fields, rows)?,
        Format::Instruction => {
            let mut messages = question(fields)?;
            let output = required(fields, "output")?;
            messages.push(Message::new("assistant", text(output, "output")?));
            (messages, "output")
        }
        _ => whole_chat(fields, rows)?,
    };
    check_response(messages.last(), field)?;
    if let Some(system) = system(fields)? {
        with_system(&mut messages, &system)?;
    }
    let response = messages.pop().ok_or_else(|| missing(fields, field))?;
    check_prompt(&messages)?;
    Ok(Instruction {
        prompt: messages,
        response,
        score: match format {
            Format::CandidateRows => number(fields, &["score", "rating"])?,
            _ => None,
        },
        tools: json_text(fields, &["tools"], rows)?,
        template_kwargs: json_text(fields, &["template_kwargs", "chat_template_kwargs"], rows)?,
    })
}

fn whole_chat<'a>(
    fields: &Fields<'a>,
    rows: Rows,
) -> Result<(Vec<Message<'a>>, &'static str), Reject> {
    let field = if fields.get("conversations").is_some() {
        "conversations"
    } else {
        "messages"
    };
    Ok((chat(required(fields, field)?, field, rows)?, field))
}

fn prompt_and_response<'a>(
    fields: &Fields<'a>,
    rows: Rows,
) -> Result<(Vec<Message<'a>>, &'static str), Reject> {
    let field = if fields.get("completion").is_some() {
        "completion"
    } else {
        "response"
    };
    let mut messages = text_or_chat(required(fields, "prompt")?, "prompt", "user", rows)?;
    let answer = required(fields, field)?;
    messages.extend(text_or_chat(answer, field, "assistant", rows)?);
    Ok((messages, field))
}

/// Earlier turns of `history` [[question, answer], ...], then `instruction` and `input`, a blank line between them.
pub fn question<'a>(fields: &Fields<'a>) -> Result<Vec<Message<'a>>, Reject> {
    let mut messages = Vec::new();
    if let Some(history) = fields.get("history") {
        let pair = |turn: Raw<'a>| <[Raw; 2]>::try_from(turn.items()?).ok();
        let turns: Option<Vec<_>> = history
            .items()
            .and_then(|turns| turns.into_iter().map(pair).collect());
        let turns = turns.ok_or_else(|| Reject {
            reason: "not_a_chat",
            field: "history".into(),
            value: shorten(history.get()),
            rule: "history must be a list of [question, answer]".into(),
            remedy: "mend the field, or drop it",
        })?;
        for (index, [asked, answered]) in turns.into_iter().enumerate() {
            messages.push(Message::new(
                "user",
                text(asked, format_args!("history[{index}][0]"))?,
            ));
            let answer = text(answered, format_args!("history[{index}][1]"))?;
            messages.push(Message::new("assistant", answer));
        }
    }
    let mut question = text(required(fields, "instruction")?, "instruction")?;
    if let Some(input) = fields.get("input") {
        let input = text(input, "input")?;
        if !input.trim().is_empty() {
            question = format!("{question}\n\n{input}").into();
        }
    }
    messages.push(Message::new("user", question));
    Ok(messages)
}
