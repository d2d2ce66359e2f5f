//! Messages: from role/content and from/value objects, from plain text, and from whole transcripts.

use std::borrow::Cow;
use std::fmt::Display;

use super::json::{Fields, sound, text, without_nulls};
use super::raw::Raw;
use super::{Reject, Rows};
pub use crate::message::Message;
use crate::reject::shorten;

/// One message object: {role, content, ...} or {from, value, ...}.
pub fn message(raw: Raw<'_>, field: impl Display, rows: Rows) -> Result<Message<'_>, Reject> {
    let malformed = |names: String| Reject {
        reason: "not_a_message",
        field: field.to_string(),
        value: names,
        rule: format!("{field} must be a message, {{role, content}} or {{from, value}}"),
        remedy: "give it both keys",
    };
    let fields = Fields::parse(raw.get()).map_err(|_| malformed(shorten(raw.get())))?;
    let (role_key, content_key) = if fields.get("from").is_some() {
        ("from", "value")
    } else {
        ("role", "content")
    };
    let role = fields
        .get(role_key)
        .ok_or_else(|| malformed(fields.names()))?;
    let name = text(role, format_args!("{field}.{role_key}"))?;
    let content = fields.get(content_key);
    if name == "function_call" {
        let calls = content.ok_or_else(|| malformed(fields.names()))?;
        return tool_calls(calls, format_args!("{field}.{content_key}"));
    }
    let role = role_name(&name, format_args!("{field}.{role_key}"))?;
    let content = match content {
        Some(content) => content_text(content, format_args!("{field}.{content_key}"))?,
        // A turn that only calls tools has no content.
        None if fields.get("tool_calls").is_some() => Cow::Borrowed(""),
        None => return Err(malformed(fields.names())),
    };
    Ok(Message {
        role,
        content,
        extra: extra(&fields, &field, &[role_key, content_key], rows)?,
    })
}

fn extra<'a>(
    fields: &Fields<'a>,
    field: &impl Display,
    taken: &[&str],
    rows: Rows,
) -> Result<Option<Cow<'a, str>>, Reject> {
    if fields.0.len() <= taken.len() {
        return Ok(None);
    }
    if let Some(raw) = fields.get("extra").filter(|raw| raw.get().starts_with('"')) {
        let object = text(raw, format_args!("{field}.extra"))?;
        if object.starts_with('{') {
            return Ok(Some(object)); // a message that this module wrote
        }
    }
    let mut others = fields.others(taken)?;
    if let (Rows::Typed, Some(text)) = (rows, &mut others) {
        *text = without_nulls(text).into_owned();
    }
    Ok(others.map(Cow::Owned))
}

/// Text, or a list of parts that are all text: joined.
fn content_text(raw: Raw<'_>, field: impl Display + Copy) -> Result<Cow<'_, str>, Reject> {
    if !raw.get().starts_with('[') {
        return text(raw, field);
    }
    let parts = raw.items().unwrap_or_default();
    let mut joined = String::new();
    for part in parts {
        let fields = Fields::parse(part.get()).ok();
        let is_text = |fields: &Fields| {
            fields
                .get("type")
                .is_some_and(|kind| kind.get() == "\"text\"")
        };
        let Some(words) = fields.filter(is_text).and_then(|fields| fields.get("text")) else {
            return Err(Reject {
                reason: "not_a_string",
                field: field.to_string(),
                value: shorten(raw.get()),
                rule: format!("{field} must be text, or parts that are all {{type: text, text}}"),
                remedy: "leave out what is not text, or drop the row",
            });
        };
        joined.push_str(&text(words, field)?);
    }
    Ok(Cow::Owned(joined))
}

/// A turn `function_call`: its value is one call {name, arguments}, or a list of them, as JSON text.
fn tool_calls<'a>(raw: Raw, field: impl Display + Copy) -> Result<Message<'a>, Reject> {
    let refused = |value: &str| Reject {
        reason: "not_a_tool_call",
        field: field.to_string(),
        value: shorten(value),
        rule: format!("{field} must be a call {{name, arguments}} or a list of them, as JSON"),
        remedy: "mend the call",
    };
    let json = if raw.get().starts_with('"') {
        text(raw, field)?
    } else {
        Cow::Borrowed(raw.get())
    };
    let parsed = Raw::parse(json.trim()).map_err(|_| refused(&json))?;
    sound(parsed, field)?;
    let calls = parsed.items().unwrap_or_else(|| vec![parsed]);
    let mut functions = Vec::with_capacity(calls.len());
    for call in calls {
        let named = Fields::parse(call.get());
        if !named.is_ok_and(|fields| fields.get("name").is_some()) {
            return Err(refused(&json));
        }
        functions.push(format!(
            "{{\"type\":\"function\",\"function\":{}}}",
            call.get()
        ));
    }
    let extra = format!("{{\"tool_calls\":[{}]}}", functions.join(","));
    Ok(Message {
        role: "assistant",
        content: Cow::Borrowed(""),
        extra: Some(Cow::Owned(extra)),
    })
}

fn role_name(name: &str, field: impl Display) -> Result<&'static str, Reject> {
    Ok(match name {
        "user" | "human" => "user",
        "assistant" | "gpt" | "chatgpt" | "bot" | "model" => "assistant",
        "tool" | "observation" | "function" => "tool",
        "system" => "system",
        "developer" => "developer",
        _ => {
            return Err(Reject {
                reason: "unknown_role",
                field: field.to_string(),
                value: shorten(name),
                rule: "a role must be system, developer, user, assistant or tool (ShareGPT: system, human, gpt, \
                       function_call, observation)"
                    .into(),
                remedy: "rename the role",
            });
        }
    })
}

