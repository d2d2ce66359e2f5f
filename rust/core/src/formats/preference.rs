//! One preference row into a pair.

use std::borrow::Cow;

use super::alternatives::{contradiction, is_alike};
use super::chat::{Said, chat, text_as_chat, text_or_chat, transcript};
use super::checks::check_prompt;
use super::detect::of_format;
use super::fields::{
    flag, json_text, missing, number, others, required, spelled_lists, system, unquoted, with_lists,
};
use super::instruction::question;
use super::json::{Fields, text};
use super::message::{Message, Origin};
use super::raw::Raw;
use super::rivals::check_rivals;
use super::sides::Sides;
use super::{Format, Reject, Rows};
use crate::reject::shorten;

/// A prompt with two responses, each of one message or several, the last of them the assistant's.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair<'a> {
    pub prompt: Vec<Message<'a>>,
    pub chosen: Vec<Message<'a>>,
    pub rejected: Vec<Message<'a>>,
    pub score_chosen: Option<f32>,
    pub score_rejected: Option<f32>,
    pub chosen_complete: bool,
    pub rejected_complete: bool,
    /// JSON texts, as the chat template takes them.
    pub tools: Option<Cow<'a, str>>,
    pub template_kwargs: Option<Cow<'a, str>>,
}

/// Hand a preference row to `found`, with its further fields as a JSON object if they are to be carried.
pub fn parse_pair<T>(
    row: &[u8],
    format: Format,
    rows: Rows,
    carry: bool,
    found: impl FnOnce(&Pair, Option<&str>) -> T,
) -> Result<T, Reject> {
    let fields = Fields::of_row(row)?;
    let others = others(&fields, format, carry)?;
    let lists = match format {
        Format::Alpaca => spelled_lists(&fields, &["output", "history"]),
        _ => Vec::new(),
    };
    let fields = with_lists(fields, &lists);
    let parsed = parse(&fields, format, rows, |pair| found(pair, others.as_deref()));
    parsed.map_err(|reject| of_format(&fields, format, reject))
}

/// Parse the row and hand the pair, which may borrow from texts that live no longer, to `found`.
fn parse<T>(
    fields: &Fields,
    format: Format,
    rows: Rows,
    found: impl FnOnce(&Pair) -> T,
) -> Result<T, Reject> {
    let origin = &Origin::new(rows, fields);
    let mut texts = (Cow::Borrowed(""), Cow::Borrowed(""));
    if format == Format::Hh {
        texts.0 = text(required(fields, "chosen")?, "chosen")?;
        texts.1 = text(required(fields, "rejected")?, "rejected")?;
    }
    let mut sides = match format {
        Format::Hh => Sides::of_chats(
            transcript(&texts.0, "chosen")?,
            transcript(&texts.1, "rejected")?,
        ),
        Format::ShareGpt => sharegpt(fields, origin)?,
        Format::Shp => shp(fields)?,
        Format::Alpaca => alpaca(fields, origin)?,
        _ => preference(fields, origin)?,
    };
    sides.part(system(fields)?.as_ref())?;
    check_prompt(&sides.prompt)?;
    check_rivals(fields, format, origin, || sides.reading(fields))?;
    let scores = scores(fields, format)?;
    Ok(found(&Pair {
        prompt: sides.prompt,
        chosen: sides.chosen,
        rejected: sides.rejected,
        score_chosen: scores.0,
        score_rejected: scores.1,
        chosen_complete: flag(fields, "chosen_complete")?,
        rejected_complete: flag(fields, "rejected_complete")?,
        tools: json_text(fields, &["tools"], origin)?,
        template_kwargs: json_text(fields, &["template_kwargs", "chat_template_kwargs"], origin)?,
    }))
}

fn preference<'a>(fields: &Fields<'a>, origin: &Origin) -> Result<Sides<'a>, Reject> {
    let (chosen, rejected) = (required(fields, "chosen")?, required(fields, "rejected")?);
    let chosen = text_or_chat(chosen, "chosen", "assistant", origin)?;
    let rejected = text_or_chat(rejected, "rejected", "assistant", origin)?;
    let prompt = match fields.get("prompt") {
        Some(prompt) => text_or_chat(prompt, "prompt", "user", origin)?,
        // Only whole chats can do without a prompt.
        None if !chosen.is_text && !rejected.is_text => Said::of_chat(Vec::new()),
        None => return Err(missing(fields, "prompt")),
    };
    Ok(Sides::new(
        prompt,
        chosen,
        rejected,
        ["prompt", "chosen", "rejected"],
    ))
}

