//! Which format rows have, by their fields and the kinds of their values.

use memchr::memmem;

use super::candidates::RESPONSES;
use super::json::{Fields, text};
use super::message::chat;
use super::raw::Raw;
use super::{Format, Rows};

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

fn fits(fields: &Fields, format: Format) -> bool {
    let list = |name: &str| begins(fields.get(name), "[");
    let is_text = |name: &str| begins(fields.get(name), "\"");
    let either = |name: &str| list(name) || is_text(name);
    let turn = |name: &str| list(name) || begins(fields.get(name), "{");
    let pair = || either("chosen") && either("rejected");
    let absent = |name: &str| fields.get(name).is_none();
    match format {
        Format::ShareGpt => list("conversations") && turn("chosen") && turn("rejected"),
        Format::Hh => {
            absent("prompt") && is_transcript(fields, "chosen") && is_transcript(fields, "rejected")
        }
        Format::UltraFeedback => {
            is_text("prompt")
                && is_whole_chat(fields, "chosen")
                && is_whole_chat(fields, "rejected")
        }
        Format::Shp => is_text("history") && is_text("human_ref_A") && is_text("human_ref_B"),
        Format::Alpaca => is_text("instruction") && (pair() || list("output")),
        Format::Preference if absent("prompt") => {
            absent("conversations") && absent("instruction") && list("chosen") && list("rejected")
        }
        Format::Preference => either("prompt") && pair(),
        Format::Candidates => {
            (either("prompt") || is_text("instruction")) && RESPONSES.iter().any(|name| list(name))
        }
        Format::CandidateRows => {
            let number = |name: &str| {
                fields
                    .get(name)
                    .is_some_and(|raw| serde_json::from_str::<f64>(raw.get()).is_ok())
            };
            fits(fields, Format::PromptResponse) && (number("score") || number("rating"))
        }
        Format::Messages => absent("chosen") && (list("messages") || list("conversations")),
        Format::PromptResponse => either("prompt") && (either("response") || either("completion")),
        Format::Instruction => is_text("instruction") && is_text("output"),
    }
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
