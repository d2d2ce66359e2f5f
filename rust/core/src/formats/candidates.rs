//! One row with n responses into a candidate set.

use std::borrow::Cow;

use super::agreement::{agree, contradiction, is_whole, leave_open};
use super::chat::{Said, text_or_chat};
use super::checks::{check_prompt, check_response};
use super::detect::of_format;
use super::fields::{
    json_text, missing, number_of, origin, others, spelled_lists, system, with_lists, with_system,
};
use super::json::Fields;
use super::message::{Message, is_same_chat};
use super::raw::Raw;
use super::{Format, Reject, Rows};
use crate::reject::shorten;

/// A prompt with its responses, and a score each where the row has scores.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidates<'a> {
    pub prompt: Vec<Message<'a>>,
    pub responses: Vec<Vec<Message<'a>>>,
    pub scores: Option<Vec<Option<f32>>>,
    pub tools: Option<Cow<'a, str>>,
    pub template_kwargs: Option<Cow<'a, str>>,
}

const RESPONSES: [&str; 3] = ["responses", "completions", "candidates"];
const SCORES: [&str; 2] = ["scores", "ratings"];
/// In a response that is an object with its score.
pub const TEXT: [&str; 3] = ["response", "completion", "text"];
const SCORE: [&str; 3] = ["overall_score", "score", "rating"];

/// Hand a row with n responses to `found`, with its further fields as in `parse_pair`.
pub fn parse_candidates<T>(
    row: &[u8],
    rows: Rows,
    carry: bool,
    found: impl FnOnce(&Candidates, Option<&str>) -> T,
) -> Result<T, Reject> {
    let fields = Fields::of_row(row)?;
    let others = others(&fields, Format::Candidates, carry)?;
    let lists = spelled_lists(&fields, &[&RESPONSES[..], &SCORES[..]].concat());
    let fields = with_lists(fields, &lists);
    match parse(&fields, rows) {
        Ok(set) => Ok(found(&set, others.as_deref())),
        Err(reject) => Err(of_format(&fields, Format::Candidates, reject)),
    }
}

fn parse<'a>(fields: &Fields<'a>, rows: Rows) -> Result<Candidates<'a>, Reject> {
    let rows = origin(fields, rows);
    let (asked, raw) = fields
        .any(&["prompt", "instruction"])
        .ok_or_else(|| missing(fields, "prompt"))?;
    let Said {
        messages: mut prompt,
        is_open,
        ..
    } = text_or_chat(raw, asked, "user", rows)?;
    if let Some(system) = system(fields)? {
        with_system(&mut prompt, &system)?;
    }
    check_prompt(&prompt)?;
    let (name, raw) = fields
        .any(&RESPONSES)
        .ok_or_else(|| missing(fields, "responses"))?;
    let (mut responses, mut own) = (Vec::new(), Vec::new());
    for (index, item) in list(raw, name)?.into_iter().enumerate() {
        let (mut said, score) = response(item, &format!("{name}[{index}]"), rows)?;
        if is_open {
            said.drop_space();
        }
        responses.push(said.messages);
        own.push(score);
    }
    if responses.is_empty() {
        check_response(None, name)?;
    }
    part(&mut prompt, &mut responses, asked, name)?;
    Ok(Candidates {
        scores: scores(fields, name, own)?,
        prompt,
        responses,
        tools: json_text(fields, &["tools"], rows)?,
        template_kwargs: json_text(fields, &["template_kwargs", "chat_template_kwargs"], rows)?,
    })
}

/// Leave of each response what it adds to the prompt; the prompt is what whole chats among them begin with.
fn part<'a>(
    prompt: &mut Vec<Message<'a>>,
    responses: &mut [Vec<Message<'a>>],
    asked: &str,
    name: &str,
) -> Result<(), Reject> {
    let mut held: Option<Vec<Message>> = None;
    for (index, response) in responses.iter_mut().enumerate() {
        let field = format!("{name}[{index}]");
        check_response(response.last(), &field)?;
        if is_whole(response) {
            let end = agree(prompt, response, (asked, &field))?;
            let answer = response.split_off(end);
            let before = std::mem::replace(response, answer);
            let differs = |first: &Vec<Message>| !is_same_chat(first, &before);
            if held.as_ref().is_some_and(differs) {
                return Err(contradiction(&before, asked, &field));
            }
            held = held.or(Some(before));
        }
        let foreign = |message: &&Message| !matches!(message.role, "assistant" | "tool");
        if let Some(other) = response.iter().find(foreign) {
            return Err(Reject {
                reason: "not_assistant",
                value: other.role.to_owned(),
                rule: format!(
                    "{field} must be the assistant's alone; what comes before belongs into the prompt"
                ),
                field,
                remedy: "move the earlier turns into the prompt",
            });
        }
    }
    if let Some(held) = held {
        *prompt = held;
    }
    leave_open(prompt);
    Ok(())
}

/// Text, a message, messages, or an object with the response and its score.
fn response<'a>(raw: Raw<'a>, field: &str, rows: Rows) -> Result<(Said<'a>, Option<f32>), Reject> {
    let object = raw.get().starts_with('{');
    let fields = object.then(|| Fields::parse(raw.get()).ok()).flatten();
    if let Some(fields) = &fields {
        fields.check_once(format_args!("{field}."))?;
    }
    let fields = fields.filter(|fields| fields.any(&["role", "from"]).is_none());
    let described = fields.and_then(|fields| Some((fields.any(&TEXT)?, fields.any(&SCORE))));
    let Some(((key, words), score)) = described else {
        return Ok((text_or_chat(raw, field, "assistant", rows)?, None));
    };
    let said = text_or_chat(words, format_args!("{field}.{key}"), "assistant", rows)?;
    let score = score.map(|(key, raw)| number_of(raw, &format!("{field}.{key}")));
    Ok((said, score.transpose()?))
}

/// The row's list of scores, or those that stand with the responses.
fn scores(
    fields: &Fields,
    responses: &str,
    own: Vec<Option<f32>>,
) -> Result<Option<Vec<Option<f32>>>, Reject> {
    let Some((name, raw)) = fields.any(&SCORES) else {
        return Ok(own.iter().any(Option::is_some).then_some(own));
    };
    let items = list(raw, name)?;
    if items.len() != own.len() {
        return Err(Reject {
            reason: "scores_mismatch",
            field: name.to_owned(),
            value: shorten(raw.get()),
            rule: format!(
                "{name} must be as many as {responses}, {}; got {}",
                own.len(),
                items.len()
            ),
            remedy: "give each response one score (null where it has none)",
        });
    }
    let score = |(index, item): (usize, Raw)| match item.get() {
        "null" => Ok(None),
        _ => number_of(item, &format!("{name}[{index}]")).map(Some),
    };
    items
        .into_iter()
        .enumerate()
        .map(score)
        .collect::<Result<_, _>>()
        .map(Some)
}

fn list<'a>(raw: Raw<'a>, field: &str) -> Result<Vec<Raw<'a>>, Reject> {
    raw.items().ok_or_else(|| Reject {
        reason: "not_a_list",
        field: field.to_owned(),
        value: shorten(raw.get()),
        rule: format!("{field} must be a list"),
        remedy: "write it as [..., ...]",
    })
}
