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
mod csv;
mod detect;
mod edit;
mod fields;
mod instruction;
mod json;
mod message;
mod preference;
mod raw;
mod schema;
mod table;

pub use blocks::{Blocks, Layout, Limits, TextBlock};
pub use candidates::Candidates;
pub use detect::{Detected, detect, quoted};
pub use edit::{Cutter, Shortening, Written};
pub use instruction::Instruction;
pub use json::lines;
pub use message::Message;
pub use preference::Pair;
pub use schema::{Entry, Field, Format, Kind};
pub use table::TABLE;

use crate::reject::Reject;

use json::Fields;

/// Where rows come from: in typed rows a member that is null is one that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    Json,
    Typed,
}

/// Hand a preference row to `found`, with its further fields as a JSON object if they are to be carried.
pub fn parse_pair<T>(
    row: &[u8],
    format: Format,
    rows: Rows,
    carry: bool,
    found: impl FnOnce(&Pair, Option<&str>) -> T,
) -> Result<T, Reject> {
    let fields = Fields::of_row(row)?;
    let others = others(&fields, format, carry)?;
    preference::parse(&fields, format, rows, |pair| found(pair, others.as_deref()))
}

/// Hand a row with n responses to `found`, with its further fields as in `parse_pair`.
pub fn parse_candidates<T>(
    row: &[u8],
    rows: Rows,
    carry: bool,
    found: impl FnOnce(&Candidates, Option<&str>) -> T,
) -> Result<T, Reject> {
    let fields = Fields::of_row(row)?;
    let others = others(&fields, Format::Candidates, carry)?;
    Ok(found(&candidates::parse(&fields, rows)?, others.as_deref()))
}

/// Hand a row of instruction data (or of one scored response) to `found`, with its further fields as in `parse_pair`.
pub fn parse_instruction<T>(
    row: &[u8],
    format: Format,
    rows: Rows,
    carry: bool,
    found: impl FnOnce(&Instruction, Option<&str>) -> T,
) -> Result<T, Reject> {
    let fields = Fields::of_row(row)?;
    let others = others(&fields, format, carry)?;
    Ok(found(
        &instruction::parse(&fields, format, rows)?,
        others.as_deref(),
    ))
}

fn others(fields: &Fields, format: Format, carry: bool) -> Result<Option<String>, Reject> {
    if carry {
        fields.others(format.fields())
    } else {
        Ok(None)
    }
}
