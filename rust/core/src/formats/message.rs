//! One message: a {role, content} or {from, value} object with whatever else it has.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::fmt::Display;

use super::alternatives::contradiction;
use super::json::{Fields, sound, text, without_nulls};
use super::raw::Raw;
use super::{Reject, Rows};
use crate::message::READ_KEYS;
pub use crate::message::{Message, is_same_chat};
use crate::reject::shorten;

/// Keys under which other programs have a message's text.
const LIKE_CONTENT: [&str; 12] = [
    "content",
    "value",
    "text",
    "message",
    "body",
    "contents",
    "parts",
    "utterance",
    "response",
    "prompt",
    "completion",
    "answer",
];

/// One message object: {role, content, ...} or {from, value, ...}. Content that is absent or null is empty.
pub fn message<'a>(
    raw: Raw<'a>,
    field: impl Display,
    origin: &Origin,
) -> Result<Message<'a>, Reject> {
    match Fields::parse(raw.get()) {
        Ok(fields) => message_of(&fields, field, origin),
        Err(_) => Err(malformed(&field, shorten(raw.get()))),
    }
}

/// As `message`, of an object's fields.
pub fn message_of<'a>(
    fields: &Fields<'a>,
    field: impl Display,
    origin: &Origin,
) -> Result<Message<'a>, Reject> {
    let malformed = |names: String| malformed(&field, names);
    fields.check_once(format_args!("{field}."))?;
    let (role_key, content_key) = keys(fields);
    let role = fields
        .get(role_key)
        .ok_or_else(|| malformed(fields.names()))?;
    let name = text(role, format_args!("{field}.{role_key}"))?;
    let content = fields.get(content_key);
    if name == "function_call" {
        let calls = content.ok_or_else(|| malformed(fields.names()))?;
        let calls = tool_calls(calls, format_args!("{field}.{content_key}"))?;
        let others = extra(
            fields,
            &field,
            &["role", "content", "from", "value", "tool_calls"],
            origin,
        )?;
        return Ok(Message {
            role: "assistant",
            content: Cow::Borrowed(""),
            extra: Some(Cow::Owned(joined(&calls, others.as_deref()))),
        });
    }
    let role = role_name(&name, format_args!("{field}.{role_key}"))?;
    if let Some((other_key, said)) = second_statement(fields, role_key) {
        let own = content.map_or(Cow::Borrowed(""), |raw| {
            content_text(raw, "").unwrap_or_default()
        });
        if (said.role, said.content.trim()) != (role, own.trim()) {
            let names = [content_key, other_key].map(|key| format!("{field}.{key}"));
            let raw = fields.get(other_key).or(content);
            let raw = raw.ok_or_else(|| malformed(fields.names()))?;
            return Err(contradiction(&names[0], &names[1], raw));
        }
    }
    let content = match content {
        Some(content) => content_text(content, format_args!("{field}.{content_key}"))?,
        None if lacks_content(fields, content_key) => return Err(malformed(fields.names())),
        None => Cow::Borrowed(""),
    };
    Ok(Message {
        role,
        content,
        extra: extra(
            fields,
            &field,
            &["role", "content", role_key, content_key],
            origin,
        )?,
    })
}

fn malformed(field: &impl Display, value: String) -> Reject {
    Reject {
        reason: "not_a_message",
        field: field.to_string(),
        value,
        rule: format!("{field} must be a message, {{role, content}} or {{from, value}}"),
        remedy: "give it both keys",
    }
}

/// The names of the role and of the content.
pub fn keys(fields: &Fields) -> (&'static str, &'static str) {
    let has = |name| fields.get(name).is_some();
    if has("from") && (!has("role") || (has("value") && !has("content"))) {
        ("from", "value")
    } else {
        ("role", "content")
    }
}

/// The message of the other two names, {role, content} or {from, value}, and its content's name, where it is whole.
pub fn second_statement<'a>(
    fields: &Fields<'a>,
    role_key: &str,
) -> Option<(&'static str, Message<'a>)> {
    let (role_key, content_key) = match role_key {
        "role" => ("from", "value"),
        _ => ("role", "content"),
    };
    let role = known_role(&text(fields.get(role_key)?, "").ok()?)?;
    let content = text(fields.get(content_key)?, "").ok()?;
    Some((content_key, Message::new(role, content)))
}

/// Whether a message has its text elsewhere than in its content: absent content alone is empty.
pub fn lacks_content(fields: &Fields, content_key: &str) -> bool {
    fields.get(content_key).is_none()
        && fields.any(&READ_KEYS).is_none()
        && fields.any(&LIKE_CONTENT).is_some()
}

