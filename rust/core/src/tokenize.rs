//! Prompt and responses as token segments: rendered once, tokenized once, split by byte offsets.

mod budget;
mod chat;
mod columns;
mod encoder;
mod fast;
mod probe;
mod row;

pub use budget::{Boundary, Limits, PromptOverflow};
pub use columns::Columns;
pub use encoder::{Encoded, Encoder, Mismatch, Shared};
pub use row::{Response, Row, Tokenization, tokenize_row};
