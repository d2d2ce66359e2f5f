//! Messages: from role/content and from/value objects, from plain text, and from whole transcripts.

use serde_json::value::RawValue;

use super::Reject;
use super::json::{Fields, shorten};

/// One turn of a chat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub role: String,
    pub content: String,
    /// A JSON object of the message's further keys (tool calls, name, ...), if any.
    pub extra: Option<String>,
}

impl Message {
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Self {
            role: role.to_owned(),
            content: content.into(),
            extra: None,
        }
    }

    pub fn is_blank(&self) -> bool {
        self.content.trim().is_empty()
    }
}

/// A JSON string, or a `not_a_string` reject.
pub fn text(raw: &RawValue, field: &str) -> Result<String, Reject> {
    serde_json::from_str(raw.get()).map_err(|_| Reject {
        reason: "not_a_string",
        field: field.to_owned(),
        value: shorten(raw.get()),
        rule: format!("{field} must be text"),
        remedy: "write it as a JSON string (parts of a content list joined)",
    })
}

/// One message object: {role, content, ...} or {from, value, ...}.
pub fn message(raw: &RawValue, field: &str) -> Result<Message, Reject> {
    let malformed = |names: String| Reject {
        reason: "not_a_message",
        field: field.to_owned(),
        value: names,
        rule: format!("{field} must be a message, {{role, content}} or {{from, value}}"),
        remedy: "give it both keys",
    };
    let fields: Fields =
        serde_json::from_str(raw.get()).map_err(|_| malformed(shorten(raw.get())))?;
    let (role_key, content_key) = if fields.get("from").is_some() {
        ("from", "value")
    } else {
        ("role", "content")
    };
    let role = fields
        .get(role_key)
        .ok_or_else(|| malformed(fields.names()))?;
    let role = role_name(
        &text(role, &format!("{field}.{role_key}"))?,
        &format!("{field}.{role_key}"),
    )?;
    let content = match fields.get(content_key) {
        Some(content) => text(content, &format!("{field}.{content_key}"))?,
        // A turn that only calls tools has no content.
        None if fields.get("tool_calls").is_some() => String::new(),
        None => return Err(malformed(fields.names())),
    };
    let extra = match fields
        .get("extra")
        .map(|raw| serde_json::from_str::<String>(raw.get()))
    {
        Some(Ok(object)) if object.starts_with('{') => Some(object), // a message that this module wrote
        _ => fields.others(&[role_key, content_key]),
    };
    Ok(Message {
        role,
        content,
        extra,
    })
}

fn role_name(name: &str, field: &str) -> Result<String, Reject> {
    let known = match name {
        "human" => "user",
        "gpt" | "chatgpt" | "bot" | "model" => "assistant",
        "observation" | "function" => "tool",
        "system" | "developer" | "user" | "assistant" | "tool" => name,
        _ => {
            return Err(Reject {
                reason: "unknown_role",
                field: field.to_owned(),
                value: shorten(name),
                rule: "a role must be system, developer, user, assistant or tool (ShareGPT: system, human, gpt)".into(),
                remedy: "rename the role",
            });
        }
    };
    Ok(known.to_owned())
}

/// A list of messages.
pub fn chat(raw: &RawValue, field: &str) -> Result<Vec<Message>, Reject> {
    let items: Vec<&RawValue> = serde_json::from_str(raw.get()).map_err(|_| Reject {
        reason: "not_a_chat",
        field: field.to_owned(),
        value: shorten(raw.get()),
        rule: format!("{field} must be a list of messages"),
        remedy: "write it as [{\"role\": ..., \"content\": ...}, ...]",
    })?;
    let messages = items.iter().enumerate();
    messages
        .map(|(index, item)| message(item, &format!("{field}[{index}]")))
        .collect()
}

/// Text as one message of `role`, or a list of messages.
pub fn text_or_chat(raw: &RawValue, field: &str, role: &str) -> Result<Vec<Message>, Reject> {
    if raw.get().starts_with('[') {
        chat(raw, field)
    } else {
        Ok(vec![Message::new(role, text(raw, field)?)])
    }
}

/// The turns of a `\n\nHuman: ...\n\nAssistant: ...` transcript; one space after the colon belongs to the marker.
pub fn transcript(text: &str, field: &str) -> Result<Vec<Message>, Reject> {
    let mut turns = turn_starts(text);
    if turns.first().is_none_or(|&(start, ..)| start != 0) {
        return Err(Reject {
            reason: "not_a_transcript",
            field: field.to_owned(),
            value: shorten(text),
            rule: format!("{field} must be a transcript that begins with \"\\n\\nHuman:\""),
            remedy: "mark each turn, or use another --format",
        });
    }
    turns.push((text.len(), text.len(), ""));
    let message = |pair: &[(usize, usize, &str)]| {
        let content = &text[pair[0].1..pair[1].0];
        Message::new(pair[0].2, content.strip_prefix(' ').unwrap_or(content))
    };
    Ok(turns.windows(2).map(message).collect())
}

/// (where the marker begins, where it ends, role) of each turn, in order.
fn turn_starts(text: &str) -> Vec<(usize, usize, &'static str)> {
    let mut turns = Vec::new();
    for (marker, role) in [("\n\nHuman:", "user"), ("\n\nAssistant:", "assistant")] {
        turns.extend(
            text.match_indices(marker)
                .map(|(start, _)| (start, start + marker.len(), role)),
        );
    }
    turns.sort_unstable();
    turns
}
