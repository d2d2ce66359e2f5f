//! Which format rows have, by their fields and the kinds of their values.

use memchr::memmem;

use super::Rows;
use super::json::{Fields, text};
use super::message::chat;
use super::raw::Raw;
use super::schema::{Field, Form, Format, Shape};

/// What `detect` saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detected {
    /// The first candidate that the first telling row fits.
    pub format: Option<Format>,
    /// Field names of the first row that is a JSON object.
    pub fields: Vec<String>,
    /// Whole texts without a prompt: where the prompt ends is not known.
    pub unmarked: bool,
}

/// Those of the names that a line of JSON may have as a field, since they stand in quotes somewhere.
pub fn quoted<'n>(lines: &[u8], names: &'n [String]) -> Vec<&'n str> {
    let stands = |name: &&String| memmem::find(lines, format!("\"{name}\"").as_bytes()).is_some();
    names.iter().filter(stands).map(String::as_str).collect()
}

/// Look at rows in order until one fits one of the `candidates`; bad rows tell nothing and are passed over.
pub fn detect<'a>(rows: impl Iterator<Item = &'a [u8]>, candidates: &[Format]) -> Detected {
    let mut seen = Detected {
        format: None,
        fields: Vec::new(),
        unmarked: false,
    };
    for row in rows {
        let Ok(fields) = Fields::of_row(row) else {
            continue;
        };
        if seen.fields.is_empty() {
            seen.fields = fields.0.iter().map(|(name, _)| name.to_string()).collect();
            seen.unmarked = fields.get("prompt").is_none()
                && ["chosen", "rejected"]
                    .iter()
                    .all(|name| begins(fields.get(name), "\""));
        }
        seen.format = candidates
            .iter()
            .copied()
            .find(|&format| fits(&fields, format));
        if seen.format.is_some() {
            break;
        }
    }
    seen
}

/// Whether the row is written in one of the format's forms.
fn fits(fields: &Fields, format: Format) -> bool {
    let written = |form: &Form| {
        let absent = |name: &&str| fields.get(name).is_none();
        let given = |field: &&Field| field.shapes.is_empty() || stands(fields, field);
        form.without.iter().all(absent)
            && form
                .needed()
                .iter()
                .all(|alternatives| alternatives.iter().any(given))
    };
    format.entry().forms.iter().any(written)
}

/// Whether the field has one of its shapes.
fn stands(fields: &Fields, field: &Field) -> bool {
    let value = fields.get(field.name);
    let is = |shape: &Shape| match shape {
        Shape::Text => begins(value, "\""),
        Shape::Chat | Shape::Turns | Shape::List => begins(value, "["),
        Shape::Message => begins(value, "{"),
        Shape::WholeChat => is_whole_chat(fields, field.name),
        Shape::Transcript => is_transcript(fields, field.name),
        Shape::Number => value.is_some_and(|raw| serde_json::from_str::<f64>(raw.get()).is_ok()),
    };
    field.shapes.iter().any(is)
}

fn begins(raw: Option<Raw>, sign: &str) -> bool {
    raw.is_some_and(|raw| raw.get().starts_with(sign))
}

fn is_transcript(fields: &Fields, name: &str) -> bool {
    let words = fields.get(name).and_then(|raw| text(raw, name).ok());
    words.is_some_and(|words| words.starts_with("\n\nHuman:"))
}

fn is_whole_chat(fields: &Fields, name: &str) -> bool {
    let messages = fields
        .get(name)
        .and_then(|raw| chat(raw, name, Rows::Json).ok());
    messages.is_some_and(|messages| messages.len() > 1 && messages[0].role != "assistant")
}
