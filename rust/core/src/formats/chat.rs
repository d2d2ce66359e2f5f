//! Chats in each way in which a field writes them: lists of messages, JSON as text, transcripts, plain text.

use std::borrow::Cow;
use std::fmt::Display;

use super::Reject;
use super::json::{Fields, text};
use super::message::{Message, Origin, keys, known_role, message, message_of};
use super::raw::{Element, Raw};
use crate::reject::shorten;

/// What a field that takes a text or a chat says.
pub struct Said<'a> {
    pub messages: Vec<Message<'a>>,
    /// It is one plain text.
    pub is_text: bool,
    /// It is a transcript that ends with `Assistant:`, so that a space before the answer belongs to the marker.
    pub is_open: bool,
}

impl<'a> Said<'a> {
    pub fn of_chat(messages: Vec<Message<'a>>) -> Self {
        Self {
            messages,
            is_text: false,
            is_open: false,
        }
    }

    /// Drop the space before a plain text, which belongs to the marker before it.
    pub fn drop_space(&mut self) {
        if let (true, [answer]) = (self.is_text, &mut self.messages[..]) {
            if answer.content.starts_with(' ') {
                answer.content = match std::mem::take(&mut answer.content) {
                    Cow::Borrowed(words) => Cow::Borrowed(&words[1..]),
                    Cow::Owned(words) => Cow::Owned(words[1..].to_owned()),
                };
            }
        }
    }
}

/// A list of messages, as it is or as JSON text.
pub fn chat<'a>(
    raw: Raw<'a>,
    field: impl Display + Copy,
    origin: &Origin,
) -> Result<Vec<Message<'a>>, Reject> {
    if let Some(elements) = raw.elements() {
        return messages(elements, field, origin);
    }
    if raw.get().starts_with('"') {
        let words = text(raw, field)?;
        if let Some(spelled) = in_text(&words, field)? {
            return Ok(spelled);
        }
    }
    Err(Reject {
        reason: "not_a_chat",
        field: field.to_string(),
        value: shorten(raw.get()),
        rule: format!("{field} must be a list of messages"),
        remedy: "write it as [{\"role\": ..., \"content\": ...}, ...]",
    })
}

fn messages<'a>(
    elements: Vec<Element<'a>>,
    field: impl Display,
    origin: &Origin,
) -> Result<Vec<Message<'a>>, Reject> {
    let one = |(index, (raw, members)): (usize, Element<'a>)| {
        let field = format_args!("{field}[{index}]");
        match members {
            Some(members) => message_of(&Fields(members), field, origin),
            None => message(raw, field, origin),
        }
    };
    elements.into_iter().enumerate().map(one).collect()
}

/// Text as one message of `role`, one message, or several: as a list, as JSON text, or as a transcript.
pub fn text_or_chat<'a>(
    raw: Raw<'a>,
    field: impl Display + Copy,
    role: &'static str,
    origin: &Origin,
) -> Result<Said<'a>, Reject> {
    match raw.get().as_bytes().first() {
        Some(b'[') => {
            return messages(raw.elements().unwrap_or_default(), field, origin).map(Said::of_chat);
        }
        Some(b'{') => return Ok(Said::of_chat(vec![message(raw, field, origin)?])),
        _ => {}
    }
    text_as_chat(text(raw, field)?, field, role)
}

/// A text as one message of `role`, or as the several that it spells: as JSON, or as a transcript.
pub fn text_as_chat<'a>(
    words: Cow<'a, str>,
    field: impl Display + Copy,
    role: &'static str,
) -> Result<Said<'a>, Reject> {
    if let Some(spelled) = in_text(&words, field)? {
        return Ok(Said::of_chat(spelled));
    }
    let is_marked = match role {
        "assistant" => is_transcript(&words) || words.starts_with(ASSISTANT),
        _ => is_transcript(&words) || is_begun(&words),
    };
    if is_marked {
        let mut turns: Vec<Message> = turns(&words).map(owned).collect();
        let is_open = is_begun(&words);
        let begun = |last: &Message| last.role == "assistant" && last.is_blank();
        if role == "user" && turns.last().is_some_and(begun) {
            turns.pop();
        }
        return Ok(Said {
            messages: turns,
            is_text: false,
            is_open,
        });
    }
    Ok(Said {
        messages: vec![Message::new(role, words)],
        is_text: true,
        is_open: false,
    })
}