/// The message's further keys as a JSON object.
fn extra<'a>(
    fields: &Fields<'a>,
    field: &impl Display,
    taken: &[&str],
    origin: &Origin,
) -> Result<Option<Cow<'a, str>>, Reject> {
    if is_written(fields) {
        match fields.get("extra") {
            None => return Ok(None),
            Some(raw) if origin.is_written() => {
                return text(raw, format_args!("{field}.extra")).map(Some);
            }
            Some(_) => {}
        }
    }
    let mut others = fields.others(taken)?;
    if let Some(text) = &mut others {
        if origin.has_null_members() {
            *text = without_nulls(text).into_owned();
        }
    }
    Ok(others.map(Cow::Owned))
}

/// Where a row comes from; what needs a look at it is found out when it is asked for.
pub struct Origin<'f, 'a> {
    rows: Rows,
    fields: Option<&'f Fields<'a>>,
    is_written: OnceCell<bool>,
}

impl<'f, 'a> Origin<'f, 'a> {
    pub fn new(rows: Rows, fields: &'f Fields<'a>) -> Self {
        Self {
            rows,
            fields: Some(fields),
            is_written: OnceCell::new(),
        }
    }

    /// Of a chat that a text spells.
    pub fn spelled() -> Self {
        Self {
            rows: Rows::Json,
            fields: None,
            is_written: OnceCell::new(),
        }
    }

    /// Of a field that is carried: a frame that `read_*` made has it as it came.
    pub fn of_carried(&self) -> Self {
        let rows = if self.is_written() {
            Rows::Typed
        } else {
            self.rows
        };
        Self {
            rows,
            fields: None,
            is_written: OnceCell::new(),
        }
    }

    /// Whether it is of a frame that `read_*` made: it has a number `row`, and messages {role, content, extra}.
    pub fn is_written(&self) -> bool {
        let look = |fields: &Fields| {
            let is_number = |raw: Raw| raw.get().bytes().all(|byte| byte.is_ascii_digit());
            let first = || {
                let chat = fields.get("prompt")?.items()?;
                Fields::parse(chat.first()?.get()).ok()
            };
            fields.get("row").is_some_and(is_number) && first().is_some_and(|it| is_written(&it))
        };
        *self
            .is_written
            .get_or_init(|| self.fields.is_some_and(look))
    }

    /// Whether a member that is null is one that is not there.
    pub fn has_null_members(&self) -> bool {
        self.rows == Rows::Typed && !self.is_written()
    }
}

/// Whether the message is of a frame that `read_*` made: {role, content, extra}, where extra is null or an object as text.
fn is_written(fields: &Fields) -> bool {
    let known = |(name, raw): &(Cow<str>, Raw)| match &**name {
        "role" | "content" => raw.get().starts_with('"'),
        "extra" => raw.get() == "null" || raw.get().starts_with("\"{"),
        _ => false,
    };
    fields.0.len() == 3 && fields.0.iter().all(known)
}

/// An object with the members of another one behind its own.
fn joined(object: &str, others: Option<&str>) -> String {
    let Some(others) = others else {
        return object.to_owned();
    };
    format!("{},{}", &object[..object.len() - 1], &others[1..])
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
        let Some(fields) = fields.filter(is_text) else {
            return Err(Reject {
                reason: "not_a_string",
                field: field.to_string(),
                value: shorten(raw.get()),
                rule: format!("{field} must be text, or parts that are all {{type: text, text}}"),
                remedy: "leave out what is not text, or drop the row",
            });
        };
        if let Some(words) = fields.get("text") {
            joined.push_str(&text(words, field)?);
        }
    }
    Ok(Cow::Owned(joined))
}

/// The calls of a turn `function_call`, as `{"tool_calls": [...]}`: its value is one call {name, arguments}, or a list
/// of them, as JSON text.
fn tool_calls(raw: Raw, field: impl Display + Copy) -> Result<String, Reject> {
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
    Ok(format!("{{\"tool_calls\":[{}]}}", functions.join(",")))
}

/// What a role is called here.
pub fn known_role(name: &str) -> Option<&'static str> {
    Some(match name {
        "user" | "human" => "user",
        "assistant" | "gpt" | "chatgpt" | "bot" | "model" => "assistant",
        "tool" | "observation" | "function" => "tool",
        "system" => "system",
        "developer" => "developer",
        _ => return None,
    })
}

fn role_name(name: &str, field: impl Display) -> Result<&'static str, Reject> {
    known_role(name).ok_or_else(|| Reject {
        reason: "unknown_role",
        field: field.to_string(),
        value: shorten(name),
        rule: "a role must be system, developer, user, assistant or tool (ShareGPT: system, human, gpt, \
               function_call, observation)"
            .into(),
        remedy: "rename the role",
    })
}
