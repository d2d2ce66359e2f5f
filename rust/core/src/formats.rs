//! Rows of the known formats, as JSON texts, into chats; each bad row into a reject with its reason.
//!
//! ```
//! use pyprefopt_core::formats::{parse_pair, Format, Rows};
//! let good = br#"{"prompt":"Hi","chosen":"Hello.","rejected":"No."}"#;
//! let said = parse_pair(good, Format::Preference, Rows::Json, false, |pair, _| pair.chosen[0].content.to_string());
//! assert_eq!(said.unwrap(), "Hello.");
//! let bad = br#"{"prompt":"Hi","chosen":"","rejected":"No."}"#;
//! let reject = parse_pair(bad, Format::Preference, Rows::Json, false, |_, _| ()).unwrap_err();
//! assert_eq!(reject.reason, "empty_response");
//! ```

mod array;
mod blocks;
mod candidates;
mod checks;
mod csv;
mod detect;
mod fields;
mod instruction;
mod json;
mod message;
mod preference;
mod raw;

pub use blocks::{Blocks, Layout, Limits, TextBlock};
pub use candidates::{Candidates, parse_candidates};
pub use detect::{Detected, detect, quoted};
pub use instruction::{Instruction, parse_instruction};
pub use json::lines;
pub use message::Message;
pub use preference::{Pair, parse_pair};

use crate::reject::Reject;

/// A schema that rows can have. The names are those of the setting `format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `conversations` of {from, value}; `chosen`, `rejected` {from, value}.
    ShareGpt,
    /// `chosen`, `rejected`: whole transcripts of `\n\nHuman:` and `\n\nAssistant:` turns.
    Hh,
    /// `prompt` text; `chosen`, `rejected` whole chats, the prompt's turn included.
    UltraFeedback,
    /// `history`, `human_ref_A`, `human_ref_B` texts; `labels` 1: A is preferred.
    Shp,
    /// `instruction`, optional `input`, `history`; `chosen`, `rejected`, or `output` [chosen, rejected].
    Alpaca,
    /// `prompt`, `chosen`, `rejected`: text or list of messages; without `prompt`, whole chats.
    Preference,
    /// `prompt` or `instruction`; a list of responses, with scores.
    Candidates,
    /// One response a row: `prompt`, `response` or `completion`, `score` or `rating`.
    CandidateRows,
    /// `messages` or `conversations`: whole chats that end with the assistant.
    Messages,
    /// `prompt` and `response` or `completion`.
    PromptResponse,
    /// `instruction`, optional `input`, `history`, `output`.
    Instruction,
}

impl Format {
    pub const ALL: [Self; 11] = [
        Self::ShareGpt,
        Self::Hh,
        Self::UltraFeedback,
        Self::Shp,
        Self::Alpaca,
        Self::Preference,
        Self::Candidates,
        Self::CandidateRows,
        Self::Messages,
        Self::PromptResponse,
        Self::Instruction,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::ShareGpt => "sharegpt",
            Self::Hh => "hh",
            Self::UltraFeedback => "ultrafeedback",
            Self::Shp => "shp",
            Self::Alpaca => "alpaca",
            Self::Preference => "preference",
            Self::Candidates => "candidates",
            Self::CandidateRows => "candidate_rows",
            Self::Messages => "messages",
            Self::PromptResponse => "prompt_response",
            Self::Instruction => "instruction",
        }
    }

    /// The format of that name, or `None`.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }
}

/// Where rows come from: in typed rows a member that is null is one that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    Json,
    Typed,
}
