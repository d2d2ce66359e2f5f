//! One preference row into a pair.

use serde_json::value::RawValue;

use super::json::{Fields, shorten};
use super::message::{Message, chat, message, text, text_or_chat, transcript};
use super::{Format, Reject};

/// A prompt with two responses, each the assistant's last turn.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    pub prompt: Vec<Message>,
    pub chosen: Message,
    pub rejected: Message,
    pub score_chosen: Option<f32>,
    pub score_rejected: Option<f32>,
    pub chosen_complete: bool,
    pub rejected_complete: bool,
    /// JSON texts, as the chat template takes them.
    pub tools: Option<String>,
    pub template_kwargs: Option<String>,
    /// All further fields, as a JSON object.
    pub others: Option<String>,
}

/// Fields that the pair holds itself; `row` is always counted anew.
const KNOWN: [&str; 10] = [
    "row",
    "prompt",
    "chosen",
    "rejected",
    "score_chosen",
    "score_rejected",
    "chosen_complete",
    "rejected_complete",
    "tools",
    "template_kwargs",
];

pub fn parse(row: &[u8], format: Format) -> Result<Pair, Reject> {
    let fields = Fields::of_row(row)?;
    let mut chosen = whole_chat(&fields, format, "chosen")?;
    let mut rejected = whole_chat(&fields, format, "rejected")?;
    let last_chosen = response(chosen.pop(), "chosen")?;
    let last_rejected = response(rejected.pop(), "rejected")?;
    check_prompts(&chosen, &rejected)?;
    if last_chosen == last_rejected {
        return Err(Reject {
            reason: "identical_pair",
            field: "rejected".into(),
            value: shorten(&last_rejected.content),
            rule: "chosen and rejected must differ".into(),
            remedy: "drop the row",
        });
    }
    let mut known = KNOWN.to_vec();
    if format == Format::ShareGpt {
        known.extend(["conversations", "system"]);
    }
    Ok(Pair {
        prompt: chosen,
        chosen: last_chosen,
        rejected: last_rejected,
        score_chosen: score(&fields, "score_chosen")?,
        score_rejected: score(&fields, "score_rejected")?,
        chosen_complete: flag(&fields, "chosen_complete")?,
        rejected_complete: flag(&fields, "rejected_complete")?,
        tools: json_text(&fields, "tools")?,
        template_kwargs: json_text(&fields, "template_kwargs")?,
        others: fields.others(&known),
    })
}

/// Prompt and response of one side as one chat.
fn whole_chat(fields: &Fields, format: Format, side: &str) -> Result<Vec<Message>, Reject> {
    let raw = required(fields, side)?;
    match format {
        Format::Hh => transcript(&text(raw, side)?, side),
        Format::UltraFeedback => chat(raw, side),
        Format::ShareGpt => {
            let mut messages = sharegpt_prompt(fields)?;
            messages.push(message(raw, side)?);
            Ok(messages)
        }
        _ => {
            let answer = text_or_chat(raw, side, "assistant")?;
            let Some(prompt) = fields.get("prompt") else {
                // Only whole chats can do without a prompt.
                return if raw.get().starts_with('[') {
                    Ok(answer)
                } else {
                    Err(missing(fields, "prompt"))
                };
            };
            let mut messages = text_or_chat(prompt, "prompt", "user")?;
            if answer.starts_with(&messages) && !messages.is_empty() {
                return Ok(answer); // the response repeats its prompt
            }
            messages.extend(answer);
            Ok(messages)
        }
    }
}

fn sharegpt_prompt(fields: &Fields) -> Result<Vec<Message>, Reject> {
    let mut messages = Vec::new();
    if let Some(system) = fields.get("system") {
        let system = text(system, "system")?;
        messages.extend((!system.is_empty()).then(|| Message::new("system", system)));
    }
    messages.extend(chat(required(fields, "conversations")?, "conversations")?);
    Ok(messages)
}

