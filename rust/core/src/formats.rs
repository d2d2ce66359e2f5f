//! Rows of the known preference formats, as JSON texts, into chats; each bad row into a reject with its reason.
//!
//! ```
//! use pyprefopt_core::formats::{parse_preferences, Format};
//! let good: &[u8] = br#"{"prompt":"Hi","chosen":"Hello.","rejected":"No."}"#;
//! let bad: &[u8] = br#"{"prompt":"Hi","chosen":"","rejected":"No."}"#;
//! let parsed = parse_preferences(&[good, bad], Format::Preference);
//! assert_eq!(parsed[0].as_ref().unwrap().chosen.content, "Hello.");
//! assert_eq!(parsed[1].as_ref().unwrap_err().reason, "empty_response");
//! ```

mod array;
mod blocks;
mod csv;
mod detect;
mod instruction;
mod json;
mod message;
mod preference;

use rayon::prelude::*;

pub use blocks::{Blocks, Layout, Limits, TextBlock};
pub use detect::{Detected, detect};
pub use instruction::Instruction;
pub use json::lines;
pub use message::Message;
pub use preference::Pair;

/// A schema that rows can have. The names are those of the setting `format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `conversations` of {from, value}; `chosen`, `rejected` {from, value}.
    ShareGpt,
    /// `chosen`, `rejected`: whole transcripts of `\n\nHuman:` and `\n\nAssistant:` turns.
    Hh,
    /// `prompt` text; `chosen`, `rejected` whole chats, the prompt's turn included.
    UltraFeedback,
    /// `prompt`, `chosen`, `rejected`: text or list of messages; without `prompt`, whole chats.
    Preference,
    /// `messages` or `conversations`: whole chats that end with the assistant.
    Messages,
    /// `prompt` and `response` or `completion`.
    PromptResponse,
    /// `instruction`, optional `input`, `output`.
    Instruction,
}

impl Format {
    pub const PREFERENCES: [Self; 4] = [
        Self::ShareGpt,
        Self::Hh,
        Self::UltraFeedback,
        Self::Preference,
    ];
    pub const INSTRUCTIONS: [Self; 3] = [Self::Messages, Self::PromptResponse, Self::Instruction];

    pub fn name(self) -> &'static str {
        match self {
            Self::ShareGpt => "sharegpt",
            Self::Hh => "hh",
            Self::UltraFeedback => "ultrafeedback",
            Self::Preference => "preference",
            Self::Messages => "messages",
            Self::PromptResponse => "prompt_response",
            Self::Instruction => "instruction",
        }
    }

    /// The fields that the format takes; all others are the user's own.
    pub fn fields(self) -> &'static [&'static str] {
        match self {
            Self::ShareGpt => &[
                "row", "chosen", "rejected", "score_chosen", "score_rejected", "chosen_complete",
                "rejected_complete", "tools", "template_kwargs", "conversations", "system", "prompt",
            ],
            Self::Hh | Self::UltraFeedback | Self::Preference => &[
                "row", "prompt", "chosen", "rejected", "score_chosen", "score_rejected", "chosen_complete",
                "rejected_complete", "tools", "template_kwargs",
            ],
            Self::Messages => &["messages", "conversations"],
            Self::PromptResponse => &["prompt", "response", "completion"],
            Self::Instruction => &["instruction", "input", "output"],
        }
    }

    /// The format of that name, or `None`.
    pub fn named(name: &str) -> Option<Self> {
        Self::PREFERENCES
            .into_iter()
            .chain(Self::INSTRUCTIONS)
            .find(|format| format.name() == name)
    }
}

/// Why a row cannot be used, in the words a user sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    /// Slug, for counting.
    pub reason: &'static str,
    /// Where in the row, as `chosen[1].content`; empty: the row itself.
    pub field: String,
    /// What stands there, shortened.
    pub value: String,
    pub rule: String,
    pub remedy: &'static str,
}

/// Parse preference rows, in parallel; the result stands at the row's place.
pub fn parse_preferences(rows: &[&[u8]], format: Format) -> Vec<Result<Pair, Reject>> {
    rows.par_iter()
        .map(|row| preference::parse(row, format))
        .collect()
}

/// Parse rows of instruction data, in parallel; the result stands at the row's place.
pub fn parse_instructions(rows: &[&[u8]], format: Format) -> Vec<Result<Instruction, Reject>> {
    rows.par_iter()
        .map(|row| instruction::parse(row, format))
        .collect()
}