fn sharegpt<'a>(fields: &Fields<'a>, origin: &Origin) -> Result<Sides<'a>, Reject> {
    let side = |name: &'static str| {
        let raw = required(fields, name)?;
        let said = text_or_chat(raw, name, "assistant", origin)?;
        if said.is_text {
            return Err(not_a_message(raw, name));
        }
        Ok(said)
    };
    let prompt = chat(required(fields, "conversations")?, "conversations", origin)?;
    let names = ["conversations", "chosen", "rejected"];
    Ok(Sides::new(
        Said::of_chat(prompt),
        side("chosen")?,
        side("rejected")?,
        names,
    ))
}

fn not_a_message(raw: Raw, field: &str) -> Reject {
    Reject {
        reason: "not_a_message",
        field: field.to_owned(),
        value: shorten(raw.get()),
        rule: format!("{field} must be a message, {{role, content}} or {{from, value}}"),
        remedy: "give it both keys",
    }
}

/// `labels` 1: A is preferred.
fn shp<'a>(fields: &Fields<'a>) -> Result<Sides<'a>, Reject> {
    let (chosen, rejected) = if a_is_chosen(fields)? {
        ("human_ref_A", "human_ref_B")
    } else {
        ("human_ref_B", "human_ref_A")
    };
    let said =
        |name: &'static str, role| text_as_chat(text(required(fields, name)?, name)?, name, role);
    Ok(Sides::new(
        said("history", "user")?,
        said(chosen, "assistant")?,
        said(rejected, "assistant")?,
        ["history", chosen, rejected],
    ))
}

fn a_is_chosen(fields: &Fields) -> Result<bool, Reject> {
    let labels = required(fields, "labels")?;
    match unquoted(labels) {
        "1" | "1.0" | "true" | "True" => Ok(true),
        "0" | "0.0" | "false" | "False" => Ok(false),
        other => Err(Reject {
            reason: "not_a_label",
            field: "labels".into(),
            value: shorten(other),
            rule: "labels must be 1 (A is preferred) or 0".into(),
            remedy: "mend the field, or drop the row",
        }),
    }
}

/// `chosen` and `rejected`, or `output` [chosen, rejected].
fn alpaca<'a>(fields: &Fields<'a>, origin: &Origin) -> Result<Sides<'a>, Reject> {
    let prompt = question(fields)?;
    let answer = |raw, name| text_or_chat(raw, name, "assistant", origin);
    let named = fields.get("chosen").is_some() || fields.get("output").is_none();
    if named {
        let chosen = answer(required(fields, "chosen")?, "chosen")?;
        let rejected = answer(required(fields, "rejected")?, "rejected")?;
        if let Some([first, second]) = fields.get("output").and_then(two) {
            for (said, raw, names) in [
                (&chosen, first, ("chosen", "output[0]")),
                (&rejected, second, ("rejected", "output[1]")),
            ] {
                let other = answer(raw, names.1)?;
                if !is_alike(&said.messages, &other.messages) {
                    return Err(contradiction(names.0, names.1, raw));
                }
            }
        }
        let fields = ["instruction", "chosen", "rejected"];
        return Ok(Sides::new(prompt, chosen, rejected, fields));
    }
    let output = required(fields, "output")?;
    let Some([chosen, rejected]) = two(output) else {
        return Err(Reject {
            reason: "not_a_pair",
            field: "output".into(),
            value: shorten(output.get()),
            rule: "output must be a list of two, [chosen, rejected]".into(),
            remedy: "leave two, or write chosen and rejected",
        });
    };
    Ok(Sides::new(
        prompt,
        answer(chosen, "output[0]")?,
        answer(rejected, "output[1]")?,
        ["instruction", "output[0]", "output[1]"],
    ))
}

/// The items of a list of two.
fn two(raw: Raw<'_>) -> Option<[Raw<'_>; 2]> {
    raw.items()?.try_into().ok()
}

/// Of the chosen and of the rejected response; SHP numbers its answers by A and B.
fn scores(fields: &Fields, format: Format) -> Result<(Option<f32>, Option<f32>), Reject> {
    if format == Format::Shp {
        let (a, b) = (number(fields, &["score_A"])?, number(fields, &["score_B"])?);
        let (chosen, rejected, name) = if a_is_chosen(fields)? {
            (a, b, "score_A")
        } else {
            (b, a, "score_B")
        };
        return match (chosen, rejected, fields.get(name)) {
            (Some(won), Some(lost), Some(raw)) if won < lost => {
                Err(contradiction("labels", name, raw))
            }
            _ => Ok((chosen, rejected)),
        };
    }
    Ok((
        number(fields, &["score_chosen", "chosen_score", "chosen-rating"])?,
        number(
            fields,
            &["score_rejected", "rejected_score", "rejected-rating"],
        )?,
    ))
}
