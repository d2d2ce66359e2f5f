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

mod agreement;
mod alternatives;
mod array;
mod blocks;
mod candidates;
mod chat;
mod checks;
mod csv;
mod detect;
mod edit;
mod fields;
mod instruction;
mod json;
mod message;
mod names;
mod preference;
mod raw;
mod rename;
mod repeats;
mod rivals;
mod schema;
mod sides;
mod table;

pub use blocks::{Blocks, Layout, Limits, TextBlock};
pub use candidates::{Candidates, parse_candidates};
pub use detect::{Detected, detect, quoted};
pub use edit::{Cutter, Shortening, Written, shorten_chat};
pub use instruction::{Instruction, parse_instruction};
pub use json::lines;
pub use message::Message;
pub use names::count_names;
pub use preference::{Pair, parse_pair};
pub use rename::rename_fields;
pub use schema::{Entry, Field, Format, Kind};
pub use table::TABLE;

use crate::reject::Reject;

/// Where rows come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    Json,
    /// A member that is null is one that is not there.
    Typed,
}