/// The messages that a text spells as JSON, if it is a chat.
fn in_text(
    words: &str,
    field: impl Display + Copy,
) -> Result<Option<Vec<Message<'static>>>, Reject> {
    let shown = words.trim_start();
    if !shown.starts_with(['[', '{']) {
        return Ok(None);
    }
    if let Some(json) = spelled_chat(shown) {
        let elements = json.elements().unwrap_or_else(|| vec![(json, None)]);
        let found = messages(elements, field, &Origin::spelled())?;
        return Ok(Some(found.into_iter().map(owned).collect()));
    }
    let printed = ["[{'role':", "[{'content':", "[{'from':", "[{'value':"];
    if printed.iter().any(|start| shown.starts_with(start)) {
        return Err(Reject {
            reason: "not_a_chat",
            field: field.to_string(),
            value: shorten(words),
            rule: format!(
                "{field} must be a chat as JSON, or text; this is a list as Python prints it"
            ),
            remedy: "write it with json.dumps",
        });
    }
    Ok(None)
}

/// The JSON of a text that is, as a whole, a list of messages, or one message: objects with role and content (or from
/// and value), some of them of a known role.
pub fn spelled_chat(words: &str) -> Option<Raw<'_>> {
    let json = words.trim();
    if !json.starts_with(['[', '{']) {
        return None;
    }
    let json = Raw::parse(json).ok()?;
    let items = json.items().unwrap_or_else(|| vec![json]);
    let mut is_known = false;
    for item in &items {
        is_known |= role_of(*item)?;
    }
    is_known.then_some(json)
}

/// Whether the role of a message is a known one; none for what is no message.
fn role_of(item: Raw) -> Option<bool> {
    if !item.get().starts_with('{') {
        return None;
    }
    let fields = Fields::parse(item.get()).ok()?;
    let (role_key, content_key) = keys(&fields);
    let has_content = fields.0.iter().any(|(name, _)| name == content_key);
    if !has_content && fields.get("tool_calls").is_none() {
        return None;
    }
    let role = text(fields.get(role_key)?, "").ok()?;
    Some(&*role == "function_call" || known_role(&role).is_some())
}

/// The JSON of a text that is, as a whole, a list.
pub fn spelled_list(words: &str) -> Option<Raw<'_>> {
    let json = words.trim();
    json.starts_with('[').then(|| Raw::parse(json).ok())?
}

fn owned(message: Message) -> Message<'static> {
    Message {
        role: known_role(message.role).unwrap_or("user"),
        content: Cow::Owned(message.content.into_owned()),
        extra: message.extra.map(|extra| Cow::Owned(extra.into_owned())),
    }
}

/// The turns of a `\n\nHuman: ...\n\nAssistant: ...` transcript; one space after the colon belongs to the marker.
pub fn transcript<'a>(text: &'a str, field: &str) -> Result<Vec<Message<'a>>, Reject> {
    if is_transcript(text) {
        return Ok(turns(text).collect());
    }
    Err(Reject {
        reason: "not_a_transcript",
        field: field.to_string(),
        value: shorten(text),
        rule: format!("{field} must be a transcript that begins with \"\\n\\nHuman:\""),
        remedy: "mark each turn, or use another format",
    })
}

/// Whether the text begins with a marked turn of the user.
pub fn is_transcript(text: &str) -> bool {
    text.starts_with(HUMAN)
}

/// Whether the text is a transcript that ends where the answer begins; it may lack the blank line before its first turn.
pub fn is_begun(text: &str) -> bool {
    (is_transcript(text) || text.starts_with(HUMAN.trim_start())) && text.ends_with(ASSISTANT)
}

fn turns(text: &str) -> impl Iterator<Item = Message<'_>> {
    let mut starts = turn_starts(text);
    starts.push((text.len(), text.len(), ""));
    let pairs = (1..starts.len()).map(move |next| (starts[next - 1], starts[next].0));
    pairs.map(|((_, from, role), end)| {
        let content = &text[from..end];
        Message::new(role, content.strip_prefix(' ').unwrap_or(content))
    })
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
pub const ASSISTANT: &str = "\n\nAssistant:";

/// (where the marker begins, where it ends, role) of each turn, in order.
fn turn_starts(text: &str) -> Vec<(usize, usize, &'static str)> {
    const MARKERS: [(&str, &str); 2] = [(HUMAN, "user"), (ASSISTANT, "assistant")];
    let mut turns = Vec::new();
    let mut from = 0;
    if text.starts_with(HUMAN.trim_start()) {
        from = HUMAN.trim_start().len();
        turns.push((0, from, "user"));
    }
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
