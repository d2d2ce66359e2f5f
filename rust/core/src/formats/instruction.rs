//! One row of instruction data into a prompt and a response.

use std::borrow::Cow;

use super::agreement::{agree, append, is_whole, leave_open};
use super::alternatives::{is_alike, stated};
use super::chat::{Said, chat, text_as_chat, text_or_chat};
use super::checks::{check_prompt, check_response};
use super::detect::of_format;
use super::fields::{
    json_text, missing, number, others, required, spelled_lists, system, with_lists, with_system,
};
use super::json::{Fields, text};
use super::message::{Message, Origin};
use super::raw::Raw;
use super::rivals::{Reading, check_rivals};
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
    let lists = match format {
        Format::Instruction => spelled_lists(&fields, &["history"]),
        _ => Vec::new(),
    };
    let fields = with_lists(fields, &lists);
    match parse(&fields, format, rows) {
        Ok(example) => Ok(found(&example, others.as_deref())),
        Err(reject) => Err(of_format(&fields, format, reject)),
    }
}

fn parse<'a>(fields: &Fields<'a>, format: Format, rows: Rows) -> Result<Instruction<'a>, Reject> {
    let origin = &Origin::new(rows, fields);
    let system = system(fields)?;
    let (mut messages, field) = match format {
        Format::PromptResponse | Format::CandidateRows => {
            prompt_and_response(fields, system.as_ref(), origin)?
        }
        Format::Instruction => {
            let output = required(fields, "output")?;
            let prompt = question(fields)?;
            let answer = text_or_chat(output, "output", "assistant", origin)?;
            let names = ("instruction", "output");
            (joined(prompt, answer, system.as_ref(), names)?, "output")
        }
        _ => whole_chat(fields, system.as_ref(), origin)?,
    };
    let asked = match format {
        Format::Messages => field,
        Format::Instruction => "instruction",
        _ => "prompt",
    };
    check_response(messages.last(), field)?;
    let response = messages.pop().ok_or_else(|| missing(fields, field))?;
    check_prompt(&messages)?;
    check_rivals(fields, format, origin, || Reading {
        asked,
        prompt: &messages,
        responses: vec![(field, std::slice::from_ref(&response))],
    })?;
    Ok(Instruction {
        prompt: messages,
        response,
        score: match format {
            Format::CandidateRows => number(fields, &["score", "rating"])?,
            _ => None,
        },
        tools: json_text(fields, &["tools"], origin)?,
        template_kwargs: json_text(fields, &["template_kwargs", "chat_template_kwargs"], origin)?,
    })
}

fn whole_chat<'a>(
    fields: &Fields<'a>,
    system: Option<&Message<'a>>,
    origin: &Origin,
) -> Result<(Vec<Message<'a>>, &'static str), Reject> {
    let names = ["conversations", "messages"];
    let read = |name: &str, raw| chat(raw, name, origin);
    let is_same = |one: &Vec<Message>, other: &Vec<Message>| is_alike(one, other);
    let (field, mut messages) =
        stated(fields, &names, read, is_same)?.ok_or_else(|| missing(fields, "messages"))?;
    check_response(messages.last(), field)?;
    if let Some(system) = system {
        with_system(&mut messages, system)?;
    }
    Ok((messages, field))
}

fn prompt_and_response<'a>(
    fields: &Fields<'a>,
    system: Option<&Message<'a>>,
    origin: &Origin,
) -> Result<(Vec<Message<'a>>, &'static str), Reject> {
    let prompt = text_or_chat(required(fields, "prompt")?, "prompt", "user", origin)?;
    let names = ["completion", "response"];
    let read = |name: &str, raw| text_or_chat(raw, name, "assistant", origin);
    let is_same = |one: &Said, other: &Said| is_alike(&one.messages, &other.messages);
    let (field, answer) =
        stated(fields, &names, read, is_same)?.ok_or_else(|| missing(fields, "response"))?;
    let messages = joined(prompt, answer, system, ("prompt", field))?;
    Ok((messages, field))
}

/// Prompt and answer as one chat; an answer that is the whole chat must agree with the prompt.
fn joined<'a>(
    prompt: Said<'a>,
    mut answer: Said<'a>,
    system: Option<&Message<'a>>,
    (asked, field): (&str, &str),
) -> Result<Vec<Message<'a>>, Reject> {
    if prompt.is_open {
        answer.drop_space();
    }
    let (mut messages, mut answer) = (prompt.messages, answer.messages);
    let is_whole = is_whole(&answer);
    if is_whole && messages.iter().all(Message::is_blank) {
        messages.clear(); // the answer holds it
    }
    if let Some(system) = system {
        let chat = if messages.is_empty() {
            &mut answer
        } else {
            &mut messages
        };
        with_system(chat, system)?;
    }
    if is_whole && !messages.is_empty() {
        let end = agree(&messages, &mut answer, (asked, field))?;
        if end + 1 == answer.len() {
            leave_open(&mut answer[..end]);
        }
        return Ok(answer);
    }
    check_response(answer.last(), field)?;
    let last = answer.pop();
    if answer.is_empty() {
        leave_open(&mut messages);
    }
    append(&mut messages, answer);
    messages.extend(last);
    Ok(messages)
}

/// Earlier turns of `history` [[question, answer], ...], then `instruction` and `input`, a blank line between them.
pub fn question<'a>(fields: &Fields<'a>) -> Result<Said<'a>, Reject> {
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
    let instruction = text(required(fields, "instruction")?, "instruction")?;
    let mut said = text_as_chat(instruction, "instruction", "user")?;
    if let Some(input) = fields.get("input") {
        let input = text(input, "input")?;
        if !input.trim().is_empty() {
            add_input(&mut said.messages, &input)?;
        }
    }
    said.messages.splice(0..0, messages);
    Ok(said)
}

/// Put `input` behind the user's last words.
fn add_input(messages: &mut [Message], input: &str) -> Result<(), Reject> {
    let last = messages.last_mut().filter(|last| last.role == "user");
    let last = last.ok_or_else(|| Reject {
        reason: "not_a_question",
        field: "input".into(),
        value: shorten(input),
        rule: "input must stand behind words of the user, with which instruction does not end"
            .into(),
        remedy: "write it into the chat of instruction, or drop the row",
    })?;
    last.content = format!("{}\n\n{input}", last.content).into();
    Ok(())
}