/// A list of messages.
pub fn chat(raw: Raw<'_>, field: impl Display, rows: Rows) -> Result<Vec<Message<'_>>, Reject> {
    let items = raw.items().ok_or_else(|| Reject {
        reason: "not_a_chat",
        field: field.to_string(),
        value: shorten(raw.get()),
        rule: format!("{field} must be a list of messages"),
        remedy: "write it as [{\"role\": ..., \"content\": ...}, ...]",
    })?;
    let messages = items.into_iter().enumerate();
    messages
        .map(|(index, item)| message(item, format_args!("{field}[{index}]"), rows))
        .collect()
}

/// Text as one message of `role`, one message, or a list of messages.
pub fn text_or_chat<'a>(
    raw: Raw<'a>,
    field: impl Display,
    role: &'static str,
    rows: Rows,
) -> Result<Vec<Message<'a>>, Reject> {
    match raw.get().as_bytes().first() {
        Some(b'[') => chat(raw, field, rows),
        Some(b'{') => Ok(vec![message(raw, field, rows)?]),
        _ => Ok(vec![Message::new(role, text(raw, field)?)]),
    }
}

/// The turns of a `\n\nHuman: ...\n\nAssistant: ...` transcript; one space after the colon belongs to the marker.
pub fn transcript<'a>(text: &'a str, field: &str) -> Result<Vec<Message<'a>>, Reject> {
    let mut turns = turn_starts(text);
    if turns.first().is_none_or(|&(start, ..)| start != 0) {
        return Err(Reject {
            reason: "not_a_transcript",
            field: field.to_string(),
            value: shorten(text),
            rule: format!("{field} must be a transcript that begins with \"\\n\\nHuman:\""),
            remedy: "mark each turn, or use another format",
        });
    }
    turns.push((text.len(), text.len(), ""));
    let message = |pair: &[(usize, usize, &'static str)]| {
        let content = &text[pair[0].1..pair[1].0];
        Message::new(pair[0].2, content.strip_prefix(' ').unwrap_or(content))
    };
    Ok(turns.windows(2).map(message).collect())
}

/// Where the last answer of a transcript begins, if its last turn is the assistant's.
pub fn last_answer(text: &str) -> Option<usize> {
    let at = text.rfind(ASSISTANT)?;
    if text.rfind(HUMAN).is_some_and(|human| human > at) {
        return None;
    }
    let from = at + ASSISTANT.len();
    Some(from + usize::from(text[from..].starts_with(' ')))
}

const HUMAN: &str = "\n\nHuman:";
const ASSISTANT: &str = "\n\nAssistant:";

/// (where the marker begins, where it ends, role) of each turn, in order.
fn turn_starts(text: &str) -> Vec<(usize, usize, &'static str)> {
    const MARKERS: [(&str, &str); 2] = [(HUMAN, "user"), (ASSISTANT, "assistant")];
    let mut turns = Vec::new();
    let mut from = 0;
    while let Some(found) = memchr::memchr(b'\n', &text.as_bytes()[from..]) {
        let start = from + found;
        let marker = MARKERS
            .iter()
            .find(|(marker, _)| text.as_bytes()[start..].starts_with(marker.as_bytes()));
        from = start + marker.map_or(1, |(marker, _)| marker.len());
        turns.extend(marker.map(|(_, role)| (start, from, *role)));
    }
    turns
}
