//! One row with n responses into a candidate set.

use std::borrow::Cow;

use super::agreement::{agree, contradiction as prompt_mismatch, is_whole, leave_open};
use super::alternatives::{contradiction, is_alike, stated};
use super::chat::{Said, text_or_chat};
use super::checks::{check_prompt, check_response};
use super::detect::of_format;
use super::fields::{
    json_text, missing, number, number_of, others, spelled_lists, system, truth, with_lists,
    with_system,
};
use super::json::Fields;
use super::message::{Message, Origin, is_same_chat};
use super::raw::Raw;
use super::rivals::{Reading, check_rivals};
use super::{Format, Reject, Rows};
use crate::reject::shorten;

/// A prompt with its responses, and a score each where the row has scores.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidates<'a> {
    pub prompt: Vec<Message<'a>>,
    pub responses: Vec<Vec<Message<'a>>>,
    pub scores: Option<Vec<Option<f32>>>,
    pub complete: Option<Vec<bool>>, // false: the response was cut, and no turn end follows it; None: all end
    pub tools: Option<Cow<'a, str>>,
    pub template_kwargs: Option<Cow<'a, str>>,
}

const RESPONSES: [&str; 3] = ["responses", "completions", "candidates"];
const SCORES: [&str; 2] = ["scores", "ratings"];
/// Beside the responses of these names.
const COMPLETE: [&str; 3] = [
    "responses_complete",
    "completions_complete",
    "candidates_complete",
];
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
    let lists = spelled_lists(
        &fields,
        &[&RESPONSES[..], &SCORES[..], &COMPLETE[..]].concat(),
    );
    let fields = with_lists(fields, &lists);
    match parse(&fields, rows) {
        Ok(set) => Ok(found(&set, others.as_deref())),
        Err(reject) => Err(of_format(&fields, Format::Candidates, reject)),
    }
}

fn parse<'a>(fields: &Fields<'a>, rows: Rows) -> Result<Candidates<'a>, Reject> {
    let origin = &Origin::new(rows, fields);
    let read = |name: &str, raw| text_or_chat(raw, name, "user", origin);
    let is_same = |one: &Said, other: &Said| is_alike(&one.messages, &other.messages);
    let (asked, said) = stated(fields, &["prompt", "instruction"], read, is_same)?
        .ok_or_else(|| missing(fields, "prompt"))?;
    let Said {
        messages: mut prompt,
        is_open,
        ..
    } = said;
    if let Some(system) = system(fields)? {
        with_system(&mut prompt, &system)?;
    }
    check_prompt(&prompt)?;
    let read = |name: &str, raw| described(raw, name, origin);
    let is_same = |one: &Vec<Described>, other: &Vec<Described>| {
        let pairs = || one.iter().zip(other);
        one.len() == other.len()
            && pairs().all(|(a, b)| is_alike(&a.0.messages, &b.0.messages) && a.1 == b.1)
    };
    let (name, found) =
        stated(fields, &RESPONSES, read, is_same)?.ok_or_else(|| missing(fields, "responses"))?;
    let (mut responses, mut own) = (Vec::new(), Vec::new());
    for (mut said, score) in found {
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
    check_rivals(fields, Format::Candidates, origin, || Reading {
        asked,
        prompt: &prompt,
        responses: responses.iter().map(|said| (name, &said[..])).collect(),
    })?;
    Ok(Candidates {
        scores: scores(fields, name, own)?,
        complete: complete(fields, name, responses.len())?,
        prompt,
        responses,
        tools: json_text(fields, &["tools"], origin)?,
        template_kwargs: json_text(fields, &["template_kwargs", "chat_template_kwargs"], origin)?,
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
                return Err(prompt_mismatch(&before, asked, &field));
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

/// A response, and the score that stands with it.
type Described<'a> = (Said<'a>, Option<f32>);

/// A list of responses.
fn described<'a>(raw: Raw<'a>, name: &str, origin: &Origin) -> Result<Vec<Described<'a>>, Reject> {
    let items = list(raw, name)?.into_iter().enumerate();
    let read = |(index, item)| response(item, &format!("{name}[{index}]"), origin);
    items.map(read).collect()
}

