//! One row with n responses into a candidate set.

use std::borrow::Cow;

use super::checks::{check_prompt, check_response};
use super::fields::{json_text, missing, number_of, others, system, with_system};
use super::json::Fields;
use super::message::{Message, text_or_chat};
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
    Ok(found(&parse(&fields, rows)?, others.as_deref()))
}

fn parse<'a>(fields: &Fields<'a>, rows: Rows) -> Result<Candidates<'a>, Reject> {
    let (name, raw) = fields
        .any(&["prompt", "instruction"])
        .ok_or_else(|| missing(fields, "prompt"))?;
    let mut prompt = text_or_chat(raw, name, "user", rows)?;
    if let Some(system) = system(fields)? {
        with_system(&mut prompt, &system)?;
    }
    check_prompt(&prompt)?;
    let (name, raw) = fields
        .any(&RESPONSES)
        .ok_or_else(|| missing(fields, "responses"))?;
    let (mut responses, mut own) = (Vec::new(), Vec::new());
    for (index, item) in list(raw, name)?.into_iter().enumerate() {
        let (messages, score) = response(item, &format!("{name}[{index}]"), &prompt, rows)?;
        responses.push(messages);
        own.push(score);
    }
    if responses.is_empty() {
        check_response(None, name)?;
    }
    Ok(Candidates {
        scores: scores(fields, name, own)?,
        prompt,
        responses,
        tools: json_text(fields, &["tools"], rows)?,
        template_kwargs: json_text(fields, &["template_kwargs", "chat_template_kwargs"], rows)?,
    })
}

/// Text, a message, messages, or an object with the response and its score.
fn response<'a>(
    raw: Raw<'a>,
    field: &str,
    prompt: &[Message],
    rows: Rows,
) -> Result<(Vec<Message<'a>>, Option<f32>), Reject> {
    let object = raw.get().starts_with('{');
    let fields = object.then(|| Fields::parse(raw.get()).ok()).flatten();
    let described = fields.and_then(|fields| Some((fields.any(&TEXT)?, fields.any(&SCORE))));
    let (mut messages, score) = match described {
        Some(((key, words), score)) => (
            text_or_chat(words, format_args!("{field}.{key}"), "assistant", rows)?,
            score
                .map(|(key, raw)| number_of(raw, &format!("{field}.{key}")))
                .transpose()?,
        ),
        None => (text_or_chat(raw, field, "assistant", rows)?, None),
    };
    if messages.len() > prompt.len() && messages.starts_with(prompt) {
        messages.drain(..prompt.len());
    }
    check_response(messages.last(), field)?;
    if let Some(other) = messages
        .iter()
        .find(|message| !matches!(message.role, "assistant" | "tool"))
    {
        return Err(Reject {
            reason: "not_assistant",
            field: field.to_owned(),
            value: other.role.to_owned(),
            rule: format!(
                "{field} must be the assistant's alone; what comes before belongs into the prompt"
            ),
            remedy: "move the earlier turns into the prompt",
        });
    }
    Ok((messages, score))
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
