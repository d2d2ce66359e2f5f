//! Which format rows have, by their fields and the kinds of their values.

use serde_json::value::RawValue;

use super::Format;
use super::json::Fields;
use super::message::chat;

/// What `detect` saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detected {
    /// The first candidate that the first telling row fits.
    pub format: Option<Format>,
    /// Field names of the first row that is a JSON object.
    pub fields: Vec<String>,
}

/// Look at rows in order until one fits one of the `candidates`; bad rows tell nothing and are passed over.
pub fn detect(rows: &[&[u8]], candidates: &[Format]) -> Detected {
    let mut seen = Detected {
        format: None,
        fields: Vec::new(),
    };
    for row in rows {
        let Ok(fields) = Fields::of_row(row) else {
            continue;
        };
        if seen.fields.is_empty() {
            seen.fields = fields.0.iter().map(|(name, _)| name.clone()).collect();
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

fn fits(fields: &Fields, format: Format) -> bool {
    let list = |name: &str| begins(fields.get(name), "[");
    let text = |name: &str| begins(fields.get(name), "\"");
    let object = |name: &str| begins(fields.get(name), "{");
    let either = |name: &str| list(name) || text(name);
    match format {
        Format::ShareGpt => list("conversations") && object("chosen") && object("rejected"),
        Format::Hh => {
            fields.get("prompt").is_none()
                && is_transcript(fields, "chosen")
                && is_transcript(fields, "rejected")
        }
        Format::UltraFeedback => {
            text("prompt") && is_whole_chat(fields, "chosen") && is_whole_chat(fields, "rejected")
        }
        Format::Preference if fields.get("prompt").is_some() => {
            either("prompt") && either("chosen") && either("rejected")
        }
        Format::Preference => list("chosen") && list("rejected"),
        Format::Messages => list("messages") || list("conversations"),
        Format::PromptResponse => either("prompt") && (either("response") || either("completion")),
        Format::Instruction => text("instruction") && text("output"),
    }
}

fn begins(raw: Option<&RawValue>, sign: &str) -> bool {
    raw.is_some_and(|raw| raw.get().starts_with(sign))
}

fn is_transcript(fields: &Fields, name: &str) -> bool {
    let text = fields
        .get(name)
        .and_then(|raw| serde_json::from_str::<String>(raw.get()).ok());
    text.is_some_and(|text| text.starts_with("\n\nHuman:"))
}

fn is_whole_chat(fields: &Fields, name: &str) -> bool {
    let messages = fields.get(name).and_then(|raw| chat(raw, name).ok());
    messages.is_some_and(|messages| messages.len() > 1 && messages[0].role != "assistant")
}