/// Text, a message, messages, or an object with the response and its score.
fn response<'a>(raw: Raw<'a>, field: &str, origin: &Origin) -> Result<Described<'a>, Reject> {
    let object = raw.get().starts_with('{');
    let fields = object.then(|| Fields::parse(raw.get()).ok()).flatten();
    if let Some(fields) = &fields {
        fields.check_once(format_args!("{field}."))?;
    }
    let fields = fields.filter(|fields| fields.any(&["role", "from"]).is_none());
    let Some(fields) = fields.filter(|fields| fields.any(&TEXT).is_some()) else {
        return Ok((text_or_chat(raw, field, "assistant", origin)?, None));
    };
    let inside = |mut reject: Reject| {
        reject.field = format!("{field}.{}", reject.field);
        reject
    };
    let read = |key: &str, words| text_or_chat(words, key, "assistant", origin);
    let is_same = |one: &Said, other: &Said| is_alike(&one.messages, &other.messages);
    let said = stated(&fields, &TEXT, read, is_same).map_err(inside)?;
    let (_, said) = said.ok_or_else(|| missing(&fields, TEXT[0]))?;
    Ok((said, number(&fields, &SCORE).map_err(inside)?))
}

/// The row's list of scores, or those that stand with the responses.
fn scores(
    fields: &Fields,
    responses: &str,
    own: Vec<Option<f32>>,
) -> Result<Option<Vec<Option<f32>>>, Reject> {
    let read = |name: &str, raw| scores_of(raw, name, responses, own.len());
    let found = stated(fields, &SCORES, read, |one, other| one == other)?;
    let Some((name, scores)) = found else {
        return Ok(own.iter().any(Option::is_some).then_some(own));
    };
    let differ = |(score, own): (&Option<f32>, &Option<f32>)| {
        score.is_some() && own.is_some() && score != own
    };
    if let (true, Some(raw)) = (scores.iter().zip(&own).any(differ), fields.get(name)) {
        return Err(contradiction(responses, name, raw));
    }
    Ok(Some(scores))
}

/// Which of the responses end, where the row says so.
fn complete(fields: &Fields, responses: &str, count: usize) -> Result<Option<Vec<bool>>, Reject> {
    let own = COMPLETE
        .iter()
        .filter(|name| name.strip_suffix("_complete") == Some(responses));
    let found = own
        .chain(&COMPLETE)
        .find_map(|name| fields.get(name).map(|raw| (*name, raw)));
    let Some((name, raw)) = found else {
        return Ok(None);
    };
    let remedy = "give each response true or false (null where it ends)";
    let items = as_many(raw, name, (responses, count), ("flags_mismatch", remedy))?;
    let flag = |(index, item)| truth(item, &format!("{name}[{index}]"));
    let flags = items.into_iter().enumerate().map(flag);
    flags.collect::<Result<_, _>>().map(Some)
}

/// A list of as many scores as there are responses.
fn scores_of(
    raw: Raw,
    name: &str,
    responses: &str,
    count: usize,
) -> Result<Vec<Option<f32>>, Reject> {
    let remedy = "give each response one score (null where it has none)";
    let items = as_many(raw, name, (responses, count), ("scores_mismatch", remedy))?;
    let score = |(index, item): (usize, Raw)| match item.get() {
        "null" => Ok(None),
        _ => number_of(item, &format!("{name}[{index}]")).map(Some),
    };
    items.into_iter().enumerate().map(score).collect()
}

/// The items of a list that has one for each response.
fn as_many<'a>(
    raw: Raw<'a>,
    name: &str,
    (responses, count): (&str, usize),
    (reason, remedy): (&'static str, &'static str),
) -> Result<Vec<Raw<'a>>, Reject> {
    let items = list(raw, name)?;
    if items.len() == count {
        return Ok(items);
    }
    Err(Reject {
        reason,
        field: name.to_owned(),
        value: shorten(raw.get()),
        rule: format!(
            "{name} must be as many as {responses}, {count}; got {}",
            items.len()
        ),
        remedy,
    })
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