/// The last turn of a chat, checked: written by the assistant, not empty.
pub fn response(last: Option<Message>, field: &str) -> Result<Message, Reject> {
    let reject = |reason, value: &str, rule: String, remedy| {
        Err(Reject {
            reason,
            field: field.to_owned(),
            value: shorten(value),
            rule,
            remedy,
        })
    };
    match last {
        None => reject(
            "empty_response",
            "[]",
            format!("{field} must hold a response"),
            "drop the row",
        ),
        Some(message) if message.role != "assistant" => {
            let rule = format!("the last turn of {field} must be the assistant's");
            reject(
                "not_assistant",
                &message.role,
                rule,
                "drop the turn after it, or the row",
            )
        }
        Some(message) if message.is_blank() => {
            let rule = format!("the response of {field} must not be empty");
            reject("empty_response", &message.content, rule, "drop the row")
        }
        Some(message) => Ok(message),
    }
}

fn check_prompts(chosen: &[Message], rejected: &[Message]) -> Result<(), Reject> {
    if chosen != rejected {
        let shared = chosen
            .iter()
            .zip(rejected)
            .take_while(|(a, b)| a == b)
            .count();
        let shown = rejected
            .get(shared)
            .or(chosen.get(shared))
            .map_or("", |message| message.content.as_str());
        return Err(Reject {
            reason: "diverging_chats",
            field: format!("rejected[{shared}]"),
            value: shorten(shown),
            rule: format!(
                "chosen and rejected must differ in the last turn alone; they part at turn {} of {} and {}",
                shared + 1,
                chosen.len() + 1,
                rejected.len() + 1
            ),
            remedy: "drop the row",
        });
    }
    prompt(chosen)
}

/// A prompt must say something.
pub fn prompt(messages: &[Message]) -> Result<(), Reject> {
    if messages.iter().all(Message::is_blank) {
        return Err(Reject {
            reason: "empty_prompt",
            field: "prompt".into(),
            value: shorten(
                messages
                    .last()
                    .map_or("[]", |message| message.content.as_str()),
            ),
            rule: "the prompt must not be empty".into(),
            remedy: "drop the row",
        });
    }
    Ok(())
}

/// The field's value, or a `missing_field` reject that shows the fields that are there.
pub fn required<'a>(fields: &Fields<'a>, name: &str) -> Result<&'a RawValue, Reject> {
    fields.get(name).ok_or_else(|| missing(fields, name))
}

pub fn missing(fields: &Fields, name: &str) -> Reject {
    Reject {
        reason: "missing_field",
        field: name.to_owned(),
        value: shorten(&fields.names()),
        rule: format!("{name} must be there and not null; the value shows the row's fields"),
        remedy: "fill or rename the field",
    }
}

fn score(fields: &Fields, name: &str) -> Result<Option<f32>, Reject> {
    let number = |raw: &RawValue| {
        let parsed = serde_json::from_str::<f64>(raw.get());
        parsed
            .map(|value| value as f32)
            .map_err(|_| wrong_type("not_a_number", name, raw, "a number or null"))
    };
    fields.get(name).map(number).transpose()
}

fn flag(fields: &Fields, name: &str) -> Result<bool, Reject> {
    let truth = |raw: &RawValue| {
        serde_json::from_str(raw.get())
            .map_err(|_| wrong_type("not_a_boolean", name, raw, "true, false or null"))
    };
    fields.get(name).map_or(Ok(true), truth)
}

/// A field that holds JSON, as text or as it is; checked, so that the template can read it.
fn json_text(fields: &Fields, name: &str) -> Result<Option<String>, Reject> {
    let Some(raw) = fields.get(name) else {
        return Ok(None);
    };
    let Ok(quoted) = serde_json::from_str::<String>(raw.get()) else {
        return Ok(Some(raw.get().to_owned()));
    };
    match serde_json::from_str::<&RawValue>(&quoted) {
        Ok(_) => Ok(Some(quoted)),
        Err(_) => Err(wrong_type(
            "broken_json",
            name,
            raw,
            "JSON, or JSON as text",
        )),
    }
}

fn wrong_type(reason: &'static str, name: &str, raw: &RawValue, what: &str) -> Reject {
    let rule = format!("{name} must be {what}");
    Reject {
        reason,
        field: name.to_owned(),
        value: shorten(raw.get()),
        rule,
        remedy: "mend the field",
    }
}
